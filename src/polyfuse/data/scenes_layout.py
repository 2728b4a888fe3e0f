"""What stands where: the attributes and places of every object of every scene, before anything is drawn.

Shapes: N scenes, K objects at most.
"""

from dataclasses import dataclass

import numpy as np

from polyfuse.data.scenes_config import SIZES, SceneConfig, held_out_table
from polyfuse.data.scenes_draws import pick, uniform

_CANDIDATES, _ATTEMPTS = 16, 60


@dataclass(frozen=True)
class Layout:
    """The truth about scenes; -1 (NaN for numbers) where a scene has no such object."""

    count: np.ndarray  # (N,) int64
    shape: np.ndarray  # (N, K) int64
    colour: np.ndarray  # (N, K) int64
    size: np.ndarray  # (N, K) int64
    material: np.ndarray  # (N, K) int64
    centres: np.ndarray  # (N, K, 2) float64, shares of the side
    radii: np.ndarray  # (N, K) float64, shares of the side


def _choice(draws: np.ndarray, count: int) -> np.ndarray:
    return (draws * count).astype(np.int64)


def _kinds(config: SceneConfig, seed: int, split: str, index: np.ndarray, count: np.ndarray) -> list[np.ndarray]:
    """Colour and shape ``(N, K)``: repeats as the configuration says, held-out combinations only where they belong."""
    width, held = config.most, held_out_table(config)
    colour = _choice(uniform(seed, f"{split}/colour", index, width), len(config.colours))
    shape = _choice(uniform(seed, f"{split}/shape", index, width), len(config.shapes))
    for values, name in ((colour, "colour"), (shape, "shape")):
        again = uniform(seed, f"{split}/again/{name}", index, width) < config.repeat
        again[:, 0] = False
        values[again] = np.broadcast_to(values[:, :1], values.shape)[again]
    # A held-out combination keeps its colour or its shape, by turns, and draws the other from what goes with it.
    side, other = uniform(seed, f"{split}/allowed", index, 2 * width).reshape(-1, 2, width).transpose(1, 0, 2)
    bad = held[colour, shape]
    keep = bad & (side < 0.5)
    shape[keep] = pick(~held[colour[keep]], other[keep])
    keep = bad & (side >= 0.5)
    colour[keep] = pick(~held[:, shape[keep]].T, other[keep])
    if split == "novel":
        if not held.any():
            raise ValueError("split 'novel' needs held-out combinations: set held_out in SceneConfig")
        draws = uniform(seed, f"{split}/novel", index, 2)
        rows, which = np.arange(len(index)), (draws[:, 0] * count).astype(np.int64)
        pairs = np.argwhere(held)[_choice(draws[:, 1], int(held.sum()))]
        colour[rows, which], shape[rows, which] = pairs.T
    return [colour, shape]


def _place(config: SceneConfig, seed: int, split: str, index: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Centres ``(N, K, 2)`` with the distances that the configuration asks for; objects without radius stay NaN."""
    gap = 1.5 / config.side if config.overlap == 0 else 0.0
    centres = np.full((*radii.shape, 2), np.nan)
    todo = np.arange(len(index))
    for attempt in range(_ATTEMPTS):
        draws = uniform(seed, f"{split}/place/{attempt}", index[todo], radii.shape[1] * _CANDIDATES * 2)
        draws = draws.reshape(len(todo), radii.shape[1], _CANDIDATES, 2)
        placed, room = np.full((len(todo), radii.shape[1], 2), np.nan), np.ones(len(todo), dtype=bool)
        order = np.argsort(-np.nan_to_num(radii[todo]), axis=1, kind="stable")  # the largest first
        rows = np.arange(len(todo))
        for rank in range(radii.shape[1]):
            which = order[:, rank]
            radius = radii[todo, which]
            border = (radius + 1.0 / config.side)[:, None, None]
            spots = border + draws[rows, which] * (1 - 2 * border)
            apart = np.hypot(*np.moveaxis(spots[:, :, None] - placed[:, None], -1, 0))  # (n, candidates, K)
            need = (radius[:, None] + radii[todo]) * (1 - config.overlap) + gap
            free = ~(apart < need[:, None]).any(axis=2)  # NaN, not placed yet, is no obstacle
            room &= free.any(axis=1) | np.isnan(radius)
            placed[rows, which] = spots[rows, free.argmax(axis=1)]
        centres[todo[room]] = placed[room]
        todo = todo[~room]
        if not len(todo):
            return centres
    raise ValueError(
        f"no room for {config.most} objects of sizes {config.sizes} with overlap {config.overlap}: "
        "lower most or the sizes, or raise overlap"
    )


def lay_out(config: SceneConfig, seed: int, split: str, index: np.ndarray) -> Layout:
    """Attributes and places of the scenes with these numbers."""
    width, rows = config.most, len(index)
    spread = config.most - config.least + 1
    count = config.least + _choice(uniform(seed, f"{split}/count", index, 1)[:, 0], spread)
    colour, shape = _kinds(config, seed, split, index, count)
    draws = uniform(seed, f"{split}/rest", index, 3 * width).reshape(rows, 3, width)
    size, material = _choice(draws[:, 0], len(config.sizes)), _choice(draws[:, 1], len(config.materials))
    absent = np.arange(width) >= count[:, None]
    radii = np.array([SIZES[name] for name in config.sizes])[size] * (0.93 + 0.14 * draws[:, 2])
    radii[absent] = np.nan
    for values in (shape, colour, size, material):
        values[absent] = -1
    return Layout(count, shape, colour, size, material, _place(config, seed, split, index, radii), radii)
