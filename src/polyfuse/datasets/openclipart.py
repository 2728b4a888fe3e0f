"""Open Clip Art: drawings in the public domain with the titles and tags that people gave them.

Half of the collection is icon themes, star polygons and playing cards under useless titles. A drawing is taken if it is
not in those folders, its own metadata dedicates it to the public domain, it renders, its title has letters and stands
on at most eight drawings, and no earlier drawing has the same picture. Titles are split, not drawings.

Shapes: N drawings, S pixels.
"""

import hashlib
import re
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from polyfuse.cache import cache_dir
from polyfuse.data.problems import Broken
from polyfuse.data.split import split_by_ratio
from polyfuse.datasets.pairs import ImageTextPairs
from polyfuse.errors import UserError, require

_LEFT_OUT = ("computer/", "shapes/stars/", "recreation/games/cards/", "special/patterns/", "buttons/")
_SHARED = 8
_TAGS = 8
RATIOS = (0.70, 0.05, 0.25)
_LARGEST = 4 * 1024 * 1024  # bytes of a drawing
_SERIES = re.compile(r"(\bclip ?art by [^-]*- *)|([ _-]*\d+$)|(\.svg$)", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_EMPTY_TAGS = frozenset({"", "hash", "clipart", "clip_art", "openclipart", "svg", "unsorted"})


def openclipart_pairs(*, side: int = 128, split: int = 0) -> ImageTextPairs:
    """About 2,500 drawings, texts being title and tags, wordings the title, one tag, the description.

    Drawn once and kept in the cache folder.

    Raises:
        UserError: If the drawings cannot be fetched or resvg-py (extra ``svg``) is missing.
    """
    from polyfuse.data.fetch import fetch

    folder = fetch("openclipart")
    rows = [row for path in sorted(folder.rglob("*.svg")) if (row := read_entry(folder, path)) is not None]
    shared = Counter(row["title"] for row in rows)
    rows = [row for row in rows if shared[row["title"]] <= _SHARED]
    images = _drawings(folder, [row["id"] for row in rows], side)
    seen: set[bytes] = set()
    kept = []
    for row in rows:
        picture = images.get(row["id"])
        if picture is None or picture.tobytes() in seen:
            continue
        seen.add(picture.tobytes())
        kept.append(row)
    ids, titles = [row["id"] for row in kept], [row["title"] for row in kept]
    part = split_by_ratio(ids, ratios=RATIOS, seed=split, strata=[i.partition("/")[0] for i in ids], groups=titles)
    return ImageTextPairs(
        "openclipart",
        ids,
        np.stack([images[row_id] for row_id in ids]),
        [", ".join([row["title"], *row["tags"]]) for row in kept],
        [(row["title"], *row["tags"], *row["longer"]) for row in kept],
        titles,
        part,
        ("Public domain. Titles are short and often odd; several drawings may share one.",),
    )


def read_entry(folder: Path, path: Path) -> dict[str, Any] | None:
    """Id, title, tags and description of a drawing by its Dublin Core metadata; None if it is not taken."""
    row_id = path.relative_to(folder).as_posix()
    if row_id.startswith(_LEFT_OUT) or path.stat().st_size > _LARGEST:
        return None
    try:
        root = ET.fromstring(path.read_bytes())  # noqa: S314 (a pinned, checksummed archive; no external entities)
    except ET.ParseError:
        return None
    work = next((part for part in root.iter() if _local(part) == "Work"), None)
    if work is None or not any(
        "ublic" in value for part in work if _local(part) == "license" for value in part.attrib.values()
    ):
        return None
    fields = {_local(part): (part.text or "").strip() for part in work}
    title = words_of(_SERIES.sub("", fields.get("title", "")))
    if not re.search(r"[a-z]{3}", title):
        return None
    tags = [
        words_of((part.text or "").replace("_", " ")) for bag in work if _local(bag) == "subject" for part in bag.iter()
    ]
    tags = [tag for tag in dict.fromkeys(tags) if tag not in _EMPTY_TAGS and not tag.startswith("http")]
    description = words_of(fields.get("description", ""))
    longer = (description,) if 3 <= len(description.split()) <= 24 else ()
    return {"id": row_id, "title": title, "tags": tags[:_TAGS], "longer": longer}


def words_of(text: str) -> str:
    """Lower-case words with single spaces.

    Example:
        >>> words_of("2 Dead_Frogs!")
        '2 dead frogs'
    """
    return " ".join(_WORD.findall(text.lower()))


def _local(part: ET.Element) -> str:
    return str(part.tag).rsplit("}", 1)[-1]


def _drawings(folder: Path, ids: list[str], side: int) -> dict[str, np.ndarray]:
    """``{id: (S, S, 3)}`` of what renders, from the cache or drawn now."""
    mark = hashlib.sha256("\n".join([folder.name, str(side), *ids]).encode()).hexdigest()[:16]
    path = cache_dir() / "datasets" / f"openclipart-{mark}.safetensors"
    if not path.is_file():
        drawn = {row_id: picture for row_id in ids if (picture := draw(folder / row_id, side)) is not None}
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".part")
        save_file(drawn, scratch)
        scratch.replace(path)
    return load_file(path)


def draw(path: Path, side: int) -> np.ndarray | None:
    """A drawing on white, padded to a square, ``(side, side, 3)`` uint8; None if it cannot be rendered."""
    resvg = require("resvg_py", extra="svg")
    from polyfuse.data.codecs_image import decode_image

    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        # Without a resolution, resvg takes a size in points or millimetres for zero.
        png = bytes(resvg.svg_to_bytes(svg_string=text, width=2 * side, dpi=96))
        picture: np.ndarray = decode_image(png, side, "pad")
    except (ValueError, Broken, UserError):
        return None
    return None if picture.min() == 255 else picture  # nothing but paper
