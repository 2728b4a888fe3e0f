"""The table of arms: one list of columns for the console, the page and the CSV.

``console_table`` fits itself to the width: first the costs go, then the spread over seeds; the judged numbers stay.
"""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from polyfuse.report.content import ReportData
from polyfuse.report.format import format_value, number
from polyfuse.report.inputs import console_inputs
from polyfuse.report.records import Metric
from polyfuse.report.summary import ArmSummary, Spread, Summary, judged_rows, subset_label, summarise
from polyfuse.report.verdict import plain_words as plain_words  # the table and what it says belong together

MARKS = {"best": "●", "tie": "○"}
"""Shown beside the best value of a column and beside those that tie with it."""


@dataclass(frozen=True)
class Column:
    """One column of the table of arms.

    Attributes:
        key: In ``ArmSummary.values``.
        head: Heading.
        unit: Printed under the heading.
        kind: How a value prints: ``metric``, ``ece``, ``share``, ``count``, ``size``, ``seconds``.
        help: One sentence on what it is.
    """

    key: str
    head: str
    unit: str
    kind: str
    help: str


def columns(summary: Summary) -> list[Column]:
    """Return the columns that have a value for at least one arm, in reading order."""
    metric = summary.data.primary
    unit = "%" if metric.percent else metric.unit
    points = "points" if metric.percent else metric.unit
    level = summary.data.nominal_coverage
    promise = "" if level is None else f" (promised: {level:.0%})".replace("%", " %")
    many = len(summary.subsets) > 1
    sets = "intervals" if summary.data.task == "regression" else "sets"
    everything = [
        Column("complete", "complete", unit, "metric", f"{metric.label} when every input is given"),
        Column("mean", "mean", unit, "metric", f"{metric.label}, averaged over all subsets of inputs"),
        Column("worst", "worst", unit, "metric", f"{metric.label} on the subset where it is worst"),
        Column("ece", "ECE", "raw", "ece", "expected calibration error before calibration, mean over subsets"),
        Column("ece_calibrated", "ECE", "calib.", "ece", "the same after calibration per pattern of inputs"),
        Column("coverage", "coverage", "%", "share", f"share of conformal {sets} with the truth{promise}, mean"),
        Column("worst_coverage", "lowest", "%", "share", "coverage on the subset where it is lowest"),
        Column("regret", "regret", points, "metric", "largest shortfall from a model trained for one subset"),
        Column("seconds", "train", "s", "seconds", "seconds of training, one seed"),
        Column("ms", "per row", "ms", "size", "milliseconds to predict one row"),
        Column("parameters", "params", "", "count", "trained parameters"),
    ]
    have = [c for c in everything if any(r.values.get(c.key) for r in summary.ranked)]
    if many:
        return have
    only = "complete" if summary.complete is not None else "mean"  # of a single subset
    return [c for c in have if c.key == only or c.key not in ("complete", "mean", "worst", "worst_coverage")]


def cell(metric: Metric, column: Column, value: Spread | None) -> tuple[str, str]:
    """Return a value and its spread as text; the spread is empty for one seed and for costs.

    Example:
        >>> column = Column("mean", "mean", "%", "metric", "")
        >>> cell(Metric("accuracy", "accuracy"), column, Spread(0.7123, 0.004, {}))
        ('71.2', '0.4')
    """
    if value is None:
        return "–", ""
    mean, sd = value.mean, value.sd
    spread = math.isfinite(sd)
    match column.kind:
        case "metric":
            return format_value(metric, mean), format_value(metric, sd, like=mean) if spread else ""
        case "ece":
            return f"{mean:.3f}", f"{sd:.3f}" if spread else ""
        case "share":
            return f"{100 * mean:.1f}", f"{100 * sd:.1f}" if spread else ""
        case "count":
            return _count(mean), ""
        case "seconds":
            return f"{mean:.1f}" if mean < 100 else f"{mean:,.0f}", ""
        case _:
            return number(mean), ""


def console_table(data: ReportData, width: int | None = None) -> Group:
    """Return the table of arms for the console, as a rich renderable.

    Args:
        data: The records.
        width: Columns of the terminal; None = 120.

    Example:
        ``rich.console.Console().print(console_table(data, console.width))``
    """
    s = summarise(data)
    width = width or 120
    names = [Text(_clean(r.arm.title), style="bold" if r.arm.name == data.default else "") for r in s.ranked]
    shown, spread, room = _fit(s, width, max(n.cell_len for n in names))
    table = RichTable(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", expand=False)
    table.add_column("", overflow="ellipsis", no_wrap=True, max_width=room)
    for c in shown:
        # Marks stand right of the number: the heading moves with the digits.
        table.add_column(f"{_head(c, c.head)}\n{_head(c, c.unit)}", justify="right", no_wrap=True)
    for name, row in zip(names, s.ranked, strict=True):
        table.add_row(name, *(_console_cell(data.primary, c, row, spread) for c in shown))
    top = Group(Text(_clean(data.title), style="bold"), Text(f"{data.primary.label}, {_rows(s)}", style="dim"))
    return Group(top, Text(), table, Padding(Text(_legend(s), style="dim"), (1, 0, 0, 0)))


def console_text(
    report: ReportData, path: Path, width: int | None = None, more: Sequence[str] = (), *, inputs: bool = False
) -> str:
    """The table of arms, what it says in plain words, ``more`` sentences, the table of inputs, the report's path."""
    stream = io.StringIO()
    console = Console(file=stream, width=width or Console().width, highlight=False, soft_wrap=False)
    console.print(console_table(report, console.width))
    for sentence in (*plain_words(report), *more):
        console.print(Text(f"• {sentence}"))
    if inputs and report.inputs:
        console.print(console_inputs(summarise(report)))
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    return "\n".join([*lines, "", f"report: {path}"])


_JUDGED = ("complete", "mean", "worst", "ece_calibrated", "regret")
_FIRST_TO_GO = ("worst_coverage", "ms", "parameters", "seconds", "ece", "spread", "coverage", "regret")


def _fit(s: Summary, width: int, longest: int) -> tuple[list[Column], bool, int]:
    """Return the columns that fit, whether spreads fit too, and the room for names."""
    shown, spread = columns(s), any(len(r.arm.seeds) > 1 for r in s.ranked)
    least = min(longest, max(16, width * 3 // 10))
    used = 0
    for leave in ("", *_FIRST_TO_GO, "ece_calibrated"):
        shown, spread = [c for c in shown if c.key != leave], spread and leave != "spread"
        used = 0
        for c in shown:
            cells = [_console_cell(s.data.primary, c, r, spread).cell_len for r in s.ranked]
            used += 2 + max(len(_head(c, c.head)), len(_head(c, c.unit)), *cells)
        if used + least <= width:
            break
    return shown, spread, max(least, min(longest, width - used))


def _head(column: Column, text: str) -> str:
    return f"{text}  " if column.key in _JUDGED else text


def _console_cell(metric: Metric, column: Column, row: ArmSummary, spread: bool) -> Text:
    text, sd = cell(metric, column, row.values.get(column.key))
    mark = row.marks.get(column.key, "")
    out = Text(text, style="bold" if mark == "best" else "")
    if spread and sd and column.key in ("complete", "mean", "worst"):
        out.append(f" ±{sd}", style="not bold dim")
    if column.key in _JUDGED:
        out.append(f" {MARKS.get(mark, ' ')}", style="not bold")
    return out


def _rows(s: Summary) -> str:
    seeds = max((len(r.arm.seeds) for r in s.ranked), default=1)
    subsets = f", {len(s.subsets)} subsets of inputs" if len(s.subsets) > 1 else ""
    return f"{judged_rows(s.data)}, {seeds} seed{'s' if seeds > 1 else ''}{subsets}"


def _legend(s: Summary) -> str:
    marks = "● best, ○ ties with it" if any(r.marks for r in s.ranked) else ""
    row = next((r for r in s.ranked if r.worst_subset and r.arm.name == s.data.default), None) or s.best()
    worst = ""
    if row is not None and row.worst_subset and len(s.subsets) > 1:
        worst = f"worst subset of {row.arm.title}: {subset_label(row.worst_subset, s.data.modalities)}"
    return "; ".join(_clean(t) for t in (marks, worst) if t)


def csv_text(data: ReportData, summary: Summary | None = None) -> str:
    """Return every number as one long table: ``table, arm, kind, seed, subset, detail, metric, value, low, high``.

    ``table`` says which: summary, subset, seed, curve, corruption, input, reliability, weights, oracle, paired. Text
    that a spreadsheet would run as a formula starts with an apostrophe.
    """
    s = summary or summarise(data)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "arm", "kind", "seed", "subset", "detail", "metric", "value", "low", "high"])
    kinds = {a.name: a.kind for a in data.arms}
    for record in _long(s):
        arm = record.get("arm", "")
        record["kind"] = kinds.get(arm, "")
        record["subset"] = "+".join(record.get("subset", ()))
        keys = ("table", "arm", "kind", "seed", "subset", "detail", "metric", "value", "low", "high")
        writer.writerow([csv_safe(record.get(k, "")) for k in keys])
    return out.getvalue()


def _long(s: Summary) -> Iterator[dict[str, Any]]:
    data, name = s.data, s.data.primary.name
    base: dict[str, Any]
    for row in (*s.ranked, *s.unimodal):
        for key, value in row.values.items():
            if value is not None:
                base = {"table": "summary", "arm": row.arm.name, "detail": row.marks.get(key, "")}
                yield {**base, "metric": key, "value": value.mean}
                yield {**base, "metric": f"{key}_sd", "value": value.sd}
    for r in data.subset_records:
        base = {"table": "subset", "arm": r.arm, "seed": r.seed, "subset": r.subset}
        yield {**base, "metric": "n", "value": r.n}
        yield from ({**base, "metric": k, "value": v} for k, v in r.metrics.items())
    for q in data.seed_records:
        base = {"table": "seed", "arm": q.arm, "seed": q.seed}
        yield from ({**base, "metric": k, "value": v} for k, v in q.metrics.items())
    for p in data.curves:
        yield {"table": "curve", "arm": p.arm, "seed": p.seed, "detail": p.rate, "metric": name, "value": p.value}
    for c in data.corruption:
        base = {"table": "corruption", "arm": c.arm, "seed": c.seed, "detail": f"{c.corruption} of {c.modality}"}
        yield from ({**base, "metric": k, "value": v} for k, v in c.metrics.items())
    for i in data.inputs:
        base = {"table": "input", "arm": i.arm, "seed": i.seed, "detail": f"{i.modality}, {i.way}"}
        yield {**base, "metric": "n", "value": i.metrics["n"]}
        for key in ("gain", "nll", "share"):
            low, high = (i.metrics.get(f"{key}_{end}", "") for end in ("low", "high"))
            yield {**base, "metric": key, "value": i.metrics.get(key, ""), "low": low, "high": high}
    for d in data.reliability:
        for b in d.bins:
            base = {"table": "reliability", "arm": d.arm, "subset": d.subset, "detail": d.stage}
            yield {**base, "metric": "confidence", "value": b.confidence}
            yield {**base, "metric": "accuracy", "value": b.accuracy}
            yield {**base, "metric": "count", "value": b.count}
    for w in data.weights:
        base = {"table": "weights", "arm": w.arm, "seed": w.seed, "subset": w.subset}
        yield from ({**base, "detail": m, "metric": "weight", "value": v} for m, v in w.weights.items())
    for o in data.oracles:
        yield {"table": "oracle", "seed": o.seed, "subset": o.subset, "metric": name, "value": o.value}
    for x in data.paired:
        base = {"table": "paired", "arm": x.arm, "detail": f"{x.over}, minus {x.reference}", "metric": x.metric}
        yield {**base, "value": x.mean, "low": x.low, "high": x.high}


def csv_safe(value: object) -> object:
    """A cell that a spreadsheet will not run; empty for a number that is not finite."""
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value


def _clean(text: str) -> str:
    """Replace control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _count(value: float) -> str:
    if value < 10_000:
        return f"{value:,.0f}"
    return f"{value / 1e3:,.0f} k" if value < 999_500 else f"{value / 1e6:,.1f} M"
