"""Mistakes and interruptions: refused before any work, nothing left behind, nothing made up without calibration."""

import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyfuse.data.schema import PRETRAINED_TYPES
from polyfuse.encoders.pretrained import PRETRAINED
from polyfuse.errors import UserError
from polyfuse.evaluate.metrics import probabilities
from polyfuse.run import compare_runs, load, train_run
from polyfuse.studies.arms import workers_for


def test_without_calibration_a_row_without_inputs_gets_the_class_prior(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    train_run(config, overrides=["calibrate.enabled=false", "train.steps=3"], out=out, progress=False)
    run = load(out)
    assert run.calibration is None
    assert run.prior is not None
    wanted = probabilities("classification", run.prior)
    one, other = run.predict([{}, {"name": "cat"}])
    np.testing.assert_allclose(list(one.probabilities.values()), wanted, atol=1e-6)
    assert one.abstain
    assert one.label == run.encoder.target.classes[int(wanted.argmax())]
    assert not np.allclose(list(other.probabilities.values()), wanted, atol=1e-3)


def test_a_network_of_another_kind_of_input_is_refused_before_the_folder(config: Path, tmp_path: Path) -> None:
    wrong = {"picture": ("wordllama", "efficientnet_lite0, hf:<folder>"), "name": ("efficientnet_lite0", "minilm")}
    for modality, (network, fits) in wrong.items():
        with pytest.raises(UserError, match=f"pretrained '{network}' reads .* for {'image|text'}: {fits}"):
            train_run(config, overrides=[f"data.modalities.{modality}.pretrained={network}"], out=tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert set(PRETRAINED_TYPES) == set(PRETRAINED)


@pytest.mark.parametrize("command", [train_run, compare_runs])
def test_a_used_folder_is_refused_before_the_table_is_read(command: Any, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("mine")
    said: list[str] = []
    with pytest.raises(UserError, match="is never overwritten"):
        command(tmp_path / "no-such-table.csv", target="y", out=tmp_path / "x", say=said.append)
    assert not said
    assert (tmp_path / "x" / "mine").read_text() == "mine"


def test_an_interrupted_comparison_leaves_no_folder(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("polyfuse.run.compare.compare_arms", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare_runs(config, out=tmp_path / "x", workers=1)
    assert not (tmp_path / "x").exists()


def test_an_interruption_ends_the_workers_at_once() -> None:
    seconds: Any = 300  # stands for the task: a job is called with it
    with pytest.raises(KeyboardInterrupt), workers_for(seconds, 2) as run:  # noqa: PT012
        run([(time.sleep, ()) for _ in range(5)])  # type: ignore[list-item]
        while not multiprocessing.active_children():
            pass
        raise KeyboardInterrupt
    assert not multiprocessing.active_children()
