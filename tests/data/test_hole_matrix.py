"""Every hole at every place gives the answer that docs/missing-values.md gives. The page is the table of this test."""

import csv
import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from polyfuse.data.batch import map_tensors
from polyfuse.data.encode import Prepared, prepare
from polyfuse.data.problems import BROKEN
from polyfuse.data.schema import DataConfig
from polyfuse.data.table import Chunk, read_chunks
from polyfuse.data.table_csv import BadText
from polyfuse.data.table_encoder import TableEncoder
from polyfuse.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "missing-values.md"
COLUMNS = {
    "image": "photo", "text": "title", "audio": "clip", "tabular": "price", "series": "wave", "vector": "point",
    "video": "film", "points": "cloud",
}  # fmt: skip
ENDINGS = {
    "image": ".png", "audio": ".wav", "series": ".npy", "vector": ".npy", "video": ".gif", "points": ".pcd",
}  # fmt: skip
MODALITIES: dict[str, Any] = {
    "image": {"type": "image", "column": "photo", "size": 8},
    "text": {"type": "text", "column": "title"},
    "audio": {"type": "audio", "column": "clip", "rate": 1000},
    "tabular": {"type": "tabular", "columns": ["price", "brand"]},
    "series": {"type": "series", "column": "wave"},
    "vector": {"type": "vector", "column": "point"},
    "video": {"type": "video", "column": "film", "size": 8, "frames": 3},
    "points": {"type": "points", "column": "cloud", "count": 7},
}
HEADER = ["id", *COLUMNS.values(), "brand", "label", "part"]
ROWS = 24
VICTIMS = {"train": 3, "validation": 17, "test": 21}  # row numbers
PARTS = ["train"] * 16 + ["validation"] * 4 + ["test"] * 4
Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One line of the page's first table."""

    hole: str
    types: tuple[str, ...]
    present: bool
    kind: str | None
    broken: bool


def tables() -> Iterator[list[list[str]]]:
    """The page's tables, without their headings."""
    for block in re.findall(r"(?:^\|.*\n)+", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE):
        yield [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()[2:]]


CELLS, WHOLE = tables()
LINES = [
    Line(hole, tuple(types.split(", ")), answer == "present", None if kind == "-" else kind, broken == "yes")
    for hole, types, answer, kind, broken in CELLS
]


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def damaged_png() -> bytes:
    def part(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = part(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + part(b"IDAT", b"\xff" * 60) + part(b"IEND", b"")


def gif(draw: np.random.Generator) -> bytes:
    stream = io.BytesIO()
    frames = [Image.fromarray(draw.integers(0, 256, (9, 11, 3)).astype(np.uint8)) for _ in range(4)]
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:], duration=100)
    return stream.getvalue()


def pcd(points: np.ndarray) -> bytes:
    head = f"VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nPOINTS {len(points)}\nDATA binary\n"
    return head.encode() + points.astype("<f4").tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table's folder with good and broken files of every type."""
    home = tmp_path_factory.mktemp("holes")
    here = home / "table"
    here.mkdir()
    draw = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(draw.integers(0, 256, (9, 11, 3)).astype(np.uint8)).save(here / f"{i}.png")
        soundfile.write(here / f"{i}.wav", draw.uniform(-0.5, 0.5, 300 + 40 * i).astype(np.float32), 1000)
        np.save(here / f"{i}.npy", draw.normal(size=3))
        (here / f"{i}.gif").write_bytes(gif(draw))
        (here / f"{i}.pcd").write_bytes(pcd(draw.normal(size=(5 + i, 3))))
    good = {".png": (here / "0.png").read_bytes(), ".wav": (here / "0.wav").read_bytes()}
    good |= {ending: (here / f"0{ending}").read_bytes() for ending in (".npy", ".gif", ".pcd")}
    damaged = {
        ".png": damaged_png(),
        ".wav": b"RIFF\x64\0\0\0WAVEfmt " + b"\xff" * 92,
        ".npy": b"\x93NUMPY\x07\0\x20\0" + b"{" * 32,
        ".gif": b"GIF89a\x08\0\x08\0\0\0\0" + b"\x99" * 40,
        ".pcd": b"VERSION 0.7\nFIELDS x y z\nSIZE 4 4\nTYPE F F F\nPOINTS 5\nDATA binary\n",
    }
    other = {
        ".png": good[".wav"],
        ".wav": good[".png"],
        ".npy": b"\x93NUM not",
        ".gif": good[".wav"],
        ".pcd": good[".wav"],
    }
    for ending, data in good.items():
        (here / f"zero{ending}").touch()
        (here / f"cut{ending}").write_bytes(data[: len(data) * 3 // 4])
        (here / f"bad{ending}").write_bytes(damaged[ending])
        (here / f"other{ending}").write_bytes(other[ending])
        (here / f"dir{ending}").mkdir()
        (home / f"secret{ending}").write_bytes(data)
        (here / f"link{ending}").symlink_to(home / f"secret{ending}")
    (here / "notes.txt").write_text("[1, 2, 3]")
    (here / "huge.png").write_bytes(png(Image.new("RGB", (40, 40))))
    soundfile.write(here / "silent.wav", np.zeros(0, np.float32), 1000)
    np.save(here / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    return here


def ending_of(kind: str, stem: str) -> str:
    return stem + ENDINGS[kind]


#: How to make a hole: type to the cell (bytes are written as they are; a dict changes several columns).
HOLES: dict[str, Callable[[str], Any]] = {
    "empty cell": lambda kind: {"price": "", "brand": ""} if kind == "tabular" else "",
    "spaces only": lambda kind: {"price": "  ", "brand": " "} if kind == "tabular" else "   ",
    "null word": lambda kind: {"price": "NaN", "brand": "null"} if kind == "tabular" else "None",
    "missing file": lambda kind: ending_of(kind, "nowhere"),
    "zero-byte file": lambda kind: ending_of(kind, "zero"),
    "truncated file": lambda kind: ending_of(kind, "cut"),
    "damaged file": lambda kind: ending_of(kind, "bad"),
    "file of another type": lambda kind: (
        ending_of(kind, "other") if kind in ("image", "audio", "video", "points") else "notes.txt"
    ),
    "directory": lambda kind: ending_of(kind, "dir"),
    "path out of the folder": lambda kind: ending_of(kind, "../secret"),
    "link out of the folder": lambda kind: ending_of(kind, "link"),
    "web address": lambda kind: ending_of(kind, "https://example.org/0"),
    "not a path": lambda kind: ending_of(kind, "a\0b"),
    "too many pixels": lambda kind: "huge.png",
    "no sample": lambda kind: "silent.wav",
    "not UTF-8": lambda kind: {"price": "", "brand": b"caf\xe9"} if kind == "tabular" else b"caf\xe9",
    "path that is not UTF-8": lambda kind: b"\xe9.png",
    "list that is not UTF-8": lambda kind: b"[1, 2, 3]\xe9",
    "broken JSON": lambda kind: "[1, 2, 3",
    "words in a list": lambda kind: '[1, "two", 3]',
    "wrong width": lambda kind: "[[1, 2], [3, 4]]" if kind in ("series", "points") else "[1, 2, 3, 4]",
    "ragged list": lambda kind: "[[1, 2], [3]]",
    "infinite number": lambda kind: "[[1, Infinity, 3]]" if kind == "points" else "[1, Infinity, 3]",
    "pickled array": lambda kind: "pickled.npy",
    "empty list": lambda kind: "[]",
    "list of nulls": lambda kind: "[null, NaN, null]",
    "some nulls in a list": lambda kind: "[[null, 1, 2], [1, 2, 3]]" if kind == "points" else "[null, 1, 2]",
    "unknown characters": lambda kind: "日本",
    "one cell of several empty": lambda kind: {"price": ""},
    "word in a number column": lambda kind: {"price": "twelve"},
    "infinite number in a column": lambda kind: {"price": "inf"},
    "unknown category": lambda kind: {"brand": "never seen {row}"},
}


def good_rows() -> list[Row]:
    words = ["red", "blue", "green", "house", "tree"]
    return [
        {
            "id": f"r{i}",
            "photo": f"{i % 5}.png",
            "title": f"a {words[i % 5]} {words[i % 3]}",
            "clip": f"{i % 4}.wav",
            "price": str(i * 1.5),
            "brand": "xyz"[i % 3],
            "wave": f"[{i}, 2, {i % 7}]",
            "point": f"[{i % 3}, {i}, 1]",
            "film": f"{i % 5}.gif",
            "cloud": f"{i % 5}.pcd" if i % 2 else f"[[{i}, 1, 2], [3, {i}, 5]]",
            "label": "ab"[i % 2],
            "part": PARTS[i],
        }
        for i in range(ROWS)
    ]


def with_hole(row: Row, kind: str, cell: Any) -> Row:
    change = cell if isinstance(cell, dict) else {COLUMNS[kind]: cell}
    return {**row, **{k: v.replace("{row}", row["id"]) if isinstance(v, str) else v for k, v in change.items()}}


def as_bytes(cell: Any) -> str:
    return cell.decode("latin-1") if isinstance(cell, bytes) else cell.encode().decode("latin-1")


def write_table(path: Path, rows: list[Row], header: list[str] = HEADER) -> Path:
    with path.open("w", encoding="latin-1", newline="") as stream:  # bytes pass as they are
        sheet = csv.writer(stream)
        sheet.writerow(header)
        sheet.writerows([as_bytes(row[name]) for name in header] for row in rows)
    return path


def make(folder: Path, rows: list[Row], **changes: Any) -> Prepared:
    path = write_table(folder / "table.csv", rows)
    plain = {"table": str(path), "target": "label", "id": "id", "split": {"column": "part"}, "max_bad_fraction": 1.0}
    modalities = {**MODALITIES, **changes.pop("modalities", {})}
    config = DataConfig.model_validate({**plain, "modalities": modalities, "max_pixels": 1000, **changes})
    return prepare(config, folder=folder / "run", workers=1)


def single(row: Row) -> Row:
    """The row as a server gets it: no target, no split; what is not UTF-8 arrives marked."""
    plain = {name: cell for name, cell in row.items() if name not in ("label", "part")}
    return {k: BadText(v.decode(errors="replace")) if isinstance(v, bytes) else v for k, v in plain.items()}


@pytest.fixture(scope="module")
def baseline(folder: Path) -> Prepared:
    """The table without a hole."""
    found = make(folder, good_rows())
    assert found.train.present.all()
    assert found.problems.counts == {}
    return found


def test_page_and_test_list_the_same_holes() -> None:
    assert [line.hole for line in LINES] == list(HOLES)
    assert all(line.broken == (line.kind in BROKEN) for line in LINES)
    assert [line[0] for line in WHOLE] == list(WHOLE_TESTS)


def check_finite_and_zero(batch: Any) -> None:
    def check(tensor: torch.Tensor) -> torch.Tensor:
        assert torch.isfinite(tensor.float()).all()
        return tensor

    map_tensors(batch.inputs, check)
    for m, name in enumerate(batch.modalities):
        value = batch.inputs[name]
        for tensor in value.values() if isinstance(value, dict) else [value]:
            assert not tensor[~batch.present[:, m]].any(), name


CASES = [(line, kind) for line in LINES for kind in line.types]


@pytest.mark.parametrize(("line", "kind"), CASES, ids=[f"{line.hole}-{kind}" for line, kind in CASES])
def test_one_cell(folder: Path, baseline: Prepared, line: Line, kind: str) -> None:
    cell = HOLES[line.hole](kind)
    rows = good_rows()
    for victim in VICTIMS.values():
        rows[victim] = with_hole(rows[victim], kind, cell)
    found = make(folder, rows)
    m = found.encoder.modalities.index(kind)
    for name, victim in VICTIMS.items():
        batch, before = getattr(found, name), getattr(baseline, name)
        assert list(batch.ids) == list(before.ids)
        torch.testing.assert_close(batch.target, before.target)
        expected = torch.ones_like(batch.present)
        expected[found.rows[name].index(victim), m] = line.present
        torch.testing.assert_close(batch.present, expected)
        check_finite_and_zero(batch)
    times = 2 if line.hole == "unknown category" else 3  # a training row's category is never unknown
    wanted = {} if line.kind is None else {(kind, line.kind): times}
    assert found.problems.counts == wanted
    named = found.problems.named.get((kind, line.kind or ""), [])
    assert [re.match(r"row \d+", text)[0] for text in named] in ([], ["row 4", "row 18", "row 22"][-times:])  # type: ignore[index]
    assert (named == []) == ("empty cell" in (line.kind or "empty cell"))

    table = write_table(folder / "predict.csv", [with_hole(good_rows()[1], kind, cell), good_rows()[2]], HEADER[:-2])
    (chunk,) = read_chunks(table)
    loose = Chunk.from_records([single(with_hole(good_rows()[1], kind, cell))], folder=folder)
    for chunk in (chunk, loose):  # noqa: B020
        encoded = found.encoder.encode(chunk)
        expected = torch.ones_like(encoded.batch.present)
        expected[0, m] = line.present
        torch.testing.assert_close(encoded.batch.present, expected)
        assert encoded.problems.counts == ({} if line.kind is None else {(kind, line.kind): 1})
        assert encoded.rows == list(range(len(chunk)))
        noted = line.kind is not None and "empty cell" not in line.kind
        assert encoded.notes == ({0: f"{kind}: {line.kind}"} if noted else {})
        check_finite_and_zero(encoded.batch)


def encoder_rows(encoder: TableEncoder, folder: Path, rows: list[Row], header: list[str]) -> list[Any]:
    """The same rows through a file and as single rows."""
    (chunk,) = read_chunks(write_table(folder / "predict.csv", rows, header))
    lone = Chunk.from_records([{name: row[name] for name in header} for row in rows], folder=folder)
    return [encoder.encode(chunk), encoder.encode(lone)]


def absent_column(folder: Path, baseline: Prepared) -> None:
    with pytest.raises(UserError, match=r"has no column 'tilte'; did you mean 'title'"):
        make(folder, good_rows(), modalities={"text": {"type": "text", "column": "tilte"}})
    header = [name for name in HEADER[:-2] if name not in ("title", "price")]
    for encoded in encoder_rows(baseline.encoder, folder, good_rows()[:2], header):
        assert encoded.batch.present.all(0).tolist() == [True, False, *[True] * 6]
        assert encoded.problems.counts == {
            ("text", "no column"): 2, ("tabular", "no column"): 2, ("tabular", "empty cell in a present row"): 2,
        }  # fmt: skip
        assert encoded.problems.named["tabular", "no column"] == ["column 'price'"]
        assert not encoded.batch.inputs["tabular"]["numeric_mask"].any()
    only = [{"title": "a red tree"}]
    assert baseline.encoder.encode(Chunk.from_records(only)).batch.present.sum() == 1


def whole_column_empty(folder: Path, baseline: Prepared) -> None:
    for part in ("train", "validation", "test"):
        rows = [{**row, "photo": "" if row["part"] == part else row["photo"]} for row in good_rows()]
        found = make(folder, rows)
        if part == "train":
            assert "image" not in found.encoder.modalities
            assert found.summary["notes"] == ["image: no training row has it, so it is left out of the model"]
            assert found.train.present.shape[1] == len(MODALITIES) - 1
        else:
            assert not getattr(found, part).present[:, 0].any()
            assert found.train.present.all()
    rows = [{**row, **dict.fromkeys([*COLUMNS.values(), "brand"], "")} for row in good_rows()]
    with pytest.raises(UserError, match="no training row has a usable input in any modality"):
        make(folder, rows)
    rows = [{**row, "brand": ""} for row in good_rows()]
    found = make(folder, rows)
    assert found.summary["notes"] == ["tabular: column 'brand' is empty in the training rows and is left out"]
    for encoded in encoder_rows(baseline.encoder, folder, [{**good_rows()[0], "photo": ""}] * 2, HEADER[:-2]):
        assert not encoded.batch.present[:, 0].any()
        assert encoded.batch.present[:, 1:].all()


def constant_column(folder: Path, baseline: Prepared) -> None:
    same = good_rows()[0]
    rows = [{**same, "id": row["id"], "label": row["label"], "part": row["part"]} for row in good_rows()]
    found = make(folder, rows)
    for name in VICTIMS:
        assert getattr(found, name).present.all()
        check_finite_and_zero(getattr(found, name))
    for encoded in encoder_rows(found.encoder, folder, good_rows(), HEADER[:-2]):
        assert encoded.batch.present.all()
        check_finite_and_zero(encoded.batch)


def all_inputs_empty(folder: Path, baseline: Prepared) -> None:
    nothing = dict.fromkeys([*COLUMNS.values(), "brand"], "")
    nothing["photo"] = "nowhere.png"  # broken and empty together
    rows = good_rows()
    for victim in VICTIMS.values():
        rows[victim] = {**rows[victim], **nothing}
    found = make(folder, rows)
    assert found.summary["without_input"] == 3
    assert found.problems.named["row", "no usable input"] == ["row 4", "row 18", "row 22"]
    for name, victim in VICTIMS.items():
        assert victim not in found.rows[name]
        assert len(getattr(found, name)) == len(getattr(baseline, name)) - 1
    for encoded in encoder_rows(baseline.encoder, folder, [{**good_rows()[0], **nothing}], HEADER[:-2]):
        assert len(encoded.batch) == 1
        assert not encoded.batch.present.any()


def no_target(folder: Path, baseline: Prepared) -> None:
    rows = good_rows()
    for victim in VICTIMS.values():
        rows[victim]["label"] = "nan"
    found = make(folder, rows)
    assert found.summary["without_target"] == 3
    assert found.encoder.target.classes == ("a", "b")  # no class "nan"
    assert found.problems.named["target", "empty cell"] == ["row 4", "row 18", "row 22"]
    for name, victim in VICTIMS.items():
        assert victim not in found.rows[name]
    for encoded in encoder_rows(baseline.encoder, folder, [{**good_rows()[0], "label": ""}], HEADER):
        assert encoded.batch.target is None
        assert encoded.batch.present.all()


def unseen_label(folder: Path, baseline: Prepared) -> None:
    rows = good_rows()
    for name in ("validation", "test"):
        rows[VICTIMS[name]]["label"] = "zebra"
    found = make(folder, rows)
    assert found.encoder.target.classes == ("a", "b")
    assert found.summary["unseen_label"] == 2
    assert "target: 2 x a label that no training row has; left out of scoring" in found.summary["notes"]
    assert found.problems.named["target", "unseen label"] == ["row 18: 'zebra' (validation)", "row 22: 'zebra' (test)"]
    assert len(found.validation) == len(found.test) == 3
    (chunk,) = read_chunks(write_table(folder / "predict.csv", rows[15:], HEADER))
    assert len(baseline.encoder.encode(chunk).batch) == 9
    scored = baseline.encoder.encode(chunk, target=True)
    assert scored.rows == [0, 1, 3, 4, 5, 7, 8]
    assert scored.problems.counts == {("target", "unseen label"): 2}
    with pytest.raises(UserError, match="the table has no target column 'label'; add it, or use predict"):
        baseline.encoder.encode(Chunk.from_records([single(rows[0])]), target=True)


def unreadable_row(folder: Path, baseline: Prepared) -> None:
    path = write_table(folder / "table.csv", good_rows())
    lines = path.read_bytes().splitlines(keepends=True)
    for victim in VICTIMS.values():
        lines[victim + 1] = b"too,few\r\n"
    path.write_bytes(b"".join(lines))
    config = baseline.encoder.config
    found = prepare(config, folder=folder / "run", workers=1)
    assert found.summary["unreadable"] == 3
    for name, victim in VICTIMS.items():
        batch = getattr(found, name)
        assert victim not in found.rows[name]
        assert list(batch.ids) == [f"r{row}" for row in found.rows[name]]
    (chunk,) = read_chunks(path)
    encoded = baseline.encoder.encode(chunk)
    assert [row for row, _ in encoded.unreadable] == list(VICTIMS.values())
    assert encoded.unreadable[0][1] == "expected 12 cells, got 2 (line 5)"
    assert encoded.rows == [row for row in range(ROWS) if row not in VICTIMS.values()]
    assert encoded.ids == [f"r{row}" for row in encoded.rows]


def repeated_id(folder: Path, baseline: Prepared) -> None:
    rows = [{**row, "id": f"r{i // 2}"} for i, row in enumerate(good_rows())]
    found = make(folder, rows, split={"ratios": [0.5, 0.25, 0.25]})
    where = {row: name for name, numbers in found.rows.items() for row in numbers}
    assert all(where[i] == where[i + 1] for i in range(0, ROWS, 2))
    assert set(where.values()) == set(VICTIMS)
    assert found.problems.counts["row", "duplicate id"] == 12
    keys = torch.cat([found.train.keys, found.validation.keys, found.test.keys])
    assert keys.unique().numel() == ROWS  # every row still has draws of its own
    for encoded in encoder_rows(baseline.encoder, folder, rows[:4], HEADER[:-2]):
        assert encoded.ids == ["r0", "r0", "r1", "r1"]


def no_id(folder: Path, baseline: Prepared) -> None:
    rows = good_rows()
    rows[3]["id"] = ""
    found = make(folder, rows)
    assert found.problems.named["row", "empty id"] == ["row 4"]
    for encoded in encoder_rows(baseline.encoder, folder, rows[:4], HEADER[:-2]):
        assert encoded.ids == ["r0", "r1", "r2", "4"]
    found = make(folder, rows, id=None)
    assert found.train.ids is not None
    assert list(found.train.ids) == [str(row + 1) for row in found.rows["train"]]


WHOLE_TESTS: dict[str, Callable[[Path, Prepared], None]] = {
    "absent column": absent_column,
    "whole column empty": whole_column_empty,
    "constant column": constant_column,
    "all inputs empty": all_inputs_empty,
    "no target": no_target,
    "label that no training row has": unseen_label,
    "unreadable row": unreadable_row,
    "repeated id": repeated_id,
    "no id": no_id,
}


@pytest.mark.parametrize("hole", WHOLE_TESTS)
def test_columns_and_rows(folder: Path, baseline: Prepared, hole: str) -> None:
    WHOLE_TESTS[hole](folder, baseline)
