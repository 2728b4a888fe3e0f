"""Data parallel training: two gloo processes equal one, for every fusion; one pair of processes serves all cases."""

from pathlib import Path
from typing import Any

import pytest

from ..two_processes import run_two

WORKER = Path(__file__).with_name("ddp_worker.py")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank saw: ``{fusion: {...} or a traceback}``."""
    return run_two(WORKER, tmp_path_factory.mktemp("ddp"))


def test_two_processes_equal_one(case: Any, two_processes: list[dict[str, Any]]) -> None:
    for rank, seen in enumerate(two_processes):
        assert case.name in seen, f"stopped by an earlier fusion on rank {rank}: {seen}"
        result = seen[case.name]
        assert isinstance(result, dict), result
        assert result["gradients"] == result["parameters"]
        assert result["between_ranks"] == 0.0
        assert result["logits"] < 1e-12
        assert result["gradient"] < 1e-12
