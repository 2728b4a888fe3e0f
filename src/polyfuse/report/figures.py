"""The figures over subsets of inputs: a summary in, inline SVG out. Each returns nothing when its numbers are missing.

All are about 360 points wide or small multiples, so that they read on a phone; colours are Okabe-Ito, and what colour
says, shape or text says too.
"""

import math
import statistics
from collections.abc import Iterator, Sequence

from polyfuse.report.curves import Line, axis_name, draw_key, lines, ticks
from polyfuse.report.format import format_value
from polyfuse.report.heat import Labels, draw_dots, heat_map
from polyfuse.report.records import Bin, Metric
from polyfuse.report.summary import ArmSummary, Subset, Summary, ordered_subset, subset_label
from polyfuse.report.svg import (
    BLUE,
    INK,
    MUTED,
    OKABE_ITO,
    ORANGE,
    PAPER,
    RULE,
    SIZE,
    SMALL,
    VERMILLION,
    Canvas,
    css,
    shorten,
    text_width,
)

MAX_SUBSETS = 31
MAX_PANELS = 12


def pick(subsets: Sequence[Subset], inputs: Sequence[str], cap: int = MAX_SUBSETS) -> tuple[Subset, ...]:
    """Return at most about ``cap`` subsets: complete, one missing and single ones first, then evenly spaced others."""
    if len(subsets) <= cap:
        return tuple(subsets)
    keep = {s for s in subsets if len(s) in (1, len(inputs) - 1, len(inputs))}
    rest = [s for s in subsets if s not in keep]
    room = max(cap - len(keep), 0)
    keep |= {rest[int(i * len(rest) / room)] for i in range(room)} if rest and room else set()
    return tuple(s for s in subsets if s in keep)


def subset_heat(s: Summary) -> str:
    """Draw arm x subset of the primary metric, the best arm of each subset outlined."""
    arms = [r for r in s.ranked if s.tables.get(r.arm.name)]
    shown = pick(s.subsets, s.data.modalities)
    if len(arms) < 2 or len(shown) < 2:
        return ""
    metric = s.data.primary
    values = [[s.at(r.arm.name, c) for c in shown] for r in arms]
    texts = [[_short(metric, v) for v in line] for line in values]
    rows = Labels(texts=tuple(r.arm.title for r in arms), strong=_strong(s, arms))
    columns = Labels(dots=shown, inputs=s.data.modalities)
    canvas = heat_map(values, rows, columns, texts, _scale(metric, arms, values), _best(metric, values))
    return canvas.svg("subsets", f"Heat map of {metric.label}: {len(arms)} arms by {len(shown)} subsets of inputs")


def subset_bars(s: Summary) -> str:
    """Draw the primary metric of a single arm on every subset, with spread over seeds and the oracle where known."""
    if len(s.ranked) != 1 or len(s.subsets) < 2 or not s.tables.get(s.ranked[0].arm.name):
        return ""
    metric, name, inputs = s.data.primary, s.ranked[0].arm.name, s.data.modalities
    shown = pick(s.subsets, inputs)
    values = [s.at(name, c) for c in shown]
    oracle = _oracles(s)
    ends = [*values, *(v for c, v in oracle.items() if c in shown), 0.0]
    low, high = min(v for v in ends if math.isfinite(v)), max(v for v in ends if math.isfinite(v))
    low, high = (0.0, max(high, 1e-9)) if low >= 0 else (low, max(high, 0.0))
    top = min(max(text_width(m, SMALL) for m in inputs), 90.0) + 10
    left, row, room = 14.0 * len(inputs) + 8, 23.0, 360.0 - 14.0 * len(inputs) - 66
    canvas = Canvas(left + room + 58, top + row * len(shown) + 4)
    for j, m in enumerate(inputs):
        style = {"rotation": 90, "rotation_mode": "anchor", "va": "center", "color": MUTED, "fontsize": SMALL}
        canvas.text(14.0 * j + 7, top - 6, shorten(m, top - 8, SMALL), **style)

    def x(value: float) -> float:
        return left + room * (value - low) / (high - low)

    for i, (subset, value) in enumerate(zip(shown, values, strict=True)):
        y = top + (i + 0.5) * row
        draw_dots(canvas, subset, inputs, 7, y, down=False)
        if not math.isfinite(value):
            continue
        canvas.boxes([(min(x(0), x(value)), y - 7, abs(x(value) - x(0)), 14)], [BLUE])
        sd = _sd(s, name, subset)
        if math.isfinite(sd) and sd > 0:
            canvas.page.plot([x(value - sd), x(value + sd)], [y, y], color=INK, lw=1.2)
        if subset in oracle:
            canvas.page.plot([x(oracle[subset])] * 2, [y - 9, y + 9], color=VERMILLION, lw=2.2)
        canvas.text(left + room + 54, y, _short(metric, value), ha="right")
    return canvas.svg("bars", f"{metric.label} on {len(shown)} subsets of inputs")


def reliability(s: Summary, arm: str) -> list[str]:
    """Draw one small reliability diagram per subset of one arm, before and after calibration."""
    inputs = s.data.modalities
    found: dict[Subset, dict[str, list[Bin]]] = {}
    for r in s.data.reliability:
        if r.arm == arm and (bins := [b for b in r.bins if b.count and math.isfinite(b.accuracy)]):
            found.setdefault(ordered_subset(r.subset, inputs), {}).setdefault(r.stage, []).extend(bins)
    order = sorted(found, key=lambda c: (len(c) != len(inputs), len(c) != 1, -len(c), [inputs.index(m) for m in c]))
    return [_diagram(s, c, found[c], f"rel{i}") for i, c in enumerate(order[:MAX_PANELS])]


def pooled(bins: Sequence[Bin], *, width: float = 0.05) -> list[Bin]:
    """Merge bins of several seeds that lie in the same twentieth, weighted by their rows; a single seed stays as it is.

    Example:
        >>> pooled([Bin(0.51, 0.4, 1), Bin(0.52, 0.8, 3)])
        [Bin(confidence=0.5175, accuracy=0.7, count=4)]
    """
    cells: dict[int, list[Bin]] = {}
    for b in bins:
        cells.setdefault(math.floor(b.confidence / width + 1e-9), []).append(b)
    out = []
    for _, members in sorted(cells.items()):
        count = sum(b.count for b in members)
        shares = [
            sum(b.count * v for b, v in zip(members, values, strict=True)) / count
            for values in ([b.confidence for b in members], [b.accuracy for b in members])
        ]
        out.append(Bin(round(shares[0], 6), round(shares[1], 6), count))
    return out


def _diagram(s: Summary, subset: Subset, stages: dict[str, list[Bin]], key: str) -> str:
    canvas = Canvas(180, 200)
    title = shorten(subset_label(subset, s.data.modalities), 160, SIZE)
    canvas.text(0, 9, title, weight="bold")
    axes = canvas.plot(30, 40, 144, 132)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    axes.set_xticklabels(("0", "0.5", "1"))
    axes.set_yticklabels(("0", "0.5", "1"))
    axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=(0, (1, 2)))
    text = []
    for stage, colour, shape in (("raw", VERMILLION, "s"), ("calibrated", BLUE, "o")):
        if stage not in stages:
            continue
        bins = pooled(stages[stage])
        total = sum(b.count for b in bins)
        sizes = [10 + 60 * b.count / total for b in bins]
        where = [b.confidence for b in bins], [b.accuracy for b in bins]
        axes.plot(*where, color=colour, lw=1.4, ls="-" if stage == "calibrated" else (0, (4, 1.5)))
        face = {"facecolors": colour} if stage == "calibrated" else {"facecolors": PAPER, "edgecolors": colour}
        axes.scatter(*where, s=sizes, marker=shape, linewidths=1.2, zorder=3, clip_on=False, **face)
        text.append(f"{_gap(bins):.3f}")
    canvas.text(0, 25, f"mean gap {' → '.join(text)}", color=MUTED, fontsize=SMALL)
    name = "nominal level" if s.data.task == "regression" else "confidence"
    canvas.text(102, 194, name, ha="center", color=MUTED, fontsize=SMALL)
    return canvas.svg(key, f"Reliability diagram, {title}: mean gap {' to '.join(text)}")


def _gap(bins: Sequence[Bin]) -> float:
    """Count-weighted mean distance from the diagonal."""
    return sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / sum(b.count for b in bins)


def corruption_heat(s: Summary) -> str:
    """Draw arm x broken input of the primary metric, beside the score of the same rows before (or of complete rows)."""
    metric = s.data.primary
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    kinds = list(dict.fromkeys(r.corruption for r in s.data.corruption))
    for r in s.data.corruption:
        for kind, key in (("intact", f"{metric.name}_intact"), (r.corruption, metric.name)):
            if math.isfinite(value := r.metrics.get(key, math.nan)):
                found.setdefault((r.modality, kind), {}).setdefault(r.arm, []).append(value)
    order = ["intact", *(k for k in kinds if k != "intact")]
    cases = sorted(found, key=lambda c: (s.data.modalities.index(c[0]), order.index(c[1])))
    arms = [r for r in s.ranked if any(r.arm.name in found[c] for c in cases)]
    if not arms:
        return ""
    values = [[statistics.fmean(v) if (v := found[c].get(r.arm.name)) else math.nan for c in cases] for r in arms]
    if len(arms) == 1:
        return _corruption_of_one(s, arms[0], dict(zip(cases, values[0], strict=True)), order)
    names, groups = [k for _, k in cases], [m for m, _ in cases]
    if "intact" not in names:
        names, groups = ["complete", *names], ["", *groups]
        values = [
            [s.at(r.arm.name, s.complete) if s.complete else math.nan, *line]
            for r, line in zip(arms, values, strict=True)
        ]
    texts = [[_short(metric, v) for v in line] for line in values]
    columns = Labels(texts=tuple(names), groups=tuple(groups))
    rows = Labels(texts=tuple(r.arm.title for r in arms), strong=_strong(s, arms))
    best = _best(metric, values) if len(arms) > 1 else None
    canvas = heat_map(values, rows, columns, texts, _scale(metric, arms, values), best)
    return canvas.svg("broken", f"Heat map of {metric.label} with one input broken and not flagged")


def _corruption_of_one(s: Summary, arm: ArmSummary, values: dict[tuple[str, str], float], order: list[str]) -> str:
    """Draw broken input x what was done to it, for a single arm."""
    metric = s.data.primary
    inputs = [m for m in s.data.modalities if any(m == where for where, _ in values)]
    kinds = [k for k in order if any(k == kind for _, kind in values)]
    table = [[values.get((m, k), math.nan) for k in kinds] for m in inputs]
    texts = [[_short(metric, v) for v in line] for line in table]
    scale = _scale(metric, [arm], [list(values.values())])
    canvas = heat_map(table, Labels(texts=tuple(inputs)), Labels(texts=tuple(kinds)), texts, scale)
    return canvas.svg("broken", f"Heat map of {metric.label} with one input broken and not flagged")


def weight_bars(s: Summary) -> list[str]:
    """Draw, for each arm that has weights, what share each present input gets on each subset."""
    inputs, out = s.data.modalities, []
    for k, row in enumerate(s.ranked):
        found: dict[Subset, list[dict[str, float]]] = {}
        for w in s.data.weights:
            if w.arm == row.arm.name:
                found.setdefault(ordered_subset(w.subset, inputs), []).append(w.weights)
        several = [c for c in s.subsets or found if len(c) > 1 and c in found]  # a single input weighs all there is
        shown = pick(several, inputs, 15)
        if not shown or len(inputs) < 2:
            continue
        left, line = 14.0 * len(inputs) + 8, 21.0
        canvas = Canvas(330, 24 + line * len(shown))
        canvas.text(0, 9, shorten(row.arm.title, 320), weight="bold")
        for i, subset in enumerate(shown):
            y = 24 + (i + 0.5) * line
            draw_dots(canvas, subset, inputs, 7, y, down=False)
            mean = {m: statistics.fmean([w.get(m, 0.0) for w in found[subset]]) for m in inputs}
            total, x = sum(abs(v) for v in mean.values()) or 1.0, left
            for j, m in enumerate(inputs):
                width = (330 - left) * abs(mean[m]) / total
                if width > 0.5:
                    canvas.boxes([(x, y - 8, width - 1, 16)], [OKABE_ITO[j % len(OKABE_ITO)]])
                if width > 34:
                    dark = OKABE_ITO[j % len(OKABE_ITO)] in (BLUE, VERMILLION)
                    style = {"ha": "center", "fontsize": SMALL, "color": "#ffffff" if dark else "#14202b"}
                    canvas.text(x + width / 2, y, f"{mean[m]:.2f}", **style)
                x += width
        out.append(canvas.svg(f"weights{k}", f"Weights of {row.arm.title} on each input, by subset"))
    return out


def headroom(s: Summary) -> str:
    """Draw, per subset, what is possible there (oracle, unimodal) beside the main arms."""
    metric, inputs, oracle = s.data.primary, s.data.modalities, _oracles(s)
    single: dict[Subset, float] = {}
    for row in s.unimodal:
        for table in s.tables.get(row.arm.name, {}).values():
            for c in table:
                if len(c) == 1 and (row.arm.uses in ((), c)):
                    single[c] = s.at(row.arm.name, c)
    shown = [c for c in pick(s.subsets, inputs, 15) if c in oracle or c in single]
    if not shown:
        return ""
    styles = dict(list(lines(s).items())[:3])
    top = min(max(text_width(m, SMALL) for m in inputs), 90.0) + 10
    left, line = 14.0 * len(inputs) + 10, 24.0
    kinds = [("oracle", bool(oracle)), ("one input only", bool(single))]
    marks = [Line(INK, "|", "-"), Line(ORANGE, "D", "-")]
    count = sum(on for _, on in kinds) + len(styles)
    base = top + line * len(shown)
    canvas = Canvas(360, base + 44 + 17 * math.ceil(count / 2))
    axes = canvas.plot(left, top, 350 - left, line * len(shown))
    axes.set(ylim=(len(shown), 0), yticks=())
    for j, m in enumerate(inputs):
        style = {"rotation": 90, "rotation_mode": "anchor", "va": "center", "color": MUTED, "fontsize": SMALL}
        canvas.text(14.0 * j + 7, top - 6, shorten(m, top - 8, SMALL), **style)
    for i, subset in enumerate(shown):
        draw_dots(canvas, subset, inputs, 7, top + (i + 0.5) * line, down=False)
        axes.axhline(i + 0.5, color=RULE, lw=0.8)
        for name, look in styles.items():
            if math.isfinite(v := s.at(name, subset)):
                axes.plot([v], [i + 0.5], look.shape, color=look.colour, ms=6.5, mec=PAPER, mew=0.8, clip_on=False)
        if subset in single:
            axes.plot([single[subset]], [i + 0.5], marker="D", color=ORANGE, ms=6, mec=PAPER, mew=0.8, clip_on=False)
        if subset in oracle:
            axes.plot([oracle[subset]], [i + 0.5], marker="|", color=INK, ms=15, mew=2.4, clip_on=False)
    ticks(axes.xaxis, metric)
    canvas.text(left + (350 - left) / 2, base + 28, axis_name(metric), ha="center", color=MUTED, fontsize=SMALL)
    legend = [(m, n) for m, (n, on) in zip(marks, kinds, strict=True) if on]
    legend += [(look, s.of(name).arm.title) for name, look in styles.items()]
    for i, (look, text) in enumerate(legend):
        draw_key(canvas, look, 8 + (i % 2) * 178, base + 50 + 17 * (i // 2), shorten(text, 130, SMALL), line=False)
    return canvas.svg("headroom", f"{metric.label} per subset: oracle, single inputs and the main arms")


def _short(metric: Metric, value: float) -> str:
    return format_value(metric, value)


def _scale(metric: Metric, arms: Sequence[ArmSummary], values: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Lightest and darkest value; baselines do not stretch it (they may be far below everything)."""
    kept = [v for r, line in zip(arms, values, strict=True) if r.arm.kind != "baseline" for v in line]
    finite = [v for v in kept or [v for line in values for v in line] if math.isfinite(v)] or [0.0]
    return (min(finite), max(finite)) if metric.higher_is_better else (max(finite), min(finite))


def _best(metric: Metric, values: Sequence[Sequence[float]]) -> list[list[bool]]:
    """Mark the best value of each column, and those that print alike."""
    tops = []
    for column in zip(*values, strict=True):
        finite = [v for v in column if math.isfinite(v)]
        tops.append(_short(metric, (max if metric.higher_is_better else min)(finite)) if finite else None)
    return [[_short(metric, v) == top for v, top in zip(line, tops, strict=True)] for line in values]


def _strong(s: Summary, arms: Sequence[ArmSummary]) -> frozenset[int]:
    return frozenset(i for i, r in enumerate(arms) if r.arm.name == s.data.default)


def _oracles(s: Summary) -> dict[Subset, float]:
    found: dict[Subset, list[float]] = {}
    for o in s.data.oracles:
        if math.isfinite(o.value):
            found.setdefault(ordered_subset(o.subset, s.data.modalities), []).append(o.value)
    return {c: statistics.fmean(v) for c, v in found.items()}


def _sd(s: Summary, name: str, subset: Subset) -> float:
    values = [row[subset] for row in s.tables.get(name, {}).values() if subset in row]
    return statistics.stdev(values) if len(values) > 1 else math.nan


def swatches(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (name, colour) of the inputs as ``weight_bars`` paints them."""
    for j, name in enumerate(names):
        yield name, css(OKABE_ITO[j % len(OKABE_ITO)])
