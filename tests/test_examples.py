"""The examples run in their small setting, and their page shows the diff of the file and figures of this very file."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from polyfuse.data.fetch import path_of

ROOT = Path(__file__).parents[1]
NAMES = ("vision_language", "medical_record", "robot_sensors")


def tool() -> Any:
    spec = importlib.util.spec_from_file_location("make_examples", ROOT / "docs" / "make_examples.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def smoke(name: str) -> str:
    """What an example prints in its small setting; the recordings of the watch are real or the test is skipped."""
    if name == "robot_sensors" and path_of("watch") is None:
        pytest.skip("the watch data are not in the cache: polyfuse data fetch watch")
    if name == "vision_language":
        pytest.importorskip("transformers")
    done = subprocess.run(  # noqa: S603  our own script
        [sys.executable, "-W", "error", str(ROOT / "examples" / f"{name}.py"), "--smoke"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_vision_language_model_answers_in_every_case() -> None:
    rows = re.findall(r"^(before|after) +(complete|picture missing|name missing) +([\d.]+) ", smoke(NAMES[0]), re.M)
    assert [arm for arm, _, _ in rows] == ["before"] * 3 + ["after"] * 3
    assert all(0.0 < float(accuracy) < 100.0 for _, _, accuracy in rows)  # one epoch: which is better is chance


def test_hiding_assays_in_training_helps_where_most_are_missing() -> None:
    printed = smoke(NAMES[1])
    rows = {
        (case.strip(), arm): float(x) for case, arm, x in re.findall(r"^(.{22}) (.{24}) ?([\d.]+) ±", printed, re.M)
    }
    scores = {(case, arm.strip()): x for (case, arm), x in rows.items()}
    assert len(scores) == 12
    assert scores["mut and clinical only", "after"] > scores["mut and clinical only", "before"]
    assert "lacks rppa" in printed
    assert "80 % sets" in printed


def test_the_robust_model_survives_a_flat_line() -> None:
    printed = smoke(NAMES[2])
    assert "false alarms: 0 of 6,092 windows" in printed
    curves = re.findall(r"^(before|after) +((?: +\d+){12})  % right", printed, re.M)
    assert [arm for arm, _ in curves] == ["before", "after"] * 2
    for (_, before), (_, after) in zip(curves[::2], curves[1::2], strict=True):
        flat = slice(5, 7)  # flat, and nobody knows
        assert sum(map(int, after.split()[flat])) > sum(map(int, before.split()[flat])) + 20


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short_and_its_page_current(name: str) -> None:
    make = tool()
    source = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) < 100
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    again = f"run: python docs/make_examples.py {name}"
    assert f"<!-- {name} {make.digest(source)} -->" in page, f"the figures are of another version of the file; {again}"
    assert f"```diff\n{make.diff(source)}\n```" in page, again
    assert re.search(rf"```console\n\$ python examples/{name}\.py\n[^`]+```", page), again


def test_the_diff_is_from_before_to_after() -> None:
    before, after = "class Before(M):\n    a = 1\n    b = 2\n", "class After(M):\n    a = 1\n    b = 3\n"
    source = f"{before}\n\n{after}\n\ndef other():\n    c = 4\n"
    shown = tool().diff(source).splitlines()
    assert shown == ["-class Before(M):", "+class After(M):", "     a = 1", "-    b = 2", "+    b = 3"]
