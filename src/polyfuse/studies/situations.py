"""Techniques against imbalance, before and after, and which of them to use in a situation.

The rule: of the techniques that surely gain on the worst subset and surely lose nothing (complete inputs, mean over
subsets, NLL, any input alone), the one that gains most there and those tied with it; of these, the one with the best
mean over subsets. None where no technique surely gains without a loss.

The choice is made on the rows that the gains are measured on, so it is not confirmed by them: the sentence names the
ties, and says when the gain does not stand after Holm's correction over the techniques.
"""

import math
from collections.abc import Callable, Iterable, Sequence

from polyfuse.report.study_records import DataTable, Difference, Situation, Technique
from polyfuse.report.study_words import amount, interval, names
from polyfuse.studies.ledger import Ledger

Paired = Callable[[str, str], Difference | None]
"""The gain of one technique over another on the worst subset, paired by row and seed."""


def situation(
    ledger: Ledger,
    table: DataTable,
    before: str,
    arms: Sequence[str],
    differences: Iterable[Difference],
    label: Callable[[str], str] = str,
    paired: Paired | None = None,
) -> Situation:
    """All techniques of one situation, and the recommendation."""
    found = [d for d in differences if d.reference == before]
    shares = _shapley(ledger, table.data)
    techniques = []
    base = table.row(before)
    for arm in arms:
        row = table.row(arm)
        if row is None or base is None:
            continue
        keys = [k for k in ("worst", "complete", "mean", "ece", "nll") if k in row.values and k in base.values]
        single = [s for s in row.subsets if "+" not in s and s in base.subsets]
        gains = tuple(d for d in found if d.arm == arm)
        techniques.append(
            Technique(
                arm,
                {s: (base.subsets[s], row.subsets[s]) for s in single},
                {m: (shares[before][m], v) for m, v in shares.get(arm, {}).items() if m in shares.get(before, {})},
                {k: (base.values[k].mean, row.values[k].mean) for k in keys},
                gains,
            )
        )
    best, sentence = recommend(techniques, label, paired)
    return Situation(table.data, before, tuple(techniques), best, sentence)


def recommend(
    techniques: Sequence[Technique], label: Callable[[str], str] = str, paired: Paired | None = None
) -> tuple[str, str]:
    """The technique to use (empty = none), and why, in a sentence that calls an arm by its label.

    Args:
        techniques: All of a situation.
        label: From an arm to what a reader sees.
        paired: Compares two techniques; without it, tied is a gain inside the interval of the largest.
    """
    gains = [(t, d) for t in techniques for d in t.gains if d.quantity == "worst"]
    harmless = [(t, d) for t, d in gains if not _losses(t)]
    sure = sorted((x for x in harmless if x[1].low > 0), key=lambda x: -x[1].mean)
    if sure:
        return _choice([x for x in sure if _tied(x, sure[0], paired)], label)
    if not gains:
        return "", "nothing was measured"
    harmful = sorted((x for x in gains if x[1].low > 0), key=lambda x: -x[1].mean)
    if harmful:
        technique, gain = harmful[0]
        lost = ", ".join(_losses(technique))
        helps = f"{label(technique.arm)} gives {amount(gain.mean, 'worst')} on the worst subset and loses on {lost}"
        return "", f"nothing helps surely without a loss: {helps}"
    technique, gain = max(gains, key=lambda x: x[1].mean)
    return "", f"nothing helps surely: the most is {interval(gain)} on the worst subset, by {label(technique.arm)}"


def unchanged(technique: Technique) -> bool:
    """Whether a technique did nothing at all: every difference is exactly zero, in every draw."""
    return bool(technique.gains) and all(d.mean == d.low == d.high == 0.0 for d in technique.gains)


_Gain = tuple[Technique, Difference]


def _tied(one: _Gain, top: _Gain, paired: Paired | None) -> bool:
    """Whether it is not sure that the top one gains more."""
    if one[0].arm == top[0].arm:
        return True
    difference = None if paired is None else paired(one[0].arm, top[0].arm)
    return one[1].mean >= top[1].low if difference is None else difference.verdict != "worse"


def _choice(tied: Sequence[_Gain], label: Callable[[str], str]) -> tuple[str, str]:
    """Of techniques that are tied on the worst subset, the one with the best mean, then complete accuracy."""

    def after(technique: Technique, key: str) -> float:
        return technique.values.get(key, (math.nan, -math.inf))[1]

    technique, gain = max(tied, key=lambda x: (after(x[0], "mean"), after(x[0], "complete"), x[1].mean))
    parts = [f"use {label(technique.arm)}: {interval(gain)} on the worst subset, and nothing is surely lost"]
    if math.isfinite(gain.p_holm) and not gain.sure:
        parts.append("not sure after Holm's correction over the techniques")
    others = [f"{label(t.arm)} ({amount(d.mean, 'worst', unit=False)})" for t, d in tied if t.arm != technique.arm]
    if others:
        best = "; of these it has the best mean over subsets" if "mean" in technique.values else ""
        parts.append(f"tied there with {names(others)}{best}")
    return technique.arm, "; ".join(parts)


def _losses(technique: Technique) -> list[str]:
    """What a technique surely loses."""
    return [
        d.quantity.replace("alone: ", "") for d in technique.gains if d.verdict == "worse" and d.quantity != "worst"
    ]


def _shapley(ledger: Ledger, data: str) -> dict[str, dict[str, float]]:
    """Share of every input, of the sum, by arm; mean over seeds."""
    out: dict[str, dict[str, float]] = {}
    for arm, runs in ledger.by_run(data, "seed", "shapley", label="modality").items():
        means: dict[str, list[float]] = {}
        for values in runs.values():
            total = sum(values.values())
            for m, value in values.items():
                means.setdefault(m, []).append(value / total if total > 0 else float("nan"))
        out[arm] = {m: sum(v) / len(v) for m, v in means.items()}
    return out
