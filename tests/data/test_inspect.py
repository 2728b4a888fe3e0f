import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from polyfuse.data.encode import prepare
from polyfuse.data.inspect import Proposal, propose
from polyfuse.data.schema import DataConfig
from polyfuse.errors import UserError
from polyfuse.yaml_text import parse_yaml

Row = dict[str, Any]


def write(folder: Path, table: list[Row], name: str = "t.csv") -> Path:
    with (folder / name).open("w", encoding="utf-8", newline="") as stream:
        sheet = csv.DictWriter(stream, list(table[0]))
        sheet.writeheader()
        sheet.writerows(table)
    return folder / name


def shop(folder: Path, count: int = 120) -> list[Row]:
    draw = random.Random(0)
    (folder / "img").mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (80 * i, 0, 0)).save(folder / "img" / f"{i}.jpg")
        np.save(folder / f"{i}.npy", np.ones((4 + i, 2)))
    words = "small large red green wooden table chair lamp with a drawer and two shelves".split()
    return [
        {
            "sku": f"A-{i:05d}",
            "product_id": f"p{i}",
            "photo": f"img/{i % 4}.jpg" if i % 5 else "",
            "title": " ".join(draw.choices(words, k=6)) if i % 3 else "",
            "price": f"{draw.gauss(50, 9):.2f}",
            "stock": draw.randrange(9),
            "brand": draw.choice(["Acme", "Bolt Co", ""]),
            "track": f"{i % 3}.npy",
            "embedding": json.dumps([round(draw.random(), 3) for _ in range(4)]),
            "seller_id": f"s{i % 12}",
            "added": f"2024-0{1 + i % 9}-11",
            "currency": "EUR",
            "nothing": "",
            "split": ["train", "train", "val", "test"][i % 4],
            "category": ["chairs", "tables", "lamps"][i % 3],
        }
        for i in range(count)
    ]


@pytest.fixture
def proposal(tmp_path: Path) -> Proposal:
    return propose(write(tmp_path, shop(tmp_path)), target="category")


def test_every_column_finds_its_role(proposal: Proposal) -> None:
    kinds = {column["name"]: (column["kind"], column["role"]) for column in proposal.columns}
    assert kinds == {
        "sku": ("code", "left out"),
        "product_id": ("id", "id"),
        "photo": ("image", "input photo"),
        "title": ("text", "input title"),
        "price": ("numeric", "input table"),
        "stock": ("numeric", "input table"),
        "brand": ("categorical", "input table"),
        "track": ("series", "input track"),
        "embedding": ("vector", "input embedding"),
        "seller_id": ("code", "left out"),
        "added": ("date", "left out"),
        "currency": ("constant", "left out"),
        "nothing": ("empty", "left out"),
        "split": ("categorical", "split"),
        "category": ("categorical", "target"),
    }
    assert (
        "column 'seller_id' is left out: code (named like an id); if its rows belong together, set data.split.group"
        in ("\n".join(proposal.notes))
    )


def test_counts_are_of_the_whole_table(proposal: Proposal) -> None:
    assert proposal.rows == 120
    assert proposal.target == {
        "columns": ["category"],
        "task": "classification",
        "empty": 0,
        "values": {"chairs": 40, "tables": 40, "lamps": 40},
    }
    absent = {m["name"]: m["absent"] for m in proposal.modalities}
    assert absent == {"photo": 24, "title": 40, "table": 0, "track": 0, "embedding": 0}
    assert sum(proposal.patterns.values()) == 120
    assert proposal.patterns["track+embedding+table"] == 8  # every fifteenth row has neither photo nor title
    assert proposal.problems.counts == {("photo", "missing file"): sum(i % 4 == 3 and i % 5 > 0 for i in range(120))}


def test_the_yaml_is_a_schema_that_trains(proposal: Proposal, tmp_path: Path) -> None:
    text = proposal.to_yaml()
    plain = yaml.safe_load(text)
    assert list(plain) == ["data"]
    assert "max_pixels" not in text  # defaults are not repeated
    config = DataConfig.model_validate(plain["data"])
    assert config == proposal.config
    assert config.id == "product_id"
    assert config.split.column == "split"
    found = prepare(config.model_copy(update={"max_bad_fraction": 0.5}), folder=tmp_path, workers=1)
    assert found.encoder.modalities == ("photo", "title", "track", "embedding", "table")
    assert found.summary["splits"] == {"train": 60, "validation": 30, "test": 30}
    json.dumps(proposal.to_dict())


def test_the_lines_say_what_was_found(proposal: Proposal) -> None:
    text = "\n".join(proposal.lines())
    for part in (
        "120 rows, 15 columns",
        "photo (image): absent in 24 rows (20.0%)",
        "track+embedding+table: 8 (6.7%)",
        "target: category (classification), 0 empty",
        "  chairs: 40",
        "photo: 24 x missing file (row 4: 'img/3.jpg'; ",
        "column 'currency' is left out: constant (one value everywhere)",
    ):
        assert part in text, part
    assert all(len(line) <= 130 for line in proposal.lines() if "missing file" not in line and "table:" not in line)


def test_only_the_target_is_needed(tmp_path: Path) -> None:
    table = [{"x": i * 0.5, "y": "ab"[i % 2]} for i in range(60)]
    proposal = propose(write(tmp_path, table), target="y")
    found = prepare(proposal.config, folder=tmp_path, workers=1)
    assert len(found.train) == 42
    assert proposal.config.id is None


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        ({"label": "ab", "x": "xyz"}, "label"),
        ({"x": "ab", "Class": "xyz"}, "Class"),
        ({"first": "ab", "last": "xyz", "n": "1"}, "last"),
    ],
)
def test_a_target_is_guessed_and_said_to_be(tmp_path: Path, columns: dict[str, str], chosen: str) -> None:
    table = [{name: letters[i % len(letters)] for name, letters in columns.items()} | {"v": i / 3} for i in range(60)]
    proposal = propose(write(tmp_path, table))
    assert proposal.config.target == chosen
    assert f"target: '{chosen}' is a guess; --target COLUMN names another" in proposal.notes


def test_tasks_are_described(tmp_path: Path) -> None:
    table = [{"x": "abc"[i % 3], "y": i * 0.25, "tags": "p|q" if i % 2 else "q", "l": '["u"]'} for i in range(40)]
    path = write(tmp_path, table)
    found = propose(path, target="y").target
    assert (found["task"], found["low"], found["high"], found["mean"]) == ("regression", 0, 9.75, 4.875)
    proposal = propose(path, target="tags")
    assert (proposal.config.task, proposal.config.separator) == ("multilabel", "|")
    assert proposal.target["values"] == {"q": 40, "p": 20}
    assert propose(path, target="l").target["values"] == {"u": 40}
    table = [{"x": i / 3, "a": i % 2, "b": int(i % 3 == 0)} for i in range(30)]
    proposal = propose(write(tmp_path, table), target=["a", "b"])
    assert proposal.target["values"] == {"a": 15, "b": 10}
    assert proposal.config.target == ("a", "b")
    assert list(proposal.config.modalities["table"].all_columns) == ["x"]


def test_a_column_that_gives_the_target_away_is_named(tmp_path: Path) -> None:
    table = [{"x": i / 3, "code": "XYZ"[i % 3], "y": "abc"[i % 3]} for i in range(60)]
    assert "column 'code' tells the target one to one" in "\n".join(propose(write(tmp_path, table), target="y").notes)
    table[7]["code"] = "X"
    assert not propose(write(tmp_path, table), target="y").notes


def test_duplicate_ids_and_unreadable_rows_are_counted(tmp_path: Path) -> None:
    table = [{"id": f"r{i}", "x": i / 3, "y": "ab"[i % 2]} for i in range(6000)]
    table[5500]["id"] = "r3"
    path = write(tmp_path, table)
    lines = path.read_text().splitlines()
    lines[10] = "just one"
    path.write_text("\n".join(lines))
    proposal = propose(path, target="y")
    assert proposal.config.id == "id"
    assert proposal.problems.counts == {("row", "duplicate id"): 1, ("row", "unreadable"): 1}
    assert proposal.rows == 6000


def test_files_inside_parquet_and_odd_names(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    table = {
        "image": [{"bytes": data, "path": "a.png"}] * 20,
        "raw.bytes": [data] * 20,
        "signal": [[1.0, 2.0] * (1 + i % 3) for i in range(20)],
        "my text+": [f"a text of {i} words" for i in range(20)],
        "tags": [["a"], ["b"]] * 10,
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    proposal = propose(tmp_path / "t.parquet", target="tags")
    assert {name: m.type for name, m in proposal.config.modalities.items()} == {
        "image": "image", "raw_bytes": "image", "signal": "series", "my_text": "text",
    }  # fmt: skip
    assert proposal.config.task == "multilabel"
    found = prepare(proposal.config, folder=tmp_path, workers=1)
    assert found.train.present.all()


def test_words_read_as_empty_are_named(tmp_path: Path) -> None:
    table = [{"region": ["NA", "EU", "", "AS"][i % 4], "x": i / 3, "y": "ab"[i % 2]} for i in range(40)]
    notes = propose(write(tmp_path, table), target="y").notes
    assert notes == ["column 'region': 10 x 'NA' read as empty; if that is a value, set data.null_values"]


def test_a_wrong_folder_is_foretold(tmp_path: Path) -> None:
    table = [{"photo": f"{i}.png", "x": i / 3, "y": "ab"[i % 2]} for i in range(30)]
    notes = propose(write(tmp_path, table), target="y").notes
    assert "photo: 30 of the first 30 files are broken; training refuses more than data.max_bad_fraction = 0.1" in notes


def test_web_addresses_are_no_files(tmp_path: Path) -> None:
    table = [{"photo": f"https://example.org/{i}.jpg", "x": i / 3, "y": "ab"[i % 2]} for i in range(30)]
    proposal = propose(write(tmp_path, table), target="y")
    assert "photo" not in proposal.config.modalities
    assert "nothing is fetched" in "\n".join(proposal.notes)


def test_many_patterns_and_names_fit_a_terminal(tmp_path: Path) -> None:
    names = ['the "title", raw', "a<b>&c", "p.q+r", "größe", "???"]
    words = ["red small chair", "green tall lamp", "blue old table", "pale new shelf"]
    table = [
        {name: f"{words[i % 4]} {i}" if (i >> m) & 1 else "" for m, name in enumerate(names)} | {"y": "ab"[i % 2]}
        for i in range(96)
    ]
    proposal = propose(write(tmp_path, table), target="y")
    assert list(proposal.config.modalities) == ["the_title_raw", "a_b_c", "p_q_r", "größe", "text"]
    lines = proposal.lines()
    assert len(proposal.patterns) == 32
    start = lines.index("present together:")
    assert lines.index("", start) - start == 22
    assert lines[start + 21] == "  ... and 12 more in 36 rows"


def test_columns_named_like_numbers_survive_the_yaml(tmp_path: Path) -> None:
    odd = ["1e-3", "no", "null", "2024-01-01", "y: z", "#x", "- a", "{b}", "12:30:45"]
    table = [{name: f"{i * k % 17}.5" for k, name in enumerate(odd, 2)} | {"1e5": "ab"[i % 2]} for i in range(40)]
    proposal = propose(write(tmp_path, table), target="1e5")
    plain = parse_yaml(proposal.to_yaml(), "it")
    assert plain["data"]["target"] == "1e5"
    assert plain["data"]["modalities"]["table"]["columns"] == odd


def test_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,y\n" + b"".join(b"caf\xe9 no %d,%s\n" % (i, (b"p", b"n")[i % 2]) for i in range(40)))
    proposal = propose(path, target="y")
    assert "cells that are not UTF-8 read as empty, in column 'a' (40); save the table as UTF-8" in proposal.lines()
    with pytest.raises(UserError, match=r"no training row has a usable input .*\(a\); cells are not UTF-8, save"):
        prepare(proposal.config, folder=tmp_path)


def test_mistakes(tmp_path: Path) -> None:
    table = [{"id": f"r{i}", "y": "ab"[i % 2]} for i in range(30)]
    path = write(tmp_path, table)
    with pytest.raises(UserError, match="has no column that can be an input"):
        propose(path, target="y")
    with pytest.raises(UserError, match="has no column 'yy'; did you mean 'y'"):
        propose(path, target="yy")
    with pytest.raises(UserError, match="no column looks like a target; name it with --target COLUMN"):
        propose(write(tmp_path, [{"id": f"r{i}", "t": f"some text {i} of many words"} for i in range(30)]))
    path.write_text("a,b\n")
    with pytest.raises(UserError, match=r"'t.csv' has no row below its header"):
        propose(path, target="a")
