"""The main job: every fusion on the embedded emoji data, every combination of missing inputs, one report.

Three encoders are trained once, alone, and frozen; every arm then trains fusion and head on the cached features. The
features of a training row come from encoders that have not seen its concept (``cache_features`` says why). Every arm
has the same rows, holes, steps and seeds, and the same number of settings tried on validation rows.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polyfuse.config import PLAIN, EncoderConfig, EvaluateConfig, ModelConfig, TrainConfig
from polyfuse.data.describe import class_counts, patterns
from polyfuse.data.emoji import CLASSES, MISSING_RATE, MODALITIES, SPLITS, EmojiTables, load_emoji
from polyfuse.errors import UserError
from polyfuse.evaluate.intervals import Interval, paired_difference
from polyfuse.files import new_folder
from polyfuse.report.content import DataSummary, ModalitySummary, ReportData
from polyfuse.report.context import machine, this_command, versions
from polyfuse.report.format import format_value
from polyfuse.report.records import Metric
from polyfuse.report.render import write_report
from polyfuse.report.table import console_text
from polyfuse.studies.arms import Outcome, Plan, Task
from polyfuse.studies.compare import Say, cache_features, compare_arms, oracle_plan

REFERENCE, DEFAULT, AECF = "reference", "default", "aecf"
RATES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
CEILING = 0.9


@dataclass(frozen=True)
class Scale:
    """How much of the job is done.

    Attributes:
        concepts: Concepts used per split; None = all.
        epochs: Of the encoders.
        folds: Parts of the training rows that are embedded by encoders trained on the others.
        steps: Of every arm.
        tries: Settings tried per arm.
        seeds: Per arm.
        bootstrap: Resamples of an interval.
    """

    concepts: int | None
    epochs: int
    folds: int
    steps: int
    tries: int
    seeds: int
    bootstrap: int


SCALES = {
    "full": Scale(None, 12, 4, 400, 6, 5, 1000),
    "smoke": Scale(60, 1, 2, 8, 2, 2, 100),
}


@dataclass(frozen=True)
class Check:
    """Whether the data set is fit for the question: each input helps, none suffices.

    Attributes:
        arm: The arm it is read from: the one with the lowest validation loss.
        alone: Accuracy with every input alone.
        majority: Accuracy of always naming the most frequent class.
        pair: The pair of inputs with the lowest log loss.
        pair_accuracy: Accuracy with that pair.
        accuracy: Accuracy with all three.
        gain: All three minus the pair, in accuracy.
        loss: All three minus the pair, in log loss (nats), after calibration.
    """

    arm: str
    alone: dict[str, float]
    majority: float
    pair: tuple[str, ...]
    pair_accuracy: float
    accuracy: float
    gain: Interval
    loss: Interval

    @property
    def informative(self) -> bool:
        """Whether every input alone is worth much more than none."""
        return all(value > 1.5 * self.majority for value in self.alone.values())

    @property
    def ceiling(self) -> bool:
        """Whether an input alone leaves little to do."""
        return max(self.alone.values()) >= CEILING

    @property
    def all_beat_the_pair(self) -> bool:
        """Whether all three are surely better than the best pair, judged by log loss: it sees more than accuracy."""
        return self.loss.high < 0 and self.gain.mean > 0

    def lines(self) -> list[str]:
        """What was checked, in sentences."""
        shown = ", ".join(f"{name} {_percent(value)}" for name, value in self.alone.items())
        informative = "each is informative" if self.informative else "NOT each is informative"
        ceiling = "one is near the ceiling" if self.ceiling else "none is near the ceiling"
        beat = "beat" if self.all_beat_the_pair else "do not surely beat"
        loss = f"{self.loss.mean:+.3f} nats of log loss ({self.loss.low:+.3f} to {self.loss.high:+.3f})"
        mean, low, high = (100 * value for value in self.gain[:3])
        return [
            f"Inputs alone: {shown}; the most frequent class is {_percent(self.majority)}: {informative}, {ceiling}.",
            (
                f"All three inputs {beat} the best pair, {' + '.join(self.pair)}: {_percent(self.accuracy)} against "
                f"{_percent(self.pair_accuracy)}, {mean:+.1f} points ({low:+.1f} to {high:+.1f}) and {loss}; 95 % "
                f"intervals by concept, of {self.arm}, the arm with the lowest validation loss."
            ),
        ]


@dataclass(frozen=True)
class DemoResult:
    """What the demo came to.

    Attributes:
        folder: With ``report.html``, ``report.json`` and ``report.csv``.
        report: The records.
        check: Whether the data set is fit for the question.
        outcomes: By arm, one per seed.
    """

    folder: Path
    report: ReportData
    check: Check
    outcomes: dict[str, list[Outcome]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "report": str(self.folder / "report.html"),
            "seconds": self.report.seconds,
            "check": dataclasses.asdict(self.check),
            "arms": [dataclasses.asdict(arm) for arm in self.report.arms],
            "records": [dataclasses.asdict(r) for r in self.report.subset_records],
            "paired": [dataclasses.asdict(p) for p in self.report.paired],
        }

    def text(self) -> str:
        """The table of arms, what it says in plain words, where the report is."""
        aecf = self.report.arm(AECF)
        more = [*self.check.lines(), f"{aecf.title}: {aecf.note} {_realised(self.outcomes[AECF])}"]
        text = console_text(self.report, self.folder / "report.html", more=more)
        return f"{text} ({self.report.seconds:.0f} s)"


def run_demo(
    *,
    out: Path | None = None,
    scale: str = "full",
    seeds: int | None = None,
    workers: int = 2,
    say: Say = lambda line: None,
) -> DemoResult:
    """Run the main job and write its report.

    Args:
        out: Folder of the report; None = ``runs/demo-N``.
        scale: ``full``, or ``smoke`` (seconds; its numbers mean nothing).
        seeds: Seeds per arm; None = the scale's.
        workers: Processes of one thread.
        say: Told the progress, line by line.

    Raises:
        UserError: If ``scale`` is unknown, ``seeds`` or ``workers`` is below 1, or ``out`` is not empty.
    """
    if scale not in SCALES:
        raise UserError(f"--scale must be one of {', '.join(SCALES)}, got '{scale}'")
    size = SCALES[scale]
    if seeds is not None:
        size = replace(size, seeds=seeds)
    for name, value in (("seeds", size.seeds), ("workers", workers)):
        if value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")
    started = time.perf_counter()
    folder = new_folder("demo", out)
    tables = _cut(load_emoji(), size.concepts)
    say(f"emoji: {len(tables.train)} training, {len(tables.validation)} validation, {len(tables.test)} test rows")
    say(f"training three encoders, frozen from then on ({time.perf_counter() - started:.0f} s)")
    task = _task(tables, size, workers, say)
    plans = arms(size)
    seconds = time.perf_counter() - started
    say(f"training {len(plans)} arms x {size.seeds} seeds in {workers} processes ({seconds:.0f} s)")
    report = _report(tables, size)
    reference = next(plan for plan in plans if plan.name == REFERENCE)
    outcomes = compare_arms(
        report,
        task,
        plans,
        seeds=range(size.seeds),
        oracles=oracle_plan(reference.model, reference.train),
        workers=workers,
        say=say,
    )
    check = check_inputs(report, outcomes, tables)
    report.default, report.watch = DEFAULT, (AECF,)
    report.headroom += check.lines()
    report.commands = [this_command()]
    report.seconds = time.perf_counter() - started
    write_report(report, folder)
    return DemoResult(folder, report, check, outcomes)


def arms(size: Scale) -> list[Plan]:
    """The arms, every one with as many settings to try on validation rows."""
    recipe = TrainConfig(steps=size.steps, evaluations=16 if size.steps > 50 else 2, patience=6, threads=1)
    train = recipe.model_copy(update={"recipe": PLAIN})
    plain = ModelConfig(fusion="concat", modality_dropout=0.0, corruption=0.0)
    dropped = plain.model_copy(update={"modality_dropout": 0.5})
    rates = tuple({"model.modality_dropout": rate} for rate in RATES)[: size.tries]
    heads = tuple({"model.dropout": rate} for rate in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5))[: size.tries]

    def fused(name: str, label: str, fusion: str, tries: Sequence[Mapping[str, Any]] = rates, note: str = "") -> Plan:
        model = dropped.model_copy(update={"fusion": fusion})
        return Plan(name, label, "arm", model, train, tuple(tries)[: size.tries], note=note)

    late = [
        {"model.modality_dropout": rate, "model.fusion_args": {"reduction": reduction}}
        for reduction in ("sum", "mean")
        for rate in (0.3, 0.5, 0.7)
    ]
    policies = [
        {"model.fusion_args": {"policy": policy, "target_rate": rate}}
        for policy in ("inverse_entropy", "entropy", "dominance")
        for rate in (0.3, 0.5)
    ]
    return [
        *(Plan(name, f"{name} alone", "unimodal", plain, train, heads, uses=(name,)) for name in MODALITIES),
        Plan("concat", "concat, no dropout", "arm", plain, train, heads),
        Plan(REFERENCE, "concat + dropout (reference)", "reference", dropped, train, rates),
        fused("late", "late", "late", late),
        fused("hybrid", "hybrid", "hybrid"),
        fused("gated", "gated", "gated"),
        fused("attention_pool", "attention pool", "attention_pool"),
        replace(fused(AECF, "AECF", "aecf", policies), model=ModelConfig(fusion="aecf", corruption=0.0)),
        fused("embracenet", "EmbraceNet", "embracenet"),
        Plan(
            DEFAULT,
            "default recipe",
            "arm",
            ModelConfig(modality_dropout=0.5),
            recipe,
            rates,
            note="Slots, sandwich passes with distillation, unflagged corruption of 15 % of the inputs.",
        ),
        Plan("presence_only", "presence only", "baseline", dropped, train, baseline="presence_only"),
        Plan("gradient_boosting", "gradient boosting", "baseline", dropped, train, baseline="gradient_boosting"),
    ]


def check_inputs(report: ReportData, outcomes: Mapping[str, Sequence[Outcome]], tables: EmojiTables) -> Check:
    """Whether each input alone is informative, none near the ceiling, and all three beat the best pair.

    Args:
        report: For the arms.
        outcomes: By arm, one per seed, judged on all subsets of the test rows.
        tables: For the classes and the concepts of the test rows.
    """
    fusions = [arm for arm in report.arms if arm.kind in ("arm", "reference")]
    best = min(fusions, key=lambda arm: float(np.mean([o.validation_loss for o in outcomes[arm.name]])))
    judged = [outcome.judgement for outcome in outcomes[best.name] if outcome.judgement is not None]
    subsets, concepts = judged[0].subsets, tables.groups["test"].numpy()
    right_RSN = 1.0 - np.stack([j.losses for j in judged]).astype(np.float64)
    nll_RSN = np.stack([j.nll for j in judged]).astype(np.float64)
    accuracy_S, nll_S, size_S = right_RSN.mean(axis=(0, 2)), nll_RSN.mean(axis=(0, 2)), subsets.sum(axis=1)
    pair = int(min(np.flatnonzero(size_S == 2), key=lambda s: nll_S[s]))
    complete = int(np.flatnonzero(size_S == len(MODALITIES))[0])
    target = tables.test.target
    assert target is not None  # noqa: S101 - the set has targets
    return Check(
        arm=best.title,
        alone={
            name: float(accuracy_S[s])
            for m, name in enumerate(MODALITIES)
            for s in np.flatnonzero((size_S == 1) & subsets[:, m])
        },
        majority=float(torch.bincount(target).max()) / len(target),
        pair=tuple(name for name, here in zip(MODALITIES, subsets[pair], strict=True) if here),
        pair_accuracy=float(accuracy_S[pair]),
        accuracy=float(accuracy_S[complete]),
        gain=paired_difference(right_RSN[:, complete], right_RSN[:, pair], concepts),
        loss=paired_difference(nll_RSN[:, complete], nll_RSN[:, pair], concepts),
    )


def _task(tables: EmojiTables, size: Scale, workers: int, say: Say) -> Task:
    concepts = {split: [row["concept"] for row in tables.rows[split]] for split in SPLITS}
    model = ModelConfig(
        corruption=0.0,
        encoders={
            "picture": EncoderConfig(embed_dim=32, args={"dropout": 0.3}),
            "name": EncoderConfig(name="text_bag", embed_dim=16),
            "name_es": EncoderConfig(name="text_bag", embed_dim=16),
        },
    )
    config = TrainConfig(epochs=size.epochs, lr=3e-3, evaluations=12, patience=4, threads=1)
    _, features, specs = cache_features(
        tables.train,
        tables.validation,
        tables.test,
        tables.specs,
        tables.target,
        model,
        config,
        folds=size.folds,
        groups=concepts["train"],
        workers=workers,
        say=say,
    )
    evaluate = EvaluateConfig(bootstrap=size.bootstrap)
    return Task(features[0], features[1], features[2], specs, tables.target, concepts, evaluate)


def _cut(tables: EmojiTables, concepts: int | None) -> EmojiTables:
    """The first ``concepts`` concepts of every split, so that a smoke run is quick."""
    if concepts is None:
        return tables
    batches: dict[str, Any] = {}
    groups, rows = {}, {}
    for split in SPLITS:
        # Concepts are numbered class by class in the table; spread the choice over all of them.
        found = tables.groups[split].unique()
        kept = found[torch.linspace(0, len(found) - 1, min(concepts, len(found))).long()]
        index = torch.nonzero(torch.isin(tables.groups[split], kept))[:, 0]
        batches[split] = getattr(tables, split).rows(index)
        groups[split] = tables.groups[split][index]
        rows[split] = [tables.rows[split][i] for i in index.tolist()]
    return replace(tables, **batches, groups=groups, rows=rows)


def _report(tables: EmojiTables, size: Scale) -> ReportData:
    encoders = {"picture": "image_cnn, 32 wide", "name": "text_bag, 16 wide", "name_es": "text_bag, 16 wide"}
    batches = {split: getattr(tables, split) for split in SPLITS}
    modalities = tuple(
        ModalitySummary(
            name,
            tables.specs[name].type,
            (name,),
            {split: 1.0 - float(batch.present[:, m].float().mean()) for split, batch in batches.items()},
            encoders[name],
        )
        for m, name in enumerate(MODALITIES)
    )
    return ReportData(
        title="Eight fusions on emoji, when inputs go missing",
        task="classification",
        modalities=MODALITIES,
        created=time.strftime("%Y-%m-%d %H:%M"),
        protocol=[
            "A picture, an English name and a Spanish name say which of nine classes an emoji belongs to.",
            "Splits are by concept: no emoji is in training and test in another drawing style or as another gender.",
            (
                "Three encoders were trained once, each alone, early-stopped on validation rows, frozen and cached; so "
                "the spread over seeds covers fusion and head only."
            ),
            (
                f"Features of training rows come from encoders that did not see their concept ({size.folds} folds): "
                "the frozen encoders know their own training names by heart, and fusions would learn to trust that."
            ),
            (
                f"Every arm had {size.steps} steps at most, {size.tries} settings tried on validation rows with the "
                f"first seed, and {size.seeds} seeds; seeds share rows, holes and masks across arms."
            ),
            (
                "Calibration (temperature and conformal sets per combination of inputs) is fitted on validation rows "
                "for every arm; intervals resample concepts and seeds."
            ),
        ],
        data=DataSummary(
            name="emoji (embedded): Fluent 3D and Twemoji art, names from emojibase",
            rows={split: len(batch) for split, batch in batches.items()},
            target="class",
            classes=CLASSES,
            class_counts=class_counts(tables.train, tables.target),
            modalities=modalities,
            patterns=patterns(tables.train),
            missing_rule=f"every cell of training and validation rows is missing with probability {MISSING_RATE:g}, "
            "completely at random, by a keyed rule; a row keeps at least one; test rows are complete, and every subset "
            "of their inputs is scored",
            grouping="concept",
            licence="Fluent Emoji: MIT; Twemoji: CC BY 4.0; emojibase: MIT; CLDR names: Unicode-3.0",
        ),
        versions=versions(),
        machine=machine(),
    )


def _realised(outcomes: Sequence[Outcome]) -> str:
    rates = [outcome.drop_rate for outcome in outcomes]
    return f"Realised drop rate in training: {np.mean(rates):.2f} (mean over {len(rates)} seeds)."


def _percent(value: float) -> str:
    return format_value(Metric.of_task("classification"), value, unit=True)
