"""The console table fits its width; the CSV holds every number and no formula."""

import csv
import io
import math
from collections.abc import Callable

import pytest
from rich.console import Console

from polyfuse.report.content import ReportData
from polyfuse.report.records import Arm, SubsetRecord
from polyfuse.report.table import console_table, csv_text

Build = Callable[..., ReportData]


def printed(data: ReportData, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(console_table(data, width))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("width", [50, 80, 120, 200])
def test_table_fits_and_keeps_its_numbers_whole(make_data: Build, width: int, task: str) -> None:
    data = make_data(task, seeds=3)
    lines = printed(data, width)
    assert max(map(len, lines)) <= width
    row = next(line for line in lines if line.startswith("default"))
    numbers = row.replace("default recipe", "")
    assert "…" not in numbers, row
    complete = [r.metrics[data.primary.name] for r in data.subset_records if r.arm == "default" and len(r.subset) == 3]
    mean = sum(complete) / len(complete)
    assert f"{100 * mean:.1f}" if task == "classification" else f"{mean:.1f}" in row


def test_wider_shows_more(make_data: Build) -> None:
    data = make_data(seeds=3)
    narrow, wide = " ".join(printed(data, 80)), " ".join(printed(data, 200))
    assert "worst" in narrow
    assert "±" not in narrow
    assert "±" in wide
    assert "params" in wide


def test_marks_stand_beside_best_and_ties(make_data: Build) -> None:
    lines = printed(make_data(seeds=5), 100)
    assert next(line for line in lines if line.startswith("concat, no")).count("●") == 1
    assert any("● best, ○ ties with it" in line for line in lines)


def test_single_model_and_single_input(make_data: Build) -> None:
    text = "\n".join(printed(make_data(arms=1, seeds=1, modalities=("a",)), 80))
    assert "419 test rows, 1 seed" in text
    assert "±" not in text
    assert "worst" not in text


def test_the_rows_counted_are_those_of_the_split_that_was_judged(make_data: Build) -> None:
    data = make_data(arms=1, seeds=1)
    for rows, wanted in (({"train": 9, "test": 433}, "433 test rows"), ({"validation": 7, "test": 0}, "7 validation")):
        data.data.rows.clear()
        data.data.rows.update(rows)
        assert wanted in "\n".join(printed(data, 80))


def test_terminal_never_obeys_a_name() -> None:
    data = ReportData("t\x1b[2J", "classification", ("a",), arms=[Arm("x", label="\x1b]0;x\x07[red]x[/red]")])
    data.subset_records = [SubsetRecord("x", 0, ("a",), 3, {"accuracy": 0.5})]
    text = "\n".join(printed(data, 80))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]x[/red]" in text


def test_csv_holds_every_number(make_data: Build) -> None:
    data = make_data(arms=9, seeds=2)
    rows = list(csv.DictReader(io.StringIO(csv_text(data))))
    counts = {t: sum(r["table"] == t for r in rows) for t in {r["table"] for r in rows}}
    assert counts["subset"] == sum(len(r.metrics) + 1 for r in data.subset_records)
    assert counts["curve"] == len(data.curves)
    assert counts["corruption"] == sum(len(r.metrics) for r in data.corruption)
    assert counts["reliability"] == 3 * sum(len(r.bins) for r in data.reliability)
    assert counts["weights"] == sum(len(w.weights) for w in data.weights)
    assert counts["oracle"] == len(data.oracles)
    assert counts["paired"] == len(data.paired)
    assert counts["seed"] == sum(len(r.metrics) for r in data.seed_records)
    first = data.subset_records[0]
    found = next(r for r in rows if r["table"] == "subset" and r["metric"] == "accuracy")
    assert float(found["value"]) == first.metrics["accuracy"]  # all digits, not those of the page
    assert found["subset"] == "+".join(first.subset)


def test_csv_starts_no_formula_and_no_nan() -> None:
    data = ReportData("t", "classification", ("=cmd()", "b"), arms=[Arm("@SUM(A1)"), Arm("-x")])
    data.subset_records = [
        SubsetRecord("@SUM(A1)", 0, ("=cmd()",), 3, {"accuracy": 0.5, "nll": math.nan}),
        SubsetRecord("-x", 0, ("=cmd()",), 3, {"accuracy": -0.5}),
    ]
    cells = [c for row in csv.reader(io.StringIO(csv_text(data))) for c in row]
    assert "'@SUM(A1)" in cells
    assert "'=cmd()" in cells
    assert "-0.5" in cells  # a number stays a number
    assert not any(c[:1] in "=+@" and c for c in cells)
    assert "nan" not in cells
