"""Put the numbers of a demo into the README: its picture and its table.

Run: ``polyfuse demo --out runs/demo && python docs/make_readme.py runs/demo/report.json``.
"""

import re
import sys
from pathlib import Path

from marked import put

from polyfuse.report.content import ReportData
from polyfuse.report.figures import subset_heat
from polyfuse.report.summary import Summary, summarise
from polyfuse.report.svg import drawing
from polyfuse.report.table import cell, columns

ROOT = Path(__file__).parents[1]
KEYS = ("complete", "mean", "worst", "ece", "ece_calibrated", "coverage", "worst_coverage", "regret", "parameters")
# The page's colours, for a drawing that stands alone.
STYLE = (
    "<style>svg{--ink:#1b1f24;--muted:#59636e;--rule:#d1d9e0;--paper:#ffffff;--blue:#0072b2;--vermillion:#d55e00;"
    "background:#ffffff;font-family:system-ui,sans-serif}</style>"
)


def picture(summary: Summary) -> str:
    """The heat map of the report, standing alone."""
    with drawing():
        svg = str(subset_heat(summary))
    svg = re.sub(r"(<svg[^>]*>)", r"\1" + STYLE, svg, count=1)
    return svg if "xmlns=" in svg else svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)


def table(summary: Summary) -> str:
    """The table of arms in Markdown: value ± one standard deviation over seeds, default recipe in bold."""
    shown = [column for column in columns(summary) if column.key in KEYS]
    heads = ["arm", *(f"{c.head} {c.unit}".strip() for c in shown)]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * len(shown) + "|"]
    for row in summary.ranked:
        values = []
        for column in shown:
            value, spread = cell(summary.data.primary, column, row.values.get(column.key))
            values.append(f"{value} ±{spread}" if spread else value)
        name = f"**{row.arm.title}**" if row.arm.name == summary.data.default else row.arm.title
        lines.append("| " + " | ".join([name, *values]) + " |")
    return "\n".join(lines)


def main(report: Path) -> None:
    """Write ``docs/demo.svg`` and the part of the README between its two demo marks."""
    summary = summarise(ReportData.from_json(report.read_text(encoding="utf-8")))
    (ROOT / "docs" / "demo.svg").write_text(picture(summary) + "\n", encoding="utf-8")
    put(ROOT / "README.md", "table", table(summary))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
