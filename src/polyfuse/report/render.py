"""Records to one self-contained HTML page, with the same numbers as JSON and CSV beside it.

The page loads nothing and runs nothing: figures are inline SVG, styles are inline, a content policy forbids the rest.
Every string is escaped and stripped of control characters by the template engine; only our own figures are markup.
"""

import math
import re
from pathlib import Path
from typing import Any

from polyfuse.files import write_text
from polyfuse.report.content import ReportData
from polyfuse.report.curves import drop_curve, forest
from polyfuse.report.figures import (
    corruption_heat,
    headroom,
    pick,
    reliability,
    subset_bars,
    subset_heat,
    swatches,
    weight_bars,
)
from polyfuse.report.format import format_value, number
from polyfuse.report.inputs import NOTE, WAYS, arm_of, lines
from polyfuse.report.summary import ArmSummary, Spread, Summary, judged_rows, subset_label, summarise, table_of
from polyfuse.report.svg import BLUE, VERMILLION, clean, css, drawing
from polyfuse.report.table import cell, columns, csv_text, plain_words
from polyfuse.report.verdict import verdict

_FOLDER = Path(__file__).parent
_MORE = {
    "nll": "NLL raw",
    "nll_calibrated": "NLL",
    "brier": "Brier raw",
    "brier_calibrated": "Brier",
    "ece_equal_mass": "ECE equal mass",
    "set_size": "set size",
    "aurc": "AURC",
    "augrc": "AUGRC",
    "abstained": "abstained",
}


def write_report(data: ReportData, path: Path) -> Path:
    """Write ``report.html``, and the same numbers as ``.json`` and ``.csv`` beside it; return the HTML file.

    Args:
        data: The records.
        path: The HTML file, or a folder to put ``report.html`` into. Existing files are replaced, each at once.

    Raises:
        ValueError: If the records contradict themselves (``ReportData.check``).
    """
    path = path / "report.html" if path.is_dir() else path
    summary = summarise(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    extra = {"verdict": verdict(data, summary), "plain_words": plain_words(data, summary), "summary": _numbers(summary)}
    write_text(path.with_suffix(".json"), data.to_json(**extra))
    write_text(path.with_suffix(".csv"), csv_text(data, summary))
    write_text(path, html(data, summary))
    return path


def html(data: ReportData, summary: Summary | None = None) -> str:
    """Return the page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def finish(value: Any) -> Any:
        return clean_text(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    s = summary or summarise(data)
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finish,
    )
    return environment.get_template("report.html.j2").render(_view(s)).strip() + "\n"


def clean_text(text: str) -> str:
    r"""Return text without control characters and lone surrogates; line breaks stay, units stay with their number.

    Example:
        >>> clean_text("one\ntwo\x00 5 %")
        'one\ntwo� 5\xa0%'
    """
    text = "\n".join(clean(line, limit=20_000) for line in text.split("\n"))
    return re.sub(r"(?<=\d) (?=%)", "\xa0", text)


def _view(s: Summary) -> dict[str, Any]:
    """Everything the template prints, by name."""
    from markupsafe import Markup

    d = s.data
    view = {
        "d": d,
        "css": Markup((_FOLDER / "report.css").read_text(encoding="utf-8")),  # noqa: S704 our own file
        "kicker": [t for t in (d.data.name, d.created, _duration(d.seconds), d.machine) if t],
        "lead": _lead(s),
        "verdict": verdict(d, s),
        "words": plain_words(d, s)[len(verdict(d, s)) :],
        "headline": _headline(s),
        "many": len(s.ranked) > 1,
        "table": _table(s),
        "spread": any(len(r.arm.seeds) > 1 for r in s.ranked),
        "reference": s.of(d.reference_arm).arm.title if d.reference_arm else "",
        "colours": {"raw": css(VERMILLION), "calibrated": css(BLUE)},
        "swatches": list(swatches(d.modalities)),
        "unit": "%" if d.primary.percent else d.primary.unit,
        "unimodal": [_unimodal(s, r) for r in s.unimodal],
        "data": _data(s),
        "notes": [*d.notes, *_standing_notes(s)],
        "arm_notes": [(a.title, a.note) for a in d.arms if a.note],
        "more": _more(s),
        "inputs": _inputs(s),
        **_figures(s),
    }
    names = {
        "arms": "Arms" if view["many"] else "Scores",
        "subsets": "Subsets",
        "missing": "Missing inputs",
        "calibration": "Calibration",
        "broken": "Broken inputs",
        "inputs": "Inputs used",
        "weights": "Weights",
        "headroom": "Headroom",
        "data": "Data",
        "failures": "Failures",
        "made": "How it was made",
    }
    absent = {
        "subsets": not view["subsets"],
        "missing": not (view["curve"] or view["forest"]),
        "calibration": not view["reliability"],
        "broken": not view["corruption"],
        "inputs": not view["inputs"]["lines"],
        "weights": not view["weights"],
        "headroom": not (view["headroom"] or d.headroom),
    }
    return {**view, "sections": [(k, n) for k, n in names.items() if not absent.get(k)]}


def _figures(s: Summary) -> dict[str, Any]:
    """Draw every figure there are numbers for."""
    from markupsafe import Markup

    with drawing():
        heat, bars = subset_heat(s), subset_bars(s)
        out: dict[str, Any] = {
            "curve": Markup(drop_curve(s)),  # noqa: S704 matplotlib escapes the text it draws
            "forest": [(head, Markup(svg)) for head, svg in forest(s)],  # noqa: S704
            "weights": [Markup(svg) for svg in weight_bars(s)],  # noqa: S704
            "headroom": Markup(headroom(s)),  # noqa: S704
        }
        whose = _calibrated_arm(s)
        panels = [Markup(svg) for svg in reliability(s, whose)] if whose else []  # noqa: S704
        broken = Markup(corruption_heat(s))  # noqa: S704
    shown, total = len(pick(s.subsets, s.data.modalities)), len(s.subsets)
    some = "" if shown == total else f" {shown} of {total} subsets are drawn; all of them are in report.csv."
    caption = "Dots: which inputs are present. Darker is better; the best of each subset is outlined." + some
    if bars:
        oracle = " The red tick is a model trained for that subset." if s.data.oracles else ""
        caption = f"Dots: which inputs are present.{oracle}{some}"
    deck = f"{_upper(s.data.primary.label)} when exactly these inputs are given, on the rows that have them."
    out["subsets"] = {"svg": Markup(heat or bars), "caption": caption, "deck": deck} if heat or bars else None  # noqa: S704
    out["forest_deck"] = (
        f"Differences are to {s.of(s.data.reference_arm).arm.title}, with 95 % intervals; a hollow grey dot is a tie, "
        "its interval includes zero."
        if s.data.reference_arm
        else ""
    )
    out["reliability"] = {"panels": panels, "deck": _reliability_deck(s, whose)} if panels else None
    legend = "Darker is better; the best arm of each case is outlined." if len(s.ranked) > 1 else "Darker is better."
    out["corruption"] = {"svg": broken, "legend": legend} if broken else None
    return out


def _calibrated_arm(s: Summary) -> str | None:
    """The arm whose reliability is drawn: the default, else the best, else the first that has one."""
    have = {r.arm for r in s.data.reliability}
    best = s.best()
    asked = (s.data.default, best.arm.name if best else None, *(r.arm.name for r in s.ranked))
    return next((n for n in asked if n in have), None)


def _reliability_deck(s: Summary, arm: str | None) -> str:
    title = s.data.arm(arm).title if arm else ""
    whose = f" of {title}" if len(s.ranked) > 1 else ""
    if s.data.task == "regression":
        return f"How often the truth lies inside intervals{whose} of a nominal level, per set of present inputs."
    return f"How often predictions{whose} are right at each level of confidence, per set of present inputs."


def _lead(s: Summary) -> str:
    """Say in a sentence what was run and on what."""
    d, arms = s.data, len(s.ranked)
    seeds = max((len(r.arm.seeds) for r in s.ranked), default=1)
    what = f"{arms} arms" if arms > 1 else s.ranked[0].arm.title if s.ranked else "Nothing"
    often = sum(len(r.arm.seeds) == seeds for r in s.ranked)  # a baseline without a draw runs once
    times = f" with {seeds} seeds" if seeds > 1 else ""
    if times and arms > 1:
        times = f"{times} each" if often == arms else f", {often} of them{times},"
    rows = ", ".join(f"{n:,} {split}" for split, n in d.data.rows.items())
    on = f" on {d.data.name}" if d.data.name else ""
    inputs = d.modalities[0] if len(d.modalities) == 1 else f"{', '.join(d.modalities[:-1])} and {d.modalities[-1]}"
    subsets = f", scored on {len(s.subsets)} combinations of them" if len(s.subsets) > 1 else ""
    goal = f" {d.data.target}" if d.data.target else " the target"
    text = f"{what}{times}{on}: {d.task} of{goal} from {inputs}{subsets}."
    return _upper(text) + (f" Rows: {rows}." if rows else "")


def _headline(s: Summary) -> dict[str, Any]:
    """Three or four numbers of the default arm (or the best, or the only one)."""
    metric = s.data.primary
    row = next((r for r in s.ranked if r.arm.name == s.data.default and r.values["complete"]), None) or s.best()
    if row is None:
        return {"arm": "", "figures": []}
    unit = "%" if metric.percent else metric.unit
    names = {"complete": "complete inputs", "mean": f"mean of {len(s.subsets)} subsets"}
    names["worst"] = f"worst: {clean(subset_label(row.worst_subset or (), s.data.modalities), 40)}"
    keys = ("complete", "mean", "worst") if len(s.subsets) > 1 else ("complete",) if s.complete else ("mean",)
    if len(s.subsets) == 1:
        names["mean"] = clean(" + ".join(s.subsets[0]), 40)
    out = [{"name": names[k], "value": format_value(metric, row.mean(k)), "unit": unit} for k in keys if row.values[k]]
    if row.values["ece_calibrated"]:
        out.append({"name": "ECE after calibration", "value": f"{row.mean('ece_calibrated'):.3f}", "unit": ""})
    if row.values["coverage"] and s.data.nominal_coverage is not None:
        name = f"coverage, promised {s.data.nominal_coverage:.0%}".replace("%", " %")
        out.append({"name": name, "value": f"{100 * row.mean('coverage'):.1f}", "unit": "%"})
    return {"arm": row.arm.title if len(s.ranked) > 1 else "", "figures": out}


def _table(s: Summary) -> dict[str, Any]:
    shown = columns(s)
    # A column of costs that no arm has is left out by ``columns``; the page has room for all others.
    rows = []
    for i, row in enumerate(s.ranked):
        cells = []
        for c in shown:
            text, sd = cell(s.data.primary, c, row.values.get(c.key))
            cells.append({"value": text, "sd": sd, "mark": row.marks.get(c.key, "")})
        first_baseline = row.arm.kind == "baseline" and i and s.ranked[i - 1].arm.kind != "baseline"
        classes = " ".join(["default"] * (row.arm.name == s.data.default) + ["break"] * bool(first_baseline))
        rows.append({"name": row.arm.title, "tag": _tag(s, row), "cells": cells, "classes": classes})
    spread = " ± is one standard deviation over seeds." if any(len(r.arm.seeds) > 1 for r in s.ranked) else ""
    marks = " ● best of the column; ○ ties with it: the 95 % interval of their difference includes zero." * (
        len(s.ranked) > 1
    )
    note = "; ".join(f"{_upper(c.head)}{' ' + c.unit if c.key.startswith('ece') else ''}: {c.help}" for c in shown)
    lower = "" if s.data.primary.higher_is_better else ", lower is better"
    deck = f"{_upper(s.data.primary.label)} on the {judged_rows(s.data)}{lower}."
    return {"columns": shown, "rows": rows, "note": f"{note}.{spread}", "deck": f"{deck}{marks}"}


def _tag(s: Summary, row: ArmSummary) -> str:
    tags = ["default"] * (row.arm.name == s.data.default and "default" not in row.arm.title.lower())
    tags += ["reference"] * (row.arm.name == s.data.reference_arm and "reference" not in row.arm.title.lower())
    tags += ["baseline"] * (row.arm.kind == "baseline")
    return ", ".join(tags)


def _unimodal(s: Summary, row: ArmSummary) -> dict[str, str]:
    by_seed = {k: v for k, t in s.tables.get(row.arm.name, {}).items() if len(t) and math.isfinite(v := _own(row, t))}
    value = Spread.of(by_seed)
    mean = math.nan if value is None else value.mean
    sd = "" if value is None or not math.isfinite(value.sd) else format_value(s.data.primary, value.sd, like=mean)
    return {"name": row.arm.title, "value": format_value(s.data.primary, mean), "sd": sd}


def _own(row: ArmSummary, table: dict[tuple[str, ...], float]) -> float:
    """The score of a unimodal arm on its own input."""
    if row.arm.uses:
        return table.get(row.arm.uses, math.nan)
    single = [v for c, v in table.items() if len(c) == 1]
    return single[0] if len(single) == 1 else math.nan


def _data(s: Summary) -> dict[str, Any]:
    d = s.data.data
    facts = []
    if d.target:
        classes = f", {len(d.classes)} {'labels' if s.data.task == 'multilabel' else 'classes'}" if d.classes else ""
        facts.append(f"Target: {d.target}{classes}.")
    if d.grouping and d.grouping != "row":
        facts.append(f"Splits and intervals keep each {d.grouping} together.")
    facts += [t for t in (d.missing_rule, d.licence) if t]
    patterns = sorted(d.patterns, key=lambda p: -p[1])
    most = max((n for _, n in patterns), default=1) or 1
    counts = sorted(d.class_counts.items(), key=lambda c: -c[1])
    top = max((n for _, n in counts), default=1) or 1
    splits = dict.fromkeys(k for m in d.modalities for k in m.missing)
    return {
        "facts": facts,
        "splits": list(splits),
        "patterns": [{"subset": c, "rows": n, "share": n / most} for c, n in patterns[:12]],
        "more_patterns": max(len(patterns) - 12, 0),
        "classes": [{"name": c, "rows": n, "share": n / top} for c, n in counts[:20]],
        "more_classes": max(len(counts) - 20, 0),
    }


def _inputs(s: Summary) -> dict[str, Any]:
    arm = arm_of(s)
    whose = f" by {s.data.arm(arm).title}, first seed" if arm and len(s.ranked) > 1 else ""
    deck = (
        f"What each input is worth{whose}, on the test rows that have it: its average gain over what else a row has "
        "(Shapley value), and what is lost when it is taken away, shuffled, or comes from a row with another label."
    )
    unit = "points" if s.data.primary.percent else s.data.primary.label
    multilabel = " Of a multilabel task: the share of right labels." if s.data.task == "multilabel" else ""
    return {"lines": lines(s), "ways": WAYS, "deck": deck, "unit": unit, "note": NOTE + multilabel}


def _more(s: Summary) -> dict[str, Any]:
    """The measures that the table of arms leaves out: means over subsets, then those of a whole arm."""
    tables = {k: table_of(s.data, k) for k in _MORE}
    whole: dict[str, dict[str, list[float]]] = {}
    for r in s.data.seed_records:
        for k, v in r.metrics.items():
            if math.isfinite(v) and not k.endswith("_pairs"):
                whole.setdefault(k, {}).setdefault(r.arm, []).append(v)
    shown = [k for k in _MORE if tables[k]]
    rows = []
    for row in s.ranked:
        cells = []
        for k in shown:
            seeds = tables[k].get(row.arm.name, {}).values()
            values = [t[c] for t in seeds for c in s.subsets if c in t]
            cells.append(number(sum(values) / len(values)) if values else "–")
        for k in whole:
            found = whole[k].get(row.arm.name, [])
            cells.append(number(sum(found) / len(found)) if found else "–")
        if any(r.arm.drop_rate is not None for r in s.ranked):
            rate = row.arm.drop_rate
            cells.append("–" if rate is None else f"{100 * rate:.1f} %")
        rows.append({"name": row.arm.title, "cells": cells})
    names = [_MORE[k] for k in shown] + [k.replace("_", " ") for k in whole]
    names += ["inputs dropped in training"] * any(r.arm.drop_rate is not None for r in s.ranked)
    note = "Means over subsets and seeds. Lower is better for NLL, Brier, ECE, AURC and AUGRC."
    return {"columns": names, "rows": rows if names else [], "note": note}


def _standing_notes(s: Summary) -> list[str]:
    """What every reader must know about numbers of this kind."""
    out = []
    if s.data.paired:
        out.append(
            f"Intervals of differences to the reference are paired bootstrap intervals over "
            f"{s.data.data.grouping or 'row'}s of the test split."
        )
    elif any(len(r.arm.seeds) > 1 for r in s.ranked) and len(s.ranked) > 1:
        out.append("Intervals cover the spread over seeds only, not the choice of test rows.")
    if len(s.ranked) > 2:
        out.append(f"Intervals are not corrected for comparing {len(s.ranked)} arms.")
    if s.data.nominal_coverage is not None:
        out.append("Coverage is promised on average over rows, when missingness does not depend on input or label.")
    if all(len(r.arm.seeds) < 2 for r in s.ranked):
        out.append("One seed: the spread between trainings is unknown.")
    return [t for t in out if t not in s.data.notes]


def _numbers(s: Summary) -> list[dict[str, Any]]:
    """The table of arms for the JSON."""
    out = []
    for row in (*s.ranked, *s.unimodal):
        values = {k: {"mean": v.mean, "sd": v.sd} for k, v in row.values.items() if v is not None}
        out.append({"arm": row.arm.name, "values": values, "worst_subset": row.worst_subset, "marks": row.marks})
    return out


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
