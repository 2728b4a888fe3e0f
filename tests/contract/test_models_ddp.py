"""Token-level models: two gloo processes equal one; one pair of processes serves all strategies."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from polyfuse.models.multimodal_transformer import STRATEGIES

from .ddp_named_models import named

WORKER = Path(__file__).with_name("ddp_models_worker.py")
SOURCE = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank saw: ``{strategy: {...} or a traceback}``."""
    folder = tmp_path_factory.mktemp("ddp")
    path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, str(WORKER), str(rank), str(folder)], env=env, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        errors = [worker.communicate(timeout=240)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    files = [folder / f"rank{rank}.json" for rank in range(2)]
    assert all(file.exists() for file in files), "\n".join(errors)
    return [json.loads(file.read_text()) for file in files]


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
