"""The split of COCO and Flickr30k by Karpathy: one JSON file with pictures, sentences and split.

Source: Karpathy and Fei-Fei 2015, https://arxiv.org/abs/1412.2306; ``dataset_coco.json`` and ``dataset_flickr30k.json``
of ``caption_datasets.zip``. Parsed whole (140 MB at most), without the words one by one. ``restval``, which everybody
trains on, is train.
"""

from collections.abc import Iterator
from pathlib import Path

from polyfuse.data.problems import Problems
from polyfuse.datasets.annotations import Pictures, clean_text, read_document, records
from polyfuse.datasets.published import TEST, TRAIN, VALIDATION, Row, needed

PARTS = {"train": TRAIN, "restval": TRAIN, "val": VALIDATION, "test": TEST}


def read_coco(folder: Path, problems: Problems) -> Iterator[Row]:
    """A row per picture of ``dataset_coco.json``.

    Raises:
        UserError: If the file is not there or no such JSON.
    """
    path = needed("coco_karpathy", folder, "dataset_coco.json")
    return read_split(path, Pictures(folder, ("", "images"), problems), problems)


def read_split(path: Path, pictures: Pictures, problems: Problems) -> Iterator[Row]:
    """A row per picture of a file of this format, in its order.

    Raises:
        UserError: If the file is no such JSON.
    """
    document = read_document(path, "images", unused="tokens")
    for number, image in records(document, "images", problems, filename=str, split=str, sentences=list):
        part = PARTS.get(image["split"])
        if part is None:
            problems.add("images", "unknown split", number, repr(image["split"]))
            continue
        texts = []
        for entry in image["sentences"]:
            text = clean_text(entry.get("raw")) if isinstance(entry, dict) else ""
            if text:
                texts.append(text)
            else:
                problems.add("text", "empty caption", number, image["filename"])
        name = image["filename"]
        file = f"{image['filepath']}/{name}" if isinstance(image.get("filepath"), str) else name
        key = str(image.get("cocoid", name.rpartition(".")[0] or name))
        yield Row(key, part, pictures.find(file, number), key, tuple(texts), group=key)
