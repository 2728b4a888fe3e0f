"""What is true in a scene, as tables that captions, questions and phrases are read from.

Shapes: N scenes, K objects at most, A = 4 attributes, R = 4 relations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Protocol

import numpy as np

from polyfuse.data.scenes_config import SceneConfig, held_out_table

ATTRIBUTES = ("size", "material", "colour", "shape")  # in the order in which English puts the words
SIZE, MATERIAL, COLOUR, SHAPE = range(4)
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = (1, 0, 3, 2)
MARGIN = 0.08  # of the side: closer than this along an axis, nothing is said about that axis

Signature = tuple[int, ...]  # the attributes that a description names, ascending


class Placed(Protocol):
    """What facts are read from: a layout, or scenes."""

    @property
    def shape(self) -> np.ndarray: ...  # noqa: D102
    @property
    def colour(self) -> np.ndarray: ...  # noqa: D102
    @property
    def size(self) -> np.ndarray: ...  # noqa: D102
    @property
    def material(self) -> np.ndarray: ...  # noqa: D102
    @property
    def centres(self) -> np.ndarray: ...  # noqa: D102


def plural(noun: str) -> str:
    """Of a shape or of "object"."""
    return noun + ("es" if noun.endswith("s") else "s")


def names(config: SceneConfig, attribute: int) -> tuple[str, ...]:
    """The values of an attribute."""
    return (config.sizes, config.materials, config.colours, config.shapes)[attribute]


def telling(config: SceneConfig) -> Signature:
    """The attributes that have more than one value: what is always the same is not worth a word.

    Example:
        >>> [ATTRIBUTES[a] for a in telling(SceneConfig(materials=("plain",)))]
        ['size', 'colour', 'shape']
    """
    return tuple(a for a in range(4) if len(names(config, a)) > 1)


def signatures(config: SceneConfig) -> list[Signature]:
    """Every way to name some of the telling attributes, the shortest first."""
    told = telling(config)
    return [s for length in range(1, len(told) + 1) for s in combinations(told, length)]


def words(config: SceneConfig, signature: Signature, values: Sequence[int], many: bool = False) -> str:
    """A description: attributes in order, then the shape or "object".

    Example:
        >>> words(SceneConfig(), (SIZE, COLOUR), (1, 0)), words(SceneConfig(), (SHAPE,), (3,), many=True)
        ('large red object', 'crosses')
    """
    said = [names(config, a)[v] for a, v in zip(signature, values, strict=True)]
    noun = said.pop() if signature and signature[-1] == SHAPE else "object"
    return " ".join([*said, plural(noun) if many else noun])


@dataclass(frozen=True)
class Facts:
    """The tables of N scenes."""

    config: SceneConfig
    novel: bool  # held-out combinations may be spoken of
    values: np.ndarray  # (N, K, A) int64, -1 = no object
    clear: np.ndarray  # (N, R, K, K) bool: object i clearly stands in relation r to object j

    @classmethod
    def read(cls, config: SceneConfig, split: str, placed: Placed) -> "Facts":
        """The facts of a layout or of scenes."""
        values = np.stack([placed.size, placed.material, placed.colour, placed.shape], axis=2)
        apart = placed.centres[:, :, None] - placed.centres[:, None]  # (N, K, K, 2), NaN where absent
        beyond = np.moveaxis(apart, 3, 1)  # (N, axis, i, j)
        clear = np.stack(
            [beyond[:, 0] <= -MARGIN, beyond[:, 0] >= MARGIN, beyond[:, 1] <= -MARGIN, beyond[:, 1] >= MARGIN], axis=1
        )
        return cls(config, split == "novel", values, clear)

    @cached_property
    def present(self) -> np.ndarray:
        """``(N, K)`` bool."""
        return self.values[:, :, SHAPE] >= 0

    @cached_property
    def vague(self) -> np.ndarray:
        """``(N, R, K, K)`` bool: both are there, and neither the relation nor its opposite is clear."""
        both = self.present[:, :, None] & self.present[:, None] & ~np.eye(self.present.shape[1], dtype=bool)
        return both[:, None] & ~self.clear & ~self.clear[:, OPPOSITE]

    @cached_property
    def _same(self) -> np.ndarray:
        """``(A, N, K, K)``: two objects, both there, agree in an attribute."""
        both = self.present[:, :, None] & self.present[:, None]
        v = np.moveaxis(self.values, 2, 0)
        return (v[:, :, :, None] == v[:, :, None]) & both

    @cached_property
    def _cache(self) -> dict[tuple[str, Signature], np.ndarray]:
        return {}

    def match(self, signature: Signature) -> np.ndarray:
        """``(N, K, K)`` bool: both are there and agree in all that the signature names."""
        key = ("match", signature)
        if key not in self._cache:
            both = self.present[:, :, None] & self.present[:, None]
            self._cache[key] = np.all(self._same[list(signature)], axis=0) if signature else both
        return self._cache[key]

    def unique(self, signature: Signature) -> np.ndarray:
        """``(N, K)`` bool: the signature's attributes tell the object from all others."""
        key = ("unique", signature)
        if key not in self._cache:
            self._cache[key] = self.match(signature).sum(axis=2) == 1
        return self._cache[key]

    def tally(self, signature: Signature) -> tuple[np.ndarray, np.ndarray]:
        """How many objects have each combination of values: ``(J, len(signature))`` combinations, ``(N, J)`` counts."""
        slots = self.tally_slots(signature)
        fits = np.repeat(self.present[:, :, None], len(slots), axis=2)
        for column, attribute in enumerate(signature):
            fits &= self.values[:, :, attribute, None] == slots[:, column]
        return slots, fits.sum(axis=1)

    def tally_slots(self, signature: Signature) -> np.ndarray:
        """The combinations of values ``(J, len(signature))`` that may be asked for.

        Those of colour and shape that are held out are left out, except of scenes that may show them: in training the
        answer would always be no.
        """
        key = ("slots", signature)
        if key in self._cache:
            return self._cache[key]
        sizes = [len(names(self.config, a)) for a in signature]
        slots = np.indices(sizes).reshape(len(signature), -1).T if signature else np.zeros((1, 0), dtype=np.int64)
        if not self.novel and COLOUR in signature and SHAPE in signature:
            held = held_out_table(self.config)
            slots = slots[~held[slots[:, signature.index(COLOUR)], slots[:, signature.index(SHAPE)]]]
        self._cache[key] = slots
        return slots

    def describe(self, scene: int, thing: int, signature: Signature) -> str:
        """The words of an object, without an article."""
        return words(self.config, signature, self.values[scene, thing, list(signature)].tolist())
