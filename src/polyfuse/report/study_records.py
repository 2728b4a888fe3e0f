"""What a study came to: plain tables, from which its page, its JSON, its CSV and its console tables are drawn.

Every number is in the unit of the records (shares between 0 and 1, nats, seconds). Gains are positive where the arm is
better than what it is compared with, whatever the direction of the quantity.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from polyfuse.report.plain import plain

QUANTITIES = {
    "complete": "complete inputs",
    "mean": "mean over subsets",
    "worst": "worst subset",
    "nll": "mean NLL over subsets",
    "broken": "worst modality, held-out corruption",
    "noise": "worst modality, noise as in training",
}
"""What arms are compared on: key and name."""

IN_NATS = frozenset({"nll"})
"""Quantities that are no share: printed with three decimals."""


@dataclass(frozen=True)
class Stat:
    """A mean over seeds.

    Attributes:
        mean: Mean.
        sd: Standard deviation with n - 1; NaN for one seed, and for what is computed on seed means.
        n: Seeds.
    """

    mean: float
    sd: float = math.nan
    n: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> "Stat | None":
        """Summarise the finite values; None when there are none.

        Example:
            >>> Stat.of([1.0, 3.0, float("nan")])
            Stat(mean=2.0, sd=1.4142135623730951, n=2)
        """
        known = [v for v in values if math.isfinite(v)]
        if not known:
            return None
        mean = sum(known) / len(known)
        sd = math.sqrt(sum((v - mean) ** 2 for v in known) / (len(known) - 1)) if len(known) > 1 else math.nan
        return cls(mean, sd, len(known))


@dataclass(frozen=True)
class ArmInfo:
    """One arm of the study.

    Attributes:
        name: Its key.
        label: What a reader sees.
        kind: As in ``report.records.Arm``.
        note: What it is, in a sentence; may be empty.
    """

    name: str
    label: str
    kind: str = "arm"
    note: str = ""


@dataclass(frozen=True)
class DataInfo:
    """One data set (with one variant) of the study.

    Attributes:
        name: Its key: ``"htad"``, or with a variant ``"htad, missing 0.7"``.
        real: Whether its rows were measured (goals count only these).
        plain: Whether nothing was changed about it (goals count only these).
        licence: Of the data.
        about: One line on it.
        modalities: Its inputs.
        rows: Rows by split, such as ``{"test": 277}``.
        metric: The metric that ranks arms.
        notes: Facts a reader must know.
    """

    name: str
    real: bool = True
    plain: bool = True
    licence: str = ""
    about: str = ""
    modalities: tuple[str, ...] = ()
    rows: dict[str, int] = field(default_factory=dict)
    metric: str = "accuracy"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ArmRow:
    """A line of the main table.

    Attributes:
        arm: ``ArmInfo.name``.
        values: ``complete, mean, worst, regret`` (less the noise floor), ``nll, ece, coverage, worst_coverage, noise,
            broken, parameters, seconds, passes, ms, peak_mb, multiply_adds``; absent where nothing was measured.
        subsets: Metric by subset, mean over seeds.
        worst_subset: Where it is worst, on seed means; empty when unknown.
    """

    arm: str
    values: dict[str, Stat]
    subsets: dict[str, float] = field(default_factory=dict)
    worst_subset: str = ""


@dataclass(frozen=True)
class DataTable:
    """The main table of one data set.

    Attributes:
        data: ``DataInfo.name``.
        rows: One per arm, in the order of the plan.
        oracle: Metric of a model trained for one subset alone, by subset, mean over seeds.
        floor: Worst regret of an oracle against its twin with other seeds; NaN when there is no twin.
    """

    data: str
    rows: tuple[ArmRow, ...]
    oracle: dict[str, float] = field(default_factory=dict)
    floor: float = math.nan

    def row(self, arm: str) -> ArmRow | None:
        """The line of an arm, if it ran here."""
        return next((r for r in self.rows if r.arm == arm), None)


@dataclass(frozen=True)
class Difference:
    """An arm against another on the same rows and seeds.

    Attributes:
        data: ``DataInfo.name``; empty = the mean over the real data sets as they are.
        arm: The one.
        reference: The other.
        quantity: Key of ``QUANTITIES``, or ``"alone: audio"``.
        mean: Gain; positive = the arm is better.
        low: Lower end of the 95 % interval.
        high: Upper end.
        p: Two-sided bootstrap p-value.
        p_holm: The same after Holm's correction over the methods of this data set and quantity.
        basis: What was resampled: ``"rows and seeds"`` or ``"seeds"``.
        sets: Data sets in it.
    """

    data: str
    arm: str
    reference: str
    quantity: str
    mean: float
    low: float
    high: float
    p: float = math.nan
    p_holm: float = math.nan
    basis: str = "rows and seeds"
    sets: int = 1

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``tied``: whether the interval excludes zero."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "tied"

    @property
    def sure(self) -> bool:
        """Whether it also stands after Holm's correction."""
        return self.verdict != "tied" and self.p_holm < 0.05


@dataclass(frozen=True)
class Claim:
    """Whether an arm may be called better: surely so on at least two data sets, and nowhere surely worse.

    Attributes:
        arm: ``ArmInfo.name``.
        quantity: Key of ``QUANTITIES``.
        better: Real data sets on which the interval is above zero.
        worse: Those on which it is below.
        tied: The others.
        after_holm: Those of ``better`` that stand after Holm's correction.
    """

    arm: str
    quantity: str
    better: tuple[str, ...] = ()
    worse: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    after_holm: tuple[str, ...] = ()

    @property
    def stands(self) -> bool:
        """Whether the claim stands."""
        return len(self.better) >= 2 and not self.worse


@dataclass(frozen=True)
class Ingredient:
    """What one ingredient buys: the same arm with and without it.

    Attributes:
        label: Its name.
        arm_with: Arm.
        arm_without: The arm it is compared with.
        effects: By data set and quantity, then pooled (``data`` empty).
    """

    label: str
    arm_with: str
    arm_without: str
    effects: tuple[Difference, ...]


@dataclass(frozen=True)
class Goal:
    """One goal and whether it was met.

    Attributes:
        text: As it was set.
        met: Whether.
        figure: The number that says so.
        details: Per data set.
        measured: False where the records do not hold what is needed; then ``met`` is False too.
    """

    text: str
    met: bool
    figure: str
    details: tuple[str, ...] = ()
    measured: bool = True


@dataclass(frozen=True)
class CalibrationRow:
    """Calibration of an arm on a data set at one stage; means over seeds.

    Attributes:
        data: ``DataInfo.name``.
        arm: ``ArmInfo.name``.
        stage: ``raw, full, pooled, mask`` (temperature), or ``lac full``, ``aps mask`` and so on (sets).
        values: ``ece, nll`` with ``worst_ece, worst_nll``; or ``coverage, worst_coverage, set_size``.
    """

    data: str
    arm: str
    stage: str
    values: dict[str, Stat]


@dataclass(frozen=True)
class BrokenRow:
    """One input broken and nobody told.

    Attributes:
        data: ``DataInfo.name``.
        arm: ``ArmInfo.name``.
        modality: The input.
        corruption: What was done.
        held_out: Whether training never showed this kind.
        value: Metric, mean over seeds.
    """

    data: str
    arm: str
    modality: str
    corruption: str
    held_out: bool
    value: float


@dataclass(frozen=True)
class Technique:
    """One technique in one situation, before and after.

    Attributes:
        arm: ``ArmInfo.name``.
        alone: Metric with each input alone: ``{input: (before, after)}``.
        shapley: Share of each input: ``{input: (before, after)}``.
        values: ``{"worst" | "complete" | "mean" | "ece" | "nll": (before, after)}``.
        gains: Paired differences to the arm before.
    """

    arm: str
    alone: dict[str, tuple[float, float]]
    shapley: dict[str, tuple[float, float]]
    values: dict[str, tuple[float, float]]
    gains: tuple[Difference, ...]


@dataclass(frozen=True)
class Situation:
    """Techniques compared where one input is scarce, weak or badly labelled.

    Attributes:
        data: ``DataInfo.name``.
        before: The arm they are compared with.
        techniques: One per arm.
        best: The arm recommended; empty when none surely helps.
        sentence: The recommendation.
    """

    data: str
    before: str
    techniques: tuple[Technique, ...]
    best: str
    sentence: str


@dataclass(frozen=True)
class Family:
    """Early, late or hybrid fusion: what it scores and costs, mean over the data sets that all of them ran on.

    Attributes:
        label: ``early``, ``late``, ``hybrid``.
        arm: Its arm.
        values: ``complete, mean, worst, broken, ms, peak_mb, parameters, multiply_adds, seconds``.
        strengths: In words that follow from the table.
        weaknesses: The same.
    """

    label: str
    arm: str
    values: dict[str, float]
    strengths: tuple[str, ...] = ()
    weaknesses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cost:
    """What an arm costs, as a geometric mean over data sets, and against the reference.

    Attributes:
        arm: ``ArmInfo.name``.
        values: ``parameters, multiply_adds, passes, seconds, ms, peak_mb``.
        ratios: The same against the reference arm on the same data sets.
    """

    arm: str
    values: dict[str, float]
    ratios: dict[str, float]


@dataclass
class StudyReport:
    """Everything a study's page says.

    Attributes:
        name: Of the study.
        title: Of the page.
        question: What it asks, in a sentence.
        default: The arm that must earn its place; empty = none.
        reference: The arm that differences are taken to; empty = none.
        arms: In the order of the plan.
        data: In the order of the study.
        tables: One per data set.
        differences: To the reference, per data set and pooled.
        claims: Per arm and quantity.
        ingredients: What each buys.
        goals: Empty when the study has none.
        calibration: Per data set, arm and stage.
        broken: Per data set, arm, input and corruption.
        situations: Of a study of imbalance.
        families: Early, late, hybrid.
        costs: Per arm.
        seeds: Most seeds of an arm.
        verdict: Sentences that come first.
        lost: What did not work, in sentences.
        protocol: How it was done, in sentences.
        notes: What must be known to judge the numbers.
        commands: That make it again.
        versions: What computed it.
        failed: Jobs that failed.
        created: Date; may be empty.
        machine: One line; may be empty.
    """

    name: str
    title: str
    question: str = ""
    default: str = ""
    reference: str = ""
    arms: tuple[ArmInfo, ...] = ()
    data: tuple[DataInfo, ...] = ()
    tables: tuple[DataTable, ...] = ()
    differences: tuple[Difference, ...] = ()
    claims: tuple[Claim, ...] = ()
    ingredients: tuple[Ingredient, ...] = ()
    goals: tuple[Goal, ...] = ()
    calibration: tuple[CalibrationRow, ...] = ()
    broken: tuple[BrokenRow, ...] = ()
    situations: tuple[Situation, ...] = ()
    families: tuple[Family, ...] = ()
    costs: tuple[Cost, ...] = ()
    seeds: int = 0
    verdict: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    protocol: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    failed: tuple[str, ...] = ()
    created: str = ""
    machine: str = ""

    def label(self, arm: str) -> str:
        """What a reader sees of an arm."""
        return next((a.label for a in self.arms if a.name == arm), arm)

    def info(self, data: str) -> DataInfo:
        """The facts of a data set."""
        return next(d for d in self.data if d.name == data)

    def table(self, data: str) -> DataTable:
        """The main table of a data set."""
        return next(t for t in self.tables if t.data == data)

    def difference(self, arm: str, quantity: str, data: str = "") -> Difference | None:
        """An arm's difference to the reference; pooled when ``data`` is empty."""
        asked = (arm, quantity, data)
        return next((d for d in self.differences if (d.arm, d.quantity, d.data) == asked), None)

    @property
    def judged(self) -> tuple[DataInfo, ...]:
        """The real data sets as they are: what goals and pooled figures count (these count all where there is none)."""
        return tuple(d for d in self.data if d.real and d.plain)

    @property
    def pool(self) -> str:
        """What pooled figures are over, in words."""
        return "real data sets" if self.judged else "data sets"

    def to_json(self) -> str:
        """All tables as JSON; what is not finite is null."""
        out = asdict(self)
        for kept, record in zip(out["differences"], self.differences, strict=True):
            kept |= {"verdict": record.verdict, "sure": record.sure}
        for kept, claim in zip(out["claims"], self.claims, strict=True):
            kept |= {"stands": claim.stands}
        return json.dumps(plain(out), ensure_ascii=False, indent=1, allow_nan=False) + "\n"
