"""COCO: captions and instances, in the JSON of 2014 and of 2017.

Source: Lin et al. 2014, "Microsoft COCO", https://arxiv.org/abs/1405.0312; Chen et al. 2015, "Microsoft COCO Captions",
https://arxiv.org/abs/1504.00325. The annotation files are parsed whole (captions 100 MB, instances 0.5 GB at most).

Parts: ``train`` is 0, ``val`` is 1; the published test pictures have no annotations.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyfuse.data.problems import Problems
from polyfuse.datasets.annotations import (
    Box,
    Pictures,
    clean_text,
    folders_below,
    locate,
    read_document,
    records,
    share_box,
    shown,
)
from polyfuse.datasets.published import TRAIN, VALIDATION, Row, needed
from polyfuse.errors import UserError

YEARS = (2014, 2017)
SPLITS = (("train", TRAIN), ("val", VALIDATION))


def read_captions(folder: Path, problems: Problems, *, year: int | None = None) -> Iterator[Row]:
    """A row per picture with its captions, train then val.

    Args:
        folder: Holds ``annotations/captions_train2014.json`` and its kin, and the pictures in ``train2014`` and so on.
        problems: Filled on the way.
        year: 2014 or 2017; None = the one that is there, of both the one whose pictures are.

    Raises:
        UserError: If no annotation file is there, those of both years are, or one is no such JSON.
    """
    for split, part, path in _files("coco_captions", "captions", folder, year):
        document = read_document(path, "images", "annotations")
        captions: dict[int, list[str]] = {
            image["id"]: [] for _, image in records(document, "images", Problems(), id=int)
        }
        for number, entry in records(document, "annotations", problems, image_id=int, caption=str):
            text = clean_text(entry["caption"])
            if entry["image_id"] not in captions:
                problems.add("annotations", "unknown picture", number, str(entry["image_id"]))
            elif not text:
                problems.add("annotations", "empty caption", number)
            else:
                captions[entry["image_id"]].append(text)
        for number, image, path_of in _images(folder, split, document, problems):
            texts = tuple(captions.pop(image["id"]))
            if not texts:
                problems.add("text", "no caption", number, f"{split}: {image['id']}")
            name = str(image["id"])
            yield Row(name, part, path_of, name, texts, group=name)


def read_instances(folder: Path, problems: Problems, *, year: int | None = None, crowds: bool = False) -> Iterator[Row]:
    """A row per picture with its boxes and their kinds, train then val.

    Args:
        folder: Holds ``annotations/instances_train2014.json`` and its kin, and the pictures.
        problems: Filled on the way.
        year: 2014 or 2017; None = the one that is there, of both the one whose pictures are.
        crowds: Keep the boxes around crowds of things; else they are counted and left out.

    Raises:
        UserError: As ``read_captions``.
    """
    for split, part, path in _files("coco_instances", "instances", folder, year):
        document = read_document(path, "images", "annotations", "categories", unused="segmentation")
        kinds = category_names(document, problems)
        sizes = {e["id"]: (e.get("width"), e.get("height")) for _, e in records(document, "images", Problems(), id=int)}
        found: dict[int, list[tuple[Box, str]]] = {image: [] for image in sizes}
        for number, entry in records(document, "annotations", problems, image_id=int, category_id=int):
            image = entry["image_id"]
            if image not in sizes:
                problems.add("annotations", "unknown picture", number, str(image))
                continue
            box = share_box(entry.get("bbox"), *sizes[image])
            if entry["category_id"] not in kinds:
                problems.add("annotations", "unknown category", number, str(entry["category_id"]))
            elif box is None:
                problems.add("annotations", "no box", number, shown(entry.get("bbox")))
            elif entry.get("iscrowd") and not crowds:
                problems.add("annotations", "crowd, left out", number)
            else:
                found[image].append((box, kinds[entry["category_id"]]))
        for _, entry, path_of in _images(folder, split, document, problems):
            boxes = found.pop(entry["id"])
            name = str(entry["id"])
            labels = tuple(label for _, label in boxes)
            yield Row(name, part, path_of, name, labels=labels, boxes=tuple(box for box, _ in boxes), group=name)


def category_names(document: dict[str, Any], problems: Problems) -> dict[int, str]:
    """Name of every category by its number."""
    entries = records(document, "categories", problems, id=int, name=str)
    return {entry["id"]: clean_text(entry["name"]) for _, entry in entries}


def _files(name: str, what: str, folder: Path, year: int | None) -> Iterator[tuple[str, int, Path]]:
    """Split with its year, part and path of the annotation files that are there."""
    if year is not None and year not in YEARS:
        raise UserError(f"year must be one of {YEARS}, got {year!r}")
    files = {
        (split, one, part): locate(folder, f"annotations/{what}_{split}{one}.json", f"{what}_{split}{one}.json")
        for one in (YEARS if year is None else (year,))
        for split, part in SPLITS
    }
    there = {key: path for key, path in files.items() if path is not None}
    if not there:
        names = [f"{what}_{split}{one}.json" for split, one, _ in files]
        needed(name, folder, *names)
    if len({one for _, one, _ in there}) > 1:
        roots = (folder, *folders_below(folder))
        pictured = {
            one
            for _, one, _ in there
            for split, _ in SPLITS
            if any((root / place / f"{split}{one}").is_dir() for root in roots for place in ("", "images"))
        }
        if len(pictured) != 1:
            raise UserError(
                f"'{folder}' has '{what}' of {' and '.join(map(str, YEARS))}, and pictures of "
                f"{'both' if pictured else 'neither'}; say which with year=, or leave one year's files there"
            )
        there = {key: path for key, path in there.items() if key[1] in pictured}
    for (split, one, part), path in there.items():
        yield f"{split}{one}", part, path


def _images(
    folder: Path, split: str, document: dict[str, Any], problems: Problems
) -> Iterator[tuple[int, dict[str, Any], Path | None]]:
    """Number, entry and path of every picture, once."""
    pictures = Pictures(folder, (split, f"images/{split}", "images", ""), problems)
    seen: set[int] = set()
    for number, image in records(document, "images", problems, id=int, file_name=str):
        if image["id"] in seen:
            problems.add("images", "comes twice", number, str(image["id"]))
            continue
        seen.add(image["id"])
        yield number, image, pictures.find(image["file_name"], number)
