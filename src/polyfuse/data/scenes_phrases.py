"""Phrases that point at exactly one object: by its own words, or by where it stands to another.

Shapes: N scenes, K objects at most, R = 4 relations, Q phrases.
"""

from dataclasses import dataclass

import numpy as np

from polyfuse.data.scenes_draws import pick, uniform
from polyfuse.data.scenes_facts import COLOUR, OPPOSITE, RELATIONS, SHAPE, SIZE, Facts, Signature, signatures, telling

KINDS = ("attribute", "relation")
WORDS = ("the", "object", "left", "right", "of", "above", "below")
_CHUNK, _ATTEMPTS = 512, 6


@dataclass(frozen=True)
class Phrases:
    """Q phrases, those of a scene together."""

    scene: np.ndarray  # (Q,) int64: the row of the scenes
    text: list[str]
    box: np.ndarray  # (Q, 4) float32
    thing: np.ndarray  # (Q,) int64: which object of the scene
    kind: list[str]  # "attribute" or "relation"

    def __len__(self) -> int:
        return len(self.text)


def _related(facts: Facts, told: Signature, other: Signature) -> np.ndarray:
    """``(N, R, K, K)`` weights: object i, by ``told``, in a relation to object j, by ``other``, and nothing else fits.

    Every further object that fits the words of i must clearly stand on the opposite side of j.
    """
    match, eye = facts.match(told), np.eye(facts.values.shape[1], dtype=bool)
    rival = (match & ~eye)[:, None, :, :, None] & ~eye[None, None, None]  # (N, 1, i, rival, j)
    open_ = (rival & ~facts.clear[:, OPPOSITE][:, :, None]).any(axis=3)  # (N, R, i, j)
    fits = facts.clear & facts.unique(other)[:, None, None] & ~open_
    # Where the words of i alone would do, the relation is not needed to find it.
    return fits * np.where(facts.unique(told), 1.0, 4.0)[:, None, :, None]


def _options(facts: Facts) -> list[tuple[str, Signature, Signature | None, np.ndarray]]:
    """Every form of phrase: its kind, what is said of the object and of the other, and weights ``(N, J)``."""
    rows, known = len(facts.values), set(telling(facts.config))
    own = [(KINDS[0], s, None, facts.unique(s) / len(s)) for s in signatures(facts.config)]
    made: list[tuple[str, Signature, Signature | None, np.ndarray]] = [*own]
    for told in ((), (SHAPE,), (COLOUR,), (SIZE,), (COLOUR, SHAPE)):
        for other in ((SHAPE,), (COLOUR,), (SIZE, SHAPE), (COLOUR, SHAPE)):
            if {*told, *other} <= known:
                made.append((KINDS[1], told, other, _related(facts, told, other).reshape(rows, -1)))
    return made


def point(facts: Facts, boxes: np.ndarray, keys: np.ndarray, stream: str, seed: int, per_scene: int) -> Phrases:
    """Phrases about scenes, both kinds by turns, no text twice in a scene.

    Where nothing (further) can be said without doubt, as of two objects that are alike, there are fewer.
    """
    found: list[tuple[int, int, str, int, str]] = []
    for start in range(0, len(keys), _CHUNK):
        part = slice(start, start + _CHUNK)
        piece = Facts(facts.config, facts.novel, facts.values[part], facts.clear[part])
        found += ((row[0] + start, *row[1:]) for row in _point(piece, keys[part], stream, seed, per_scene))
    found.sort(key=lambda row: row[:2])
    scene, _, text, thing, kind = zip(*found, strict=True) if found else ((),) * 5
    scenes, things = np.array(scene, dtype=np.int64), np.array(thing, dtype=np.int64)
    return Phrases(scenes, list(text), boxes[scenes, things], things, list(kind))


def _point(
    facts: Facts, keys: np.ndarray, stream: str, seed: int, per_scene: int
) -> list[tuple[int, int, str, int, str]]:
    objects, options = facts.values.shape[1], _options(facts)
    form_of = np.concatenate([np.full(w.shape[1], number) for number, (*_, w) in enumerate(options)])
    slot_of = np.concatenate([np.arange(w.shape[1]) for *_, w in options])
    weights = np.concatenate([w for *_, w in options], axis=1)
    related = np.array([kind == KINDS[1] for kind, *_ in options])[form_of]
    first = uniform(seed, f"{stream}/phrases", keys, 1)[:, 0] < 0.5  # which kind begins
    said: list[set[str]] = [set() for _ in keys]
    found = []
    for turn in range(per_scene):
        todo = np.arange(len(keys))
        for attempt in range(_ATTEMPTS):
            draws = uniform(seed, f"{stream}/phrases/{turn}/{attempt}", keys[todo], 1)[:, 0]
            wanted = first[todo] ^ bool((turn + attempt // 3) % 2)
            chosen = pick(weights[todo] * (related == wanted[:, None]), draws)
            done = np.zeros(len(todo), dtype=bool)
            for place, (row, column) in enumerate(zip(todo.tolist(), chosen.tolist(), strict=True)):
                if column < 0:
                    continue
                kind, told, other, _ = options[form_of[column]]
                slot = int(slot_of[column])
                relation, thing, second = slot // objects**2, slot // objects % objects, slot % objects
                if other is None:
                    thing = slot
                text = f"the {facts.describe(row, thing, told)}"
                if other is not None:
                    text += f" {RELATIONS[relation]} the {facts.describe(row, second, other)}"
                if text not in said[row]:
                    said[row].add(text)
                    found.append((row, turn, text, thing, kind))
                    done[place] = True
            todo = todo[~done]
            if not len(todo):
                break
    return found
