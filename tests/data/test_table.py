"""Whatever a file holds, row n of the file is slot n of the stream."""

import csv
import gzip
import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polyfuse.data import table_csv
from polyfuse.data.table import Chunk, check_columns, read_chunks, read_header
from polyfuse.data.table_csv import BadText
from polyfuse.errors import UserError


def read(path: Path, **options: Any) -> tuple[dict[str, list[Any]], list[tuple[int, str]]]:
    """All chunks in one; asserts that they are seamless."""
    columns: dict[str, list[Any]] = {}
    bad: list[tuple[int, str]] = []
    row = 0
    for chunk in read_chunks(path, **options):
        assert chunk.first_row == row
        assert all(len(cells) == len(chunk) for cells in chunk.columns.values())
        assert all(row <= number < row + len(chunk) for number, _ in chunk.bad_rows)
        row += len(chunk)
        for name, cells in chunk.columns.items():
            columns.setdefault(name, []).extend(cells)
        bad += chunk.bad_rows
    return columns, bad


def write(folder: Path, data: bytes | str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_bom_crlf_ragged_rows_and_bad_utf8(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbfa,b,c\r\nd,e\r\nf,g,h\r\n\r\n1,2,3,4\r\nx,"y\r\nz",w\r\nq\r\n5,6,\xff7'
    columns, bad = read(write(tmp_path, data))
    assert columns == {
        "a": [None, "f", None, "x", None, "5"],
        "b": [None, "g", None, "y\r\nz", None, "6"],
        "c": [None, "h", None, "w", None, "\ufffd7"],
    }
    assert type(columns["c"][-1]) is BadText
    assert bad == [
        (0, "expected 3 cells, got 2 (line 2)"),
        (2, "expected 3 cells, got 4 (line 5)"),
        (4, "expected 3 cells, got 1 (line 8)"),
    ]


@pytest.mark.parametrize("seed", range(12))
def test_csv_equals_the_standard_library_at_any_block_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    draw = random.Random(seed)
    monkeypatch.setattr(table_csv, "BLOCK_BYTES", draw.choice([5, 7, 13, 61, 509]))
    width = draw.choice([1, 2, 5])
    alphabet = ["a", "é", '"', ",", ";", "\n", "\r\n", " ", "12", "日"]
    rows = [["".join(draw.choices(alphabet, k=draw.randrange(6))) for _ in range(width)] for _ in range(97)]
    rows = [[cell if cell.strip("\r\n") else "x" for cell in row] for row in rows]
    text = io.StringIO()
    quoting = draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    sheet = csv.writer(text, lineterminator=draw.choice(["\n", "\r\n"]), quoting=quoting)
    sheet.writerow([f"c{i}" for i in range(width)])
    for n, row in enumerate(rows):
        sheet.writerow([*row, "one too many"] if n % 11 == 3 else row)
    columns, bad = read(write(tmp_path, text.getvalue()), rows_per_chunk=draw.choice([1, 10, 1000]), delimiter=",")
    for i in range(width):
        assert columns[f"c{i}"] == [None if n % 11 == 3 else row[i] for n, row in enumerate(rows)]
    assert [row for row, _ in bad] == [n for n in range(97) if n % 11 == 3]
    check = csv.reader(line + "\n" for line in text.getvalue().split("\n"))
    starts = [check.line_num + 1 for _ in check]  # one past the header, one past every row
    assert [f"(line {starts[row]})" in reason for row, reason in bad] == [True] * len(bad)


@pytest.mark.parametrize("block", [7, 1 << 20])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('a,b\n1,x\n2,"y\n3,z\n4,w\n', "the quote opened on line 3 is never closed"),
        ('a,b\n1,x\n2,"y\n3,"z"\n4,w\n', "the quote opened on line 3 closes inside a later row"),
        ('a,b\n1,"x\ny"\n2,"y\n', "the quote opened on line 4 is never closed"),
    ],
)
def test_an_open_quote_swallows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, message: str, block: int
) -> None:
    monkeypatch.setattr(table_csv, "BLOCK_BYTES", block)
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, data))


def test_quotes_that_are_text(tmp_path: Path) -> None:
    columns, bad = read(write(tmp_path, 'a,b\n1,"x" y\n2,12" screen\n3,"y""z"\n4,""\n'))
    assert columns["b"] == ["x y", '12" screen', 'y"z', ""]
    assert not bad


def test_blank_lines(tmp_path: Path) -> None:
    assert read(write(tmp_path, "\n\na,b\n\n1,2\n\n\n3,4\n\n"))[0] == {"a": ["1", "3"], "b": ["2", "4"]}
    assert read(write(tmp_path, "a\nx\n\ny\n\n\n"))[0] == {"a": ["x", "", "y"]}


def test_line_endings_delimiters_and_gzip(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a,b\r1,2\r3,4\r"))[0] == {"a": ["1", "3"], "b": ["2", "4"]}
    assert read(write(tmp_path, "a;b\n1;2,5\n"))[0] == {"a": ["1"], "b": ["2,5"]}
    assert read(write(tmp_path, "a\tb\n1\t2,5\n", "t.tsv"))[0] == {"a": ["1"], "b": ["2,5"]}
    assert read(write(tmp_path, "a|b,c\n1|2\n"), delimiter="|")[0] == {"a": ["1"], "b,c": ["2"]}
    assert read(write(tmp_path, gzip.compress(b"a,b\n1,2\n"), "t.csv.gz"))[0] == {"a": ["1"], "b": ["2"]}
    assert read(write(tmp_path, '"a\nb",c\n1,2\n'))[0] == {"a\nb": ["1"], "c": ["2"]}


def test_a_type_seen_late_changes_nothing(tmp_path: Path) -> None:
    count = 300_000
    path = write(tmp_path, "a\n" + "1\n" * count + "not a number\n")
    assert path.stat().st_size < table_csv.BLOCK_BYTES
    columns, _ = read(path)
    assert columns["a"] == ["1"] * count + ["not a number"]


def test_only_wanted_columns_that_exist(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b,c\n1,2,3\n4,5\n")
    columns, bad = read(path, columns=["c", "nope", "a", "c"])
    assert columns == {"c": ["3", None], "a": ["1", None]}
    assert [row for row, _ in bad] == [1]
    chunk = next(read_chunks(path, columns=["nope"]))
    assert (chunk.columns, len(chunk)) == ({}, 2)


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"a": 1.50, "b": [1, null, 3]}',
        b"",
        b'{"a":',
        b"[1]",
        b'{"b": NaN, "a": "x\xff"}',
        b'{"a": true, "late": "y"}',
        b"[" * 100_000,
    ]
    path = write(tmp_path, b"\n".join(lines), "t.jsonl")
    columns, bad = read(path, rows_per_chunk=2)
    assert columns["a"] == ["1.50", None, None, "x\ufffd", "true", None]
    assert columns["b"] == [["1", None, "3"], None, None, "NaN", None, None]
    assert columns["late"] == [None] * 4 + ["y", None]
    assert type(columns["a"][3]) is BadText
    assert [row for row, _ in bad] == [1, 2, 5]
    assert "broken JSON (line 3)" in bad[0][1]
    assert "not a JSON object (line 4): '[1]'" in bad[1][1]
    assert read_header(path) == ["a", "b", "late"]
    assert read_header(path, wanted=["a"]) == ["a", "b"]


def test_parquet_cells_are_strings_lists_and_bytes(tmp_path: Path) -> None:
    table = pa.table(
        {
            "f": [1.5, None, float("nan"), 2.0],
            "i": pa.array([1, None, 3, 4], pa.int32()),
            "t": [True, False, None, True],
            "l": [[1, 2], None, [], [3]],
            "s": pa.array(["x", None, "", "x"]).dictionary_encode(),
            "b": [b"\x00", None, b"", b"q"],
            "n": [{"bytes": b"z", "path": "p"}, None, None, None],
            "d": pa.array([0, None, 1, 2], pa.date32()),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    columns, _ = read(tmp_path / "t.parquet", rows_per_chunk=3)
    assert columns["f"] == ["1.5", None, None, "2"]
    assert columns["i"] == ["1", None, "3", "4"]
    assert columns["t"] == ["true", "false", None, "true"]
    assert [None if c is None else c.tolist() for c in columns["l"]] == [[1, 2], None, [], [3]]
    assert columns["s"] == ["x", None, "", "x"]
    assert columns["b"] == [b"\x00", None, b"", b"q"]
    assert columns["n"][:2] == [{"bytes": b"z", "path": "p"}, None]
    assert columns["d"] == ["1970-01-01", None, "1970-01-02", "1970-01-03"]
    assert sum(len(chunk) for chunk in read_chunks(tmp_path / "t.parquet", columns=["nope"])) == 4


def test_records_are_cells_as_files_have_them() -> None:
    chunk = Chunk.from_records([{"a": 1.5, "b": True, "c": float("nan")}, {"a": (1, 2), "d": None}], folder="/x")
    assert chunk.columns == {"a": ["1.5", [1, 2]], "b": ["true", None], "c": [None, None], "d": [None, None]}
    assert (chunk.folder, len(chunk)) == (Path("/x"), 2)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.csv", b"", r"is empty \(0 bytes\)"),
        ("t.csv", b"\n\n", "has no header line"),
        ("t.csv", b"a,b,a\n1,2,3\n", "column 'a' occurs 2 times; rename all but one"),
        ("t.csv", "a,b\n1,2\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("t.csv", b"caf\xe9,b\n1,2\n", "its header is not UTF-8; save it as UTF-8"),
        ("t.csv", b"PAR1xxxx", "is Parquet; rename it to end in .parquet"),
        ("t.csv", b"\x89PNG\0\0\n", "is not text: its first line holds zero bytes"),
        ("t.parquet", b"not parquet at all", "cannot be read as Parquet"),
        ("t.jsonl", b'[{"a": 1}]', "is one JSON array; JSON Lines has one object per line"),
        ("t.xlsx", b"PK", "must end in .csv, .*got '.xlsx'"),
    ],
)
def test_tables_that_cannot_be_read_say_why(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, data, name))


def test_a_parquet_file_that_breaks_on_the_way(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": [str(i) * 50 for i in range(5000)]}), path, compression="snappy")
    data = bytearray(path.read_bytes())
    data[1000:4000] = b"\xff" * 3000
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"'t.parquet' is broken after row 0"):
        read(path)


def test_wrong_paths_and_columns_suggest(tmp_path: Path) -> None:
    write(tmp_path, "a,b\n1,2\n", "products.csv")
    with pytest.raises(UserError, match=r"does not exist; did you mean 'products.csv'"):
        read_header(tmp_path / "product.csv")
    with pytest.raises(UserError, match=r"is a folder; name the .csv"):
        read_header(tmp_path)
    odd = tmp_path / "caf\udce9.csv"  # bytes that are not UTF-8
    if sys.platform == "linux":
        odd.write_bytes(b"a,b\n1,2\n")
        with pytest.raises(UserError, match=r"has a name or a folder that is not UTF-8; rename it"):
            read_header(odd)
    with pytest.raises(UserError, match=r"'t.csv' has no column 'titel'; did you mean 'title'. its columns: 'id'"):
        check_columns(["id", "titel"], ["id", "title"], "t.csv")


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_csv, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(table_csv, "LONGEST_RECORD", 5000)
    with pytest.raises(UserError, match="line 2 is longer than"):
        read(write(tmp_path, "a,b\n" + "x" * 20_000))
    with pytest.raises(UserError, match="the quote opened on line 3 is never closed"):
        read(write(tmp_path, 'a,b\n1,2\n3,"' + "x\n" * 20_000))


def test_a_json_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyfuse.data.table._LONGEST_LINE", 100)
    with pytest.raises(UserError, match="line 2 is longer than 64 MiB; is this JSON Lines"):
        read(write(tmp_path, '{"a": 1}\n{"a": "' + "x" * 200 + '"}\n', "t.jsonl"))


def test_reading_streams(tmp_path: Path) -> None:
    """The first chunk of a table comes before its last byte is read."""
    path = write(tmp_path, "a,b\n" + "1,2\n" * 400_000 + '3,"open\n')
    chunks = read_chunks(path, rows_per_chunk=100)
    assert len(next(chunks)) == 100
    with pytest.raises(UserError, match="line 400002"):
        list(chunks)


def test_json_round_trip_of_wide_lists(tmp_path: Path) -> None:
    values = [round(random.Random(0).random(), 6) for _ in range(1000)]
    path = write(tmp_path, json.dumps({"v": values}), "t.jsonl")
    assert [float(x) for x in read(path)[0]["v"][0]] == values
