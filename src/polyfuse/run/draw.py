"""A box and its phrase on a picture, legible on any ground."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from polyfuse.errors import UserError

_SHORTER = 360  # pixels that the drawing's shorter side has at least
_BOX, _EDGE, _STRIP = (255, 214, 10), (16, 16, 16), (16, 16, 16)


def draw_box(picture: np.ndarray, box: Sequence[float], text: str, path: Path) -> None:
    """Write a PNG: the picture, enlarged where it is small, the box in yellow with dark edges, the text under it.

    The text stands on a dark strip below the picture, so that it hides nothing; a long one is broken into lines.

    Args:
        picture: ``(H, W, 3)`` uint8.
        box: x0, y0, x1, y1 as shares.
        text: The phrase.
        path: The file.

    Raises:
        UserError: If it cannot be written.
    """
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(picture)
    scale = max(1, -(-_SHORTER // min(image.size)))
    if scale > 1:
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    size = max(15, min(image.size) // 22)
    font = ImageFont.load_default(size)
    lines = _broken(text, image.width - size, font)
    whole = Image.new("RGB", (image.width, image.height + (len(lines) * 13 // 10 + 1) * size), _STRIP)
    whole.paste(image)
    draw = ImageDraw.Draw(whole)
    edge = max(3, min(image.size) // 140)
    x0, y0, x1, y1 = (
        round(share * side) for share, side in zip(box, (image.width - 1, image.height - 1) * 2, strict=True)
    )
    x1, y1 = max(x0, x1), max(y0, y1)
    for grow, colour, width in ((edge, _EDGE, 2 * edge), (0, _BOX, edge)):  # the dark line lies outside
        outer = (
            max(x0 - grow, 0),
            max(y0 - grow, 0),
            min(x1 + grow, image.width - 1),
            min(y1 + grow, image.height - 1),
        )
        draw.rectangle(outer, outline=colour, width=width)
    for number, line in enumerate(lines):
        draw.text((size // 2, image.height + size // 3 + number * size * 13 // 10), line, fill=_BOX, font=font)
    try:
        whole.save(path)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror or error}") from None


def _broken(text: str, width: int, font: object) -> list[str]:
    """Lines of at most ``width`` pixels, as far as words allow; six at most."""
    lines: list[str] = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:  # type: ignore[attr-defined]
            lines.append(word)
        else:
            lines[-1] = longer
    return lines if len(lines) <= 6 else [*lines[:5], "..."]
