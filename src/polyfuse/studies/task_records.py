"""Records of a task study: what its jobs found, and the means, differences and tables that follow from it.

One row is one number, or the values of all test rows, or an example. Shapes: N test rows.
"""

import math
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polyfuse.evaluate.intervals import paired_difference
from polyfuse.report.format import number
from polyfuse.report.study_records import Stat
from polyfuse.report.study_tables import Cell, Table
from polyfuse.report.summary import t_interval
from polyfuse.report.task_page import Chart, ChartLine, Shown

SCHEMA = pa.schema(
    [
        ("arm", pa.string()),
        ("setting", pa.string()),
        ("seed", pa.int32()),
        ("kind", pa.string()),
        ("metric", pa.string()),
        ("step", pa.float64()),
        ("value", pa.float64()),
        ("values", pa.list_(pa.float32())),
        ("text", pa.string()),
    ]
)
"""Kinds: ``figure``; ``curve`` (``step``, ``value``); ``rows`` (``values``); ``example`` (``text``, JSON); ``failed``
(``text``, the message)."""


class Place(NamedTuple):
    """Whose a record is."""

    arm: str
    setting: str
    seed: int


class Gap(NamedTuple):
    """A difference of means, paired by seed, with its 95 % interval (NaN for one seed without rows)."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, ``tied``, or ``unknown`` without an interval."""
        if math.isnan(self.low):
            return "unknown"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "tied"


class Records:
    """What jobs found; arms and settings stay in the order of the jobs.

    Args:
        table: In ``SCHEMA``.
    """

    def __init__(self, table: pa.Table) -> None:
        self.figures: dict[tuple[str, str, str], dict[int, float]] = {}
        self._curves: dict[tuple[str, str, str], dict[int, list[tuple[float, float]]]] = {}
        self._rows: dict[tuple[str, str, str], dict[int, np.ndarray]] = {}
        self.examples: list[tuple[Place, Shown]] = []
        self.failed: list[tuple[Place, str]] = []
        self.places: dict[Place, None] = {}
        for row in table.to_pylist():
            place = Place(row["arm"], row["setting"], row["seed"])
            self.places[place] = None
            key, seed = (row["arm"], row["setting"], row["metric"]), row["seed"]
            match row["kind"]:
                case "figure":
                    self.figures.setdefault(key, {})[seed] = row["value"]
                case "curve":
                    self._curves.setdefault(key, {}).setdefault(seed, []).append((row["step"], row["value"]))
                case "rows":
                    self._rows.setdefault(key, {})[seed] = np.array(row["values"], np.float64)
                case "example":
                    self.examples.append((place, Shown(row["metric"], row["text"])))
                case "failed":
                    self.failed.append((place, row["text"]))

    @property
    def arms(self) -> list[str]:
        """Names in order."""
        return list(dict.fromkeys(place.arm for place in self.places))

    @property
    def settings(self) -> list[str]:
        """In order."""
        return list(dict.fromkeys(place.setting for place in self.places))

    @property
    def seeds(self) -> list[int]:
        """All that occur."""
        return sorted({place.seed for place in self.places})

    def values(self, arm: str, metric: str, setting: str = "") -> dict[int, float]:
        """By seed; empty where there is nothing."""
        return self.figures.get((arm, setting, metric), {})

    def stat(self, arm: str, metric: str, setting: str = "") -> Stat | None:
        """Mean and standard deviation over seeds."""
        values = [v for v in self.values(arm, metric, setting).values() if math.isfinite(v)]
        return Stat.of(values) if values else None

    def mean(self, arm: str, metric: str, setting: str = "") -> float:
        """Mean over seeds; NaN where there is nothing."""
        stat = self.stat(arm, metric, setting)
        return math.nan if stat is None else stat.mean

    def gap(
        self, arm: str, other: str, metric: str, setting: str = "", *, other_setting: str | None = None, sign: float = 1
    ) -> Gap | None:
        """``arm`` minus ``other``, seed by seed.

        The interval is Student's t over seeds; where both kept the values of their test rows, those and the seeds are
        resampled too and the wider ends stand: resampling a few seeds alone understates how far they spread.

        Args:
            arm: Minuend.
            other: Subtrahend.
            metric: Of the figures.
            setting: Of ``arm``.
            other_setting: Of ``other``; None = the same.
            sign: -1 where less is better, so that a positive gap is a gain.
        """
        theirs = setting if other_setting is None else other_setting
        one, two = self.values(arm, metric, setting), self.values(other, metric, theirs)
        seeds = sorted(s for s in set(one) & set(two) if math.isfinite(one[s]) and math.isfinite(two[s]))
        if not seeds:
            return None
        differences = [sign * (one[s] - two[s]) for s in seeds]
        mean = statistics.fmean(differences)
        a, b = self._rows.get((arm, setting, metric), {}), self._rows.get((other, theirs, metric), {})
        low, high = t_interval(differences) if len(seeds) > 1 else (math.nan, math.nan)
        if all(s in a and s in b and len(a[s]) == len(b[s]) == len(a[seeds[0]]) for s in seeds):
            left, right = np.stack([sign * a[s] for s in seeds]), np.stack([sign * b[s] for s in seeds])
            found = paired_difference(left, right, draws=1000)
            low, high = float(np.fmin(low, found.low)), float(np.fmax(high, found.high))
        return Gap(mean, low, high, len(seeds))

    def over(self, arm: str, bar: float, metric: str, setting: str = "") -> Gap | None:
        """``arm`` minus a number that does not vary, with the t interval over seeds."""
        values = [value - bar for value in self.values(arm, metric, setting).values() if math.isfinite(value)]
        if not values or not math.isfinite(bar):
            return None
        low, high = t_interval(values) if len(values) > 1 else (math.nan, math.nan)
        return Gap(statistics.fmean(values), low, high, len(values))

    def curves(self, arm: str, metric: str, setting: str = "") -> dict[int, list[tuple[float, float]]]:
        """By seed, ``(step, value)``."""
        return self._curves.get((arm, setting, metric), {})

    def curve_names(self, arm: str, setting: str = "") -> list[str]:
        """In order."""
        return [name for owner, where, name in self._curves if (owner, where) == (arm, setting)]

    def plain(self) -> Iterator[dict[str, Any]]:
        """Every figure over its seeds, for JSON and CSV."""
        for (arm, setting, metric), by_seed in self.figures.items():
            values = [v for v in by_seed.values() if math.isfinite(v)]
            stat = Stat.of(values) if values else None
            yield {
                "arm": arm,
                "setting": setting,
                "metric": metric,
                "mean": math.nan if stat is None else stat.mean,
                "sd": math.nan if stat is None else stat.sd,
                "low": min(values, default=math.nan),
                "high": max(values, default=math.nan),
                "by_seed": {str(seed): value for seed, value in by_seed.items()},
            }


def read_records(path: Path) -> Records:
    """From ``records.parquet``."""
    return Records(pq.read_table(path, schema=SCHEMA))


def merge(shards: Iterable[Path], out: Path) -> int:
    """Write the rows of shards, in order, into one Parquet file; returns how many."""
    tables = [pq.read_table(path, schema=SCHEMA) for path in shards]
    table = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    pq.write_table(table, temporary, compression="zstd")
    temporary.replace(out)
    return len(table)


@dataclass(frozen=True)
class Column:
    """A column of a table of figures.

    Attributes:
        metric: Of the figures.
        head: Heading.
        unit: Below it.
        kind: ``share`` (times 100, one decimal), ``number``, ``count``, ``seconds``.
        best: ``high``, ``low`` or nothing: which value is marked.
        setting: Of the figures.
    """

    metric: str
    head: str
    unit: str = ""
    kind: str = "share"
    best: str = ""
    setting: str = ""


def show(value: float, kind: str = "share") -> str:
    """Print a figure.

    Example:
        >>> show(0.7123), show(12345.0, "count"), show(1.5, "seconds"), show(float("nan"))
        ('71.2', '12 k', '1.5', '–')
    """
    if not math.isfinite(value):
        return "–"
    if kind == "share":
        text = f"{100 * value:.1f}"
    elif kind == "count":
        size = abs(value)
        text = f"{value:,.0f}" if size < 1e4 else f"{value / 1e3:,.0f} k" if size < 999_500 else f"{value / 1e6:,.1f} M"
    else:
        text = f"{value:.1f}" if kind == "seconds" and abs(value) < 100 else number(value)
    return text.replace("-", "−")


def stat_cell(stat: Stat | None, kind: str = "share", *, best: bool = False) -> Cell:
    """Mean and standard deviation."""
    if stat is None:
        return Cell("–")
    spread = math.isfinite(stat.sd) and kind != "count"
    return Cell(show(stat.mean, kind), f"±{show(stat.sd, kind)}" if spread else "", "best" if best else "")


def gap_cell(gap: Gap | None, kind: str = "share") -> Cell:
    """A difference with its interval; marked where the interval excludes zero."""
    if gap is None:
        return Cell("–")
    mark = gap.verdict if gap.verdict in ("better", "worse") else ""
    ends = "" if math.isnan(gap.low) else f"({_signed(gap.low, kind)} to {_signed(gap.high, kind)})"
    return Cell(_signed(gap.mean, kind), ends, mark)


def gap_words(gap: Gap | None, kind: str = "share", unit: str = "points") -> str:
    """A difference in words: ``+3.2 points (+1.0 to +5.4)``."""
    cell = gap_cell(gap, kind)
    return f"{cell.text} {unit} {cell.small}".replace("  ", " ").strip()


def _signed(value: float, kind: str) -> str:
    text = show(abs(value), kind)
    zero = not any(c in "123456789" for c in text)
    return text if zero or text == "–" else f"{'−' if value < 0 else '+'}{text}"


def figure_table(
    records: Records,
    title: str,
    columns: Sequence[Column],
    arms: Sequence[str] = (),
    *,
    labels: Mapping[str, str] | None = None,
    default: str = "",
    keep: int = 4,
) -> Table:
    """Arms by figures: mean and spread over seeds, the best of a column marked.

    Args:
        records: What was found.
        title: Heading.
        columns: Those that no arm has are left out.
        arms: In order; empty = all.
        labels: What to call them.
        default: The arm to print bold.
        keep: Columns that a narrow terminal shows first.
    """
    names = list(arms or records.arms)
    kept = [c for c in columns if any(records.stat(a, c.metric, c.setting) for a in names)]
    names = [a for a in names if any(records.stat(a, c.metric, c.setting) for c in kept)]
    best: dict[Column, float] = {}
    for c in kept:
        means = [s.mean for a in names if (s := records.stat(a, c.metric, c.setting))]
        if c.best and means:
            best[c] = max(means) if c.best == "high" else min(means)
    rows = []
    for arm in names:
        cells = []
        for c in kept:
            stat = records.stat(arm, c.metric, c.setting)
            mark = stat is not None and c in best and show(stat.mean, c.kind) == show(best[c], c.kind)
            cells.append(stat_cell(stat, c.kind, best=mark))
        rows.append(((labels or {}).get(arm, arm), tuple(cells), "default" if arm == default else ""))
    heads = (("Arm", ""), *((c.head, c.unit) for c in kept))
    return Table(title, heads, tuple(rows), keep=min(keep, len(kept)))


def gap_table(
    records: Records,
    title: str,
    pairs: Sequence[tuple[str, str, str]],
    metrics: Sequence[Column],
) -> Table:
    """Differences: rows are ``(label, arm, other)``, columns are figures; a column with ``best="low"`` turns its sign.

    A positive number is a gain.
    """
    rows = []
    for label, arm, other in pairs:
        gaps = [records.gap(arm, other, c.metric, c.setting, sign=-1 if c.best == "low" else 1) for c in metrics]
        if any(gaps):
            rows.append((label, tuple(gap_cell(g, c.kind) for g, c in zip(gaps, metrics, strict=True)), ""))
    return Table(title, (("Difference", ""), *((c.head, c.unit) for c in metrics)), tuple(rows), keep=len(metrics))


def curve_chart(
    records: Records,
    title: str,
    lines: Sequence[tuple[str, str, str, str]],
    *,
    x: str = "step",
    y: str,
    percent: bool = False,
    log: bool = False,
    note: str = "",
    style: Mapping[str, tuple[int, bool]] | None = None,
) -> Chart:
    """Curves over steps, mean over seeds with a band from the lowest to the highest.

    Args:
        records: What was found.
        title: Heading.
        lines: ``(label, arm, metric, setting)``.
        x: Name of the axis.
        y: Likewise.
        percent: Values are shares.
        log: Logarithmic steps.
        note: Below it.
        style: ``{label: (colour, dashed)}``.
    """
    drawn = []
    for label, arm, metric, setting in lines:
        at: dict[float, list[float]] = {}
        for curve in records.curves(arm, metric, setting).values():
            for step, value in curve:
                if math.isfinite(value):
                    at.setdefault(step, []).append(value)
        most = max((len(v) for v in at.values()), default=0)
        points = [(s, statistics.fmean(v), min(v), max(v)) for s, v in sorted(at.items()) if len(v) == most]
        colour, dashed = (style or {}).get(label, (None, False))
        if points:
            drawn.append(ChartLine(label, tuple(points), colour, dashed))
    return Chart(title, tuple(drawn), x, y, percent, log, note=note, markers=False)


def setting_chart(
    records: Records,
    title: str,
    metric: str,
    positions: Mapping[str, float],
    lines: Sequence[tuple[str, str]],
    *,
    x: str,
    y: str,
    percent: bool = True,
    log: bool = True,
    flat: Sequence[tuple[str, float]] = (),
    note: str = "",
) -> Chart:
    """One figure over settings that are numbers, such as a share of labels.

    Args:
        records: What was found.
        title: Heading.
        metric: Of the figures.
        positions: ``{setting: x}``.
        lines: ``(label, arm)``.
        x: Name of the axis.
        y: Likewise.
        percent: Values are shares.
        log: Logarithmic axis.
        flat: ``(label, value)``: dashed lines across.
        note: Below it.
    """
    drawn = []
    for label, arm in lines:
        points = []
        for setting, at in positions.items():
            values = [v for v in records.values(arm, metric, setting).values() if math.isfinite(v)]
            if values:
                points.append((at, statistics.fmean(values), min(values), max(values)))
        if points:
            drawn.append(ChartLine(label, tuple(points)))
    ends = min(positions.values()), max(positions.values())
    for label, value in flat:
        drawn.append(ChartLine(label, tuple((e, value, math.nan, math.nan) for e in ends), dashed=True))
    ticks = tuple((at, setting) for setting, at in positions.items())
    return Chart(title, tuple(drawn), x, y, percent, log, ticks, note)
