"""Tabler's icons: line drawing and tags; 26 categories, split by the first word of the name. A negative control.

What an icon looks like says next to nothing about its category, so a fusion must learn to leave the image aside.
Categories of which more than half the icons share their first word ("brand", "letter") would lie in one split; they are
left out. Image: black on white at 96 pixels, EfficientNet-Lite0, 128 principal components. Tags:
WordLlama.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from polyfuse.data.corrupt_raw import corrupt_texts
from polyfuse.data.keyed import key_of
from polyfuse.datasets.assemble import damaged, split_rows
from polyfuse.datasets.base import DataSet, DataSetSource
from polyfuse.datasets.encoded import (
    FeatureTable,
    broken_pictures,
    fetched_network,
    mark_of,
    picture_features,
    reduced,
    remember,
    render,
)

LARGEST_WORD = 0.5  # of a category may share their first word
SIDE = 96
WIDTH = 128
LEVEL = 3  # one level is enough for an input that says nothing
WEIGHTS = ("efficientnet_lite0", "wordllama")
NOTES = (
    "A negative control: the image says next to nothing about the category.",
    "Icons whose names begin with the same word share a split.",
    "Broken before encoding: images by blur, fog, rain, JPEG and a grey square; tags by swapped letters.",
)


def load(split: int = 0) -> DataSet:
    """3,850 icons, 26 classes.

    Raises:
        UserError: If icons or weights cannot be fetched, or a library is missing.
    """
    from polyfuse.data.fetch import fetch

    mark = mark_of((__file__,), ("tabler", *WEIGHTS), split)
    return remember("tabler", mark, lambda: encode(fetch("tabler"), split)).data_set("tabler", NOTES)


def icons(folder: Path) -> list[tuple[str, str, str, str]]:
    """Name, first word, category and tags of the icons that are taken, sorted by name.

    Raises:
        UserError: If ``icons.json`` is not what it should be.
    """
    path = folder / "icons.json"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        rows = sorted(
            (icon["name"], icon["name"].partition("-")[0], icon["category"], " ".join(map(str, icon["tags"])))
            for icon in table.values()
            if "outline" in icon["styles"] and icon["category"]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from None
    sizes = Counter(category for _, _, category, _ in rows)
    words = Counter((category, word) for _, word, category, _ in rows)
    kept = {c for c in sizes if max(n for (own, _), n in words.items() if own == c) <= LARGEST_WORD * sizes[c]}
    return [row for row in rows if row[2] in kept]


def encode(folder: Path, split: int) -> FeatureTable:
    """The table of the icons in ``folder``.

    Raises:
        UserError: If ``icons.json`` or a drawing is damaged.
    """
    rows = icons(folder)
    classes = sorted({category for _, _, category, _ in rows})
    ids, groups = [f"tabler/{name}" for name, *_ in rows], [word for _, word, *_ in rows]
    labels = np.array([classes.index(category) for _, _, category, _ in rows])
    tags = [text for *_, text in rows]
    part = split_rows(ids, labels.tolist(), split, groups=groups)
    train, test = np.flatnonzero(part == 0), torch.from_numpy(np.flatnonzero(part == 2))
    keys = key_of(ids)[test]

    pictures = []
    for name, *_ in rows:
        path = folder / "icons" / "outline" / f"{name}.svg"
        picture = render(path, SIDE)
        if picture is None:
            raise damaged(path, "no size")
        pictures.append(picture)
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    network, words = fetched_network("efficientnet_lite0"), fetched_network("wordllama")
    seen = picture_features(network, pixels, SIDE)
    project = reduced(seen[train], WIDTH)
    broken = {
        ("image", title): project(picture_features(network, pictures, SIDE))
        for title, pictures in broken_pictures(pixels[test], keys, (LEVEL,))
    }
    typed = corrupt_texts([tags[row] for row in test.tolist()], LEVEL, keys)
    broken["tags", f"typos {LEVEL}"] = words(typed)
    return FeatureTable(ids, groups, classes, labels, part, {"image": project(seen), "tags": words(tags)}, broken)


SOURCE = DataSetSource(
    "Icons by drawing (says nothing: a control) and tags, split by first word: 3,850 rows, 26 classes, 2 modalities",
    "MIT",
    load,
    fetch=("tabler", *WEIGHTS),
)
