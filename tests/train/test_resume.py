"""A run killed at any moment and resumed ends with the same bits; ``drive_kill.py`` does the killing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from polyfuse.config import ModelConfig, TrainConfig
from polyfuse.data.batch import Batch
from polyfuse.data.spec import ModalitySpec, TargetSpec
from polyfuse.errors import UserError
from polyfuse.models.fusion_model import FusionModel
from polyfuse.train.build import build_model
from polyfuse.train.checkpoint import LAST
from polyfuse.train.loop import fit

MOMENTS = (
    "before the first checkpoint",
    "right after a checkpoint",
    "in the middle of an epoch",
    "first step of an epoch",
    "last step",
    "while the first checkpoint is written",
    "while the fourth checkpoint is written",
    "while the best weights are written",
    "between the best weights and the checkpoint",
    "half a line of metrics",
    "Ctrl-C",
    "SIGTERM",
)


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    command = [sys.executable, str(Path(__file__).with_name("drive_kill.py")), str(tmp_path_factory.mktemp("runs"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in done.stdout.splitlines()]
    return {record["case"]: record for record in records}


def test_the_whole_run_does_what_resuming_must_repeat(driven: dict[str, dict[str, Any]]) -> None:
    whole = driven["whole"]
    assert whole["steps"] == 21
    assert whole["evaluations"] == 4
    assert whole["moved"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_ends_with_the_same_bits(driven: dict[str, dict[str, Any]], moment: str) -> None:
    record = driven[moment]
    assert record["died"], "the run was to end before its end"
    assert record["resumed"] == 0
    assert record["differs"] == []
    assert record["litter"] == []


def test_ctrl_c_leaves_a_checkpoint_of_that_very_step(driven: dict[str, dict[str, Any]]) -> None:
    assert driven["Ctrl-C"]["saved"] == 10  # interrupted in the step after nine
    assert driven["SIGTERM"]["saved"] == 16
    assert driven["in the middle of an epoch"]["saved"] == 16


def test_a_run_killed_again_and_again_ends_with_the_same_bits(driven: dict[str, dict[str, Any]]) -> None:
    record = driven["killed again and again"]
    assert record["kills"] >= 1
    assert record["differs"] == []


NAMES = ("a", "b")


def small_table(rows: int) -> Batch:
    g = torch.Generator().manual_seed(0)
    inputs: dict[str, Any] = {name: torch.randn(rows, 3, generator=g) for name in NAMES}
    target = torch.randint(0, 2, (rows,), generator=g)
    return Batch(NAMES, inputs, torch.ones(rows, 2, dtype=torch.bool), target, torch.arange(rows))


def small_model(hidden: int = 4) -> FusionModel:
    specs = {name: ModalitySpec(name, "vector", {"width": 3}) for name in NAMES}
    return build_model(specs, TargetSpec("classification", ("x", "y")), ModelConfig(embed_dim=3, hidden=hidden))


def run(folder: Path, *, rows: int = 11, hidden: int = 4, resume: bool = True, **settings: Any) -> FusionModel:
    model = small_model(hidden)
    config = TrainConfig(**{"epochs": 1, "batch_size": 4, "evaluations": 2, **settings})
    fit(model, small_table(rows), small_table(7), config, task="classification", run_dir=folder, resume=resume)
    return model


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(UserError, match="holds a run already"):
        run(tmp_path, resume=False)


def test_a_finished_run_resumes_to_its_best_weights(tmp_path: Path) -> None:
    first = run(tmp_path).state_dict()
    before = (tmp_path / "metrics.jsonl").read_text()
    for name, value in run(tmp_path).state_dict().items():
        torch.testing.assert_close(value, first[name], rtol=0, atol=0)
    assert (tmp_path / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.5}, r"train\.lr was 0\.002, is now 0\.5"),
        ({"rows": 13}, "training rows was 11, is now 13"),
        ({"hidden": 5}, "the checkpoint does not fit this model: .*head"),
    ],
)
def test_another_run_is_not_resumed(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    run(tmp_path)
    with pytest.raises(UserError, match=message):
        run(tmp_path, **change)


def test_settings_that_decide_nothing_may_change(tmp_path: Path) -> None:
    run(tmp_path)
    run(tmp_path, checkpoint_seconds=1.0)


def test_another_number_of_threads_is_warned_about(tmp_path: Path) -> None:
    now = torch.get_num_threads()
    run(tmp_path, threads=1)
    with pytest.warns(UserWarning, match="resuming with 2 threads a run begun with 1"):
        run(tmp_path, threads=2)
    assert torch.get_num_threads() == now


def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    run(tmp_path)
    last = tmp_path / LAST
    last.write_bytes(last.read_bytes()[:100])
    with pytest.raises(UserError, match=r"last\.safetensors' is not a readable checkpoint"):
        run(tmp_path)
