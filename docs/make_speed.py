"""Run the benchmarks and write what they print into docs/speed.md.

python docs/make_speed.py              # all, some ten minutes of one core; nothing else should run
python docs/make_speed.py train sweep  # some of them; the others stay as they are
"""

import os
import subprocess
import sys
from pathlib import Path

from marked import put

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "speed.md"
NAMES = ("pool", "fusions", "train", "sweep", "models", "captioner", "scenes")


def printed(name: str) -> str:
    """What a benchmark says, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)  # noqa: S603 - our own
    return done.stdout.rstrip()


def main(names: list[str]) -> None:
    """Run and write, one after the other."""
    for name in names or NAMES:
        print(f"{name} ...", flush=True)
        put(PAGE, name, f"```console\n$ OMP_NUM_THREADS=1 python benchmarks/{name}.py\n{printed(name)}\n```")


if __name__ == "__main__":
    main(sys.argv[1:])
