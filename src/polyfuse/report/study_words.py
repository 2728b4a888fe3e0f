"""A study in sentences, written from its numbers and nothing else."""

from collections.abc import Sequence

from polyfuse.report.study_records import IN_NATS, QUANTITIES, Claim, Difference, StudyReport

_SHORT = {
    "complete": "on complete inputs",
    "mean": "averaged over subsets",
    "worst": "on the worst subset",
    "nll": "in NLL",
    "broken": "with an input broken in a way it never saw",
    "noise": "with a noisy input",
}


def amount(value: float, quantity: str, *, unit: bool = True) -> str:
    """Print a gain, in points or nats.

    Example:
        >>> amount(-0.0123, "mean"), amount(0.0123, "nll")
        ('−1.2 points', '+0.012 nats')
    """
    nats = quantity in IN_NATS
    text = f"{value:+.3f}" if nats else f"{100 * value:+.1f}"
    text = text.lstrip("+-") if not float(text) else text.replace("-", "−")
    return f"{text} {'nats' if nats else 'points'}" if unit else text


def interval(d: Difference, *, unit: bool = True) -> str:
    """A gain with its interval: ``+1.2 points (+0.3 to +2.1)``."""
    ends = " to ".join(amount(v, d.quantity, unit=False) for v in (d.low, d.high))
    return f"{amount(d.mean, d.quantity, unit=unit)} ({ends})"


def names(items: Sequence[str], most: int = 4) -> str:
    """A list in words, the rest counted.

    Example:
        >>> names(["a", "b", "c"]), names(["a", "b", "c"], 2)
        ('a, b and c', 'a, b and 1 more')
    """
    if len(items) > most:
        return f"{', '.join(items[:most])} and {len(items) - most} more"
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else "none"


def verdict_words(report: StudyReport) -> list[str]:
    """What came out, in a few sentences."""
    out = []
    if report.default and report.reference:
        out += _default(report)
    if report.goals:
        met = sum(g.met for g in report.goals)
        blind = sum(not g.measured for g in report.goals)
        missed = len(report.goals) - met - blind
        unknown = f", {blind} could not be measured" if blind else ""
        out.append(f"{met} of {len(report.goals)} goals are met, {missed} missed{unknown}.")
    if not report.situations:
        out += _best(report)
    out += _ingredients(report)
    out += [f"On {s.data}: {s.sentence}." for s in report.situations]
    return [_upper(text) for text in out] or ["The records hold no comparison, so there is nothing to judge."]


def lost_words(report: StudyReport) -> list[str]:
    """What did not work."""
    out: list[str] = []
    for goal in report.goals:
        if not goal.met:
            out.append(f"{'Goal missed' if goal.measured else 'Goal not measured'}: {goal.text} {_upper(goal.figure)}.")
    for arm in report.arms:
        if arm.kind != "arm":
            continue
        sunk = [d for q in QUANTITIES if (d := report.difference(arm.name, q)) and d.verdict == "worse"]
        if sunk:
            text = "; ".join(f"{interval(d)} {_SHORT[d.quantity]}" for d in sunk)
            out.append(f"{arm.label} loses to {report.label(report.reference)}: {text}.")
            continue
        some = [
            c for c in report.claims if c.arm == arm.name and c.worse and c.quantity in ("complete", "mean", "worst")
        ]
        if some:
            text = "; ".join(f"{_SHORT[c.quantity]} ({names(c.worse)})" for c in some)
            out.append(f"{arm.label} is surely worse somewhere: {text}.")
    for one in report.ingredients:
        effect = next((e for e in one.effects if not e.data and e.quantity == "mean"), None)
        if effect is not None and effect.verdict != "better":
            how = "costs" if effect.verdict == "worse" else "buys nothing sure"
            out.append(f"{one.label} {how}: {interval(effect)} {_SHORT['mean']}.")
    return [_upper(text) for text in out]


def claim_text(claim: Claim, holm: bool = True) -> str:
    """Where an arm is better, tied and worse."""
    after = f" ({len(claim.after_holm)} after Holm)" if holm and claim.better else ""
    total = len(claim.better) + len(claim.worse) + len(claim.tied)
    return f"better on {len(claim.better)}{after}, worse on {len(claim.worse)} of {total} data sets"


def _default(report: StudyReport) -> list[str]:
    found = [d for q in ("mean", "worst", "complete", "nll", "broken") if (d := report.difference(report.default, q))]
    if not found:
        return []
    parts = [f"{interval(d)} {_SHORT[d.quantity]}" for d in found]
    who, whom = report.label(report.default), report.label(report.reference)
    out = [f"{who} against {whom}, {_over(report, found[0].sets)}: {'; '.join(parts)}."]
    claim = next((c for c in report.claims if (c.arm, c.quantity) == (report.default, "mean")), None)
    if claim is not None:
        stands = "may be called better" if claim.stands else "may not be called better"
        out.append(f"Over subsets it is {claim_text(claim)}, so it {stands} there.")
    return out


def _over(report: StudyReport, sets: int) -> str:
    return f"mean of {sets} {report.pool}" if sets > 1 else "on one data set"


def _best(report: StudyReport) -> list[str]:
    """The arm with the largest pooled gain over subsets, and which claims stand."""
    arms = {a.name for a in report.arms if a.kind == "arm"}
    judged = len(report.judged) or len(report.data)
    pooled = [d for d in report.differences if not d.data and d.quantity == "mean" and d.arm in arms]
    pooled = sorted((d for d in pooled if d.sets == judged), key=lambda d: -d.mean)
    if not pooled:
        return []
    top, whom = pooled[0], report.label(report.reference)
    if top.low <= 0:
        return [f"Nothing surely beats {whom} over subsets: the most is {interval(top)}, by {report.label(top.arm)}."]
    out = [f"Over subsets the largest gain on {whom} is {interval(top)}, by {report.label(top.arm)}."]
    stands = [c for c in report.claims if c.quantity == "mean" and c.stands and c.arm in arms]
    if stands:
        listed = names([report.label(c.arm) for c in stands])
        out.append(f"Better on at least two data sets and worse on none, over subsets: {listed}.")
    else:
        out.append("No arm is surely better on two data sets without being surely worse on another.")
    return out


def _ingredients(report: StudyReport) -> list[str]:
    parts = []
    for one in report.ingredients:
        effect = next((e for e in one.effects if not e.data and e.quantity == "mean"), None)
        if effect is not None:
            parts.append(f"{one.label} {interval(effect)}{', a tie' if effect.verdict == 'tied' else ''}")
    return [f"What the ingredients buy, averaged over subsets and data sets: {'; '.join(parts)}."] if parts else []


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
