"""What the readers of published data sets share: files found, annotations parsed, texts and boxes checked."""

import contextlib
import gc
import json
import math
import os
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyfuse.data.problems import Broken, Problems
from polyfuse.errors import UserError

if TYPE_CHECKING:
    from polyfuse.data.codecs import Reading

#: Annotation files are parsed whole; this bounds what is parsed. The largest published one has 0.5 GB.
MAX_JSON_BYTES = 2 << 30
_MOST_FOLDERS = 64
_COCO_2014 = re.compile(r"(?:^|/)COCO_(?:train|val)2014_(\d{12}\.jpg)$")
_COCO_2017 = ("train2017", "val2017", "images/train2017", "images/val2017")
Box = tuple[float, float, float, float]


def locate(folder: Path, *names: str) -> Path | None:
    """The first of these files that is in the folder or in a folder right below it.

    A name may hold slashes. Earlier names win, whatever their depth.
    """
    below = folders_below(folder)
    for name in names:
        for place in (folder, *below):
            if (place / name).is_file():
                return place / name
    return None


def folders_below(folder: Path) -> list[Path]:
    """The folders right below a folder, in the order of their names.

    Raises:
        UserError: If it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir())
    except OSError as error:
        raise UserError(f"'{folder}' cannot be listed: {error.strerror}") from None


class Pictures:
    """Finds picture files by name. A name never leads out of the folder it is looked for in.

    Folders may be links, as where several data sets share their pictures; files may not lead out of their folder.
    COCO's training and validation pictures of 2014 are those of 2017 under other names and in other parts
    (https://github.com/chainer/chainercv/issues/651): where one lacks, it is looked for among those.

    Args:
        folder: Of the data set.
        places: Sub-folders that may hold pictures, there or in a folder right below; "" = the folder itself.
        problems: Where missing ones are counted.
    """

    def __init__(self, folder: Path, places: Sequence[str], problems: Problems) -> None:
        roots = (folder, *folders_below(folder))
        found = dict.fromkeys(root / place for place in places for root in roots if (root / place).is_dir())
        self.places = list(found)
        self.newer = [root / place for place in _COCO_2017 for root in roots if (root / place).is_dir()]
        self.problems = problems
        self.folders: dict[Path, Reading] = {}
        self.last: tuple[str, Path] | None = None

    def find(self, name: Any, row: int) -> Path | None:
        """The path of a picture; None, and counted under ``picture``, if it is not there or empty."""
        if not isinstance(name, str) or not name:
            self.problems.add("picture", "wrong type", row, f"a file name is a text, got {shown(name)}")
            return None
        if self.last is not None and self.last[0] == name:  # neighbouring rows ask about one picture
            return self.last[1]
        broken = Broken("missing file")
        older = _COCO_2014.search(name) if self.newer else None
        tries = [(place, name) for place in self.places] + [(place, older[1]) for place in self.newer if older]
        for place, file in tries:
            try:
                self.last = name, self._found(place, file)
                return self.last[1]
            except Broken as error:
                if error.kind != "missing file":
                    broken = error
        detail = repr(name) + (f", {broken.detail}" if broken.kind != "missing file" and broken.detail else "")
        self.problems.add("picture", broken.kind, row, detail)
        return None

    def _found(self, place: Path, name: str) -> Path:
        from polyfuse.data.codecs import Reading, find_file

        parent, _, file = name.rpartition("/") if "://" not in name else ("", "", name)
        if name.startswith("/") or ".." in parent.split("/") or file == "..":
            raise Broken("outside the folder", "a name may not lead out of it")
        where = place / parent
        if where not in self.folders:
            if len(self.folders) >= _MOST_FOLDERS:
                self.folders.clear()
            self.folders[where] = Reading(folder=where)
        try:
            return Path(find_file(file, self.folders[where]))
        except Broken as error:
            if error.kind == "outside the folder":
                raise Broken(error.kind, "a link leads out of it: link the whole folder, or copy the files") from None
            raise


def read_document(path: Path, *keys: str, unused: str | None = None) -> dict[str, Any]:
    """A JSON annotation file, parsed whole, with lists under ``keys``.

    Args:
        path: The file.
        keys: What it must hold.
        unused: A key that is dropped from every object as soon as it is read: the outlines of COCO's things take more
            memory than all the rest.

    Raises:
        UserError: If it is too large, is no JSON (a web page, a truncated file), or lacks a list.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(f"'{path}' has {path.stat().st_size} bytes; at most {MAX_JSON_BYTES} are parsed")
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from None
    if raw[:64].lstrip()[:1] == b"<":
        raise UserError(f"'{path}' is a web page, not the JSON file of that name; download it again")
    try:
        with _no_collection():
            document = json.loads(raw, object_hook=None if unused is None else partial(_without, unused))
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is no whole JSON file ({str(error)[:160]}); download it again") from None
    if not isinstance(document, dict):
        raise UserError(f"'{path}' must hold a JSON object, got {type(document).__name__}")
    for key in keys:
        if not isinstance(document.get(key), list):
            raise UserError(f"'{path}' must hold a list '{key}', its keys: {', '.join(map(repr, list(document)[:10]))}")
    return document


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Parsing makes millions of objects and no cycle: looking for cycles meanwhile takes as long again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _without(key: str, entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop(key, None)
    return entry


def records(document: Mapping[str, Any], key: str, problems: Problems, **kinds: Any) -> Iterator[tuple[int, dict]]:
    """Number and content of the entries of a list that have the wanted keys with values of the wanted types.

    Others are counted under the list's name.
    """
    for number, entry in enumerate(document[key]):
        if not isinstance(entry, dict):
            problems.add(key, "not an object", number)
            continue
        wrong = [name for name, kind in kinds.items() if not _is(entry.get(name), kind)]
        if wrong:
            problems.add(key, f"no usable {wrong[0]!r}", number, shown(entry.get(wrong[0])))
        else:
            yield number, entry


def shown(value: Any) -> str:
    """Any value in a message: short, also where it is deep."""
    return reprlib.repr(value)[:60]


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def clean_text(value: Any) -> str:
    """A text with single spaces; "" for what is none, or cannot be written as UTF-8 (half of a surrogate pair).

    Example:
        >>> clean_text(" A  man. "), clean_text(None), clean_text(chr(0xD83D))
        ('A man.', '', '')
    """
    if not isinstance(value, str):
        return ""
    try:
        value.encode()
    except UnicodeEncodeError:
        return ""
    return " ".join(value.split())


def share_box(box: Any, width: Any, height: Any) -> Box | None:
    """``(x, y, width, height)`` in pixels as ``(x0, y0, x1, y1)`` in shares, cut at the picture's edges.

    Returns:
        None where that is no box: not four finite numbers, or nothing of it is inside of the picture.

    Example:
        >>> share_box([10, 5, 30, 20], 40, 20), share_box([3, 3, 0, 5], 40, 20)
        ((0.25, 0.25, 1.0, 1.0), None)
    """
    numbers = [*box, width, height] if isinstance(box, list | tuple) and len(box) == 4 else []
    if not numbers or not all(_is(value, int | float) and math.isfinite(value) for value in numbers):
        return None
    x, y, w, h = (float(value) for value in box)
    if width <= 0 or height <= 0 or w <= 0 or h <= 0:
        return None
    x0, x1 = (min(max(value / width, 0.0), 1.0) for value in (x, x + w))
    y0, y1 = (min(max(value / height, 0.0), 1.0) for value in (y, y + h))
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def table_rows(path: Path, columns: Sequence[str], problems: Problems) -> Iterator[tuple[int, dict[str, str]]]:
    """Number and cells of the rows of a CSV or JSON Lines table, streamed; empty or unusable cells are "".

    Columns are found whatever their capitals. Rows that cannot be read, and cells that are no UTF-8, are counted.

    Raises:
        UserError: If the table lacks a column (CSV), or cannot be read at all.
    """
    from polyfuse.data.table import check_columns, read_chunks, read_header
    from polyfuse.data.table_csv import BadText

    if path.suffix == ".jsonl":
        spelt = {column: column for column in columns}  # any line may lack any key
    else:
        known = read_header(path)
        lower = {name.strip().lower(): name for name in reversed(known)}
        check_columns([c for c in columns if c.lower() not in lower], known, path.name)
        spelt = {column: lower[column.lower()] for column in columns}
    for chunk in read_chunks(path, columns=list(spelt.values())):
        bad = dict(chunk.bad_rows)
        for slot in range(len(chunk)):
            number = chunk.first_row + slot
            if number in bad:
                problems.add("row", "unreadable", number, f"{path.name}: {bad[number]}")
                continue
            cells = {}
            for column, name in spelt.items():
                cell = chunk.columns[name][slot] if name in chunk.columns else None
                if isinstance(cell, BadText):
                    problems.add(column, "not UTF-8", number, path.name)
                    cell = None
                cells[column] = clean_text(cell)
            yield number, cells
