"""Sentences about scenes: every object with all its words, and one spatial relation that is clear.

"a small plain red circle is left of a large striped blue star, and there is also a large plain green ring."
"""

import numpy as np

from polyfuse.data.scenes_draws import pick, uniform
from polyfuse.data.scenes_facts import RELATIONS, Facts, telling

WORDINGS = 3
REFERENCES = 5
WORDS = ("a", "an", "is", "there", "also", "and", "with", "picture", "of", "left", "right", "above", "below", ",", ".")


def _listed(things: list[str]) -> str:
    return things[0] if len(things) == 1 else f"{', '.join(things[:-1])} and {things[-1]}"


def _article(thing: str) -> str:
    return f"{'an' if thing[0] in 'aeio' else 'a'} {thing}"


def _sentence(wording: int, things: list[str], relation: str | None) -> str:
    """Things in the order they are named; the relation, if any, holds between the first two."""
    if relation is None:
        return f"{'there is' if wording else 'a picture of'} {_listed(things)}."
    (first, second), rest = things[:2], things[2:]
    if wording == 0:
        return f"{first} is {relation} {second}" + (f", and there is also {_listed(rest)}." if rest else ".")
    if wording == 1:
        return (
            f"there is {_listed(rest)}, and {first} is {relation} {second}."
            if rest
            else (f"there is {first} {relation} {second}.")
        )
    return f"a picture of {first} {relation} {second}" + (f", with {_listed(rest)}." if rest else ".")


def sentences(facts: Facts, keys: np.ndarray, seed: int, stream: str, wording: int | None = None) -> list[str]:
    """One sentence per scene.

    Args:
        facts: What is true.
        keys: ``(N,)`` numbers of the scenes.
        seed: Another seed words and orders otherwise.
        stream: What the draws are for.
        wording: 0 to 2; None draws one.
    """
    draws = uniform(seed, stream, keys, 2 + facts.values.shape[1])
    chosen = pick(facts.clear.reshape(len(keys), -1), draws[:, 0])
    relations, first, second = np.unravel_index(np.maximum(chosen, 0), facts.clear.shape[1:])
    wordings = (draws[:, 1] * WORDINGS).astype(int) if wording is None else np.full(len(keys), wording)
    ranks, told, texts = np.argsort(draws[:, 2:], axis=1), telling(facts.config), []
    for n in range(len(keys)):
        order = [int(k) for k in ranks[n] if facts.present[n, k]]
        if chosen[n] >= 0:
            pair = [int(first[n]), int(second[n])]
            order = pair + [k for k in order if k not in pair]
        things = [_article(facts.describe(n, k, told)) for k in order]
        texts.append(_sentence(int(wordings[n]), things, RELATIONS[relations[n]] if chosen[n] >= 0 else None))
    return texts


def several(facts: Facts, keys: np.ndarray, stream: str) -> list[tuple[str, ...]]:
    """Up to ``REFERENCES`` different sentences per scene, over all wordings; at least two."""
    columns = [sentences(facts, keys, r, f"{stream}/references", r % WORDINGS) for r in range(REFERENCES)]
    return [tuple(dict.fromkeys(row)) for row in zip(*columns, strict=True)]
