"""Questions with answers by program, drawn so that the words alone say nothing about the answer.

A scene allows some (form, answer) cells. One is drawn with weights that iterative proportional fitting has found on
scenes of the same configuration, such that over many scenes every answer of a form is equally frequent; then one of the
ways to fill the form with that answer. The draws of a scene depend on it alone.

Shapes: N scenes, C cells, J ways to fill a form, Q questions.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from polyfuse.data.scenes_config import SceneConfig
from polyfuse.data.scenes_draws import pick, uniform
from polyfuse.data.scenes_facts import Facts
from polyfuse.data.scenes_forms import KINDS, Form, Solved, forms
from polyfuse.data.scenes_layout import lay_out

_RARE = 0.015  # an answer that fewer scenes allow is not asked for: it could not be as frequent as the others
_SAMPLE, _ROUNDS, _CHUNK = 2000, 240, 1024


@dataclass(frozen=True)
class Questions:
    """Q questions, those of a scene together.

    ``form`` names the template with its kind of slots: ``what colour by size+shape``.
    """

    scene: np.ndarray  # (Q,) int64: the row of the scenes
    text: list[str]
    answer: list[str]
    kind: list[str]
    form: list[str]

    def __len__(self) -> int:
        return len(self.text)


@dataclass(frozen=True)
class _Kind:
    """The forms of one kind and the weight of each of their answers."""

    forms: tuple[Form, ...]
    form_of: np.ndarray  # (C,)
    answer_of: np.ndarray  # (C,)
    weights: np.ndarray  # (C,)


def _cells(made: Sequence[Form]) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(f, a) for f, form in enumerate(made) for a in range(len(form.answers))]
    form_of, answer_of = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return form_of, answer_of


def _feasible(solved: Sequence[Solved], made: Sequence[Form]) -> np.ndarray:
    """``(N, C)`` bool: some way to fill the form has that answer."""
    columns = [
        (answers == a).any(axis=1) for (answers, _), f in zip(solved, made, strict=True) for a in range(len(f.answers))
    ]
    return np.stack(columns, axis=1)


def _fit(feasible: np.ndarray, form_of: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Weights ``(C,)`` under which the answers of a form are equally frequent over the scenes.

    Where the scenes cannot give a rare answer as often as the form's share asks, the form is asked less. A form left
    with one answer is not asked: its words would be the answer.
    """
    often = feasible.mean(axis=0) >= _RARE
    answers = np.bincount(form_of[often], minlength=len(share))
    often &= answers[form_of] > 1
    weights = often.astype(np.float64)
    if not often.any():
        return weights
    share = share.astype(np.float64)
    for turn in range(_ROUNDS):
        wanted = np.where(often, share[form_of] / np.maximum(answers[form_of], 1), 0)
        wanted /= wanted.sum()
        drawn = feasible * weights
        got = (drawn / np.maximum(drawn.sum(axis=1, keepdims=True), 1e-300)).mean(axis=0)
        got /= got.sum()
        ratio = np.where(often, got / np.maximum(wanted, 1e-300), 1)
        weights = np.where(often, weights / np.maximum(ratio, 1e-9), 0)
        weights /= weights.max()
        if turn % 20 == 19:
            least = np.ones(len(share))
            np.minimum.at(least, form_of, ratio)
            share = np.where(least < 0.97, share * np.maximum(least, 0.5), share)
    return weights


@lru_cache(maxsize=64)
def _balanced(config: SceneConfig, novel: bool) -> dict[str, _Kind]:
    """The kinds of question of a configuration with their weights. Under a second, once per process."""
    split, index = "novel" if novel else "train", np.arange(_SAMPLE)
    facts = Facts.read(config, split, lay_out(config, -1, split, index))
    kinds = {}
    for kind in KINDS:
        made = tuple(form for form in forms(config) if form.kind == kind)
        if not made:
            continue
        form_of, answer_of = _cells(made)
        feasible = _feasible([form.solve(facts) for form in made], made)
        weights = _fit(feasible.astype(np.float64), form_of, np.array([form.share for form in made]))
        if weights.any():
            kinds[kind] = _Kind(made, form_of, answer_of, weights)
    return kinds


def _draw(kind: _Kind, solved: Sequence[Solved], rows: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, ...]:
    """Form, answer and slot for each of the rows; form -1 where the scene allows no question of this kind."""
    cell = pick(_feasible([(a[rows], w) for a, w in solved], kind.forms) * kind.weights, draws[:, 0])
    form, answer, slot = kind.form_of[cell], kind.answer_of[cell], np.zeros(len(rows), dtype=np.int64)
    form[cell < 0] = -1
    for number in np.unique(form[form >= 0]):
        of = form == number
        answers, weights = solved[number]
        weight = weights[rows[of]] if len(weights) == len(answers) else weights
        slot[of] = pick((answers[rows[of]] == answer[of, None]) * weight, draws[of, 1])
    return form, answer, slot


def ask(facts: Facts, keys: np.ndarray, stream: str, seed: int, per_scene: int, kinds: Iterable[str]) -> Questions:
    """Questions about scenes, the kinds of a scene in random order, no text twice in a scene.

    Where a scene allows no (further) question of a kind, the next kind is asked; where it allows none, there are fewer.

    Args:
        facts: What is true of the N scenes.
        keys: ``(N,)`` numbers of the scenes.
        stream: Which scenes these are: their seed and split.
        seed: Another seed asks otherwise.
        per_scene: How many.
        kinds: Of ``KINDS``.

    Raises:
        ValueError: If a kind is unknown, or the configuration allows no question of any.
    """
    kinds = tuple(dict.fromkeys(kinds))
    if not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds must be some of {', '.join(KINDS)}, got {kinds}")
    balanced = _balanced(facts.config, facts.novel)
    use = tuple(k for k in kinds if k in balanced)
    if not use:
        raise ValueError(f"these scenes allow no questions of the kinds {', '.join(kinds)}: nothing in them differs")
    found: list[tuple[int, int, str, str, str, str]] = []
    for start in range(0, len(keys), _CHUNK):
        part = slice(start, start + _CHUNK)
        piece = Facts(facts.config, facts.novel, facts.values[part], facts.clear[part])
        found += ((row[0] + start, *row[1:]) for row in _ask(piece, keys[part], stream, seed, per_scene, use, balanced))
    found.sort(key=lambda row: row[:2])
    scene, _, text, answer, kind, form = zip(*found, strict=True) if found else ((),) * 6
    return Questions(np.array(scene, dtype=np.int64), list(text), list(answer), list(kind), list(form))


def _ask(
    facts: Facts,
    keys: np.ndarray,
    stream: str,
    seed: int,
    per_scene: int,
    use: tuple[str, ...],
    balanced: dict[str, _Kind],
) -> list[tuple[int, int, str, str, str, str]]:
    solved = {name: [form.solve(facts) for form in balanced[name].forms] for name in use}
    order = np.argsort(uniform(seed, f"{stream}/questions", keys, len(use)), axis=1)
    asked: list[set[str]] = [set() for _ in keys]
    found = []
    for turn in range(per_scene):
        todo = np.arange(len(keys))
        for attempt in range(2 * len(use)):
            draws = uniform(seed, f"{stream}/questions/{turn}/{attempt}", keys[todo], 2)
            kind_of = order[todo, (turn + attempt // 2) % len(use)]
            done = np.zeros(len(todo), dtype=bool)
            for number, name in enumerate(use):
                at = np.flatnonzero(kind_of == number)
                if not len(at):
                    continue
                kind, rows = balanced[name], todo[at]
                for place, row, form, answer, slot in zip(
                    at, rows, *_draw(kind, solved[name], rows, draws[at]), strict=True
                ):
                    if form < 0:
                        continue
                    chosen = kind.forms[form]
                    text = chosen.say(facts, int(row), int(slot))
                    if text not in asked[row]:
                        asked[row].add(text)
                        found.append((int(row), turn, text, chosen.answers[answer], name, chosen.name))
                        done[place] = True
            todo = todo[~done]
            if not len(todo):
                break
    return found


def text_only_ceiling(train: Questions, test: Questions) -> dict[str, dict[str, float]]:
    """How often the words alone give the answer: what a model that never sees the picture can reach.

    Learnt on ``train``, counted on ``test``: ``text`` gives the most frequent answer to exactly this text (a text never
    met: that of its form), ``form`` the most frequent answer to its form, ``kind`` that of its kind.

    Returns:
        ``{"all" or a kind: {"text": share right, "form": ..., "kind": ..., "best": the largest, "questions": count}}``.

    Raises:
        ValueError: If either has no questions.
    """
    if not len(train) or not len(test):
        raise ValueError(f"needs questions to learn from and to count on, got {len(train)} and {len(test)}")
    overall = Counter(train.answer).most_common(1)[0][0]

    def learn(keys: Sequence[str]) -> dict[str, str]:
        seen: dict[str, Counter[str]] = defaultdict(Counter)
        for key, answer in zip(keys, train.answer, strict=True):
            seen[key][answer] += 1
        return {key: answers.most_common(1)[0][0] for key, answers in seen.items()}

    by_text, by_form, by_kind = learn(train.text), learn(train.form), learn(train.kind)
    right: dict[str, list[tuple[bool, bool, bool]]] = defaultdict(list)
    for text, answer, kind, form in zip(test.text, test.answer, test.kind, test.form, strict=True):
        plain = by_kind.get(kind, overall)
        shaped = by_form.get(form, plain)
        row = (by_text.get(text, shaped) == answer, shaped == answer, plain == answer)
        right["all"].append(row)
        right[kind].append(row)
    table = {}
    for name, rows in right.items():
        text_share, form_share, kind_share = np.mean(rows, axis=0).tolist()
        table[name] = {
            "text": text_share,
            "form": form_share,
            "kind": kind_share,
            "best": max(text_share, form_share, kind_share),
            "questions": float(len(rows)),
        }
    return table
