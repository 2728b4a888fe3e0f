"""A task study's report to one self-contained page, with the same numbers as JSON and CSV beside it.

As ``study_page.py``: nothing is loaded, nothing runs, every string is escaped; only our own figures are markup.

Shapes: S pixels, P patches or regions.
"""

import base64
import csv
import io
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polyfuse.errors import require
from polyfuse.files import write_text
from polyfuse.report.curves import _DASHES as DASHES
from polyfuse.report.curves import _SHAPES as SHAPES
from polyfuse.report.curves import Line, draw_key
from polyfuse.report.render import clean_text
from polyfuse.report.study_tables import Table
from polyfuse.report.svg import MUTED, OKABE_ITO, PAPER, SMALL, Canvas, drawing, shorten
from polyfuse.report.table import csv_safe

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Example:
    """A picture and what was said of it.

    Attributes:
        image: ``(S, S, 3)`` uint8; None = the words alone.
        lines: Sentences below it.
        boxes: ``(label, (x0, y0, x1, y1))`` as shares of width and height.
        map: ``(P,)`` weights, drawn over the picture: of a square of patches row by row, or of the boxes.
        title: Above it.
    """

    image: np.ndarray | None
    lines: tuple[str, ...] = ()
    boxes: tuple[tuple[str, Sequence[float]], ...] = ()
    map: np.ndarray | None = None
    title: str = ""

    def to_text(self) -> str:
        """As JSON, the picture as PNG in base 64."""
        return json.dumps(
            {
                "png": None if self.image is None else png_text(self.image),
                "lines": list(self.lines),
                "boxes": [[label, [round(float(x), 4) for x in box]] for label, box in self.boxes],
                "map": None if self.map is None else [round(float(x), 5) for x in np.ravel(self.map)],
            },
            ensure_ascii=False,
        )


def png_text(image: np.ndarray) -> str:
    """A picture as PNG in base 64.

    Raises:
        ValueError: If it is not ``(height, width, 3)`` of uint8.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be (height, width, 3) of uint8, got {image.shape} of {image.dtype}")
    out = io.BytesIO()
    require("PIL.Image", extra="workbench").fromarray(image).save(out, format="PNG")
    return base64.b64encode(out.getvalue()).decode()


@dataclass(frozen=True)
class ChartLine:
    """One line of a chart.

    Attributes:
        label: In the legend.
        points: ``(x, value, low, high)``; the band is left out where low and high are NaN.
        style: Number of its colour and marker; None = by its place.
        dashed: Drawn with dashes and without markers.
    """

    label: str
    points: tuple[tuple[float, float, float, float], ...]
    style: int | None = None
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines over a number.

    Attributes:
        title: Heading.
        lines: At most eight are drawn.
        x: What the horizontal axis says.
        y: What the vertical axis says.
        percent: Values are shares, printed times 100.
        log: The horizontal axis is logarithmic.
        ticks: ``(x, label)`` of the horizontal axis; empty = as matplotlib chooses.
        note: Below the figure.
        markers: Points get markers.
    """

    title: str
    lines: tuple[ChartLine, ...]
    x: str
    y: str
    percent: bool = False
    log: bool = False
    ticks: tuple[tuple[float, str], ...] = ()
    note: str = ""
    markers: bool = True


@dataclass(frozen=True)
class Shown:
    """An example on the page: whose it is, and ``Example.to_text``."""

    title: str
    text: str


@dataclass
class TaskReport:
    """Everything that the page says.

    Attributes:
        name: Registry key of the study.
        title: Heading.
        question: What it asks.
        verdict: What came out, in sentences.
        protocol: How it was done, in sentences.
        tables: In reading order.
        charts: Likewise.
        examples: Likewise.
        figures: One mapping per arm, setting and metric: ``arm, setting, metric, mean, sd, low, high, by_seed``.
        seeds: Most seeds of an arm.
        failed: ``job: message``.
        notes: To judge the numbers by.
        scale: smoke, small or full.
        seconds: Of processor time, summed over the jobs.
        commands: What printed it.
        versions: Of libraries.
        machine: In a line.
    """

    name: str
    title: str
    question: str
    verdict: Sequence[str] = ()
    protocol: Sequence[str] = ()
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    examples: Sequence[Shown] = ()
    figures: Sequence[Mapping[str, Any]] = ()
    seeds: int = 1
    failed: Sequence[str] = ()
    notes: Sequence[str] = ()
    scale: str = ""
    seconds: float = 0.0
    commands: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values without the pictures; what is no number is None."""
        tables = [
            {
                "title": t.title,
                "columns": [list(c) for c in t.columns],
                "rows": [
                    {"name": name, "cells": [{"text": c.text, "small": c.small, "mark": c.mark} for c in cells]}
                    for name, cells, _ in t.rows
                ],
            }
            for t in self.tables
        ]
        charts = [
            {
                "title": c.title,
                "x": c.x,
                "y": c.y,
                "lines": [
                    {"label": one.label, "points": [list(map(_finite, p)) for p in one.points]} for one in c.lines
                ],
            }
            for c in self.charts
        ]
        plain = {key: getattr(self, key) for key in ("name", "title", "question", "scale", "seeds", "machine")}
        lists = {key: list(getattr(self, key)) for key in ("verdict", "protocol", "notes", "failed", "commands")}
        figures = [{key: _finite(value) for key, value in one.items()} for one in self.figures]
        return {
            **plain,
            **lists,
            "seconds": round(self.seconds, 1),
            "tables": tables,
            "charts": charts,
            "figures": figures,
            "versions": dict(self.versions),
        }


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_task_page(report: TaskReport, out: Path) -> Path:
    """Write ``study.html``, ``tables.json`` and ``tables.csv`` into a folder; return the HTML file.

    Args:
        report: Everything the page says.
        out: The folder; it is made. Existing files are replaced, each at once.
    """
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(out / "tables.json", text + "\n")
    write_text(out / "tables.csv", csv_text(report))
    write_text(out / "study.html", task_html(report))
    return out / "study.html"


def csv_text(report: TaskReport) -> str:
    """Every figure as a long table: ``arm, setting, metric, seed, value, low, high``; no seed = the mean over them."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["arm", "setting", "metric", "seed", "value", "low", "high"])
    for one in report.figures:
        head = [csv_safe(one[key]) for key in ("arm", "setting", "metric")]
        writer.writerow([*head, "", *(csv_safe(one[key]) for key in ("mean", "low", "high"))])
        for seed, value in one["by_seed"].items():
            writer.writerow([*head, seed, csv_safe(value), "", ""])
    return out.getvalue()


def task_html(report: TaskReport) -> str:
    """Return the page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def finish(value: Any) -> Any:
        return clean_text(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finish,
    )
    with drawing():
        charts = [(c, Markup(draw_chart(c, f"chart{i}"))) for i, c in enumerate(report.charts)]  # noqa: S704 our own
    view = {
        "r": report,
        "css": Markup((_FOLDER / "report.css").read_text(encoding="utf-8")),  # noqa: S704 our own file
        "kicker": [t for t in (report.name, f"scale {report.scale}" if report.scale else "", report.machine) if t],
        "facts": f"{report.seeds} seeds" if report.seeds > 1 else "one seed",
        "charts": charts,
        "examples": [_example(one) for one in report.examples],
    }
    return environment.get_template("task_study.html.j2").render(view).strip() + "\n"


def _example(shown: Shown) -> dict[str, Any]:
    """Numbers of the drawing, in units of a picture 100 wide."""
    found = json.loads(shown.text)
    boxes = [(label, [100 * x for x in box]) for label, box in found["boxes"]]
    weights = np.asarray(found["map"] or [], np.float64)
    cells: list[tuple[float, float, float, float, float]] = []
    if len(weights) and len(weights) == len(boxes):
        cells = [(b[0], b[1], b[2] - b[0], b[3] - b[1], w) for (_, b), w in zip(boxes, _shares(weights), strict=True)]
    elif len(weights):
        side = math.isqrt(len(weights))
        step = 100 / max(side, 1)
        if side * side == len(weights):
            places = [(step * (i % side), step * (i // side)) for i in range(len(weights))]
            cells = [(x, y, step, step, w) for (x, y), w in zip(places, _shares(weights), strict=True)]
    return {"title": shown.title, "png": found["png"], "lines": found["lines"], "boxes": boxes, "cells": cells}


def _shares(weights: np.ndarray) -> list[float]:
    top = float(np.nanmax(weights)) if len(weights) else 0.0
    return [round(0.75 * max(float(w), 0.0) / top, 3) if top > 0 else 0.0 for w in weights]


def draw_chart(chart: Chart, key: str) -> str:
    """Draw lines with bands as inline SVG; empty where there is nothing finite.

    Args:
        chart: What to draw.
        key: Unique in the page.
    """
    kept = [one for one in chart.lines if any(math.isfinite(p[1]) for p in one.points)][: len(OKABE_ITO)]
    if not kept:
        return ""
    canvas = Canvas(360, 262 + 17 * len(kept))
    axes = canvas.plot(46, 24, 304, 200)
    axes.grid(visible=False, axis="x")
    if chart.log:
        axes.set_xscale("log")
    looks = []
    for place, one in enumerate(kept):
        number = (place if one.style is None else one.style) % len(OKABE_ITO)
        marks = chart.markers and not one.dashed
        shape = SHAPES[number % len(SHAPES)] if marks else ""
        look = Line(OKABE_ITO[number], shape, (0, (4, 2)) if one.dashed else DASHES[0])
        looks.append(look)
        points = sorted(p for p in one.points if math.isfinite(p[1]))
        x, y = [p[0] for p in points], [p[1] for p in points]
        band = [p for p in points if math.isfinite(p[2]) and math.isfinite(p[3])]
        if band:
            low, high = [p[2] for p in band], [p[3] for p in band]
            axes.fill_between([p[0] for p in band], low, high, color=look.colour, alpha=0.16, lw=0)
        style = {"marker": look.shape, "ms": 5, "mec": PAPER, "mew": 0.8} if marks else {}
        axes.plot(x, y, color=look.colour, lw=2.0, ls=look.dash, **style)
    scale = 100 if chart.percent else 1
    axes.yaxis.set_major_formatter(lambda v, _: f"{scale * v:,.4g}".replace("-", "−"))
    if chart.ticks:
        axes.set_xticks([x for x, _ in chart.ticks], [text for _, text in chart.ticks], minor=False)
        axes.minorticks_off()
    else:
        if chart.log:
            from matplotlib.ticker import LogLocator

            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.minorticks_off()
        axes.xaxis.set_major_formatter(lambda v, _: f"{v:,.4g}")
    canvas.text(0, 10, shorten(chart.y, 350, SMALL), color=MUTED, fontsize=SMALL)
    canvas.text(198, 252, shorten(chart.x, 300, SMALL), ha="center", color=MUTED, fontsize=SMALL)
    for i, (one, look) in enumerate(zip(kept, looks, strict=True)):
        draw_key(canvas, look, 8, 272 + 17 * i, shorten(one.label, 310, SMALL))
    return canvas.svg(key, f"{chart.title}: {chart.y} over {chart.x}")


def console_lines(report: TaskReport, width: int = 120) -> list[str]:
    """Title, verdict and tables for a terminal of ``width`` columns."""
    out = [*textwrap.wrap(report.title, width), ""]
    for text in report.verdict:
        bound = text.replace(" %", "\N{NO-BREAK SPACE}%")  # a unit stays with its number
        lines = textwrap.wrap(bound, width, initial_indent="• ", subsequent_indent="  ")
        out += [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]
    for table in report.tables:
        if table.rows:
            out += ["", *textwrap.wrap(table.title, width), *table.lines(width)]
    return out
