"""Put the figures of the studies into docs/studies.md: verdict, goals, main table, ingredients, recommendations.

Run: ``polyfuse study aecf --scale small && polyfuse study imbalance --scale small``, then
``python docs/make_studies.py runs/study-aecf-small/tables.json runs/study-imbalance-small/tables.json``. The tables of
``choice`` go the same way.
"""

import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marked import put

CHOSEN = (
    "Recommended is, of the techniques that surely gain on the worst subset and surely lose nothing, the one with the "
    "best mean over subsets among those tied with the largest gain. The choice was made on these test rows: its gain "
    "is too high on average, and its interval is not corrected for the choice."
)
KINDS = (
    "Mean gain over the reference in points, on the worst subset and in the mean over subsets; in brackets in how many "
    "situations it is surely better / worse."
)
PAGE = Path(__file__).parent / "studies.md"
COLUMNS = (
    ("complete", "complete %", 100, 1),
    ("mean", "mean %", 100, 1),
    ("worst", "worst %", 100, 1),
    ("regret", "regret points", 100, 1),
    ("nll", "NLL", 1, 3),
    ("ece", "ECE", 1, 3),
    ("coverage", "coverage %", 100, 1),
    ("noise", "noise %", 100, 1),
    ("broken", "held out %", 100, 1),
    ("seconds", "train s", 1, 2),
)
Report = Mapping[str, Any]


def labels(report: Report) -> dict[str, str]:
    """Arm to label."""
    return {arm["name"]: arm["label"] for arm in report["arms"]}


def judged(report: Report) -> list[str]:
    """The data sets that decide: measured ones, unchanged; all where there are none."""
    real = [d["name"] for d in report["data"] if d["real"] and d["plain"]]
    return real or [d["name"] for d in report["data"]]


def signed(value: float, digits: int = 1) -> str:
    """With a sign, and a minus that is one."""
    return f"{value:+.{digits}f}".replace("-", "−")


def pool_words(report: Report) -> str:
    """What the table of all arms is over, and on which data sets it has no regret."""
    sets = judged(report)
    if report["situations"]:
        counts = [f"{len(names)} {kind}" for kind, names in kinds(report).items()]
        over = f"Mean over {len(sets)} situations ({', '.join(counts)}), each counting the same"
    else:
        over = f"Mean over {len(sets)} data sets"
    text = f"{over}; differences to the reference with 95 % intervals."
    tables = [t for t in report["tables"] if t["data"] in sets and t["oracle"]]
    blind = [t for t in tables if not any("regret" in row["values"] for row in t["rows"])]
    if blind:
        listed = ", ".join(f"{t['data']} (noise floor {100 * t['floor']:.1f} points)" for t in blind)
        text += f" Regret: without {listed}."
    return text


def kinds(report: Report) -> dict[str, list[str]]:
    """Situations by what was done to one input: the first word of the variant."""
    out: dict[str, list[str]] = {}
    for name in judged(report):
        out.setdefault(name.partition(", ")[2].partition(" ")[0] or "as it is", []).append(name)
    return dict(sorted(out.items(), key=lambda item: (item[0] == "as it is", -len(item[1]))))


def by_kind(report: Report) -> list[str]:
    """Mean gain of every technique in each kind of situation, and in how many it is surely better and worse."""
    groups, every = kinds(report), {(d["arm"], d["data"], d["quantity"]): d for d in report["differences"]}
    quantities = ("worst", "mean")
    heads = ["technique", *(f"{kind} ({len(sets)}): {q}" for kind, sets in groups.items() for q in quantities)]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for arm in report["arms"]:
        cells = []
        for sets in groups.values():
            for quantity in quantities:
                found = [d for name in sets if (d := every.get((arm["name"], name, quantity))) is not None]
                if not found:
                    cells.append("–")
                    continue
                better, worse = (sum(d["verdict"] == verdict for d in found) for verdict in ("better", "worse"))
                cells.append(f"{signed(100 * sum(d['mean'] for d in found) / len(found))} ({better} / {worse})")
        if any(cell != "–" for cell in cells):
            lines.append(f"| {arm['label']} | " + " | ".join(cells) + " |")
    return lines


def main_table(report: Report) -> list[str]:
    """Every arm, mean over the data sets that decide."""
    names, sets = labels(report), set(judged(report))
    pooled = {d["arm"]: d for d in report["differences"] if not d["data"] and d["quantity"] == "mean"}
    heads = ["arm", *(head for _, head, _, _ in COLUMNS), "mean − ref", "better / worse", "passes"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for arm in report["arms"]:
        if arm["kind"] == "unimodal":
            continue
        rows = [row for t in report["tables"] if t["data"] in sets for row in t["rows"] if row["arm"] == arm["name"]]
        cells = []
        for key, _, scale, digits in COLUMNS:
            found = [row["values"][key]["mean"] for row in rows if key in row["values"]]
            cells.append(f"{scale * sum(found) / len(found):.{digits}f}".replace("-", "−") if found else "–")
        d = pooled.get(arm["name"])
        cells.append(f"{signed(100 * d['mean'])} ({signed(100 * d['low'])} to {signed(100 * d['high'])})" if d else "–")
        each = [
            e
            for e in report["differences"]
            if e["arm"] == arm["name"] and e["quantity"] == "mean" and e["data"] in sets
        ]
        counts = [sum(e["verdict"] == verdict for e in each) for verdict in ("better", "worse")]
        cells.append(f"{counts[0]} / {counts[1]}" if each else "–")
        cells.append(next((f"{row['values']['passes']['mean']:.0f}" for row in rows if "passes" in row["values"]), "–"))
        name = names[arm["name"]]
        lines.append("| " + " | ".join([f"**{name}**" if arm["name"] == report["default"] else name, *cells]) + " |")
    return lines


def goals(report: Report) -> list[str]:
    """Met or missed, with the figure and the details."""
    lines = ["| goal | | figure |", "|---|---|---|"]
    for goal in report["goals"]:
        state = ("met" if goal["met"] else "**missed**") if goal.get("measured", True) else "not measured"
        lines.append(f"| {goal['text']} | {state} | {goal['figure']} |")
    for goal in report["goals"]:
        if goal["details"]:
            lines += ["", f"*{goal['text']}*", "", *(f"- {line}" for line in goal["details"])]
    return lines


def ingredients(report: Report) -> list[str]:
    """What each ingredient buys: pooled difference over the data sets that decide."""
    lines = ["| ingredient | mean over subsets | worst subset | complete | NLL |", "|---|---:|---:|---:|---:|"]
    for item in report["ingredients"]:
        if not item["effects"]:  # its arms did not run at this scale
            continue
        cells = []
        for quantity in ("mean", "worst", "complete", "nll"):
            d = next((d for d in item["effects"] if d["quantity"] == quantity and not d["data"]), None)
            if d is None:
                cells.append("–")
                continue
            scale, digits = (1, 3) if quantity == "nll" else (100, 1)
            mean, low, high = (signed(scale * d[key], digits) for key in ("mean", "low", "high"))
            text = f"{mean} ({low} to {high})"
            cells.append(text if d["low"] <= 0 <= d["high"] else f"**{text}**")
        lines.append(f"| {item['label']} | " + " | ".join(cells) + " |")
    return lines


def families(report: Report) -> list[str]:
    """Early, late and hybrid: strengths and weaknesses."""
    names = labels(report)
    return [
        f"- **{f['label']}** ({names.get(f['arm'], f['arm'])}): strong: {'; '.join(f['strengths']) or 'nothing'}. "
        f"Weak: {'; '.join(f['weaknesses']) or 'nothing'}."
        for f in report["families"]
    ]


def situations(report: Report) -> list[str]:
    """Per situation the recommendation, then every technique before and after."""
    names = labels(report)
    lines = []
    for s in report["situations"]:
        lines += ["", f"**{s['data']}**: {s['sentence']}", ""]
        singles = list(dict.fromkeys(m for t in s["techniques"] for m in t["alone"]))
        heads = [
            "technique",
            "complete",
            "mean",
            "worst",
            *(f"{m} alone" for m in singles),
            *(f"{m} share" for m in singles),
            "ECE",
        ]
        lines += ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
        for number, t in enumerate(s["techniques"]):
            for place in (0, 1) if number == 0 else (1,):
                values = [t["values"].get(k, [math.nan] * 2)[place] for k in ("complete", "mean", "worst")]
                values += [t["alone"].get(m, [math.nan] * 2)[place] for m in singles]
                shares = [t["shapley"].get(m, [math.nan] * 2)[place] for m in singles]
                ece = t["values"].get("ece", [math.nan] * 2)[place]
                name = names[s["before"]] if place == 0 else names[t["arm"]]
                cells = [f"{100 * v:.1f}" for v in values] + [f"{v:.2f}" for v in shares] + [f"{ece:.3f}"]
                lines.append(f"| {name} | " + " | ".join(c.replace("nan", "–").replace("-", "−") for c in cells) + " |")
    return lines


def section(report: Report) -> str:
    """What stands between the marks of one study."""
    rows = ", ".join(f"`{d['name']}`" for d in report["data"])
    # Neither the number of processes nor an arm done again changes what the records hold.
    commands = "; ".join(f"`{re.sub(r' --(only|workers) [^ ]+', '', c)}`" for c in report["commands"])
    lines = [f"Printed by {commands}: {report['seeds']} seeds; {rows}.", ""]
    lines += [f"> {line}" for line in report["verdict"]]
    if report["goals"]:
        lines += ["", "### Goals of the default recipe", "", *goals(report)]
    lines += ["", "### All arms", "", pool_words(report), "", *main_table(report)]
    if report["situations"]:
        lines += [
            "",
            "### By kind of situation",
            "",
            KINDS,
            "",
            *by_kind(report),
        ]
    if report["ingredients"]:
        lines += [
            "",
            "### What each ingredient buys",
            "",
            "Points (NLL: nats, positive is better); bold: the interval excludes zero.",
            "",
        ]
        lines += ingredients(report)
    if report["families"]:
        lines += ["", "### Early, late, hybrid", "", *families(report)]
    if report["situations"]:
        lines += ["", "### Situation by situation", "", CHOSEN, *situations(report)]
    if report["lost"]:
        lines += ["", "### What lost", "", *(f"- {line}" for line in report["lost"])]
    if report["notes"]:
        lines += ["", "### To judge the numbers", "", *(f"- {line}" for line in report["notes"])]
    return "\n".join(lines)


def main(paths: list[str]) -> None:
    """Write the part of the page that belongs to each report."""
    for path in paths:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        put(PAGE, report["name"], section(report))


if __name__ == "__main__":
    main(sys.argv[1:])
