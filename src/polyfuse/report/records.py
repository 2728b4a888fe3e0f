"""The records a report is made of: plain numbers by arm, seed and subset; no model and no tensor.

Leave out what was not measured (empty list, None): the section is left out. Names and labels may come from a user's
file; they are escaped where they are drawn, not here. Subsets are tuples of modality names: the inputs that are
*present*.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KINDS = ("arm", "reference", "baseline", "unimodal")
"""Kinds of arm. ``reference`` is the arm that differences are taken to; ``baseline`` is not a fusion
(presence only, gradient boosting); ``unimodal`` reads one modality and appears under headroom, not in the ranking."""


@dataclass(frozen=True)
class Metric:
    """The task metric that ranks arms.

    Attributes:
        name: Its key in ``SubsetRecord.metrics``: ``"accuracy"``, ``"macro_ap"``, ``"r2"``, ``"rmse"``, ...
        label: What a reader sees: ``"accuracy"``, ``"mean absolute error"``.
        higher_is_better: Direction.
        percent: Values are shares and are printed times 100 (differences are then called points).
        unit: Printed after a value that is no share, such as ``"EUR"``; may be empty.
    """

    name: str
    label: str
    higher_is_better: bool = True
    percent: bool = True
    unit: str = ""

    @classmethod
    def of_task(cls, task: str) -> "Metric":
        """Return the usual metric of a task: accuracy, macro average precision or R².

        Raises:
            ValueError: If ``task`` is none of classification, multilabel, regression.
        """
        known = {
            "classification": cls("accuracy", "accuracy"),
            "multilabel": cls("macro_ap", "macro average precision"),
            "regression": cls("r2", "R²", percent=False),
        }
        if task not in known:
            raise ValueError(f"task must be one of {', '.join(known)}, got {task!r}")
        return known[task]


@dataclass(frozen=True)
class Arm:
    """One way of doing the job, trained with one or more seeds.

    Attributes:
        name: Key that every other record uses.
        label: What a reader sees; the name when empty.
        kind: One of ``KINDS``.
        seeds: The seeds trained.
        parameters: Trained parameters, None when unknown or meaningless.
        train_seconds: Seconds of training, one per seed.
        ms_per_row: Milliseconds to predict one row, in batches as evaluated.
        drop_rate: Realised modality dropout in training, None when there is none.
        uses: The modalities it reads; empty = all of the report's.
        note: One sentence on what it is, such as its hyper-parameters; may be empty.
    """

    name: str
    label: str = ""
    kind: str = "arm"
    seeds: tuple[int, ...] = (0,)
    parameters: int | None = None
    train_seconds: tuple[float, ...] = ()
    ms_per_row: float | None = None
    drop_rate: float | None = None
    uses: tuple[str, ...] = ()
    note: str = ""

    @property
    def title(self) -> str:
        """The label, or the name where there is none."""
        return self.label or self.name


@dataclass(frozen=True)
class SubsetRecord:
    """Scores of one arm and seed when exactly these inputs are given.

    Attributes:
        arm: ``Arm.name``.
        seed: Training seed.
        subset: Names of the present modalities; never empty.
        n: Test rows scored.
        metrics: By key: the primary metric; ``nll``, ``brier``, ``ece``, ``ece_equal_mass`` before and
            ``nll_calibrated``, ``brier_calibrated``, ``ece_calibrated`` after calibration; ``coverage`` and
            ``set_size`` of the conformal sets (in regression the width of the interval); ``aurc``, ``augrc``,
            ``abstained``. Further keys go into the JSON and CSV untouched.
    """

    arm: str
    seed: int
    subset: tuple[str, ...]
    n: int
    metrics: dict[str, float]

    @classmethod
    def from_metrics(cls, arm: str, seed: int, record: Mapping[str, Any]) -> "SubsetRecord":
        """Make one from a flat record such as ``polyfuse.evaluate`` returns.

        ``record["subset"]`` is a sequence of names or ``"image+text"``; every other number becomes a metric.
        """
        subset = record["subset"]
        names = tuple(subset.split("+")) if isinstance(subset, str) else tuple(subset)
        skip = {"arm", "seed", "subset", "size", "n"}
        return cls(arm, seed, names, int(record["n"]), _numbers(record, skip))


@dataclass(frozen=True)
class SeedRecord:
    """Numbers of one arm and seed that belong to no single subset.

    Attributes:
        arm: ``Arm.name``.
        seed: Training seed.
        metrics: By key; ``violation_rate`` (share of rows that grow more confident when an input is taken away),
            ``violation_mean``, ``mean_nll_validation``, ... All are printed in the details table.
    """

    arm: str
    seed: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class CurvePoint:
    """The primary metric when each input is dropped with one probability.

    Attributes:
        arm: ``Arm.name``.
        seed: Training seed.
        rate: Probability in [0, 1] that an input is dropped (at least one survives).
        value: Primary metric, expected over the subsets.
    """

    arm: str
    seed: int
    rate: float
    value: float


@dataclass(frozen=True)
class CorruptionRecord:
    """Scores when one input is broken and nobody says so.

    Attributes:
        arm: ``Arm.name``.
        seed: Training seed.
        corruption: What was done: ``"noise 3"``, ``"permuted"``, ``"stuck"``, ``"scaled 4"``.
        modality: The broken input: the model is told that it is fine. All others are as they were.
        metrics: By key, as in ``SubsetRecord``; the primary metric is needed. The same key with ``_intact`` behind it
            is the score of the same rows before anything was broken.
    """

    arm: str
    seed: int
    corruption: str
    modality: str
    metrics: dict[str, float]

    @classmethod
    def from_metrics(cls, arm: str, seed: int, record: Mapping[str, Any]) -> "CorruptionRecord":
        """Make one from a flat record with ``corruption`` and ``modality``; every other number becomes a metric."""
        skip = {"arm", "seed", "corruption", "modality", "n"}
        return cls(arm, seed, str(record["corruption"]), str(record["modality"]), _numbers(record, skip))


@dataclass(frozen=True)
class InputRecord:
    """What one input is to one arm, over the test rows that have it; positive = it helps.

    Attributes:
        arm: ``Arm.name``.
        seed: Training seed.
        modality: The input.
        way: ``"added"`` (what it brings on average over what else a row has), ``"removed"``, ``"permuted"`` or
            ``"other row"`` (replaced by that of a row with another label).
        metrics: ``n``; ``gain`` in the primary metric (multilabel: share of right labels) and ``nll``, each with
            ``_low``, ``_high`` (95 % interval over rows) and ``_p``; ``share``: gain over score minus that of the
            constant answer.
    """

    arm: str
    seed: int
    modality: str
    way: str
    metrics: dict[str, float]

    @classmethod
    def from_metrics(cls, arm: str, seed: int, record: Mapping[str, Any]) -> "InputRecord":
        """Make one from a flat record with ``modality`` and ``way``; every number becomes a metric."""
        return cls(arm, seed, str(record["modality"]), str(record["way"]), _numbers(record, {"modality", "way"}))


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram.

    Attributes:
        confidence: Mean confidence in the bin (regression: the nominal level of the interval), in [0, 1].
        accuracy: Share that was right (regression: share inside the interval), in [0, 1].
        count: Rows in the bin; empty bins are skipped.
    """

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram of one arm on one subset; several of the same (one per seed) are pooled.

    Attributes:
        arm: ``Arm.name``.
        subset: Present modalities.
        stage: ``"raw"`` or ``"calibrated"``.
        bins: In order of confidence.
    """

    arm: str
    subset: tuple[str, ...]
    stage: str
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Weights:
    """Mean weight an arm puts on each modality.

    Attributes:
        arm: ``Arm.name``.
        subset: Present modalities; absent ones weigh nothing.
        weights: Modality name to mean weight; they sum to 1 where the fusion normalises.
        seed: Training seed; several are averaged.
    """

    arm: str
    subset: tuple[str, ...]
    weights: dict[str, float]
    seed: int = 0


@dataclass(frozen=True)
class Oracle:
    """The primary metric of a model trained for one subset and tested on it: what is possible there.

    Attributes:
        subset: Present modalities.
        seed: Training seed.
        value: Primary metric.
    """

    subset: tuple[str, ...]
    seed: int
    value: float


@dataclass(frozen=True)
class Paired:
    """A paired difference, arm minus reference, with its 95 % interval.

    Attributes:
        arm: ``Arm.name``.
        reference: ``Arm.name`` of the other side.
        metric: Key of the metric; the primary one unless said.
        mean: Arm minus reference, in units of the metric.
        low: Lower end of the interval.
        high: Upper end; the interval that holds zero is a tie.
        over: ``"mean"`` over subsets, ``"complete"`` inputs, or ``"worst"`` subset.
    """

    arm: str
    reference: str
    metric: str
    mean: float
    low: float
    high: float
    over: str = "mean"

    @property
    def tie(self) -> bool:
        """Whether the interval includes zero."""
        return self.low <= 0.0 <= self.high


def subset_records(arm: str, seed: int, records: Iterable[Mapping[str, Any]]) -> list[SubsetRecord]:
    """Turn the flat per-subset records of one evaluation into ``SubsetRecord`` rows."""
    return [SubsetRecord.from_metrics(arm, seed, r) for r in records]


def ordered_subset(subset: Iterable[str], modalities: Sequence[str]) -> tuple[str, ...]:
    """Return the subset in the order of ``modalities``.

    Example:
        >>> ordered_subset(("text", "image"), ("image", "audio", "text"))
        ('image', 'text')
    """
    names = set(subset)
    return tuple(m for m in modalities if m in names)


def _numbers(record: Mapping[str, Any], skip: set[str]) -> dict[str, float]:
    out = {}
    for key, value in record.items():
        number = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
        if key not in skip and isinstance(number, int | float) and not isinstance(number, bool):
            out[key] = float(number)
    return out
