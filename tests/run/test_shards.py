"""Tables and data sets become shards and come back; files that are not there are counted."""

import json
from pathlib import Path

import numpy as np
import pytest

from polyfuse import cli
from polyfuse.data.problems import Problems
from polyfuse.data.shards import ShardReader
from polyfuse.datasets.published import Row, read_published
from polyfuse.datasets.row_shards import rows_of_samples, samples_of_rows
from polyfuse.tasks.published import to_task_data

from ..datasets import published_files as files


def test_a_table_with_files_and_holes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = files.picture(tmp_path / "pictures" / "a.PNG".lower())
    (tmp_path / "t.csv").write_text(
        "id,photo,sound,price\n1,pictures/a.png,,5\n2,,missing.wav,\n3,../outside.png,pictures/a.png,x\n4,5\n"
    )
    out = tmp_path / "shards"
    assert cli.run(
        ["data", "shards", str(tmp_path / "t.csv"), "--out", str(out), "--file", "photo", "--file", "sound",
         "--max-count", "2"]
    ) == 0  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{out}: 3 samples in 2 shards"
    assert len(lines) == 4
    assert list(ShardReader(out, shuffle=False)) == [
        {"__key__": "00000000", "json": {"id": "1", "price": "5"}, "photo.png": picture.read_bytes()},
        {"__key__": "00000001", "json": {"id": "2"}},
        {"__key__": "00000002", "json": {"id": "3", "price": "x"}, "sound.png": picture.read_bytes()},
    ]
    assert cli.run(["data", "shards", str(tmp_path / "t.csv"), "--out", str(out)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert cli.run(["data", "shards", str(tmp_path / "t.csv"), "--out", str(tmp_path / "o"), "--file", "phto"]) == 2
    assert "no column 'phto'" in capsys.readouterr().err


def test_a_prepared_data_set_makes_the_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYFUSE_CACHE", str(tmp_path / "cache"))
    folder = files.coco(tmp_path / "coco")
    assert cli.run(["data", "prepare", "coco_instances", "--source", str(folder)]) == 0
    out = tmp_path / "shards"
    assert cli.run(["data", "shards", "coco_instances", "--out", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))
    assert (report["samples"], report["problems"]["picture"]["missing file"]["count"]) == (3, 1)
    problems = Problems()
    rows = list(rows_of_samples(ShardReader(out, shuffle=False), problems))
    original = list(read_published("coco_instances"))
    for one, other in zip(rows, original, strict=True):
        assert {**vars(one), "image": None} == {**vars(other), "image": None}
        assert (one.image is None) == (other.image is None)
    straight, around = (to_task_data(given, side=5, name="x") for given in (original, rows))
    assert straight.images is not None
    assert around.images is not None
    np.testing.assert_array_equal(straight.images, around.images)
    assert not problems
    assert cli.run(["data", "shards", "coco_instances", "--out", str(tmp_path / "o"), "--file", "x"]) == 2


def test_features_make_the_round_and_other_samples_are_counted(tmp_path: Path) -> None:
    row = Row("7", 2, labels=("a",), features={"text": np.arange(3, dtype=np.float32)})
    (sample,) = samples_of_rows([row], Problems())
    problems = Problems()
    good, *rest = rows_of_samples([sample, {"__key__": "x", "json": {"id": 1}}, {"__key__": "y"}], problems)
    np.testing.assert_array_equal(good.features["text"], row.features["text"])
    assert rest == []
    assert problems.counts == {("sample", "no row"): 2}
