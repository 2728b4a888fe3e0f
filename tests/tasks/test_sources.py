"""Sources of task data: rows fit their pictures, parts do not share what they must not, bad cells are counted."""

import csv
import json
import re
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polyfuse.data.scenes import SceneConfig, combinations_held_out, make_scenes
from polyfuse.datasets.easy_vqa import read_easy_vqa
from polyfuse.errors import UserError
from polyfuse.tasks.sources import SOURCES, load_source, source_arguments
from polyfuse.tasks.sources_pairs import asked_of

SCENES = {"train": 7, "validation": 3, "test": 5, "side": 32}


@pytest.mark.parametrize("name", ["scene_captions", "scene_questions", "scene_phrases", "scene_statements"])
def test_scenes_have_their_parts_and_every_row_its_own_picture(name: str) -> None:
    data = load_source(name, **SCENES, novel=2, per_scene=2)
    assert data.images is not None
    assert data.images.shape == (17, 32, 32, 3)
    assert [len(set(data.image_of[data.rows(part)])) for part in ("train", "validation", "test", "novel")] == [
        7,
        3,
        5,
        2,
    ]
    # Of a scene something else is said each time, nearly always.
    twice = [a == b for i, (a, b) in enumerate(pairwise(data.texts)) if data.image_of[i] == data.image_of[i + 1]]
    assert np.mean(twice) < 0.4
    for part, first, last in (("train", 0, 7), ("validation", 7, 10), ("test", 10, 15), ("novel", 15, 17)):
        assert set(data.image_of[data.rows(part)]) == set(range(first, last))


def test_the_same_world_gives_the_same_pictures_to_every_task() -> None:
    captions, phrases = (load_source(name, **SCENES, seed=3) for name in ("scene_captions", "scene_phrases"))
    assert np.array_equal(captions.images, phrases.images)
    assert not np.array_equal(captions.images, load_source("scene_captions", **SCENES, seed=4).images)


def test_only_the_novel_part_names_combinations_that_are_held_out() -> None:
    data = load_source("scene_captions", **{**SCENES, "train": 60}, novel=11)
    pairs = combinations_held_out(SceneConfig(side=32))

    def names(text: str) -> bool:
        words = text.replace(",", "").replace(".", "").split()
        return any((colour, shape) in pairwise(words) for colour, shape in pairs)

    assert all(names(data.texts[row]) for row in data.rows("novel"))
    assert not any(names(data.texts[row]) for row in range(len(data)) if data.part[row] < 3)


def test_ids_join_scenes_of_the_same_objects_and_references_belong_to_the_scene() -> None:
    world = {"colours": ["red", "blue"], "shapes": ["circle", "square"], "materials": ["plain"], "sizes": ["small"]}
    data = load_source("scene_captions", **{**SCENES, "train": 40}, **world, least=1, most=2, held_out=0.0)
    things = [
        tuple(sorted(word for word in text.replace(".", "").split() if word in ("red", "blue", "circle", "square")))
        for text in data.texts
    ]
    assert len(set(data.ids.tolist())) < len(data)
    for one in set(data.ids.tolist()):
        assert len({things[row] for row in np.flatnonzero(data.ids == one)}) == 1
    assert data.references is not None
    assert all(len(known) >= 2 for known in data.references)


def test_a_false_statement_differs_in_one_thing_that_is_not_so() -> None:
    data = load_source("scene_statements", **{**SCENES, "train": 211}, per_scene=2)
    scenes = make_scenes(211, config=SceneConfig(side=32))
    assert data.answers is not None
    assert data.kinds is not None
    assert set(data.kinds) == {"true", "relation", "colour", "shape", "size", "material"}
    rows = data.rows("train")
    assert 0.4 < np.mean([data.answers[row] == "entailment" for row in rows]) < 0.6
    sentences = [scenes.captions(seed=number) for number in (0, 1)]
    for row in rows:
        scene, text, kind = int(data.image_of[row]), data.texts[row], data.kinds[row]
        true = sentences[row % 2][scene]
        things = {scenes.facts.describe(scene, k, (0, 1, 2, 3)) for k in range(int(scenes.count[scene]))}
        changed = [
            (a, b)
            for a, b in zip(true.replace(" of", "").split(), text.replace(" of", "").split(), strict=True)
            if a != b
        ]
        assert (data.answers[row] == "entailment") == (kind == "true") == (not changed)
        if kind == "relation":
            assert changed[0] in [("left", "right"), ("right", "left"), ("above", "below"), ("below", "above")]
        if kind in ("colour", "shape", "size", "material"):
            assert len(changed) == 1
            words = text.replace(",", "").replace(".", "").split()
            place = next(i for i, (a, b) in enumerate(zip(true.split(), text.split(), strict=True)) if a != b)
            column = ("size", "material", "colour", "shape").index(kind)
            assert " ".join(words[place - column : place - column + 4]) not in things


def test_a_turned_relation_is_false_of_all_that_fits_the_words() -> None:
    # Few words for many objects: several fit a description.
    world: dict[str, Any] = {"side": 32, "colours": ("red", "blue"), "shapes": ("circle", "square"), "held_out": 0.0}
    world |= {"sizes": ("small",), "materials": ("plain",), "least": 3, "most": 4}
    data = load_source("scene_statements", train=150, validation=1, test=1, **world)
    scenes = make_scenes(150, config=SceneConfig(**world))
    assert data.kinds is not None
    seen = 0
    for row in data.rows("train"):
        if data.kinds[row] != "relation":
            continue
        seen += 1
        n, text = int(data.image_of[row]), data.texts[row]
        found = re.search(r"a (\w+ \w+) (?:is )?(left of|right of|above|below) a (\w+ \w+)", text)
        assert found is not None
        things = [scenes.facts.describe(n, k, (2, 3)) for k in range(int(scenes.count[n]))]
        axis, sign = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}[found[2]]
        for i, j in permutations(range(len(things)), 2):
            if (things[i], things[j]) == (found[1], found[3]):
                assert sign * (scenes.centres[n, i, axis] - scenes.centres[n, j, axis]) > 0
    assert seen > 9


def test_regions_come_beside_or_instead_of_pixels() -> None:
    both = load_source("scene_phrases", **SCENES, regions=True)
    assert both.images is not None
    assert both.regions is not None
    assert both.regions.features.shape[:2] == (15, 4)
    alone = load_source("scene_phrases", **SCENES, regions=True, pixels=False)
    assert alone.images is None
    # The box of a phrase is that of one of the picture's regions.
    boxes, found = alone.boxes, alone.regions
    assert boxes is not None
    assert found is not None
    for row, box in enumerate(boxes):
        assert np.abs(found.boxes[alone.image_of[row]] - box).max(axis=1).min() < 1e-6


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("scenes", {}, "unknown source 'scenes'"),
        ("scene_captions", {"trian": 3}, "no argument 'trian'; did you mean 'train'"),
        ("scene_captions", {"most": 99}, "most must lie between 1 and 12, got 99"),
        ("scene_captions", {"train": -1}, "train=-1"),
        ("scene_captions", {"pixels": False}, "pixels=true or regions=true"),
        ("scene_questions", {"kinds": ["why"], **SCENES}, "kinds must be some of"),
        ("table", {}, "needs the argument 'path'"),
        ("glyphs", {"side": 2}, "side must be 8 pixels or more, got 2"),
        ("coco_captions", {"folder": "/nowhere/at/all"}, "must be read from a folder"),
    ],
)
def test_mistakes_are_named(name: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_source(name, **args)


def test_every_source_tells_its_arguments() -> None:
    for name in SOURCES:
        assert source_arguments(name)
    assert source_arguments("table")["path"]
    assert "held_out" in source_arguments("scene_phrases")


def test_glyphs_never_cross_parts_and_questions_follow_the_names() -> None:
    data = load_source("glyphs", side=8)
    parts: dict[str, set[int]] = {}
    for text, part in zip(data.texts, data.part.tolist(), strict=True):
        parts.setdefault(text, set()).add(part)
    assert all(len(found) == 1 for found in parts.values())
    assert data.images is not None
    assert data.images.shape[1:] == (8, 8, 3)
    asked = load_source("glyph_questions", side=8)
    assert asked.answers is not None
    for row in range(0, len(asked), 997):
        name = data.texts[asked.image_of[row]]
        assert asked.answers[row] in name.split() or asked.answers[row] == "none"
    assert asked_of("latin small letter a with acute and dot above")[-1][0] == "script"
    assert [answer for _, _, answer in asked_of("greek capital letter omega")] == ["capital", "greek", "none"]


def easy_vqa_folder(folder: Path) -> Path:
    for name, count in (("train", 5), ("test", 3)):
        (folder / name / "images").mkdir(parents=True)
        rows = [
            [f"is there a {shape}?", answer, n]
            for n in range(count)
            for shape, answer in (("circle", "yes"), ("ring", "no"))
        ]
        (folder / name / "questions.json").write_text(json.dumps([*rows, ["what color is it?", "teal", 0]]))
        for n in range(count):
            Image.new("RGB", (64, 64), (n, 7, 9)).save(folder / name / "images" / f"{n}.png")
    return folder


def test_easy_vqa_keeps_its_test_part_and_questions_with_their_pictures(tmp_path: Path) -> None:
    found = read_easy_vqa(easy_vqa_folder(tmp_path), validation=2)
    assert found.images.shape == (8, 64, 64, 3)
    assert found.images[found.image_of[-1], 0, 0].tolist() == [0, 7, 9]
    assert found.kinds[-1] == "colour"
    held = {int(p) for p in found.image_of[found.part == 1]}
    assert len(held) == 2
    assert not held & {int(p) for p in found.image_of[found.part == 0]}
    assert {int(p) for p in found.image_of[found.part == 2]} == {5, 6, 7}


def test_easy_vqa_names_what_is_broken(tmp_path: Path) -> None:
    folder = easy_vqa_folder(tmp_path)
    with pytest.raises(UserError, match="validation must be 0 to 4"):
        read_easy_vqa(folder, validation=5)
    (folder / "test" / "images" / "1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1\.png"):
        read_easy_vqa(folder, validation=1)
    (folder / "train" / "questions.json").write_text('[["why", 3]]')
    with pytest.raises(UserError, match="must hold"):
        read_easy_vqa(folder, validation=1)


def written_table(folder: Path, rows: list[dict[str, object]], name: str = "rows.csv") -> str:
    with (folder / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(folder / name)


def test_a_table_counts_bad_pictures_and_keeps_the_other_rows(tmp_path: Path) -> None:
    for n in range(3):
        Image.new("RGB", (20, 10), (50 * n, 0, 0)).save(tmp_path / f"{n}.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    rows = [
        {"image": "0.png", "text": "dark", "label": "a", "split": "train"},
        {"image": "0.png", "text": "black", "label": "a", "split": "train"},
        {"image": "cut.png", "text": "half", "label": "b", "split": "train"},
        {"image": "gone.png", "text": "", "label": "b", "split": "test"},
        {"image": "../../etc/passwd", "text": "away", "label": "none", "split": "test"},
        {"image": "2.png", "text": "red", "label": "", "split": "test"},
        {"image": "2.png", "text": "red", "label": "a", "split": "dev"},
    ]
    data = load_source("table", path=written_table(tmp_path, rows), side=8)
    assert data.texts == ["dark", "black", "half", "away", "red"]
    assert data.answers == ["a", "a", "b", "none", "a"]  # "none" is an answer, not an empty cell
    assert data.image_of.tolist() == [0, 0, -1, -1, 1]
    assert data.part.tolist() == [0, 0, 0, 2, 1]
    assert data.ids[0] == data.ids[1] != data.ids[2]
    assert data.references is not None
    assert data.references[0] == ("dark", "black")
    told = "\n".join(data.notes)
    for part in ("1 x truncated (row 3: 'cut.png'", "1 x missing file (row 4: 'gone.png'", "outside the folder (row 5"):
        assert part in told or part.replace("truncated", "undecodable") in told, told
    assert "1 x neither picture nor text (row 4)" in told
    assert "1 x no usable answer (row 6)" in told


def test_a_table_of_values_and_boxes(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "p.png")
    rows = [
        {"pic": "p.png", "text": f"row {n}", "value": "x" if n == 3 else n / 2, "l": 0.1, "t": 0.1, "r": 0.4, "b": 0.5}
        for n in range(9)
    ]
    rows[5]["r"] = 0.05  # ends before it begins
    data = load_source("table", path=written_table(tmp_path, rows), image="pic", side=8, box=["l", "t", "r", "b"])
    assert data.values is not None
    assert data.boxes is not None
    assert data.values.tolist() == [0.0, 0.5, 1.0, 2.0, 3.0, 3.5, 4.0]
    assert data.boxes[0].tolist() == pytest.approx([0.1, 0.1, 0.4, 0.5])
    assert len(set(data.part.tolist())) == 1  # one picture, one part
    assert any("value: 1 x not a number (row 4: 'x')" in note for note in data.notes)
    assert any(
        "no usable box (0 <= x0 < x1 <= 1 and so for y: shares of width and height) (row 6)" in note
        for note in data.notes
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"image": "photo"}, "has no column 'photo'.* its columns: 'text', 'label'"),
        ({"box": ["a", "b"]}, r"data.args.box must name four columns, .* got \['a', 'b'\]"),
        ({"box": 4}, "data.args.box must name four columns, .* got 4"),
        ({"ratios": [0.5, 0.5]}, r"data.args.ratios must be three shares .* got \[0.5, 0.5\]"),
        ({"ratios": [0.5, 0.5, "x"]}, "data.args.ratios must be three shares"),
        ({"ratios": [0.9, 0.5, 0.1]}, "data.args.ratios must be three shares"),
        ({"ratios": 0.7}, "data.args.ratios must be three shares .* got 0.7"),
        ({"split": "label"}, "or test, got 'b'; mend its cells or remove data.args.split"),
    ],
)
def test_a_table_without_the_named_columns(tmp_path: Path, args: dict[str, object], message: str) -> None:
    path = written_table(tmp_path, [{"text": "a", "label": "b"}])
    with pytest.raises(UserError, match=message):
        load_source("table", path=path, **args)
    with pytest.raises(UserError, match=r"name yours: data.args.image=COLUMN or .*; its columns: 'label'"):
        load_source("table", path=written_table(tmp_path, [{"label": "b"}], "two.csv"))
    with pytest.raises(UserError, match="got 'later'; mend its cells or rename the column"):
        load_source("table", path=written_table(tmp_path, [{"text": "b", "split": "later"}], "three.csv"))
