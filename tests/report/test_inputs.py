"""Does it use each input? The table says so on the page, in the CSV and within 80 columns."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from polyfuse.report.content import ReportData
from polyfuse.report.inputs import WAYS, lines
from polyfuse.report.records import InputRecord
from polyfuse.report.render import html
from polyfuse.report.summary import summarise
from polyfuse.report.table import console_text, csv_text


def with_inputs(data: ReportData) -> ReportData:
    """The first input helps by 12.3 points, all others by nothing."""
    records = []
    for arm in (data.arms[0], data.arms[1]):
        for m, name in enumerate(data.modalities):
            gain = 0.123 if m == 0 else 0.0
            metrics = {"n": 97.0, "gain": gain, "gain_low": gain - 0.01, "gain_high": gain + 0.02, "gain_p": 0.01}
            metrics |= {"nll": 2 * gain, "nll_low": gain, "nll_high": 3 * gain, "nll_p": 0.5, "share": 4 * gain}
            records += [InputRecord(arm.name, 0, name, way, metrics) for way in WAYS]
    return dataclasses.replace(data, inputs=records)


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_says_what_helps(make_data: Callable[..., ReportData], width: int) -> None:
    data = with_inputs(make_data())
    shown = lines(summarise(data))
    assert len(shown) == len(WAYS) * len(data.modalities)
    assert [line.tie for line in shown] == [False] * 4 + [True] * (len(shown) - 4)
    assert (shown[0].gain, shown[0].interval, shown[0].share) == ("+12.3", "+11.3 to +14.3", "49 %")
    text = console_text(data, Path("r.html"), width, inputs=True)
    table = text[text.index("Does it use each input") :].splitlines()
    assert max(map(len, table)) <= width
    assert any("taken away" in line and "+12.3" in line and "+11.3 to +14.3" in line for line in table)
    assert "Does it use" not in console_text(data, Path("r.html"), width)


def test_the_page_and_the_csv_have_it(make_data: Callable[..., ReportData]) -> None:
    data = make_data()
    assert "Does it use each input?" not in html(dataclasses.replace(data, inputs=[]))
    data = with_inputs(data)
    page = html(data)
    assert "Does it use each input?" in page
    assert "of a row with another label" in page
    assert f"input,{data.arms[1].name}" in csv_text(data)
    wrong = dataclasses.replace(data.inputs[0], modality="smell")
    with pytest.raises(ValueError, match="smell"):
        dataclasses.replace(data, inputs=[wrong]).check()
