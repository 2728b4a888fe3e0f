"""What a scene may hold: names, sizes in numbers, and the combinations that training never sees."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from polyfuse.data.scenes_draws import bits

COLOURS = {
    "red": (222, 36, 36), "orange": (247, 136, 20), "yellow": (248, 226, 48), "green": (34, 160, 58),
    "cyan": (48, 214, 224), "blue": (48, 84, 236), "purple": (150, 48, 196), "white": (242, 242, 242),
    "pink": (252, 150, 196), "brown": (132, 80, 40),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross", "star", "ring", "diamond", "heart", "moon")
SIZES = {"small": 0.078, "medium": 0.110, "large": 0.148}  # radius as a share of the side
MATERIALS = ("plain", "striped", "shiny")
BACKGROUNDS = ("plain", "noise", "gradient")
SPLITS = ("train", "validation", "test", "novel")


@dataclass(frozen=True)
class SceneConfig:
    """What scenes are made of and how hard they are.

    Args:
        side: Pixels of a side.
        least: Fewest objects of a scene.
        most: Most objects of a scene.
        shapes: Of ``SHAPES``.
        colours: Of ``COLOURS``.
        sizes: Of ``SIZES``.
        materials: Of ``MATERIALS``.
        background: ``plain`` (a dark grey), ``gradient`` (from one dark tint to another) or ``noise`` (dark grains).
        overlap: How far objects may cover each other: centres are at least ``1 - overlap`` times the sum of the radii
            apart. At 0 there is a gap between any two. Smaller objects lie on top.
        repeat: The chance that an object takes its colour, and again its shape, from the first object: what is counted
            and compared would else nearly always differ.
        turn: Largest turn of an object, degrees either way.
        held_out: (colour, shape) combinations that only the split ``novel`` contains: a share of all combinations, or
            the combinations.

    Raises:
        ValueError: If a name is unknown or stands twice, a number is out of range, or the held-out combinations leave
            a colour without a shape or a shape without a colour.

    Example:
        >>> SceneConfig(colours=("red", "blue"), shapes=("circle", "square"), held_out=[("red", "square")]).held_out
        (('red', 'square'),)
    """

    side: int = 64
    least: int = 2
    most: int = 4
    shapes: tuple[str, ...] = ("circle", "square", "triangle", "cross", "star", "ring")
    colours: tuple[str, ...] = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
    sizes: tuple[str, ...] = ("small", "large")
    materials: tuple[str, ...] = ("plain", "striped")
    background: str = "plain"
    overlap: float = 0.0
    repeat: float = 0.4
    turn: float = 8.0
    held_out: float | tuple[tuple[str, str], ...] = 0.125

    def __post_init__(self) -> None:
        for name, known in (
            ("shapes", SHAPES),
            ("colours", tuple(COLOURS)),
            ("sizes", tuple(SIZES)),
            ("materials", MATERIALS),
        ):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)  # a list read from JSON becomes the tuple it was
            if not values or len(set(values)) < len(values) or not set(values) <= set(known):
                raise ValueError(f"{name} must be different names of {', '.join(known)}, got {values}")
        if not isinstance(self.held_out, int | float):
            object.__setattr__(self, "held_out", tuple((colour, shape) for colour, shape in self.held_out))
        if self.background not in BACKGROUNDS:
            raise ValueError(f"background must be one of {', '.join(BACKGROUNDS)}, got {self.background!r}")
        for name, low, high in (
            ("side", 24, 1024),
            ("least", 1, self.most),
            ("most", 1, 12),
            ("overlap", 0, 0.6),
            ("repeat", 0, 0.9),
            ("turn", 0, 20),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie between {low} and {high}, got {getattr(self, name)}")
        allowed = ~held_out_table(self)
        if not (allowed.any(axis=0).all() and allowed.any(axis=1).all()):
            raise ValueError(f"held_out leaves a colour or a shape with nothing to train on: {self.held_out}")


@lru_cache(maxsize=64)
def held_out_table(config: SceneConfig) -> np.ndarray:
    """``(colours, shapes)`` bool, True where the combination is held out.

    A share is spread evenly: the next combination is always one whose colour and shape have lost least so far, ties
    broken by a hash of the position. It depends on the configuration alone, so every seed holds out the same.

    Raises:
        ValueError: If a named combination is not one of the configuration's, or the share is outside [0, 1).
    """
    table = np.zeros((len(config.colours), len(config.shapes)), dtype=bool)
    if isinstance(config.held_out, tuple):
        for colour, shape in config.held_out:
            if colour not in config.colours or shape not in config.shapes:
                raise ValueError(f"held_out names {colour} {shape}, which is no colour and shape of this world")
            table[config.colours.index(colour), config.shapes.index(shape)] = True
        return table
    if not 0 <= config.held_out < 1:
        raise ValueError(f"held_out must be a share in [0, 1) or (colour, shape) pairs, got {config.held_out}")
    order = bits(0, "held out", np.arange(table.size), 1)[:, 0].reshape(table.shape)
    for _ in range(round(config.held_out * table.size)):
        free = (pair for pair in product(*map(range, table.shape)) if not table[pair])
        table[min(free, key=lambda p: (table[p[0]].sum() + table[:, p[1]].sum(), order[p]))] = True
    return table


def combinations_held_out(config: SceneConfig) -> tuple[tuple[str, str], ...]:
    """The held-out (colour, shape) pairs by name.

    Example:
        >>> len(combinations_held_out(SceneConfig()))
        6
    """
    return tuple((config.colours[c], config.shapes[s]) for c, s in np.argwhere(held_out_table(config)))
