"""Region features of scenes, as a detector would hand them on: from the pixels of each box, never from the truth.

Shapes: N scenes, R = K regions, G grid, F = 3 G² features, C shapes.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from polyfuse.data.scenes_draws import uniform

if TYPE_CHECKING:
    from polyfuse.data.scenes import Scenes

_SUB = 2  # samples along each side of a cell


class SceneRegions(NamedTuple):
    """Regions of N scenes; zeros where ``mask`` is False."""

    features: np.ndarray  # (N, R, F) float32 in [0, 1]
    boxes: np.ndarray  # (N, R, 4) float32
    mask: np.ndarray  # (N, R) bool
    classes: np.ndarray  # (N, R, C) float32, rows sum to 1


def thumbnails(images: np.ndarray, scene: np.ndarray, boxes: np.ndarray, grid: int) -> np.ndarray:
    """``(B, grid, grid, 3)`` float32 in [0, 1]: each box's pixels, averaged over four points per cell.

    Args:
        images: ``(N, S, S, 3)`` uint8.
        scene: ``(B,)`` which picture.
        boxes: ``(B, 4)`` shares of the side.
        grid: Cells along a side.
    """
    side, points = images.shape[1], (np.arange(grid * _SUB) + 0.5) / (grid * _SUB)
    x, y = (
        np.clip((boxes[:, a, None] + points * (boxes[:, a + 2] - boxes[:, a])[:, None]) * side, 0, side - 1).astype(int)
        for a in (0, 1)
    )
    crops = images[scene[:, None, None], y[:, :, None], x[:, None]].astype(np.float32) / 255
    return crops.reshape(len(boxes), grid, _SUB, grid, _SUB, 3).mean(axis=(2, 4))


def detect(scenes: "Scenes", grid: int, noise: float, seed: int) -> SceneRegions:
    """Regions of scenes.

    ``classes`` says how sure a detector would be of each shape. It comes from the truth with noise that makes it
    exactly calibrated: a score per shape, 1 for the true one and 0 else, plus Gaussian noise, and the posterior of the
    shape given these scores (all shapes equally likely), which is the softmax of scores / noise². Of noise 0.35 the
    most likely shape is right nine times in ten.

    Raises:
        ValueError: If ``grid`` or ``noise`` is not positive.
    """
    if grid < 1 or noise <= 0:
        raise ValueError(f"grid and noise must be positive, got {grid} and {noise}")
    mask = np.isfinite(scenes.boxes[..., 0])
    rows, things = np.nonzero(mask)
    boxes = np.where(mask[..., None], scenes.boxes, 0).astype(np.float32)
    features = np.zeros((*mask.shape, grid * grid * 3), dtype=np.float32)
    features[rows, things] = thumbnails(scenes.images, rows, boxes[rows, things], grid).reshape(len(rows), -1)
    shapes = len(scenes.config.shapes)
    stream, draws = f"{scenes.seed}/{scenes.split}/detector", mask.shape[1] * shapes
    one, two = (uniform(seed, f"{stream}/{half}", scenes.index, draws) for half in ("radius", "angle"))
    normal = np.sqrt(-2 * np.log1p(-one)) * np.cos(2 * np.pi * two)  # Box and Muller 1958
    scores = np.eye(shapes + 1)[scenes.shape][..., :shapes] + noise * normal.reshape(*mask.shape, shapes)
    scores = np.exp((scores - scores.max(axis=2, keepdims=True)) / noise**2)
    classes = np.where(mask[..., None], scores / scores.sum(axis=2, keepdims=True), 0).astype(np.float32)
    return SceneRegions(features, boxes, mask, classes)
