"""`polyfuse compare`: several fusions on one table, on the same splits, masks and steps."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyfuse.config import PLAIN, ModelConfig, RunConfig, make_config
from polyfuse.config_values import save_config, to_dict
from polyfuse.data.encode import Prepared, prepare
from polyfuse.errors import UserError
from polyfuse.files import check_new, new_folder, write_json
from polyfuse.report.content import ReportData
from polyfuse.report.context import this_command, versions
from polyfuse.report.plain import plain
from polyfuse.report.render import write_report
from polyfuse.report.table import console_text
from polyfuse.run import folder as place
from polyfuse.run.reports import blank_report
from polyfuse.run.source import Say, Target, quiet, resolve
from polyfuse.studies.arms import Plan, Task
from polyfuse.studies.compare import cache_features, compare_arms, oracle_plan
from polyfuse.train.recipe import passes_per_step

REFERENCE = "reference"


@dataclass(frozen=True)
class Compared:
    """What a comparison came to."""

    folder: Path
    report: ReportData

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "report": str(self.folder / "report.html"),
            "arms": plain([dataclasses.asdict(arm) for arm in self.report.arms]),
            "records": plain([dataclasses.asdict(r) for r in self.report.subset_records]),
            "paired": plain([dataclasses.asdict(p) for p in self.report.paired]),
        }

    def text(self) -> str:
        """The table of arms, what it says, where the report is."""
        return console_text(self.report, self.folder / "report.html")


def compare_runs(
    source: Path,
    *,
    overrides: Sequence[str] = (),
    fusions: Sequence[str] = ("slots", "concat", "late", "gated", "aecf"),
    seeds: int = 5,
    target: Target = None,
    frozen: bool = False,
    oracles: bool = False,
    out: Path | None = None,
    workers: int = 2,
    say: Say = quiet,
) -> Compared:
    """Train every fusion with every seed and report paired differences to the reference arm.

    The reference arm, concat with missing tokens and modality dropout, is always there, and so are two baselines: one
    that knows only which inputs are present, and gradient boosting on tabular cells and embeddings.

    Args:
        source: A config, or a table with ``target``.
        overrides: ``key=value`` settings.
        fusions: Names; every one is trained with the config's masking.
        seeds: Seeds per arm, 0 to ``seeds - 1``.
        target: The column to predict, or several of 0 and 1, when ``source`` is a table.
        frozen: Train the encoders once, alone, and cache their features; the arms then train fusion and head. The
            spread over seeds covers these only.
        oracles: Also one model per combination of inputs, for the regret.
        out: Folder; None = ``runs/compare-NAME-N``.
        workers: Processes of one thread.
        say: Told what happens.

    Raises:
        UserError: For a mistake in what was given.
    """
    started = time.perf_counter()
    check_new(out)
    if seeds < 1:
        raise UserError(f"--seeds must be at least 1, got {seeds}")
    config = resolve(source, overrides, target, say)
    if workers < 1:
        raise UserError(f"--workers must be at least 1, got {workers}")
    if not fusions:
        raise UserError("--fusions names no fusion; see polyfuse list fusions")
    arms = {name: _arm(config, name) for name in dict.fromkeys(fusions)}
    folder = new_folder(f"compare-{Path(config.data.table).stem}", out)
    with place.emptied_on_mistake(folder, KeyboardInterrupt):  # a comparison cannot be resumed
        save_config(config, folder / place.CONFIG)
        write_json(folder / place.VERSIONS, versions())
        report = _compare(config, arms, folder, seeds, frozen, oracles, workers, say)
    report.seconds = time.perf_counter() - started
    write_report(report, folder)
    return Compared(folder, report)


def _arm(config: RunConfig, fusion: str) -> ModelConfig:
    """The config's model with another fusion, whose arguments are those of the config's own fusion no more."""
    own: dict[str, Any] = {} if fusion == config.model.fusion else {"fusion_args": {}}
    tree = to_dict(config)
    return make_config({**tree, "model": {**tree["model"], "fusion": fusion, **own}}).model


def _compare(
    config: RunConfig,
    arms: dict[str, ModelConfig],
    folder: Path,
    seeds: int,
    frozen: bool,
    oracles: bool,
    workers: int,
    say: Say,
) -> ReportData:
    """Read the table, train every arm, fill the report."""
    prepared = prepare(config.data, folder=folder)
    for line in prepared.lines():
        say(line)
    report = blank_report(config, prepared, f"{len(arms)} fusions on {Path(config.data.table).name}")
    task = _task(config, prepared, frozen, workers, report, say)
    reference = ModelConfig(**{**config.model.model_dump(), "fusion": "concat", "fusion_args": {}, "corruption": 0.0})
    train = config.train.model_copy(update={"threads": 1})
    one_pass = train.model_copy(update={"recipe": PLAIN})
    passes = f"{passes_per_step(train.recipe)} fusion passes a step, corruption {config.model.corruption:g}."
    plans = [
        Plan(
            REFERENCE,
            "concat + dropout (reference)",
            "reference",
            reference,
            one_pass,
            note="1 fusion pass a step, no corruption.",
        ),
        *(Plan(name, name, "arm", model, train, note=passes) for name, model in arms.items()),
        Plan("presence_only", "presence only", "baseline", reference, train, baseline="presence_only"),
        Plan("gradient_boosting", "gradient boosting", "baseline", reference, train, baseline="gradient_boosting"),
    ]
    say(f"training {len(arms) + 1} arms x {seeds} seeds in {workers} processes")
    compare_arms(
        report,
        task,
        plans,
        seeds=range(seeds),
        oracles=oracle_plan(reference, train) if oracles or config.evaluate.oracles else None,
        workers=workers,
        say=say,
    )
    report.default = "slots" if "slots" in arms else None
    report.watch = tuple(name for name in ("aecf",) if name in arms)
    report.commands = [this_command()]
    return report


def _task(config: RunConfig, prepared: Prepared, frozen: bool, workers: int, report: ReportData, say: Say) -> Task:
    """The rows of a comparison: as they are, or as features of frozen encoders."""
    train, validation, test = prepared.train, prepared.validation, prepared.test
    if not len(test):
        raise UserError("a comparison needs test rows; give data.split.ratios a third share above 0")
    specs = prepared.encoder.specs
    if frozen:
        say("training the encoders, once for all arms")
        _, (train, validation, test), specs = cache_features(
            train,
            validation,
            test,
            specs,
            prepared.encoder.target,
            config.model,
            config.train,
            workers=workers,
            say=say,
        )
        report.protocol.append(
            "Encoders were trained once, each alone, frozen and cached: the spread over seeds covers heads only."
        )
    return Task(
        train,
        validation,
        test,
        specs,
        prepared.encoder.target,
        groups=prepared.groups,
        evaluate=config.evaluate,
        calibrate=config.calibrate,
    )
