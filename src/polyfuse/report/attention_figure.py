"""Figures of attention maps: over the patches of an image, and words by regions.

Shapes: H heads, Q queries, K keys, P = rows x columns patches. One colour scale per figure, starting at 0, readable by
the colour-blind (cividis); what colour says, a number says too.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from polyfuse.report.svg import clean, drawing, shorten

_RAMP = "cividis"
_SMALL, _BIG = 9.0, 11.0
_MOST_NUMBERS = 400


def attention_over_image(
    weights: Any,
    image: Any,
    grid: tuple[int, int],
    words: Sequence[str],
    *,
    title: str = "",
    columns: int = 4,
    limit: float | None = None,
) -> Any:
    r"""One panel per query: the image in grey, its patches tinted by the weight that the query gives them.

    Under each word stands the share of its attention that these patches get together; the rest went to keys that are
    not shown.

    Args:
        weights: ``(Q, P)``, or ``(H, Q, P)``, averaged over heads: columns of an attention map, patches row by row.
        image: ``(height, width, 3)`` numbers (uint8, or floats in [0, 1]), or a PIL image.
        grid: Rows and columns of patches.
        words: One per query.
        title: Above the figure.
        columns: Panels side by side.
        limit: Weight of the brightest tint; None = the largest there is.

    Returns:
        A ``matplotlib`` figure: ``figure.savefig("map.png")``. Letters that matplotlib's font lacks become boxes, and
        it warns of them.

    Raises:
        ValueError: If shapes disagree, or weights are not finite numbers from 0 to 1.

    Example:
        >>> figure = attention_over_image([[0.1, 0.4, 0.2, 0.1]], np.zeros((8, 8, 3)), (2, 2), ["cat"])
        >>> figure.axes[0].get_title()
        'cat\n80 % of its attention'
    """
    weights_QK = checked(weights)
    if weights_QK.shape != (len(words), grid[0] * grid[1]):
        raise ValueError(
            f"weights must be (words, patches) = ({len(words)}, {grid[0]} x {grid[1]}), got {weights_QK.shape}"
        )
    picture = grey(image)
    top = _top(weights_QK, limit)
    across = min(columns, len(words))
    down = math.ceil(len(words) / across)
    with drawing():
        figure = _figure(max(1.9 * across + 1.0, 3.8), 2.3 * down + 0.5, title)
        panels = figure.subplots(down, across, squeeze=False).ravel()
        shades = None
        for panel in panels:
            panel.set_axis_off()
        for panel, word, line in zip(panels, words, weights_QK, strict=False):
            height, width = picture.shape
            panel.imshow(picture, cmap="gray", vmin=0.0, vmax=1.0)
            patches = line.reshape(grid)
            # Patches, not a blur: between their centres the model knows nothing.
            shades = panel.imshow(
                patches,
                cmap=_RAMP,
                vmin=0.0,
                vmax=top,
                alpha=0.5,
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
                interpolation="nearest",
            )
            share = f"{line.sum():.0%}".replace("%", " %")
            panel.set_title(f"{shorten(word, 120, _SMALL)}\n{share} of its attention", fontsize=_SMALL)
        _bar(figure, shades, panels)
    return figure


def attention_matrix(
    weights: Any,
    queries: Sequence[str],
    keys: Sequence[str],
    *,
    title: str = "",
    query_name: str = "reads",
    key_name: str = "is read",
    limit: float | None = None,
) -> Any:
    """Queries by keys, words by regions say: a heat map with the weight in every cell, in per cent.

    A key that nobody may attend to, all of whose weights are exactly 0, is crossed out.

    Args:
        weights: ``(Q, K)``, or ``(H, Q, K)``, averaged over heads.
        queries: A label per row.
        keys: A label per column.
        title: Above the figure.
        query_name: What rows are.
        key_name: What columns are.
        limit: Weight of the lightest colour; None = the largest there is.

    Returns:
        A ``matplotlib`` figure.

    Raises:
        ValueError: If shapes disagree, or weights are not finite numbers from 0 to 1.

    Example:
        >>> figure = attention_matrix([[0.25, 0.75, 0.0]], ["cat"], ["ear", "tail", "(padding)"])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['25', '75', '×']
    """
    weights_QK = checked(weights)
    if weights_QK.shape != (len(queries), len(keys)):
        raise ValueError(
            f"weights must be (queries, keys) = ({len(queries)}, {len(keys)}), got {tuple(weights_QK.shape)}"
        )
    top = _top(weights_QK, limit)
    hidden = weights_QK.max(axis=0) == 0
    with drawing():
        figure = _figure(min(0.42 * len(keys) + 2.6, 16.0), min(0.3 * len(queries) + 1.9, 16.0), title)
        axes = figure.subplots()
        shades = axes.imshow(weights_QK, cmap=_RAMP, vmin=0.0, vmax=top, aspect="auto")
        axes.set_xticks(range(len(keys)), [shorten(key, 90, _SMALL) for key in keys], rotation=60, ha="right")
        axes.set_yticks(range(len(queries)), [shorten(query, 90, _SMALL) for query in queries])
        axes.tick_params(length=0, labelsize=_SMALL)
        axes.set_xlabel(clean(key_name), fontsize=_SMALL)
        axes.set_ylabel(clean(query_name), fontsize=_SMALL)
        if weights_QK.size <= _MOST_NUMBERS:
            for (i, j), value in np.ndenumerate(weights_QK):
                said = "×" if hidden[j] else f"{100 * value:.0f}"
                axes.text(j, i, said, ha="center", va="center", fontsize=_SMALL - 1, color=on_shade(value / top))
        _bar(figure, shades, [axes])
    return figure


def checked(weights: Any) -> np.ndarray:
    """Weights as ``(Q, K)`` floats, heads averaged.

    Raises:
        ValueError: If they have other axes, or are not finite numbers from 0 to 1.
    """
    values = np.asarray(weights.detach().cpu().float() if hasattr(weights, "detach") else weights, dtype=float)
    if values.ndim == 3:
        values = values.mean(axis=0)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"weights must be (queries, keys) or (heads, queries, keys), got {values.shape}")
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1 + 1e-4:
        raise ValueError(f"weights must be numbers from 0 to 1, got {values.min()} to {values.max()}")
    return values


def grey(image: Any) -> np.ndarray:
    """An image as ``(height, width)`` luminance in [0, 1]: a tint shows on grey only.

    Raises:
        ValueError: If it is not ``(height, width, 3)``, or not in range.
    """
    pixels = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    scaled = pixels / 255.0 if pixels.dtype == np.uint8 else pixels.astype(float)
    if scaled.ndim != 3 or scaled.shape[2] != 3:
        raise ValueError(f"image must be (height, width, 3), got {pixels.shape}")
    if not np.isfinite(scaled).all() or scaled.min() < 0 or scaled.max() > 1:
        raise ValueError(f"image must be uint8, or floats from 0 to 1, got {scaled.min()} to {scaled.max()}")
    return scaled @ np.array([0.299, 0.587, 0.114])


def on_shade(share: float) -> str:
    """Black or white, whichever reads better on the colour of a share in [0, 1]."""
    import matplotlib

    red, green, blue, _ = matplotlib.colormaps[_RAMP](min(max(share, 0.0), 1.0))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    luminance = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "black"


def _top(weights_QK: np.ndarray, limit: float | None) -> float:
    if limit is not None and limit <= 0:
        raise ValueError(f"limit must be above 0, got {limit}")
    return float(weights_QK.max() or 1.0) if limit is None else limit


def _figure(width: float, height: float, title: str) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(clean(title), fontsize=_BIG)
    return figure


def _bar(figure: Any, shades: Any, axes: Any) -> None:
    bar = figure.colorbar(shades, ax=list(axes), shrink=0.8, pad=0.02)
    bar.set_label("attention weight (%)", fontsize=_SMALL)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
    bar.ax.tick_params(labelsize=_SMALL - 1, length=0)
    bar.outline.set_visible(False)
