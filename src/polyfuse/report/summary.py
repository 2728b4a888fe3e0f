"""Records to the numbers of a table: complete, mean, worst, calibration, regret, with spread over seeds and ties.

Mean and worst run over every subset that a ranked arm was scored on; an arm without all of them has no mean (when no
arm has all of them, over the subsets that every arm has). Both are taken within a seed first, then averaged over seeds,
so that the spread is that of the number shown.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from polyfuse.report.content import ReportData
from polyfuse.report.records import Arm, Metric, ordered_subset

Subset = tuple[str, ...]
Table = dict[int, dict[Subset, float]]
"""One arm's values by seed, then subset."""

# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom; the normal one beyond.
_T: tuple[float, ...] = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
)
_T += (2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)


@dataclass(frozen=True)
class Spread:
    """A mean over seeds.

    Attributes:
        mean: Mean.
        sd: Standard deviation with n - 1; NaN for one seed.
        by_seed: The values that made it.
    """

    mean: float
    sd: float
    by_seed: dict[int, float]

    @classmethod
    def of(cls, by_seed: Mapping[int, float]) -> "Spread | None":
        """Summarise finite values; None when there are none."""
        values = {s: v for s, v in by_seed.items() if math.isfinite(v)}
        if not values:
            return None
        sd = statistics.stdev(values.values()) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values.values()), sd, values)


@dataclass
class ArmSummary:
    """One row of the table of arms.

    Attributes:
        arm: The arm.
        values: By column key (``COLUMNS``); None where it was not measured.
        worst_subset: Where the worst value is, by the mean over seeds.
        marks: ``"best"`` or ``"tie"`` by column key.
    """

    arm: Arm
    values: dict[str, Spread | None]
    worst_subset: Subset | None = None
    marks: dict[str, str] = field(default_factory=dict)

    def mean(self, key: str) -> float:
        """The mean of a column, NaN where there is none."""
        value = self.values.get(key)
        return math.nan if value is None else value.mean


@dataclass(frozen=True)
class Summary:
    """Everything the table, the verdict and the figures read.

    Attributes:
        data: The records.
        subsets: Every subset scored by a ranked arm: more inputs first, then in the order of the modalities.
        ranked: Arms, reference and baselines, in the given order.
        unimodal: Arms that read one modality.
        tables: Primary metric by arm, seed and subset.
    """

    data: ReportData
    subsets: tuple[Subset, ...]
    ranked: list[ArmSummary]
    unimodal: list[ArmSummary]
    tables: dict[str, Table]

    @property
    def complete(self) -> Subset | None:
        """The subset of all modalities, None when it was not scored."""
        return self.subsets[0] if self.subsets and len(self.subsets[0]) == len(self.data.modalities) else None

    def of(self, name: str) -> ArmSummary:
        """The summary of an arm by name."""
        return next(s for s in (*self.ranked, *self.unimodal) if s.arm.name == name)

    def at(self, name: str, subset: Subset) -> float:
        """Mean over seeds of the primary metric of an arm on a subset, NaN when not measured."""
        values = [row[subset] for row in self.tables.get(name, {}).values() if subset in row]
        return statistics.fmean(values) if values else math.nan

    def best(self, key: str = "mean") -> ArmSummary | None:
        """The ranked arm that is best in a column."""
        have = [s for s in self.ranked if s.values.get(key) is not None]
        return max(have, key=lambda s: sign(self.data.primary) * s.mean(key), default=None)


def sign(metric: Metric) -> int:
    """Return 1 where higher is better, else -1."""
    return 1 if metric.higher_is_better else -1


def summarise(data: ReportData) -> Summary:
    """Compute every number of the table of arms.

    Raises:
        ValueError: From ``ReportData.check``.
    """
    data.check()
    tables = table_of(data, data.primary.name)
    ranked_names = {a.name for a in data.arms if a.kind != "unimodal"}
    seen = [set(row) for name in ranked_names for row in tables.get(name, {}).values()]
    shared = set[Subset]().union(*seen)
    if shared not in seen and seen:  # nobody was scored everywhere: compare where everybody was
        shared = set.intersection(*seen)
    subsets = tuple(sorted(shared, key=lambda s: subset_order(s, data.modalities)))
    keys = {r: table_of(data, r) for r in ("ece", "ece_calibrated", "coverage", "set_size")}
    rows = [_summary(data, arm, subsets, tables.get(arm.name, {}), keys) for arm in data.arms]
    ranked = [r for r in rows if r.arm.kind != "unimodal"]
    summary = Summary(data, subsets, ranked, [r for r in rows if r.arm.kind == "unimodal"], tables)
    _mark(summary)
    return summary


def table_of(data: ReportData, key: str) -> dict[str, Table]:
    """Values of one metric by arm, seed and subset; values that are not finite are left out."""
    tables: dict[str, Table] = {}
    for r in data.subset_records:
        value = r.metrics.get(key, math.nan)
        if math.isfinite(value):
            tables.setdefault(r.arm, {}).setdefault(r.seed, {})[ordered_subset(r.subset, data.modalities)] = value
    return tables


def subset_order(subset: Subset, modalities: tuple[str, ...]) -> tuple[int, list[int]]:
    """Sort key: more inputs first, then in the order of the modalities."""
    return -len(subset), [modalities.index(m) for m in subset]


def judged_rows(data: ReportData, count: int | None = None) -> str:
    """Name the rows that the scores are of: all of them, or ``count``.

    Example:
        >>> judged_rows(ReportData("t", "regression", ("a",)), 1)
        '1 test row'
    """
    split = "validation" if not data.data.rows.get("test") and data.data.rows.get("validation") else "test"
    if count is None:
        count = data.data.rows.get(split) or max((r.n for r in data.subset_records), default=0)
    return f"{count:,} {split} row{'' if count == 1 else 's'}"


def subset_label(subset: Subset, modalities: tuple[str, ...]) -> str:
    """Return what a reader sees for a set of present inputs.

    Example:
        >>> subset_label(("a", "b"), ("a", "b", "c")), subset_label(("b",), ("a", "b", "c"))
        ('a + b', 'b alone')
    """
    if len(subset) == len(modalities) and len(modalities) > 1:
        return "complete"
    return f"{subset[0]} alone" if len(subset) == 1 and len(modalities) > 1 else " + ".join(subset)


def _over(table: Table, subsets: tuple[Subset, ...], reduce: Callable[[Iterable[float]], float]) -> Spread | None:
    whole = {seed: row for seed, row in table.items() if subsets and set(subsets) <= set(row)}
    return Spread.of({seed: reduce([row[s] for s in subsets]) for seed, row in whole.items()})


def _summary(
    data: ReportData, arm: Arm, subsets: tuple[Subset, ...], table: Table, others: Mapping[str, dict[str, Table]]
) -> ArmSummary:
    metric = data.primary
    worst: Callable[[Iterable[float]], float] = min if metric.higher_is_better else max
    complete = tuple(data.modalities)
    coverage = others["coverage"].get(arm.name, {})
    values = {
        "complete": Spread.of({seed: row.get(complete, math.nan) for seed, row in table.items()}),
        "mean": _over(table, subsets, statistics.fmean),
        "worst": _over(table, subsets, worst),
        "ece": _over(others["ece"].get(arm.name, {}), subsets, statistics.fmean),
        "ece_calibrated": _over(others["ece_calibrated"].get(arm.name, {}), subsets, statistics.fmean),
        "coverage": _over(coverage, subsets, statistics.fmean),
        "worst_coverage": _over(coverage, subsets, min),
        "set_size": _over(others["set_size"].get(arm.name, {}), subsets, statistics.fmean),
        "seconds": Spread.of(dict(enumerate(arm.train_seconds))),
        "ms": None if arm.ms_per_row is None else Spread.of({0: arm.ms_per_row}),
        "parameters": None if arm.parameters is None else Spread.of({0: float(arm.parameters)}),
    }
    values["mean_regret"], values["regret"] = _regrets(data, table, subsets)
    at = {s: [row[s] for row in table.values() if s in row] for s in subsets}
    means = {s: sign(metric) * statistics.fmean(v) for s, v in at.items() if v}
    return ArmSummary(arm, values, min(means, key=lambda s: means[s]) if values["worst"] else None)


def _regrets(data: ReportData, table: Table, subsets: tuple[Subset, ...]) -> tuple[Spread | None, Spread | None]:
    """Mean and worst over subsets of (oracle - arm), positive where the arm is behind."""
    oracle: Table = {}
    for o in data.oracles:
        if math.isfinite(o.value):
            oracle.setdefault(o.seed, {})[ordered_subset(o.subset, data.modalities)] = o.value
    found = {s for row in oracle.values() for s in row}
    pooled = {s: statistics.fmean([row[s] for row in oracle.values() if s in row]) for s in found}
    shared = [s for s in subsets if s in pooled]
    gaps = {
        seed: [sign(data.primary) * (oracle.get(seed, pooled).get(s, pooled[s]) - row[s]) for s in shared]
        for seed, row in table.items()
        if shared and set(subsets) <= set(row)
    }
    return Spread.of({s: statistics.fmean(g) for s, g in gaps.items()}), Spread.of({s: max(g) for s, g in gaps.items()})


def _mark(summary: Summary) -> None:
    """Mark the best arm of each judged column and the arms that cannot be told from it."""
    direction = sign(summary.data.primary)
    columns = {"complete": direction, "mean": direction, "worst": direction, "ece_calibrated": -1, "regret": -1}
    for key, way in columns.items():
        # A predictor that knows nothing is well calibrated: baselines do not compete there.
        calibration = key == "ece_calibrated"
        have = [s for s in summary.ranked if s.values.get(key) and not (calibration and s.arm.kind == "baseline")]
        if len(have) < 2:
            continue
        best = max(have, key=lambda s: way * s.mean(key))
        for row in have:
            if row is best:
                row.marks[key] = "best"
            elif is_tie(summary.data, row, best, key):
                row.marks[key] = "tie"


@dataclass(frozen=True)
class Gap:
    """A difference of two arms with its 95 % interval, turned so that positive is better.

    Attributes:
        mean: First arm minus second.
        low: Lower end.
        high: Upper end.
        over_seeds: Whether the interval covers seeds only (test rows otherwise).
    """

    mean: float
    low: float
    high: float
    over_seeds: bool

    @property
    def tie(self) -> bool:
        """Whether the interval includes zero."""
        return self.low <= 0.0 <= self.high


def gap_of(data: ReportData, a: ArmSummary, b: ArmSummary, key: str) -> Gap | None:
    """Return the difference a - b in a column.

    The paired interval of the two where the records hold one (it covers test rows), else the 95 % t interval of their
    differences seed by seed, else (fewer than two seeds in common) None.
    """
    way = sign(data.primary) if key in ("complete", "mean", "worst") else -1
    for p in data.paired:
        known = math.isfinite(p.mean) and math.isfinite(p.low) and math.isfinite(p.high)
        same = {p.arm, p.reference} == {a.arm.name, b.arm.name} and p.metric == data.primary.name and p.over == key
        if same and known:
            turn = way if p.arm == a.arm.name else -way
            low, high = sorted((turn * p.low, turn * p.high))
            return Gap(turn * p.mean, low, high, over_seeds=False)
    one, two = a.values.get(key), b.values.get(key)
    if one is None or two is None:
        return None
    seeds = sorted(set(one.by_seed) & set(two.by_seed))
    if len(seeds) < 2:
        return None
    differences = [way * (one.by_seed[s] - two.by_seed[s]) for s in seeds]
    return Gap(statistics.fmean(differences), *t_interval(differences), over_seeds=True)


def is_tie(data: ReportData, row: ArmSummary, best: ArmSummary, key: str) -> bool:
    """Whether two arms cannot be told apart in a column; without any interval only when they print alike."""
    gap = gap_of(data, row, best, key)
    return math.isclose(row.mean(key), best.mean(key), abs_tol=5e-4) if gap is None else gap.tie


def t_interval(values: list[float]) -> tuple[float, float]:
    """95 % Student interval of a mean.

    Example:
        >>> low, high = t_interval([1.0, 2.0, 3.0])
        >>> round(low, 3), round(high, 3)
        (-0.484, 4.484)
    """
    n = len(values)
    mean = statistics.fmean(values)
    half = (_T[n - 2] if n - 2 < len(_T) else 1.96) * statistics.stdev(values) / math.sqrt(n)
    return mean - half, mean + half
