"""Run the benchmarks and write what they print into docs/speed.md.

python docs/make_speed.py              # all, some ten minutes of one core; nothing else should run
python docs/make_speed.py train sweep  # some of them; the others stay as they are
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "speed.md"
NAMES = ("pool", "fusions", "train", "sweep", "models", "captioner", "scenes")


def printed(name: str) -> str:
    """What a benchmark says, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)  # noqa: S603 - our own
    return done.stdout.rstrip()


def placed(page: str, name: str, text: str) -> str:
    """The page with a benchmark's block replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"{PAGE} has no place for '{name}': <!-- {name} --> and <!-- end of {name} -->")
    block = f"```console\n$ OMP_NUM_THREADS=1 python benchmarks/{name}.py\n{text}\n```\n"
    return pattern.sub(lambda found: found[1] + block + found[2], page)


def main(names: list[str]) -> None:
    """Run and write, one after the other."""
    for name in names or NAMES:
        print(f"{name} ...", flush=True)
        PAGE.write_text(placed(PAGE.read_text(encoding="utf-8"), name, printed(name)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
