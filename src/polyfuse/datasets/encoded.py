"""What the sets of raw pictures, words and recordings share: encode once, keep the table, break the inputs of tests.

``remember`` runs a recipe once and keeps its outcome under a mark that names the code, the pinned packages and the
weights: a second load reads one file and needs neither the raw data nor the networks.

Shapes: N rows, D features of a modality, S pixels.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from polyfuse.cache import cache_dir
from polyfuse.data import corrupt_raw
from polyfuse.data.corrupt_raw import IMAGE_KINDS, corrupt_images
from polyfuse.data.packages import FETCHABLE
from polyfuse.data.problems import Broken
from polyfuse.datasets.assemble import assemble, damaged, principal
from polyfuse.datasets.base import DataSet
from polyfuse.encoders.features import FrozenFeatures
from polyfuse.encoders.pretrained import load_pretrained
from polyfuse.errors import UserError, require

LEVELS = (1, 3)  # of a raw corruption in a data set
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class FeatureTable:
    """Every row of a data set, encoded and not yet standardised.

    Attributes:
        ids: One stable, distinct name per row.
        groups: What each row belongs to; rows of a group share a split.
        classes: Names of the classes.
        labels: ``(N,)`` int64.
        part: ``(N,)`` int8: 0 train, 1 validation, 2 test.
        features: By modality ``(N, D)`` float32.
        broken: By modality and corruption the same for the test rows, in table order.
    """

    ids: list[str]
    groups: list[str]
    classes: list[str]
    labels: np.ndarray
    part: np.ndarray
    features: dict[str, np.ndarray]
    broken: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def data_set(self, name: str, notes: tuple[str, ...]) -> DataSet:
        """Cut into parts and standardised by the training rows."""
        broken = {}
        for (modality, corruption), values in self.broken.items():
            whole = np.zeros_like(self.features[modality])
            whole[self.part == 2] = values
            broken[modality, corruption] = whole
        return assemble(
            name,
            ids=self.ids,
            labels=self.labels,
            classes=self.classes,
            features=self.features,
            part=self.part,
            groups=self.groups,
            broken=broken,
            notes=notes,
        )


def mark_of(code: Sequence[str], fetched: Sequence[str], *parts: object) -> str:
    """A digest that changes with the source of the recipe, with the pins of what it reads, and with ``parts``.

    Args:
        code: Paths of the modules that decide the features, beside this one and ``corrupt_raw``.
        fetched: Names of ``FETCHABLE``: data and weights.
        parts: Whatever else decides, such as the number of the split.
    """
    digest = hashlib.sha256(repr(parts).encode())
    for path in (*code, __file__, corrupt_raw.__file__):
        digest.update(Path(path).read_bytes())
    for name in fetched:
        digest.update(repr(FETCHABLE[name].packages).encode())
    return digest.hexdigest()[:20]


def remember(name: str, mark: str, build: Callable[[], FeatureTable]) -> FeatureTable:
    """The table of an earlier call with the same mark, or a new one, kept in ``datasets`` of the cache folder."""
    path = cache_dir() / "datasets" / f"{name}-{mark}.safetensors"
    found = _read(path)
    if found is not None:
        return found
    table = build()
    arrays = {f"features|{modality}": array for modality, array in table.features.items()}
    arrays |= {f"broken|{modality}|{title}": array for (modality, title), array in table.broken.items()}
    arrays |= {"labels": table.labels, "part": table.part}
    words = {"ids": table.ids, "groups": table.groups, "classes": table.classes, "order": list(arrays)}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        whole = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
        save_file(whole, scratch, metadata={"words": json.dumps(words)})
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
    return table


def _read(path: Path) -> FeatureTable | None:
    try:
        with safe_open(path, framework="np") as file:
            words = json.loads(file.metadata()["words"])
            arrays = {key: file.get_tensor(key) for key in words["order"]}  # the file itself sorts by name
    except (OSError, SafetensorError, KeyError, ValueError):
        return None  # never written, or damaged: built again
    features, broken = {}, {}
    for key, array in arrays.items():
        kind, *names = key.split("|")
        if kind == "features":
            features[names[0]] = array
        elif kind == "broken":
            broken[names[0], names[1]] = array
    return FeatureTable(
        words["ids"], words["groups"], words["classes"], arrays["labels"], arrays["part"], features, broken
    )


def fetched_network(name: str) -> FrozenFeatures:
    """A frozen network, its weights fetched on first use."""
    from polyfuse.data.fetch import fetch

    return load_pretrained(name, folder=fetch(name))


def picture_features(network: FrozenFeatures, pixels: Tensor, side: int) -> np.ndarray:
    """``(N, D)`` float32 of ``(N, 3, S, S)`` uint8 pictures, brought to ``side`` (bicubic) first."""
    parts = []
    for block in pixels.split(_ROWS_AT_ONCE):
        if block.shape[2] != side:
            x = torch.nn.functional.interpolate(block.float(), (side, side), mode="bicubic", antialias=True)
            block = x.round().clamp(0, 255).to(torch.uint8)
        parts.append(network(list(block.permute(0, 2, 3, 1).contiguous().numpy())))
    return np.concatenate(parts)


def broken_pictures(pixels: Tensor, keys: Tensor, levels: Iterable[int] = LEVELS) -> Iterator[tuple[str, Tensor]]:
    """Every corruption of ``(N, 3, S, S)`` pictures with its title, such as "blur 1"."""
    for kind in IMAGE_KINDS:
        for level in levels:
            yield f"{kind} {level}", corrupt_images(pixels, kind, level, keys)


def render(path: Path, side: int) -> np.ndarray | None:
    """A PNG or SVG on white, padded to a square, ``(side, side, 3)`` uint8; None for an SVG without a size.

    Raises:
        UserError: If it cannot be decoded, or Pillow (extra ``workbench``) or resvg-py (extra ``svg``) is missing.
    """
    require("PIL", extra="workbench")
    from polyfuse.data.codecs_image import decode_image

    content: str | bytes = str(path)
    try:
        if path.suffix == ".svg":
            resvg = require("resvg_py", extra="svg")
            content = bytes(resvg.svg_to_bytes(svg_string=path.read_text(encoding="utf-8"), width=2 * side))
        picture: np.ndarray = decode_image(content, side, "pad")
    except Broken as error:
        raise damaged(path, str(error)) from None
    except UserError:
        raise
    except ValueError as error:
        if "invalid size" in str(error):
            return None
        raise damaged(path, str(error)) from None
    return picture


def reduced(train: np.ndarray, width: int) -> Callable[[np.ndarray], np.ndarray]:
    """The projection on the first ``width`` principal directions of the training rows, ``(N, D)`` to float32."""
    mean, directions, _ = principal(train.astype(np.float64))
    return lambda rows: ((rows - mean) @ directions[:, :width]).astype(np.float32)


def fit_letters(train: Sequence[str], width: int) -> Callable[[Sequence[str]], np.ndarray]:
    """Texts by the pieces of their words: TF-IDF of pieces of 2 to 5 letters, reduced by a truncated SVD.

    Needs scikit-learn (extra ``workbench``).

    Args:
        train: The texts that pieces, weights and directions are fitted on.
        width: Features D.

    Returns:
        A function of N texts: ``(N, D)`` float32.
    """
    text = require("sklearn.feature_extraction.text", extra="workbench")
    reduce = require("sklearn.decomposition", extra="workbench").TruncatedSVD(width, random_state=0)
    counts = text.TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True)
    reduce.fit(counts.fit_transform(train))

    def encode(texts: Sequence[str]) -> np.ndarray:
        features: np.ndarray = reduce.transform(counts.transform(texts)).astype(np.float32)
        return features

    return encode
