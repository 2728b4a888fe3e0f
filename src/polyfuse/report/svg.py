"""A matplotlib canvas in points that becomes inline SVG: real text, colours from the page, nothing executable.

One unit is one point of the canvas and, at full size, one CSS pixel. Colours of text and rules are placeholders that
become CSS variables, so a figure follows the page into dark mode and print. No pyplot, no global state kept.
"""

import html
import io
import logging
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# Placeholders: colours nobody would draw with, replaced by CSS variables in ``Canvas.svg``.
INK, MUTED, RULE, PAPER = "#010203", "#030405", "#050607", "#070809"
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
OKABE_ITO = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, "#8c8c8c", "#f0e442")
"""Colour-blind-safe order (Okabe and Ito 2008): black, which dark mode would swallow, is a grey; yellow comes last."""

# Blue and vermillion are a little lighter on a dark page.
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
    BLUE: "var(--blue)",
    VERMILLION: "var(--vermillion)",
}

_RAMP = ((0.92, 0.95, 0.98), (0.66, 0.80, 0.91), (0.29, 0.57, 0.78), (0.03, 0.32, 0.55), (0.02, 0.19, 0.36))

SIZE = 11.0
SMALL = 10.0


def css(colour: str) -> str:
    """Return a colour as the page writes it: a variable where there is one."""
    return _VARIABLES.get(colour, colour)


def ramp(share: float) -> tuple[float, float, float]:
    """Return the colour of a share in [0, 1]: one hue, darker for more."""
    at = min(max(share, 0.0), 1.0) * (len(_RAMP) - 1)
    i = min(int(at), len(_RAMP) - 2)
    r, g, b = (a + (b - a) * (at - i) for a, b in zip(_RAMP[i], _RAMP[i + 1], strict=True))
    return r, g, b


def on_ramp(share: float) -> str:
    """Return black or white, whichever has more contrast on ``ramp(share)`` (WCAG 2: at least 4.5 to 1)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in ramp(share)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"


def clean(text: str, limit: int = 200) -> str:
    r"""Return text that XML can hold, on one line, at most ``limit`` characters.

    Example:
        >>> clean("a\x00b\nc" + "d" * 9, limit=8)
        'a�b cdd…'
    """
    line = "".join(" " if c.isspace() else c if c.isprintable() else "\ufffd" for c in text)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def text_width(text: str, size: float = SIZE) -> float:
    """Estimate the drawn width of a text in points, generously."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return size * (0.61 * (len(text) - wide) + 1.05 * wide)


def shorten(text: str, room: float, size: float = SIZE) -> str:
    """Return the text cut with an ellipsis so that it fits into ``room`` points."""
    text = clean(text)
    if text_width(text, size) <= room:
        return text
    while text and text_width(text + "…", size) > room:
        text = text[:-1]
    return text.rstrip() + "…"


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with matplotlib's own defaults, without mathematics in text, and put the user's settings back after."""
    import matplotlib

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a label may hold glyphs that the measuring font lacks; the browser has them
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "polyfuse", "text.parse_math": False})
        yield


class Canvas:
    """A page of ``width`` x ``height`` points, origin top left.

    Args:
        width: Points.
        height: Points.
    """

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none")
        FigureCanvasSVG(self.figure)
        self.page = self._axes(0, 0, width, height)
        self.page.set_axis_off()
        self.page.set(xlim=(0, width), ylim=(height, 0))

    def _axes(self, left: float, top: float, width: float, height: float) -> Any:
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box)
        axes.patch.set_visible(False)
        return axes

    def plot(self, left: float, top: float, width: float, height: float) -> Any:
        """Return axes in a box, with light rules and no frame."""
        axes = self._axes(left, top, width, height)
        for side in ("top", "right", "left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.tick_params(length=0, labelsize=SMALL, colors=MUTED, pad=4)
        axes.grid(color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        return axes

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Write on the page: left-aligned, centred on the line, unless ``style`` says otherwise."""
        style = {"fontsize": SIZE, "color": INK, "ha": "left", "va": "center_baseline", **style}
        self.page.text(x, y, clean(text), **style)

    def boxes(self, boxes: Sequence[tuple[float, float, float, float]], colours: Sequence[Any], **style: Any) -> None:
        """Draw filled rectangles ``(x, y, width, height)``."""
        from matplotlib.collections import PatchCollection
        from matplotlib.patches import Rectangle

        patches = [Rectangle((x, y), w, h) for x, y, w, h in boxes]
        self.page.add_collection(PatchCollection(patches, facecolors=list(colours), **{"linewidths": 0, **style}))

    def svg(self, key: str, title: str) -> str:
        """Return the inline SVG.

        Args:
            key: Unique in the page: prefix of the identifiers that parts of the drawing refer to.
            title: What a screen reader says.
        """
        out = io.StringIO()
        self.figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        text = out.getvalue()
        text = text[text.index("<svg") :]
        text = text[text.index(">") + 1 :]
        text = re.sub(r"\s*<metadata>.*?</metadata>|\s*<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
        # Only tags are rewritten: what stands between them may be a user's text.
        text = re.sub(r"<[^>]+>", lambda m: _tag(m[0], key, used), text)
        text = re.sub(r"(?:\s*<g/>)+", "", re.sub(r">\s+<", ">\n<", text)).strip()
        label = html.escape(clean(title))
        size = f"width:{1.12 * self.width:.0f}px;min-width:{0.86 * self.width:.0f}px"
        head = f'<svg viewBox="0 0 {self.width:.0f} {self.height:.0f}" style="{size}" role="img" aria-label="{label}">'
        return f"{head}\n{text}"


def _tag(tag: str, key: str, used: set[str]) -> str:
    """Rewrite one tag: identifiers unique in the page, colours and font from the page, short numbers."""
    tag = re.sub(r' id="([^"]*)"', lambda m: f' id="{key}-{m[1]}"' if m[1] in used else "", tag)
    tag = re.sub(r'(?:xlink:)?href="#', f'href="#{key}-', tag).replace("url(#", f"url(#{key}-")
    tag = re.sub(r"font: ((?:bold |[0-9]+ )?)([0-9.]+px) [^;\"]+", _font, tag)
    tag = re.sub(r"font-family: [^;\"]+;? ?", "", tag)
    for colour, variable in _VARIABLES.items():
        tag = tag.replace(colour, variable)
    tag = re.sub(r' transform="rotate\(-0 [^"]*"', "", tag)
    tag = re.sub(r"(\d\.\d\d)\d+", r"\1", tag)  # a hundredth of a point is enough
    return re.sub(r"\s*\n\s*", " ", tag)


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match[1].strip()}; " if match[1] else ""
    return f"{weight}font-size: {match[2]}"
