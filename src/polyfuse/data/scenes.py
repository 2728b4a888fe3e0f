"""A world of small drawn scenes of which everything is known: pictures, captions, questions, phrases, regions, sounds.

    scenes = make_scenes(1000)
    scenes.captions()[0]          # "a small plain red circle is left of a large striped blue star."
    scenes.questions().text[0]    # "what colour is the star?"

Scene i is a function of (configuration, seed, split, i): the same whatever the number made, so a stream may make them
piece by piece with ``start``. Nothing is read, downloaded or written.

Shapes: N scenes, K objects at most, S pixels of a side, Q questions or phrases, R = K regions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from polyfuse.data import scenes_captions, scenes_forms, scenes_phrases, scenes_questions, scenes_regions, scenes_sounds
from polyfuse.data.scenes_config import SPLITS, SceneConfig, combinations_held_out
from polyfuse.data.scenes_facts import Facts, plural, telling
from polyfuse.data.scenes_forms import KINDS
from polyfuse.data.scenes_layout import lay_out
from polyfuse.data.scenes_phrases import Phrases
from polyfuse.data.scenes_questions import Questions, text_only_ceiling
from polyfuse.data.scenes_regions import SceneRegions
from polyfuse.data.scenes_render import render

__all__ = [
    "Phrases", "Questions", "SceneConfig", "SceneRegions", "Scenes", "combinations_held_out", "make_scenes",
    "scene_vocabulary", "text_only_ceiling",
]  # fmt: skip


@dataclass(frozen=True)
class Scenes:
    """N scenes. Objects stand in no order that means anything; -1 (NaN for numbers) where a scene has fewer than K."""

    images: np.ndarray  # (N, S, S, 3) uint8
    count: np.ndarray  # (N,) int64
    shape: np.ndarray  # (N, K) int64, into config.shapes
    colour: np.ndarray  # (N, K) int64, into config.colours
    size: np.ndarray  # (N, K) int64, into config.sizes
    material: np.ndarray  # (N, K) int64, into config.materials
    boxes: np.ndarray  # (N, K, 4) float32, shares of the side, tight around what is to be seen
    centres: np.ndarray  # (N, K, 2) float64, shares of the side
    radii: np.ndarray  # (N, K) float64, shares of the side
    index: np.ndarray  # (N,) int64, the number of each scene
    config: SceneConfig
    seed: int
    split: str

    def __len__(self) -> int:
        return len(self.count)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Scenes":
        """These scenes alone; what is said of them does not change."""
        which = np.asarray(rows)
        names = ("images", "count", "shape", "colour", "size", "material", "boxes", "centres", "radii", "index")
        return replace(self, **{name: getattr(self, name)[which] for name in names})

    @cached_property
    def facts(self) -> Facts:
        """The tables that everything said is read from."""
        return Facts.read(self.config, self.split, self)

    @property
    def _stream(self) -> str:
        return f"{self.seed}/{self.split}"

    def captions(self, seed: int = 0) -> list[str]:
        """One true sentence per scene with every object, all its words, and one clear spatial relation.

        A scene of one object, or of objects that no clear relation joins, gets a sentence without one.
        """
        return scenes_captions.sentences(self.facts, self.index, seed, f"{self._stream}/captions")

    def references(self) -> list[tuple[str, ...]]:
        """Two to five true sentences per scene, in different wordings and orders, to score captions by."""
        return scenes_captions.several(self.facts, self.index, self._stream)

    def questions(self, per_scene: int = 4, seed: int = 0, kinds: Iterable[str] = KINDS) -> Questions:
        """Questions with answers by program, see :mod:`polyfuse.data.scenes_questions`."""
        return scenes_questions.ask(self.facts, self.index, self._stream, seed, per_scene, kinds)

    def phrases(self, per_scene: int = 2, seed: int = 0) -> Phrases:
        """Phrases that fit exactly one object, with its box, see :mod:`polyfuse.data.scenes_phrases`."""
        return scenes_phrases.point(self.facts, self.boxes, self.index, self._stream, seed, per_scene)

    def regions(self, grid: int = 8, noise: float = 0.35, seed: int = 0) -> SceneRegions:
        """What a detector would give: thumbnails of the boxes' pixels and a soft opinion about the shape."""
        return scenes_regions.detect(self, grid, noise, seed)

    def sounds(self, rate: int = 4000, seconds: float = 1.0) -> np.ndarray:
        """``(N, samples)`` float32: a tone for every object, mixed, see :mod:`polyfuse.data.scenes_sounds`."""
        return scenes_sounds.play(self, rate, seconds)


def make_scenes(
    count: int, *, seed: int = 0, split: str = "train", config: SceneConfig | None = None, start: int = 0
) -> Scenes:
    """Make scenes ``start`` to ``start + count``.

    Args:
        count: How many.
        seed: Another seed gives other scenes.
        split: ``train``, ``validation`` and ``test`` hold different scenes of the same combinations of colour
            and shape; every scene of ``novel`` shows at least one combination that they never do.
        config: What scenes are made of; None is ``SceneConfig()``.
        start: The number of the first.

    Raises:
        ValueError: If the split is unknown, a number is negative, or the objects do not fit into the picture.

    Example:
        >>> scenes = make_scenes(3, seed=1)
        >>> scenes.images.shape, scenes.images.dtype.name
        ((3, 64, 64, 3), 'uint8')
        >>> scenes.captions()[2] == make_scenes(1, seed=1, start=2).captions()[0]
        True
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if count < 0 or start < 0:
        raise ValueError(f"count and start must not be negative, got {count} and {start}")
    config = SceneConfig() if config is None else config
    index = np.arange(start, start + count)
    layout = lay_out(config, seed, split, index)
    images, boxes = render(config, layout, seed, split, index)
    return Scenes(
        images, layout.count, layout.shape, layout.colour, layout.size, layout.material, boxes, layout.centres,
        layout.radii, index, config, seed, split,
    )  # fmt: skip


def scene_vocabulary(config: SceneConfig | None = None) -> tuple[str, ...]:
    """Every word that captions, questions, answers and phrases use, sorted; punctuation marks are words.

    Example:
        >>> {"red", "circles", "?"} <= set(scene_vocabulary())
        True
    """
    config = SceneConfig() if config is None else config
    told = [(config.sizes, config.materials, config.colours, ())[a] for a in telling(config)]
    known = {word for values in told for word in values}
    if len(config.shapes) > 1:
        known |= {*config.shapes, *map(plural, config.shapes)}
    known |= {*scenes_captions.WORDS, *scenes_forms.WORDS, *scenes_phrases.WORDS}
    return tuple(sorted(known | {str(n) for n in range(config.most + 1)}))
