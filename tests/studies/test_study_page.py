"""The page of a study: one inert file that says what the tables say."""

import csv
import io
import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from made_records import plans, study_records

from polyfuse.report.study_page import console_lines, study_html, write_study
from polyfuse.report.study_records import StudyReport
from polyfuse.studies.tables import Questions, summarise


@pytest.fixture(scope="module")
def report() -> StudyReport:
    questions = Questions(
        question="Does it <b>hold</b>?",
        default="default",
        ingredients=(("the recipe", "default", "bad"),),
        families={"early": "reference", "late": "bad", "hybrid": "default"},
        imbalance=True,
    )
    made = summarise(study_records(), plans(), questions=questions, title="A study", draws=300)
    made.commands = ("polyfuse study made",)
    return made


def test_the_page_is_inert_and_says_the_numbers(report: StudyReport) -> None:
    page = study_html(report)
    assert "default-src 'none'" in page
    assert not re.search(r"<script|src=|href=\"(?!#)|url\((?!#)|@import|javascript:", page)
    assert "Does it &lt;b&gt;hold&lt;/b&gt;?" in page
    identifiers = re.findall(r' id="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(identifiers)
    for text in (*report.verdict, *(g.text for g in report.goals)):
        assert text.replace("<", "&lt;").replace(">", "&gt;")[:40] in page.replace("\xa0", " ").replace("&#34;", '"')
    for section in ("goals", "main", "differences", "ingredients", "situations", "families", "headroom", "calibration"):
        assert f'<section id="{section}">' in page
    assert page.count("<svg") == page.count("</svg>") >= 12
    assert "Rows were made up." in page
    assert "polyfuse study made" in page


def test_what_was_not_measured_has_no_section() -> None:
    records = study_records(("htad",))
    kinds = records["kind"].to_pylist()
    bare = summarise(records.filter([k == "subset" for k in kinds]), plans(), draws=100)
    page = study_html(bare)
    for section in ("goals", "differences", "ingredients", "situations", "headroom", "broken", "cost"):
        assert f'<section id="{section}">' not in page
    assert bare.verdict == ("The records hold no comparison, so there is nothing to judge.",)


def test_json_and_csv_hold_the_same_numbers(report: StudyReport, tmp_path: Path) -> None:
    page = write_study(report, tmp_path / "out")
    assert page == tmp_path / "out" / "study.html"
    found = json.loads((page.parent / "tables.json").read_text(encoding="utf-8"))
    one = next(d for d in found["differences"] if (d["arm"], d["quantity"], d["data"]) == ("default", "mean", ""))
    pooled = report.difference("default", "mean")
    assert pooled is not None
    assert (one["mean"], one["low"], one["verdict"]) == (pooled.mean, pooled.low, "better")
    rows = list(csv.DictReader(io.StringIO((page.parent / "tables.csv").read_text(encoding="utf-8"))))
    (row,) = [
        r for r in rows
        if (r["table"], r["data"], r["arm"], r["metric"]) == ("difference", "pooled", "default", "mean")
    ]  # fmt: skip
    assert float(row["value"]) == pooled.mean
    assert sum(r["table"] == "goal" for r in rows) == 7


@pytest.mark.parametrize("width", [80, 120])
def test_the_console_fits(report: StudyReport, width: int) -> None:
    lines = console_lines(report, width, data=["htad"])
    assert max(len(line) for line in lines) <= width
    text = "\n".join(lines)
    assert "● met: Never significantly worse on complete inputs." in text
    row = next(line for line in lines if line.startswith("the default recipe") and "▲" in line)
    assert "2 / 0 ▲" in row
    assert ("ECE" in text) is (width == 120)
