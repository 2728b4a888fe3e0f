"""Pictures with words: what retrieval, matching and captioning learn from, with the splits they are judged on.

Shapes: N pairs, S pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyfuse.data.split import split_by_ratio
from polyfuse.errors import UserError, require
from polyfuse.registry import Registry

TRAIN, VALIDATION, TEST = 0, 1, 2
# Of emoji concepts; the other sets have their own.
RATIOS = (0.65, 0.05, 0.30)


@dataclass(frozen=True)
class ImageTextPairs:
    """Pictures and their texts.

    Attributes:
        name: Of the set.
        ids: One stable, distinct name per pair.
        images: ``(N, S, S, 3)`` uint8, or ``(N, S, S)`` for grey pictures.
        texts: The text that a picture is to be matched with.
        wordings: Other texts that say the same or part of it, for training only.
        groups: Pairs of one group never cross parts: one concept, one title.
        part: ``(N,)`` int8: 0 train, 1 validation, 2 test.
        notes: What one should know about it.
    """

    name: str
    ids: list[str]
    images: np.ndarray
    texts: list[str]
    wordings: list[tuple[str, ...]]
    groups: list[str]
    part: np.ndarray
    notes: tuple[str, ...] = ()

    def rows(self, part: int) -> np.ndarray:
        """Numbers of the pairs of a part."""
        return np.flatnonzero(self.part == part)


def emoji_pairs(style: str = "fluent", *, side: int = 128, split: int = 0) -> ImageTextPairs:
    """Emoji of the subgroups with at least ten members, with their English names; split by concept.

    Args:
        style: ``fluent`` or ``twemoji``; the split does not depend on it.
        side: Pixels S.
        split: Number of the split.

    Raises:
        UserError: If the style is unknown, the files cannot be fetched, or a library is missing.
    """
    from polyfuse.data.emoji_build import STYLES, concept_of, files_by_key
    from polyfuse.data.fetch import fetch

    if style not in STYLES:
        raise UserError(f"style must be one of {', '.join(STYLES)}, got {style!r}")
    folder = fetch("emoji")
    table = _named_emoji(folder)
    files = {style: files_by_key(folder / style) for style in STYLES}
    table = [row for row in table if all(row["code"] in drawn for drawn in files.values())]
    groups = [concept_of(row["code"].upper()) for row in table]
    part = split_by_ratio(
        [row["code"] for row in table], ratios=RATIOS, seed=split, strata=[r["subgroup"] for r in table], groups=groups
    )
    return ImageTextPairs(
        f"emoji ({style})",
        [row["code"] for row in table],
        np.stack([_picture(files[style][row["code"]], side) for row in table]),
        [row["name"] for row in table],
        [row["tags"] for row in table],
        groups,
        part,
        ("Drawings; one name per concept, keywords beside it.",),
    )


def _named_emoji(folder: Path) -> list[dict[str, Any]]:
    """Code points, name, keywords and subgroup of every base emoji of a large subgroup."""
    import json
    from collections import Counter

    from polyfuse.data.emoji_build import code_key

    entries = json.loads((folder / "emojibase" / "en" / "data.json").read_text(encoding="utf-8"))
    rows = [
        {
            "code": code_key(entry["hexcode"]),
            "name": entry["label"].removeprefix("flag: "),
            "tags": tuple(entry.get("tags", ())),
            "subgroup": entry["subgroup"],
        }
        for entry in entries
        if "subgroup" in entry
    ]
    sizes = Counter(row["subgroup"] for row in rows)
    return [row for row in rows if sizes[row["subgroup"]] >= 10]


def _picture(path: Path, side: int) -> np.ndarray:
    from polyfuse.datasets.encoded import render

    picture = render(path, side)
    if picture is None:
        raise UserError(f"{path} has no size: it cannot be rendered")
    return picture


def same_words(texts: Sequence[str]) -> np.ndarray:
    """Equal texts get equal numbers, ``(N,)`` int64: duplicates are not each other's negatives."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(" ".join(text.lower().split()), len(numbers)) for text in texts])


def _openclipart(*, side: int = 128, split: int = 0) -> ImageTextPairs:
    from polyfuse.datasets.openclipart import openclipart_pairs

    return openclipart_pairs(side=side, split=split)


def _glyphs(*, side: int = 32, split: int = 0) -> ImageTextPairs:
    from polyfuse.datasets.glyphs import glyph_pairs

    return glyph_pairs(side=side, split=split)


#: Pairs by name.
PAIRS: Registry = Registry("set of pairs", {"emoji": emoji_pairs, "openclipart": _openclipart, "glyphs": _glyphs})
Loader = Callable[..., ImageTextPairs]


def load_pairs(name: str, *, split: int = 0) -> ImageTextPairs:
    """Pairs by name.

    Raises:
        UserError: If the name is unknown, files cannot be fetched, or a library is missing.
    """
    require("PIL", extra="workbench")
    try:
        loader: Loader = PAIRS[name]
    except KeyError as error:
        raise UserError(str(error.args[0])) from None
    return loader(split=split)
