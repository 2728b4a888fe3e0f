"""Token-level models: two gloo processes equal one; one pair of processes serves all strategies."""

from pathlib import Path
from typing import Any

import pytest

from polyfuse.models.multimodal_transformer import STRATEGIES

from ..two_processes import run_two
from .ddp_named_models import named

WORKER = Path(__file__).with_name("ddp_models_worker.py")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank saw: ``{strategy: {...} or a traceback}``."""
    return run_two(WORKER, tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize("name", [*sorted(STRATEGIES), *named()])
def test_two_processes_equal_one(name: str, two_processes: list[dict[str, Any]]) -> None:
    for rank, seen in enumerate(two_processes):
        assert name in seen, f"stopped by an earlier strategy on rank {rank}: {seen}"
        result = seen[name]
        assert isinstance(result, dict), result
        assert result["gradients"] == result["parameters"]
        assert result["between_ranks"] == 0.0
        assert result["logits"] < 1e-12
        assert result["gradient"] < 1e-12
