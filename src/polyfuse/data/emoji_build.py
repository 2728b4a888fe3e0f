"""Make the shipped emoji files from the three pinned packages they come from; everything here is a written rule.

1. An emoji is taken if emojibase gives it one of nine groups ("component" is left out) and both styles draw it.
2. Its *concept* is its code points without variation selector, gender sign or direction, man and woman both read as
   person, boy and girl as child, old man and old woman as older person: "man judge" and "woman judge" are one concept.
3. A name is cut into words, lower case, without punctuation: capitals would give flags away, colons keycaps.
4. A word that announces the class is taken out of every name of its language: one that at least 1 % of the emoji
   carry, at least 95 % of them in one class ("flag", "bandera", "woman", "button", ...). ``words.json`` lists them.
5. An emoji with no word left in one of the two languages is left out.
6. Concepts, not emoji, go to train, validation and test, 60/15/25, class by class, in the order of a hash.
7. A picture is laid on white, brought to 32 x 32 by averaging, and its values rounded to multiples of 4.
"""

import csv
import io
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.data.fetch import fetch
from polyfuse.data.keyed import key_of
from polyfuse.errors import require

ASSETS = Path(__file__).parent / "assets" / "emoji"
LANGUAGES = ("en", "es")
STYLES = ("fluent", "twemoji")
FIELDS = ("hexcode", "concept", "class", "split", "name", "name_es")
COLUMNS = 44  # tiles in one row of an atlas
SIZE = 32
RENDER = 256  # art is averaged down from this size
STEP = 4
COMMON, PURE = 0.01, 0.95  # rule 4
SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}
EXCLUDED_GROUP = "component"

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SIGNS = ("2640", "2642", "27a1")  # female, male, facing right
_NEUTRAL = {
    "1f468": "1f9d1", "1f469": "1f9d1",  # man, woman -> person
    "1f466": "1f9d2", "1f467": "1f9d2",  # boy, girl -> child
    "1f474": "1f9d3", "1f475": "1f9d3",  # old man, old woman -> older person
}  # fmt: skip

Art = dict[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class Built:
    """The shipped files, in memory.

    Attributes:
        rows: One mapping per emoji with the keys of ``FIELDS``.
        art: ``(N, 32, 32, 3)`` uint8 per style, in the order of ``rows``.
        words: Per language, the removed words with how many emoji carried them and the class they announce.
    """

    rows: list[dict[str, str]]
    art: Art
    words: dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Comparison:
    """What ``rebuild(check=True)`` found.

    Attributes:
        lines: One plain sentence per finding.
        identical: Whether every row, word and pixel is the same.
        close: Whether text is the same and pixels differ by a rounding step at most (another renderer version).
    """

    lines: list[str]
    identical: bool
    close: bool


def rebuild(*, check: bool = True, folder: Path = ASSETS, say: Callable[[str], None] | None = None) -> Comparison:
    """Build the set anew from the pinned packages; compare with ``folder``, or write it there.

    Args:
        check: Compare only. False writes the new files.
        folder: Where the shipped files are.
        say: Called with a line of progress.

    Raises:
        UserError: If a package cannot be fetched, or ``resvg-py`` (extra ``dev``) or Pillow is missing.
    """
    require("resvg_py", extra="dev")
    require("PIL", extra="workbench")
    sources = fetch("emoji", say=say)
    if say is not None:
        say("emoji: drawing every emoji in two styles")
    built = build(sources)
    if not check:
        write(built, folder)
    return compare(built, folder)


def build(sources: Path) -> Built:
    """Apply the rules of this module to the unpacked packages (``fetch("emoji")``)."""
    table = _read_names(sources / "emojibase")
    files = {style: files_by_key(sources / style) for style in STYLES}
    table = [row for row in table if all(code_key(row["hexcode"]) in files[style] for style in STYLES)]
    words = {
        language: announcing_words([row[language] for row in table], [row["class"] for row in table])
        for language in LANGUAGES
    }
    for row in table:
        for language in LANGUAGES:
            row[language] = " ".join(word for word in row[language].split() if word not in words[language])
    table = [row for row in table if all(row[language] for language in LANGUAGES)]
    _assign_splits(table)
    rows = [
        {"hexcode": r["hexcode"], "concept": r["concept"], "class": r["class"], "split": r["split"],
         "name": r["en"], "name_es": r["es"]}
        for r in table
    ]  # fmt: skip
    art = {style: np.stack([draw(files[style][code_key(row["hexcode"])]) for row in rows]) for style in STYLES}
    return Built(rows, art, words)


def concept_of(hexcode: str) -> str:
    """The code points of an emoji without gender and direction (rule 2).

    Example:
        >>> concept_of("1F469-200D-2696-FE0F") == concept_of("1F468-200D-2696-FE0F") == "1f9d1-200d-2696"
        True
        >>> concept_of("1F6B6-200D-2640-FE0F-200D-27A1-FE0F")
        '1f6b6'
    """
    parts = [_NEUTRAL.get(part, part) for part in code_key(hexcode).split("-")]
    kept: list[str] = []
    for part in parts:
        if part in _SIGNS and kept and kept[-1] == "200d":
            kept.pop()
        else:
            kept.append(part)
    return "-".join(kept)


def words_of(label: str) -> str:
    """A label as lower-case words with single spaces (rule 3).

    Example:
        >>> words_of("flag: Côte d’Ivoire")
        'flag côte d’ivoire'
    """
    return " ".join(_WORD.findall(unicodedata.normalize("NFC", label).lower()))


def announcing_words(names: Sequence[str], classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The words that give a class away (rule 4), most frequent first, with their count and class.

    Example:
        >>> announcing_words(["flag peru", "flag chad", "red kite", "red ant"], ["flags", "flags", "toys", "animals"])
        ... # doctest: +ELLIPSIS
        {'flag': {'count': 2, 'class': 'flags'}, 'peru': {'count': 1, 'class': 'flags'}, 'chad': ...}
    """
    seen: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name, label in zip(names, classes, strict=True):
        for word in dict.fromkeys(name.split()):
            seen[word][label] += 1
    found = {}
    for word, by_class in sorted(seen.items(), key=lambda item: -item[1].total()):
        (label, most), total = by_class.most_common(1)[0], by_class.total()
        if total >= COMMON * len(names) and most >= PURE * total:
            found[word] = {"count": total, "class": label}
    return found


def draw(file: Path) -> NDArray[np.uint8]:
    """One drawing, ``(32, 32, 3)`` uint8 (rule 7)."""
    from PIL import Image

    if file.suffix == ".svg":
        import resvg_py

        svg = file.read_text(encoding="utf-8")
        content = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=RENDER, height=RENDER))
    else:
        content = file.read_bytes()
    with Image.open(io.BytesIO(content)) as opened:
        drawing = opened.convert("RGBA")
    side = max(*drawing.size, RENDER)
    square = Image.new("RGBA", (side, side), (255, 255, 255, 255))
    square.alpha_composite(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2))
    small = square.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)
    values = np.asarray(small).astype(np.int64)
    return np.minimum((values + STEP // 2) // STEP * STEP, 255).astype(np.uint8)


def write(built: Built, folder: Path) -> None:
    """Write ``emoji.csv``, ``words.json`` and one lossless atlas per style."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "emoji.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(built.rows)
    rule = f"carried by at least {COMMON:.0%} of the emoji, at least {PURE:.0%} of them in one class"
    text = json.dumps({"rule": rule, **built.words}, ensure_ascii=False, indent=1)
    (folder / "words.json").write_text(text + "\n", encoding="utf-8")
    for style, tiles in built.art.items():
        Image.fromarray(_tile(tiles)).save(folder / f"{style}.webp", lossless=True, quality=100, method=6, exact=True)


def read(folder: Path = ASSETS) -> Built:
    """Read what ``write`` wrote (needs Pillow)."""
    rows = read_rows(folder)
    art = {style: read_art(style, len(rows), folder) for style in STYLES}
    words = json.loads((folder / "words.json").read_text(encoding="utf-8"))
    return Built(rows, art, {language: words[language] for language in LANGUAGES})


def read_rows(folder: Path = ASSETS) -> list[dict[str, str]]:
    """The table of emoji."""
    with (folder / "emoji.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def read_art(style: str, count: int, folder: Path = ASSETS) -> NDArray[np.uint8]:
    """The drawings of one style, ``(count, 32, 32, 3)`` uint8."""
    image = require("PIL.Image", extra="workbench")
    with image.open(folder / f"{style}.webp") as opened:
        pixels = np.asarray(opened.convert("RGB"))
    tiles = pixels.reshape(-1, SIZE, COLUMNS, SIZE, 3).swapaxes(1, 2).reshape(-1, SIZE, SIZE, 3)
    return np.ascontiguousarray(tiles[:count])


def compare(built: Built, folder: Path = ASSETS) -> Comparison:
    """Say where a build differs from the files in ``folder``."""
    shipped = read(folder)
    lines, same_text = [], True
    old, new = ({row["hexcode"]: row for row in rows} for rows in (shipped.rows, built.rows))
    changed = [code for code in old if code in new and old[code] != new[code]]
    for what, codes in (("only shipped", old.keys() - new.keys()), ("only rebuilt", new.keys() - old.keys())):
        if codes:
            lines.append(f"{len(codes)} emoji {what}: {_some(sorted(codes))}")
    if changed:
        lines.append(f"{len(changed)} emoji with another name, class, concept or split: {_some(changed)}")
    if shipped.words != built.words:
        lines.append("another list of removed words")
    if lines:
        same_text = False
    elif list(old) != list(new):
        lines.append("another order of the emoji")
        same_text = False
    worst = 0
    for style in STYLES:
        gaps = list(_gaps(shipped, built, style))
        differing = [gap for gap in gaps if gap]
        worst = max([worst, *differing])
        if differing:
            lines.append(
                f"{style}: {len(differing)} of {len(gaps)} pictures differ, by {max(differing)} of 255 at most"
            )
    identical = same_text and worst == 0
    if identical:
        lines.append(f"{len(old)} emoji, {len(STYLES)} styles: every name, word and pixel is as shipped")
    return Comparison(lines, identical, same_text and worst <= 2 * STEP)


def _gaps(shipped: Built, built: Built, style: str) -> Iterator[int]:
    new = {row["hexcode"]: number for number, row in enumerate(built.rows)}
    for number, row in enumerate(shipped.rows):
        if row["hexcode"] in new:
            pair = shipped.art[style][number], built.art[style][new[row["hexcode"]]]
            yield int(np.abs(pair[0].astype(int) - pair[1].astype(int)).max())


def _some(codes: Sequence[str]) -> str:
    return ", ".join(codes[:10]) + (", ..." if len(codes) > 10 else "")


def _tile(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    lines = -(-len(tiles) // COLUMNS)
    padded = np.full((lines * COLUMNS, SIZE, SIZE, 3), 255, dtype=np.uint8)
    padded[: len(tiles)] = tiles
    return padded.reshape(lines, COLUMNS, SIZE, SIZE, 3).swapaxes(1, 2).reshape(lines * SIZE, COLUMNS * SIZE, 3)


def _read_names(folder: Path) -> list[dict[str, str]]:
    """Hexcode, concept, class and both names of every emoji that has a class, in emojibase's order."""
    groups = json.loads((folder / "en" / "messages.json").read_text(encoding="utf-8"))["groups"]
    class_of = {group["order"]: group["key"] for group in groups if group["key"] != EXCLUDED_GROUP}
    tables = {
        language: json.loads((folder / language / "data.json").read_text(encoding="utf-8")) for language in LANGUAGES
    }
    spanish: Mapping[str, str] = {entry["hexcode"]: entry["label"] for entry in tables["es"]}
    entries: Iterable[dict[str, Any]] = tables["en"]
    return [
        {
            "hexcode": entry["hexcode"].lower(),
            "concept": concept_of(entry["hexcode"]),
            "class": class_of[entry["group"]],
            "en": words_of(entry["label"]),
            "es": words_of(spanish[entry["hexcode"]]),
        }
        for entry in entries
        if entry.get("group") in class_of
    ]


def files_by_key(folder: Path) -> dict[str, Path]:
    """Drawings of a style, by ``code_key``."""
    return {code_key(path.stem): path for path in folder.iterdir() if path.suffix in (".svg", ".webp")}


def code_key(code: str) -> str:
    """Code points in lower case without leading zeros or variation selector: packages disagree about both."""
    return "-".join(part.lstrip("0") for part in code.lower().split("-") if part != "fe0f")


def _assign_splits(table: list[dict[str, str]]) -> None:
    """Give every row the split of its concept (rule 6); a concept counts for the class of its first emoji."""
    class_of_concept: dict[str, str] = {}
    for row in table:
        class_of_concept.setdefault(row["concept"], row["class"])
    split_of: dict[str, str] = {}
    for label in dict.fromkeys(class_of_concept.values()):
        concepts = [concept for concept, own in class_of_concept.items() if own == label]
        keys = key_of([f"emoji split {concept}" for concept in concepts]).tolist()
        ordered = [concept for _, concept in sorted(zip(keys, concepts, strict=True))]
        start, total = 0, 0.0
        for split, share in SHARES.items():
            total += share
            end = round(total * len(ordered))
            split_of.update(dict.fromkeys(ordered[start:end], split))
            start = end
    for row in table:
        row["split"] = split_of[row["concept"]]
