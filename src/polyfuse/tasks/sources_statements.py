"""Statements about drawn scenes that are true or false, for entailment: a picture and a sentence, two answers.

A false statement is a true sentence with one thing changed: the relation turned into its opposite, or an object's
colour, shape, size or material replaced so that the scene holds no such object. It is false of the scene for certain,
and it names no combination that true sentences of its part never name.

Shapes: N rows.
"""

import re
from collections import Counter
from typing import Any

import numpy as np

from polyfuse.data.scenes import Scenes
from polyfuse.data.scenes_config import held_out_table
from polyfuse.data.scenes_draws import uniform
from polyfuse.data.scenes_facts import ATTRIBUTES, COLOUR, OPPOSITE, RELATIONS, SHAPE, names, telling, words
from polyfuse.tasks.batch import TaskData
from polyfuse.tasks.sources_scenes import scene_parts, scene_task_data

TRUE, FALSE = "entailment", "contradiction"
_RELATED = re.compile(rf"\ban? ([a-z ]+?) (?:is )?({'|'.join(RELATIONS)}) an? ([a-z ]+?)(?=[,.])")


def scene_statements(
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
    """Sentences with the answer "entailment" or "contradiction", half each; kinds say what is wrong ("true": nothing).

    Args:
        train: Scenes to learn from.
        validation: Scenes to choose by.
        test: Scenes to judge by.
        novel: Scenes of combinations held out, for part ``novel``.
        seed: Another seed gives other scenes.
        per_scene: Statements about a scene.
        regions: Add what a detector would see.
        pixels: Keep the pictures.
        **world: Fields of ``SceneConfig``.

    Raises:
        UserError: If a number or a field of the world breaks a rule.
    """
    parts = scene_parts((train, validation, test, novel), seed, per_scene, pixels or regions, world)
    texts: list[str] = []
    kinds: list[str] = []
    for part in parts:
        said = [_statements(part, number) for number in range(per_scene)] if len(part) else []
        for row in zip(*said, strict=True):
            texts += [text for text, _ in row]
            kinds += [kind for _, kind in row]
    return scene_task_data(
        "scene_statements",
        parts,
        [np.repeat(np.arange(len(part)), per_scene) for part in parts],
        texts,
        pixels=pixels,
        regions=regions,
        answers=[TRUE if kind == "true" else FALSE for kind in kinds],
        kinds=kinds,
    )


def _statements(scenes: Scenes, number: int) -> list[tuple[str, str]]:
    """A sentence about every scene and what is wrong with it."""
    sentences = scenes.captions(seed=number)
    draws = uniform(number, f"{scenes.seed}/{scenes.split}/statements", scenes.index, 5)
    return [
        (text, "true") if draw[0] < 0.5 else falsified(scenes, row, text, draw[1:])
        for row, (text, draw) in enumerate(zip(sentences, draws, strict=True))
    ]


def falsified(scenes: Scenes, row: int, text: str, draws: np.ndarray) -> tuple[str, str]:
    """A sentence made false, and what was changed: "relation", or an attribute.

    Args:
        scenes: The scenes.
        row: Which one.
        text: A true sentence about it, from ``captions``.
        draws: Four numbers in [0, 1).
    """
    turned = _turned(scenes, row, text) if draws[0] < 0.25 else None
    if turned is not None:
        return turned, "relation"
    facts, told = scenes.facts, telling(scenes.config)
    things = np.flatnonzero(facts.present[row])
    allowed = ~held_out_table(scenes.config) | facts.novel
    held = {tuple(facts.values[row, thing]) for thing in things}
    thing = int(things[int(draws[1] * len(things))])
    order = np.argsort([(draws[2] * (place + 1) * 7.3) % 1 for place in range(len(told))])
    for attribute in (told[place] for place in order):
        own = facts.values[row, thing]
        options = [
            (*own[:attribute], value, *own[attribute + 1 :]) for value in range(len(names(scenes.config, attribute)))
        ]
        options = [one for one in options if one not in held and allowed[one[COLOUR], one[SHAPE]]]
        if options:
            other = options[int(draws[3] * len(options))]
            old, new = (words(scenes.config, told, [values[a] for a in told]) for values in (own, other))
            return _swapped(text, old, new), ATTRIBUTES[attribute]
    return (turned, "relation") if (turned := _turned(scenes, row, text)) is not None else (text, "true")


def _swapped(text: str, old: str, new: str) -> str:
    """The first thing so described becomes another, with its article."""
    article = "an" if new[0] in "aeio" else "a"
    return re.sub(rf"\ban? {re.escape(old)}\b", f"{article} {new}", text, count=1)


def _turned(scenes: Scenes, row: int, text: str) -> str | None:
    """The sentence with its relation turned round; None where that might still be true, or it has none."""
    found = _RELATED.search(text)
    if found is None:
        return None
    facts, told = scenes.facts, telling(scenes.config)
    there = Counter(facts.describe(row, int(thing), told) for thing in np.flatnonzero(facts.present[row]))
    sides = [next((d for d in there if found[group].endswith(d)), "") for group in (1, 3)]
    if any(there[side] != 1 for side in sides):
        return None
    opposite = RELATIONS[OPPOSITE[RELATIONS.index(found[2])]]
    return text[: found.start(2)] + opposite + text[found.end(2) :]
