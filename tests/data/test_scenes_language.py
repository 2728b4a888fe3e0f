"""What is said about scenes is true: every text is parsed and checked by brute force against the attributes."""

import re
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from polyfuse.data.scenes import (
    SceneConfig,
    Scenes,
    combinations_held_out,
    make_scenes,
    scene_vocabulary,
    text_only_ceiling,
)
from polyfuse.data.scenes_config import COLOURS, MATERIALS, SHAPES, SIZES
from polyfuse.data.scenes_questions import KINDS, Questions

EVERYTHING = SceneConfig(
    shapes=SHAPES, colours=tuple(COLOURS), sizes=tuple(SIZES), materials=MATERIALS, least=1, most=5, overlap=0.3
)
POOR = SceneConfig(materials=("plain",), sizes=("large",), shapes=("circle", "ring", "moon"), held_out=0.0, least=1)
WORLDS = [("train", SceneConfig()), ("novel", SceneConfig()), ("test", EVERYTHING), ("train", POOR)]
Thing = dict[str, str]


def things(scenes: Scenes, n: int) -> list[Thing]:
    """The objects of a scene as words and places, straight from the arrays."""
    c = scenes.config
    return [
        {
            "size": c.sizes[scenes.size[n, k]],
            "material": c.materials[scenes.material[n, k]],
            "colour": c.colours[scenes.colour[n, k]],
            "shape": c.shapes[scenes.shape[n, k]],
            "number": str(k),
        }
        for k in range(scenes.count[n])
    ]


def singular(word: str) -> str:
    return {"crosses": "cross"}.get(word, word.removesuffix("s") if word != "cross" else word)


def fits(thing: Thing, description: str) -> bool:
    """Whether every word of a description is true of an object."""
    said = [singular(w) for w in description.split()]
    assert said
    assert said[-1] in {*SHAPES, "object"}
    return all(w == "object" or w in {thing[a] for a in ("size", "material", "colour", "shape")} for w in said)


def beyond(scenes: Scenes, n: int, one: Thing, relation: str, other: Thing) -> float:
    """How far ``one`` stands in the relation to ``other``, as a share of the side; negative on the opposite side."""
    axis, sign = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[relation]
    places = scenes.centres[n, :, axis]
    return sign * float(places[int(one["number"])] - places[int(other["number"])])


def the_one(scene: list[Thing], description: str) -> Thing:
    found = [t for t in scene if fits(t, description)]
    assert len(found) == 1, f"'{description}' fits {len(found)} objects"
    return found[0]


def answer(scenes: Scenes, n: int, text: str) -> str:
    """The answer to a question, from its text and the objects alone."""
    scene = things(scenes, n)
    rel = "(left of|right of|above|below)"

    def clear(relation: str, other: Thing) -> list[Thing]:
        away = {t["number"]: beyond(scenes, n, t, relation, other) for t in scene if t is not other}
        assert all(abs(d) >= 0.0799 for d in away.values()), "it must be clear of every object where it stands"
        return [t for t in scene if t is not other and away[t["number"]] > 0]

    if m := re.fullmatch(rf"how many objects are {rel} the (.+)\?", text):
        return str(len(clear(m[1], the_one(scene, m[2]))))
    if m := re.fullmatch(r"how many (.+) are there\?", text):
        return str(sum(fits(t, m[1]) for t in scene))
    if m := re.fullmatch(r"is there an? (.+)\?", text):
        return "yes" if any(fits(t, m[1]) for t in scene) else "no"
    if m := re.fullmatch(rf"what (\w+) is the object {rel} the (.+)\?", text):
        (found,) = clear(m[2], the_one(scene, m[3]))
        return found[m[1]]
    if m := re.fullmatch(r"what (\w+) is the (.+)\?", text):
        return the_one(scene, m[2])[m[1]]
    if m := re.fullmatch(r"do the (.+) and the (.+) have the same (\w+)\?", text):
        one, other = the_one(scene, m[1]), the_one(scene, m[2])
        assert one is not other
        return "yes" if one[m[3]] == other[m[3]] else "no"
    if m := re.fullmatch(r"is the (.+) larger than the (.+)\?", text):
        one, other = (SIZES[the_one(scene, d)["size"]] for d in m.groups())
        return "yes" if one > other else "no"
    if m := re.fullmatch(r"are there more (.+) than (.+)\?", text):
        one, other = (sum(fits(t, d) for t in scene) for d in m.groups())
        return "yes" if one > other else "no"
    m = re.fullmatch(rf"is the (.+) {rel} the (.+)\?", text)
    assert m, f"no form of question: {text}"
    away = beyond(scenes, n, the_one(scene, m[1]), m[2], the_one(scene, m[3]))
    assert abs(away) >= 0.0799
    return "yes" if away > 0 else "no"


def spoken(text: str) -> list[str]:
    return re.sub(r"([?.,])", r" \1 ", text).split()


@pytest.mark.parametrize(("split", "config"), WORLDS, ids=["default", "novel", "everything", "poor"])
def test_every_answer_is_what_the_text_asks(split: str, config: SceneConfig) -> None:
    scenes = make_scenes(211, seed=5, split=split, config=config)
    asked = scenes.questions(per_scene=7)
    wrong = [
        (text, given, true)
        for n, text, given in zip(asked.scene, asked.text, asked.answer, strict=True)
        if given != (true := answer(scenes, n, text))
    ]
    assert not wrong
    assert set(asked.kind) == set(KINDS)
    pairs = list(zip(asked.scene.tolist(), asked.text, strict=True))
    assert len(set(pairs)) == len(pairs) > 6 * 211 * (0.5 if config is POOR else 0.95)


@pytest.mark.parametrize(("split", "config"), WORLDS, ids=["default", "novel", "everything", "poor"])
def test_captions_name_every_object_and_a_relation_that_holds(split: str, config: SceneConfig) -> None:
    scenes = make_scenes(101, seed=7, split=split, config=config)
    texts = [(n, t) for n, several in enumerate(scenes.references()) for t in several] + list(
        enumerate(scenes.captions())
    )
    related = 0
    for n, text in texts:
        assert text.endswith(".")
        scene = things(scenes, n)
        told = [a for a in ("size", "material", "colour", "shape") if len(getattr(config, f"{a}s")) > 1]
        body = re.sub(r"^(there is|a picture of) ", "", text[:-1])
        body = re.sub(r"and there is also|, and |, with | and |, ", ", ", body.replace(", and there is also", ","))
        relations = re.findall(r"(an? [^,]+?) (?:is )?(left of|right of|above|below) (an? [^,]+)", body)
        named = re.findall(r"\ban? ((?:\w+ )*?(?:" + "|".join(SHAPES) + r"))\b", body)
        assert Counter(named) == Counter(" ".join(t[a] for a in told) for t in scene), text
        assert len(relations) <= 1
        for first, relation, second in relations:
            related += 1
            one, other = (d.split(" ", 1)[1] for d in (first, second))
            assert any(
                beyond(scenes, n, a, relation, b) >= 0.0799
                for a in scene for b in scene if a is not b and fits(a, one) and fits(b, other)
            ), text  # fmt: skip
    assert related > 0.6 * len(texts)
    assert all(2 <= len(r) == len(set(r)) <= 5 for r in scenes.references())


@pytest.mark.parametrize(("split", "config"), WORLDS, ids=["default", "novel", "everything", "poor"])
def test_phrases_fit_one_object(split: str, config: SceneConfig) -> None:
    scenes = make_scenes(151, seed=9, split=split, config=config)
    said = scenes.phrases(per_scene=3)
    for n, text, box, thing, kind in zip(said.scene, said.text, said.box, said.thing, said.kind, strict=True):
        scene = things(scenes, n)
        m = re.fullmatch(r"the (.+?)(?: (left of|right of|above|below) the (.+))?", text)
        assert m
        assert (m[2] is not None) == (kind == "relation")
        fit = [t for t in scene if fits(t, m[1])]
        if m[2]:
            other = the_one(scene, m[3])
            away = {t["number"]: beyond(scenes, n, t, m[2], other) for t in fit if t is not other}
            assert all(abs(d) >= 0.0799 for d in away.values())
            fit = [t for t in fit if t is not other and away[t["number"]] > 0]
        assert [int(t["number"]) for t in fit] == [thing], text
        np.testing.assert_array_equal(box, scenes.boxes[n, thing])
    assert set(said.kind) == {"attribute", "relation"}
    assert len(set(said.scene.tolist())) > 0.8 * len(scenes)


@pytest.mark.parametrize("config", [SceneConfig(), EVERYTHING, POOR], ids=["default", "everything", "poor"])
def test_the_vocabulary_is_closed_and_used(config: SceneConfig) -> None:
    scenes = make_scenes(400, config=config)
    asked = scenes.questions(per_scene=5)
    texts = [*scenes.captions(), *(t for r in scenes.references() for t in r), *asked.text, *asked.answer]
    used = {word for text in [*texts, *scenes.phrases().text] for word in spoken(text)}
    known = scene_vocabulary(config)
    assert list(known) == sorted(set(known))
    assert used <= set(known), used - set(known)
    if config == SceneConfig():
        assert len(set(known) - used) == 0, set(known) - used


def test_answers_of_a_form_are_balanced() -> None:
    asked = make_scenes(2000, seed=11).questions()
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for form, given in zip(asked.form, asked.answer, strict=True):
        seen[form][given] += 1
    assert len(seen) > 50
    for form, answers in seen.items():
        total, even = sum(answers.values()), 1 / len(answers)
        assert len(answers) > 1
        spread = 4.5 * np.sqrt(even * (1 - even) / total)  # of a fair draw
        assert max(answers.values()) / total < even + spread, (form, answers)


@pytest.mark.parametrize("split", ["test", "novel"])
def test_words_alone_say_little(split: str) -> None:
    train, test = make_scenes(2000).questions(), make_scenes(1000, split=split).questions()
    table = text_only_ceiling(train, test)
    assert set(table) == {"all", *KINDS}
    assert table["all"]["best"] < 0.40
    for kind in ("exist", "compare"):
        assert table[kind]["best"] < 0.57  # 800 questions: four standard errors above a half
    colours = [r for r, text in enumerate(test.text) if text.startswith("what colour")]
    columns = ([column[r] for r in colours] for column in (test.text, test.answer, test.kind, test.form))
    part = Questions(test.scene[colours], *columns)
    assert text_only_ceiling(train, part)["all"]["best"] < 0.20


def test_the_ceiling_sees_a_shortcut() -> None:
    """Texts that give their answer away are learnt; a text never met gets the answer of its form, or of its kind."""
    train = Questions(
        np.arange(5), ["a", "a", "b", "b", "c"], ["x", "x", "y", "y", "y"], ["k"] * 5, ["f", "f", "g", "g", "g"]
    )
    test = replace(
        train, text=["a", "b", "new", "b", "a"], answer=["x", "y", "x", "y", "x"], form=["f", "g", "f", "g", "new"]
    )
    table = text_only_ceiling(train, test)
    assert table["all"] == {"text": 1.0, "form": 0.8, "kind": 0.4, "best": 1.0, "questions": 5.0}
    with pytest.raises(ValueError, match="5 and 0"):
        text_only_ceiling(train, Questions(np.arange(0), [], [], [], []))


def test_both_words_are_needed_to_answer_no() -> None:
    """A "no" often names a colour and a shape that are there, on different objects."""
    scenes = make_scenes(700)
    asked = scenes.questions(kinds=("exist",), per_scene=3)
    half, rows = 0, 0
    for n, text, given, form in zip(asked.scene, asked.text, asked.answer, asked.form, strict=True):
        if form == "is there colour+shape" and given == "no":
            colour, shape = text[:-1].split()[-2:]
            scene = things(scenes, n)
            rows += 1
            half += any(t["colour"] == colour for t in scene) and any(t["shape"] == shape for t in scene)
    assert rows > 50
    assert half / rows > 0.2


def test_misuse_of_questions_is_refused() -> None:
    scenes = make_scenes(5)
    with pytest.raises(ValueError, match="riddle"):
        scenes.questions(kinds=("riddle",))
    same = SceneConfig(
        shapes=("ring",), colours=("red",), sizes=("large",), materials=("plain",), held_out=0.0, least=4
    )
    with pytest.raises(ValueError, match="nothing in them differs"):
        make_scenes(5, config=same).questions()


def test_training_never_asks_for_what_it_never_shows() -> None:
    """Of a held-out combination the answer in training would always be no; novel scenes ask, with both answers."""
    config = SceneConfig(held_out=0.3)
    pairs = combinations_held_out(config)

    def answers(split: str) -> set[str]:
        asked = make_scenes(300, split=split, config=config).questions(kinds=("exist", "count"), per_scene=2)
        return {a for t, a in zip(asked.text, asked.answer, strict=True) if any(f"{c} {s}" in t for c, s in pairs)}

    assert answers("train") == set()
    assert {"yes", "no", "0", "1"} <= answers("novel")
