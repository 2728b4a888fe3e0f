"""Contrastive losses over two gloo processes: value and averaged gradient are those of one process."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from polyfuse.losses import distributed_info_nce, distributed_siglip

from ..two_processes import run_two

WORKER = Path(__file__).with_name("distributed_worker.py")
CASES = list(
    itertools.product(("info_nce", "siglip"), ("gather", "ring"), ("even", "uneven", "one_empty"), (False, True))
)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank saw: ``{case: {...} or a traceback}``."""
    return run_two(WORKER, tmp_path_factory.mktemp("losses"))


@pytest.mark.parametrize("case", ["-".join(map(str, case)) for case in CASES])
def test_two_processes_equal_one(case: str, two_processes: list[dict[str, Any]]) -> None:
    for rank, seen in enumerate(two_processes):
        assert case in seen, f"stopped by an earlier case on rank {rank}: {seen}"
        result = seen[case]
        assert isinstance(result, dict), result
        assert result["loss"] < 1e-10
        assert result["gradient"] < 1e-10
        assert result["ratio"] == pytest.approx(1.0, abs=1e-10)


def test_refusals() -> None:
    first = torch.eye(3)
    for loss in (distributed_info_nce, distributed_siglip):
        with pytest.raises(ValueError, match="got 'star'"):
            loss(first, first, mode="star", **({"scale": 1.0} if loss is distributed_info_nce else {}))
        with pytest.raises(ValueError, match=r"got \(3, 3\) and \(2, 3\)"):
            loss(first, first[1:], 1.0)
        with pytest.raises(ValueError, match=r"ids must have shape \(3,\), got \(2,\)"):
            loss(first, first, 1.0, ids=torch.zeros(2))
