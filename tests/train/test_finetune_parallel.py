"""Fine-tuning in two processes is that of one, replicas and sharded; ``drive_finetune_ddp.py`` does the work."""

from pathlib import Path
from typing import Any

import pytest

from polyfuse.errors import UserError
from polyfuse.train.finetune import FineTune, fine_tune
from polyfuse.train.task_loop import LoopSettings

from ..two_processes import torchrun_two
from .task_toy import toy_data, toy_model, toy_words

REPLICAS = (
    *("vqa", "dropped and augmented", "gradual", "layer decay", "adapters", "frozen stem", "frozen stem and backbone"),
    *("grounding", "grounding, frozen stem, two passes", "captioning", "retrieval"),
    *("siglip, frozen stem and backbone", "regression"),
)
SHARDED = ("vqa", "layer decay", "adapters", "frozen stem", "frozen stem and backbone", "grounding")


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return torchrun_two(Path(__file__).with_name("drive_finetune_ddp.py"), tmp_path_factory.mktemp("finetune"))


@pytest.mark.parametrize("case", [*REPLICAS, *(f"sharded: {case}" for case in SHARDED)])
def test_two_processes_equal_one(driven: dict[str, dict[str, Any]], case: str) -> None:
    record = driven[case]
    assert record["size"] > 0.1  # there are gradients to compare
    allowed = 1e-6 * max(1.0, record["size"])
    assert record["losses"] < allowed  # of training and validation, and the figures of both
    assert record["gradients"] < allowed
    assert record["as many"], "the same parameters train"
    one, two = record["judged"]
    assert two == pytest.approx(one, rel=1e-5, nan_ok=True)
    assert record["names"]
    assert record["answers"]


def test_parts_thaw_and_rest_in_two_processes_as_asked(driven: dict[str, dict[str, Any]]) -> None:
    heads, both, everything = driven["gradual"]["trained"][::2]
    assert heads < both < everything
    assert driven["gradual"]["trained"][1::2] == [heads, both, everything]
    assert driven["frozen stem and backbone"]["trained"][0] == heads
    assert driven["adapters"]["trained"][0] < everything
    for case in ("frozen stem", "frozen stem and backbone"):
        assert any("computed once" in line for line in driven[case]["said"])  # alone; together it was compared


def test_two_processes_stop_at_the_same_step_whatever_the_second_sees(driven: dict[str, dict[str, Any]]) -> None:
    mine, other = driven["early stopping"]["found"]
    assert mine == other == [4, 1, 1]  # steps, best step, stopped early


def test_two_processes_leave_one_folder_with_the_figures_of_one(driven: dict[str, dict[str, Any]]) -> None:
    record = driven["folders"]
    one, two = record["figures"]
    assert set(one) == {"test", "novel"}
    for part, found in one.items():
        assert two[part]["figures"] == pytest.approx(found["figures"], abs=1e-6, nan_ok=True)
    assert record["losses"][1] == pytest.approx(record["losses"][0], abs=1e-5)  # seven steps of AdamW behind them
    assert record["files"][0] == record["files"][1] == record["files"][2]
    assert record["lines"] == [2, 2, 2]  # an evaluation is written once


def test_two_interrupted_processes_resume_to_the_same_bits(driven: dict[str, dict[str, Any]]) -> None:
    record = driven["folders"]
    assert record["stopped"]
    assert record["tensors"] > 50
    assert record["differs"] == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"cache": True, "freeze": ("stem",)}, "train.shard_parameters cannot .* got cache=true; leave out one"),
        ({"unfreeze": {1: ("backbone",)}}, r"train.shard_parameters .* got unfreeze=\{1: \('backbone',\)\}"),
    ],
)
def test_what_sharded_parameters_do_not_take_is_refused_by_name(more: dict[str, Any], message: str) -> None:
    words = toy_words()
    options = FineTune("vqa", LoopSettings(steps=2, shard_parameters=True), **more)
    with pytest.raises(UserError, match=message):
        fine_tune(toy_model(words), toy_data(), words, options)
