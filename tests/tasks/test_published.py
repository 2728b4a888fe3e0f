"""Rows of published files become the arrays of the tasks; a broken picture is absent, never a black one."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyfuse.data.problems import Problems
from polyfuse.datasets.published import Row, read_published
from polyfuse.datasets.regions import PictureRegions
from polyfuse.tasks.batch import Collator, answer_vocabulary
from polyfuse.tasks.published import to_task_data
from polyfuse.tasks.words import WordTokenizer

from ..datasets import published_files as files

S = 7


def test_captions_are_rows_of_one_picture_and_one_identity(tmp_path: Path) -> None:
    data = to_task_data(read_published("coco_captions", files.coco(tmp_path)), side=S)
    assert data.name == "coco_captions"
    assert data.texts[:2] == ["Caption 1 of 9.", "Caption 0 of 9."]
    assert data.image_of.tolist() == [0, 0, -1, -1, 1, 1]  # the file of picture 25 is missing
    assert data.ids.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.part.tolist() == [0, 0, 0, 0, 1, 1]
    assert data.references is not None
    assert data.references[0] == data.references[1] == ("Caption 1 of 9.", "Caption 0 of 9.")
    assert data.images is not None
    assert (data.images.shape, data.images.dtype) == ((2, S, S, 3), np.uint8)
    assert abs(data.images.astype(int) - [200, 30, 30]).max() < 12
    assert data.answers is data.votes is data.boxes is data.kinds is None
    assert data.notes == ("picture: 1 x missing file (row 2: 'COCO_train2014_000000000025.jpg')",)


def test_vqa_becomes_votes_and_a_batch(tmp_path: Path) -> None:
    data = to_task_data(read_published("vqa_v2", files.vqa(tmp_path)), side=S)
    assert data.answers == ["net", "net", "net", ""]
    assert data.votes is not None
    assert data.votes[0] == {"net": 1.0, "netting": 0.3, "mesh": 0.3}
    assert data.votes[3] == {}
    assert data.image_of.tolist() == [0, 0, 1, 2]  # two questions about one picture
    assert data.ids.tolist() == [0, 1, 2, 3]
    assert data.kinds == ["other", "other", "other", ""]
    batch = Collator(data, WordTokenizer.train(data.texts, 40), answers=answer_vocabulary(data))(np.arange(4))
    assert batch.target["answer"][0].tolist() == pytest.approx([0.3, 1.0, 0.3])  # mesh, net, netting
    assert batch.target["answer"][3].sum() == 0


def test_phrases_with_boxes_that_stay_right_when_the_picture_is_squeezed(tmp_path: Path) -> None:
    (tmp_path / "refcoco").mkdir()
    (tmp_path / "refcoco" / "refs(unc).p").write_bytes(files.python_2_pickle(files.references()))
    files.dump(tmp_path / "refcoco" / "instances.json", files.instances())
    path = tmp_path / "train2014" / "COCO_train2014_000000581857.jpg"
    path.parent.mkdir()
    image = Image.new("RGB", (40, 20), (0, 0, 0))
    image.paste((255, 255, 255), (4, 2, 24, 12))  # the thing's box
    image.save(path, quality=100)
    data = to_task_data(read_published("refcoco", tmp_path), side=20)
    assert data.boxes is not None
    assert data.boxes.dtype == np.float32
    assert data.answers is None
    assert data.kinds == ["train", "train", "testA", "testB"]
    assert data.ids.tolist() == [0, 0, 1, 2]
    assert data.images is not None
    x0, y0, x1, y1 = np.round(data.boxes[0] * 20).astype(int)
    inside = np.zeros((20, 20), bool)
    inside[y0:y1, x0:x1] = True
    bright = data.images[0].mean(axis=2) > 127
    assert (bright == inside).mean() > 0.97


def test_classes_are_answers_or_votes(tmp_path: Path) -> None:
    memes = to_task_data(read_published("hateful_memes", files.hateful(tmp_path / "a" / "b")), side=S)
    assert memes.answers == ["not hateful", "hateful", "hateful", "not hateful", ""]
    assert memes.image_of.tolist() == [0, 1, 2, -1, 3]
    films = to_task_data(read_published("mm_imdb", files.mm_imdb(tmp_path / "c")), side=S)
    assert films.votes is not None
    assert films.votes[0] == {"Crime": 1.0, "Drama": 1.0}
    assert films.texts[-1] == ""
    things = to_task_data(read_published("coco_instances", files.coco(tmp_path / "d")), side=S)
    assert things.votes == [{"dog": 1.0, "person": 1.0}, {"dog": 1.0}, {"dog": 1.0, "person": 1.0}]
    assert things.boxes is None


def test_a_broken_picture_is_counted_once_and_absent(tmp_path: Path) -> None:
    good = files.picture(tmp_path / "good.png")
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:60])
    page = tmp_path / "page.jpg"
    page.write_text("<html>")
    large = files.picture(tmp_path / "large.png", (50, 50))
    rows = [
        Row("0", 0, bad, "b", ("x",)), Row("1", 0, good, "g", ("y",)), Row("2", 0, bad, "b", ("z",)),
        Row("3", 0, page, "p", ("w",)), Row("4", 0, large, "l", ("v",)), Row("5", 0, good.read_bytes(), "m", ("u",)),
    ]  # fmt: skip
    problems = Problems()
    data = to_task_data(rows, side=S, problems=problems, max_pixels=2000)
    assert data.image_of.tolist() == [-1, 0, -1, -1, -1, 1]
    assert data.images is not None
    assert len(data.images) == 2
    assert (data.images[0] == data.images[1]).all()
    assert sum(problems.counts.values()) == 3
    assert problems.counts["picture", "too many pixels"] == 1
    assert problems.counts["picture", "wrong type"] == 1
    assert len(data.notes) == 3


def found(name: str, count: int, classes: int | None = 5) -> PictureRegions:
    rng = np.random.default_rng(count)
    probabilities = None if classes is None else rng.random((count, classes)).astype(np.float32)
    return PictureRegions(name, rng.random((count, 3), np.float32), rng.random((count, 4), np.float32), probabilities)


def test_regions_are_joined_by_the_pictures_name(tmp_path: Path) -> None:
    rows = [Row(str(i), 0, None, f"p{i % 3}", (f"text {i}",)) for i in range(4)]
    held = [found("other", 2), found("p0", 2), found("p2", 7)]
    problems = Problems()
    data = to_task_data(rows, side=None, regions=held, most_regions=5, problems=problems)
    assert data.image_of.tolist() == [0, -1, 1, 0]
    assert data.images is None
    assert data.regions is not None
    assert data.regions.features.shape == (2, 5, 3)
    assert data.regions.mask.tolist() == [[True] * 2 + [False] * 3, [True] * 5]
    np.testing.assert_array_equal(data.regions.features[1], held[2].features[:5])
    np.testing.assert_array_equal(data.regions.classes[0, :2], held[1].classes)
    assert not data.regions.boxes[0, 2:].any()
    assert problems.counts == {("regions", "none for the picture"): 1}
    with pytest.raises(ValueError, match="one width"):
        to_task_data(rows, side=None, regions=[found("p0", 2), found("p1", 2, None)])
    named = to_task_data(rows, side=None, regions=[found("COCO_p1", 2)], region_id=lambda row: f"COCO_{row.image_id}")
    assert named.image_of.tolist() == [-1, 0, -1, -1]


def test_with_pixels_and_regions_a_picture_needs_both(tmp_path: Path) -> None:
    path = files.picture(tmp_path / "a.png")
    rows = [Row("0", 0, path, "p0", ("a",)), Row("1", 0, None, "p1", ("b",)), Row("2", 0, path.with_name("c"), "p2")]
    data = to_task_data(rows, side=S, regions=[found("p0", 2), found("p1", 2), found("p2", 2)])
    assert data.image_of.tolist() == [0, -1, -1]
    assert data.images is not None
    assert data.regions is not None
    assert len(data.images) == len(data.regions.features) == 1


def test_misuse(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'empty' must have rows, got none"):
        to_task_data([], side=S, name="empty")
    mixed = [Row("0", 0, texts=("a",), boxes=((0, 0, 1, 1),)), Row("1", 0, texts=("b",))]
    with pytest.raises(ValueError, match=r"one box each, or none, got \[0, 1\]"):
        to_task_data(mixed, side=S)
    assert len(to_task_data(iter([Row(str(i), 0) for i in range(9)]), side=S, limit=4)) == 4
