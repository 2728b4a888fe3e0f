"""All that one report shows, JSON in and out.

Everything on the page is computed from these fields, so ``report.json`` alone can be rendered again.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from polyfuse.errors import UserError
from polyfuse.report.plain import build, plain
from polyfuse.report.records import (
    KINDS,
    Arm,
    CorruptionRecord,
    CurvePoint,
    InputRecord,
    Metric,
    Oracle,
    Paired,
    Reliability,
    SeedRecord,
    SubsetRecord,
    Weights,
)

FORMAT = 1
"""Version of the JSON layout; a reader refuses a newer one."""


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
