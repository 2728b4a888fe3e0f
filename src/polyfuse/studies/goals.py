"""The goals of the default recipe, one by one, each with the figure that says whether it was met.

Only real data sets as they are count. "Better" and "worse" mean that the paired 95 % interval excludes zero.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from polyfuse.evaluate.intervals import holm
from polyfuse.report.study_records import Difference, Goal, StudyReport
from polyfuse.report.study_words import interval
from polyfuse.studies.ledger import Ledger

REGRET = 0.01
MOST_NOISE = 0.05
"""The largest noise floor of a data set that may judge regret: above it, the floor and not the arm decides."""
CORRUPTED = 0.04
LEAST_ROWS = 200
LEVEL = 0.9

TEXTS = {
    "complete": "Never significantly worse on complete inputs.",
    "mean": "Mean-over-subsets accuracy better or tied everywhere and better on at least half.",
    "worst": "Worst-subset accuracy better or tied everywhere and better on at least half.",
    "regret": "Worst-subset regret against per-subset oracles, less its noise floor (oracle against reseeded oracle), "
    "<= 1 point on seed means.",
    "nll": "Mean NLL over subsets better on every data set.",
    "broken": "Unflagged held-out corruption: worst-modality accuracy >= +4 points on average for slots and no data "
    "set worse.",
    "coverage": "Conformal coverage at 90 % within beta-binomial bounds (Holm over masks) on every data set with "
    ">= 200 calibration rows.",
}


def goals(report: StudyReport, ledger: Ledger) -> list[Goal]:
    """Every goal, met or missed."""
    found = {q: _on_judged(report, q) for q in ("complete", "mean", "worst", "nll", "broken")}
    expected = len(report.judged)
    return [
        _never_worse(found["complete"], expected),
        _better_on_half(found["mean"], "mean", expected),
        _better_on_half(found["worst"], "worst", expected),
        _regret(report),
        _better_everywhere(found["nll"], expected),
        _corrupted(found["broken"], expected),
        _covered(report, ledger),
    ]


def coverage_p(covered: int, test_rows: int, calibration_rows: int, level: float = LEVEL) -> float:
    """Two-sided p-value of a count of covered rows, when calibration and test rows are exchangeable.

    The coverage of split conformal prediction given its calibration rows is Beta(k, n + 1 - k) with k = ceil((n + 1)
    level), so the count among new rows is beta-binomial (Vovk 2012, https://arxiv.org/abs/1209.2673; Angelopoulos and
    Bates 2021, https://arxiv.org/abs/2107.07511).

    Example:
        >>> coverage_p(180, 200, 400) > 0.5, coverage_p(150, 200, 400) < 0.001
        (True, True)
    """
    k = math.ceil((calibration_rows + 1) * level - 1e-9)
    if k > calibration_rows:
        return 1.0  # too few rows: every answer is in the set
    law = _beta_binomial(test_rows, k, calibration_rows + 1 - k)
    return float(min(1.0, 2 * min(law[: covered + 1].sum(), law[covered:].sum())))


def _beta_binomial(n: int, a: int, b: int) -> NDArray[np.float64]:
    """``(n + 1,)`` probabilities of 0 to n."""

    def beta(x: int, y: int) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    logs = [beta(k + a, n - k + b) - beta(a, b) - math.log(n + 1) - beta(k + 1, n - k + 1) for k in range(n + 1)]
    return np.exp(np.array(logs))


def _on_judged(report: StudyReport, quantity: str) -> list[Difference]:
    every = (report.difference(report.default, quantity, d.name) for d in report.judged)
    return [d for d in every if d is not None]


def _not_measured(key: str, why: str = "") -> Goal:
    return Goal(TEXTS[key], False, "not measured", (why,) if why else (), measured=False)


def _line(d: Difference) -> str:
    basis = "" if d.basis == "rows and seeds" else f" over {d.basis}"
    return f"{d.data}: {interval(d)}{basis}, {d.verdict}"


def _counted(found: Sequence[Difference]) -> str:
    count = {v: sum(d.verdict == v for d in found) for v in ("better", "tied", "worse")}
    return f"better on {count['better']}, tied on {count['tied']}, worse on {count['worse']} of {len(found)}"


def _details(found: Sequence[Difference], expected: int) -> tuple[str, ...]:
    lines = tuple(_line(d) for d in found)
    return lines if len(found) == expected else (*lines, f"not measured on {expected - len(found)} data sets")


def _never_worse(found: Sequence[Difference], expected: int) -> Goal:
    if not found:
        return _not_measured("complete")
    met = len(found) == expected and all(d.verdict != "worse" for d in found)
    return Goal(TEXTS["complete"], met, _counted(found), _details(found, expected))


def _better_on_half(found: Sequence[Difference], key: str, expected: int) -> Goal:
    if not found:
        return _not_measured(key)
    better = sum(d.verdict == "better" for d in found)
    met = len(found) == expected and all(d.verdict != "worse" for d in found) and 2 * better >= len(found)
    return Goal(TEXTS[key], met, _counted(found), _details(found, expected))


def _better_everywhere(found: Sequence[Difference], expected: int) -> Goal:
    if not found:
        return _not_measured("nll")
    met = len(found) == expected and all(d.verdict == "better" for d in found)
    return Goal(TEXTS["nll"], met, _counted(found), _details(found, expected))


def _regret(report: StudyReport) -> Goal:
    net, lines, asked, blind = [], [], 0, []
    for data in report.judged:
        table = report.table(data.name)
        row = table.row(report.default)
        if table.floor > MOST_NOISE:
            blind.append(f"{data.name} ({100 * table.floor:.1f})")
            continue
        asked += 1
        if row is None or "regret" not in row.values or math.isnan(table.floor):
            continue
        value = row.values["regret"].mean
        net.append(value)
        raw = f"{100 * (value + table.floor):.1f} less {100 * table.floor:.1f} of noise"
        lines.append(f"{data.name}: {100 * value:.1f} points ({raw})".replace("-", "−"))
    noisy = f"a noise floor above {100 * MOST_NOISE:.0f} points cannot judge regret: {', '.join(blind)}"
    if not net:
        return _not_measured("regret", noisy if blind else "no oracles, or none with other seeds")
    if len(net) < asked:
        lines.append(f"not measured on {asked - len(net)} data sets")
    figure = f"at most {100 * max(net):.1f} points; {sum(v <= REGRET for v in net)} of {len(net)} data sets within 1"
    if blind:
        lines.append(noisy)
        figure += f"; not judged, noise floor above {100 * MOST_NOISE:.0f}: {', '.join(blind)}"
    met = len(net) == asked and max(net) <= REGRET
    return Goal(TEXTS["regret"], met, figure.replace("-", "−"), tuple(lines))


def _corrupted(found: Sequence[Difference], expected: int) -> Goal:
    if not found:
        return _not_measured("broken")
    mean = sum(d.mean for d in found) / len(found)
    met = len(found) == expected and mean >= CORRUPTED and all(d.verdict != "worse" for d in found)
    figure = f"{100 * mean:+.1f} points on average; {_counted(found)}".replace("-", "−")
    return Goal(TEXTS["broken"], met, figure, _details(found, expected))


def _covered(report: StudyReport, ledger: Ledger) -> Goal:
    """Holm runs over the masks and seeds of a data set: it needs no independence."""
    lines, outside, asked, skipped = [], 0, 0, []
    for data in report.judged:
        rows = _calibration_rows(report, ledger, data.name)
        entries = [
            e
            for e in ledger.entries(data.name, "subset", "coverage")
            if e.arm == report.default and e.stage == "lac mask" and rows.get(e.subset, 0) >= LEAST_ROWS
        ]
        if not entries:
            skipped.append(data.name)
            continue
        asked += 1
        p = holm([coverage_p(round(e.value * e.n), e.n, rows[e.subset]) for e in entries])
        out = [e for e, value in zip(entries, p, strict=True) if value < 0.05]
        outside += bool(out)
        worst = min(entries, key=lambda e: e.value)
        masks = sorted({e.subset for e in out})
        what = f"outside on {', '.join(masks)}" if masks else "within"
        count = len({e.subset for e in entries})
        text = f"{data.name}: {what}; {count} masks, lowest {100 * worst.value:.1f} % ({worst.subset})"
        lines.append(text)
    if skipped:
        lines.append(f"fewer than {LEAST_ROWS} calibration rows, or not measured: {', '.join(skipped)}")
    if not asked:
        return _not_measured("coverage", *lines[:1])
    figure = f"within bounds on {asked - outside} of {asked} data sets"
    return Goal(TEXTS["coverage"], outside == 0, figure, tuple(lines))


def _calibration_rows(report: StudyReport, ledger: Ledger, data: str) -> dict[str, int]:
    """Rows that each mask was calibrated on: as recorded, else the validation rows where none has a hole."""
    known = {
        e.subset: round(e.value)
        for e in ledger.entries(data, "subset", "calibration_rows")
        if e.arm == report.default and e.stage in ("lac mask", "") and math.isfinite(e.value)
    }
    if known:
        return known
    holes = any(e.value > 0 for e in ledger.entries(data, "data", "validation_missing"))
    rows = 0 if holes else report.info(data).rows.get("validation", 0)
    return {e.subset: rows for e in ledger.entries(data, "subset", "coverage")}
