"""From records to a study's report: main tables, calibration, corruption, costs, and everything compared.

Pure functions of the records: what cannot be computed from them is left out, not guessed.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from polyfuse.report.study_records import (
    ArmInfo,
    ArmRow,
    BrokenRow,
    CalibrationRow,
    Cost,
    DataInfo,
    DataTable,
    Difference,
    Family,
    Ingredient,
    Stat,
    StudyReport,
)
from polyfuse.report.study_words import lost_words, verdict_words
from polyfuse.studies.arms import Plan
from polyfuse.studies.differences import DRAWS, Compared, Sampled, broken_scores, claims, corrected, held_out, pooled
from polyfuse.studies.goals import MOST_NOISE, goals
from polyfuse.studies.ledger import ByRun, Ledger, mean_by_label
from polyfuse.studies.situations import situation, unchanged

ORACLE, RESEEDED, BAYES = "oracle", "oracle reseeded", "bayes"
STAGES = ("raw", "full", "pooled", "mask")
COSTS = {
    "parameters": "parameters",
    "multiply_adds": "multiply_adds",
    "passes": "passes",
    "train_seconds": "seconds",
    "ms_per_row": "ms",
    "peak_mb": "peak_mb",
}


@dataclass(frozen=True)
class Questions:
    """What a study's page is asked beside its tables.

    Attributes:
        question: The study's, in a sentence.
        default: The arm that must earn its place; empty = none, and no goals.
        ingredients: ``(label, arm with it, arm without)``.
        families: ``{"early": arm, "late": arm, "hybrid": arm}``.
        imbalance: Whether arms are techniques to be compared situation by situation.
        protocol: How it was done, in sentences.
        notes: What must be known to judge the numbers.
    """

    question: str = ""
    default: str = ""
    ingredients: tuple[tuple[str, str, str], ...] = ()
    families: Mapping[str, str] = field(default_factory=dict)
    imbalance: bool = False
    protocol: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def summarise(
    records: pa.Table,
    plans: Mapping[str, Sequence[Plan]],
    *,
    about: Mapping[str, DataInfo] | None = None,
    questions: Questions | None = None,
    name: str = "study",
    title: str = "",
    draws: int = DRAWS,
) -> StudyReport:
    """Everything a study's page says, from its records.

    Args:
        records: ``records.parquet``.
        plans: Arms by data set (``"htad"``, ``"htad, missing 0.7"``); one has kind ``reference``.
        about: Facts by data set; what is missing is taken from the records, as real and unchanged data.
        questions: What else to answer.
        name: Of the study.
        title: Of the page.
        draws: Bootstrap samples; at least 50 an arm are drawn, or Holm's correction could not find anything.
    """
    ledger, asked = Ledger(records), questions or Questions()
    arms = _arms(plans, ledger)
    draws = max(draws, 50 * len(arms))
    reference = next((a.name for a in arms if a.kind == "reference"), "")
    report = StudyReport(name, title or name, asked.question, asked.default, reference, arms)
    report.data = tuple(_info(ledger, data, about or {}) for data in ledger.data)
    if asked.imbalance:  # what was changed about the data is the question: every situation counts
        report.data = tuple(replace(info, plain=True) for info in report.data)
    report.tables = tuple(main_table(ledger, data, [a.name for a in arms]) for data in ledger.data)
    report.calibration = tuple(row for data in ledger.data for row in calibration_rows(ledger, data))
    report.broken = tuple(row for data in ledger.data for row in broken_rows(ledger, data))
    compared: dict[str, list[Compared]] = {}
    pairs = {(with_, without) for _, with_, without in asked.ingredients}
    situations = []
    for data in ledger.data:
        sampled = Sampled(ledger, data, draws, alone=asked.imbalance)
        methods = [a.name for a in arms if a.kind in ("arm", "baseline") and a.name in sampled.arms]
        compared[data] = [c for arm in methods for c in sampled.compare(arm, reference)]
        compared[f"{data}\n"] = [c for pair in sorted(pairs) for c in sampled.compare(*pair)]
        if asked.imbalance and reference:
            found = corrected([c.difference for c in compared[data]])
            table = report.table(data)
            situations.append(situation(ledger, table, reference, methods, found, report.label, _worst(sampled)))
    judged = [d.name for d in report.judged or report.data]
    alone = [c for data in ledger.data for c in compared[data]]
    over = pooled([c for c in alone if c.difference.data in judged])
    report.differences = tuple(
        d for d in corrected([c.difference for c in (*alone, *over)]) if not d.quantity.startswith("alone")
    )
    report.claims = tuple(claims(report.differences, judged))
    report.situations = tuple(situations)
    tested = [c for data in ledger.data for c in compared[f"{data}\n"]]
    ingredients = [_ingredient(*one, tested, judged) for one in asked.ingredients]
    report.ingredients = tuple(one for one in ingredients if one.effects)
    report.costs = tuple(costs(ledger, [a.name for a in arms], reference))
    report.families = tuple(families(report, asked.families))
    report.seeds = max((len(runs) for d in ledger.data for runs in ledger.job(d, "train_seconds").values()), default=0)
    if asked.default and reference:
        report.goals = tuple(goals(report, ledger))
    absent = [one.label for one in ingredients if not one.effects]
    report.protocol, report.notes = asked.protocol, (*asked.notes, *_standing(report, absent))
    report.failed = tuple(_failures(ledger))
    report.verdict, report.lost = tuple(_verdict(report)), tuple(lost_words(report))
    return report


def main_table(ledger: Ledger, data: str, arms: Sequence[str]) -> DataTable:
    """Scores, calibration, corruption and costs of every arm on one data set, mean and spread over seeds."""
    metric = ledger.metric(data)
    scores = ledger.scores(data, metric)
    oracle = _by_subset(ledger.by_run(data, "oracle", metric), ORACLE)
    twin = _by_subset(ledger.by_run(data, "oracle", metric), RESEEDED)
    floor = noise_floor(oracle, twin)
    every = {s for arm, runs in scores.items() if arm in arms for values in runs.values() for s in values}
    nll = ledger.staged(data, "nll", "mask") or ledger.staged(data, "nll", "raw")
    ece = ledger.staged(data, "ece", "mask") or ledger.staged(data, "ece", "raw")
    coverage = ledger.staged(data, "coverage", "lac mask")
    broken = broken_scores(ledger, data)
    jobs = {name: ledger.job(data, key) for key, name in COSTS.items()}
    shown = [*arms, *((BAYES,) if BAYES in scores and BAYES not in arms else ())]
    rows = []
    for arm in shown:
        runs = {run: v for run, v in scores.get(arm, {}).items() if set(v) == every}
        values: dict[str, Stat | None] = {}
        subsets = mean_by_label(scores.get(arm, {}))
        largest = _complete(every)
        if runs:
            values["complete"] = Stat.of([v[largest] for v in runs.values()]) if largest else None
            values["mean"] = Stat.of([_mean(v.values()) for v in runs.values()])
            values["worst"] = Stat.of([min(v.values()) for v in runs.values()])
            if oracle and not floor > MOST_NOISE:
                worst = max(oracle[s] - subsets[s] for s in oracle if s in subsets)
                values["regret"] = Stat(worst - (0.0 if math.isnan(floor) else floor), n=len(runs))
            values["nll"] = Stat.of([_mean(v.values()) for v in nll.get(arm, {}).values()])
            values["ece"] = Stat.of([_mean(v.values()) for v in ece.get(arm, {}).values()])
            values["coverage"] = Stat.of([_mean(v.values()) for v in coverage.get(arm, {}).values()])
            values["worst_coverage"] = Stat.of([min(v.values()) for v in coverage.get(arm, {}).values()])
            for key in ("noise", "broken"):
                values[key] = Stat.of([v[key] for v in broken.get(arm, {}).values() if key in v])
        values |= {key: Stat.of(list(found.get(arm, {}).values())) for key, found in jobs.items()}
        if subsets or any(values.values()):
            kept = {k: v for k, v in values.items() if v is not None}
            rows.append(ArmRow(arm, kept, subsets, min(subsets, key=lambda s: subsets[s]) if runs else ""))
    return DataTable(data, tuple(rows), oracle, floor)


def noise_floor(oracle: Mapping[str, float], twin: Mapping[str, float]) -> float:
    """Worst regret between two sets of oracles that differ in their seeds: mean of both directions.

    Example:
        >>> round(noise_floor({"a": 0.8, "b": 0.7}, {"a": 0.79, "b": 0.73}), 3)
        0.02
    """
    shared = [s for s in oracle if s in twin]
    if not shared:
        return math.nan
    return 0.5 * (max(oracle[s] - twin[s] for s in shared) + max(twin[s] - oracle[s] for s in shared))


def calibration_rows(ledger: Ledger, data: str) -> list[CalibrationRow]:
    """ECE and NLL at every stage of the temperature, coverage at every stage of the sets: mean and worst."""
    cells: dict[tuple[str, str], dict[str, Stat]] = {}
    every = ("ece", "nll", "coverage", "set_size")
    stages = dict.fromkeys(e.stage for m in every for e in ledger.entries(data, "subset", m))
    for stage in stages:
        temperature = stage in STAGES
        for metric in ("ece", "nll") if temperature else ("coverage", "set_size"):
            for arm, runs in ledger.staged(data, metric, stage).items():
                place = cells.setdefault((arm, stage), {})
                worst = min if metric == "coverage" else max
                found = {
                    metric: Stat.of([_mean(v.values()) for v in runs.values()]),
                    f"worst_{metric}": Stat.of([worst(v.values()) for v in runs.values()]),
                }
                place |= {k: v for k, v in found.items() if v is not None}
    return [CalibrationRow(data, arm, stage, values) for (arm, stage), values in cells.items() if values]


def broken_rows(ledger: Ledger, data: str) -> list[BrokenRow]:
    """Score with one input broken and nobody told, mean over seeds."""
    found: dict[tuple[str, str, str], list[float]] = {}
    stages = {e.stage for e in ledger.entries(data, "broken", ledger.metric(data))}
    stage = next((s for s in ("raw", "", "mask") if s in stages), "raw")
    for e in ledger.entries(data, "broken", ledger.metric(data)):
        if e.stage == stage and math.isfinite(e.value):
            found.setdefault((e.arm, e.modality, e.corruption), []).append(e.value)
    return [BrokenRow(data, arm, m, c, held_out(c), _mean(v)) for (arm, m, c), v in found.items()]


def costs(ledger: Ledger, arms: Sequence[str], reference: str) -> list[Cost]:
    """Geometric means over data sets, and ratios to the reference on the data sets that both ran on."""
    out = []
    jobs = {(d, name): ledger.job(d, key) for d in ledger.data for key, name in COSTS.items()}
    for arm in arms:
        values, ratios = {}, {}
        for name in COSTS.values():
            own = {d: _mean(jobs[d, name][arm].values()) for d in ledger.data if arm in jobs[d, name]}
            base = {d: _mean(jobs[d, name][reference].values()) for d in own if reference in jobs[d, name]}
            positive = [v for v in own.values() if v > 0]
            if positive:
                values[name] = math.exp(_mean(math.log(v) for v in positive))
            both = [own[d] / base[d] for d in base if own[d] > 0 and base[d] > 0]
            if both:
                ratios[name] = math.exp(_mean(math.log(v) for v in both))
        if values:
            out.append(Cost(arm, values, ratios))
    return out


_FAMILY = {
    "complete": ("accuracy on complete inputs", True, 0.01),
    "mean": ("accuracy over subsets", True, 0.01),
    "worst": ("accuracy on the worst subset", True, 0.01),
    "broken": ("accuracy with a broken input", True, 0.01),
    "ms": ("speed", False, 1.2),
    "peak_mb": ("memory", False, 1.2),
    "parameters": ("size", False, 1.2),
    "multiply_adds": ("arithmetic", False, 1.2),
}
"""What families are compared on: words, whether more is better, and the least difference worth a word (points / 100 for
scores, a ratio for costs)."""


def families(report: StudyReport, named: Mapping[str, str]) -> list[Family]:
    """Early, late and hybrid on the data sets that all of them ran on, with words that follow from the numbers."""
    tables = [t for t in report.tables if all(t.row(arm) for arm in named.values())]
    tables = [t for t in tables if report.info(t.data).plain]
    values: dict[str, dict[str, float]] = {label: {} for label in named}
    for key in (*_FAMILY, "seconds"):
        shared = [t for t in tables if all(key in _row(t, arm).values for arm in named.values())]
        for label, arm in named.items():
            found = [_row(t, arm).values[key].mean for t in shared]
            if found:
                values[label][key] = _mean(found)
    out = []
    for label, arm in named.items():
        strong, weak = [], []
        for key, (words, high, step) in _FAMILY.items():
            others = [v[key] for other, v in values.items() if other != label and key in v]
            if key not in values[label] or not others:
                continue
            own = values[label][key]
            if _ahead(own, max(others) if high else min(others), high, step):
                strong.append(f"best {words}" if high else f"lowest cost in {words}")
            if _ahead(min(others) if high else max(others), own, high, step):
                weak.append(f"worst {words}" if high else f"highest cost in {words}")
        out.append(Family(label, arm, values[label], tuple(strong), tuple(weak)))
    return out if tables else []


def _ahead(a: float, b: float, high: bool, step: float) -> bool:
    """Whether a is better than b by what is worth a word."""
    return a - b >= step if high else a > 0 and b / a >= step


def _ingredient(label: str, arm: str, without: str, compared: Sequence[Compared], judged: Sequence[str]) -> Ingredient:
    own = [c for c in compared if (c.difference.arm, c.difference.reference) == (arm, without)]
    over = pooled([c for c in own if c.difference.data in judged])
    effects: list[Difference] = [c.difference for c in (*own, *over)]
    return Ingredient(label, arm, without, tuple(e for e in effects if not e.quantity.startswith("alone")))


def _row(table: DataTable, arm: str) -> ArmRow:
    return next(r for r in table.rows if r.arm == arm)


def _arms(plans: Mapping[str, Sequence[Plan]], ledger: Ledger) -> tuple[ArmInfo, ...]:
    """In the order of the plans; only those with records."""
    ran = {arm for data in ledger.data for arm in ledger.scores(data, ledger.metric(data))}
    out: dict[str, ArmInfo] = {}
    for planned in plans.values():
        for plan in planned:
            if plan.name in ran:
                out.setdefault(plan.name, ArmInfo(plan.name, plan.label or plan.name, plan.kind, plan.note))
    return tuple(out.values())


def _info(ledger: Ledger, data: str, about: Mapping[str, DataInfo]) -> DataInfo:
    facts = ledger.facts(data)
    rows = {part: int(facts[f"{part}_rows"]) for part in ("train", "validation", "test") if f"{part}_rows" in facts}
    subsets = {e.subset for e in ledger.entries(data, "subset", ledger.metric(data))}
    inputs = tuple(dict.fromkeys(m for s in sorted(subsets, key=lambda s: -s.count("+")) for m in s.split("+") if m))
    notes = tuple(dict.fromkeys(e.stage for e in ledger.entries(data, "data", "note")))
    # A data set that an earlier call left in the folder: its name tells whether it is a variant.
    base = about.get(data, DataInfo(data, plain=", " not in data))
    return replace(
        base,
        name=data,
        rows=base.rows or rows,
        modalities=base.modalities or inputs,
        metric=ledger.metric(data),
        notes=base.notes or notes,
    )


def _by_subset(found: ByRun, arm: str) -> dict[str, float]:
    return mean_by_label(found.get(arm, {}))


def _complete(subsets: Iterable[str]) -> str:
    """The one largest subset; empty when there is none."""
    every = sorted(subsets, key=lambda s: -s.count("+"))
    alone = len(every) == 1 or (len(every) > 1 and every[0].count("+") > every[1].count("+"))
    return every[0] if alone else ""


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _worst(sampled: Sampled) -> Callable[[str, str], Difference | None]:
    """Compares two arms on the worst subset."""

    def paired(arm: str, other: str) -> Difference | None:
        found = (c.difference for c in sampled.compare(arm, other))
        return next((d for d in found if d.quantity == "worst"), None)

    return paired


def _verdict(report: StudyReport) -> list[str]:
    """What came out; of the ingredients those that surely gain, then those that surely lose, and how many are ties."""
    effects = [(one, e) for one in report.ingredients for e in one.effects if not e.data and e.quantity == "mean"]
    moved = sorted((x for x in effects if x[1].verdict != "tied"), key=lambda x: -x[1].mean)
    words = verdict_words(replace(report, ingredients=tuple(one for one, _ in moved)))
    ties = len(effects) - len(moved)
    if ties:
        rest = f"{'other ' if moved else ''}ingredient{'s are ties' if ties > 1 else ' is a tie'}"
        words.append(f"The {f'{ties} ' if ties > 1 else ''}{rest} averaged over subsets.")
    return words


def _standing(report: StudyReport, absent: Sequence[str] = ()) -> list[str]:
    """What every reader must know about numbers of this kind."""
    out = []
    if report.differences:
        out.append(
            "Differences are paired by test row and seed; 95 % percentile bootstrap intervals resample groups of rows "
            "and seeds. The pooled figure is the mean over these data sets, each counting the same: it speaks for them."
        )
        out.append("Better and worse mean that the interval excludes zero; Holm's correction is stated beside it.")
    if any(d.basis == "seeds" for d in report.differences):
        out.append("Where losses of single rows were not kept, the interval is Student's t over seeds.")
    noisy = [f"{t.data} ({100 * t.floor:.1f} points)" for t in report.tables if t.floor > MOST_NOISE]
    if noisy:
        out.append(
            f"No regret is given on {', '.join(noisy)}: two sets of oracles that differ in their seeds alone differ by "
            f"that much there, more than the {100 * MOST_NOISE:.0f} points that a floor may have."
        )
    if absent:
        out.append(f"Ingredients whose arms did not run at this scale: {'; '.join(absent)}.")
    if report.situations:
        out.append(
            "A technique is recommended on the test rows that its gain is measured on: the largest of several gains is "
            "too high on average, and its interval is not corrected for the choice. New rows would have to confirm it."
        )
    for arm in report.arms:
        same = [s.data for s in report.situations for t in s.techniques if t.arm == arm.name and unchanged(t)]
        if same:
            out.append(
                f"{arm.label} is the same model as {report.label(report.reference)} on {', '.join(same)}: it found "
                "nothing to do there, and +0.0 is no result."
            )
    other = [d.name for d in report.data if d.metric not in ("accuracy",)]
    if other:
        out.append(
            f"On {', '.join(other)} the tables show {report.info(other[0]).metric.replace('_', ' ')}; paired "
            "differences compare the mean loss of a row there (multilabel: the share of labels that are right)."
        )
    return out


def _failures(ledger: Ledger) -> list[str]:
    out = []
    for data in ledger.data:
        for metric in ledger.metrics(data, "failed"):
            out += [f"{data}, {e.arm}, seed {e.run[1]}: {e.stage}" for e in ledger.entries(data, "failed", metric)]
    return out
