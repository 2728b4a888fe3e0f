"""A study's report to one self-contained page, with the same numbers as JSON and CSV beside it.

As ``render.py``: nothing is loaded, nothing runs, every string is escaped; only our own figures are markup.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyfuse.files import write_text
from polyfuse.report import study_figures as figures
from polyfuse.report.render import clean_text
from polyfuse.report.study_records import QUANTITIES, Situation, StudyReport
from polyfuse.report.study_tables import (
    HELP,
    Table,
    calibration_table,
    cost_table,
    csv_text,
    data_table,
    difference_table,
    family_table,
    goal_table,
    ingredient_table,
    main_table,
    situation_table,
)
from polyfuse.report.svg import drawing

_FOLDER = Path(__file__).parent
_FORESTS = ("mean", "worst", "complete", "nll", "broken")


def write_study(report: StudyReport, out: Path) -> Path:
    """Write ``study.html``, ``tables.json`` and ``tables.csv`` into a folder; return the HTML file.

    Args:
        report: Everything the page says.
        out: The folder; it is made. Existing files are replaced, each at once.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "tables.json", report.to_json())
    write_text(out / "tables.csv", csv_text(report))
    write_text(out / "study.html", study_html(report))
    return out / "study.html"


def study_html(report: StudyReport) -> str:
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
    return environment.get_template("study.html.j2").render(_view(report)).strip() + "\n"


def _view(report: StudyReport) -> dict[str, Any]:
    from markupsafe import Markup

    with drawing():
        drawn = _figures(report)
    judged = len(report.judged)
    facts = [
        f"{len(report.arms)} arms",
        f"{len(report.data)} data set{'s' * (len(report.data) != 1)}"
        + (f" ({judged} real)" if judged != len(report.data) else ""),
        f"{report.seeds} seeds" if report.seeds > 1 else "one seed",
    ]
    parts = {
        "goals": bool(report.goals),
        "main": bool(report.tables),
        "differences": bool(report.differences),
        "ingredients": bool(report.ingredients),
        "situations": bool(report.situations),
        "families": bool(report.families),
        "headroom": bool(drawn["headroom"]),
        "calibration": bool(report.calibration),
        "broken": bool(drawn["corruption"]),
        "cost": bool(report.costs),
        "sets": bool(report.tables),
        "lost": True,
        "made": True,
    }
    names = {
        "goals": "Goals",
        "main": "Main table",
        "differences": "Differences",
        "ingredients": "Ingredients",
        "situations": "Situations",
        "families": "Early, late, hybrid",
        "headroom": "Headroom",
        "calibration": "Calibration",
        "broken": "Broken inputs",
        "cost": "Cost",
        "sets": "Data sets",
        "lost": "What lost",
        "made": "How it was made",
    }
    return {
        "r": report,
        "css": Markup((_FOLDER / "report.css").read_text(encoding="utf-8")),  # noqa: S704 our own file
        "help": _upper(HELP),
        "kicker": [t for t in (report.name, report.created, report.machine) if t],
        "facts": ", ".join(facts),
        "has": parts,
        "sections": [(k, n) for k, n in names.items() if parts[k]],
        "reference": report.label(report.reference),
        "goals": goal_table(report),
        "overall": main_table(report),
        "differences": difference_table(report),
        "ingredients": ingredient_table(report),
        "situations": [_situation(report, s) for s in report.situations],
        "families": family_table(report),
        "calibration": calibration_table(report, _calibrated(report)),
        "costs": cost_table(report),
        "sets": [(d, data_table(report, d.name)) for d in report.data],
        "arm_notes": [(a.label, a.note) for a in report.arms if a.note],
        "calibrated": [report.label(a) for a in _calibrated(report)],
        **drawn,
    }


def _situation(report: StudyReport, s: Situation) -> dict[str, Any]:
    return {"data": s.data, "sentence": s.sentence, "table": situation_table(report, s)}


def _calibrated(report: StudyReport) -> list[str]:
    """The arms whose calibration is shown stage by stage: reference and default."""
    have = {r.arm for r in report.calibration}
    asked = [a for a in (report.default, report.reference) if a in have]
    return asked or [a.name for a in report.arms if a.name in have][:1]


def _figures(report: StudyReport) -> dict[str, Any]:
    from markupsafe import Markup

    def svg(text: str) -> Any:
        return Markup(text)  # noqa: S704 matplotlib escapes the text it draws

    whose = _calibrated(report)
    return {
        "forests": [(_upper(QUANTITIES[q]), svg(text)) for q in _FORESTS if (text := figures.forest(report, q))],
        "heat": svg(figures.gain_heat(report)),
        "headroom": svg(figures.headroom(report)),
        "corruption": svg(figures.corruption(report)),
        "stages": [(head, svg(text)) for head, text in (figures.calibration(report, whose[0]) if whose else ())],
        "bought": [
            (_upper(QUANTITIES[q]), svg(t)) for q in ("mean", "worst", "nll") if (t := figures.ingredients(report, q))
        ],
        "subsets": {d.name: svg(figures.subset_heat(report, d.name)) for d in report.data},
        "broken": {d.name: svg(figures.broken_heat(report, d.name)) for d in report.data},
    }


def console_lines(report: StudyReport, width: int = 120, data: Sequence[str] = ()) -> list[str]:
    """The verdict, the goals and the main table for a terminal.

    Args:
        report: The study.
        width: Columns of the terminal.
        data: Data sets whose own table is shown too.
    """
    import textwrap

    out = [report.title, ""]
    for text in report.verdict:
        out += textwrap.wrap(text, width, initial_indent="• ", subsequent_indent="  ")
    tables: list[Table] = [goal_table(report), main_table(report), *(data_table(report, name) for name in data)]
    for table in tables:
        if table.rows:
            out += ["", table.title, *table.lines(width)]
    return out


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
