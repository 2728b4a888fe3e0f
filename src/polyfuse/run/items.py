"""What `polyfuse ask`, `caption` and `ground` are asked: pictures and texts of the command line, or rows of a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from polyfuse.errors import UserError


@dataclass(frozen=True)
class Item:
    """One picture and what is asked about it.

    Attributes:
        image: As the user named it; "" = none.
        text: Question or phrase; "" = none.
        row: Of the table it stands in, from 1; None = of the command line, where a mistake is an error.
        fault: Why the row cannot be used, where reading the table told.
    """

    image: str
    text: str = ""
    row: int | None = None
    fault: str = ""


class Unread(NamedTuple):
    """What was not answered.

    Attributes:
        image: As the user named it; "" = none.
        reason: Why.
        row: Of the table.
    """

    image: str
    reason: str
    row: int | None = None


def read_items(table: Path, text: str | None) -> list[Item]:
    """Pictures (relative to the table's folder) and texts of a CSV, Parquet or JSON Lines table, with their rows.

    Args:
        table: With a column ``image``.
        text: Names of its column of texts, separated by "|", the first that is there; None = pictures alone.

    Raises:
        UserError: If the table cannot be read, or lacks a column.
    """
    from polyfuse.data.codecs import show
    from polyfuse.data.table import check_columns, read_chunks, read_header

    known = read_header(table)
    asked = None if text is None else next((name for name in text.split("|") if name in known), text.split("|")[0])
    columns = ["image", *([asked] if asked else [])]
    check_columns(columns, known, table.name)
    items = []
    for chunk in read_chunks(table, columns=columns):
        bad = dict(chunk.bad_rows)
        for slot in range(len(chunk)):
            number = chunk.first_row + slot
            fault = bad.get(number, "")
            cells = {name: chunk.columns[name][slot] for name in columns}
            for name, cell in cells.items():
                if cell is not None and not isinstance(cell, str):
                    fault = fault or f"{name} must be a text, got {show(cell)}"
            image, said = (cell if isinstance(cell, str) else "" for cell in (cells["image"], cells.get(asked or "")))
            path = str(table.parent / image) if image.strip() else ""
            items.append(Item(path, said, number + 1, fault))
    return items


def items_of(arguments: Sequence[str], table: Path | None, text: str | None) -> list[Item]:
    """``IMAGE... TEXT``, or a table of both.

    Raises:
        UserError: If neither is whole, or both are given.
    """
    if table is not None:
        if arguments:
            raise UserError("give pictures on the command line or a --table, not both")
        return read_items(table, text)
    if text is None:
        if not arguments:
            raise UserError("name a picture, or a --table with a column image")
        return [Item(image) for image in arguments]
    if len(arguments) < 2:
        raise UserError(f"give IMAGE... and then the {text.split('|')[0]} in quotes, or a --table")
    return [Item(image, arguments[-1]) for image in arguments[:-1]]


def sorted_out(
    items: Sequence[Item], text: str | None, *, picture: bool = False, hide: str | None = None
) -> tuple[list[Item], list[Unread]]:
    """The items that have what is needed, and the rows that do not.

    Args:
        items: All.
        text: What the text is called, where it is needed.
        picture: Whether a picture is needed; else a text will do.
        hide: A modality that the run never looks at.

    Raises:
        UserError: For an item of the command line.
    """
    kept, lacking = [], []
    for item in items:
        seen, said = bool(item.image), bool(item.text.strip())
        fault = item.fault
        if not fault and not seen and (picture or hide == "text"):
            fault = "no picture"
        if not fault and text is not None and not said:
            fault = f"no {text}"
        if not fault and not (seen and hide != "image") and not (said and hide != "text"):
            fault = "no text" if hide == "image" else "neither picture nor text"
        if not fault:
            kept.append(item)
        elif item.row is None:
            noun = fault.removeprefix("no ") if fault.startswith("no ") else "picture or a text"
            raise UserError(f"'{item.image}' needs a {noun}, got an empty one")
        else:
            lacking.append(Unread(item.image, fault, item.row))
    return kept, lacking


def in_order(lacking: list[Unread], unreadable: list[Unread]) -> list[Unread]:
    """By row of the table."""
    return sorted([*lacking, *unreadable], key=lambda one: one.row or 0)
