"""A script run as two processes that find each other, and what they saw."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[1] / "src"


def run_two(script: Path, folder: Path) -> list[dict[str, Any]]:
    """What ``script RANK FOLDER`` wrote into ``rankR.json`` of the folder, as each rank."""
    path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, str(script), str(rank), str(folder)], env=env, stderr=subprocess.PIPE, text=True
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


def torchrun_two(script: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """The records that ``torchrun ... script FOLDER`` printed, one line of JSON each, by their ``case``."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(  # noqa: S603 - our own script
        [*command, str(script), str(folder)],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {record["case"]: record for record in records}
