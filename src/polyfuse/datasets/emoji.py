"""The shipped emoji set (``data/emoji.py``) for the bench: complete rows, frozen encoders, three vectors.

Picture: EfficientNet-Lite0 on the 32-pixel drawing enlarged to 96, 128 principal components. English name: WordLlama.
Spanish name: pieces of words, because no multilingual encoder comes in a package. Everything fitted is fitted on the
training rows. A sentence encoder (MiniLM) would read the English name too well: 0.78 alone, against 0.61.
"""

import numpy as np
import torch
from torch import Tensor

from polyfuse.data import emoji as shipped
from polyfuse.data import emoji_build
from polyfuse.data.corrupt_raw import corrupt_texts
from polyfuse.data.keyed import key_of
from polyfuse.datasets.assemble import split_rows
from polyfuse.datasets.base import DataSet, DataSetSource
from polyfuse.datasets.encoded import (
    LEVELS,
    FeatureTable,
    broken_pictures,
    fetched_network,
    fit_letters,
    mark_of,
    picture_features,
    reduced,
    remember,
)

RATIOS = (0.6, 0.15, 0.25)
SIDE = 96
WIDTH = 128
WEIGHTS = ("efficientnet_lite0", "wordllama")
NOTES = (
    "Drawings, not photographs; every concept is drawn in two styles, and concepts never cross splits.",
    "Names have lost the words that announce their class; a row's English and Spanish names translate each other.",
    "Broken before encoding: pictures by blur, fog, rain, JPEG and a grey square; names by swapped letters.",
)


def load(split: int = 0) -> DataSet:
    """3,696 rows (1,671 concepts), 9 classes; split 0 is the shipped one.

    Raises:
        UserError: If weights cannot be fetched, or Pillow or scikit-learn is missing.
    """
    files = (__file__, shipped.__file__, emoji_build.__file__, *map(str, sorted(emoji_build.ASSETS.iterdir())))
    table = remember("emoji", mark_of(files, WEIGHTS, split), lambda: _encode(split))
    return table.data_set("emoji", NOTES)


def _encode(split: int) -> FeatureTable:
    tables = shipped.load_emoji(missing_rate=0.0)
    batches = [getattr(tables, name) for name in shipped.SPLITS]
    rows = [row for name in shipped.SPLITS for row in tables.rows[name]]
    ids = [row_id for batch in batches for row_id in batch.ids]
    labels = torch.cat([batch.target for batch in batches]).numpy()
    groups = [row["concept"] for row in rows]
    if split == 0:
        part = np.repeat(np.arange(3, dtype=np.int8), [len(batch) for batch in batches])
    else:
        part = split_rows(ids, labels.tolist(), split, groups=groups, ratios=RATIOS)
    train, test = np.flatnonzero(part == 0), np.flatnonzero(part == 2)
    keys = key_of(ids)[torch.from_numpy(test)]

    pixels: Tensor = torch.cat([batch.inputs["picture"] for batch in batches])
    network, words = fetched_network("efficientnet_lite0"), fetched_network("wordllama")
    seen = picture_features(network, pixels, SIDE)
    project = reduced(seen[train], WIDTH)
    names = {column: [row[column] for row in rows] for column in ("name", "name_es")}
    spell = fit_letters([names["name_es"][row] for row in train], WIDTH)
    broken = {
        ("picture", title): project(picture_features(network, pictures, SIDE))
        for title, pictures in broken_pictures(pixels[torch.from_numpy(test)], keys)
    }
    for column, encode in (("name", words), ("name_es", spell)):
        for level in LEVELS:
            typed = corrupt_texts([names[column][row] for row in test], level, keys)
            broken[column, f"typos {level}"] = encode(typed)
    features = {"picture": project(seen), "name": words(names["name"]), "name_es": spell(names["name_es"])}
    return FeatureTable(ids, groups, list(shipped.CLASSES), labels, part, features, broken)


SOURCE = DataSetSource(
    "Emoji by picture, English and Spanish name, split by concept: 3,696 rows, 9 classes, 3 modalities",
    "MIT (Fluent, emojibase), CC-BY-4.0 (Twemoji), Unicode-3.0 (names)",
    load,
    fetch=WEIGHTS,
)
