"""Does it use each input? One table for the page and the console, of one arm."""

import math
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from polyfuse.report.content import ReportData
from polyfuse.report.format import format_difference, number
from polyfuse.report.records import InputRecord
from polyfuse.report.summary import Summary
from polyfuse.report.svg import clean

WAYS = {
    "added": "worth adding, on average",
    "removed": "taken away",
    "permuted": "shuffled among the rows",
    "other row": "of a row with another label",
}
"""What is done to an input, in reading order."""

NOTE = (
    "Points gained by the intact input, with 95 % intervals over rows; an interval that holds zero is in grey. "
    "Share: of all that the model has above the constant answer."
)


@dataclass(frozen=True)
class Line:
    """One row of the table, as text."""

    modality: str
    way: str
    gain: str
    interval: str
    nll: str
    nll_interval: str
    share: str
    tie: bool


def arm_of(s: Summary) -> str | None:
    """The arm that is shown: the default, else the best, else the first that was asked."""
    have = {r.arm for r in s.data.inputs}
    best = s.best()
    asked = (s.data.default, best.arm.name if best else None, *(r.arm.name for r in s.ranked))
    return next((name for name in asked if name in have), None)


def lines(s: Summary) -> list[Line]:
    """The table of ``arm_of``; empty where nothing was asked."""
    arm = arm_of(s)
    found = {(r.modality, r.way): r for r in s.data.inputs if r.arm == arm}
    known = [found.get((m, way)) for m in s.data.modalities for way in WAYS]
    return [_line(s.data, record) for record in known if record is not None and record.metrics.get("n", 0) > 0]


def console_inputs(s: Summary) -> Group:
    """The table for the console: 76 columns and the names of the inputs."""
    table = RichTable(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", expand=False)
    unit = "points" if s.data.primary.percent else s.data.primary.label
    for head in ("input", "is"):
        table.add_column(head, overflow="ellipsis", no_wrap=True, max_width=27 if head == "is" else 14)
    for head in (unit, "95 %", "NLL", "share"):
        table.add_column(head, justify="right", no_wrap=True)
    before = ""
    for line in lines(s):
        name = Text(line.modality if line.modality != before else "", style="bold")
        style = "dim" if line.tie else ""
        table.add_row(name, WAYS[line.way], Text(line.gain, style), Text(line.interval, style), line.nll, line.share)
        before = line.modality
    arm = arm_of(s)
    whose = f", {clean(s.data.arm(arm).title, 40)}" if arm and len(s.ranked) > 1 else ""
    return Group(Text(), Text(f"Does it use each input{whose}?", style="bold"), table)


def _line(data: ReportData, record: InputRecord) -> Line:
    m = record.metrics
    low, high = m.get("gain_low", math.nan), m.get("gain_high", math.nan)

    def points(value: float) -> str:
        return format_difference(data.primary, value, unit=False)

    def nats(key: str) -> str:
        value = m.get(key, math.nan)
        return number(value).replace("-", "−") if math.isfinite(value) else "–"

    share = m.get("share", math.nan)
    return Line(
        clean(record.modality, 40),
        record.way,
        points(m.get("gain", math.nan)),
        f"{points(low)} to {points(high)}",
        nats("nll"),
        f"{nats('nll_low')} to {nats('nll_high')}",
        f"{100 * share:.0f} %".replace("-", "−") if math.isfinite(share) else "–",
        low <= 0 <= high,
    )
