"""Draw the picture of docs/scenes.md: eight scenes with a caption, a question and a phrase box each.

python docs/make_scenes.py
"""

import base64
import io
from html import escape
from pathlib import Path
from textwrap import wrap

import numpy as np
from PIL import Image

from polyfuse.data.scenes import make_scenes

TARGET = Path(__file__).with_name("scenes.svg")
CELL, PICTURE, WIDTH, GAP, LINE = 176, 160, 470, 12, 16


def embedded(image: np.ndarray) -> str:
    """A picture as a data URI, four times as large so that no viewer smooths its pixels."""
    stream = io.BytesIO()
    Image.fromarray(image.repeat(4, axis=0).repeat(4, axis=1)).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def cell(image: np.ndarray, caption: str, question: str, phrase: str, box: np.ndarray) -> str:
    """One scene at the origin: the picture with the phrase's box, the texts beside it."""
    x, y, right, bottom = (box * PICTURE).tolist()
    lines = [(line, "#24292f") for line in wrap(caption, 38)]
    lines += [("", "")] + [(line, "#0550ae") for line in wrap(question, 38)]
    lines += [("", "")] + [(line, "#953800") for line in wrap(phrase, 38)]
    texts = "".join(
        f'<text x="{PICTURE + GAP}" y="{13 + LINE * n}" fill="{colour}">{escape(line)}</text>'
        for n, (line, colour) in enumerate(lines)
        if line
    )
    return (
        f'<image href="{embedded(image)}" width="{PICTURE}" height="{PICTURE}"/>'
        f'<rect x="{x - 2:.1f}" y="{y - 2:.1f}" width="{right - x + 4:.1f}" height="{bottom - y + 4:.1f}" '
        f'fill="none" stroke="#fb8f24" stroke-width="2"/>{texts}'
    )


def page() -> str:
    """The picture as SVG."""
    scenes = make_scenes(8, seed=3)
    captions, asked, said = scenes.captions(), scenes.questions(per_scene=1), scenes.phrases(per_scene=1)
    cells = []
    for n in range(8):
        q, p = asked.scene.tolist().index(n), said.scene.tolist().index(n)
        body = cell(scenes.images[n], captions[n], f"{asked.text[q]} {asked.answer[q]}", said.text[p], said.box[p])
        cells.append(f'<g transform="translate({GAP + n % 2 * WIDTH},{GAP + n // 2 * CELL})">{body}</g>')
    width, height = 2 * WIDTH + GAP, 4 * CELL + GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="DejaVu Sans, Verdana, sans-serif" font-size="13"><rect width="100%" height="100%" fill="#fff"/>'
        + "\n".join(cells)
        + "</svg>\n"
    )


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
    print(f"{TARGET}: {TARGET.stat().st_size / 1000:.0f} kB")
