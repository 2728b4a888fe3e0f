"""Imports point one way, the core needs no extra, and the command line answers without PyTorch."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "polyfuse"

# Rank of every unit (file or folder of the package): a unit imports only units of its own rank or below.
RANKS = [
    {"errors", "registry", "cache", "files", "yaml_text"},
    {"functional", "layers"},
    {"data", "encoders", "fusion", "heads", "losses"},
    {"models", "config", "config_values", "task_config", "finetune_config", "datasets"},
    {"train", "evaluate", "calibrate", "tasks"},
    {"report"},
    {"studies"},
    {"run"},
    {"cli"},
    {"__main__"},
]
RANK = {unit: rank for rank, units in enumerate(RANKS) for unit in units}

EXTRAS = (
    "lightning_fabric", "pydantic", "yaml", "typer", "rich", "pyarrow", "PIL", "tokenizers", "sklearn", "matplotlib",
    "jinja2", "transformers", "soundfile", "av", "onnx", "onnxscript", "onnxruntime", "pandas",
)  # fmt: skip


def imported_units() -> dict[str, dict[str, str]]:
    """``{unit: {imported unit: where}}`` over every import statement, those inside functions included."""
    edges: dict[str, dict[str, str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        unit = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if unit == "__init__":
            continue  # the package's own lazy table of names
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno} imports relatively"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                parts = name.split(".")
                if parts[0] == "polyfuse" and len(parts) > 1 and parts[1] in RANK and parts[1] != unit:
                    edges.setdefault(unit, {}).setdefault(parts[1], f"{path.relative_to(ROOT)}:{node.lineno}")
    return edges


def test_every_unit_has_a_rank() -> None:
    units = {p.stem for p in SOURCE.glob("*.py")} | {p.parent.name for p in SOURCE.glob("*/__init__.py")}
    assert units - {"__init__"} <= set(RANK), f"give {units - set(RANK)} a rank"


def test_imports_point_one_way() -> None:
    wrong = [
        f"{where}: {unit} imports {other}"
        for unit, others in imported_units().items()
        for other, where in others.items()
        if RANK[other] > RANK[unit]
    ]
    assert not wrong, "\n".join(wrong)


def test_units_of_one_rank_do_not_import_in_circles() -> None:
    edges = imported_units()
    for start in edges:
        seen: set[str] = set()
        stack = list(edges[start])
        while stack:
            unit = stack.pop()
            assert unit != start, f"{start} imports itself through {sorted(seen)}"
            if unit not in seen:
                seen.add(unit)
                stack.extend(edges.get(unit, {}))


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603  our own code
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **environment},
    )  # fmt: skip


BLOCK = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f'blocked: {{name}}', name=name.partition('.')[0])
sys.meta_path.insert(0, Block())
"""


def test_the_core_works_with_every_extra_blocked() -> None:
    code = (
        BLOCK
        + """
import torch, polyfuse
for name in polyfuse.__all__:
    if name != 'load':
        getattr(polyfuse, name)
import polyfuse.encoders, polyfuse.losses, polyfuse.models, polyfuse.heads, polyfuse.functional
import polyfuse.data.batch, polyfuse.data.missing, polyfuse.data.corrupt, polyfuse.data.keyed
for name, fusion in polyfuse.FUSIONS.items():
    layer = fusion(('a', 'b'), embed_dim=8)
    out = layer({'a': torch.randn(3, 8), 'b': torch.randn(3, 8)})
    assert out.fused.isfinite().all(), name
print('ok')
"""
    )
    done = run_python(code)
    assert done.stdout.strip() == "ok", done.stderr


def test_importing_polyfuse_loads_no_extra_and_no_torch() -> None:
    code = f"import sys, polyfuse; print([n for n in sys.modules if n.partition('.')[0] in {(*EXTRAS, 'torch')!r}])"
    assert run_python(code).stdout.strip() == "[]"


def test_help_does_not_import_torch() -> None:
    code = """
import sys
from polyfuse.cli import run
status = run(['--help'])
assert status == 0
assert not {'torch', 'numpy', 'pyarrow', 'pydantic', 'lightning_fabric'} & set(sys.modules)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert "predict" in done.stdout


def test_command_line_without_the_workbench_prints_the_pip_line() -> None:
    done = run_python(BLOCK + "from polyfuse.__main__ import main; main()")
    assert done.returncode == 2
    assert done.stderr.strip() == "the command line needs the workbench: pip install 'polyfuse[workbench]'"


def test_console_script_and_typing_marker_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"polyfuse": "polyfuse.__main__:main"}
    assert (SOURCE / "py.typed").exists()
    assert {name.split(">")[0] for name in project["dependencies"]} == {"torch", "numpy", "safetensors"}


@pytest.mark.parametrize("tool", ["ruff", "mypy", "torch"])
def test_constraints_pin_the_tools(tool: str) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith(f"{tool}==") for line in lines)
