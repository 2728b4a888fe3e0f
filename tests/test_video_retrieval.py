"""The example runs in its small setting: every figure is there and finite."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "examples" / "video_retrieval.py"


def test_the_example_prints_retrieval_tags_and_synchrony() -> None:
    done = subprocess.run(  # noqa: S603  our own script
        [sys.executable, "-W", "error", str(SCRIPT), "--smoke"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"R@1 \d+ % of 20 held-out clips \(chance 5 %\)", done.stdout)
    precision = re.search(r"macro AP (0\.\d+|1\.00) \(chance 0\.\d+\)", done.stdout)
    assert precision is not None
    assert len(re.findall(r"^[+-]0\.\d+ s +-?\d+\.\d+", done.stdout.replace("\n ", "\n"), re.M)) == 7
    assert re.search(r"all shifts +[01]\.\d+ \([01]\.\d+ to [01]\.\d+\)", done.stdout)
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) < 100
