"""Drawn scenes as task data: captions, questions and phrases with boxes, in four parts.

Part ``novel`` (number 3) holds scenes each of which shows a combination of colour and shape that no other part has.

Shapes: N rows, P pictures, R regions, F features.
"""

from collections.abc import Iterable
from dataclasses import fields
from functools import lru_cache
from typing import Any

import numpy as np

from polyfuse.data.scenes import Questions, SceneConfig, Scenes, make_scenes, text_only_ceiling
from polyfuse.data.scenes_config import SPLITS
from polyfuse.data.scenes_forms import KINDS
from polyfuse.errors import UserError
from polyfuse.tasks.batch import Regions, TaskData

#: What may be said of the world itself: the fields of ``SceneConfig``.
WORLD = tuple(field.name for field in fields(SceneConfig))


def scene_captions(
    *,
    train: int = 4000,
    validation: int = 500,
    test: int = 1000,
    novel: int = 0,
    seed: int = 0,
    per_scene: int = 1,
    regions: bool = False,
    pixels: bool = True,
    **world: Any,
) -> TaskData:
    """True sentences about scenes; ``references`` has two to five of each scene, in several wordings.

    Rows whose scenes show the same objects share an id: what is said of one may well be true of the other.

    Args:
        train: Scenes to learn from.
        validation: Scenes to choose by.
        test: Scenes to judge by.
        novel: Scenes of combinations held out, for part ``novel``.
        seed: Another seed gives other scenes.
        per_scene: Rows of a scene.
        regions: Add what a detector would see.
        pixels: Keep the pictures.
        **world: Fields of ``SceneConfig``: ``side``, ``most``, ``held_out``, ...

    Raises:
        UserError: If a number or a field of the world breaks a rule.
    """
    parts = scene_parts((train, validation, test, novel), seed, per_scene, pixels or regions, world)
    texts: list[str] = []
    scene, references, ids = [], [], []
    for part in parts:
        # A part may be empty.
        columns = [part.captions(seed=number) if len(part) else [] for number in range(per_scene)]
        known = part.references() if len(part) else []
        for row, sentences in enumerate(zip(*columns, strict=True)):
            texts += sentences
            references += [known[row]] * per_scene
        scene.append(np.repeat(np.arange(len(part)), per_scene))
        ids += [same for same in _objects(part) for _ in range(per_scene)]
    numbers: dict[Any, int] = {}
    return scene_task_data(
        "scene_captions",
        parts,
        scene,
        texts,
        pixels=pixels,
        regions=regions,
        ids=np.array([numbers.setdefault(one, len(numbers)) for one in ids], dtype=np.int64),
        references=references,
    )


def scene_questions(
    *,
    train: int = 4000,
    validation: int = 500,
    test: int = 1000,
    novel: int = 0,
    seed: int = 0,
    per_scene: int = 4,
    kinds: Iterable[str] | None = None,
    regions: bool = False,
    pixels: bool = True,
    **world: Any,
) -> TaskData:
    """Questions about scenes with answers by program; kinds are count, attribute, compare, spatial and exist.

    A note says what the words alone give away.

    Args:
        train: Scenes, as the numbers that follow.
        validation: Likewise.
        test: Likewise.
        novel: Likewise.
        seed: Another seed gives other scenes.
        per_scene: Questions about a scene.
        kinds: Kinds of question; None = all.
        regions: Add what a detector would see.
        pixels: Keep the pictures.
        **world: Fields of ``SceneConfig``.

    Raises:
        UserError: If a number, a kind or a field of the world breaks a rule.
    """
    parts = scene_parts((train, validation, test, novel), seed, per_scene, pixels or regions, world)
    wanted = KINDS if kinds is None else (kinds,) if isinstance(kinds, str) else tuple(kinds)
    try:
        asked: list[Questions] = [part.questions(per_scene, kinds=wanted) for part in parts]
    except ValueError as error:
        raise UserError(f"source 'scene_questions': {error}") from None
    notes = []
    if len(asked[0]) and len(asked[2]):
        told = text_only_ceiling(asked[0], asked[2])
        notes.append(f"the words alone give away {told['all']['best']:.1%} of the test answers")
    return scene_task_data(
        "scene_questions",
        parts,
        [one.scene for one in asked],
        [text for one in asked for text in one.text],
        pixels=pixels,
        regions=regions,
        answers=[answer for one in asked for answer in one.answer],
        kinds=[kind for one in asked for kind in one.kind],
        notes=tuple(notes),
    )


def scene_phrases(
    *,
    train: int = 4000,
    validation: int = 500,
    test: int = 1000,
    novel: int = 0,
    seed: int = 0,
    per_scene: int = 2,
    regions: bool = False,
    pixels: bool = True,
    **world: Any,
) -> TaskData:
    """Phrases that fit exactly one object, with its box; kinds are attribute and relation.

    Args:
        train: Scenes, as the numbers that follow.
        validation: Likewise.
        test: Likewise.
        novel: Likewise.
        seed: Another seed gives other scenes.
        per_scene: Phrases about a scene.
        regions: Add what a detector would see.
        pixels: Keep the pictures.
        **world: Fields of ``SceneConfig``.

    Raises:
        UserError: If a number or a field of the world breaks a rule.
    """
    parts = scene_parts((train, validation, test, novel), seed, per_scene, pixels or regions, world)
    said = [part.phrases(per_scene) for part in parts]
    return scene_task_data(
        "scene_phrases",
        parts,
        [one.scene for one in said],
        [text for one in said for text in one.text],
        pixels=pixels,
        regions=regions,
        boxes=np.concatenate([one.box for one in said]).astype(np.float32),
        kinds=[kind for one in said for kind in one.kind],
    )


def scene_parts(counts: tuple[int, ...], seed: int, per_scene: int, seen: bool, world: dict[str, Any]) -> list[Scenes]:
    """Scenes of the splits, in the order of the parts' numbers."""
    if not seen:
        raise UserError("scenes need pixels=true or regions=true, got neither")
    if per_scene < 1 or min(counts) < 0 or not sum(counts):
        raise UserError(
            f"scenes need per_scene from 1 on and numbers of scenes from 0 on, not all 0; got per_scene={per_scene}, "
            f"{', '.join(f'{name}={count}' for name, count in zip(SPLITS, counts, strict=True))}"
        )
    try:
        # Lists, as YAML gives them, become tuples, which can be hashed.
        config = SceneConfig(**{key: _tuple(value) for key, value in world.items()})
        # A world without held-out combinations has no novel split, not even an empty one.
        splits = [split if count else SPLITS[0] for count, split in zip(counts, SPLITS, strict=True)]
        return [_made(count, seed, split, config) for count, split in zip(counts, splits, strict=True)]
    except (ValueError, TypeError) as error:
        raise UserError(f"scenes: {error}") from None


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list | tuple) else value


@lru_cache(maxsize=8)
def _made(count: int, seed: int, split: str, config: SceneConfig) -> Scenes:
    """Two sources of one world draw its pictures once."""
    return make_scenes(count, seed=seed, split=split, config=config)


def _objects(scenes: Scenes) -> list[tuple[Any, ...]]:
    """What is in each scene, whatever the order."""
    kinds = np.stack([scenes.shape, scenes.colour, scenes.size, scenes.material], axis=-1)
    return [tuple(sorted(map(tuple, kinds[row, : scenes.count[row]].tolist()))) for row in range(len(scenes))]


def scene_task_data(
    name: str,
    parts: list[Scenes],
    scene: list[np.ndarray],
    texts: list[str],
    *,
    pixels: bool,
    regions: bool,
    ids: np.ndarray | None = None,
    notes: tuple[str, ...] = (),
    **columns: Any,
) -> TaskData:
    """Rows of all parts; ``scene`` is each row's scene within its part."""
    starts = np.cumsum([0, *map(len, parts)])[:-1]
    image_of = np.concatenate([rows + start for rows, start in zip(scene, starts, strict=True)]).astype(np.int64)
    return TaskData(
        name=name,
        images=np.concatenate([part.images for part in parts]) if pixels else None,
        image_of=image_of,
        texts=texts,
        part=np.repeat(np.arange(len(parts), dtype=np.int8), [len(rows) for rows in scene]),
        ids=image_of.copy() if ids is None else ids,
        regions=_regions(parts) if regions else None,
        extra_parts=("novel",) if len(parts[3]) else (),
        notes=notes,
        **columns,
    )


def _regions(parts: list[Scenes]) -> Regions:
    found = [part.regions() for part in parts if len(part)]
    return Regions(*(np.concatenate([getattr(one, key) for one in found]) for key in Regions.__annotations__))
