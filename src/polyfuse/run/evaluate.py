"""`polyfuse evaluate`: judge a run again, on its own test rows or on another labelled table."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyfuse.config import RunConfig
from polyfuse.data.batch import Batch, concatenate
from polyfuse.data.encode import Prepared, TableEncoder, prepare
from polyfuse.data.overlap import rows_met
from polyfuse.data.problems import Problems
from polyfuse.data.schema import nearest
from polyfuse.data.table import read_chunks, read_header
from polyfuse.errors import UserError
from polyfuse.report.content import ReportData
from polyfuse.report.plain import plain
from polyfuse.report.render import write_report
from polyfuse.report.table import console_text
from polyfuse.run.folder import CONFIG, Run, check_unchanged, load
from polyfuse.run.reports import data_summary, run_report
from polyfuse.run.source import Say, check_inputs, delimiter_of, quiet
from polyfuse.studies.arms import Task, train_oracle, workers_for
from polyfuse.studies.compare import oracle_plan

PERMUTATIONS = 10
"""Shuffles of each input that ``--unplug`` averages."""


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation came to."""

    folder: Path
    report: ReportData
    unplugged: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: one record per combination of inputs."""
        return {
            "report": str(self.folder / "report.html"),
            "abstention": self.report.abstention,
            "records": plain([dataclasses.asdict(r) for r in self.report.subset_records]),
            "corruption": plain([dataclasses.asdict(r) for r in self.report.corruption]),
            "oracles": plain([dataclasses.asdict(r) for r in self.report.oracles]),
            "inputs": plain([dataclasses.asdict(r) for r in self.report.inputs]),
        }

    def text(self) -> str:
        """The table, what it says, where the report is."""
        return console_text(self.report, self.folder / "report.html", inputs=self.unplugged)


def evaluate_run(
    run: Run | Path | str,
    *,
    table: Path | None = None,
    oracles: bool = False,
    unplug: bool = False,
    say: Say = quiet,
) -> Evaluated:
    """Score a run on every combination of inputs and refresh its report.

    Args:
        run: A run, or its folder.
        table: A labelled table; its report goes to ``evaluations/NAME`` in the run folder. None = the test rows of the
            run's own table, and the run's own report.
        oracles: Train one model per combination of inputs with the run's settings, for the regret.
        unplug: Print whether the model uses each input, and average more shuffles of each.
        say: Told what happens.

    Raises:
        UserError: If the run is not finished, its table is gone or has changed, or no row of ``table`` has a known
            target.
    """
    started = time.perf_counter()
    run = run if isinstance(run, Run) else load(run)
    config, folder = run.config, run.folder
    if not Path(config.data.table).is_file():
        raise UserError(
            f"the table that '{folder}' was trained on, '{config.data.table}', is not there: its rows are needed to "
            f"judge a run; put it back, or name its new place as data.table in '{folder / CONFIG}'"
        )
    prepared = prepare(config.data, folder=folder)
    check_unchanged(folder, prepared)
    test: Batch | None = None
    if table is not None:
        folder = folder / "evaluations" / table.stem
        test, problems = read_labelled(run.encoder, table, say)
        _name_rows_met(run, prepared, table, problems, say)
        prepared = dataclasses.replace(prepared, test=test, problems=problems)
    report = run_report(
        config, run.folder, prepared, run.model, run.calibration, None, test, permutations=PERMUTATIONS if unplug else 1
    )
    _keep_training(report, run.folder / "report.json", oracles=table is None)
    if table is not None:
        report.title = f"{config.model.fusion} on {table.name}"
        report.data = dataclasses.replace(data_summary(config, prepared), name=table.name)
    if oracles:
        add_oracles(report, config, prepared, say)
    report.seconds = time.perf_counter() - started
    folder.mkdir(parents=True, exist_ok=True)
    write_report(report, folder)
    return Evaluated(folder, report, unplug)


def _name_rows_met(run: Run, prepared: Prepared, table: Path, problems: Problems, say: Say) -> None:
    """Say which rows of a table the run learned from, or was chosen by."""
    learned = {*prepared.rows["train"], *prepared.rows["validation"]}
    met = rows_met(run.config.data, learned, table, delimiter=delimiter_of(run.encoder, table))
    for row in met:
        problems.add("row", "met in training", row)
    if met:
        say(
            f"warning: rows of '{table.name}' with the inputs and target of a training or validation row: {len(met)}; "
            "they are judged too, and the scores are the better for it"
        )


def add_oracles(report: ReportData, config: RunConfig, prepared: Prepared, say: Say, workers: int = 2) -> None:
    """Train one model for each combination of inputs that a report judges, with the run's settings."""
    task = Task(
        prepared.train,
        prepared.validation,
        prepared.test if len(prepared.test) else prepared.validation,
        prepared.encoder.specs,
        prepared.encoder.target,
        evaluate=config.evaluate,
    )
    plan = oracle_plan(config.model, config.train.model_copy(update={"threads": 1}))
    wanted = dict.fromkeys(record.subset for record in report.subset_records)
    masks = [tuple(name in subset for name in report.modalities) for subset in wanted]
    say(f"training one model for each of {len(masks)} combinations of inputs")
    report.oracles, started = [], time.perf_counter()
    with workers_for(task, workers) as run:
        for done, oracle in enumerate(run([(train_oracle, (plan, mask)) for mask in masks]), start=1):
            report.oracles += [] if oracle is None else [oracle]
            if done % max(len(masks) // 5, 1) == 0:
                say(f"  {done} of {len(masks)} models, {time.perf_counter() - started:.0f} s")


def _keep_training(report: ReportData, path: Path, *, oracles: bool) -> None:
    """What only training knows, from the report it wrote: time, drop rate, when it stopped, the command, oracles."""
    try:
        before = ReportData.from_json(path.read_text(encoding="utf-8"))
        trained = before.arm(report.arms[0].name)
    except (OSError, ValueError, KeyError):
        return
    report.arms[0] = dataclasses.replace(
        report.arms[0], train_seconds=trained.train_seconds, drop_rate=trained.drop_rate
    )
    if oracles:
        report.oracles = before.oracles
    report.protocol += [line for line in before.protocol if line not in report.protocol]
    report.commands = list(dict.fromkeys([*before.commands, *report.commands]))


def read_labelled(encoder: TableEncoder, table: Path, say: Say = quiet) -> tuple[Batch, Problems]:
    """Every row of a table that has a known target and an input.

    Raises:
        UserError: If there is none, or the table lacks the target's column or every input's.
    """
    delimiter = delimiter_of(encoder, table)
    known = read_header(table, delimiter=delimiter)
    for name in encoder.target_codec.columns:
        if name not in known:
            raise UserError(
                f"table '{table.name}' has no target column {name!r}{nearest(name, known) or ';'} add it, or use "
                "polyfuse predict, which needs none"
            )
    check_inputs(encoder, table, known, say)
    problems = Problems()
    batches = []
    for chunk in read_chunks(table, columns=encoder.config.used_columns, delimiter=delimiter):
        encoded = encoder.encode(chunk, target=True, workers=2)
        problems.update(encoded.problems)
        here = encoded.batch.present.any(dim=1)
        for i in (~here).nonzero()[:, 0].tolist():
            problems.add("row", "no usable input", encoded.rows[i])
        if here.any():
            batches.append(encoded.batch.rows(here.nonzero()[:, 0]))
    if not batches:
        why = "; ".join(line for line in problems.lines() if line.startswith(("row: ", "target: ")))
        raise UserError(f"no row of '{table.name}' has a known target and an input{': ' + why if why else ''}")
    return concatenate(batches), problems
