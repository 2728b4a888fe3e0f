"""A hundred thousand rows with holes, broken files and unreadable lines: every row's content says which row it is."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from polyfuse.data.batch import Batch
from polyfuse.data.encode import Prepared, prepare
from polyfuse.data.schema import DataConfig
from polyfuse.data.table import read_chunks
from polyfuse.data.table_encoder import Encoded, TableEncoder

ROWS = 100_000
FILES = 7
WORDS = ["red", "green", "blue", "house", "tree", "stone", "river", "cloud", "table", "lamp", "chair"]
BROKEN = ("nowhere.png", "cut.png", "../out.png", "zero.png")


def unreadable(row: int) -> bool:
    return row % 997 == 5 or row in (0, ROWS - 1)


def cells(row: int) -> dict[str, str | None]:
    """What row ``row`` holds: its number as a number, as words, in a list, and as a file where it has one."""
    hole = row * 2654435761 % 2**32  # holes in no pattern that a shift could keep
    picture = None
    if row % 40 == 7:
        picture = BROKEN[hole % 4] if hole % 5 == 0 else f"{row % FILES}.png"
    return {
        "id": f"row-{row}",
        "number": None if hole % 3 == 0 else ("junk" if hole % 31 == 0 else str(row)),
        "text": None if hole % 7 < 2 else f"{WORDS[row % 11]} {WORDS[row // 11 % 11]}, {WORDS[row // 121 % 11]}",
        "list": None if hole % 11 < 3 else ("[1, " if hole % 13 == 0 else f"[{row}, {row % 5}]"),
        "picture": picture,
        "label": None if row % 101 == 3 else "abc"[row % 3],
    }


class Truth:
    """What each row must come to, as arrays over all rows."""

    rows = np.arange(ROWS)
    cells = tuple(cells(row) for row in range(ROWS))
    number = np.array([t["number"] not in (None, "junk") for t in cells])
    list = np.array([t["list"] not in (None, "[1, ") for t in cells])
    text = np.array([t["text"] is not None for t in cells])
    picture = np.array([t["picture"] is not None and t["picture"] not in BROKEN for t in cells])
    broken = np.array([t["picture"] in BROKEN for t in cells])
    label = np.array([t["label"] is not None for t in cells])
    readable = np.array([not unreadable(row) for row in rows])


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("planted")
    for k in range(FILES):
        Image.new("RGB", (8, 8), (10 + 30 * k, 0, 0)).save(folder / f"{k}.png")
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:120])
    (folder / "zero.png").touch()
    rows = Truth.cells
    names = list(rows[0])
    with (folder / "t.csv").open("w", encoding="utf-8", newline="") as stream:
        stream.write(",".join(names) + "\n")
        for row, values in enumerate(rows):
            if unreadable(row):
                stream.write("ragged,line\n")
                continue
            quoted = [f'"{value}"' if value and "," in value else value or "" for value in values.values()]
            stream.write(",".join(quoted) + ("\r\n" if row % 3 else "\n"))
            if row % 500 == 0:
                stream.write("\n")  # blank lines are no rows
    with (folder / "t.jsonl").open("w", encoding="utf-8") as stream:
        for row, values in enumerate(rows[:20_000]):
            known = {name: value for name, value in values.items() if value is not None}
            stream.write('{"id": "row-' if unreadable(row) else json.dumps(known))
            stream.write("\n")
    return {"csv": folder / "t.csv", "jsonl": folder / "t.jsonl"}


@pytest.fixture(scope="module")
def prepared(tables: dict[str, Path]) -> Prepared:
    config = DataConfig.model_validate(
        {
            "table": str(tables["csv"]),
            "target": "label",
            "id": "id",
            "max_bad_fraction": 0.3,
            "modalities": {
                "number": {"type": "tabular", "columns": ["number"]},
                "text": {"type": "text", "column": "text", "max_length": 6, "vocab_size": 200},
                "list": {"type": "vector", "column": "list"},
                "picture": {"type": "image", "column": "picture", "size": 8},
            },
        }
    )
    return prepare(config, folder=tables["csv"].parent, workers=2)


def check(batch_rows: list[int], batch: Batch, encoder: TableEncoder) -> None:
    """The content of every encoded row says the row number it is filed under."""
    rows = np.array(batch_rows)
    codecs: dict[str, Any] = encoder.codecs
    inputs: dict[str, Any] = batch.inputs
    for m, name in enumerate(batch.modalities):
        np.testing.assert_array_equal(batch.present[:, m].numpy(), getattr(Truth, name)[rows], err_msg=name)

    here = Truth.number[rows]
    number = inputs["number"]["numeric"][:, 0].double().numpy() * codecs["number"].std[0] + codecs["number"].mean[0]
    np.testing.assert_allclose(number[here], rows[here], atol=0.02)

    here = Truth.list[rows]
    value = inputs["list"].double().numpy() * codecs["list"].std + codecs["list"].mean
    np.testing.assert_allclose(value[here], np.stack([rows, rows % 5], 1)[here], atol=0.02)

    here = Truth.text[rows]
    word = codecs["text"].encode([WORDS], encoder.reading(None)).parts["ids"][:, 0]
    assert len(set(word.tolist())) == len(WORDS)  # each word is one token, so that tokens tell rows apart
    for place, token in ((0, rows % 11), (1, rows // 11 % 11), (3, rows // 121 % 11)):
        np.testing.assert_array_equal(inputs["text"]["ids"][:, place].numpy()[here], word[token[here]])

    here = Truth.picture[rows]
    np.testing.assert_array_equal(inputs["picture"][:, 0, 0, 0].numpy()[here], 10 + 30 * (rows[here] % FILES))


def stream(encoder: TableEncoder, path: Path, size: int) -> Iterator[Encoded]:
    for chunk in read_chunks(path, rows_per_chunk=size):
        yield encoder.encode(chunk, workers=2)


def test_no_row_moves_in_training(prepared: Prepared) -> None:
    seen: list[int] = []
    for name in ("train", "validation", "test"):
        batch, rows = getattr(prepared, name), prepared.rows[name]
        assert rows == sorted(rows)
        assert list(batch.ids) == [f"row-{row}" for row in rows]
        np.testing.assert_array_equal(batch.target.numpy(), np.array(rows) % 3)
        check(rows, batch, prepared.encoder)
        seen += rows
    usable = Truth.readable & Truth.label & (Truth.number | Truth.list | Truth.text | Truth.picture)
    assert sorted(seen) == np.flatnonzero(usable).tolist()  # every usable row once
    summary = prepared.summary
    assert summary["unreadable"] == (~Truth.readable).sum()
    assert summary["without_target"] == (Truth.readable & ~Truth.label).sum()
    assert summary["without_input"] == (Truth.readable & Truth.label & ~usable).sum()


@pytest.mark.parametrize(("kind", "rows", "size"), [("csv", ROWS, 4096), ("jsonl", 20_000, 7001)])
def test_no_row_moves_in_prediction(
    tables: dict[str, Path], prepared: Prepared, kind: str, rows: int, size: int
) -> None:
    answered: list[int] = []
    refused: list[int] = []
    noted: list[int] = []
    for encoded in stream(prepared.encoder, tables[kind], size):
        assert encoded.ids == [f"row-{row}" for row in encoded.rows]
        check(encoded.rows, encoded.batch, prepared.encoder)
        answered += encoded.rows
        refused += [row for row, _ in encoded.unreadable]
        noted += [row for row, note in encoded.notes.items() if "picture" in note]
    assert sorted(answered + refused) == list(range(rows))  # every row once
    assert answered == sorted(answered)
    assert refused == np.flatnonzero(~Truth.readable[:rows]).tolist()
    assert noted == np.flatnonzero((Truth.readable & Truth.broken)[:rows]).tolist()


def test_the_check_sees_a_shift(tables: dict[str, Path], prepared: Prepared) -> None:
    encoded = next(stream(prepared.encoder, tables["csv"], 1000))
    check(encoded.rows, encoded.batch, prepared.encoder)
    with pytest.raises(AssertionError):
        check([row + 1 for row in encoded.rows], encoded.batch, prepared.encoder)
    turned = encoded.batch.rows(torch.arange(len(encoded.batch)).roll(1))
    with pytest.raises(AssertionError):
        check(encoded.rows, turned, prepared.encoder)
