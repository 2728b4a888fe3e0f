"""What a column holds, guessed from some of its cells. Every rule is one line of ``guess_kind``."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyfuse.data.codecs import Reading, numbers
from polyfuse.data.codecs_array import parse_array
from polyfuse.data.codecs_image import MAGIC
from polyfuse.data.codecs_tabular import NUMERIC_SHARE
from polyfuse.data.problems import Broken

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".opus")
ARRAYS = (".npy",)
VIDEOS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".ogv")
POINTS = (".pcd", ".ply")
_DATE = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d.*)?|\d{1,2}[/.]\d{1,2}[/.]\d{4}( \d\d:\d\d.*)?")
_ID_NAME = re.compile(r"(.*[_\s-])?(id|uid|uuid|guid|key|index|idx)|unnamed.*|", re.IGNORECASE)
_CAMEL_ID = re.compile(r".*[a-z]I[dD]")
_MOST = 0.8
_DISTINCT = 0.98  # an id column may hold a few duplicates: they are counted
_MAGIC_SOUND = (b"fLaC", b"OggS", b"ID3", b"FORM")


@dataclass(frozen=True)
class Guess:
    """One column.

    Attributes:
        kind: ``image audio video points series vector text numeric categorical`` (inputs), or ``id code date empty
            constant web address other`` (left out).
        distinct: Different values among the cells seen.
        why: What the guess rests on.
    """

    kind: str
    distinct: int
    why: str


def named_like_an_id(name: str) -> bool:
    """Whether a column's name says that it names rows or things.

    Example:
        >>> [named_like_an_id(n) for n in ("id", "patient_id", "userId", "width", "")]
        [True, True, True, False, True]
    """
    return bool(_ID_NAME.fullmatch(name) or _CAMEL_ID.fullmatch(name))


def guess_kind(name: str, cells: Sequence[Any], folder: Path | None) -> Guess:
    """Guess from cleaned cells (None = empty)."""
    full = [cell for cell in cells if cell is not None]
    if not full:
        return Guess("empty", 0, "no filled cell")
    if not all(isinstance(cell, str) for cell in full):
        return _objects(full)
    distinct = len(set(full))
    ending = [Path(cell).suffix.lower() for cell in full]
    known = (("image", IMAGES), ("audio", SOUNDS), ("video", VIDEOS), ("points", POINTS), ("array", ARRAYS))
    for kind, endings in known:
        share = sum(end in endings for end in ending) / len(full)
        if share >= _MOST:
            if sum("://" in cell for cell in full) > 0.5 * len(full):
                return Guess("web address", distinct, "files must be beside the table, nothing is fetched")
            why = f"{share:.0%} of the cells end like a file of this type"
            return Guess(kind, distinct, why) if kind != "array" else _arrays(full, Reading(folder), distinct)
    if sum(cell.startswith("[") for cell in full) >= _MOST * len(full):
        return _arrays(full, Reading(folder), distinct)
    values, bad = numbers(full)
    if len(full) - len(bad) >= NUMERIC_SHARE * len(full):
        return _numbers(name, values, distinct, len(full))
    return _words(name, full, distinct)


def _numbers(name: str, values: np.ndarray, distinct: int, count: int) -> Guess:
    if distinct == 1:
        return Guess("constant", 1, "one value everywhere")
    named = named_like_an_id(name) and distinct >= _DISTINCT * count
    if count >= 5 and (named or (distinct == count and (np.diff(values) == 1).all())):
        return Guess("id", distinct, "distinct numbers, by name or because they count up")
    if named_like_an_id(name) and (values == np.round(values)).all():
        return Guess("code", distinct, "named like an id, and repeats")
    return Guess("numeric", distinct, "numbers")


def _words(name: str, full: Sequence[str], distinct: int) -> Guess:
    count = len(full)
    if distinct == 1 and count > 1:
        return Guess("constant", 1, "one value everywhere")
    if sum(_DATE.fullmatch(cell) is not None for cell in full) >= NUMERIC_SHARE * count:
        return Guess("date", distinct, "dates; make numbers of them to use them")
    words = sum(len(cell.split()) for cell in full) / count
    length = sum(map(len, full)) / count
    few = distinct <= max(20, 0.05 * count)
    if named_like_an_id(name) and words < 1.5:
        return Guess("id" if distinct >= _DISTINCT * count else "code", distinct, "named like an id")
    if (words >= 2 or length > 40) and distinct > 0.3 * count and not (few and words < 4 and distinct < 0.5 * count):
        return Guess("text", distinct, f"{words:.1f} words a cell, {distinct} of {count} different")
    if few or distinct <= 0.5 * count:
        return Guess("categorical", distinct, f"{distinct} different values in {count}")
    if words >= 1.5 or any(ord(letter) > 0x2E80 for cell in full[:50] for letter in cell):
        return Guess("text", distinct, f"{distinct} of {count} different")
    return Guess("code", distinct, f"{distinct} of {count} different, one word each")


def _objects(full: Sequence[Any]) -> Guess:
    """Cells of Parquet or JSON that are no strings."""
    first = full[0]
    if isinstance(first, Mapping):
        first = first.get("bytes") or first.get("path") or ""
    if isinstance(first, str) and first.lower().endswith(IMAGES + SOUNDS):
        return Guess("image" if first.lower().endswith(IMAGES) else "audio", len(full), "files inside the table")
    if isinstance(first, bytes):
        if first.startswith(MAGIC) or first[8:12] == b"WEBP":
            return Guess("image", len(full), "image files inside the table")
        if first.startswith(_MAGIC_SOUND) or first[8:12] == b"WAVE":
            return Guess("audio", len(full), "audio files inside the table")
    if isinstance(first, list | np.ndarray):
        return _arrays(full, Reading(), len(full))
    return Guess("other", len(full), f"cells are {type(first).__name__}")


def _arrays(full: Sequence[Any], reading: Reading, distinct: int, looked_at: int = 50) -> Guess:
    """One fixed length: vector; several lengths or two axes: series."""
    shapes: list[tuple[int, ...] | None] = []
    for cell in full[:looked_at]:
        try:
            shapes.append(parse_array(cell, reading).shape)
        except Broken as broken:
            shapes.append(None if broken.kind in ("missing file", "zero bytes", "truncated") else (-1,))
    found = [shape for shape in shapes if shape is not None]
    if not found:
        return Guess("vector", distinct, "array files, none of the first could be opened")
    if found.count((-1,)) > 0.5 * len(found):
        return Guess("other", distinct, f"lists that do not hold numbers, e.g. {json.dumps(full[0], default=str)[:40]}")
    good = [shape for shape in found if shape != (-1,)]
    if any(len(shape) == 2 for shape in good) or len(set(good)) > 1:
        return Guess("series", distinct, "lists of several lengths, or with two axes")
    return Guess("vector", distinct, f"lists of {good[0][0] if good[0] else 1} numbers")
