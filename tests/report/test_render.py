"""The page: one file that loads nothing, runs nothing, escapes everything and says what the records say."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from polyfuse.report.content import ReportData
from polyfuse.report.records import Arm, SubsetRecord
from polyfuse.report.render import html, write_report
from polyfuse.report.summary import summarise
from polyfuse.report.verdict import verdict

Build = Callable[..., ReportData]
VOID = {"meta", "br", "img", "link", "input", "hr"}
EIGHT = ("picture", "name", "audio", "lab", "ecg", "notes", "gps", "price")


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: Counter[str] = Counter()
        self.text = ""
        self.open: list[str] = []
        self.errors: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        self.ids.update(value or "" for key, value in attrs if key == "id")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.errors.append(tag)

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


def check_page(text: str) -> Page:
    """Well-formed, self-contained, inert."""
    page = Page(text)
    assert not page.errors
    assert not page.open
    assert not set(page.tags) & {"script", "img", "iframe", "object", "embed", "link", "base", "form", "foreignobject"}
    for tag, key, value in page.attributes:
        assert not key.startswith("on"), (tag, key)
        if key in ("href", "src", "xlink:href"):
            assert value.startswith("#"), (tag, key, value)
    assert not re.search(r"https?://|@import|javascript:|url\((?!#)", text)
    assert max(page.ids.values()) == 1, page.ids.most_common(1)
    targets = {v[1:] for _, k, v in page.attributes if k == "href"}
    assert targets <= set(page.ids)
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", page.text)
    return page


@pytest.fixture(scope="module")
def many(make_data: Build) -> tuple[ReportData, str]:
    data = make_data(seeds=3)
    return data, html(data)


def test_page_is_self_contained(many: tuple[ReportData, str]) -> None:
    data, text = many
    page = check_page(text)
    assert len(text.encode()) < 1_500_000
    for heading in ("Arms", "Every combination of inputs", "Calibration, before", "Headroom", "Failures in the data"):
        assert heading in page.text
    for command in data.commands:
        assert command in page.text
    for sentence in verdict(data):
        assert sentence.replace(" %", "\xa0%") in page.text
    assert text.count("missing file") == 1
    assert data.data.examples[9] in page.text
    assert data.data.examples[10] not in page.text  # ten are named


def test_page_shows_the_numbers_of_the_records(many: tuple[ReportData, str]) -> None:
    data, text = many
    s = summarise(data)
    page = Page(text)
    for row in s.ranked:
        for key in ("complete", "mean", "worst"):
            assert f"{100 * row.mean(key):.1f}" in page.text
        assert f"{row.mean('ece_calibrated'):.3f}" in page.text
    marked = re.search(r'<td class="best">.*?</td>', text)
    assert marked is not None


def test_same_records_same_page(make_data: Build) -> None:
    data = make_data(arms=2, seeds=2, modalities=("a", "b"))
    text = html(data)
    assert html(data) == text
    assert html(ReportData.from_json(data.to_json())) == text


def test_hostile_strings_are_only_ever_text(hostile: ReportData, hostile_text: str) -> None:
    text = html(hostile)
    page = check_page(text)
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7*7 }}" in page.text
    assert "$\\frac{a$" in page.text
    assert "</svg><img" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", text)
    text.encode("utf-8")  # no lone surrogate is left
    assert hostile_text not in text


def test_files_beside_the_page(hostile: ReportData, make_data: Build, tmp_path: Path) -> None:
    data = make_data(arms=2, seeds=2, modalities=("a", "b"))
    page = write_report(data, tmp_path / "deep" / "report.html")
    assert sorted(p.name for p in page.parent.iterdir()) == ["report.csv", "report.html", "report.json"]
    text = page.with_suffix(".json").read_text(encoding="utf-8")
    assert ReportData.from_json(text) == data
    record = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert record["verdict"] == verdict(data)
    mean = record["summary"][0]["values"]["mean"]["mean"]
    assert mean == summarise(data).ranked[0].mean("mean")
    rows = list(csv.DictReader(io.StringIO(page.with_suffix(".csv").read_text(encoding="utf-8"))))
    assert any(float(r["value"]) == mean for r in rows if r["table"] == "summary")
    write_report(hostile, page)  # replaced whole, with names that no file system encoding holds
    assert json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))["title"] == hostile.title
    assert write_report(data, page.parent) == page


def test_bare_minimum() -> None:
    data = ReportData("t", "classification", ("a",), arms=[Arm("x")])
    data.subset_records = [SubsetRecord("x", 0, ("a",), 3, {"accuracy": 0.5})]
    page = check_page(html(data))
    assert "50.0" in page.text
    assert page.tags["svg"] == 0
    data.subset_records = []
    assert "nothing to judge" in check_page(html(data)).text


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_other_tasks(make_data: Build, task: str) -> None:
    page = check_page(html(make_data(task, arms=3, seeds=2, modalities=("image", "text"))))
    assert {"multilabel": "Macro average precision", "regression": "Mean absolute error"}[task] in page.text
    assert ("lower is better" in page.text) == (task == "regression")


@pytest.mark.parametrize(("inputs", "arms", "seeds"), [(1, 1, 1), (1, 3, 2), (2, 1, 2), (8, 5, 1)])
def test_any_number_of_inputs_and_arms(make_data: Build, inputs: int, arms: int, seeds: int) -> None:
    text = html(make_data(arms=arms, seeds=seeds, modalities=EIGHT[:inputs]))
    page = check_page(text)
    assert len(text.encode()) < 1_500_000
    assert ("31 of 63 subsets are drawn" in page.text) == (inputs == 8)
    assert ("±" in page.text) == (seeds > 1)


def test_each_missing_part_is_left_out(make_data: Build) -> None:
    parts = {
        "curves": "Over the drop rate",
        "corruption": "Broken inputs that nobody flags",
        "reliability": "Calibration, before and after",
        "weights": "What each arm looks at",
        "paired": "paired bootstrap",
        "commands": "polyfuse demo",
        "headroom": "beat the best pair",
    }
    full = make_data(arms=3, seeds=1, modalities=("a", "b")).to_dict()
    everything = check_page(html(ReportData.from_dict(full))).text
    for part, heading in parts.items():
        assert heading in everything
        assert heading not in check_page(html(ReportData.from_dict({**full, part: []}))).text


def test_contradiction_is_refused_before_anything_is_written(make_data: Build, tmp_path: Path) -> None:
    data = make_data(arms=2, seeds=1, parts=False)
    data.default = "nobody"
    with pytest.raises(ValueError, match="unknown arms nobody"):
        write_report(data, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_the_lead_counts_the_arms_that_ran_once(make_data: Build) -> None:
    data = make_data(arms=3, seeds=2)
    assert " arms with 2 seeds each" in Page(html(data)).text
    last = data.arms[2]
    data.arms[2] = replace(last, seeds=last.seeds[:1], train_seconds=last.train_seconds[:1])
    data.subset_records = [r for r in data.subset_records if r.arm != last.name or r.seed == last.seeds[0]]
    found = re.search(r"(\d+) arms, (\d+) of them with 2 seeds, ", Page(html(data)).text)
    assert found is not None
    assert int(found[1]) == int(found[2]) + 1
