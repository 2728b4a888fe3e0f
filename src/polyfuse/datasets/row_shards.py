"""Rows of published data sets, and rows of tables, as samples of shards, and back."""

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyfuse.data.problems import Broken, Problems
from polyfuse.datasets.published import Row
from polyfuse.errors import UserError

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")
_FIELDS = ("id", "part", "image_id", "texts", "answers", "labels", "boxes", "group", "kind")


def samples_of_rows(rows: Iterable[Row], problems: Problems) -> Iterator[dict[str, Any]]:
    """A sample per row, keyed by its number: the picture as it is, arrays as ``.npy``, everything else in ``json``.

    Pictures are copied, not decoded: whether they can be is seen on reading.
    """
    for number, row in enumerate(rows):
        sample: dict[str, Any] = {"__key__": f"{number:08d}", "json": {name: getattr(row, name) for name in _FIELDS}}
        if isinstance(row.image, Path):
            try:
                sample[_ending(row.image.name)] = row.image.read_bytes()
            except OSError as error:
                problems.add("picture", "unreadable", number, f"{row.image.name}: {error.strerror}")
        elif row.image is not None:
            sample["jpg"] = row.image  # what it is, its bytes say
        for name, array in row.features.items():
            stream = io.BytesIO()
            np.save(stream, array, allow_pickle=False)
            sample[f"{name}.npy"] = stream.getvalue()
        yield sample


def rows_of_samples(samples: Iterable[Mapping[str, Any]], problems: Problems) -> Iterator[Row]:
    """The rows that ``samples_of_rows`` made samples of; their pictures are bytes. Others are counted and left out."""
    for number, sample in enumerate(samples):
        try:
            held = dict(sample["json"])
            held["texts"], held["answers"], held["labels"] = (tuple(held[n]) for n in ("texts", "answers", "labels"))
            held["boxes"] = tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in held["boxes"])
            image = next((sample[ending] for ending in PICTURES if ending in sample), None)
            features = {
                name.removesuffix(".npy"): np.load(io.BytesIO(content), allow_pickle=False)
                for name, content in sample.items()
                if name.endswith(".npy")
            }
            row = Row(**{name: held[name] for name in _FIELDS}, image=image, features=features)
        except (KeyError, TypeError, ValueError) as error:
            problems.add("sample", "no row", number, f"{sample.get('__key__')}: {str(error)[:60]}")
            continue
        yield row


def samples_of_table(table: Path, files: Sequence[str], problems: Problems) -> Iterator[dict[str, Any]]:
    """A sample per row of a CSV, Parquet or JSON Lines table, keyed by its number.

    Args:
        table: The table; paths in it are relative to its folder and may not leave it.
        files: Columns that name files: ``column.ending`` holds what the file does (just the ending, for one column).
            All other cells that are not empty go into ``json``, as the table has them.
        problems: Rows and files that cannot be used are counted: the row is left out, the file is missing.

    Raises:
        UserError: If the table cannot be read or lacks a column.
    """
    from polyfuse.data.codecs import Reading, find_file, show
    from polyfuse.data.table import check_columns, read_chunks, read_header

    check_columns(files, read_header(table), table.name)
    for column in files:
        if len(files) > 1 and not re.fullmatch(r"[\w+-]+", column):
            raise UserError(f"a column of files must be named by letters, digits, _ + and -, got {column!r}")
    reading = Reading(folder=table.parent)
    for chunk in read_chunks(table):
        bad = dict(chunk.bad_rows)
        for slot in range(len(chunk)):
            number = chunk.first_row + slot
            if number in bad:
                problems.add("row", "unreadable", number, bad[number])
                continue
            cells = {name: column[slot] for name, column in chunk.columns.items()}
            plain = {name: _plain(cell) for name, cell in cells.items() if name not in files and _filled(cell)}
            sample: dict[str, Any] = {"__key__": f"{number:08d}", "json": plain}
            for column in files:
                cell = cells[column]
                if not _filled(cell):
                    continue
                try:
                    path = Path(find_file(cell, reading)) if isinstance(cell, str) else None
                    if path is None:
                        raise Broken("wrong type", "a path is a text")
                    sample[_ending(path.name) if len(files) == 1 else f"{column}.{_ending(path.name)}"] = path
                except Broken as broken:
                    problems.add(column, broken.kind, number, f"{show(cell)} {broken.detail}".strip())
            yield sample


def _ending(name: str) -> str:
    ending = name.rpartition(".")[2].lower()
    return ending if re.fullmatch(r"[a-z0-9]{1,8}", ending) and ending not in ("json", "txt", "cls") else "bin"


def _filled(cell: Any) -> bool:
    return cell is not None and not (isinstance(cell, str) and not cell.strip())


def _plain(cell: Any) -> Any:
    if isinstance(cell, np.ndarray):
        return cell.tolist()
    return str(cell) if isinstance(cell, str | bytes) else cell
