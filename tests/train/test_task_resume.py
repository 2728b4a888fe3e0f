"""A run of the task loop killed at any moment and resumed ends with the same bits; ``drive_task_kill.py`` kills."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyfuse.errors import UserError
from polyfuse.train.checkpoint import LAST
from polyfuse.train.task_devices import Alone
from polyfuse.train.task_loop import LoopSettings, TaskFit, fit_tasks

from .task_toy import toy_tasks

MOMENTS = (
    *(f"killed in step {step}" for step in range(13)),
    "while the third checkpoint is written",
    "right after a checkpoint",
    "between the best weights and the checkpoint",
    "Ctrl-C",
    "SIGTERM",
)


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    script = str(Path(__file__).with_name("drive_task_kill.py"))
    command = [sys.executable, script, str(tmp_path_factory.mktemp("runs"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in done.stdout.splitlines()]
    return {record["case"]: record for record in records}


CASES = [f"sum: {moment}" for moment in MOMENTS] + [f"sample: {MOMENTS[number]}" for number in (0, 5, 10, 14)]


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_ends_with_the_same_bits(driven: dict[str, dict[str, Any]], case: str) -> None:
    record = driven[case]
    assert record["died"], "the run was to end before its end"
    assert record["resumed"] == 0
    assert record["differs"] == []
    assert record["litter"] == []


def test_ctrl_c_leaves_a_checkpoint_of_that_very_step(driven: dict[str, dict[str, Any]]) -> None:
    assert (driven["sum: Ctrl-C"]["died"], driven["sum: Ctrl-C"]["saved"]) == (130, 7)
    assert (driven["sum: SIGTERM"]["died"], driven["sum: SIGTERM"]["saved"]) == (143, 9)
    assert driven["sum: killed in step 5"]["saved"] == 4


SETTINGS = LoopSettings(steps=4, batch_size=5, evaluations=2)


def run(folder: Path, *, rows: int = 23, weight: float = 1.0, steps: int = 4, **settings: Any) -> TaskFit:
    model, tasks = toy_tasks({"answer": weight, "value": 1.0}, rows=rows)
    return fit_tasks(model, tasks, replace(SETTINGS, steps=steps, **settings), run_dir=folder, resume=True)


def test_a_finished_run_resumes_to_what_it_was(tmp_path: Path) -> None:
    first, again = run(tmp_path), run(tmp_path)
    assert again.history == first.history
    assert (again.steps, again.best_step) == (4, 4)


def test_the_scale_of_half_precision_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[dict[str, Any]] = []
    monkeypatch.setattr(Alone, "scaler_state", lambda self: {"scale": 512.0, "_growth_tracker": 7}, raising=False)
    monkeypatch.setattr(Alone, "load_scaler_state", lambda self, state: taken.append(state), raising=False)
    run(tmp_path)
    run(tmp_path)
    assert taken == [{"scale": 512.0, "_growth_tracker": 7}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.5}, r"train\.lr was 0\.001, is now 0\.5"),
        ({"steps": 5}, r"train\.steps was 4, is now 5"),
        ({"rows": 29}, r"checksum of the rows of answer was \d+, is now \d+"),
        ({"weight": 2.0}, r"weight of answer was 1\.0, is now 2\.0"),
    ],
)
def test_another_run_is_not_resumed(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    run(tmp_path)
    with pytest.raises(UserError, match=message):
        run(tmp_path, **change)


def test_another_objective_is_not_resumed(tmp_path: Path) -> None:
    run(tmp_path)
    model, tasks = toy_tasks({"answer": 1.0, "value": 1.0})
    tasks["more"] = replace(tasks["answer"], rows=np.arange(7))
    with pytest.raises(UserError, match=r"cannot resume .*: checksum of the rows of more was None, is now \d+"):
        fit_tasks(model, tasks, SETTINGS, run_dir=tmp_path, resume=True)


def test_settings_that_decide_nothing_may_change(tmp_path: Path) -> None:
    run(tmp_path)
    assert run(tmp_path, checkpoint_seconds=1.0, activation_checkpointing=True).steps == 4
    with pytest.warns(UserWarning, match="resuming with 2 threads a run begun with 1"):
        run(tmp_path, threads=2)


def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / LAST).write_bytes((tmp_path / LAST).read_bytes()[:100])
    with pytest.raises(UserError, match="not a readable checkpoint"):
        run(tmp_path)
