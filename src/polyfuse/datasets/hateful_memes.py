"""Hateful Memes: a picture and the words on it; hateful or not.

Source: Kiela et al. 2020, https://arxiv.org/abs/2005.04790. JSON Lines, streamed. ``dev`` and ``test``, of the first
round and on Kaggle, are ``dev_seen`` and ``test_seen`` of the second; ``test`` has no labels, ``test_seen`` has
(https://github.com/YiLunLee/missing_aware_prompts/issues/6). Papers score ``test_seen`` or ``test_unseen``
(https://github.com/facebookresearch/mmf/issues/967): ``Row.kind`` says which.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from polyfuse.data.problems import Problems
from polyfuse.datasets.annotations import Pictures, locate, table_rows
from polyfuse.datasets.published import TEST, TRAIN, VALIDATION, Row, needed
from polyfuse.errors import UserError

#: In this order: a file that has labels before the one that lacks them.
FILES = {
    "train": TRAIN,
    "dev_seen": VALIDATION,
    "dev_unseen": VALIDATION,
    "dev": VALIDATION,
    "test_seen": TEST,
    "test_unseen": TEST,
    "test": TEST,
}
LABELS = {"0": "not hateful", "1": "hateful"}


def read(folder: Path, problems: Problems, *, files: Sequence[str] | None = None) -> Iterator[Row]:
    """A row per meme; ``labels`` is empty where the file gives none; ``kind`` is the name of its file.

    A meme of several files belongs to the first in the order of ``FILES``: some of ``dev_unseen`` stands in
    ``dev_seen`` too, and is whole only when read without it.

    Args:
        folder: Holds the files and ``img/``.
        problems: Filled on the way.
        files: Which files to read, such as ``("train", "dev_unseen", "test_unseen")``; None = all that are there.

    Raises:
        UserError: If no file is there, or one that is asked for is not.
    """
    unknown = sorted(set(files or ()) - set(FILES))
    if unknown or (files is not None and (isinstance(files, str) or not files)):
        raise UserError(f"files must be some of {', '.join(FILES)}, got {files!r}")
    wanted = [name for name in FILES if files is None or name in files]
    paths = {name: locate(folder, f"{name}.jsonl", f"data/{name}.jsonl") for name in wanted}
    for name in (name for name in wanted if files is not None and paths[name] is None):
        needed("hateful_memes", folder, f"{name}.jsonl")
    if not any(paths.values()):
        needed("hateful_memes", folder, *(f"{name}.jsonl" for name in FILES))
    pictures = Pictures(folder, ("", "data"), problems)
    seen: set[str] = set()
    for name, path in paths.items():
        part = FILES[name]
        for number, cells in table_rows(path, ("id", "img", "label", "text"), problems) if path is not None else ():
            key, label = cells["id"], cells["label"]
            same = key.lstrip("0")  # some files have numbers, some the five digits of the picture's name
            if not key or same in seen:
                problems.add("row", "comes twice" if key else "no id", number, f"{name}.jsonl: {key}")
                continue
            seen.add(same)
            if label not in LABELS and (label or part != TEST):
                problems.add("label", "not 0 or 1", number, f"{name}.jsonl: {label!r}")
            if not cells["text"]:
                problems.add("text", "none", number, f"{name}.jsonl")
            labels = (LABELS[label],) if label in LABELS else ()
            texts = (cells["text"],) if cells["text"] else ()
            image = pictures.find(cells["img"], number)
            yield Row(key, part, image, cells["img"], texts, labels=labels, group=key, kind=name)
