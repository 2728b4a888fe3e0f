"""Heat maps whose rows or columns are sets of inputs, drawn as dots, so that no long label is needed.

Up to 15 columns lie on their side; more become rows, so that a page never has to be wider than a screen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from polyfuse.report.svg import INK, MUTED, RULE, SIZE, SMALL, Canvas, on_ramp, ramp, shorten, text_width

_ROW, _CELL, _DOT = 23.0, 44.0, 14.0
WIDE = 16


@dataclass(frozen=True)
class Labels:
    """The labels of one side of a heat map.

    Attributes:
        texts: One a line, when they are words.
        dots: One set of present inputs a line, when they are subsets.
        inputs: All input names, for ``dots``.
        groups: A heading for each line; equal neighbours share one. Empty = none.
        strong: Lines to print bold.
    """

    texts: tuple[str, ...] = ()
    dots: tuple[tuple[str, ...], ...] = ()
    inputs: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    strong: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.dots or self.texts)


def heat_map(
    values: Sequence[Sequence[float]],
    rows: Labels,
    columns: Labels,
    texts: Sequence[Sequence[str]],
    scale: tuple[float, float],
    best: Sequence[Sequence[bool]] | None = None,
) -> Canvas:
    """Draw a heat map; darker is nearer to ``scale[1]``, which may be the smaller number.

    Args:
        values: One row a line; NaN draws an empty cell.
        rows: Labels of the rows.
        columns: Labels of the columns.
        texts: What each cell says.
        scale: Values of the lightest and the darkest colour.
        best: Cells to outline.
    """
    if len(columns) > WIDE and len(columns) > len(rows):
        turned = None if best is None else list(zip(*best, strict=True))
        return heat_map(list(zip(*values, strict=True)), columns, rows, list(zip(*texts, strict=True)), scale, turned)
    left, top = _left(rows, columns), _top(columns)
    cell = max(_CELL, *(text_width(t, SMALL) + 8 for line in texts for t in line)) if len(columns) else _CELL
    canvas = Canvas(left + cell * len(columns) + 4, top + _ROW * len(rows) + 4)
    _draw_left(canvas, rows, left, top)
    _draw_top(canvas, columns, left, top, cell)
    low, high = scale
    boxes, colours = [], []
    for r, line in enumerate(values):
        for c, value in enumerate(line):
            x, y = left + c * cell, top + r * _ROW
            if not math.isfinite(value):
                canvas.text(x + cell / 2, y + _ROW / 2, "–", ha="center", color=MUTED, fontsize=SMALL)
                continue
            share = 0.5 if math.isclose(low, high) else (value - low) / (high - low)
            boxes.append((x + 1, y + 1, cell - 2, _ROW - 2))
            colours.append(ramp(share))
            mark = best is not None and best[r][c]
            style = {"color": on_ramp(share), "fontsize": SMALL, "weight": "bold" if mark else "normal"}
            canvas.text(x + cell / 2, y + _ROW / 2, texts[r][c], ha="center", **style)
            if mark:
                canvas.boxes([(x + 1, y + 1, cell - 2, _ROW - 2)], ["none"], edgecolors=[INK], linewidths=1.6, zorder=4)
    if boxes:
        canvas.boxes(boxes, colours, zorder=1)
    return canvas


def draw_dots(
    canvas: Canvas, subset: Sequence[str], inputs: Sequence[str], x: float, y: float, *, down: bool, step: float = _DOT
) -> None:
    """Draw one subset as a line of dots: filled = present. ``down`` runs along y, else along x."""
    at = [(x, y + i * step) if down else (x + i * step, y) for i in range(len(inputs))]
    here = [p for p, m in zip(at, inputs, strict=True) if m in subset]
    gone = [p for p, m in zip(at, inputs, strict=True) if m not in subset]
    for points, colour, size, order in ((gone, RULE, 22, 1), (here, INK, 30, 3)):
        if points:
            canvas.page.scatter(*zip(*points, strict=True), s=size, color=colour, linewidths=0, zorder=order)


def _left(rows: Labels, columns: Labels) -> float:
    """Room left of the cells."""
    words = [text_width(t) for t in rows.texts] or [0.0]
    names = [text_width(m, SMALL) for m in columns.inputs] if columns.dots else [0.0]
    group = 0.0 if not rows.groups else min(110.0, max(text_width(g, SMALL) for g in rows.groups)) + 8
    dots = _DOT * len(rows.inputs) + 10 if rows.dots else 0.0
    return max(min(max(*words, 0), 200.0), min(max(*names, 0), 150.0)) + group + dots + 16


def _top(columns: Labels) -> float:
    """Room above the cells."""
    if columns.dots:
        return _DOT * len(columns.inputs) + 10
    longest = max((text_width(t, SMALL) for t in columns.texts), default=0.0)
    return min(longest, 150.0) + (20 if columns.groups else 0) + 10


def _draw_left(canvas: Canvas, rows: Labels, left: float, top: float) -> None:
    for i, text in enumerate(rows.texts):
        weight = "bold" if i in rows.strong else "normal"
        size = SMALL if rows.groups else SIZE
        room = 200.0
        canvas.text(
            left - 8, top + (i + 0.5) * _ROW, shorten(text, room, size), ha="right", weight=weight, fontsize=size
        )
    for name, start, _ in _runs(rows.groups):
        canvas.text(0, top + (start + 0.5) * _ROW, shorten(name, 110, SMALL), weight="bold", fontsize=SMALL)
        if start:
            canvas.page.plot([0, canvas.width], [top + start * _ROW] * 2, color=RULE, lw=1, zorder=0)
    for i, subset in enumerate(rows.dots):
        x = left - 8 - _DOT * (len(rows.inputs) - 0.5)
        draw_dots(canvas, subset, rows.inputs, x, top + (i + 0.5) * _ROW, down=False)
    if rows.dots:
        for j, name in enumerate(rows.inputs):
            x = left - 8 - _DOT * (len(rows.inputs) - 0.5 - j)
            _upright(canvas, x, top - 8, shorten(name, top - 8, SMALL))


def _draw_top(canvas: Canvas, columns: Labels, left: float, top: float, cell: float) -> None:
    for j, subset in enumerate(columns.dots):
        y = top - 8 - _DOT * (len(columns.inputs) - 0.5)
        draw_dots(canvas, subset, columns.inputs, left + (j + 0.5) * cell, y, down=True)
    if columns.dots:
        for i, name in enumerate(columns.inputs):
            y = top - 8 - _DOT * (len(columns.inputs) - 0.5 - i)
            canvas.text(left - 8, y, shorten(name, 150, SMALL), ha="right", color=MUTED, fontsize=SMALL)
    for j, text in enumerate(columns.texts):
        weight = "bold" if j in columns.strong else "normal"
        _upright(canvas, left + (j + 0.5) * cell, top - 6, shorten(text, 150, SMALL), weight=weight, color=INK)
    for name, start, count in _runs(columns.groups):
        canvas.text(left + start * cell + 2, 8, shorten(name, count * cell - 4, SMALL), weight="bold", fontsize=SMALL)
        if name:
            canvas.page.plot([left + start * cell + 2, left + (start + count) * cell - 2], [18, 18], color=RULE, lw=1)


def _upright(canvas: Canvas, x: float, y: float, text: str, **style: object) -> None:
    style = {"color": MUTED, "fontsize": SMALL, "rotation": 90, "rotation_mode": "anchor", **style}
    canvas.text(x, y, text, ha="left", va="center", **{k: v for k, v in style.items() if k not in ("ha", "va")})


def _runs(groups: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return (name, start, count) of equal neighbours."""
    runs: list[tuple[str, int, int]] = []
    for i, name in enumerate(groups):
        if runs and runs[-1][0] == name:
            runs[-1] = (name, runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((name, i, 1))
    return runs
