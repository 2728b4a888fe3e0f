"""`polyfuse data prepare` from the shell: rows and problems on stdout, and the data set is found by its name."""

import json
import shutil
from pathlib import Path

import pytest

from polyfuse import cli
from polyfuse.datasets.published import read_published

from ..datasets import published_files as files


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYFUSE_CACHE", str(tmp_path / "cache"))


def test_an_archive_is_prepared_counted_and_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = shutil.make_archive(str(tmp_path / "flickr"), "zip", files.flickr(tmp_path / "source"))
    assert cli.run(["data", "prepare", "flickr30k", "--source", archive]) == 0
    streams = capsys.readouterr()
    assert streams.out.splitlines() == [
        f"flickr30k: ready in {tmp_path}/cache/published/flickr30k/files",
        "rows: 3 (1 train, 1 validation, 1 test); with a picture: 2",
        "problem: picture: 1 x missing file (row 3: '1000268201.jpg')",
    ]
    assert "SHA-256" in streams.err
    assert [row.id for row in read_published("flickr30k")] == ["1000092795", "10002456", "1000268201"]
    assert cli.run(["data", "prepare", "flickr30k", "--source", archive, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["fresh"], again["rows"]) == (False, {"train": 1, "validation": 1, "test": 1})


def test_a_folder_and_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = files.vqa(tmp_path / "vqa")
    assert cli.run(["data", "prepare", "vqa_v2", "--source", str(folder)]) == 0
    assert "rows: 4 (2 train, 1 validation, 1 test); with a picture: 4" in capsys.readouterr().out
    assert cli.run(["data", "prepare", "vqa_v3", "--source", str(folder)]) == 2
    assert "did you mean 'vqa_v2'" in capsys.readouterr().err
    assert cli.run(["data", "prepare", "mm_imdb", "--source", str(folder)]) == 2
    assert "must have 'split.json'" in (error := capsys.readouterr().err)
    assert "what was brought is kept, add the rest with another --source" in error
