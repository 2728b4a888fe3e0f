"""The engine of the task studies: order of needs, resuming, failures, interruption, records, the page."""

import json
import math
import os
import re
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # worker processes take it over: they must be able to import the study

from dice_study import ROWS, TOY, jobs

from polyfuse.cli import run as polyfuse
from polyfuse.errors import UserError
from polyfuse.report.svg import drawing
from polyfuse.report.task_page import (
    Chart,
    ChartLine,
    Example,
    TaskReport,
    console_lines,
    draw_chart,
    png_text,
    task_html,
)
from polyfuse.studies.registry import TASK_STUDIES, every_study, study_named
from polyfuse.studies.task_bench import run_task_study
from polyfuse.studies.task_jobs import Outcome, TaskJob
from polyfuse.studies.task_records import SCHEMA, Column, Gap, Records, figure_table, gap_words, read_records


def log(folder: Path) -> Counter[str]:
    """Which jobs ran since the last call."""
    path = folder / "jobs" / "log.txt"
    found = Counter(path.read_text().splitlines()) if path.exists() else Counter()
    path.unlink(missing_ok=True)
    return found


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "toy"


def test_two_processes_do_everything_in_the_order_of_needs(out: Path) -> None:
    result = run_task_study(TOY, scale="smoke", out=out, workers=2)
    assert (result.done, result.skipped, result.failed) == (10, 0, ())
    ran = (out / "jobs" / "log.txt").read_text().splitlines()
    assert len(ran) == len(set(ran)) == 10
    for seed in range(2):
        learned = ran.index(f"learn, seed {seed}")
        assert all(learned < ran.index(f"use at {share}, seed {seed}") for share in ("10 %", "100 %"))
    records = read_records(result.records)
    assert records.arms == ["use", "alone", "learn"]
    assert records.settings == ["10 %", "100 %", ""]
    assert records.values("use", "accuracy", "10 %") == pytest.approx({0: 38 / ROWS, 1: 43 / ROWS}, abs=1e-9)
    assert records.mean("learn", "loss") == pytest.approx(0.75)
    gap = records.gap("use", "alone", "accuracy", "10 %")
    assert gap is not None
    assert gap.mean == pytest.approx((38 + 43 - 2 * 18) / 2 / ROWS)
    # Two seeds, 5 rows apart: Student's t over them is wider than what resampling two seeds and the rows would say.
    assert gap.high - gap.mean == pytest.approx(12.706 * 2.5 / ROWS, rel=1e-3)
    assert gap.verdict == "tied"
    assert "use is" in result.text()


def test_a_second_run_does_nothing_and_gives_the_same(out: Path) -> None:
    first = run_task_study(TOY, out=out, workers=1)
    before = {name: (out / name).read_bytes() for name in ("records.parquet", "tables.csv")}
    log(out)
    again = run_task_study(TOY, out=out, workers=1)
    assert (again.done, again.skipped) == (0, 10)
    assert not log(out)
    assert {name: (out / name).read_bytes() for name in before} == before
    assert first.lines == again.lines


def test_only_changed_jobs_and_what_needs_them_run_again(out: Path) -> None:
    run_task_study(TOY, out=out, workers=1)
    log(out)
    run_task_study(replace(TOY, jobs=partial(jobs, weight=1.0)), out=out, workers=1)
    ran = log(out)
    assert {title.partition(" ")[0].rstrip(",") for title in ran} == {"learn", "use"}
    assert sum(ran.values()) == 6
    run_task_study(replace(TOY, version=2), out=out, workers=1)
    assert sum(log(out).values()) == 10
    result = run_task_study(replace(TOY, version=2), out=out, only=["learn"], workers=1)
    assert (result.done, result.skipped, sum(log(out).values())) == (2, 8, 2)


def test_a_need_whose_folder_is_gone_is_done_again(out: Path) -> None:
    run_task_study(TOY, out=out, workers=1)
    log(out)
    (out / "jobs" / "learn-1" / "weight.txt").unlink()
    (out / "jobs" / "learn-1").rmdir()
    run_task_study(TOY, out=out, workers=1)
    assert log(out) == {"learn, seed 1": 1}


def test_a_failing_job_is_named_and_the_rest_goes_on(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_FAILS", "alone at 10 %, seed 1")
    result = run_task_study(TOY, out=out, workers=1)
    assert list(result.failed) == [("alone at 10 %, seed 1", "UserError: it is sick")]
    assert result.done == 10
    assert "it is sick" in (out / "study.html").read_text()
    assert json.loads((out / "tables.json").read_text())["failed"] == ["alone at 10 %, seed 1: UserError: it is sick"]
    records = read_records(result.records)
    assert set(records.values("alone", "accuracy", "10 %")) == {0}
    log(out)
    monkeypatch.delenv("TOY_FAILS")
    mended = run_task_study(TOY, out=out, workers=1)
    assert (mended.done, mended.failed) == (1, ())
    assert log(out) == {"alone at 10 %, seed 1": 1}


def test_what_needs_a_failed_job_says_so(out: Path) -> None:
    def broken(scale: str) -> list[TaskJob]:
        return [replace(j, options={}) if (j.arm, j.seed) == ("learn", 0) else j for j in jobs(scale)]

    result = run_task_study(replace(TOY, jobs=broken), out=out, workers=1)
    named = dict(result.failed)
    assert named["learn, seed 0"] == "KeyError: 'weight'"
    assert named["use at 10 %, seed 0"] == named["use at 100 %, seed 0"] == "needs learn, seed 0, which failed"
    assert len(named) == 3
    assert read_records(result.records).values("use", "accuracy", "10 %").keys() == {1}


def test_a_worker_that_dies_is_named(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_DIES", "alone at 100 %, seed 0")
    result = run_task_study(TOY, out=out, workers=2)
    assert list(result.failed) == [("alone at 100 %, seed 0", "the worker process ended with status 7")]


@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_and_taken_up_again(out: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    said: list[str] = []
    monkeypatch.setenv("TOY_INTERRUPTS", "alone at 100 %, seed 1")
    monkeypatch.setenv("TOY_PARENT", str(os.getpid()))
    with pytest.raises(KeyboardInterrupt):
        run_task_study(TOY, out=out, workers=workers, say=said.append)
    assert "the same command goes on from there" in said[-1]
    done = len(read_records(out / "records.parquet").places)
    assert 0 < done < 10
    monkeypatch.delenv("TOY_INTERRUPTS")
    result = run_task_study(TOY, out=out, workers=1)
    assert (result.done, result.skipped) == (10 - done, done)


def test_misuse_is_refused_before_any_work(out: Path) -> None:
    for options, message in (
        ({"scale": "full"}, "--scale must be one of smoke, small, got 'full'"),
        ({"only": ["alnoe"]}, "unknown arm 'alnoe'; did you mean 'alone'"),
        ({"seeds": 3}, "toy has 2 seeds at scale small, got 3"),
        ({"seeds": 0}, "--seeds must be at least 1, got 0"),
        ({"workers": 0}, "--workers must be at least 1, got 0"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            run_task_study(TOY, out=out, **options)  # type: ignore[arg-type]
    assert not out.exists()
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no study"):
        run_task_study(TOY, out=out)
    for wrong, message in (
        (lambda scale: [TaskJob("a", 0, jobs, needs=(("b", 0),))], "need what does not exist"),  # type: ignore[arg-type]
        (lambda scale: [TaskJob("a", 0, jobs), TaskJob("a", 0, jobs)], "twice: a-0"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=message):
            run_task_study(replace(TOY, jobs=wrong))


def test_fewer_seeds(out: Path) -> None:
    result = run_task_study(TOY, out=out, seeds=1, workers=1)
    assert result.done == 5
    assert read_records(result.records).seeds == [0]


def test_the_command_line_runs_both_kinds(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TASK_STUDIES, "toy", TOY)
    arguments = ["study", "toy", "--scale", "smoke", "--out", str(out), "--workers", "1"]
    assert polyfuse(arguments) == 0
    assert str(out / "study.html") in capsys.readouterr().out
    monkeypatch.setenv("TOY_FAILS", "alone at 10 %, seed 0")
    assert polyfuse([*arguments, "--only", "alone"]) == 1
    capsys.readouterr()
    assert polyfuse([*arguments, "--datasets", "emoji"]) == 2
    assert "--datasets: study toy chooses its own" in capsys.readouterr().err
    assert polyfuse(["list", "studies"]) == 0
    assert "toy" in capsys.readouterr().out
    assert {"aecf", "toy"} <= set(every_study())
    with pytest.raises(UserError, match="did you mean 'toy'"):
        study_named("tyo")


class _Tags(HTMLParser):
    """What a browser would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag] += 1
        self.links += [value or "" for key, value in attrs if key in ("src", "href")]


def test_the_page_is_self_contained_and_escaped(out: Path) -> None:
    run_task_study(TOY, out=out, workers=1)
    text = (out / "study.html").read_text()
    tags = _Tags()
    tags.feed(text)
    assert tags.found["script"] == tags.found["b"] == 0
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in tags.links)
    assert "&lt;b&gt;said&lt;/b&gt;" in text
    assert tags.found["image"] == 4  # one of each job of "use"
    assert text.count('fill="var(--vermillion)" fill-opacity') == 4 * 4
    assert "<h3>a title</h3>" in text
    for word in ("share of labels", "floor", "A toy", "Does it run?", "It is a toy."):
        assert word in text
    found = json.loads((out / "tables.json").read_text())
    assert [c["title"] for c in found["charts"]] == ["Shares", "Loss"]
    one = next(f for f in found["figures"] if (f["arm"], f["metric"]) == ("learn", "loss"))
    assert one["by_seed"] == {"0": 1.0, "1": 0.5}
    lines = (out / "tables.csv").read_text().splitlines()
    assert lines[0] == "arm,setting,metric,seed,value,low,high"
    assert "learn,,loss,1,0.5,," in lines


def test_the_console_fits_80_and_120_columns(out: Path) -> None:
    result = run_task_study(TOY, out=out, workers=1)
    records = read_records(result.records)
    report = TaskReport("toy", "A toy " * 20, "?", ["long words " * 30], tables=TOY.tables(records))
    for width in (80, 120):
        assert max(map(len, console_lines(report, width))) <= width
    assert "+42.5 (−17.5 to +102.4)" in "\n".join(console_lines(report, 80))
    assert task_html(TaskReport("toy", "A toy", "?")).startswith("<!doctype html>")


def test_a_logarithmic_axis_has_plain_numbers() -> None:
    points = tuple((x, x / 100, math.nan, math.nan) for x in (12.0, 40.0, 90.0))
    with drawing():
        svg = draw_chart(Chart("T", (ChartLine("a", points),), "step", "loss", log=True), "key")
    assert "mathdefault" not in svg
    assert ">50<" in svg


def records_of(values: dict[str, list[float]]) -> Records:
    rows = [
        {"arm": arm, "setting": "", "seed": seed, "kind": "figure", "metric": "loss", "value": value}
        for arm, by_seed in values.items()
        for seed, value in enumerate(by_seed)
    ]
    return Records(pa.Table.from_pylist(rows, schema=SCHEMA))


def test_gaps_without_rows_are_t_intervals_over_seeds() -> None:
    records = records_of({"a": [1.0, 2.0, 3.0], "b": [0.0, 0.0, 0.0], "c": [5.0]})
    gap = records.gap("a", "b", "loss")
    assert gap is not None
    assert (gap.mean, gap.seeds) == (2.0, 3)
    assert gap.low == pytest.approx(2 - 4.3027 / math.sqrt(3), abs=1e-3)
    assert gap.verdict == "tied"
    turned = records.gap("a", "b", "loss", sign=-1)
    assert turned is not None
    assert (turned.mean, turned.low) == (-2.0, -gap.high)
    lone = records.gap("c", "a", "loss")
    assert lone is not None
    assert (lone.mean, lone.verdict) == (4.0, "unknown")
    assert records.gap("a", "nobody", "loss") is None
    assert gap_words(Gap(-0.012, -0.02, 0.0, 3)) == "−1.2 points (−2.0 to 0.0)"


def test_the_best_of_a_column_is_marked() -> None:
    records = records_of({"a": [1.0, 2.0], "b": [0.5, 0.7], "c": [math.nan, math.nan]})
    table = figure_table(records, "T", [Column("loss", "loss", "", "number", "low"), Column("none", "none")])
    assert [name for name, _, _ in table.rows] == ["a", "b"]
    assert [cells[0].mark for _, cells, _ in table.rows] == ["", "best"]
    assert table.rows[0][1][0].plain == "1.50 ±0.707"
    assert len(table.columns) == 2


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(4, 4\) of uint8"):
        png_text(np.zeros((4, 4), np.uint8))
    found = json.loads(Example(np.zeros((3, 5, 3), np.uint8), map=np.ones(4)).to_text())
    assert found["map"] == [1.0] * 4
    assert Outcome({}).examples == ()


def test_shards_hold_only_plain_values(out: Path) -> None:
    result = run_task_study(TOY, out=out, workers=1)
    table = pq.read_table(result.records)
    assert table.schema.equals(SCHEMA)
    kinds = Counter(table.column("kind").to_pylist())
    assert kinds["rows"] == 8
    assert kinds["curve"] == 4
