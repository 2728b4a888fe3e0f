"""Hateful Memes: a picture and the words on it; hateful or not.

Source: Kiela et al. 2020, https://arxiv.org/abs/2005.04790. JSON Lines, streamed. A meme that stands in several files
(``dev_unseen`` repeats some of ``dev_seen``) belongs to the first one: train, then dev, then test.
"""

from collections.abc import Iterator
from pathlib import Path

from polyfuse.data.problems import Problems
from polyfuse.datasets.published import TEST, TRAIN, VALIDATION, Pictures, Row, locate, needed, table_rows

FILES = {
    "train": TRAIN,
    "dev": VALIDATION,
    "dev_seen": VALIDATION,
    "dev_unseen": VALIDATION,
    "test": TEST,
    "test_seen": TEST,
    "test_unseen": TEST,
}
LABELS = {"0": "not hateful", "1": "hateful"}


def read(folder: Path, problems: Problems) -> Iterator[Row]:
    """A row per meme; ``labels`` is empty where the file gives none; ``kind`` is the name of its file.

    Raises:
        UserError: If no file is there.
    """
    paths = {name: locate(folder, f"{name}.jsonl", f"data/{name}.jsonl") for name in FILES}
    if not any(paths.values()):
        needed("hateful_memes", folder, *(f"{name}.jsonl" for name in FILES))
    pictures = Pictures(folder, ("", "data"), problems)
    seen: set[str] = set()
    for name, part in FILES.items():
        path = paths[name]
        for number, cells in table_rows(path, ("id", "img", "label", "text"), problems) if path is not None else ():
            key, label = cells["id"], cells["label"]
            if not key or key in seen:
                problems.add("row", "comes twice" if key else "no id", number, f"{name}.jsonl: {key}")
                continue
            seen.add(key)
            if label not in LABELS and (label or part != TEST):
                problems.add("label", "not 0 or 1", number, f"{name}.jsonl: {label!r}")
            if not cells["text"]:
                problems.add("text", "none", number, f"{name}.jsonl")
            labels = (LABELS[label],) if label in LABELS else ()
            texts = (cells["text"],) if cells["text"] else ()
            image = pictures.find(cells["img"], number)
            yield Row(key, part, image, cells["img"], texts, labels=labels, group=key, kind=name)
