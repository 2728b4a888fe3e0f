"""Region features come out of TSV and npz as they went in; every broken line or file is counted, none is used."""

import base64
from pathlib import Path

import numpy as np
import pytest

from polyfuse.data.problems import Problems
from polyfuse.datasets.regions import BOTTOM_UP, LXMERT, PictureRegions, read_npz, read_tsv
from polyfuse.errors import UserError

from .published_files import b64, npz_bytes, tsv_line

R, F, C = 3, 5, 7
RNG = np.random.default_rng(0)
BOXES = np.array([[0, 0, 40, 20], [10, 5, 20, 15], [4, 2, 8, 4]], dtype=np.float32)
SHARES = BOXES / np.array([40, 20, 40, 20], dtype=np.float32)
FEATURES = RNG.normal(size=(R, F)).astype(np.float32)


def read(tmp_path: Path, text: str, **options: object) -> tuple[list[PictureRegions], Problems]:
    path, problems = tmp_path / "a.tsv", Problems()
    path.write_text(text)
    return list(read_tsv(path, problems, **options)), problems  # type: ignore[arg-type]


def test_bottom_up_tsv(tmp_path: Path) -> None:
    text = tsv_line("9", BOXES, FEATURES) + tsv_line("25", BOXES[:2], FEATURES[:2])
    (first, second), problems = read(tmp_path, text)
    assert (first.image_id, second.image_id) == ("9", "25")
    np.testing.assert_array_equal(first.features, FEATURES)
    np.testing.assert_array_equal(first.boxes, SHARES)
    assert second.features.shape == (2, F)
    assert first.classes is None
    assert not problems


def test_lxmert_tsv_and_named_columns(tmp_path: Path) -> None:
    ids = base64.b64encode(np.arange(R, dtype="<i8").tobytes()).decode()
    conf = b64(np.ones(R))
    cells = {
        "img_id": "COCO_9", "img_h": "20", "img_w": "40", "objects_id": ids, "objects_conf": conf, "attrs_id": ids,
        "attrs_conf": conf, "num_boxes": str(R), "boxes": b64(BOXES), "features": b64(FEATURES),
    }  # fmt: skip
    (found,), _ = read(tmp_path, "\t".join(cells[name] for name in LXMERT) + "\n")
    np.testing.assert_array_equal(found.boxes, SHARES)
    np.testing.assert_array_equal(found.features, FEATURES)
    probabilities = RNG.random((R, C)).astype(np.float32)
    text = tsv_line("9", BOXES, FEATURES).rstrip() + "\t" + b64(probabilities) + "\n"
    (found,), _ = read(tmp_path, text, columns=(*BOTTOM_UP, "cls_prob"))
    np.testing.assert_array_equal(found.classes, probabilities)


def test_coco_pictures_are_named_as_in_the_annotations(tmp_path: Path) -> None:
    # LXMERT's TSV, OpenVQA's npz, UNITER's npz of pictures and of referred things, COCO of 2017
    names = {
        "COCO_val2014_000000262148": "262148",
        "COCO_train2014_000000000009.jpg": "9",
        "coco_test2015_000000262144": "262144",
        "visual_grounding_coco_gt_000000581857": "581857",
        "000000391895": "391895",
        "COCO_9": "COCO_9",
        "nlvr2_dev-1-0-img0": "nlvr2_dev-1-0-img0",
        "1000092795": "1000092795",
    }
    found, problems = read(tmp_path, "".join(tsv_line(name, BOXES, FEATURES) for name in names))
    assert [one.image_id for one in found] == list(names.values())
    assert not problems
    for name in names:
        (tmp_path / f"{name}.npz").write_bytes(npz_bytes(x=FEATURES, bbox=BOXES, image_w=40, image_h=20))
    assert {one.image_id for one in read_npz(tmp_path, problems)} == set(names.values())


def test_lines_as_python_2_wrote_them(tmp_path: Path) -> None:
    """Its csv module ends lines with CR LF; a line that was cut runs into the next, whose picture comes again later."""
    good = tsv_line("9", BOXES, FEATURES).replace("\n", "\r\n")
    cut = tsv_line("321486", BOXES, FEATURES)[:-30] + tsv_line("25", BOXES, FEATURES).replace("\n", "\r\n")
    again = tsv_line("321486", BOXES, FEATURES).replace("\n", "\r\n")
    found, problems = read(tmp_path, good + cut + again)
    assert [one.image_id for one in found] == ["9", "321486"]
    np.testing.assert_array_equal(found[1].features, FEATURES)
    assert problems.counts == {("regions", "truncated"): 1}


def broken_lines() -> dict[str, str]:
    good = tsv_line("x", BOXES, FEATURES)
    cells = good.rstrip("\n").split("\t")
    nan = FEATURES.copy()
    nan[1, 2] = np.nan
    return {
        "truncated": "\t".join(cells[:4]) + "\n",
        "truncated ": "\t".join([*cells[:5], cells[5][:-8]]) + "\n",
        "undecodable": "\t".join([*cells[:5], "!!!!"]) + "\n",
        "not finite": tsv_line("x", BOXES, nan),
        "wrong shape": tsv_line("x", BOXES, FEATURES[:, :4]),
        "wrong shape ": tsv_line("x", BOXES, FEATURES, size=(0, 20)),
        "wrong shape  ": tsv_line("x", BOXES, FEATURES, size=(4, 2)),  # boxes far outside of the picture
        "wrong shape   ": "\t".join(["x", "40", "20", "1000000", *cells[4:]]) + "\n",
        "wrong shape    ": "x\t40\t20\t0\t\t\n",
        "wrong type": "\t".join(["x", "wide", *cells[2:]]) + "\n",
    }


@pytest.mark.parametrize("kind", broken_lines())
def test_a_broken_line_is_counted_and_left_out(tmp_path: Path, kind: str) -> None:
    good = tsv_line("9", BOXES, FEATURES)
    found, problems = read(tmp_path, good + broken_lines()[kind] + tsv_line("25", BOXES, FEATURES))
    assert [one.image_id for one in found] == ["9", "25"]
    assert problems.counts == {("regions", kind.strip()): 1}
    assert problems.named["regions", kind.strip()][0].startswith("row 2")


def test_another_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its first line has 1"):
        read(tmp_path, "<html>\n")
    with pytest.raises(UserError, match="cannot be read"):
        list(read_tsv(tmp_path / "none.tsv", Problems()))
    with pytest.raises(UserError, match="found none"):
        list(read_npz(tmp_path, Problems()))


def test_npz_of_uniter_and_of_bottom_up(tmp_path: Path) -> None:
    soft = RNG.random((R, C)).astype(np.float16)
    nbb = np.concatenate([SHARES, np.ones((R, 3), np.float32)], axis=1).astype(np.float16)
    (tmp_path / "a.npz").write_bytes(
        npz_bytes(features=FEATURES.astype(np.float16), norm_bb=nbb, conf=np.ones((R, C)), soft_labels=soft)
    )
    info = np.array({"objects_id": [1]}, dtype=object)  # a pickle: it must not be touched
    (tmp_path / "b.npz").write_bytes(npz_bytes(x=FEATURES, bbox=BOXES, num_bbox=R, image_w=40, image_h=20, info=info))
    (tmp_path / "c.npz").write_bytes(npz_bytes(x=FEATURES.T, bbox=BOXES, num_bbox=R, image_w=[40], image_h=[20]))
    problems = Problems()
    a, b, c = read_npz(tmp_path, problems)
    assert (a.image_id, b.image_id, c.image_id) == ("a", "b", "c")
    np.testing.assert_allclose(a.features, FEATURES, atol=2e-3)
    np.testing.assert_allclose(a.boxes, SHARES, atol=1e-3)
    np.testing.assert_array_equal(a.classes, soft.astype(np.float32))
    for one in (b, c):
        np.testing.assert_array_equal(one.features, FEATURES)
        np.testing.assert_array_equal(one.boxes, SHARES)
    assert not problems


def test_broken_npz_files_are_counted_and_left_out(tmp_path: Path) -> None:
    good = npz_bytes(x=FEATURES, bbox=BOXES, image_w=40, image_h=20)
    (tmp_path / "a.npz").write_bytes(good)
    (tmp_path / "b.npz").write_bytes(good[:-30])
    (tmp_path / "c.npz").write_bytes(npz_bytes(other=FEATURES))
    (tmp_path / "d.npz").write_bytes(npz_bytes(x=np.array([{}] * R), bbox=BOXES, image_w=40, image_h=20))
    (tmp_path / "e.npz").write_bytes(npz_bytes(x=FEATURES[:2], bbox=BOXES, image_w=40, image_h=20))
    (tmp_path / "f.npz").write_bytes(npz_bytes(x=np.zeros((R, 8 << 20)), bbox=BOXES, image_w=40, image_h=20))
    problems = Problems()
    assert [one.image_id for one in read_npz(tmp_path, problems)] == ["a"]
    assert problems.counts == {
        ("regions", "undecodable"): 1, ("regions", "wrong type"): 2, ("regions", "wrong shape"): 2,
    }  # fmt: skip
