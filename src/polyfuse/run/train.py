"""`polyfuse train`: config or table in, run folder with calibrated model and report out."""

import contextlib
import dataclasses
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyfuse.calibrate import prior_logits
from polyfuse.config import RunConfig, load_config
from polyfuse.config_values import save_config
from polyfuse.data.encode import Prepared, prepare
from polyfuse.errors import UserError
from polyfuse.files import check_new, new_folder, write_json
from polyfuse.models.fusion_model import FusionModel
from polyfuse.report.content import ReportData
from polyfuse.report.context import versions
from polyfuse.report.plain import plain
from polyfuse.report.render import write_report
from polyfuse.report.table import console_text
from polyfuse.run import folder as place
from polyfuse.run.evaluate import add_oracles
from polyfuse.run.reports import run_report
from polyfuse.run.source import Say, Target, quiet, resolve
from polyfuse.studies.judge import fit_calibration
from polyfuse.train.build import build_model, parameter_count
from polyfuse.train.devices import make_fabric
from polyfuse.train.loop import FitResult, fit


@dataclass(frozen=True)
class Trained:
    """What a training run came to.

    Attributes:
        folder: The run folder.
        report: Everything its report shows.
        fit: Of the loop.
    """

    folder: Path
    report: ReportData
    fit: FitResult

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "run": str(self.folder),
            "report": str(self.folder / "report.html"),
            "steps": self.fit.steps,
            "validation_loss": plain(self.fit.best_metric),
            "abstention": self.report.abstention,
            "records": plain([dataclasses.asdict(r) for r in self.report.subset_records]),
        }

    def text(self) -> str:
        """The table, what it says, and where the report is."""
        return console_text(self.report, self.folder / "report.html")


def train_run(
    source: Path,
    *,
    overrides: Sequence[str] = (),
    target: Target = None,
    out: Path | None = None,
    resume: bool = False,
    say: Say = quiet,
    progress: bool = True,
) -> Trained | None:
    """Train, calibrate, evaluate and report.

    Args:
        source: A YAML config, a table (then ``target`` is needed), or with ``resume`` a run folder.
        overrides: ``key=value`` settings.
        target: The column to predict, or several of 0 and 1.
        out: The run folder; None = ``runs/NAME-N``.
        resume: Carry on with an interrupted run; it ends with the same parameters as an uninterrupted one.
        say: Told what happens, line by line.
        progress: Show the progress bar on stderr.

    Returns:
        None on every process but the first of a distributed run.

    Raises:
        UserError: For a mistake in what was given.
        KeyboardInterrupt: On Ctrl-C; the run can be resumed.
    """
    started = time.perf_counter()
    if resume:
        config = _config_to_resume(source, overrides, target, out)
    else:
        check_new(out)
        config = resolve(source, overrides, target, say if os.environ.get("RANK", "0") == "0" else quiet)
    fabric = make_fabric(config.train)
    first = fabric is None or fabric.global_rank == 0
    if not first:
        say = quiet
    folder = source if resume else _folder_for_all(config, out, fabric, first)
    try:
        with place.alone(folder) if first else contextlib.nullcontext():
            with place.emptied_on_mistake(folder) if first and not resume else contextlib.nullcontext():
                if first and not resume:
                    save_config(config, folder / place.CONFIG)
                    write_json(folder / place.VERSIONS, versions())
                say(f"run folder: {folder}")
                prepared, model, result = _train(config, folder, fabric, first, progress, say)
            if not first:
                return None
            say(f"trained {result.steps} steps in {result.seconds:.0f} s; judging every combination of inputs")
            report = finish(config, folder, prepared, model, result, started, say)
    except KeyboardInterrupt:
        say(f"interrupted; carry on with: polyfuse train --resume {shlex.quote(str(folder))}")
        raise
    return Trained(folder, report, result)


def _train(
    config: RunConfig, folder: Path, fabric: Any, first: bool, progress: bool, say: Say
) -> tuple[Prepared, FusionModel, FitResult]:
    """Read the table and train: what every process does; the first one writes."""
    prepared = _prepare(config, folder, say)
    if first:
        write_json(folder / place.ENCODER, prepared.encoder.to_dict())
        write_json(folder / place.PROBLEMS, prepared.problems.to_dict())
    model = build_model(prepared.encoder.specs, prepared.encoder.target, config.model, seed=config.train.seed)
    say(
        f"training {config.model.fusion}: {parameter_count(model, trainable=True):,} parameters, "
        f"{len(prepared.train):,} rows, {len(prepared.validation):,} for validation"
    )
    result = fit(
        model,
        prepared.train,
        prepared.validation,
        config.train,
        task=prepared.encoder.target.task,
        masking=config.model.masking(),
        classes=prepared.encoder.target.classes,
        run_dir=folder,
        resume=True,  # a fresh folder has nothing to resume from
        progress=progress and first,
        fabric=fabric,
    )
    return prepared, model, result


def finish(
    config: RunConfig, folder: Path, prepared: Prepared, model: FusionModel, result: FitResult, started: float, say: Say
) -> ReportData:
    """Calibrate on validation rows, judge on test rows, write the report."""
    calibration = fit_calibration(
        model,
        prepared.train,
        prepared.validation,
        prepared.encoder.target.task,
        config.calibrate,
        config.evaluate,
        None if prepared.groups is None else prepared.groups["validation"],
    )
    if calibration is not None:
        write_json(folder / place.CALIBRATION, calibration.to_dict())
    elif prepared.train.target is not None:
        target = prepared.encoder.target
        outputs = 2 if target.task == "regression" else target.outputs
        prior = prior_logits(target.task, prepared.train.target.numpy(), outputs)
        write_json(folder / place.PRIOR, prior.tolist())
    report = run_report(config, folder, prepared, model, calibration, result)
    if config.evaluate.oracles:
        add_oracles(report, config, prepared, say)
    report.seconds = time.perf_counter() - started
    write_report(report, folder)
    return report


def _prepare(config: RunConfig, folder: Path, say: Say) -> Prepared:
    """Read the table; on resuming it must divide and encode as it did."""
    prepared = prepare(config.data, folder=folder)
    place.check_unchanged(folder, prepared)
    for line in prepared.lines():
        say(line)
    return prepared


def _folder_for_all(config: RunConfig, out: Path | None, fabric: Any, first: bool) -> Path:
    """One folder, made by the first process and known to all."""
    made = str(new_folder(Path(config.data.table).stem, out)) if first else ""
    return Path(made if fabric is None else fabric.broadcast(made))


def _config_to_resume(source: Path, overrides: Sequence[str], target: Target, out: Path | None) -> RunConfig:
    if overrides or target or out is not None:
        raise UserError("--resume carries on with the run's own settings; leave out KEY=VALUE, --target and --out")
    if not (source / place.CONFIG).is_file():
        raise UserError(f"'{source}' is not a run folder: it has no {place.CONFIG}; --resume takes a run folder")
    return load_config(source / place.CONFIG)
