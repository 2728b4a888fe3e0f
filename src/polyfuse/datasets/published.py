"""Published data sets in the files they are published in, read row by row from the user's own copy.

``read_published("flickr30k", folder)`` gives rows one after the other: no picture is opened, a row holds the path of
its picture. Annotation files in JSON are read whole, tables and text files are streamed. Nothing is downloaded here;
``polyfuse data prepare`` does that, and then the folder need not be named.

What a row lacks, or has broken, is counted and named in ``problems``: a missing picture leaves the row without
picture, a broken line is no row. Whether a picture decodes is seen by whoever opens it.
"""

import contextlib
import gc
import importlib
import json
import math
import os
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polyfuse.cache import cache_dir
from polyfuse.data.prepare import RECORD
from polyfuse.data.problems import Broken, Problems
from polyfuse.errors import UserError
from polyfuse.registry import Registry

if TYPE_CHECKING:
    from polyfuse.data.codecs import Reading

TRAIN, VALIDATION, TEST = 0, 1, 2
PART_NAMES = ("train", "validation", "test")
#: Annotation files are parsed whole; this bounds what is parsed. The largest published one has 0.5 GB.
MAX_JSON_BYTES = 2 << 30
_MOST_FOLDERS = 64
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Row:
    """One row of a published data set.

    Attributes:
        id: Its name in the published files.
        part: 0 train, 1 validation, 2 test.
        image: Its picture: a path, or what the file holds; None = there is none, or it is missing.
        image_id: Rows of one picture share it; "" = no picture was named.
        texts: Captions of the picture, or the one question, phrase, plot, post or report.
        answers: What people answered to the question, as they wrote it.
        labels: Classes of the row, or of the boxes, one each, where there are boxes.
        boxes: ``(x0, y0, x1, y1)`` as shares of width and height, y down.
        group: Rows of one group say the same of the same thing; default the picture, else the row.
        kind: Kind of question or row, for tables.
        features: Arrays that come with the row, by name.
    """

    id: str
    part: int
    image: Path | bytes | None = None
    image_id: str = ""
    texts: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    group: str = ""
    kind: str = ""
    features: Mapping[str, np.ndarray] = field(default_factory=dict)


Reader = Callable[..., Iterator[Row]]


@dataclass(frozen=True)
class PublishedSource:
    """Where a data set comes from and who reads it.

    Attributes:
        about: One line.
        reader: ``module:function`` below ``polyfuse.datasets``.
        home: Where its owners give it out.
        licence: What they say about use.
        files: What must lie in the folder.
    """

    about: str
    reader: str
    home: str
    licence: str
    files: tuple[str, ...]

    def load(self) -> Reader:
        """The reader: ``(folder, problems, **options) -> iterator of rows``."""
        module, _, name = self.reader.partition(":")
        reader: Reader = getattr(importlib.import_module(f"polyfuse.datasets.{module}"), name)
        return reader


_COCO = ("https://cocodataset.org", "annotations CC-BY-4.0; pictures: Flickr terms of use, each its own licence")
_REFER = ("https://github.com/lichengunc/refer", "not stated by its authors; pictures as COCO")
_REFS = ("{name}/refs({by}).p", "{name}/instances.json", "train2014/")
PUBLISHED = Registry(
    "published data set",
    {
        "coco_captions": PublishedSource(
            "COCO, five captions a picture, a row per picture",
            "coco:read_captions",
            *_COCO,
            ("annotations/captions_{train,val}{2014,2017}.json", "{train,val}{2014,2017}/"),
        ),
        "coco_karpathy": PublishedSource(
            "COCO in the split by Karpathy, a row per picture",
            "karpathy:read_coco",
            *_COCO,
            ("dataset_coco.json", "train2014/", "val2014/"),
        ),
        "coco_instances": PublishedSource(
            "COCO, boxes of 80 kinds of things, a row per picture",
            "coco:read_instances",
            *_COCO,
            ("annotations/instances_{train,val}{2014,2017}.json", "{train,val}{2014,2017}/"),
        ),
        "flickr30k": PublishedSource(
            "Flickr30k, five captions a picture, a row per picture",
            "flickr30k:read",
            "https://shannon.cs.illinois.edu/DenotationGraph/",
            "non-commercial research and education; pictures: Flickr terms of use",
            (
                "dataset_flickr30k.json, or results_20130124.token or results.csv (+ {train,val,test}.txt)",
                "flickr30k-images/",
            ),
        ),
        "vqa_v2": PublishedSource(
            "VQA v2, ten answers a question, a row per question",
            "vqa_v2:read",
            "https://visualqa.org/download.html",
            "annotations CC-BY-4.0; pictures as COCO",
            (
                "v2_OpenEnded_mscoco_{train2014,val2014,test2015}_questions.json",
                "v2_mscoco_{train2014,val2014}_annotations.json",
                "{train2014,val2014,test2015}/",
            ),
        ),
        **{
            name: PublishedSource(
                f"{title}, a box for every phrase, a row per phrase",
                f"refcoco:read_{name}",
                *_REFER,
                tuple(file.format(name=folder, by="|".join(by)) for file in _REFS),
            )
            for name, title, folder, by in (
                ("refcoco", "RefCOCO", "refcoco", ("unc", "google")),
                ("refcoco_plus", "RefCOCO+", "refcoco+", ("unc",)),
                ("refcocog", "RefCOCOg", "refcocog", ("umd", "google")),
            )
        },
        "mm_imdb": PublishedSource(
            "MM-IMDb, poster and plot of films, 23 genres, a row per film",
            "mm_imdb:read",
            "http://lisi1.unal.edu.co/mmimdb/ or, by its author, https://archive.org/download/mmimdb",
            "not stated by its authors; plots and posters: IMDb's and their owners'",
            ("split.json", "dataset/<id>.json", "dataset/<id>.jpeg"),
        ),
        "mm_imdb_features": PublishedSource(
            "MM-IMDb as features: word2vec of the plot, VGG of the poster, a row per film",
            "mm_imdb:read_features",
            "http://lisi1.unal.edu.co/mmimdb/ or, by its author, https://archive.org/download/mmimdb",
            "not stated by its authors; plots and posters: IMDb's and their owners'",
            ("multimodal_imdb.hdf5 (needs pip install h5py)",),
        ),
        "hateful_memes": PublishedSource(
            "Hateful Memes, picture and words, two classes, a row per meme",
            "hateful_memes:read",
            "https://hatefulmemeschallenge.com",
            "Meta's own licence: research only, no redistribution",
            ("{train,dev,dev_seen,dev_unseen,test,test_seen,test_unseen}.jsonl", "img/"),
        ),
        "roco": PublishedSource(
            "ROCO and ROCOv2, radiology pictures with captions, a row per picture",
            "roco:read",
            "https://github.com/razorx89/roco-dataset",
            "per picture, as its article in PubMed Central; ROCOv2: CC-BY, CC-BY-NC and CC0 pictures",
            (
                "{train,validation,test}/radiology/captions.txt or {train,valid,test}_captions.csv",
                "{train,validation,test}/radiology/images/ or {train,valid,test}/",
            ),
        ),
        "iu_xray": PublishedSource(
            "Chest X-rays of Indiana University (Open-i) with reports, a row per picture",
            "iu_xray:read",
            "https://openi.nlm.nih.gov; tables: https://www.kaggle.com/datasets/raddar/chest-xrays-indiana-university",
            "Open-i: CC-BY-NC-ND-4.0",
            (
                "indiana_reports.csv and indiana_projections.csv, or annotation.json",
                "images/images_normalized/ or images/",
            ),
        ),
    },
)


@dataclass
class PublishedRows:
    """Rows of a published data set, as often as one asks for them.

    Attributes:
        name: Of ``PUBLISHED``.
        folder: Where the files lie.
        options: For the reader.
        problems: What was missing or broken, of the iteration that was started last.
    """

    name: str
    folder: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    problems: Problems = field(default_factory=Problems)

    def __iter__(self) -> Iterator[Row]:
        self.problems = Problems()
        source: PublishedSource = PUBLISHED[self.name]
        return source.load()(self.folder, self.problems, **self.options)


def read_published(name: str, folder: Path | str | None = None, **options: Any) -> PublishedRows:
    """The rows of a published data set.

    Args:
        name: One of ``PUBLISHED``.
        folder: Where its files lie, as published; None = where ``polyfuse data prepare`` has put or found them.
        **options: Of the reader, such as ``year=2017``.

    Raises:
        UserError: If the name is unknown or the folder is not there. A file that is missing is named on iterating.
    """
    try:
        source: PublishedSource = PUBLISHED[name]
    except KeyError as error:
        raise UserError(str(error.args[0])) from None
    where = prepared_folder(name) if folder is None else Path(folder).expanduser()
    if where is None:
        raise UserError(
            f"data set '{name}' is not prepared; get it from {source.home} and run: "
            f"polyfuse data prepare {name} --source DIR|URL"
        )
    if not where.is_dir():
        raise UserError(f"data set '{name}' must be read from a folder, got '{where}', which is none")
    return PublishedRows(name, where, options)


def prepared_home(name: str) -> Path:
    """Where ``polyfuse data prepare`` keeps the files of a data set and its record."""
    return cache_dir() / "published" / name


def prepared_folder(name: str) -> Path | None:
    """Where the prepared files of a data set lie; None = it is not prepared.

    Raises:
        UserError: If the record is damaged.
    """
    home = prepared_home(name)
    try:
        record = json.loads((home / RECORD).read_text(encoding="utf-8"))
        return home / record["folder"]  # an absolute folder, the user's own, stays as it is
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{home / RECORD}' is damaged ({error}); delete '{home}' and prepare '{name}' again") from None


def locate(folder: Path, *names: str) -> Path | None:
    """The first of these files that is in the folder or in a folder right below it.

    A name may hold slashes. Earlier names win, whatever their depth.
    """
    below = _folders_below(folder)
    for name in names:
        for place in (folder, *below):
            if (place / name).is_file():
                return place / name
    return None


def needed(name: str, folder: Path, *names: str) -> Path:
    """As ``locate``, for a file that must be there.

    Raises:
        UserError: If none of them is.
    """
    path = locate(folder, *names)
    if path is None:
        source: PublishedSource = PUBLISHED[name]
        raise UserError(
            f"data set '{name}' must have {' or '.join(repr(n) for n in names)} in '{folder}' or one folder below, "
            f"found none; get it from {source.home}"
        )
    return path


def _folders_below(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir())
    except OSError as error:
        raise UserError(f"'{folder}' cannot be listed: {error.strerror}") from None


class Pictures:
    """Finds picture files by name. A name never leads out of the folder it is looked for in.

    Folders may be links, as where several data sets share their pictures; files may not lead out of their folder.

    Args:
        folder: Of the data set.
        places: Sub-folders that may hold pictures, there or in a folder right below; "" = the folder itself.
        problems: Where missing ones are counted.
    """

    def __init__(self, folder: Path, places: Sequence[str], problems: Problems) -> None:
        roots = (folder, *_folders_below(folder))
        found = dict.fromkeys(root / place for place in places for root in roots if (root / place).is_dir())
        self.places = list(found)
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
        for place in self.places:
            try:
                self.last = name, self._found(place, name)
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
