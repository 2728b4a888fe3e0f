"""The figures of a study: a report in, inline SVG out; nothing where the numbers are missing.

Colours are Okabe-Ito; what colour says, shape or text says too. About 360 points wide, so that they read on a phone.
"""

import math
import statistics
from collections.abc import Sequence

from polyfuse.report.curves import Line, draw_key
from polyfuse.report.heat import Labels, heat_map
from polyfuse.report.study_records import IN_NATS, QUANTITIES, StudyReport
from polyfuse.report.study_words import amount
from polyfuse.report.svg import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    RULE,
    SKY,
    SMALL,
    VERMILLION,
    Canvas,
    shorten,
)

STAGES = ("raw", "full", "pooled", "mask")
_ROW = 22.0


def compared_arms(report: StudyReport, quantity: str = "mean") -> list[str]:
    """Arms that are compared with the reference, best first by their pooled gain; baselines last."""
    kinds = {a.name: a.kind for a in report.arms}
    gains: dict[str, list[float]] = {}
    for d in report.differences:
        if d.quantity == quantity and d.data:
            gains.setdefault(d.arm, []).append(d.mean)
    pooled = {a: found.mean for a in gains if (found := report.difference(a, quantity))}
    order = {a: pooled.get(a, statistics.fmean(v)) for a, v in gains.items()}
    return sorted(order, key=lambda a: (kinds.get(a) == "baseline", -order[a]))


def forest(report: StudyReport, quantity: str) -> str:
    """Draw every arm's pooled difference to the reference with its interval, and a dot per data set."""
    rows = [(a, d) for a in compared_arms(report, quantity) if (d := report.difference(a, quantity))]
    if not rows:
        return ""
    kinds = {a.name: a.kind for a in report.arms}
    arms = [d for a, d in rows if kinds.get(a) != "baseline"] or [d for _, d in rows]
    ends = sorted(v for d in arms for v in (d.low, d.high))
    # One arm far below would squeeze all others into a line.
    low, high = min(ends[len(ends) // 10], 0.0), max(ends[-1], 0.0)
    low, high = low - 0.08 * (high - low) - 1e-9, high + 0.08 * (high - low) + 1e-9
    left, top = 180.0, 6.0
    canvas = Canvas(372, top + _ROW * len(rows) + 58)
    axes = canvas.plot(left, top, 132, _ROW * len(rows))
    axes.set(xlim=(low, high), ylim=(len(rows), 0), yticks=())
    axes.axvline(0, color=MUTED, lw=1.2)
    for i, (arm, d) in enumerate(rows):
        y, at = top + (i + 0.5) * _ROW, i + 0.5
        colour, shape = {"better": (BLUE, ">"), "worse": (VERMILLION, "<"), "tied": (MUTED, "o")}[d.verdict]
        weight = "bold" if arm == report.default else "normal"
        style = {"ha": "right", "fontsize": SMALL, "weight": weight}
        canvas.text(left - 6, y, shorten(report.label(arm), left - 10, SMALL), **style)
        each = [e.mean for e in report.differences if (e.arm, e.quantity) == (arm, quantity) and e.data]
        inside = [v for v in each if low <= v <= high]
        axes.scatter(inside, [at] * len(inside), s=9, color=MUTED, alpha=0.55, linewidths=0, zorder=2)
        ends_ = max(d.low, low), min(d.high, high)
        if ends_[0] < ends_[1]:
            axes.plot(ends_, [at, at], color=colour, lw=2.2, zorder=3)
        if low <= d.mean <= high:
            face = PAPER if d.verdict == "tied" else colour
            axes.plot([d.mean], [at], marker=shape, ms=6.5, color=colour, mfc=face, mew=1.5, clip_on=False, zorder=4)
        elif ends_[0] >= ends_[1]:
            canvas.text(left + 4, y, "◀ off the scale", color=colour, fontsize=SMALL)
        canvas.text(372, y, amount(d.mean, quantity, unit=False), ha="right", fontsize=SMALL)
    nats = quantity in IN_NATS
    _signed(axes, 1 if nats else 100)
    axes.locator_params(axis="x", nbins=4)
    y, style = top + _ROW * len(rows), {"color": MUTED, "fontsize": SMALL}
    canvas.text(left + 66, y + 30, f"← worse · {'nats' if nats else 'points'} · better →", ha="center", **style)
    canvas.text(left + 66, y + 47, f"small dots: data sets; pooled over {rows[0][1].sets}", ha="center", **style)
    whom = report.label(report.reference)
    return canvas.svg(f"forest-{quantity}", f"Differences to {whom}, {QUANTITIES[quantity]}, 95 % intervals")


def gain_heat(report: StudyReport, quantity: str = "mean") -> str:
    """Draw arm x data set: gain over the reference; outlined where surely better, marked where surely worse."""
    arms = [a for a in compared_arms(report, quantity)]
    data = [d.name for d in report.data]
    found = {(d.arm, d.data): d for d in report.differences if d.quantity == quantity and d.data}
    data = [d for d in data if any((a, d) in found for a in arms)]
    if not arms or not data:
        return ""
    values = [[found[a, d].mean if (a, d) in found else math.nan for d in data] for a in arms]
    texts = [[_cell(report, a, d, quantity) for d in data] for a in arms]
    best = [[(a, d) in found and found[a, d].verdict == "better" for d in data] for a in arms]
    finite = sorted(v for line in values for v in line if math.isfinite(v))
    scale = finite[len(finite) // 10], finite[-1]
    strong = frozenset(i for i, a in enumerate(arms) if a == report.default)
    rows = Labels(texts=tuple(shorten(report.label(a), 190) for a in arms), strong=strong)
    canvas = heat_map(values, rows, Labels(texts=tuple(data)), texts, scale, best)
    return canvas.svg(
        f"gain-{quantity}", f"Gain over {report.label(report.reference)}: {len(arms)} arms, {len(data)} sets"
    )


def _cell(report: StudyReport, arm: str, data: str, quantity: str) -> str:
    d = report.difference(arm, quantity, data)
    if d is None:
        return "–"
    return amount(d.mean, quantity, unit=False) + ("▼" if d.verdict == "worse" else "")


def headroom(report: StudyReport) -> str:
    """Draw, per data set, the mean over subsets of the reference, the default, the best arm and the oracles."""
    kinds = {a.name: a.kind for a in report.arms}
    rows = []
    for table in report.tables:
        means = {r.arm: r.values["mean"].mean for r in table.rows if "mean" in r.values and kinds.get(r.arm) == "arm"}
        base = table.row(report.reference)
        if base is None or "mean" not in base.values or not table.oracle:
            continue
        oracle = statistics.fmean(table.oracle.values())
        rows.append(
            (table.data, base.values["mean"].mean, means.get(report.default), max(means.values(), default=None), oracle)
        )
    if not rows:
        return ""
    looks = {
        "one model per subset": Line(INK, "|", "-"),
        "best arm, seen afterwards": Line(ORANGE, "D", "-"),
        f"default: {report.label(report.default)}": Line(BLUE, ">", "-"),
        f"reference: {report.label(report.reference)}": Line(VERMILLION, "s", "-"),
    }
    left, top = 132.0, 6.0
    base_y = top + _ROW * len(rows)
    canvas = Canvas(372, base_y + 46 + 17 * len(looks))
    axes = canvas.plot(left, top, 226, base_y - top)
    axes.set(ylim=(len(rows), 0), yticks=())
    for i, (data, own, default, best, oracle) in enumerate(rows):
        canvas.text(left - 8, top + (i + 0.5) * _ROW, shorten(data, left - 12, SMALL), ha="right", fontsize=SMALL)
        axes.axhline(i + 0.5, color=RULE, lw=0.8)
        for value, look in zip((oracle, best, default, own), looks.values(), strict=True):
            if value is None:
                continue
            size, edge = (15, {"mew": 2.4}) if look.shape == "|" else (6.0, {"mec": PAPER, "mew": 0.7})
            axes.plot([value], [i + 0.5], marker=look.shape, color=look.colour, ms=size, clip_on=False, **edge)
    axes.xaxis.set_major_formatter(lambda v, _: f"{100 * v:.4g}")
    axes.locator_params(axis="x", nbins=6)
    text = "mean over subsets, % (the metric of each data set)"
    canvas.text(left + 113, base_y + 28, text, ha="center", color=MUTED, fontsize=SMALL)
    for i, (text, look) in enumerate(looks.items()):
        canvas.text(36, base_y + 50 + 17 * i, shorten(text, 320, SMALL), fontsize=SMALL)
        draw_key(canvas, look, 8, base_y + 50 + 17 * i, "", line=False)
    return canvas.svg("headroom", "Mean over subsets: reference, default, best arm and one model per subset")


def calibration(report: StudyReport, arm: str) -> list[tuple[str, str]]:
    """Draw ECE by temperature and coverage by conformal sets for one arm: (heading, SVG) each."""
    out = []
    for key, head, stages in (
        ("ece", "ECE by temperature, mean over subsets", STAGES),
        ("worst_coverage", "Lowest coverage of a subset, promised 90 %", tuple(f"lac {s}" for s in STAGES[1:])),
    ):
        found: dict[str, dict[str, float]] = {}
        for r in report.calibration:
            if r.arm == arm and r.stage in stages and key in r.values:
                found.setdefault(r.data, {})[r.stage] = r.values[key].mean
        shown = [s for s in stages if any(s in v for v in found.values())]
        if len(shown) < 2:
            continue
        canvas = Canvas(340, 232)
        axes = canvas.plot(42, 8, 288, 176)
        for values in found.values():
            x = [i for i, s in enumerate(shown) if s in values]
            axes.plot(x, [values[shown[i]] for i in x], color=MUTED, lw=1, alpha=0.6, marker="o", ms=3)
        mean = [statistics.fmean([v[s] for v in found.values() if s in v]) for s in shown]
        axes.plot(range(len(shown)), mean, color=BLUE, lw=2.4, marker="o", ms=6, mec=PAPER)
        if key != "ece":
            axes.axhline(0.9, color=VERMILLION, lw=1.3, ls=(0, (4, 2)))
        names = {"raw": "none", "full": "complete", "pooled": "all pooled", "mask": "per subset"}
        axes.set_xticks(range(len(shown)))
        axes.set_xticklabels([names[s.removeprefix("lac ")] for s in shown])
        axes.set(xlim=(-0.3, len(shown) - 0.7))
        axes.grid(visible=False, axis="x")
        if key == "ece":
            axes.set(ylim=(0, 1.08 * max(v for x in found.values() for v in x.values())))
        style = {"ha": "center", "color": MUTED, "fontsize": SMALL}
        canvas.text(186, 212, "fitted on · grey: a data set, blue: their mean", **style)
        out.append((head, canvas.svg(f"cal-{key}", f"{head}, {report.label(arm)}")))
    return out


def corruption(report: StudyReport) -> str:
    """Draw every arm's worst-modality score, mean over real data sets: noise as in training, and held-out kinds."""
    judged = {d.name for d in report.judged or report.data}
    rows = []
    for arm in report.arms:
        found = [r for t in report.tables if t.data in judged and (r := t.row(arm.name)) and "broken" in r.values]
        if found:
            noisy = [r.values["noise"].mean for r in found if "noise" in r.values]
            held = statistics.fmean([r.values["broken"].mean for r in found])
            rows.append((arm, statistics.fmean(noisy) if noisy else math.nan, held))
    if len(rows) < 2:
        return ""
    rows.sort(key=lambda r: -r[2])
    left, top = 152.0, 6.0
    base = top + _ROW * len(rows)
    canvas = Canvas(372, base + 62)
    axes = canvas.plot(left, top, 206, base - top)
    axes.set(ylim=(len(rows), 0), yticks=())
    for i, (arm, noise, held) in enumerate(rows):
        weight = "bold" if arm.name == report.default else "normal"
        style = {"ha": "right", "fontsize": SMALL, "weight": weight}
        canvas.text(left - 6, top + (i + 0.5) * _ROW, shorten(arm.label, left - 10, SMALL), **style)
        if math.isfinite(noise):
            axes.plot([noise, held], [i + 0.5] * 2, color=RULE, lw=1.5)
            axes.plot([noise], [i + 0.5], marker="D", color=SKY, ms=6, mec=PAPER, mew=0.7, clip_on=False)
        axes.plot([held], [i + 0.5], marker="o", color=GREEN, ms=6.5, mec=PAPER, mew=0.7, clip_on=False)
    axes.xaxis.set_major_formatter(lambda v, _: f"{100 * v:.4g}")
    axes.locator_params(axis="x", nbins=6)
    canvas.text(left + 103, base + 28, "score with the worst input broken, %", ha="center", color=MUTED, fontsize=SMALL)
    draw_key(canvas, Line(GREEN, "o", "-"), 8, base + 50, "held-out kinds", line=False)
    draw_key(canvas, Line(SKY, "D", "-"), 150, base + 50, "noise and swaps, as in training", line=False)
    return canvas.svg("corruption", "Worst-modality score with one input broken and not flagged, by arm")


def ingredients(report: StudyReport, quantity: str = "mean") -> str:
    """Draw what each ingredient buys, pooled over data sets, with its interval."""
    rows = [(one.label, e) for one in report.ingredients for e in one.effects if not e.data and e.quantity == quantity]
    if not rows:
        return ""
    low, high = min(*(e.low for _, e in rows), 0.0), max(*(e.high for _, e in rows), 0.0)
    low, high = low - 0.08 * (high - low) - 1e-9, high + 0.08 * (high - low) + 1e-9
    left, top = 152.0, 6.0
    canvas = Canvas(372, top + _ROW * len(rows) + 42)
    axes = canvas.plot(left, top, 160, _ROW * len(rows))
    axes.set(xlim=(low, high), ylim=(len(rows), 0), yticks=())
    axes.axvline(0, color=MUTED, lw=1.2)
    for i, (label, e) in enumerate(rows):
        colour, shape = {"better": (BLUE, ">"), "worse": (VERMILLION, "<"), "tied": (MUTED, "o")}[e.verdict]
        canvas.text(left - 6, top + (i + 0.5) * _ROW, shorten(label, left - 10, SMALL), ha="right", fontsize=SMALL)
        axes.plot([e.low, e.high], [i + 0.5] * 2, color=colour, lw=2.2)
        face = PAPER if e.verdict == "tied" else colour
        axes.plot([e.mean], [i + 0.5], marker=shape, ms=6.5, color=colour, mfc=face, mew=1.5)
        canvas.text(372, top + (i + 0.5) * _ROW, amount(e.mean, quantity, unit=False), ha="right", fontsize=SMALL)
    _signed(axes, 1 if quantity in IN_NATS else 100)
    axes.locator_params(axis="x", nbins=4)
    unit = "nats" if quantity in IN_NATS else "points"
    style = {"ha": "center", "color": MUTED, "fontsize": SMALL}
    canvas.text(left + 80, top + _ROW * len(rows) + 30, f"← costs · {unit} · buys →", **style)
    return canvas.svg(f"ingredients-{quantity}", f"What each ingredient buys, {QUANTITIES[quantity]}")


def subset_heat(report: StudyReport, data: str, most: int = 31) -> str:
    """Draw arm x subset of inputs of one data set, means over seeds."""
    table, info = report.table(data), report.info(data)
    rows = [r for r in table.rows if "mean" in r.values]
    subsets = sorted({s for r in rows for s in r.subsets}, key=lambda s: (-s.count("+"), s))
    if len(subsets) > most:
        ends = [s for s in subsets if s.count("+") in (0, len(info.modalities) - 2, len(info.modalities) - 1)]
        subsets = ends[:most]
    if not rows or len(subsets) < 2:
        return ""
    columns = [tuple(s.split("+")) for s in subsets]
    values = [[r.subsets.get(s, math.nan) for s in subsets] for r in rows]
    texts = [[f"{100 * v:.1f}" if math.isfinite(v) else "–" for v in line] for line in values]
    kinds = {a.name: a.kind for a in report.arms}
    finite = [v for r, line in zip(rows, values, strict=True) if kinds.get(r.arm) != "baseline" for v in line]
    finite = [v for v in finite if math.isfinite(v)] or [0.0, 1.0]
    names = tuple(shorten(report.label(r.arm), 190) for r in rows)
    strong = frozenset(i for i, r in enumerate(rows) if r.arm == report.default)
    labels = Labels(dots=tuple(columns), inputs=info.modalities)
    tops = [max((v for v in column if math.isfinite(v)), default=math.nan) for column in zip(*values, strict=True)]
    best = [[f"{100 * v:.1f}" == f"{100 * t:.1f}" for v, t in zip(line, tops, strict=True)] for line in values]
    canvas = heat_map(values, Labels(texts=names, strong=strong), labels, texts, (min(finite), max(finite)), best)
    return canvas.svg(f"subsets-{_key(report, data)}", f"{data}: {len(rows)} arms by {len(subsets)} subsets of inputs")


def broken_heat(report: StudyReport, data: str) -> str:
    """Draw arm x broken input of one data set, means over seeds; held-out kinds carry a star."""
    found = {(b.arm, b.modality, b.corruption): b for b in report.broken if b.data == data}
    ranked = {r.arm for r in report.table(data).rows if "mean" in r.values}
    arms = [a.name for a in report.arms if a.name in ranked and any(k[0] == a.name for k in found)]
    inputs = report.info(data).modalities
    cases = sorted({(m, c) for _, m, c in found}, key=lambda x: (inputs.index(x[0]) if x[0] in inputs else 99, x[1]))
    if not arms or not cases:
        return ""
    values = [[found[a, m, c].value if (a, m, c) in found else math.nan for m, c in cases] for a in arms]
    texts = [[f"{100 * v:.1f}" if math.isfinite(v) else "–" for v in line] for line in values]
    finite = [v for line in values for v in line if math.isfinite(v)]
    star = {(b.modality, b.corruption): "*" * b.held_out for b in found.values()}
    columns = Labels(texts=tuple(c + star[m, c] for m, c in cases), groups=tuple(m for m, _ in cases))
    strong = frozenset(i for i, a in enumerate(arms) if a == report.default)
    rows = Labels(texts=tuple(shorten(report.label(a), 190) for a in arms), strong=strong)
    canvas = heat_map(values, rows, columns, texts, (min(finite), max(finite)))
    return canvas.svg(f"broken-{_key(report, data)}", f"{data}: score with one input broken and not flagged")


def _key(report: StudyReport, data: str) -> str:
    return str([d.name for d in report.data].index(data))


def _signed(axes: object, scale: float) -> None:
    def text(v: float, _: object) -> str:
        return f"{scale * v:+.3g}".replace("-", "−") if abs(v) > 1e-12 else "0"

    axes.xaxis.set_major_formatter(text)  # type: ignore[attr-defined]


def shown_stages(rows: Sequence[str]) -> list[str]:
    """Stages of sets in reading order."""
    order = [f"{m} {s}" for m in ("lac", "aps", "aps whole") for s in STAGES[1:]]
    return sorted(set(rows), key=lambda s: order.index(s) if s in order else len(order))
