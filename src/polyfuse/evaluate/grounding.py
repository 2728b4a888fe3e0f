"""Pointing at what a phrase means: overlap of boxes, and whether a map peaks inside the box.

Boxes: ``(x0, y0, x1, y1)`` in any unit, y down. Shapes: N rows, H x W cells of a map.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyfuse.evaluate.kinds import rows_by_kind
from polyfuse.evaluate.selective import Floats

HIT = 0.5


def iou(first: ArrayLike, second: ArrayLike) -> Floats:
    """Intersection over union of boxes, row by row; leading axes broadcast.

    A box whose right or lower side is before its left or upper one is empty; with an empty box, two empty ones
    included, or NaN the overlap is 0.

    Args:
        first: ``(..., 4)``.
        second: ``(..., 4)``.

    Raises:
        ValueError: If the last axis of either is not 4.

    Example:
        >>> iou([0, 0, 2, 2], [[1, 0, 3, 2], [5, 5, 6, 6]]).round(3).tolist()
        [0.333, 0.0]
    """
    a, b = _boxes(first, "first"), _boxes(second, "second")
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = sides.clip(min=0).prod(axis=-1)
    area_a, area_b = ((box[..., 2:] - box[..., :2]).clip(min=0).prod(axis=-1) for box in (a, b))
    whole = area_a + area_b - shared
    share = np.divide(shared, whole, out=np.zeros(np.shape(whole)), where=whole > 0)
    return np.where((area_a > 0) & (area_b > 0), share, 0.0)


def _boxes(values: ArrayLike, name: str) -> Floats:
    boxes = np.asarray(values, np.float64)
    if boxes.shape[-1:] != (4,):
        raise ValueError(f"{name} must have shape (..., 4), got {boxes.shape}")
    return boxes


def grounding_table(
    predicted: ArrayLike, target: ArrayLike, kinds: Sequence[str] | None = None, *, threshold: float = HIT
) -> list[dict[str, str | int | float]]:
    """Lines ``{"kind", "rows", "accuracy", "mean_iou"}`` over all phrases, then per kind of phrase.

    A box hits where its overlap is ``threshold`` or more, as in the RefCOCO literature.

    Args:
        predicted: ``(N, 4)``; a row of NaN (no answer) misses.
        target: ``(N, 4)``.
        kinds: Kind of each phrase.
        threshold: Smallest overlap of a hit.

    Raises:
        ValueError: If shapes differ.

    Example:
        >>> grounding_table([[0, 0, 2, 2], [0, 0, 1, 1]], [[0, 0, 2, 1], [1, 0, 2, 1]])
        [{'kind': 'all', 'rows': 2, 'accuracy': 0.5, 'mean_iou': 0.25}]
    """
    a, b = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"predicted and target must both be (N, 4), got {a.shape} and {b.shape}")
    overlap = iou(a, b)
    return rows_by_kind({"accuracy": overlap >= threshold, "mean_iou": overlap}, kinds)


def pointing_game(maps: ArrayLike, boxes: ArrayLike, mask: ArrayLike | None = None) -> Floats:
    """Whether the largest cell of each map lies in the box: hits ``(N,)`` in [0, 1].

    Several equally large cells count as a random pick among them, so a flat map scores what chance does: the share of
    cells in the box. A map without any finite cell misses. A cell lies in the box if its centre does.

    Source: https://arxiv.org/abs/1608.00507, section 4.2. Differs: no tolerance around the box, and ties as said.

    Args:
        maps: ``(N, H, W)`` heat over the picture.
        boxes: ``(N, 4)`` as shares of width and height.
        mask: ``(N, H, W)`` bool, True = the cell is part of the picture; None = all.

    Raises:
        ValueError: If shapes do not fit.

    Example:
        >>> pointing_game([[[0.1, 0.9], [0.2, 0.3]]], [[0.5, 0.0, 1.0, 0.5]]).tolist()
        [1.0]
    """
    heat, box = np.asarray(maps, np.float64), np.asarray(boxes, np.float64)
    if heat.ndim != 3 or box.shape != (len(heat), 4):
        raise ValueError(f"maps must be (N, H, W) and boxes (N, 4), got {heat.shape} and {box.shape}")
    known: NDArray[np.bool_] = np.isfinite(heat)
    if mask is not None:
        known &= np.asarray(mask, bool)
    heat = np.where(known, heat, -np.inf)
    top = known & (heat == heat.max(axis=(1, 2), keepdims=True, initial=-np.inf))
    rows, columns = heat.shape[1:]
    y, x = (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns
    x0, y0, x1, y1 = (side[:, None, None] for side in box.T)
    inside = (x >= x0) & (x <= x1) & (y[:, None] >= y0) & (y[:, None] <= y1)
    return (top & inside).sum(axis=(1, 2)) / top.sum(axis=(1, 2)).clip(min=1)
