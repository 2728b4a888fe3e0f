"""Techniques against imbalance, before and after, and which of them to use in a situation.

The rule: among the techniques that surely lose nothing (complete inputs, mean over subsets, NLL, any input alone), the
one that gains most on the worst subset, if that gain's interval excludes zero; otherwise none.
"""

from collections.abc import Callable, Iterable, Sequence

from polyfuse.report.study_records import DataTable, Difference, Situation, Technique
from polyfuse.studies.ledger import Ledger


def situation(
    ledger: Ledger,
    table: DataTable,
    before: str,
    arms: Sequence[str],
    differences: Iterable[Difference],
    label: Callable[[str], str] = str,
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
    best, sentence = recommend(techniques, label)
    return Situation(table.data, before, tuple(techniques), best, sentence)


def recommend(techniques: Sequence[Technique], label: Callable[[str], str] = str) -> tuple[str, str]:
    """The technique to use (empty = none), and why, in a sentence that calls an arm by its label."""
    gains = [(t, d) for t in techniques for d in t.gains if d.quantity == "worst"]
    harmless = [(t, d) for t, d in gains if not _losses(t)]
    sure = sorted((x for x in harmless if x[1].low > 0), key=lambda x: -x[1].mean)
    if sure:
        technique, gain = sure[0]
        size = f"{100 * gain.mean:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})".replace("-", "−")
        return technique.arm, f"use {label(technique.arm)}: {size} on the worst subset, and nothing is surely lost"
    if not gains:
        return "", "nothing was measured"
    harmful = sorted((x for x in gains if x[1].low > 0), key=lambda x: -x[1].mean)
    if harmful:
        technique, gain = harmful[0]
        lost = ", ".join(_losses(technique))
        size = f"{100 * gain.mean:+.1f} points"
        helps = f"{label(technique.arm)} gives {size} on the worst subset and loses on {lost}"
        return "", f"nothing helps surely without a loss: {helps}"
    technique, gain = max(gains, key=lambda x: x[1].mean)
    size = f"{100 * gain.mean:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})".replace("-", "−")
    return "", f"nothing helps surely: the most is {size} on the worst subset, by {label(technique.arm)}"


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
