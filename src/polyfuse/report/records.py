"""What a report is made of: plain records, JSON in and out, no model and no tensor.

Everything the report shows is computed from these fields, so ``report.json`` alone can be rendered again. Leave out
what was not measured (empty list, None): the section is left out. Names and labels may come from a user's file; they
are escaped where they are drawn, not here. Subsets are tuples of modality names: the inputs that are *present*.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polyfuse.errors import UserError
from polyfuse.report.plain import build, plain

FORMAT = 1
"""Version of the JSON layout; a reader refuses a newer one."""

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


@dataclass(frozen=True)
class ModalitySummary:
    """One input of the table.

    Attributes:
        name: Modality.
        type: image, text, audio, tabular, series, vector.
        columns: Columns of the table it is read from.
        missing: Share absent by split (``train``, ``validation``, ``test``), in [0, 1].
        encoder: What embeds it, such as ``image_cnn, 64 wide``; may be empty.
    """

    name: str
    type: str = ""
    columns: tuple[str, ...] = ()
    missing: dict[str, float] = field(default_factory=dict)
    encoder: str = ""


@dataclass(frozen=True)
class Problem:
    """How often one thing was wrong with the table.

    Attributes:
        modality: Which input; empty for the row as a whole or the target.
        kind: What: ``"missing file"``, ``"undecodable image"``, ``"no target"``.
        count: Times.
    """

    modality: str
    kind: str
    count: int


@dataclass(frozen=True)
class DataSummary:
    """What the run was made on.

    Attributes:
        name: Name of the data set or the table's file name.
        rows: Rows by split, in the order to print.
        target: Target column.
        classes: Class or label names; empty in regression.
        class_counts: Training rows by class name; may be empty.
        modalities: One summary each.
        patterns: Training rows by set of present modalities, as ``(subset, rows)``; the subset may be empty.
        problems: Counts of what was wrong.
        examples: The first broken cells, named, one line each (ten at most are printed).
        missing_rule: How cells came to be missing, in a sentence; may be empty.
        grouping: What stays on one side of the split and is resampled as a whole: ``"row"``, ``"concept"``.
        licence: Licence and source in a line; may be empty.
    """

    name: str = ""
    rows: dict[str, int] = field(default_factory=dict)
    target: str = ""
    classes: tuple[str, ...] = ()
    class_counts: dict[str, int] = field(default_factory=dict)
    modalities: tuple[ModalitySummary, ...] = ()
    patterns: tuple[tuple[tuple[str, ...], int], ...] = ()
    problems: tuple[Problem, ...] = ()
    examples: tuple[str, ...] = ()
    missing_rule: str = ""
    grouping: str = "row"
    licence: str = ""


@dataclass
class ReportData:
    """Everything a report shows.

    Attributes:
        title: Headline.
        task: classification, multilabel or regression.
        modalities: Names of all inputs, in the run's order.
        metric: The metric that ranks arms; the usual one of the task when None.
        created: Local date and time as text; printed as it stands.
        protocol: What was run, in plain sentences, one a line.
        data: What it was run on.
        arms: In the order to print.
        subset_records: One per arm, seed and subset: the heart of the report.
        seed_records: Numbers of a whole arm and seed.
        curves: Over drop rate.
        corruption: Broken, unflagged inputs.
        inputs: Whether each arm uses each input, of its first seed.
        reliability: Before and after calibration.
        weights: Modality weights.
        oracles: Models trained per subset.
        paired: Differences to the reference arm.
        reference: ``Arm.name`` that differences are taken to; the arm of kind ``reference`` when None.
        default: ``Arm.name`` of the recipe a user gets by default; the verdict always judges it.
        watch: Further arms that the verdict must judge, such as ``("aecf",)``.
        nominal_coverage: What the conformal sets promise, such as 0.9; None when there are none.
        commands: Command lines that made the report.
        versions: Package or tool to version.
        machine: Processor and threads in a line; may be empty.
        seconds: Wall time of the whole run.
        notes: What a reader must know to judge the numbers, one sentence each.
        headroom: Whether each input helps, as checked statements (one a line), printed under headroom.
        abstention: What a run flags as too unsure and why (one a line), printed with what the numbers say.
    """

    title: str
    task: str
    modalities: tuple[str, ...]
    metric: Metric | None = None
    created: str = ""
    protocol: list[str] = field(default_factory=list)
    data: DataSummary = field(default_factory=DataSummary)
    arms: list[Arm] = field(default_factory=list)
    subset_records: list[SubsetRecord] = field(default_factory=list)
    seed_records: list[SeedRecord] = field(default_factory=list)
    curves: list[CurvePoint] = field(default_factory=list)
    corruption: list[CorruptionRecord] = field(default_factory=list)
    inputs: list[InputRecord] = field(default_factory=list)
    reliability: list[Reliability] = field(default_factory=list)
    weights: list[Weights] = field(default_factory=list)
    oracles: list[Oracle] = field(default_factory=list)
    paired: list[Paired] = field(default_factory=list)
    reference: str | None = None
    default: str | None = None
    watch: tuple[str, ...] = ()
    nominal_coverage: float | None = None
    commands: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    machine: str = ""
    seconds: float | None = None
    notes: list[str] = field(default_factory=list)
    headroom: list[str] = field(default_factory=list)
    abstention: list[str] = field(default_factory=list)

    @property
    def primary(self) -> Metric:
        """The metric that ranks arms."""
        return self.metric or Metric.of_task(self.task)

    @property
    def reference_arm(self) -> str | None:
        """Name of the arm that differences are taken to, None when there is none."""
        return self.reference or next((a.name for a in self.arms if a.kind == "reference"), None)

    def arm(self, name: str) -> Arm:
        """Return the arm of that name.

        Raises:
            KeyError: If there is none.
        """
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(f"unknown arm {name!r}; known: {', '.join(a.name for a in self.arms)}")

    def check(self) -> None:
        """Refuse records that point at nothing, before anything is drawn.

        Raises:
            ValueError: For a repeated or unknown arm, an unknown modality or kind, or no arm at all.
        """
        names = [a.name for a in self.arms]
        if not names:
            raise ValueError("a report needs at least one arm, got none")
        if len(set(names)) < len(names):
            raise ValueError(f"arm names must differ, got {', '.join(names)}")
        for arm in self.arms:
            if arm.kind not in KINDS:
                raise ValueError(f"kind of arm {arm.name!r} must be one of {', '.join(KINDS)}, got {arm.kind!r}")
        asked = {n for n in (self.reference, self.default, *self.watch) if n is not None}
        for records in (self.subset_records, self.seed_records, self.curves, self.corruption, self.inputs):
            asked |= {r.arm for r in records}
        asked |= {r.arm for r in self.reliability} | {r.arm for r in self.weights}
        asked |= {r.arm for r in self.paired} | {r.reference for r in self.paired}
        if unknown := sorted(asked - set(names)):
            raise ValueError(f"records name unknown arms {', '.join(unknown)}; known: {', '.join(names)}")
        used = {m for r in self.subset_records for m in r.subset} | {r.modality for r in self.corruption}
        used |= {m for r in self.oracles for m in r.subset} | {r.modality for r in self.inputs}
        if unknown := sorted(used - set(self.modalities)):
            raise ValueError(f"records name unknown modalities {', '.join(unknown)}; known: {self.modalities}")
        if any(not r.subset for r in self.subset_records):
            raise ValueError("subset records must name at least one present modality, got an empty subset")

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts, numbers and strings; numbers that are not finite become None."""
        return {"format": FORMAT, **plain(dataclasses.asdict(self))}

    def to_json(self, **extra: Any) -> str:
        """Return the JSON text, with further top-level keys (such as a computed verdict) that reading ignores."""
        return json.dumps({**self.to_dict(), **plain(extra)}, indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "ReportData":
        """Rebuild from ``to_dict``; keys this version does not know at the top level are ignored.

        Raises:
            UserError: If it was written by a newer polyfuse.
            ValueError: If a field is missing, unknown or of the wrong type.
        """
        if int(record.get("format", FORMAT)) > FORMAT:
            raise UserError(
                f"this report has format {record['format']}, this polyfuse reads {FORMAT}: upgrade polyfuse"
            )
        known = {f.name for f in dataclasses.fields(cls)}
        return build(cls, {k: v for k, v in record.items() if k in known})

    @classmethod
    def from_json(cls, text: str) -> "ReportData":
        """Rebuild from ``to_json``."""
        return cls.from_dict(json.loads(text))


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
