"""Characters and their Unicode names: pictures with compositional captions, made from fonts that matplotlib ships.

A character is taken if DejaVu Sans has it, it is a letter, number, punctuation mark or symbol with a name, and it is
neither a Braille pattern nor a hexagram. It is drawn in every one of six faces that has it. Characters are split, not
drawings: a test character was never seen in any face.

Shapes: N drawings, S pixels.
"""

import unicodedata
from pathlib import Path

import numpy as np

from polyfuse.data.split import split_by_ratio
from polyfuse.datasets.pairs import ImageTextPairs
from polyfuse.errors import require

FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSansMono")
_KINDS = ("L", "N", "P", "S")
_LEFT_OUT = ("BRAILLE PATTERN", "HEXAGRAM FOR")
_SCALE = 0.72  # of the picture that the em square takes: accents and descenders stay inside
RATIOS = (0.75, 0.05, 0.20)


def glyph_pairs(*, side: int = 32, split: int = 0) -> ImageTextPairs:
    """About 23,000 drawings of about 5,000 characters, ``images (N, S, S)`` grey, with names in lower case.

    Args:
        side: Pixels S.
        split: Number of the split.

    Raises:
        UserError: If matplotlib, fontTools or Pillow is missing (extra ``workbench``).
    """
    matplotlib = require("matplotlib", extra="workbench")
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    covered = {face: characters_of(folder / f"{face}.ttf") for face in FACES}
    characters = sorted(code for code in covered[FACES[0]] if name_of(code) is not None)
    codes = [f"{code:04x}" for code in characters]
    strata = [unicodedata.category(chr(code))[0] for code in characters]
    by_code = dict(zip(characters, split_by_ratio(codes, ratios=RATIOS, seed=split, strata=strata), strict=True))
    ids, names, groups, part, images = [], [], [], [], []
    for face in FACES:
        here = [code for code in characters if code in covered[face]]
        images.append(draw(folder / f"{face}.ttf", here, side))
        ids += [f"{code:04x} {face}" for code in here]
        names += [name_of(code) or "" for code in here]
        groups += [f"{code:04x}" for code in here]
        part += [by_code[code] for code in here]
    return ImageTextPairs(
        "glyphs",
        ids,
        np.concatenate(images),
        names,
        [()] * len(ids),
        groups,
        np.array(part, dtype=np.int8),
        ("One monochrome drawing per face; a name says what its parts are.",),
    )


def name_of(code: int) -> str | None:
    """Name of a character that is taken, in lower case; None for others.

    Example:
        >>> name_of(ord("ē")), name_of(ord(" "))
        ('latin small letter e with macron', None)
    """
    character = chr(code)
    name = unicodedata.name(character, "")
    if not name or unicodedata.category(character)[0] not in _KINDS or name.startswith(_LEFT_OUT):
        return None
    return name.lower().replace("-", " ")


def characters_of(font: Path) -> frozenset[int]:
    """Code points that a font draws."""
    require("fontTools", extra="workbench")
    from fontTools.ttLib import TTFont

    with TTFont(font, lazy=True) as opened:
        return frozenset(opened.getBestCmap())


def draw(font: Path, codes: list[int], side: int) -> np.ndarray:
    """``(N, S, S)`` uint8, ink 255, each character centred by its own extent."""
    from PIL import Image, ImageDraw, ImageFont

    face = ImageFont.truetype(str(font), size=round(side * _SCALE))
    out = np.zeros((len(codes), side, side), dtype=np.uint8)
    for row, code in enumerate(codes):
        picture = Image.new("L", (side, side))
        ImageDraw.Draw(picture).text((side / 2, side / 2), chr(code), fill=255, font=face, anchor="mm")
        out[row] = np.asarray(picture)
    return out
