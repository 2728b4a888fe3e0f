"""From prepared data and judged models to the report: what every run and comparison shows in the same way."""

import time
from collections.abc import Sequence
from pathlib import Path

from polyfuse.calibrate import Calibration
from polyfuse.config import RunConfig
from polyfuse.data.batch import Batch
from polyfuse.data.corrupt import fit_scales
from polyfuse.data.describe import class_counts, patterns
from polyfuse.data.encode import Prepared
from polyfuse.data.problems import Problems as TableProblems
from polyfuse.encoders import DEFAULTS
from polyfuse.models.fusion_model import FusionModel
from polyfuse.report.abstention import always_flagged, flagged_share
from polyfuse.report.content import DataSummary, ModalitySummary, Problem, ReportData
from polyfuse.report.context import machine, this_command, versions
from polyfuse.report.format import format_value
from polyfuse.report.records import Arm
from polyfuse.report.summary import judged_rows
from polyfuse.studies.judge import judge
from polyfuse.train.build import parameter_count
from polyfuse.train.loop import FitResult


def run_report(
    config: RunConfig,
    folder: Path,
    prepared: Prepared,
    model: FusionModel,
    calibration: Calibration | None,
    result: FitResult | None,
    test: Batch | None = None,
    *,
    permutations: int = 1,
) -> ReportData:
    """Judge the model of a run and fill its report.

    Args:
        config: Of the run.
        folder: Of the run.
        prepared: Its data.
        model: Trained.
        calibration: Fitted on validation rows.
        result: Of the loop; None when the run was loaded.
        test: Rows to judge on; None = the run's own test rows, or without any its validation rows.
        permutations: Shuffles of each input that are averaged to tell whether it is used.
    """
    target = prepared.encoder.target
    report = blank_report(config, prepared, f"{config.model.fusion} on {Path(config.data.table).name}")
    rows = prepared.test if test is None else test
    if not len(rows):
        rows = prepared.validation
        report.notes.append(
            "There are no test rows: the scores are on validation rows, which stopped the training and fitted the "
            "calibration, so they flatter."
        )
    judged = judge(
        model,
        rows,
        target.task,
        calibration,
        evaluate=config.evaluate,
        scale=target.std,
        scales=fit_scales(prepared.train),
        groups=_groups_of(prepared, rows) if test is None else None,
        permutations=permutations,
    )
    name = config.model.fusion
    report.arms.append(
        Arm(
            name,
            label=name,
            seeds=(config.train.seed,),
            parameters=parameter_count(model, trainable=True),
            train_seconds=() if result is None else (result.seconds,),
            ms_per_row=judged.records[0]["ms_per_row"],
            drop_rate=None if result is None or result.realised_drop_rate == 0 else result.realised_drop_rate,
        )
    )
    judged.add_to(report, name, config.train.seed)
    report.nominal_coverage = None if calibration is None else 1.0 - config.calibrate.alpha
    if result is not None:
        early = "stopped early" if result.stopped_early else "ran to the end"
        report.protocol.append(
            f"Training {early} after {result.steps} steps; the weights are those of step {result.best_step}, with the "
            f"lowest validation loss ({result.best_metric:.4f}, mean over combinations of inputs)."
        )
    found = judged.own.get(report.primary.name)
    if found is not None:
        value = format_value(report.primary, found, unit=True)
        which = judged_rows(report, len(rows))
        report.headroom.append(f"On the {which} as they are, with their own holes: {report.primary.label} {value}.")
    if calibration is not None and calibration.abstention is not None:
        said = flagged_share(calibration.abstention, judged.own, judged_rows(report, len(rows)), scale=target.std)
        report.abstention = [t for t in (said, always_flagged(calibration.abstention, calibration.modalities)) if t]
    regression = target.task == "regression"
    if len(prepared.validation) < 200 and calibration is not None:
        report.notes.append(
            f"Calibration saw {len(prepared.validation)} rows, half of them for the temperature, half for the sets, "
            "all for abstention: combinations with too few rows get "
            f"{'an endless interval' if regression else 'the full set of classes'}."
        )
    report.commands = [this_command(), f"polyfuse predict {folder} TABLE -o predictions.csv"]
    return report


def _groups_of(prepared: Prepared, rows: Batch) -> Sequence[str] | None:
    if prepared.groups is None:
        return None
    return prepared.groups["test" if rows is prepared.test else "validation"]


def blank_report(config: RunConfig, prepared: Prepared, title: str) -> ReportData:
    """A report that knows its data, its protocol and its machine, and no arm yet."""
    target = prepared.encoder.target
    masks = config.model.masking()
    hidden, corrupted = masks["modality_dropout"], masks["corruption"]
    split = f"Rows of {Path(config.data.table).name} were divided {_split_words(config)}"
    masking = f"In training a present input was hidden with probability {hidden:g} (one always survives)"
    replaced = f"replaced without a flag, by noise or another row's, with probability {corrupted:g}"
    protocol = [
        f"{split}; encoders, tokenizers and scales were fitted on training rows only.",
        f"{masking} and {replaced}.",
        "Every combination of inputs is scored on the test rows that have all of it.",
        "Calibration is fitted per combination of inputs, on validation rows."
        if config.calibrate.enabled
        else "Calibration is switched off: probabilities are as the model gives them, without sets or abstention.",
    ]
    return ReportData(
        title=title,
        task=target.task,
        modalities=prepared.encoder.modalities,
        created=time.strftime("%Y-%m-%d %H:%M"),
        protocol=protocol,
        data=data_summary(config, prepared),
        versions=versions(),
        machine=machine(),
    )


def _split_words(config: RunConfig) -> str:
    split = config.data.split
    if split.column is not None:
        return f"by column '{split.column}'"
    shares = "/".join(f"{100 * share:g}" for share in split.ratios)
    kept = f", rows of one '{split.group}' kept together" if split.group is not None else ""
    return f"{shares} into train, validation and test (seed {split.seed}{kept})"


def data_summary(config: RunConfig, prepared: Prepared) -> DataSummary:
    """Rows, holes, patterns, balance and failures of a table."""
    splits = {"train": prepared.train, "validation": prepared.validation, "test": prepared.test}
    modalities = []
    for m, (name, spec) in enumerate(prepared.encoder.specs.items()):
        settings = config.data.modalities[name]
        encoder = config.model.encoders.get(name)
        kind = (encoder.name if encoder else None) or DEFAULTS[spec.type]
        frozen = f"{settings.pretrained} (frozen), " if settings.pretrained else ""
        missing = {key: 1.0 - float(batch.present[:, m].float().mean()) for key, batch in splits.items() if len(batch)}
        modalities.append(
            ModalitySummary(
                name, settings.type, settings.all_columns, missing, f"{frozen}{kind}, {config.model.embed_dim} wide"
            )
        )
    return DataSummary(
        name=Path(config.data.table).name,
        rows={key: len(batch) for key, batch in splits.items()},
        target=", ".join(config.data.target_columns),
        classes=prepared.encoder.target.classes,
        class_counts=class_counts(prepared.train, prepared.encoder.target),
        modalities=tuple(modalities),
        patterns=patterns(prepared.train),
        problems=tuple(Problem(where, kind, count) for where, kind, count, _ in prepared.problems),
        examples=examples(prepared.problems),
        grouping=config.data.split.group or "row",
    )


def examples(problems: TableProblems, most: int = 10) -> tuple[str, ...]:
    """The first broken cells, a line each."""
    lines = [f"{where}: {kind}, {name}" for where, kind, _, named in problems for name in named]
    return tuple(lines[:most])
