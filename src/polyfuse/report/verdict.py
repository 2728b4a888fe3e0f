"""The verdict in two sentences and the table in plain words, computed from the numbers and nothing else.

A difference counts only when its 95 % interval excludes zero; otherwise the text says tie. Where the default recipe
or a watched arm loses, the text says so, to whom and by how much.
"""

import math
import statistics

from polyfuse.report.content import ReportData
from polyfuse.report.format import format_difference, format_value
from polyfuse.report.records import Metric
from polyfuse.report.summary import (
    ArmSummary,
    Gap,
    Subset,
    Summary,
    gap_of,
    is_tie,
    judged_rows,
    sign,
    subset_label,
    summarise,
)

_OVER = {"mean": "averaged over subsets", "complete": "with complete inputs", "worst": "on the worst subset"}


def verdict(data: ReportData, summary: Summary | None = None) -> list[str]:
    """Return two sentences: who wins (or that nobody does), and where the judged arms lose.

    Args:
        data: The records.
        summary: Their summary, when it was computed before.
    """
    s = summary or summarise(data)
    best = s.best()
    if best is None:
        if data.subset_records and not any(s.tables.values()):
            return [f"{data.primary.label} cannot be measured on {judged_rows(data)}, so there is nothing to judge."]
        return ["No arm was scored on all subsets, so there is nothing to judge."]
    sentences = _alone(s, best) if len(s.ranked) == 1 else [_winner(s, best), _losses(s, best)]
    return [text[:1].upper() + text[1:] for text in sentences]


def plain_words(data: ReportData, summary: Summary | None = None) -> list[str]:
    """Return what the numbers say, one sentence an item: the verdict, calibration, corruption, headroom, abstention."""
    s = summary or summarise(data)
    out = verdict(data, s)
    if len(s.ranked) > 1:
        out += [*_falls(s), *_calibration(s), *_coverage(s)]
    out += [*_corruption(s), *_headroom(s)]
    if all(len(r.arm.seeds) < 2 for r in s.ranked):
        who = "Every arm" if len(s.ranked) > 1 else "The model"
        out.append(f"{who} was trained with one seed, so the spread between trainings is unknown.")
    out += data.abstention
    return list(dict.fromkeys(text[:1].upper() + text[1:] for text in out))


def _alone(s: Summary, row: ArmSummary) -> list[str]:
    """Judge a single trained model: its scores, then its calibration."""
    rows = max((r.n for r in s.data.subset_records if len(r.subset) == len(s.data.modalities)), default=0)
    which = " with complete inputs" if len(s.data.modalities) > 1 else ""
    on = judged_rows(s.data, rows)
    first = f"{row.arm.title} scores {_score(s, row, 'complete')} {s.data.primary.label} on the {on}{which}"
    if row.values["complete"] is None:
        first = f"{row.arm.title} was not scored on complete inputs"
        if len(s.subsets) == 1:
            rows = max((r.n for r in s.data.subset_records), default=0)
            where = f"the {judged_rows(s.data, rows)} with {' + '.join(s.subsets[0])}"
            first = f"{row.arm.title} scores {_score(s, row, 'mean')} {s.data.primary.label} on {where}"
    if len(s.subsets) > 1 and row.values["worst"]:
        worst = subset_label(row.worst_subset or (), s.data.modalities)
        first += f", {_score(s, row, 'mean')} averaged over {_combinations(s, 'all ')}"
        first += f" and {_score(s, row, 'worst')} at worst ({worst})"
    second = [x.rstrip(".") for x in (*_calibration(s), *_coverage(s))]
    if not second:
        return [first + ".", "Calibration was not measured."]
    return [first + ".", "; ".join([second[0], *(x[0].lower() + x[1:] for x in second[1:])]) + "."]


def _combinations(s: Summary, every: str = "") -> str:
    """Say how many combinations of inputs were scored, and of how many where that is not all."""
    scored, total = len(s.subsets), 2 ** len(s.data.modalities) - 1
    return f"{every}{scored} combinations of inputs" if scored == total else f"{scored} of the {total} combinations"


def _winner(s: Summary, best: ArmSummary) -> str:
    """Say who is best over the subsets, and whether the reference is really beaten."""
    metric, reference = s.data.primary, s.data.reference_arm
    over = f"averaged over {_combinations(s)}" if len(s.subsets) > 1 else "on the test rows"
    scores = f"{_score(s, best, 'mean')} {metric.label} {over}{_ends(s, best)}"
    if reference is None or s.of(reference).values["mean"] is None:
        tied = [r.arm.title for r in s.ranked if r.marks.get("mean") == "tie"]
        also = f"; it ties with {_names(tied)}" if tied else ""
        return f"{best.arm.title} is best with {scores}{also}."
    base = s.of(reference)
    others = [r for r in s.ranked if r is not base and r.values["mean"] is not None]
    gaps = [g for r in others if (g := gap_of(s.data, r, base, "mean")) is not None]
    if best is base:
        count = f"; {sum(g.tie for g in gaps)} of {len(others)} tie with it and {sum(g.high < 0 for g in gaps)} lose"
        return f"No arm beats {best.arm.title}: {scores}{count if gaps else ''}."
    gap = gap_of(s.data, best, base, "mean")
    if gap is None:
        size = format_difference(metric, abs(best.mean("mean") - base.mean("mean")), signed=False)
        return f"{best.arm.title} is ahead with {scores}, {size} better than {base.arm.title}, but without an interval."
    if gap.tie:
        return (
            f"It is a tie: {best.arm.title}, with {scores}, cannot be told from {base.arm.title}, with "
            f"{_score(s, base, 'mean')} ({_interval(metric, gap)})."
        )
    size = format_difference(metric, gap.mean, signed=False)
    return (
        f"{best.arm.title} wins with {scores}, {size} better than {base.arm.title} "
        f"({_interval(metric, gap, mean=False)})."
    )


def _losses(s: Summary, best: ArmSummary) -> str:
    """Judge the default recipe and the watched arms: where each loses, or that it does not."""
    asked = [n for n in dict.fromkeys((s.data.default, *s.data.watch)) if n is not None and n != s.data.reference_arm]
    judged = [text for n in asked if (text := _judge(s, s.of(n), best))]
    if judged:
        return "; ".join(judged) + "."
    told = [*_falls(s), *_calibration(s)]
    return told[0] if told else "No arm was named to be judged further."


def _judge(s: Summary, row: ArmSummary, best: ArmSummary) -> str:
    """Say how one arm does against the reference, then where another arm beats it."""
    metric, reference = s.data.primary, s.data.reference_arm
    if row.values["mean"] is None:
        return ""
    parts, lost = [], False
    base = None if reference is None else s.of(reference)
    gap = None if base is None or row is best else gap_of(s.data, row, base, "mean")
    if base is not None and gap is not None:
        size = format_difference(metric, abs(gap.mean), signed=False)
        lost = gap.high < 0
        if gap.tie:
            parts.append(f"ties with {base.arm.title} ({_interval(metric, gap)})")
        elif lost:
            parts.append(f"loses {size} to {base.arm.title} ({_interval(metric, gap, mean=False)})")
        else:
            parts.append(f"beats {base.arm.title} by {size}")
    behind = [] if lost else [text for key in ("complete", "mean", "worst") if (text := _beaten(s, row, key))]
    if behind:
        parts.append("loses " + " and ".join(behind))
    elif not lost and len(s.subsets) > 1:
        parts.append("no arm beats it with complete inputs, in the mean or on the worst subset")
    elif not lost:
        parts.append("no arm beats it")
    if parts[0].startswith("no arm"):
        return parts[0].replace(" it", f" {row.arm.title}", 1)
    return f"{row.arm.title} {(' but ' if behind else ', and ').join(parts)}"


def _beaten(s: Summary, row: ArmSummary, key: str) -> str:
    """Name the arm that beats this one in a column beyond a tie; empty when none does."""
    top = s.best(key)
    if top is None or top is row or row.values[key] is None or is_tie(s.data, row, top, key):
        return ""
    gap = abs(top.mean(key) - row.mean(key))
    return f"{_OVER[key]} ({top.arm.title} is {format_difference(s.data.primary, gap, signed=False)} better)"


def _falls(s: Summary) -> list[str]:
    """Say who falls most from complete inputs to the worst subset, and who falls least."""
    metric = s.data.primary
    arms = [r for r in s.ranked if r.values["complete"] and r.values["worst"] and r.arm.kind != "baseline"]
    if len(arms) < 2 or len(s.subsets) < 2:
        return []
    falls = sorted(arms, key=lambda r: sign(metric) * (r.mean("complete") - r.mean("worst")))
    least, most = falls[0], falls[-1]
    fall, hold = (f"{_score(s, r, 'complete')} to {_score(s, r, 'worst')}" for r in (most, least))
    text = f"From complete inputs to its worst subset {most.arm.title} falls furthest, from {fall}"
    return [f"{text}; {least.arm.title} falls least, from {hold}."]


def _calibration(s: Summary) -> list[str]:
    """Say what calibration did to the mean ECE over subsets, and for how many arms it made things worse."""
    rows = [r for r in s.ranked if r.values["ece"] and r.values["ece_calibrated"] and r.arm.kind != "baseline"]
    if not rows:
        return []
    before = statistics.median(r.mean("ece") for r in rows)
    after = statistics.median(r.mean("ece_calibrated") for r in rows)
    worse = [r.arm.title for r in rows if r.mean("ece_calibrated") > r.mean("ece")]
    of = "ECE, the mean over subsets," if len(s.subsets) > 1 else "ECE"
    if len(rows) == 1:
        verb = "made it worse: it took" if worse else "took"
        return [f"Calibration {verb} {of} from {before:.3f} to {after:.3f}."]
    but = f"; it made {_names(worse)} worse" if worse else "; no arm got worse"
    return [f"Calibration took {of} of the median arm from {before:.3f} to {after:.3f}{but}."]


def _coverage(s: Summary) -> list[str]:
    """Say whether conformal sets keep their promise on average and on the worst subset."""
    rows = [r for r in s.ranked if r.values["coverage"] and r.arm.kind != "baseline"]
    nominal = s.data.nominal_coverage
    if not rows or nominal is None:
        return []
    low = min(rows, key=lambda r: r.mean("worst_coverage"))
    what = "intervals" if s.data.task == "regression" else "sets"
    text = f"Conformal {what} that promise {nominal:.0%} cover {statistics.fmean(r.mean('coverage') for r in rows):.1%}"
    if len(s.subsets) > 1:
        whose = "" if len(rows) == 1 else f" of {low.arm.title}"
        text += f" on average over subsets and {low.mean('worst_coverage'):.1%} on the worst subset{whose}"
    return [text.replace("%", " %") + "."]


def _corruption(s: Summary) -> list[str]:
    """Name the worst broken input of the default (or best) arm, and the arm that stands corruption best."""
    metric, way = s.data.primary, sign(s.data.primary)
    by_arm: dict[str, dict[tuple[str, str], list[float]]] = {}
    intact: dict[tuple[str, str], list[float]] = {}
    for r in s.data.corruption:
        value, before = r.metrics.get(metric.name, math.nan), r.metrics.get(f"{metric.name}_intact", math.nan)
        if math.isfinite(value):
            by_arm.setdefault(r.arm, {}).setdefault((r.corruption, r.modality), []).append(value)
        if math.isfinite(before):
            intact.setdefault((r.arm, r.modality), []).append(before)
    best = s.best()
    name = next((n for n in (s.data.default, best.arm.name if best else None, *by_arm) if n in by_arm), None)
    if name is None:
        return []
    cases = {case: statistics.fmean(v) for case, v in by_arm[name].items()}
    what, where = min(cases, key=lambda c: way * cases[c])
    text = f"With {where} broken but not flagged ({what}), {s.data.arm(name).title} "
    now = format_value(metric, cases[what, where], unit=True)
    if (name, where) in intact:
        text += f"goes from {format_value(metric, statistics.fmean(intact[name, where]), unit=True)} to {now}"
    else:
        text += f"scores {now}"
    means = {n: statistics.fmean([statistics.fmean(v) for v in c.values()]) for n, c in by_arm.items()}
    if len(means) > 1:
        top = max(means, key=lambda n: way * means[n])
        score = format_value(metric, means[top], unit=True)
        text += f"; over all broken inputs {s.data.arm(top).title} holds up best (mean {score})"
    return [text + "."]


def _headroom(s: Summary) -> list[str]:
    """Say how far the best arm stands from models trained for each subset, and what presence alone is worth."""
    metric, best = s.data.primary, s.best()
    out = []
    if best is not None and best.values["mean_regret"]:
        mean, worst = best.mean("mean_regret"), best.mean("regret")
        size = format_difference(metric, abs(mean), signed=False)
        if mean > 0:
            most = format_difference(metric, worst, signed=False)
            text = f"{size} better on average than {best.arm.title} and {most} at most: that is the headroom"
        else:
            text = f"{size} worse on average than {best.arm.title}: training for each of them is no gain"
        out.append(f"Models trained for one subset each are {text}.")
    base = next((r for r in s.ranked if r.arm.name == "presence_only" and r.values["mean"]), None)
    if base is not None:
        out.append(f"Knowing only which inputs are there is worth {_score(s, base, 'mean')} {metric.label}.")
    return out


def _ends(s: Summary, row: ArmSummary) -> str:
    if len(s.subsets) < 2 or not row.values["worst"]:
        return ""
    worst = subset_label(row.worst_subset or Subset(), s.data.modalities)
    complete = f"{_score(s, row, 'complete')} complete, " if row.values["complete"] else ""
    return f" ({complete}{_score(s, row, 'worst')} at worst, {worst})"


def _score(s: Summary, row: ArmSummary, key: str) -> str:
    return format_value(s.data.primary, row.mean(key), unit=True)


def _interval(metric: Metric, gap: Gap, *, mean: bool = True) -> str:
    lead = f"difference {format_difference(metric, gap.mean)}, " if mean else ""
    tail = " over seeds" if gap.over_seeds else ""
    return f"{lead}95 % interval {_end(metric, gap.low)} to {_end(metric, gap.high)}{tail}"


def _names(names: list[str]) -> str:
    if len(names) > 4:
        return f"{', '.join(names[:3])} and {len(names) - 3} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _end(metric: Metric, value: float) -> str:
    """Print an end of an interval so that it never reads as zero when it is not."""
    text = format_difference(metric, value, unit=False)
    if value and not text.strip("+−0."):
        return ("−" if value < 0 else "+") + f"{abs(value) * (100 if metric.percent else 1):.1g}"
    return text
