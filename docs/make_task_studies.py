"""Put the figures of the task studies into docs/task-studies.md: verdict and tables of each, between its marks.

Run: ``polyfuse study selfsup && polyfuse study finetune``, then
``python docs/make_task_studies.py runs/study-selfsup-small/tables.json runs/study-finetune-small/tables.json``.
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marked import put

PAGE = Path(__file__).parent / "task-studies.md"
MARKS = {"better": " ▲", "worse": " ▼"}
OWN = re.compile(r" --(only|workers|out) ('[^']*'|[^ ]+)")
Report = Mapping[str, Any]


def cell(item: Mapping[str, str]) -> str:
    """A cell: bold where it is the best of its column."""
    text = f"**{item['text']}**" if item["mark"] == "best" else item["text"]
    return f"{text} {item['small']}".strip() + MARKS.get(item["mark"], "")


def table(found: Mapping[str, Any]) -> list[str]:
    """A heading, the columns with their units, the rows."""
    heads = [f"{head} ({unit})" if unit else head for head, unit in found["columns"]]
    lines = ["", f"*{found['title']}*", "", "| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for row in found["rows"]:
        lines.append("| " + " | ".join([row["name"], *map(cell, row["cells"])]) + " |")
    return lines


def section(report: Report) -> str:
    """What stands between the marks of one study."""
    # Neither the number of processes nor an arm done again changes what the records hold.
    commands = "; ".join(f"`{re.sub(OWN, '', c)}`" for c in report["commands"])
    minutes = report["seconds"] / 60
    lines = [
        f"Printed by {commands}: {report['seeds']} seeds, {minutes:.0f} minutes of one core. {report['question']}",
        "",
    ]
    lines += [line for text in report["verdict"] for line in (f"> {text}", ">")][:-1]
    for found in report["tables"]:
        if found["rows"]:
            lines += table(found)
    lines += ["", "How it was done:", "", *(f"- {text}" for text in report["protocol"])]
    if report["failed"]:
        lines += ["", "Failed:", "", *(f"- {text}" for text in report["failed"])]
    return "\n".join(lines)


def main(paths: list[str]) -> None:
    """Write the part of the page that belongs to each report."""
    for path in paths:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        put(PAGE, report["name"], section(report))


if __name__ == "__main__":
    main(sys.argv[1:])
