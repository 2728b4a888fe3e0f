"""Commands from a table to a trained, judged and used model, and the comparisons and studies of such models."""

from pathlib import Path
from typing import Annotated

import typer

from polyfuse.cli.options import Json, NewRun, Overrides, Resume, Target, Workers, emit, names_in, say, show
from polyfuse.errors import UserError


def demo(
    out: Annotated[Path | None, typer.Option(help="Folder of the report; default runs/demo-N.")] = None,
    scale: Annotated[
        str, typer.Option(help="full (about three minutes on two cores) or smoke (seconds; numbers mean nothing).")
    ] = "full",
    seeds: Annotated[int | None, typer.Option(help="Seeds per arm; default 5.")] = None,
    workers: Workers = 2,
    as_json: Json = False,
) -> None:
    """Run the main job on the embedded emoji data: every fusion, every combination of missing inputs, one report."""
    from polyfuse.studies.demo import run_demo

    result = run_demo(out=out, scale=scale, seeds=seeds, workers=workers, say=say)
    show(result, as_json)


def inspect(
    table: Annotated[Path, typer.Argument(help="A .csv, .parquet or .jsonl table.")],
    target: Annotated[
        list[str] | None,
        typer.Option(help="The column to predict, repeated for several 0/1 columns; guessed and named when left out."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the proposed config here (YAML).")
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="What separates the cells of a CSV; seen from its header when left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the modalities, the holes and the balance of a table, and propose a config."""
    from polyfuse.run import inspect_table

    result = inspect_table(table, target=target, output=output, delimiter=delimiter, say=say)
    show(result, as_json)


def train(
    source: Annotated[
        Path, typer.Argument(help="A config (.yaml), or a table with --target, or with --resume a run folder.")
    ],
    overrides: Overrides = None,
    target: Target = None,
    out: NewRun = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Train, calibrate, evaluate on every combination of inputs, and write the report."""
    from polyfuse.run import train_run

    result = train_run(source, overrides=overrides or [], target=target, out=out, resume=resume, say=say)
    show(result, as_json)


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    table: Annotated[Path | None, typer.Option(help="Another labelled table; default the run's own test rows.")] = None,
    oracles: Annotated[
        bool, typer.Option("--oracles", help="Train one model per combination of inputs, for the regret.")
    ] = False,
    unplug: Annotated[
        bool, typer.Option("--unplug", help="Does it use each input: remove it, shuffle it, take another row's.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Score a run on every combination of inputs and refresh its report."""
    from polyfuse.run import evaluate_run

    result = evaluate_run(run, table=table, oracles=oracles, unplug=unplug, say=say)
    show(result, as_json)


def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    table: Annotated[Path, typer.Argument(help="The table to predict; columns may be missing, rows may have holes.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=".parquet or .csv; default CSV on stdout.")
    ] = None,
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Accept file paths outside the table's folder.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON (needs -o).")] = False,
) -> None:
    """Stream a table through a run: label, probabilities, conformal set, abstain flag, a reason per bad row."""
    from polyfuse.run import predict_table

    if as_json and output is None:
        raise UserError("--json prints the summary on stdout, so the predictions need a file: add -o predictions.csv")
    summary = predict_table(run, table, output=output, allow_outside=allow_outside, say=say)
    if output is None:
        say(summary.text())
    else:
        emit(summary.to_dict(), as_json, summary.text)


def compare(
    config: Annotated[Path, typer.Argument(help="A config (.yaml), or a table with --target.")],
    overrides: Overrides = None,
    fusions: Annotated[
        str, typer.Option(help="Comma-separated fusions; see polyfuse list fusions.")
    ] = "slots,concat,late,gated,aecf",
    seeds: Annotated[int, typer.Option(help="Seeds per arm.")] = 5,
    target: Target = None,
    frozen: Annotated[
        bool, typer.Option("--frozen", help="Train the encoders once, freeze and cache them; arms train the fusion.")
    ] = False,
    oracles: Annotated[
        bool, typer.Option("--oracles", help="Also one model per combination of inputs, for the regret.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the report; default runs/compare-N.")] = None,
    workers: Workers = 2,
    as_json: Json = False,
) -> None:
    """Train several fusions on the same splits, masks and steps; paired differences with intervals."""
    from polyfuse.run import compare_runs

    result = compare_runs(
        config,
        overrides=overrides or [],
        fusions=names_in(fusions),
        seeds=seeds,
        target=target,
        frozen=frozen,
        oracles=oracles,
        out=out,
        workers=workers,
        say=say,
    )
    show(result, as_json)


def study(
    name: Annotated[str, typer.Argument(help="See polyfuse list studies.")],
    scale: Annotated[
        str, typer.Option(help="small (under 40 minutes on two cores), full, or smoke (numbers mean nothing).")
    ] = "small",
    only: Annotated[str, typer.Option(help="Comma-separated arms to run again; their old records go.")] = "",
    datasets: Annotated[str, typer.Option(help="Comma-separated data sets of the study; default all.")] = "",
    seeds: Annotated[int | None, typer.Option(help="Seeds per arm; default the scale's.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Its folder; default runs/study-NAME-SCALE. What is done there is kept.")
    ] = None,
    workers: Workers = 2,
    as_json: Json = False,
) -> None:
    """Run a study, or what is not done of it yet: many arms on many data sets, one file of records, one page."""
    from polyfuse.studies.registry import run_named

    result = run_named(
        name,
        scale=scale,
        out=out,
        only=names_in(only),
        datasets=names_in(datasets),
        seeds=seeds,
        workers=workers,
        say=say,
    )
    show(result, as_json)
    raise typer.Exit(1 if result.failed else 0)


def list_parts(
    kind: Annotated[str, typer.Argument(help="fusions, encoders, models, datasets, studies or weights.")],
    as_json: Json = False,
) -> None:
    """List the parts that a config can name."""
    from polyfuse.run import list_parts as parts
    from polyfuse.run.columns import described

    rows = parts(kind)
    emit(rows, as_json, lambda: "\n".join(described(rows)))
