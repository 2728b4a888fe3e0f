"""Commands on pictures and texts: pre-train, fine-tune, and have a run answer about pictures of one's own."""

from pathlib import Path
from typing import Annotated

import typer

from polyfuse.cli.options import Json, NewRun, Overrides, Resume, emit, say, show

RunFolder = Annotated[
    Path | None, typer.Option("--run", help="A run of polyfuse finetune; default the newest one that can do this.")
]
_TABLE = "Many at once: a .csv, .parquet or .jsonl with a column image"
Table = Annotated[
    Path | None, typer.Option(help=f"{_TABLE}, and one of the text: question of ask, phrase of ground, or text.")
]
Pictures = Annotated[Path | None, typer.Option("--table", help=f"{_TABLE}.")]


def pretrain(
    source: Annotated[Path, typer.Argument(help="A config (.yaml), or with --resume a run folder.")],
    overrides: Overrides = None,
    out: NewRun = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Pre-train a model of pictures and texts on mixed objectives; held-out curves, and a folder to fine-tune from."""
    from polyfuse.run.pretrain import pretrain_run

    result = pretrain_run(source, overrides=overrides or [], out=out, resume=resume, say=say)
    show(result, as_json)


def finetune(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A run folder of polyfuse pretrain or finetune, or none for a new model; with --resume the run itself."
        ),
    ],
    config: Annotated[Path | None, typer.Argument(help="A config (.yaml).")] = None,
    overrides: Overrides = None,
    out: NewRun = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="CHECKPOINT is an interrupted run: carry on to the same result.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fine-tune on a task: VQA, captions, retrieval, grounding, classes, values; figures beside what they must beat."""
    from polyfuse.run.finetune import finetune_run

    result = finetune_run(checkpoint, config, overrides=overrides or [], out=out, resume=resume, say=say)
    show(result, as_json)


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
    from polyfuse.run.items import items_of

    result = answer(items_of(what or [], table, "question|text"), run=run, top=top, say=say)
    show(result, as_json)
    raise typer.Exit(0 if result.rows else 1)


def caption(
    images: Annotated[list[str] | None, typer.Argument(help="Pictures.", metavar="IMAGE...")] = None,
    run: RunFolder = None,
    table: Pictures = None,
    beams: Annotated[int, typer.Option(min=1, help="Of beam search; 1: greedy.")] = 1,
    as_json: Json = False,
) -> None:
    """Describe pictures in a sentence each."""
    from polyfuse.run.ask import caption as describe
    from polyfuse.run.items import items_of

    result = describe(items_of(images or [], table, None), run=run, beams=beams, say=say)
    show(result, as_json)
    raise typer.Exit(0 if result.rows else 1)


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
    from polyfuse.run.items import items_of

    result = point(items_of(what or [], table, "phrase|text"), run=run, out=out, say=say)
    show(result, as_json)
    raise typer.Exit(0 if result.rows else 1)


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
