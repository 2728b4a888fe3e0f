"""RefCOCO, RefCOCO+ and RefCOCOg: phrases for things in COCO pictures, each with the thing's box.

Source: Kazemzadeh et al. 2014 ("ReferItGame"), Yu et al. 2016, https://arxiv.org/abs/1608.00272 (RefCOCO, RefCOCO+),
Mao et al. 2016, https://arxiv.org/abs/1511.02283 (RefCOCOg); files as ``refer.py`` of lichengunc/refer reads them:
boxes are x, y, width, height in pixels. ``refs(<split by>).p`` is a pickle; it is read without running it, and nothing
but plain containers is accepted. The same list as JSON, ``refs(<split by>).json``, is read in its place.
``instances.json`` is parsed whole (0.3 GB).

Parts: testA (people) and testB (other things) are both part 2; ``Row.kind`` is the name of the split.
"""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from polyfuse.data.pickled_plain import read_pickled_plain
from polyfuse.data.problems import Problems
from polyfuse.datasets.annotations import (
    MAX_JSON_BYTES,
    Box,
    Pictures,
    clean_text,
    read_document,
    records,
    share_box,
    shown,
)
from polyfuse.datasets.coco import category_names
from polyfuse.datasets.published import TEST, TRAIN, VALIDATION, Row, needed
from polyfuse.errors import UserError

PARTS = {"train": TRAIN, "val": VALIDATION, "test": TEST, "testA": TEST, "testB": TEST}
PLACES = ("train2014", "images/train2014", "images/mscoco/images/train2014", "images", "")
SPLIT_BY = {"refcoco": ("unc", "google"), "refcoco_plus": ("unc",), "refcocog": ("umd", "google")}
FOLDERS = {"refcoco": "refcoco", "refcoco_plus": "refcoco+", "refcocog": "refcocog"}


def read(name: str, folder: Path, problems: Problems, *, split_by: str | None = None) -> Iterator[Row]:
    """A row per phrase, with one box; the thing's category in ``labels``. Rows of one thing are one ``group``.

    Args:
        name: ``refcoco``, ``refcoco_plus`` or ``refcocog``.
        folder: Holds ``refcoco/refs(unc).p`` (or ``.json``), ``refcoco/instances.json``, or these files themselves, and
            pictures.
        problems: Filled on the way.
        split_by: ``unc``, ``google`` or ``umd``; None = the first of the set's own that is there.

    Raises:
        UserError: If a file is missing, the pickle asks for anything but plain containers, or the JSON is none.
    """
    if split_by is not None and split_by not in SPLIT_BY[name]:
        raise UserError(f"'{name}' is split by {' or '.join(SPLIT_BY[name])}, got {split_by!r}")
    files = [
        f"refs({by}).{kind}" for by in (SPLIT_BY[name] if split_by is None else (split_by,)) for kind in ("json", "p")
    ]
    own = [f"{FOLDERS[name]}/{file}" for file in files]
    lying = [file for file in files if (folder / file).is_file()]  # not one folder below: that may be another set's
    path = folder / lying[0] if lying else needed(name, folder, *own)
    refs = _references(path)
    boxes = _boxes(path.parent / "instances.json", name, problems)
    pictures = Pictures(folder, PLACES, problems)
    for number, ref in records({"refs": refs}, "refs", problems, ref_id=int, ann_id=int, split=str, sentences=list):
        if ref["split"] not in PARTS:
            problems.add("refs", "unknown split", number, repr(ref["split"]))
        elif ref["ann_id"] not in boxes:
            problems.add("refs", "no box", number, f"annotation {ref['ann_id']}")
        else:
            yield from _phrases(number, ref, boxes[ref["ann_id"]], pictures, problems)


def _references(path: Path) -> list[Any]:
    """The list of a pickle of plain containers, or of a JSON file."""
    try:
        if path.suffix == ".p":
            refs = read_pickled_plain(path)
        elif path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(f"'{path}' has {path.stat().st_size} bytes; at most {MAX_JSON_BYTES} are parsed")
        else:
            refs = json.loads(path.read_bytes())
    except UserError as error:
        raise UserError(
            f"{error}; the published file needs no more than that: download it again, or lay the same list as JSON, "
            f"'{path.stem}.json', beside it"
        ) from None
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is no whole JSON file ({str(error)[:160]})") from None
    if not isinstance(refs, list):
        raise UserError(f"'{path}' must hold a list of references, got {type(refs).__name__}")
    return refs


def _phrases(
    number: int, ref: dict[str, Any], thing: tuple[Box, str, int, str], pictures: Pictures, problems: Problems
) -> Iterator[Row]:
    box, kind, image_id, file = thing
    image = pictures.find(file, number)
    for place, sentence in enumerate(ref["sentences"]):
        words = sentence if isinstance(sentence, dict) else {}
        text = clean_text(words.get("sent")) or clean_text(words.get("raw"))
        if not text or "\ufffd" in text:
            problems.add("text", "not UTF-8" if text else "empty phrase", number, f"reference {ref['ref_id']}")
            continue
        yield Row(
            str(words.get("sent_id", f"{ref['ref_id']}/{place}")),
            PARTS[ref["split"]],
            image,
            str(image_id),
            (text,),
            labels=(kind,),
            boxes=(box,),
            group=str(ref["ref_id"]),
            kind=ref["split"],
        )


def _boxes(path: Path, name: str, problems: Problems) -> dict[int, tuple[Box, str, int, str]]:
    """Box, category, picture and its file by annotation."""
    if not path.is_file():
        raise UserError(f"data set '{name}' must have 'instances.json' beside its references, none in '{path.parent}'")
    document = read_document(path, "images", "annotations", "categories", unused="segmentation")
    kinds = category_names(document, problems)
    images = {image["id"]: image for _, image in records(document, "images", problems, id=int, file_name=str)}
    found = {}
    for number, entry in records(document, "annotations", problems, id=int, image_id=int, category_id=int):
        image = images.get(entry["image_id"])
        box = None if image is None else share_box(entry.get("bbox"), image.get("width"), image.get("height"))
        if image is None or box is None:
            problems.add("annotations", "no box" if image else "unknown picture", number, shown(entry.get("bbox")))
            continue
        # Some releases name the cut-out of the thing, "..._16.jpg"; the picture is what is before it.
        file = re.sub(r"^(COCO_\w+?_\d{12})_\d+(\.jpg)$", r"\1\2", image["file_name"])
        found[entry["id"]] = (box, kinds.get(entry["category_id"], ""), entry["image_id"], file)
    return found


read_refcoco = partial(read, "refcoco")
read_refcoco_plus = partial(read, "refcoco_plus")
read_refcocog = partial(read, "refcocog")
