"""Rows of tiny copies of the published files, field by field; what is missing or broken is counted and named."""

import csv
import gc
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest

from polyfuse.datasets.annotations import locate, read_document, share_box
from polyfuse.datasets.mm_imdb import GENRES
from polyfuse.datasets.published import PUBLISHED, PublishedRows, Row, prepared_home, read_published
from polyfuse.errors import UserError
from polyfuse.evaluate.vqa import vqa_accuracy

from . import published_files as files


def rows_of(name: str, folder: Path, **options: object) -> tuple[list[Row], PublishedRows]:
    source = read_published(name, folder, **options)
    rows = list(source)
    assert list(source) == rows  # a second pass is the same, and starts counting anew
    return rows, source


def kinds(source: PublishedRows) -> dict[tuple[str, str], int]:
    return source.problems.counts


@pytest.mark.parametrize("year", [2014, 2017])
def test_coco_captions(tmp_path: Path, year: int) -> None:
    folder = files.coco(tmp_path, year)
    rows, source = rows_of("coco_captions", folder)
    assert [(row.id, row.part, row.image_id) for row in rows] == [("9", 0, "9"), ("25", 0, "25"), ("42", 1, "42")]
    assert rows[0].texts == ("Caption 1 of 9.", "Caption 0 of 9.")
    assert rows[0].image == (folder / f"train{year}" / files.coco_image(9, f"train{year}")["file_name"]).resolve()
    assert rows[1].image is None
    assert kinds(source) == {("picture", "missing file"): 1}
    assert "000000000025.jpg" in source.problems.lines()[0]


def test_coco_captions_that_are_broken(tmp_path: Path) -> None:
    folder = files.coco(tmp_path)
    path = folder / "annotations" / "captions_val2014.json"
    document = json.loads(path.read_text())
    document["annotations"] += [
        {"image_id": 77, "id": 1, "caption": "of nothing"}, {"image_id": "42", "caption": "x"},
        {"image_id": 42, "caption": " "}, {"image_id": 42, "caption": None}, "word",
    ]  # fmt: skip
    document["images"] += [document["images"][0], {"id": 43}, {"id": True, "file_name": "a"}]
    files.dump(path, document)
    rows, source = rows_of("coco_captions", folder)
    assert [row.id for row in rows] == ["9", "25", "42"]
    assert kinds(source) == {
        ("picture", "missing file"): 1, ("annotations", "unknown picture"): 1, ("annotations", "empty caption"): 1,
        ("annotations", "no usable 'image_id'"): 1, ("annotations", "no usable 'caption'"): 1,
        ("annotations", "not an object"): 1, ("images", "comes twice"): 1, ("images", "no usable 'file_name'"): 1,
        ("images", "no usable 'id'"): 1,
    }  # fmt: skip


def test_coco_instances(tmp_path: Path) -> None:
    folder = files.coco(tmp_path)
    rows, source = rows_of("coco_instances", folder)
    assert rows[0].boxes == ((0.25, 0.25, 0.75, 0.75), (0.75, 0.25, 1.0, 0.75))  # the second is cut at the edge
    assert rows[0].labels == ("dog", "person")
    assert rows[1].labels == ("dog",)
    assert kinds(source)["annotations", "crowd, left out"] == 2
    assert kinds(source)["annotations", "no box"] == 2
    with_crowds, _ = rows_of("coco_instances", folder, crowds=True)
    assert with_crowds[0].boxes[1] == (0.0, 0.0, 1.0, 1.0)


def test_outlines_are_dropped_while_a_file_is_parsed_and_the_collector_is_left_as_it_was(tmp_path: Path) -> None:
    path = files.coco(tmp_path) / "annotations" / "instances_train2014.json"
    lean = read_document(path, "annotations", unused="segmentation")
    whole = read_document(path, "annotations")
    assert all("segmentation" in entry for entry in whole["annotations"])
    for entry in whole["annotations"]:
        del entry["segmentation"]
    assert lean == whole
    for on in (gc.disable, gc.enable):
        on()
        before = gc.isenabled()
        read_document(path)
        (tmp_path / "none.json").write_text("{")
        with pytest.raises(UserError, match="no whole JSON"):
            read_document(tmp_path / "none.json")
        assert gc.isenabled() == before


def test_pictures_of_2014_are_found_among_those_of_2017(tmp_path: Path) -> None:
    names = ["COCO_val2014_000000000042.jpg", "COCO_train2014_000000000009.jpg", "COCO_test2014_000000000001.jpg"]
    files.karpathy(tmp_path / "dataset_coco.json", "coco", [(n, "test", {"filepath": n[5:-17]}) for n in names])
    for place in ("train2017/000000000042.jpg", "val2017/000000000009.jpg", "val2017/000000000001.jpg"):
        files.picture(tmp_path / "images" / place)  # in other parts than in 2014; test pictures are others
    rows, source = rows_of("coco_karpathy", tmp_path)
    assert [row.image and row.image.relative_to(tmp_path.resolve()).as_posix() for row in rows] == [
        "images/train2017/000000000042.jpg", "images/val2017/000000000009.jpg", None,
    ]  # fmt: skip
    assert kinds(source) == {("picture", "missing file"): 1}
    own = files.picture(tmp_path / "val2014" / names[0])
    assert next(iter(read_published("coco_karpathy", tmp_path))).image == own.resolve()


def test_coco_needs_one_year_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"coco_captions' must have 'captions_train2014.json' or .* found none"):
        list(read_published("coco_captions", tmp_path))
    files.coco(tmp_path, 2014)
    files.coco(tmp_path, 2017)
    with pytest.raises(UserError, match="2014 and 2017, and pictures of both; say which with year="):
        list(read_published("coco_captions", tmp_path))
    assert len(list(read_published("coco_captions", tmp_path, year=2017))) == 3
    with pytest.raises(UserError, match=r"year must be one of .* got 2015"):
        list(read_published("coco_captions", tmp_path, year=2015))
    for split in ("train2014", "val2014"):
        (tmp_path / split).rename(tmp_path / f"away_{split}")
    rows, _ = rows_of("coco_captions", tmp_path)  # all annotations, the pictures of one year
    assert rows == list(read_published("coco_captions", tmp_path, year=2017))
    (tmp_path / "train2017").rename(tmp_path / "away")
    (tmp_path / "val2017").rename(tmp_path / "away_too")
    with pytest.raises(UserError, match="pictures of neither"):
        list(read_published("coco_captions", tmp_path))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("<!DOCTYPE html><html>", "is a web page"),
        ('{"images": [], "annotations": [', "no whole JSON file"),
        ("[]", "must hold a JSON object, got list"),
        ('{"images": {}}', "must hold a list 'images'"),
        ("[" * 100_000, "no whole JSON file"),
    ],
)
def test_an_annotation_file_that_is_none_is_an_error(tmp_path: Path, content: str, named: str) -> None:
    (tmp_path / "captions_val2014.json").write_text(content)
    with pytest.raises(UserError, match=f"captions_val2014.json' .*{named}"):
        list(read_published("coco_captions", tmp_path))


def test_karpathys_split_of_coco(tmp_path: Path) -> None:
    entries = [
        ("COCO_val2014_000000000042.jpg", "test", {"filepath": "val2014", "cocoid": 42}),
        ("COCO_train2014_000000000009.jpg", "restval", {"filepath": "train2014", "cocoid": 9}),
        ("x.jpg", "holdout", {"filepath": "val2014", "cocoid": 7}),
    ]
    files.karpathy(tmp_path / "dataset_coco.json", "coco", entries)
    files.coco(tmp_path)
    rows, source = rows_of("coco_karpathy", tmp_path)
    assert [(row.id, row.part, row.texts) for row in rows] == [
        ("42", 2, ("A dog 0.", "A dog 1.")),
        ("9", 0, ("A dog 0.", "A dog 1.")),
    ]
    assert all(isinstance(row.image, Path) and row.image.is_file() for row in rows)
    assert kinds(source) == {("images", "unknown split"): 1}


def test_flickr30k_as_tokens(tmp_path: Path) -> None:
    folder = files.flickr(tmp_path)
    rows, source = rows_of("flickr30k", folder)
    assert [(row.id, row.part, len(row.texts)) for row in rows] == [
        ("1000092795", 0, 2), ("10002456", 1, 1), ("1000268201", 2, 1),
    ]  # fmt: skip
    assert rows[0].texts[1] == "Two young , White males are outside near many bushes ."
    assert kinds(source) == {("picture", "missing file"): 1}
    with (folder / "results_20130124.token").open("ab") as file:
        file.write(b"1000092795.jpg#4\tAgain .\nno tab\n5.jpg#0\t\xff\n6.jpg#0\tIn no list .\n7.jpg\tNo number .\n")
    again, source = rows_of("flickr30k", folder)
    assert again == rows
    assert kinds(source) == {
        ("picture", "missing file"): 1, ("row", "comes twice"): 1, ("text", "no caption line"): 2,
        ("text", "not UTF-8"): 1, ("split", "in no list, left out"): 1,
    }  # fmt: skip
    for name in ("train", "val", "test"):
        (folder / f"{name}.txt").unlink()
    unsplit, source = rows_of("flickr30k", folder)
    assert {row.part for row in unsplit} == {0}
    assert any("every row is a training row" in kind for _, kind in kinds(source))


def test_flickr30k_as_kaggle_has_it(tmp_path: Path) -> None:
    inner = files.flickr(tmp_path / "a") / "flickr30k-images"
    folder = tmp_path / "b" / "flickr30k_images"
    folder.mkdir(parents=True)
    inner.rename(folder / "flickr30k_images")
    lines = [line.replace("#", "| ").replace("\t", "| ") for line in files.TOKENS.splitlines()]
    head = "image_name| comment_number| comment"
    broken = "2199200615.jpg| 4   A dog runs across the grass ."
    (folder / "results.csv").write_text("\n".join([head, *lines, broken]) + "\n")
    rows, source = rows_of("flickr30k", tmp_path / "b")
    assert [(row.id, len(row.texts)) for row in rows] == [("1000092795", 2), ("10002456", 1), ("1000268201", 1)]
    assert rows[0].texts[0] == "Two young guys with shaggy hair look at their hands ."
    assert rows[0].image is not None
    assert kinds(source)["text", "no caption line"] == 1
    assert "row 6: '2199200615.jpg" in source.problems.named["text", "no caption line"][0]


def test_flickr30k_as_hugging_face_has_it(tmp_path: Path) -> None:
    folder = files.flickr(tmp_path)
    (folder / "results_20130124.token").unlink()
    lines = [
        ["raw", "sentids", "split", "filename", "img_id"],
        ['["Two young guys, \\"shaggy\\" .", "Two  men ."]', "[0, 1]", "train", "1000092795.jpg", "0"],
        ['["Several men .", ""]', "[5, 6]", "test", "10002456.jpg", "1"],
        ["[1", "[]", "val", "1000268201.jpg", "2"],
        ["[]", "[]", "val", "1000268201.jpg", "3"],
        ["[]", "[]", "dev", "5.jpg", "4"],
    ]
    with (folder / "flickr_annotations_30k.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    rows, source = rows_of("flickr30k", folder)
    assert [(row.id, row.part, row.texts) for row in rows] == [
        ("1000092795", 0, ('Two young guys, "shaggy" .', "Two men .")),
        ("10002456", 2, ("Several men .",)),
        ("1000268201", 1, ()),
    ]
    assert rows[0].image is not None
    assert kinds(source) == {
        ("text", "empty caption"): 1, ("text", "no list of captions"): 1, ("row", "comes twice"): 1,
        ("row", "no file name or unknown split"): 1, ("picture", "missing file"): 1,
    }  # fmt: skip


def test_flickr30k_in_karpathys_split(tmp_path: Path) -> None:
    files.flickr(tmp_path)
    files.karpathy(
        tmp_path / "dataset_flickr30k.json",
        "flickr30k",
        [("1000092795.jpg", "train", {}), ("10002456.jpg", "test", {})],
    )
    rows, source = rows_of("flickr30k", tmp_path)
    assert [(row.id, row.part) for row in rows] == [("1000092795", 0), ("10002456", 2)]
    assert not source.problems


def test_vqa_v2(tmp_path: Path) -> None:
    rows, source = rows_of("vqa_v2", files.vqa(tmp_path))
    assert [(row.id, row.part) for row in rows] == [
        ("458752000", 0), ("458752001", 0), ("262148000", 1), ("262144000", 2),
    ]  # fmt: skip
    first = rows[0]
    assert (first.texts, first.answers) == (("What is this 458752000?",), tuple(files.ANSWERS))
    assert (first.labels, first.kind, first.image_id) == (("net",), "other", "458752")
    assert first.image is not None
    assert (rows[3].answers, rows[3].labels) == ((), ())
    assert not source.problems


def test_vqa_v2_with_answers_missing(tmp_path: Path) -> None:
    path = files.vqa(tmp_path) / "v2_mscoco_train2014_annotations.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["answers"].pop()
    document["annotations"][1]["question_id"] = 5
    files.dump(path, document)
    (tmp_path / "v2_mscoco_val2014_annotations.json").unlink()
    rows, source = rows_of("vqa_v2", tmp_path)
    assert [len(row.answers) for row in rows] == [9, 0, 0, 0]
    assert kinds(source) == {
        ("answer", "not 10 answers"): 1, ("answer", "not answered"): 2, ("answer", "unknown question"): 1,
        ("answer", "no v2_mscoco_val2014_annotations.json"): 1,
    }  # fmt: skip


def test_an_empty_answer_is_one_of_the_ten(tmp_path: Path) -> None:
    path = files.vqa(tmp_path) / "v2_mscoco_train2014_annotations.json"
    document = json.loads(path.read_text())
    for entry, text in zip(document["annotations"][0]["answers"], ["net"] * 3 + [""] * 7, strict=True):
        entry["answer"] = text
    document["annotations"][1]["answers"][4] = {"answer_id": 5}
    files.dump(path, document)
    rows, source = rows_of("vqa_v2", tmp_path)
    assert rows[0].answers == ("net",) * 3 + ("",) * 7
    assert vqa_accuracy("net", rows[0].answers) == pytest.approx(0.9)  # of ten; of three it would be 1
    assert kinds(source) == {("answer", "not 10 answers"): 1}


@pytest.mark.parametrize(
    ("name", "sub", "by"),
    [("refcoco", "refcoco", "unc"), ("refcoco_plus", "refcoco+", "unc"), ("refcocog", "refcocog", "umd")],
)
def test_refcoco(tmp_path: Path, name: str, sub: str, by: str) -> None:
    (tmp_path / "data" / sub).mkdir(parents=True)
    (tmp_path / "data" / sub / f"refs({by}).p").write_bytes(files.python_2_pickle(files.references()))
    files.dump(tmp_path / "data" / sub / "instances.json", files.instances())
    files.picture(tmp_path / "train2014" / "COCO_train2014_000000581857.jpg")
    rows, source = rows_of(name, tmp_path)
    assert [(row.id, row.part, row.kind, row.group, row.texts) for row in rows] == [
        ("0", 0, "train", "0", ("navy blue shirt",)),
        ("1", 0, "train", "0", ("woman back in blue",)),
        ("10", 2, "testA", "1", ("café sign",)),
        ("20", 2, "testB", "2", ("left one",)),
    ]
    assert rows[0].boxes == (pytest.approx((0.1, 0.1, 0.6, 0.6)),)
    assert (rows[0].labels, rows[0].image_id) == (("person",), "581857")
    assert rows[0].image is not None
    assert kinds(source) == {("refs", "no box"): 1, ("picture", "missing file"): 1}
    with pytest.raises(UserError, match=r"split by .*, got 'berkeley'"):
        list(read_published(name, tmp_path, split_by="berkeley"))


def test_refcoco_names_the_set_it_means_and_runs_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "refcoco+").mkdir()
    (tmp_path / "refcoco+" / "refs(unc).p").write_bytes(pickle.dumps(files.references()))
    with pytest.raises(UserError, match=r"'refcoco/refs\(unc\).json' or 'refcoco/refs\(unc\).p'"):
        list(read_published("refcoco", tmp_path))
    with pytest.raises(UserError, match=r"instances.json' beside"):
        list(read_published("refcoco_plus", tmp_path))
    (tmp_path / "refcoco+" / "refs(unc).p").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match=r"asks for GLOBAL os.system.*'refs\(unc\).json', beside it"):
        list(read_published("refcoco_plus", tmp_path))
    files.dump(tmp_path / "refcoco+" / "instances.json", files.instances())
    files.dump(tmp_path / "refcoco+" / "refs(unc).json", files.references())
    rows, _ = rows_of("refcoco_plus", tmp_path)  # the way out
    assert [row.id for row in rows] == ["0", "1", "10", "20"]
    for content, named in (("[", "no whole JSON"), ("{}", "a list of references, got dict")):
        (tmp_path / "refcoco+" / "refs(unc).json").write_text(content)
        with pytest.raises(UserError, match=named):
            list(read_published("refcoco_plus", tmp_path))
    monkeypatch.setattr("polyfuse.datasets.refcoco.MAX_JSON_BYTES", 1)
    with pytest.raises(UserError, match="has 2 bytes; at most 1"):
        list(read_published("refcoco_plus", tmp_path))


def test_mm_imdb(tmp_path: Path) -> None:
    rows, source = rows_of("mm_imdb", files.mm_imdb(tmp_path))
    assert [(row.id, row.part, row.labels) for row in rows] == [
        ("0068646", 0, ("Crime", "Drama")), ("0111161", 1, ("Drama",)), ("0071562", 2, ()),
    ]  # fmt: skip
    assert rows[0].texts == ("The aging patriarch.",)  # the longest, which need not be the first
    assert rows[1].texts == ("Two imprisoned men.",)
    assert rows[2].image is None
    assert kinds(source) == {
        ("film", "missing file"): 1, ("text", "no plot"): 1, ("label", "none of the genres"): 1,
        ("picture", "missing file"): 1,
    }  # fmt: skip
    every, _ = rows_of("mm_imdb", tmp_path, all_genres=True)
    assert every[1].labels == ("Drama", "News")
    every, _ = rows_of("mm_imdb", tmp_path, all_plots=True)
    assert every[0].texts == ("Short.", "The aging patriarch.")


def test_mm_imdb_of_a_hostile_split(tmp_path: Path) -> None:
    files.dump(tmp_path / "split.json", {"train": ["../../etc/passwd", 5, "a"], "dev": [], "test": ["a"]})
    files.dump(tmp_path / "dataset" / "a.json", [1])
    rows, source = rows_of("mm_imdb", tmp_path)
    assert rows == []
    assert kinds(source) == {("row", "no film"): 2, ("row", "comes twice"): 1, ("film", "not an object"): 1}


def test_mm_imdb_features_need_h5py_and_say_so(tmp_path: Path) -> None:
    path = tmp_path / "multimodal_imdb.hdf5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    try:
        import h5py
    except ModuleNotFoundError:
        with pytest.raises(UserError, match="pip install h5py"):
            list(read_published("mm_imdb_features", tmp_path))
        return
    with pytest.raises(UserError, match="damaged"):
        list(read_published("mm_imdb_features", tmp_path))
    rng = np.random.default_rng(0)
    features = rng.normal(size=(7, 300))
    features[2, 5] = math.nan
    with h5py.File(path, "w") as file:
        file["features"], file["vgg_features"] = features, rng.normal(size=(7, 4096)).astype("f4")
        file["genres"] = np.eye(23, dtype="i4")[:7]
    rows, source = rows_of_features(tmp_path)
    assert [row.part for row in rows] == [0, 0, 0, 1, 1, 2, 2]
    assert rows[3].labels == ("genre03",)
    assert rows[1].features["text"].shape == (300,)
    assert set(rows[2].features) == {"image"}
    assert kinds(source) == {("text", "not finite"): 1}
    with h5py.File(path, "a") as file:  # what else the published file holds
        file["imdb_ids"] = np.array([b"0068646"] + [b"%07d" % row for row in range(6)], dtype="S7")
        file["genres"].attrs["target_names"] = json.dumps(list(GENRES))
        table = np.zeros(6, [("split", "S5"), ("source", "S8"), ("start", "i8"), ("stop", "i8"),
                             ("indices", h5py.special_dtype(ref=h5py.Reference)), ("available", "?"),
                             ("comment", "S1")])  # fmt: skip
        for place, (split, start) in enumerate((("train", 0), ("dev", 2), ("test", 6))):
            for other, of in enumerate(("features", "genres")):
                entry = table[2 * place + other]
                entry["split"], entry["source"], entry["start"] = split.encode(), of.encode(), start
                entry["indices"], entry["available"] = h5py.Reference(), True
        file.attrs["split"] = table
    rows = list(read_published("mm_imdb_features", tmp_path))
    assert [row.part for row in rows] == [0, 0, 1, 1, 1, 1, 2]
    assert (rows[0].id, rows[3].labels) == ("0068646", ("Thriller",))
    assert [row.part for row in rows_of_features(tmp_path)[0]] == [0, 0, 0, 1, 1, 2, 2]  # as the caller says


def rows_of_features(folder: Path) -> tuple[list[Row], PublishedRows]:
    source = read_published("mm_imdb_features", folder, starts=(3, 5))
    return list(source), source


def test_hateful_memes(tmp_path: Path) -> None:
    rows, source = rows_of("hateful_memes", files.hateful(tmp_path / "a" / "memes"))
    assert [(row.id, row.part, row.kind, row.labels) for row in rows] == [
        ("42953", 0, "train", ("not hateful",)), ("01236", 0, "train", ("hateful",)),
        ("8291", 1, "dev_seen", ("hateful",)), ("3333", 1, "dev_unseen", ("not hateful",)),
        ("16395", 2, "test_seen", ()),
    ]  # fmt: skip
    assert rows[1].texts == ("two lines",)
    assert rows[3].image is None  # it lies outside of the folder
    assert kinds(source) == {
        ("row", "unreadable"): 1, ("row", "comes twice"): 1, ("picture", "outside the folder"): 1,
    }  # fmt: skip


def test_hateful_memes_of_both_rounds(tmp_path: Path) -> None:
    """``test.jsonl`` of the first round has no labels; ``test_seen.jsonl`` holds the same memes with theirs."""
    meme = {"img": "img/01236.png", "text": "a"}
    for name, number, label in (
        ("dev", 8291, 1), ("dev_seen", "08291", 1), ("dev_unseen", 8291, 1),
        ("test", 1236, None), ("test_seen", 1236, 0),
    ):  # fmt: skip
        line = {"id": number, **meme} | ({} if label is None else {"label": label})
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    rows, source = rows_of("hateful_memes", tmp_path)
    assert [(row.kind, row.labels) for row in rows] == [("dev_seen", ("hateful",)), ("test_seen", ("not hateful",))]
    assert kinds(source)["row", "comes twice"] == 3
    rows, _ = rows_of("hateful_memes", tmp_path, files=("test", "dev_unseen"))
    assert [(row.kind, row.labels) for row in rows] == [("dev_unseen", ("hateful",)), ("test", ())]
    for files_, named in ((("dev_sen",), "dev_sen"), ("dev", "'dev'"), ((), r"\(\)")):
        with pytest.raises(UserError, match=f"files must be some of train, .*{named}"):
            list(read_published("hateful_memes", tmp_path, files=files_))
    with pytest.raises(UserError, match=r"must have 'train.jsonl'"):
        list(read_published("hateful_memes", tmp_path, files=("train",)))


def test_roco(tmp_path: Path) -> None:
    rows, source = rows_of("roco", files.roco(tmp_path))
    assert [(row.id, row.part) for row in rows] == [
        (f"ROCO_{name}_{number}", part)
        for part, name in enumerate(("train", "validation", "test"))
        for number in (1, 2)
    ]
    assert rows[0].texts == ("Computed tomography of the chest.",)
    assert all(row.image is not None for row in rows)
    assert kinds(source) == {("text", "not UTF-8"): 1, ("row", "no tab"): 1}


@pytest.mark.parametrize("table", ["licences.txt", "testdata.csv"])
def test_roco_in_older_copies(tmp_path: Path, table: str) -> None:
    folder = files.roco(tmp_path) / "data" / "test" / "radiology"
    (folder / "images" / "ROCO_test_1.jpg").rename(folder / "images" / "PMC4608653_cro-0008-0385-g01.jpg")
    (folder / table).write_text(
        "ROCO_ID,PMC_ID,CC\nROCO_test_1,PMC4608653_cro-0008-0385-g01.jpg,CC BY-NC\nROCO_test_2,../../x.jpg,CC BY\n"
    )
    rows, source = rows_of("roco", tmp_path)
    assert [row.image and row.image.name for row in rows[4:]] == ["PMC4608653_cro-0008-0385-g01.jpg", None]
    assert kinds(source)["picture", "outside the folder"] == 1
    assert rows[0].image is not None  # the other parts have the newer names
    (folder / table).write_text("a" * 200_000 + ",b\n")  # more than a cell may have
    rows, _ = rows_of("roco", tmp_path)
    assert [row.image and row.image.name for row in rows[4:]] == [None, "ROCO_test_2.jpg"]


def test_roco_v2(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        (tmp_path / f"{name}_captions.csv").write_text(f'ID,Caption\nROCOv2_{name}_1,"CT, axial."\nROCOv2_{name}_2,\n')
        files.picture(tmp_path / name / f"ROCOv2_{name}_1.jpg")
    rows, source = rows_of("roco", tmp_path)
    assert [(row.id, row.part, row.texts) for row in rows] == [
        ("ROCOv2_train_1", 0, ("CT, axial.",)), ("ROCOv2_train_2", 0, ()),
        ("ROCOv2_valid_1", 1, ("CT, axial.",)), ("ROCOv2_valid_2", 1, ()),
    ]  # fmt: skip
    assert kinds(source) == {("text", "empty caption"): 2, ("picture", "missing file"): 2}


def test_chest_x_rays(tmp_path: Path) -> None:
    rows, source = rows_of("iu_xray", files.iu_xray(tmp_path))
    assert len(rows) == 40
    assert rows[0].texts == ("The heart, normal. Lungs clear. Normal chest.",)
    assert (rows[0].labels, rows[0].kind, rows[1].kind) == (("Opacity", "Cardiomegaly"), "Frontal", "Lateral")
    assert rows[4].texts == ()
    parts = {row.group: row.part for row in rows}
    assert all(parts[row.group] == row.part for row in rows)  # both pictures of a report are in one part
    assert [list(parts.values()).count(part) for part in range(3)] == [14, 2, 4]
    assert kinds(source) == {
        ("picture", "missing file"): 2, ("text", "no findings and no impression"): 1,
        ("projections", "unknown report"): 1,
    }  # fmt: skip
    other, _ = rows_of("iu_xray", tmp_path, split=1)
    assert [row.part for row in other] != [row.part for row in rows]


def test_chest_x_rays_in_the_split_of_r2gen(tmp_path: Path) -> None:
    def report(key: str, text: str = "The heart is normal .", pictures: int = 2) -> dict[str, object]:
        return {"id": key, "report": text, "image_path": [f"{key}/{n}.png" for n in range(pictures)], "split": "?"}

    document = {
        "train": [report("CXR2384_IM-0942"), {**report("x"), "image_path": ["CXR2384_IM-0942/0.png", 5]}, {"id": 7}],
        "val": [report("CXR2056_IM-0694-1001", pictures=1)],
        "test": [report("CXR9_IM-2407", " ")],
    }
    files.dump(tmp_path / "iu_xray" / "annotation.json", document)
    files.picture(tmp_path / "iu_xray" / "images" / "CXR2384_IM-0942" / "0.png")
    rows, source = rows_of("iu_xray", tmp_path)
    assert [(row.id, row.part, row.group, row.texts) for row in rows] == [
        ("CXR2384_IM-0942/0.png", 0, "CXR2384_IM-0942", ("The heart is normal .",)),
        ("CXR2384_IM-0942/1.png", 0, "CXR2384_IM-0942", ("The heart is normal .",)),
        ("CXR2056_IM-0694-1001/0.png", 1, "CXR2056_IM-0694-1001", ("The heart is normal .",)),
        ("CXR9_IM-2407/0.png", 2, "CXR9_IM-2407", ()),
        ("CXR9_IM-2407/1.png", 2, "CXR9_IM-2407", ()),
    ]
    assert [row.image is not None for row in rows] == [True, False, False, False, False]
    assert kinds(source) == {
        ("picture", "missing file"): 4, ("row", "comes twice"): 1, ("row", "no file name"): 1,
        ("train", "no usable 'id'"): 1, ("text", "no report"): 1,
    }  # fmt: skip


def test_a_table_without_a_column_is_an_error(tmp_path: Path) -> None:
    files.iu_xray(tmp_path)
    (tmp_path / "indiana_reports.csv").write_text("uid,findings\n1,x\n")
    with pytest.raises(UserError, match="no column 'Problems'"):
        list(read_published("iu_xray", tmp_path))


def test_names_folders_and_what_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYFUSE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="did you mean 'refcoco'"):
        read_published("refcocco", tmp_path)
    with pytest.raises(UserError, match=r"got '.*nowhere', which is none"):
        read_published("refcoco", tmp_path / "nowhere")
    with pytest.raises(UserError, match="polyfuse data prepare flickr30k --source"):
        read_published("flickr30k")
    files.flickr(tmp_path / "mine")
    home = prepared_home("flickr30k")
    files.dump(home / "PREPARED.json", {"folder": str(tmp_path / "mine")})
    assert len(list(read_published("flickr30k"))) == 3
    (home / "PREPARED.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        read_published("flickr30k")


def test_every_source_says_where_it_comes_from_and_has_a_reader() -> None:
    page = (Path(__file__).parents[2] / "docs" / "published-data.md").read_text(encoding="utf-8")
    for name, source in PUBLISHED.items():
        assert f"| `{name}` |" in page, f"{name} is not in docs/published-data.md"
        assert callable(source.load()), name
        assert source.home.startswith("http"), name
        assert all((source.about, source.licence, source.files)), name


def test_boxes_and_places(tmp_path: Path) -> None:
    assert share_box([-5, -5, 100, 100], 10, 20) == (0.0, 0.0, 1.0, 1.0)
    for box in ([1, 2, 3], None, [1, 2, math.nan, 4], ["1", 2, 3, 4], [50, 0, 5, 5], [True, 1, 2, 2]):
        assert share_box(box, 10, 20) is None
    assert share_box([0, 0, 1, 1], None, 20) is None
    (tmp_path / "below" / "two").mkdir(parents=True)
    (tmp_path / "below" / "a.txt").write_text("1")
    (tmp_path / "below" / "two" / "b.txt").write_text("1")
    assert locate(tmp_path, "b.txt", "a.txt") == tmp_path / "below" / "a.txt"
    assert locate(tmp_path, "two/b.txt") == tmp_path / "below" / "two" / "b.txt"


def test_folders_of_pictures_may_be_links_and_files_may_not_lead_out(tmp_path: Path) -> None:
    entries = [
        (name, "test", {"filepath": "val2014", "cocoid": number})
        for number, name in enumerate(("a.jpg", "b.jpg", "../../b.jpg", "/etc/hosts", "sub/../a.jpg", ".."))
    ]
    files.karpathy(tmp_path / "mine" / "dataset_coco.json", "coco", entries)
    files.picture(tmp_path / "shared" / "val2014" / "a.jpg")
    files.picture(tmp_path / "b.jpg")
    (tmp_path / "shared" / "val2014" / "b.jpg").symlink_to(tmp_path / "b.jpg")
    (tmp_path / "mine" / "val2014").symlink_to(tmp_path / "shared" / "val2014")
    rows, source = rows_of("coco_karpathy", tmp_path / "mine")
    assert rows[0].image == (tmp_path / "shared" / "val2014" / "a.jpg").resolve()
    assert [row.image for row in rows[1:]] == [None] * 5
    assert kinds(source) == {("picture", "outside the folder"): 4, ("picture", "missing file"): 1}  # val2014//etc/hosts
    named = source.problems.named["picture", "outside the folder"]
    assert "a link leads out of it: link the whole folder, or copy the files" in named[0]
    assert "a name may not lead out of it" in named[1]
    assert "allow_outside" not in "".join(named)  # that is a key of tables


def test_pictures_in_a_folder_each(tmp_path: Path) -> None:
    count = 67  # more than are remembered
    names = [f"CXR{number}_IM-{number}/0.png" for number in range(count)]
    for name in names:
        files.picture(tmp_path / "images" / name)
    reports = [{"id": name[:-6], "report": "Clear.", "image_path": [name]} for name in names]
    files.dump(tmp_path / "annotation.json", {"train": reports, "val": [], "test": []})
    rows, source = rows_of("iu_xray", tmp_path)
    assert [row.image for row in rows] == [(tmp_path / "images" / name).resolve() for name in names]
    assert not source.problems


def test_reading_opens_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    folder = files.flickr(tmp_path)
    monkeypatch.setattr(Image, "open", lambda *a, **k: pytest.fail("a picture was opened"))
    first = next(iter(read_published("flickr30k", folder)))
    assert first.image is not None
