"""The forms of questions: for every way to fill a form, the answer by program; the words only of what is asked.

Shapes: N scenes, K objects at most, J ways to fill a form.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from polyfuse.data.scenes_config import SIZES, SceneConfig
from polyfuse.data.scenes_facts import (
    ATTRIBUTES,
    COLOUR,
    MATERIAL,
    OPPOSITE,
    RELATIONS,
    SHAPE,
    SIZE,
    Facts,
    Signature,
    names,
    telling,
    words,
)

KINDS = ("count", "attribute", "compare", "spatial", "exist")
YES_NO = ("yes", "no")
WORDS = (
    "how", "many", "are", "there", "what", "is", "the", "do", "and", "have", "same", "larger", "than", "more", "left",
    "right", "of", "above", "below", "a", "an", "?", "yes", "no", "object", "objects", *ATTRIBUTES,
)  # fmt: skip

Solved = tuple[np.ndarray, np.ndarray]  # answers (N, J) int8, -1 = cannot be asked; weights (N, J) or (1, J) float32
_EVEN = np.ones((1, 1), dtype=np.float32)


@dataclass(frozen=True)
class Form:
    """A form of question.

    ``share`` is how often it is asked among the forms of its kind, if the scenes allow that.
    """

    kind: str
    name: str
    answers: tuple[str, ...]
    solve: Callable[[Facts], Solved]
    say: Callable[[Facts, int, int], str]
    share: float = 1.0


def _name(signature: Signature) -> str:
    return "+".join(ATTRIBUTES[a] for a in signature) or "any"


def _counted(config: SceneConfig, signature: Signature) -> Form:
    def solve(facts: Facts) -> Solved:
        return facts.tally(signature)[1].astype(np.int8), _EVEN

    def say(facts: Facts, _: int, slot: int) -> str:
        values = facts.tally_slots(signature)[slot]
        return f"how many {words(config, signature, values, many=True)} are there?"

    answers = tuple(str(n) for n in range(config.most + 1))
    return Form("count", f"how many {_name(signature)}", answers, solve, say, 1.0 if signature else 0.5)


def _exists(config: SceneConfig, signature: Signature) -> Form:
    def solve(facts: Facts) -> Solved:
        slots, counts = facts.tally(signature)
        near = np.full(counts.shape, 0.2, dtype=np.float32)
        for column, attribute in enumerate(signature):
            seen = (facts.values[:, :, attribute, None] == slots[:, column]).any(axis=1)
            near += seen
        # A "no" about what nearly is there, the right colour on the wrong shape, is the one that needs both words.
        return np.where(counts > 0, 0, 1).astype(np.int8), np.where(counts > 0, 1, near**3)

    def say(facts: Facts, _: int, slot: int) -> str:
        thing = words(config, signature, facts.tally_slots(signature)[slot])
        return f"is there {'an' if thing[0] in 'aeio' else 'a'} {thing}?"

    return Form("exist", f"is there {_name(signature)}", YES_NO, solve, say, float(len(signature)))


def _asked(config: SceneConfig, attribute: int, signature: Signature) -> Form:
    def solve(facts: Facts) -> Solved:
        return np.where(facts.unique(signature), facts.values[:, :, attribute], -1).astype(np.int8), _EVEN

    def say(facts: Facts, scene: int, slot: int) -> str:
        return f"what {ATTRIBUTES[attribute]} is the {facts.describe(scene, slot, signature)}?"

    answers = names(config, attribute)
    name = f"what {ATTRIBUTES[attribute]} by {_name(signature)}"
    return Form("attribute", name, answers, solve, say, 1.0 if len(answers) > 2 else 0.5)


def _pairs(facts: Facts, signature: Signature) -> np.ndarray:
    """``(N, K, K)`` bool: two different objects, each told from all others by the signature."""
    unique = facts.unique(signature)
    return unique[:, :, None] & unique[:, None] & ~np.eye(unique.shape[1], dtype=bool)


def _same(attribute: int, signature: Signature) -> Form:
    def solve(facts: Facts) -> Solved:
        answer = np.where(facts.match((attribute,)), 0, 1)
        pairs = _pairs(facts, signature)
        if attribute in (COLOUR, SHAPE):
            # Repeats come from one object: two of a shape are likelier to be of a colour, and the words would tell.
            pairs = pairs & ~facts.match((signature[-1],))
        return np.where(pairs, answer, -1).reshape(len(answer), -1).astype(np.int8), _EVEN

    def say(facts: Facts, scene: int, slot: int) -> str:
        first, second = (facts.describe(scene, k, signature) for k in divmod(slot, facts.values.shape[1]))
        return f"do the {first} and the {second} have the same {ATTRIBUTES[attribute]}?"

    return Form("compare", f"same {ATTRIBUTES[attribute]} by {_name(signature)}", YES_NO, solve, say)


def _larger(config: SceneConfig, signature: Signature) -> Form:
    radii = np.array([*(SIZES[name] for name in config.sizes), 0.0])  # the last stands for -1

    def solve(facts: Facts) -> Solved:
        radius = radii[facts.values[:, :, SIZE]]
        answer = np.where(radius[:, :, None] > radius[:, None], 0, 1)
        return np.where(_pairs(facts, signature), answer, -1).reshape(len(answer), -1).astype(np.int8), _EVEN

    def say(facts: Facts, scene: int, slot: int) -> str:
        first, second = (facts.describe(scene, k, signature) for k in divmod(slot, facts.values.shape[1]))
        return f"is the {first} larger than the {second}?"

    return Form("compare", f"larger by {_name(signature)}", YES_NO, solve, say)


def _more(config: SceneConfig, attribute: int) -> Form:
    size = len(names(config, attribute))

    def solve(facts: Facts) -> Solved:
        counts = facts.tally((attribute,))[1]
        first, second = counts[:, :, None], counts[:, None]
        answer = np.where(first > second, 0, 1)
        answer = np.where(np.eye(size, dtype=bool), -1, answer)
        shown = ((first > 0).astype(np.float32) + (second > 0) + 0.2) ** 2
        return answer.reshape(len(counts), -1).astype(np.int8), shown.reshape(len(counts), -1)

    def say(_: Facts, __: int, slot: int) -> str:
        first, second = (words(config, (attribute,), (v,), many=True) for v in divmod(slot, size))
        return f"are there more {first} than {second}?"

    return Form("compare", f"more {ATTRIBUTES[attribute]}", YES_NO, solve, say)


def _where(signature: Signature) -> Form:
    def solve(facts: Facts) -> Solved:
        answer = np.where(facts.clear, 0, np.where(facts.clear[:, OPPOSITE], 1, -1))
        answer = np.where(_pairs(facts, signature)[:, None], answer, -1)
        return answer.reshape(len(answer), -1).astype(np.int8), _EVEN

    def say(facts: Facts, scene: int, slot: int) -> str:
        relation, first, second = np.unravel_index(slot, facts.clear.shape[1:])
        one, other = (facts.describe(scene, int(k), signature) for k in (first, second))
        return f"is the {one} {RELATIONS[relation]} the {other}?"

    return Form("spatial", f"where by {_name(signature)}", YES_NO, solve, say)


def _beside(facts: Facts, signature: Signature) -> np.ndarray:
    """``(N, R, K)`` bool: the signature tells object j, and it is clear of every other object whether it is there."""
    return facts.unique(signature)[:, None] & ~facts.vague.any(axis=2)


def _standing(config: SceneConfig, attribute: int, signature: Signature) -> Form:
    def solve(facts: Facts) -> Solved:
        alone = _beside(facts, signature) & (facts.clear.sum(axis=2) == 1)
        which = facts.clear.argmax(axis=2)  # (N, R, K): the object that stands there
        value = np.take_along_axis(facts.values[:, None, :, attribute], which, axis=2)
        return np.where(alone, value, -1).reshape(len(value), -1).astype(np.int8), _EVEN

    def say(facts: Facts, scene: int, slot: int) -> str:
        relation, thing = divmod(slot, facts.values.shape[1])
        other = facts.describe(scene, thing, signature)
        return f"what {ATTRIBUTES[attribute]} is the object {RELATIONS[relation]} the {other}?"

    return Form(
        "spatial", f"what {ATTRIBUTES[attribute]} beside {_name(signature)}", names(config, attribute), solve, say
    )


def _counted_beside(config: SceneConfig, signature: Signature) -> Form:
    def solve(facts: Facts) -> Solved:
        count = facts.clear.sum(axis=2)
        return np.where(_beside(facts, signature), count, -1).reshape(len(count), -1).astype(np.int8), _EVEN

    def say(facts: Facts, scene: int, slot: int) -> str:
        relation, thing = divmod(slot, facts.values.shape[1])
        return f"how many objects are {RELATIONS[relation]} the {facts.describe(scene, thing, signature)}?"

    answers = tuple(str(n) for n in range(config.most))
    return Form("spatial", f"how many beside {_name(signature)}", answers, solve, say)


def forms(config: SceneConfig) -> list[Form]:
    """Every form of question that a configuration allows."""
    told = set(telling(config))
    made: list[tuple[Signature, Form]] = []
    counted: tuple[Signature, ...] = (
        (),
        (COLOUR,),
        (SHAPE,),
        (SIZE,),
        (MATERIAL,),
        (COLOUR, SHAPE),
        (SIZE, SHAPE),
        (MATERIAL, COLOUR),
    )
    made += [(s, _counted(config, s)) for s in counted]
    exists: tuple[Signature, ...] = (
        (COLOUR,),
        (SHAPE,),
        (COLOUR, SHAPE),
        (SIZE, COLOUR),
        (MATERIAL, SHAPE),
        (SIZE, COLOUR, SHAPE),
    )
    made += [(s, _exists(config, s)) for s in exists]
    by_shape: tuple[Signature, ...] = ((SHAPE,), (SIZE, SHAPE), (MATERIAL, SHAPE), (SIZE, MATERIAL, SHAPE))
    by_colour: tuple[Signature, ...] = ((COLOUR,), (SIZE, COLOUR), (MATERIAL, COLOUR), (SIZE, MATERIAL, COLOUR))
    by_both: tuple[Signature, ...] = ((SHAPE,), (COLOUR,), (COLOUR, SHAPE))
    made += [((COLOUR, *s), _asked(config, COLOUR, s)) for s in by_shape]
    made += [((SHAPE, *s), _asked(config, SHAPE, s)) for s in by_colour]
    made += [((SIZE, *s), _asked(config, SIZE, s)) for s in (*by_both, (MATERIAL, SHAPE))]
    made += [((MATERIAL, *s), _asked(config, MATERIAL, s)) for s in (*by_both, (SIZE, SHAPE))]
    # Never a colour or a shape by one that is named: both are drawn together, so the words would give the answer away.
    made += [((COLOUR, *s), _same(COLOUR, s)) for s in by_shape[:3]]
    made += [((SHAPE, *s), _same(SHAPE, s)) for s in by_colour[:3]]
    made += [((a, *s), _same(a, s)) for a in (SIZE, MATERIAL) for s in by_both]
    made += [((SIZE, *s), _larger(config, s)) for s in by_both]
    made += [((a,), _more(config, a)) for a in (COLOUR, SHAPE, SIZE, MATERIAL)]
    made += [(s, _where(s)) for s in by_both]
    made += [((COLOUR, *s), _standing(config, COLOUR, s)) for s in by_shape[:2]]
    made += [((SHAPE, *s), _standing(config, SHAPE, s)) for s in by_colour[:2]]
    made += [(s, _counted_beside(config, s)) for s in by_both]
    return [form for needs, form in made if set(needs) <= told]
