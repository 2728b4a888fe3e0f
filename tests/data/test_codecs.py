import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from polyfuse.data.codecs import Reading, clean, decode_cells, find_file, numbers, show, source_of
from polyfuse.data.problems import Broken
from polyfuse.data.schema import NULL_VALUES
from polyfuse.data.table_csv import BadText


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "table"
    (inside / "img").mkdir(parents=True)
    (inside / "img" / "a b é.png").write_bytes(b"x")
    (inside / "empty.png").write_bytes(b"")
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "table-2").mkdir()
    (tmp_path / "table-2" / "x.png").write_bytes(b"x")
    (inside / "out.png").symlink_to(tmp_path / "secret.png")
    (inside / "in.png").symlink_to(inside / "img" / "a b é.png")
    (inside / "gone.png").symlink_to(inside / "nowhere.png")
    (inside / "loop.png").symlink_to(inside / "loop.png")
    (inside / "away").symlink_to(tmp_path)
    return inside


def kind_of(cell: str, reading: Reading) -> str:
    try:
        find_file(cell, reading)
    except Broken as broken:
        return broken.kind
    return "ok"


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        ("img/a b é.png", "ok"),
        ("./img/../img/a b é.png", "ok"),
        ("{folder}/img/a b é.png", "ok"),  # absolute, but inside
        ("in.png", "ok"),  # a link is judged by where it ends
        ("out.png", "outside the folder"),
        ("away/secret.png", "outside the folder"),
        ("../secret.png", "outside the folder"),
        ("../table-2/x.png", "outside the folder"),  # the folder's name is a prefix of its neighbour's
        ("/etc/passwd", "outside the folder"),
        ("/etc/no-such-file", "outside the folder"),  # does not tell what exists elsewhere
        ("nope.png", "missing file"),
        ("gone.png", "missing file"),
        ("img/a b é.png/x.png", "missing file"),
        ("a\0b.png", "missing file"),
        ("x" * 300 + ".png", "missing file"),
        ("img", "directory"),
        (".", "directory"),
        ("empty.png", "zero bytes"),
        ("https://example.org/a.png", "web address"),
        ("file:///etc/passwd", "web address"),
    ],
)
def test_paths_stay_in_the_folder(folder: Path, cell: str, kind: str) -> None:
    assert kind_of(cell.format(folder=folder), Reading(folder)) == kind


def test_a_link_in_a_circle_is_no_file(folder: Path) -> None:
    assert kind_of("loop.png", Reading(folder)) in ("missing file", "unreadable")


def test_paths_may_leave_only_when_allowed(folder: Path) -> None:
    free = Reading(folder, allow_outside=True)
    assert [kind_of(c, free) for c in ("../secret.png", "out.png", "nope.png")] == ["ok", "ok", "missing file"]
    assert kind_of(str(folder.parent / "secret.png"), free) == "ok"


def test_without_a_folder_no_path_is_read(folder: Path) -> None:
    inside = str(folder / "img" / "a b é.png")
    assert kind_of(inside, Reading(None)) == "outside the folder"
    assert kind_of("in.png", Reading(None)) == "outside the folder"
    assert kind_of(inside, Reading(None, allow_outside=True)) == "ok"
    assert kind_of("in.png", Reading(None, allow_outside=True)) == "outside the folder"


def test_the_table_folder_may_itself_be_a_link(folder: Path) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    assert kind_of("img/a b é.png", Reading(link)) == "ok"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and permissions are POSIX")
def test_special_files(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    assert kind_of("pipe.png", Reading(folder)) == "not a file"  # opening it would wait for ever


def test_sources() -> None:
    assert source_of(b"data", Reading()) == b"data"
    for cell, kind in ((b"", "zero bytes"), (BadText("x"), "missing file"), (["x"], "wrong type")):
        with pytest.raises(Broken) as found:
            source_of(cell, Reading())
        assert found.value.kind == kind


def test_clean_and_numbers() -> None:
    nulls = frozenset(NULL_VALUES)
    assert clean([*NULL_VALUES, "  ", " NaN "], nulls) == [None] * (len(NULL_VALUES) + 2)
    assert clean(["nano", "none of it", "0", " x "], nulls) == ["nano", "none of it", "0", "x"]
    assert type(clean([BadText("a\ufffd")], nulls)[0]) is BadText
    values, bad = numbers(["1e3", "-0", None, "1_000", "12 €", "1e999", "NaN", BadText("1\ufffd"), ["1"], b"1"])
    np.testing.assert_array_equal(values, [1000, 0] + [np.nan] * 8)
    assert dict(bad) == {
        3: "not a number",
        4: "not a number",
        5: "infinite number",
        6: "not a number",
        7: "not a number",
        8: "not a number",
        9: "not a number",
    }


def test_threads_keep_the_order() -> None:
    def slow_first(cell: int) -> int:
        if cell % 7 == 0:
            sum(range(20_000))
        if cell % 13 == 0:
            raise Broken("undecodable", "why")
        return cell

    cells = [i if i % 5 else None for i in range(500)]
    alone = decode_cells(cells, slow_first, None)
    with ThreadPoolExecutor(4) as pool:
        assert decode_cells(cells, slow_first, pool) == alone
    values, problems = alone
    assert values == [i if i % 5 and i % 13 else None for i in range(500)]
    assert problems[0] == (13, "undecodable", "13, why")


def test_messages_are_short() -> None:
    assert show("x" * 500) == "'" + "x" * 56 + "..."
    assert show(b"abc") == "3 bytes"
    assert show({"path": "a.png", "bytes": b"x" * 1000}) == "file a.png"
    assert show([1, 2]) == "[1, 2]"
