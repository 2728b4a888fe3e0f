"""A table of your own as task data: a column of pictures, a column of texts, and what is to be learned.

Shapes: N rows, P pictures, S pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyfuse.data.codecs import Reading, clean, numbers, show, source_of
from polyfuse.data.problems import Broken, Problems
from polyfuse.data.schema import NULL_VALUES
from polyfuse.data.split import split_by_column, split_by_ratio
from polyfuse.data.table import check_columns, read_chunks, read_header
from polyfuse.errors import UserError
from polyfuse.tasks.batch import TaskData

_BOX = 4
_BOX_RULE = "box (0 <= x0 < x1 <= 1 and so for y: shares of width and height)"
_NULLS = frozenset(NULL_VALUES)
_EMPTY = frozenset({""})  # "none" is an answer


def table(
    *,
    path: str,
    side: int = 64,
    image: str | None = None,
    text: str | None = None,
    answer: str | None = None,
    value: str | None = None,
    box: Sequence[str] | None = None,
    kind: str | None = None,
    split: str | None = None,
    ratios: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    max_pixels: int = 50_000_000,
    allow_outside: bool = False,
) -> TaskData:
    """Rows of a CSV, Parquet or JSON Lines table.

    Columns called ``image``, ``text``, ``answer`` (or ``label``), ``value``, ``kind`` and ``split`` are found by
    themselves; others are named. Pictures are paths from the table's folder (or bytes, in Parquet), squeezed to
    S x S. Rows of one picture stay in one part, share an id, and their texts are each other's references. A picture
    that is missing or broken leaves its row without one, and is counted and named in the notes. So is a row that
    cannot be used at all: unreadable, without picture and text, or without the wanted answer, value or box.

    Args:
        path: The table.
        side: Pixels S.
        image: Column of pictures.
        text: Column of captions, questions or phrases.
        answer: Column of right answers or classes.
        value: Column of numbers.
        box: Four columns: x0, y0, x1, y1, as shares of the picture's width and height.
        kind: Column of kinds, for tables by kind.
        split: Column of ``train``, ``validation``, ``test``; default: a draw by ``ratios``.
        ratios: Shares of train, validation and test, where there is no such column.
        seed: Another seed gives another draw.
        max_pixels: Pictures with more are not decoded.
        allow_outside: Accept paths that lead out of the table's folder.

    Raises:
        UserError: If the table cannot be read, lacks a column, or no row is left.
    """
    where = Path(path)
    known = read_header(where)
    columns = _columns(known, image=image, text=text, answer=answer, value=value, kind=kind, split=split)
    boxes = _box_columns(box)
    check_columns([*columns.values(), *boxes], known, where.name)
    if not {"image", "text"} & set(columns):
        raise UserError(
            f"table '{where.name}' needs a column image or text; name yours: data.args.image=COLUMN or "
            f"data.args.text=COLUMN; its columns: {', '.join(map(repr, known[:20]))}"
        )
    shares = _shares(ratios)
    problems = Problems()
    pictures = _Pictures(
        side, Reading(folder=where.parent, max_pixels=max_pixels, allow_outside=allow_outside), problems
    )
    rows = _rows(where, columns, boxes, pictures, problems)
    if not rows:
        raise UserError(f"table '{where.name}' has no row to use: {'; '.join(problems.lines()) or 'it is empty'}")
    groups = [row["group"] for row in rows]
    if "split" in columns:
        way_out = "rename the column" if split is None else "remove data.args.split"
        part = split_by_column([row["split"] for row in rows], columns["split"], way_out=f"mend its cells or {way_out}")
        for row, number in zip(rows, part, strict=True):
            if number < 0:
                problems.add("split", "empty cell", row["row"])
        rows = [row for row, number in zip(rows, part, strict=True) if number >= 0]
        groups, part = [row["group"] for row in rows], part[part >= 0]
    else:
        keys = [str(row["row"]) for row in rows]
        part = split_by_ratio(keys, ratios=shares, seed=seed, groups=groups)
    numbered: dict[str, int] = {}
    said: dict[str, list[str]] = {}
    for row in rows:
        said.setdefault(row["group"], []).append(row["text"])
    return TaskData(
        name=where.stem,
        images=np.stack(pictures.pixels) if pictures.pixels else None,
        image_of=np.array([row["image"] for row in rows], dtype=np.int64),
        texts=[row["text"] for row in rows],
        part=part.astype(np.int8),
        ids=np.array([numbered.setdefault(group, len(numbered)) for group in groups], dtype=np.int64),
        answers=[row["answer"] for row in rows] if "answer" in columns else None,
        values=np.array([row["value"] for row in rows], dtype=np.float32) if "value" in columns else None,
        boxes=np.array([row["box"] for row in rows], dtype=np.float32).reshape(-1, _BOX) if boxes else None,
        references=[tuple(dict.fromkeys(said[group])) for group in groups] if "text" in columns else None,
        kinds=[row["kind"] for row in rows] if "kind" in columns else None,
        notes=tuple(problems.lines()),
    )


def _columns(known: Sequence[str], **named: str | None) -> dict[str, str]:
    """``{role: column}``: as named, else a column of the role's own name."""
    own = {"answer": ("answer", "label")}
    found = {}
    for role, column in named.items():
        guess = next((name for name in own.get(role, (role,)) if name in known), None)
        if column is not None or guess is not None:
            found[role] = column if column is not None else str(guess)
    return found


def _shares(ratios: Any) -> tuple[float, float, float]:
    numbers = isinstance(ratios, Sequence) and all(type(share) in (int, float) for share in ratios)
    if not numbers or len(ratios) != 3 or min(ratios) < 0 or not ratios[0] or not abs(sum(ratios) - 1) <= 1e-6:
        raise UserError(
            "data.args.ratios must be three shares that sum to 1, of train (above 0), validation and test, such as "
            f"[0.7, 0.15, 0.15], got {ratios!r}"
        )
    return float(ratios[0]), float(ratios[1]), float(ratios[2])


def _box_columns(box: Any) -> tuple[str, ...]:
    if box is None:
        return ()
    if not isinstance(box, Sequence) or len(box) != _BOX or not all(isinstance(name, str) for name in box):
        raise UserError(
            f"data.args.box must name four columns, such as [x0, y0, x1, y1], which hold shares of the picture's width "
            f"and height, got {box!r}"
        )
    return tuple(box)


def _rows(
    path: Path, columns: dict[str, str], boxes: tuple[str, ...], pictures: "_Pictures", problems: Problems
) -> list[dict[str, Any]]:
    """What is usable of every row that can be used."""
    found = []
    for chunk in read_chunks(path, columns=[*columns.values(), *boxes]):
        bad = dict(chunk.bad_rows)
        cells = {
            role: clean(chunk.columns[column], _EMPTY if role in ("text", "answer", "kind") else _NULLS)
            for role, column in columns.items()
        }
        values, wrong = numbers(cells.get("value", [None] * len(chunk)))
        for slot, fault in wrong:
            problems.add("value", fault, chunk.first_row + slot, show(cells["value"][slot]))
        corners = [numbers(clean(chunk.columns[column], _NULLS))[0] for column in boxes]
        for slot in range(len(chunk)):
            number = chunk.first_row + slot
            if number in bad:
                problems.add("row", "unreadable", number, bad[number])
                continue
            row: dict[str, Any] = {"row": number, "value": values[slot]}
            for role in ("text", "answer", "kind"):
                cell = cells[role][slot] if role in cells else ""
                row[role] = cell if isinstance(cell, str) else ""  # not UTF-8, or a list
            row["split"] = cells["split"][slot] if "split" in cells else None
            row["box"] = [corner[slot] for corner in corners]
            lacking = _lacking(row, columns, boxes)
            if lacking is not None:
                problems.add("row", f"no usable {lacking}", number)
                continue
            image = cells["image"][slot] if "image" in cells else None
            row["image"] = -1 if image is None else pictures.number(image, number)
            row["group"] = f"row {number}" if row["image"] < 0 else f"picture {row['image']}"
            if row["image"] < 0 and not row["text"]:
                problems.add("row", "neither picture nor text", number)
                continue
            found.append(row)
    return found


def _lacking(row: dict[str, Any], columns: dict[str, str], boxes: tuple[str, ...]) -> str | None:
    """Which of the things to be learned a row does not have."""
    if "answer" in columns and not row["answer"]:
        return "answer"
    if "value" in columns and not np.isfinite(row["value"]):
        return "value"
    return _BOX_RULE if boxes and not _is_box(row["box"]) else None


def _is_box(corners: list[float]) -> bool:
    x0, y0, x1, y1 = corners
    return bool(0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1)


class _Pictures:
    """Decoded once each, numbered in the order of their first use."""

    def __init__(self, side: int, reading: Reading, problems: Problems) -> None:
        self.side, self.reading, self.problems = side, reading, problems
        self.pixels: list[np.ndarray] = []
        self._numbers: dict[str | bytes, int] = {}

    def number(self, cell: Any, row: int) -> int:
        """The number of a picture; -1, and counted, if it cannot be used."""
        from polyfuse.data.codecs_image import strict_pil

        try:
            source = source_of(cell, self.reading)
            if source not in self._numbers:
                with strict_pil():
                    pixels = squeezed(source, self.side, self.reading.max_pixels)
                self._numbers[source] = len(self.pixels)
                self.pixels.append(pixels)
            return self._numbers[source]
        except Broken as broken:
            detail = ", ".join(part for part in (show(cell), broken.detail) if part)
            self.problems.add("image", broken.kind, row, detail)
            return -1


def squeezed(source: str | bytes, side: int, max_pixels: int = 50_000_000) -> np.ndarray:
    """A picture of any shape as ``(side, side, 3)`` uint8, not cropped: shares of its sides stay right.

    Inside ``strict_pil()``.

    Raises:
        Broken: If it cannot be decoded whole.
    """
    from PIL import Image

    from polyfuse.data.codecs_image import read_image

    def fit(image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))

    return read_image(source, max_pixels, then=fit, draft=2 * side)
