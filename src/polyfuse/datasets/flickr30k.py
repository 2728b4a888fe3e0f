"""Flickr30k: pictures with five captions each.

Source: Young et al. 2014, "From image descriptions to visual denotations", TACL 2. Either the split by Karpathy
(``dataset_flickr30k.json``, parsed whole), or the captions as first published (``results_20130124.token``, streamed;
``results.csv`` on Kaggle) with the lists of the split (``train.txt``, ``val.txt``, ``test.txt`` of Flickr30k Entities:
one number a line). ``flickr_annotations_30k.csv`` of nlphuji/flickr30k on Hugging Face is the split by Karpathy as a
table (filename, split, and raw: the captions as a JSON list).

Kaggle's table has one line without its second bar, 2199200615.jpg, which is counted as a problem.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from polyfuse.data.problems import Problems
from polyfuse.datasets.annotations import Pictures, clean_text, locate, table_rows
from polyfuse.datasets.karpathy import PARTS, read_split
from polyfuse.datasets.published import TEST, TRAIN, VALIDATION, Row, needed

TOKENS = "results_20130124.token"
TABLE = "results.csv"
SPLIT_TABLE = "flickr_annotations_30k.csv"
KARPATHY = "dataset_flickr30k.json"
PLACES = ("flickr30k-images", "flickr30k_images", "images", "Images", "")
LISTS = (("train.txt", TRAIN), ("val.txt", VALIDATION), ("test.txt", TEST))
LONGEST_LINE = 1 << 16


def read(folder: Path, problems: Problems) -> Iterator[Row]:
    """A row per picture. Without a split file every row is a training row, and that is counted as a problem.

    Raises:
        UserError: If no file of captions is there, the JSON is none, or the table lacks a column.
    """
    pictures = Pictures(folder, PLACES, problems)
    path = needed("flickr30k", folder, KARPATHY, SPLIT_TABLE, TOKENS, TABLE)
    if path.name == KARPATHY:
        yield from read_split(path, pictures, problems)
        return
    if path.name == SPLIT_TABLE:
        yield from _split_table(path, pictures, problems)
        return
    parts = _parts(folder)
    if not parts:
        problems.add("split", f"no {', '.join(name for name, _ in LISTS)}: every row is a training row")
    done: set[str] = set()
    for number, (name, texts) in enumerate(_grouped(path, problems)):
        key = name.rpartition(".")[0]
        if name in done:
            problems.add("row", "comes twice", number, name)
            continue
        done.add(name)
        part = parts.get(key) if parts else TRAIN
        if part is None:
            problems.add("split", "in no list, left out", number, name)
            continue
        yield Row(key, part, pictures.find(name, number), key, tuple(texts), group=key)


def _split_table(path: Path, pictures: Pictures, problems: Problems) -> Iterator[Row]:
    done: set[str] = set()
    for number, cells in table_rows(path, ("filename", "split", "raw"), problems):
        name, part = cells["filename"], PARTS.get(cells["split"])
        if not name or name in done or part is None:
            problems.add("row", "comes twice" if name in done else "no file name or unknown split", number, name)
            continue
        done.add(name)
        try:
            raw = json.loads(cells["raw"])
        except (ValueError, RecursionError):
            raw = None
        texts = [clean_text(text) for text in raw] if isinstance(raw, list) else []
        if not texts or not all(texts):
            problems.add("text", "no list of captions" if not texts else "empty caption", number, name)
        key = name.rpartition(".")[0] or name
        yield Row(key, part, pictures.find(name, number), key, tuple(text for text in texts if text), group=key)


def _parts(folder: Path) -> dict[str, int]:
    found = {}
    for file, part in LISTS:
        path = locate(folder, file)
        if path is not None:
            with path.open(encoding="utf-8", errors="replace") as lines:
                found.update({line.strip().removesuffix(".jpg"): part for line in lines if line.strip()})
    return found


def _grouped(path: Path, problems: Problems) -> Iterator[tuple[str, list[str]]]:
    """Name and captions of every picture: neighbouring lines with one name.

    A line is ``name.jpg#0<tab>caption``, or ``name.jpg| 0| caption`` in a table, which has a head.
    """
    name = ""
    texts: list[str] = []
    with path.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(LONGEST_LINE), b"")):
            try:
                words = line.decode().rstrip("\r\n")
            except UnicodeDecodeError:
                problems.add("text", "not UTF-8", number)
                continue
            if path.name == TABLE:
                if number == 0:
                    continue
                picture, sign, words = words.partition("|")
                which, tab, caption = words.partition("|")
            else:
                mark, tab, caption = words.partition("\t")
                picture, sign, which = mark.rpartition("#")
            text = clean_text(caption)
            if not (tab and sign and which.strip().isdecimal() and picture and text):
                problems.add("text", "no caption line", number, repr(line[:40].decode(errors="replace")))
                continue
            if picture != name:
                if texts:
                    yield name, texts
                name, texts = picture, []
            texts.append(text)
    if texts:
        yield name, texts
