"""What a run says about abstention: which share of rows it flags, and which combinations of inputs it always flags.

The report of a run, the console and ``polyfuse predict`` print the same sentences.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from polyfuse.calibrate.abstain import Abstention
from polyfuse.report.format import number
from polyfuse.report.summary import subset_label

NAMED = 4
"""Combinations named in a sentence; the others are counted."""


def flagged_share(abstention: Abstention, own: Mapping[str, Any], rows: str, *, scale: float = 1.0) -> str:
    """Say how many of the judged rows are flagged, and how wrong the others are.

    Args:
        abstention: Of the run.
        own: ``own_record`` of the rows as found.
        rows: Names them: "60 test rows".
        scale: Standard deviation that undoes the target's standardisation (regression).

    Example:
        >>> fitted = Abstention("classification", 0.1, {1: 0.8})
        >>> for part in flagged_share(fitted, {"abstained": 0.25, "risk_accepted": 0.0444}, "60 test rows").split("; "):
        ...     print(part)
        Abstention flags 25.0 % of the 60 test rows as too unsure
        4.4 % of the answers kept are wrong (wanted: at most 10 %).
        >>> flagged_share(fitted, {"abstained": 1.0, "risk_accepted": None}, "60 test rows")
        'Abstention flags all of the 60 test rows as too unsure.'
    """
    share, loss = own.get("abstained"), own.get("risk_accepted")
    if share is None:
        return ""
    count = "none" if share == 0 else "all" if share == 1 else f"{100 * share:.1f} %"
    text = f"Abstention flags {count} of the {rows} as too unsure"
    if loss is None:
        return f"{text}."
    if abstention.task == "regression":
        wanted = number(abstention.risk * scale**2)
        return f"{text}; the mean squared error of the values kept is {number(loss)} (wanted: at most {wanted})."
    kept = "labels" if abstention.task == "multilabel" else "answers"
    return f"{text}; {100 * loss:.1f} % of the {kept} kept are wrong (wanted: at most {100 * abstention.risk:g} %)."


def always_flagged(abstention: Abstention, modalities: Sequence[str], codes: Iterable[int] | None = None) -> str:
    """Say which combinations of inputs are flagged whatever the confidence, why, and what to change; empty if none are.

    Args:
        abstention: Of the run.
        modalities: Names; bit j of a code is modality j.
        codes: Combinations asked about; None = all that were calibrated. Nothing present (0) needs no explanation.

    Example:
        >>> fitted = Abstention("classification", 0.1, {1: 0.8, 2: 0.7, 3: math.inf}, {1: 40, 2: 38, 3: 12}, {3: 21})
        >>> text = always_flagged(fitted, ("a", "b"))
        >>> print(text.partition(": ")[0])
        However sure the model is, rows with complete inputs (12 validation rows, about 21 needed) are always flagged
    """
    asked = [c for c in dict.fromkeys(abstention.thresholds if codes is None else codes) if c]
    silent = [c for c in asked if math.isinf(abstention.thresholds.get(c, math.inf))]
    if not silent:
        return ""
    silent.sort(key=lambda c: (-c.bit_count(), c))
    named = [_label(c, modalities) + _evidence(abstention, c) for c in silent[:NAMED]]
    more = len(silent) - NAMED
    if more > 0:
        named.append(f"{more} more combination{'s' if more > 1 else ''} of inputs")
    which = " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)
    rows = (
        f"rows with {which} are always flagged" if len(silent) < len(asked) else f"every row is flagged, with {which}"
    )
    shown = {
        "classification": f"at most {100 * abstention.risk:g} % of their answers are wrong",
        "multilabel": f"at most {100 * abstention.risk:g} % of their labels are wrong",
        "regression": f"their squared error is at most {abstention.risk:g} of the target's variance",
    }
    return (
        f"However sure the model is, {rows}: too few validation rows, or too many mistakes in them, to show that "
        f"{shown[abstention.task]}. To change it: more validation rows (more data, or data.split.ratios) or a higher "
        "calibrate.risk, then train again."
    )


def _label(code: int, modalities: Sequence[str]) -> str:
    label = subset_label(tuple(m for j, m in enumerate(modalities) if code >> j & 1), tuple(modalities))
    return "complete inputs" if label == "complete" else label


def _evidence(abstention: Abstention, code: int) -> str:
    """In brackets: rows there were, rows that would do."""
    if code not in abstention.thresholds:
        return " (never calibrated)"
    if code not in abstention.rows:  # a run of before they were kept
        return ""
    needed = abstention.needed.get(code)
    enough = "wrong too often at any confidence" if needed is None else f"about {needed:,} needed"
    return f" ({abstention.rows[code]:,} validation rows, {enough})"
