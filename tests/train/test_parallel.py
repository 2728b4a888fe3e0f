"""Two processes under torchrun give the losses and gradients of one; ``drive_ddp.py`` does the work."""

from pathlib import Path
from typing import Any

import pytest

from ..two_processes import torchrun_two

CASES = (
    "concat",
    "even",
    "gated",
    "late",
    "attention_pool",
    "three and two rows",
    "a modality absent from every shard",
    "a modality absent from one shard",
    "accumulated",
    "class weights",
    "multilabel",
    "regression",
)


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return torchrun_two(Path(__file__).with_name("drive_ddp.py"), tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(driven: dict[str, dict[str, Any]], case: str) -> None:
    record = driven[case]
    assert record["size"] > 0.1  # there are gradients to compare
    assert record["losses"] < 1e-6
    assert record["gradients"] < 1e-6
    assert record["rate"] == 0


def test_two_processes_resume_to_the_same_bits(driven: dict[str, dict[str, Any]]) -> None:
    record = driven["resume"]
    assert record["stopped"]
    assert record["tensors"] > 100
    assert record["differs"] == []


def test_fabric_with_one_process_gives_the_bits_of_no_fabric(driven: dict[str, dict[str, Any]]) -> None:
    record = driven["one process"]
    assert record["equal"]
    plain, wrapped, half, half_fabric = record["losses"]
    assert plain == wrapped
    assert half == half_fabric != plain
    assert half == pytest.approx(plain, abs=0.05)
