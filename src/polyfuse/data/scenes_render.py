"""Draw scenes: signed distances over a window around each object, anti-aliased, many scenes at once.

Shapes: N scenes, K objects at most, S pixels of a side, W pixels of a window. y points down.
"""

from collections.abc import Callable

import numpy as np

from polyfuse.data.scenes_config import COLOURS, SceneConfig
from polyfuse.data.scenes_draws import bits, uniform
from polyfuse.data.scenes_layout import Layout

_CHUNK = 128  # scenes drawn together: their windows stay in the cache


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y) - np.float32(0.95)


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.87)


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    y = y - np.float32(0.22)  # the middle of its box, not its centre of mass
    return np.maximum(y - np.float32(0.62), np.float32(0.88) * np.abs(x) - np.float32(0.475) * y - np.float32(0.56))


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - np.float32(0.95), np.minimum(x, y) - np.float32(0.3))


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points: fold the plane onto a tenth of it, then the line from a tip to the next notch."""
    radius, fifth = np.sqrt(x * x + y * y), 2 * np.pi / 5
    angle = np.arctan2(x, -y) % np.float32(fifth)
    angle = np.minimum(angle, np.float32(fifth) - angle)
    px, py = radius * np.sin(angle), radius * np.cos(angle)
    notch = 0.46 * np.array([np.sin(np.pi / 5), np.cos(np.pi / 5)])
    normal = np.array([1.08 - notch[1], notch[0]]) / np.hypot(notch[0], 1.08 - notch[1])
    return px * np.float32(normal[0]) + (py - np.float32(1.08)) * np.float32(normal[1])


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.sqrt(x * x + y * y) - np.float32(0.74)) - np.float32(0.25)


def _diamond(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.float32(0.804) * np.abs(x) + np.float32(0.595) * np.abs(y) - np.float32(0.595)


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Two discs and a wedge."""
    x = np.abs(x)
    lobe = np.sqrt((x - np.float32(0.44)) ** 2 + (y + np.float32(0.34)) ** 2) - np.float32(0.5)
    wedge = np.maximum(np.float32(0.74) * x + np.float32(0.67) * y - np.float32(0.6), -y - np.float32(0.34))
    return np.minimum(lobe, wedge)


def _moon(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    bite = np.float32(0.78) - np.sqrt((x - np.float32(0.52)) ** 2 + (y + np.float32(0.14)) ** 2)
    return np.maximum(np.sqrt(x * x + y * y) - np.float32(0.95), bite)


DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": _circle, "square": _square, "triangle": _triangle, "cross": _cross, "star": _star, "ring": _ring,
    "diamond": _diamond, "heart": _heart, "moon": _moon,
}  # fmt: skip


def backgrounds(config: SceneConfig, seed: int, split: str, index: np.ndarray) -> np.ndarray:
    """``(N, S, S, 3)`` uint8, dark: no object has a colour near it."""
    side, rows = config.side, len(index)
    draws = uniform(seed, f"{split}/background", index, 8)
    tint = 26 + 34 * draws[:, :1] + 8 * draws[:, 1:4]  # (N, 3)
    if config.background == "plain":
        return np.broadcast_to(tint[:, None, None].astype(np.uint8), (rows, side, side, 3)).copy()
    if config.background == "gradient":
        far = 26 + 54 * draws[:, 4:7]
        way = np.linspace(-0.5, 0.5, side)
        turn = 2 * np.pi * draws[:, 7, None, None]
        share = 0.5 + 0.7 * (np.cos(turn) * way[None, None] + np.sin(turn) * way[None, :, None])
        share = np.clip(share, 0, 1)[..., None]
        return (tint[:, None, None] * (1 - share) + far[:, None, None] * share).astype(np.uint8)
    words = bits(seed, f"{split}/grain", index, -(-side * side // 8))
    grain = words.view(np.uint8).reshape(rows, -1)[:, : side * side].reshape(rows, side, side, 1)
    return (np.minimum(tint, 44)[:, None, None].astype(np.uint8)) + (grain >> 2)


def _shade(material: np.ndarray, names: tuple[str, ...], x: np.ndarray, y: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    """What a colour is multiplied by, ``(n, W, W)``; above 1 it goes towards white. ``pixel``: radii in pixels."""
    shade = np.ones_like(x)
    if "striped" in names:
        rows = material == names.index("striped")
        period = np.maximum(4.0, pixel[rows] / 1.9)[:, None, None].astype(np.float32)  # pixels
        along = (x[rows] + y[rows]) * (pixel[rows][:, None, None] * np.float32(0.7071))
        wave = np.abs((along / period) % 1 - np.float32(0.5)) * 2 - np.float32(0.5)  # a triangle between +-0.5
        shade[rows] = np.float32(0.74) + np.float32(0.26) * np.clip(wave * period, -1, 1)
    if "shiny" in names:
        rows = material == names.index("shiny")
        spot = np.sqrt((x[rows] + np.float32(0.3)) ** 2 + (y[rows] + np.float32(0.3)) ** 2)
        shade[rows] = np.float32(0.52) + np.float32(1.4) * np.clip(1 - spot / np.float32(0.75), 0, 1)
    return shade


def draw(
    config: SceneConfig, layout: Layout, canvas: np.ndarray, rgb: np.ndarray, turn: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Paint the objects onto the canvas, the largest first.

    Args:
        config: Names of shapes and materials.
        layout: What stands where.
        canvas: ``(N, S, S, 3)`` uint8, painted in place.
        rgb: ``(N, K, 3)`` colours, 0 to 255.
        turn: ``(N, K)`` turns, radians.

    Returns:
        The canvas, and the boxes ``(N, K, 4)`` float32 around the pixels of which an object fills at least half and
        no later one does; NaN where there is no object, or none of it is to be seen.
    """
    boxes = np.full((*layout.shape.shape, 4), np.nan, dtype=np.float32)
    for start in range(0, len(canvas), _CHUNK):
        part = slice(start, start + _CHUNK)
        owner = np.full(canvas[part].shape[:3], -1, dtype=np.int8)
        rows, order = np.arange(len(owner)), np.argsort(-np.nan_to_num(layout.radii[part]), axis=1, kind="stable")
        for rank in range(order.shape[1]):
            here = layout.shape[part][rows, order[:, rank]] >= 0
            if here.any():
                _paint(config, layout, canvas, rgb, turn, start, rows[here], order[here, rank], owner)
        boxes[part] = _boxes(owner, order.shape[1])
    return canvas, boxes


def _paint(
    config: SceneConfig,
    layout: Layout,
    canvas: np.ndarray,
    rgb: np.ndarray,
    turn: np.ndarray,
    start: int,
    rows: np.ndarray,
    which: np.ndarray,
    owner: np.ndarray,
) -> None:
    """Paint one object into each of the scenes ``start + rows``."""
    side, scene = config.side, start + rows
    centre = (layout.centres[scene, which] * side).astype(np.float32)
    pixel = (layout.radii[scene, which] * side).astype(np.float32)
    width = min(side, 2 * int(np.ceil(pixel.max() * 1.1)) + 3)
    corner = np.clip(np.rint(centre - width / 2), 0, side - width).astype(np.int64)
    steps = np.arange(width)
    columns, lines = corner[:, 0, None] + steps, corner[:, 1, None] + steps
    across = ((columns + np.float32(0.5) - centre[:, :1]) / pixel[:, None]).astype(np.float32)
    down = ((lines + np.float32(0.5) - centre[:, 1:]) / pixel[:, None]).astype(np.float32)
    cos, sin = (f(turn[scene, which]).astype(np.float32)[:, None] for f in (np.cos, np.sin))
    x = (across * cos)[:, None, :] + (down * sin)[:, :, None]
    y = (down * cos)[:, :, None] - (across * sin)[:, None, :]
    cover = np.empty_like(x)
    shapes = layout.shape[scene, which]
    for number in np.unique(shapes):
        of = shapes == number
        cover[of] = DISTANCES[config.shapes[number]](x[of], y[of])
    cover = np.clip(np.float32(0.5) - cover * pixel[:, None, None], 0, 1)
    shade = _shade(layout.material[scene, which], config.materials, x, y, pixel)[..., None]
    paint = rgb[scene, which].astype(np.float32)[:, None, None]
    paint = np.minimum(shade, 1) * paint + np.maximum(shade - 1, 0) * (255 - paint)
    spot = (rows[:, None, None], lines[:, :, None], columns[:, None, :])
    view = canvas[start : start + len(owner)]
    under = view[spot].astype(np.float32)
    view[spot] = (under + cover[..., None] * (paint - under) + np.float32(0.5)).astype(np.uint8)
    owner[spot] = np.where(cover >= 0.5, which.astype(np.int8)[:, None, None], owner[spot])


def _boxes(owner: np.ndarray, objects: int) -> np.ndarray:
    """Boxes ``(n, K, 4)`` around the pixels that belong to each object, as shares; NaN where there are none."""
    side, boxes = owner.shape[1], np.full((len(owner), objects, 4), np.nan, dtype=np.float32)
    for number in range(objects):
        mine = owner == number
        some = mine.any(axis=(1, 2))
        for axis, low in ((1, 0), (2, 1)):
            line = mine.any(axis=axis)
            boxes[some, number, low] = (line.argmax(axis=1) / side)[some]
            boxes[some, number, low + 2] = ((side - line[:, ::-1].argmax(axis=1)) / side)[some]
    return boxes


def render(config: SceneConfig, layout: Layout, seed: int, split: str, index: np.ndarray) -> list[np.ndarray]:
    """Pictures ``(N, S, S, 3)`` uint8 and boxes ``(N, K, 4)`` float32 of scenes."""
    width = config.most
    draws = uniform(seed, f"{split}/look", index, 4 * width).reshape(len(index), 4, width)
    named = np.array([COLOURS[name] for name in config.colours], dtype=np.float64)
    rgb = np.clip(named[layout.colour] + 24 * (draws[:, :3].transpose(0, 2, 1) - 0.5), 0, 255)
    turn = np.deg2rad(config.turn) * (2 * draws[:, 3] - 1)
    return list(draw(config, layout, backgrounds(config, seed, split, index), rgb, turn))
