"""Figures with lines: the curve over the drop rate and the paired differences, and how an arm looks in all of them."""

import math
import statistics
from dataclasses import dataclass
from typing import Any

from polyfuse.report.format import format_difference
from polyfuse.report.records import Metric
from polyfuse.report.summary import ArmSummary, Gap, Summary, gap_of, sign
from polyfuse.report.svg import BLUE, MUTED, OKABE_ITO, PAPER, SMALL, VERMILLION, Canvas, shorten

_SHAPES = ("o", "s", "^", "D", "v", "P")
_DASHES = ("-", (0, (5, 1.5)), (0, (2, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (1, 1)), (0, (8, 2)))


@dataclass(frozen=True)
class Line:
    """How an arm is drawn in every figure.

    Attributes:
        colour: Okabe-Ito colour.
        shape: Marker.
        dash: Line style.
    """

    colour: str
    shape: str
    dash: object


def lines(s: Summary) -> dict[str, Line]:
    """Pick at most six arms to draw in colour: reference, default, watched, best, then by mean; the same everywhere."""
    way = sign(s.data.primary)
    by_mean = sorted((r for r in s.ranked if r.values["mean"]), key=lambda r: -way * r.mean("mean"))
    asked = [s.data.reference_arm, s.data.default, *s.data.watch, *(r.arm.name for r in by_mean)]
    names = list(dict.fromkeys(n for n in asked if n is not None and any(r.arm.name == n for r in s.ranked)))[:6]
    styles = (Line(*x) for x in zip(OKABE_ITO, _SHAPES, _DASHES, strict=False))
    return dict(zip(names, styles, strict=False))


def drop_curve(s: Summary) -> str:
    """Draw the primary metric over the drop rate, a band of one standard deviation over seeds, others in grey."""
    metric, styles = s.data.primary, lines(s)
    points: dict[str, dict[float, list[float]]] = {}
    for p in s.data.curves:
        if math.isfinite(p.value):
            points.setdefault(p.arm, {}).setdefault(p.rate, []).append(p.value)
    names = [r.arm.name for r in s.ranked if r.arm.name in points]
    if not names:
        return ""
    # A baseline far below would squeeze all arms into a band: the scale is that of the arms.
    arms = [n for n in names if s.of(n).arm.kind != "baseline"] or names
    every = [v for n in arms for values in points[n].values() for v in values]
    margin = 0.06 * (max(every) - min(every)) + 1e-9
    limits = min(every) - margin, max(every) + margin
    off = [n for n in names if not any(limits[0] <= v <= limits[1] for x in points[n].values() for v in x)]
    names = [n for n in names if n not in off]
    legend = [n for n in styles if n in names]
    rest = [n for n in names if n not in legend]
    per_row = 2 if len(legend) > 1 else 1
    extra = 17 * (math.ceil(len(legend) / per_row) + bool(rest) + bool(off))
    canvas = Canvas(360, 270 + extra)
    axes = canvas.plot(46, 24, 304, 200)
    axes.grid(visible=False, axis="x")
    for name in [*rest, *reversed(legend)]:
        rates = sorted(points[name])
        mean = [statistics.fmean(points[name][r]) for r in rates]
        sd = [statistics.stdev(v) if len(v := points[name][r]) > 1 else 0.0 for r in rates]
        line = styles.get(name)
        colour = line.colour if line else MUTED
        style = {"color": colour, "lw": 2.0 if line else 0.9, "alpha": 1.0 if line else 0.6}
        if line:
            style |= {"marker": line.shape, "ms": 5, "mec": PAPER, "mew": 0.8, "ls": line.dash}
            low, high = [m - d for m, d in zip(mean, sd, strict=True)], [m + d for m, d in zip(mean, sd, strict=True)]
            axes.fill_between(rates, low, high, color=colour, alpha=0.16, lw=0)
        axes.plot(rates, mean, **style)
    axes.set_ylim(limits)
    ticks(axes.yaxis, metric)
    axes.set_xticks(sorted({r for n in names for r in points[n]}))
    axes.xaxis.set_major_formatter(lambda v, _: f"{100 * v:.0f} %")
    canvas.text(0, 10, axis_name(metric), color=MUTED, fontsize=SMALL)
    canvas.text(198, 252, "probability that an input is dropped", ha="center", color=MUTED, fontsize=SMALL)
    for i, name in enumerate(legend):
        at = 8 + (i % per_row) * 178, 276 + 17 * (i // per_row)
        draw_key(canvas, styles[name], *at, shorten(s.of(name).arm.title, 350 / per_row - 40, SMALL))
    y = 276 + 17 * math.ceil(len(legend) / per_row)
    if rest:
        canvas.page.plot([8, 28], [y, y], color=MUTED, lw=0.9, alpha=0.6)
        text = f"{len(rest)} other arms, named in the table" if len(rest) > 1 else s.of(rest[0]).arm.title
        canvas.text(36, y, shorten(text, 310, SMALL), fontsize=SMALL)
    if off:
        text = f"off the scale: {', '.join(s.of(n).arm.title for n in off)}"
        canvas.text(36, y + 17 * bool(rest), shorten(text, 310, SMALL), fontsize=SMALL, color=MUTED)
    return canvas.svg("curve", f"{metric.label} over the probability that an input is dropped")


def forest(s: Summary) -> list[tuple[str, str]]:
    """Draw the differences to the reference arm with 95 % intervals: (heading, SVG), complete, mean and worst."""
    reference = s.data.reference_arm
    if reference is None or len(s.ranked) < 2:
        return []
    base, out = s.of(reference), []
    heads = {"mean": "mean over subsets", "complete": "complete inputs", "worst": "worst subset"}
    for key, head in heads.items():
        if len(s.subsets) < 2 and key != "complete":
            continue
        rows = [(r, g) for r in s.ranked if r is not base and (g := gap_of(s.data, r, base, key))]
        if rows:
            rows.sort(key=lambda x: -x[1].mean)
            out.append((head, _forest(s, rows, base, key)))
    return out


def _forest(s: Summary, rows: list[tuple[ArmSummary, Gap]], base: ArmSummary, key: str) -> str:
    metric = s.data.primary
    # A baseline far off would squeeze everything else into a line: the scale is that of the arms.
    arms = [g for r, g in rows if r.arm.kind != "baseline"] or [g for _, g in rows]
    low, high = min(*(g.low for g in arms), 0.0), max(*(g.high for g in arms), 0.0)
    low, high = low - 0.06 * (high - low) - 1e-9, high + 0.06 * (high - low) + 1e-9
    left, line, top = 150.0, 22.0, 8.0
    canvas = Canvas(360, top + line * len(rows) + 40)
    axes = canvas.plot(left, top, 152, line * len(rows))
    axes.set(xlim=(low, high), ylim=(len(rows), 0), yticks=())
    axes.axvline(0, color=MUTED, lw=1.2)
    for i, (row, gap) in enumerate(rows):
        colour, shape = (MUTED, "o") if gap.tie else (BLUE, ">") if gap.low > 0 else (VERMILLION, "<")
        ends = max(gap.low, low), min(gap.high, high)
        y = top + (i + 0.5) * line
        canvas.text(left - 6, y, shorten(row.arm.title, left - 8, SMALL), ha="right", fontsize=SMALL)
        if ends[0] < ends[1]:
            axes.plot(ends, [i + 0.5] * 2, color=colour, lw=2)
        if low <= gap.mean <= high:
            face = PAPER if gap.tie else colour
            axes.plot([gap.mean], [i + 0.5], marker=shape, ms=6.5, color=colour, mfc=face, mew=1.5, clip_on=False)
        else:
            below = gap.mean < low
            at, text = (left + 4, "◀ off the scale") if below else (left + 148, "off the scale ▶")
            canvas.text(at, y, text, color=colour, fontsize=SMALL, ha="left" if below else "right")
        canvas.text(360, y, format_difference(metric, gap.mean, unit=False), ha="right", fontsize=SMALL)
    scale = 100 if metric.percent else 1
    axes.xaxis.set_major_formatter(lambda v, _: f"{scale * v:+.3g}".replace("-", "−") if abs(v) > 1e-12 else "0")
    axes.locator_params(axis="x", nbins=5)
    unit = "points" if metric.percent else metric.unit or metric.label
    style = {"ha": "center", "color": MUTED, "fontsize": SMALL}
    canvas.text(left + 76, top + line * len(rows) + 30, f"← worse · {unit} · better →", **style)
    return canvas.svg(f"paired-{key}", f"Differences to {base.arm.title} with 95 % intervals")


def draw_key(canvas: Canvas, look: Line, x: float, y: float, text: str, *, line: bool = True) -> None:
    """Draw one entry of a legend."""
    if line:
        canvas.page.plot([x, x + 20], [y, y], color=look.colour, lw=2, ls=look.dash)
    size = 12 if look.shape == "|" else 5.5
    edge = {"mew": 2.4} if look.shape == "|" else {"mec": PAPER, "mew": 0.8}
    canvas.page.plot([x + 10], [y], marker=look.shape, color=look.colour, ms=size, **edge)
    canvas.text(x + 28, y, text, fontsize=SMALL)


def ticks(axis: Any, metric: Metric) -> None:
    """Print ticks of the primary metric."""
    scale = 100 if metric.percent else 1
    axis.set_major_formatter(lambda v, _: f"{scale * v:,.4g}".replace("-", "−"))


def axis_name(metric: Metric) -> str:
    """Name an axis of the primary metric, with unit and direction."""
    unit = "%" if metric.percent else metric.unit
    arrow = "" if metric.higher_is_better else ", lower is better"
    return f"{metric.label}{', ' if unit else ''}{unit}{arrow}"
