# Two commands: `make demo` (install, run the main job, print its table) and `make test` (the same checks as CI).
# Needs Python 3.11+, pip and make; everything else goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
export OMP_WAIT_POLICY := PASSIVE
export PYTHONWARNINGS := ignore::DeprecationWarning:pip
say = @printf '\033[1m==> %s\033[0m\n' $(1)

.DEFAULT_GOAL := help
.PHONY: help install dev demo test lint bench clean lowest parity golden

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "polyfuse needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Point to one: make PYTHON=python3.12"; exit 1; }
	$(call say,"creating $(VENV)")
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.workbench: pyproject.toml constraints.txt | $(BIN)/python
	$(call say,"installing polyfuse and the workbench (about a minute the first time)")
	@$(PIP) install -c constraints.txt -e '.[workbench]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.workbench
	$(call say,"installing the development tools")
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

install: $(VENV)/.workbench ## create .venv and install the workbench
	@echo "ready: $(BIN)/polyfuse --help"

dev: $(VENV)/.dev ## the same, with the development tools

demo: $(VENV)/.workbench ## run the main job on the embedded real data and print its report's path
	$(call say,"running the demo (about three minutes on two cores)")
	@$(BIN)/polyfuse demo

lint: $(VENV)/.dev ## ruff and mypy
	$(call say,"ruff")
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(call say,"mypy")
	@$(BIN)/mypy

test: lint ## ruff, mypy, doctests, pytest (warnings are errors)
	$(call say,"pytest and doctests")
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

bench: $(VENV)/.dev ## speed, as ratios measured side by side
	$(call say,"attention pool against nn.MultiheadAttention and aecf 0.1.0")
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/pool.py
	$(call say,"what every fusion costs")
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fusions.py
	$(call say,"training loop against a bare PyTorch loop")
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/train.py
	$(call say,"all subsets of the inputs against one evaluation")
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/sweep.py
	$(call say,"models against transformers")
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/models.py
	$(call say,"drawn scenes per second")
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scenes.py
	$(call say,"captions with and without a cache")
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/captioner.py

lowest: ## test the layers on the lowest PyTorch that the metadata allows (several GB on Linux x86_64)
	$(call say,"installing the lowest PyTorch into .venv-lowest")
	@$(PYTHON) -m venv .venv-lowest
	@.venv-lowest/bin/python -m pip -qq install -c constraints-lowest.txt torch numpy safetensors pytest
	@.venv-lowest/bin/python -m pip -qq install -c constraints-lowest.txt --no-deps -e .
	@OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -o addopts=--import-mode=importlib -W ignore -q \
		tests/layers tests/fusion tests/losses tests/contract tests/models tests/test_functional.py tests/test_heads.py

PARITY := .venv-parity/bin/python
ORACLE := PYTHONPATH=src OMP_NUM_THREADS=1 $(PARITY)

.venv-parity/.ready: constraints-parity.txt
	$(call say,"installing timm and open_clip into .venv-parity (several GB on Linux x86_64)")
	@$(PYTHON) -m venv .venv-parity
	@$(PARITY) -m pip --disable-pip-version-check -qq install -c constraints-parity.txt \
		torch torchvision timm open_clip_torch numpy safetensors
	@touch $@

parity: .venv-parity/.ready ## models beside timm and open_clip, live, at full size (several GB, minutes)
	@for script in tests/parity/compare_*.py; do $(ORACLE) $$script || exit 1; done

golden: .venv-parity/.ready ## write again the golden numbers that the tests hold models to
	@for script in tests/parity/make_*_golden.py; do $(ORACLE) $$script || exit 1; done

clean: ## remove what make and the demo made
	rm -rf $(VENV) .venv-lowest .venv-parity runs build dist .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
