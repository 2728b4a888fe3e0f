"""ROCO and ROCOv2: radiology pictures of articles, with their captions.

Source: Pelka et al. 2018, "Radiology Objects in COntext"; Rueckert et al. 2024 (ROCOv2),
https://arxiv.org/abs/2405.10004. Text files, streamed: ``train/radiology/captions.txt`` with a line ``id<tab>caption``
per picture (ROCO), or ``train_captions.csv`` with the columns ``ID`` and ``Caption`` (ROCOv2).

ROCO's pictures are ``ROCO_00001.jpg`` where ``scripts/fetch.py`` of razorx89/roco-dataset brought them since 2022, and
``PMC4608653_cro-0008-0385-g01.jpg`` in older copies, such as Kaggle's
(https://github.com/razorx89/roco-dataset/issues/7). ``licences.txt``, or Kaggle's table, says which is which.
"""

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path

from polyfuse.data.problems import Problems
from polyfuse.datasets.annotations import Pictures, clean_text, locate, table_rows
from polyfuse.datasets.published import TEST, TRAIN, VALIDATION, Row, needed

PARTS = (("train", TRAIN), ("validation", VALIDATION), ("valid", VALIDATION), ("test", TEST))
#: Tables whose first two columns are a picture's id and its older name.
OLDER_NAMES = ("licences.txt", "traindata.csv", "valdata.csv", "testdata.csv")
LONGEST_LINE = 1 << 20


def read(folder: Path, problems: Problems) -> Iterator[Row]:
    """A row per picture.

    Raises:
        UserError: If no file of captions is there.
    """
    tables = {name: locate(folder, f"{name}/radiology/captions.txt", f"{name}_captions.csv") for name, _ in PARTS}
    if not any(tables.values()):
        needed("roco", folder, *(f"{name}/radiology/captions.txt" for name, _ in PARTS))
    seen: set[str] = set()
    for name, part in PARTS:
        path = tables[name]
        if path is None:
            continue
        pictures = Pictures(folder, (f"{name}/radiology/images", f"{name}_images/{name}", name), problems)
        older = _older_names(path.parent) if path.suffix == ".txt" else {}
        for number, key, text in _lines(path, problems) if path.suffix == ".txt" else _cells(path, problems):
            if not key or key in seen:
                problems.add("row", "comes twice" if key else "no id", number, f"{name}: {key}")
                continue
            seen.add(key)
            if not text:
                problems.add("text", "empty caption", number, f"{name}: {key}")
            file = older.get(key, f"{key}.jpg")
            yield Row(key, part, pictures.find(file, number), key, (text,) if text else (), group=key)


def _older_names(folder: Path) -> dict[str, str]:
    """File of every picture by its id; nothing where the files are named by the ids."""
    for name in OLDER_NAMES:
        if (folder / name).is_file():
            with (folder / name).open(encoding="utf-8", errors="replace", newline="") as lines:
                try:
                    names = {cells[0].strip(): cells[1].strip() for cells in csv.reader(lines) if len(cells) > 1}
                except csv.Error:  # no such table
                    continue
            some = itertools.islice(names.values(), 1000)  # not each of them was to be had
            if any((folder / "images" / file).is_file() for file in some):
                return names
    return {}


def _lines(path: Path, problems: Problems) -> Iterator[tuple[int, str, str]]:
    with path.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(LONGEST_LINE), b"")):
            try:
                key, tab, text = line.decode().partition("\t")
            except UnicodeDecodeError:
                problems.add("text", "not UTF-8", number, path.name)
                continue
            if tab:
                yield number, key.strip(), clean_text(text)
            elif line.strip():
                problems.add("row", "no tab", number, repr(key[:40]))


def _cells(path: Path, problems: Problems) -> Iterator[tuple[int, str, str]]:
    for number, cells in table_rows(path, ("id", "caption"), problems):
        yield number, cells["id"], cells["caption"]
