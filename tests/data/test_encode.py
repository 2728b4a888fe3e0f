import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from polyfuse.data.batch import map_tensors
from polyfuse.data.encode import Prepared, TableEncoder, prepare
from polyfuse.data.schema import DataConfig
from polyfuse.data.table import Chunk, read_chunks
from polyfuse.errors import UserError

Row = dict[str, Any]
TEXT = {"text": {"type": "text", "column": "title"}}
SPECS = {"specs": {"type": "tabular", "columns": ["price", "brand"]}}


def rows(count: int = 211, seed: int = 0) -> list[Row]:
    draw = random.Random(seed)
    return [
        {
            "id": f"r{i}",
            "title": f"{draw.choice(['red', 'blue'])} {draw.choice(['house', 'tree'])}" if draw.random() > 0.2 else "",
            "price": f"{draw.gauss(50, 10):.2f}" if draw.random() > 0.2 else "",
            "brand": draw.choice("xyz"),
            "label": draw.choice("aab"),
            "owner": f"o{draw.randrange(30)}",
        }
        for i in range(count)
    ]


def write(folder: Path, table: list[Row], name: str = "t.csv") -> Path:
    with (folder / name).open("w", encoding="utf-8", newline="") as stream:
        sheet = csv.DictWriter(stream, list(table[0]))
        sheet.writeheader()
        sheet.writerows(table)
    return folder / name


def make(folder: Path, table: list[Row], workers: int = 1, **changes: Any) -> Prepared:
    plain: Row = {"target": "label", "modalities": {**TEXT, **SPECS}, **changes}
    config = DataConfig.model_validate({"table": str(write(folder, table)), **plain})
    return prepare(config, folder=folder / "run", workers=workers)


def assert_same(first: Any, second: Any) -> None:
    assert first.modalities == second.modalities
    torch.testing.assert_close(first.present, second.present)
    torch.testing.assert_close(first.target, second.target)
    torch.testing.assert_close(first.keys, second.keys)
    found: list[torch.Tensor] = []
    map_tensors(first.inputs, lambda t: found.append(t) or t)
    others = iter(found)
    map_tensors(second.inputs, lambda t: torch.testing.assert_close(t, next(others)) or t)
    assert next(others, None) is None


def test_prediction_encodes_as_training_did(tmp_path: Path) -> None:
    table = rows()
    found = make(tmp_path, table, id="id")
    again = TableEncoder.from_dict(json.loads(json.dumps(found.encoder.to_dict())))
    assert again.specs == found.encoder.specs
    assert again.target == found.encoder.target
    (chunk,) = read_chunks(tmp_path / "t.csv")
    everything = again.encode(chunk, target=True)
    for name in ("train", "validation", "test"):
        index = torch.tensor([everything.rows.index(row) for row in found.rows[name]])
        assert_same(everything.batch.rows(index), getattr(found, name))
    for row in (0, 3, 100):
        lone = again.encode(Chunk.from_records([table[row]]))
        assert lone.ids == [f"r{row}"]
        at = torch.tensor([row])
        map_tensors(lone.batch.inputs, lambda t: t)
        torch.testing.assert_close(lone.batch.present, everything.batch.rows(at).present)
        torch.testing.assert_close(lone.batch.inputs, everything.batch.rows(at).inputs)
        torch.testing.assert_close(lone.batch.keys, everything.batch.rows(at).keys)


def test_everything_learned_comes_from_training_rows(tmp_path: Path) -> None:
    table = rows()
    first = make(tmp_path, table, id="id")
    for name in ("validation", "test"):
        for row in first.rows[name]:
            table[row].update(title="zzz qqq vvv www", price="1e6", brand="new")
    second = make(tmp_path, table, id="id")
    assert second.rows == first.rows
    assert [c.to_dict() for c in second.encoder.codecs.values()] == [c.to_dict() for c in first.encoder.codecs.values()]
    prices = [float(table[row]["price"]) for row in first.rows["train"] if table[row]["price"]]
    codec: Any = second.encoder.codecs["specs"]
    np.testing.assert_allclose([codec.mean[0], codec.std[0]], [np.mean(prices), np.std(prices)])


@pytest.mark.parametrize("named", [True, False])
def test_reordering_the_table_moves_no_row_to_another_split(tmp_path: Path, named: bool) -> None:
    table = rows()
    changes: Row = {"id": "id"} if named else {}
    where: list[dict[str, str]] = []
    for seed in (0, 1):
        mixed = random.Random(seed).sample(table, len(table))
        found = make(tmp_path, mixed, **changes)
        where.append({mixed[row]["id"]: name for name, numbers in found.rows.items() for row in numbers})
    same = sum(where[0][key] == where[1][key] for key in where[0])
    if named:
        assert where[0] == where[1]
        return
    # without an id a row is its content; equal rows of this small table cannot be told apart and need not
    content = {row["id"]: tuple(row[c] for c in ("title", "price", "brand", "label")) for row in table}
    by_content = [{content[key]: name for key, name in part.items()} for part in where]
    assert by_content[0] == by_content[1]
    assert same == len(table)


def test_rows_of_equal_content_share_a_split_and_keep_their_own_draws(tmp_path: Path) -> None:
    table = rows(200)
    for i, row in enumerate(table):
        row["title"] += f" number {i}"
    table += [dict(row) for row in table[:15]]
    found = make(tmp_path, table)
    where = {row: name for name, numbers in found.rows.items() for row in numbers}
    assert all(where[i] == where[i + 200] for i in range(15))
    assert found.problems.counts["row", "copy of an earlier row"] == 15
    keys = torch.cat([found.train.keys, found.validation.keys, found.test.keys])
    assert keys.unique().numel() == len(keys)


def test_rows_that_are_equal_by_chance_are_not_kept_together(tmp_path: Path) -> None:
    table = [{"brand": "xyz"[i % 3], "label": "ab"[i // 3 % 2]} for i in range(120)]
    found = make(tmp_path, table, modalities={"specs": {"type": "tabular", "columns": ["brand"]}})
    assert found.summary["splits"] == {"train": 84, "validation": 18, "test": 18}
    assert not found.problems
    keys = torch.cat([found.train.keys, found.validation.keys, found.test.keys])
    assert keys.unique().numel() == 120


def test_null_words_are_a_choice_but_the_empty_cell_is_not(tmp_path: Path) -> None:
    table = [{"brand": ["NA", "SA", ""][i % 3], "label": ["None", "b"][i % 2]} for i in range(120)]
    changes: Row = {"modalities": {"specs": {"type": "tabular", "columns": ["brand"]}}, "null_values": []}
    found = make(tmp_path, table, **changes)
    assert found.encoder.target.classes == ("None", "b")
    codec: Any = found.encoder.codecs["specs"]
    assert codec.categorical == {"brand": ["NA", "SA"]}
    assert found.summary["without_input"] == 40


def test_groups_do_not_leak_and_are_handed_on(tmp_path: Path) -> None:
    table = rows(400)
    table[5]["owner"] = ""
    found = make(tmp_path, table, split={"group": "owner"})
    owners = {name: {table[row]["owner"] for row in numbers} - {""} for name, numbers in found.rows.items()}
    assert not owners["train"] & owners["validation"]
    assert not owners["train"] & owners["test"]
    assert not owners["validation"] & owners["test"]
    assert all(owners.values())
    assert found.groups is not None
    assert found.groups["test"] == [table[row]["owner"] or f"row {row + 1}" for row in found.rows["test"]]


def test_a_split_column_is_obeyed(tmp_path: Path) -> None:
    table = [{**row, "fold": ["train", "val", "test", ""][i % 4]} for i, row in enumerate(rows())]
    found = make(tmp_path, table, split={"column": "fold"})
    usable = {row for row in range(len(table)) if row % 4 != 3}
    for s, name in enumerate(("train", "validation", "test")):
        assert found.rows[name] == [row for row in sorted(usable) if row % 4 == s]
    assert found.problems.counts["split", "empty cell"] == sum(1 for row in range(len(table)) if row % 4 == 3)


def test_a_split_column_without_validation_takes_it_from_training(tmp_path: Path) -> None:
    table = [{**row, "fold": "test" if i % 5 == 0 else "train"} for i, row in enumerate(rows())]
    found = make(tmp_path, table, split={"column": "fold"}, id="id")
    assert all(row % 5 == 0 for row in found.rows["test"])
    assert 0.12 < len(found.validation) / (len(found.validation) + len(found.train)) < 0.24


def test_class_shares_and_order_do_not_depend_on_the_split(tmp_path: Path) -> None:
    found = make(tmp_path, rows())
    assert found.encoder.target.classes == ("a", "b")
    counts = found.summary["classes"]
    for label in "ab":
        total = sum(counts[label].values())
        assert abs(counts[label]["train"] - 0.7 * total) <= 1.5
        assert abs(counts[label]["test"] - 0.15 * total) <= 1.5
    assert sum(found.summary["patterns"].values()) == sum(found.summary["splits"].values())
    json.dumps(found.summary)
    assert found.lines()[0].startswith("rows: 211 (train 14")


def test_threads_and_files_change_nothing(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for i in range(9):
        Image.fromarray(draw.integers(0, 256, (9, 9, 3)).astype(np.uint8)).save(tmp_path / f"{i}.png")
    table = [{**row, "photo": f"{i % 10}.png" if i % 3 else ""} for i, row in enumerate(rows())]
    changes: Row = {"modalities": {**TEXT, **SPECS, "photo": {"type": "image", "column": "photo", "size": 8}}}
    changes |= {"max_bad_fraction": 0.2}
    alone = make(tmp_path, table, workers=1, **changes)
    threads = make(tmp_path, table, workers=3, **changes)
    mapped = make(tmp_path, table, workers=2, **changes, max_memory_gb=1e-6)
    assert any((tmp_path / "run" / "encoded").iterdir())
    for other in (threads, mapped):
        assert other.problems.to_dict() == alone.problems.to_dict()
        for name in ("train", "validation", "test"):
            assert_same(getattr(other, name), getattr(alone, name))
    assert alone.problems.counts["photo", "missing file"] > 0


def test_multilabel_and_regression(tmp_path: Path) -> None:
    table = [{**row, "label": json.dumps(["p", "q"][: i % 3])} for i, row in enumerate(rows())]
    found = make(tmp_path, table)
    assert (found.encoder.target.task, found.encoder.target.classes) == ("multilabel", ("p", "q"))
    assert found.train.target is not None
    assert found.train.target.shape == (len(found.train), 2)
    assert found.train.target.tolist() == [[float(row % 3 > 0), float(row % 3 > 1)] for row in found.rows["train"]]
    table = [{**row, "p": i % 2, "q": int(i % 3 == 0)} for i, row in enumerate(rows())]
    found = make(tmp_path, table, target=["p", "q"])
    assert found.test.target is not None
    assert found.test.target.tolist() == [[float(row % 2), float(row % 3 == 0)] for row in found.rows["test"]]
    table = [{**row, "label": i / 7} for i, row in enumerate(rows())]
    found = make(tmp_path, table)
    assert found.encoder.target.task == "regression"
    assert found.test.target is not None
    back = found.test.target * found.encoder.target.std + found.encoder.target.mean
    torch.testing.assert_close(back, torch.tensor(found.rows["test"]) / 7, atol=1e-4, rtol=0)
    assert abs(float(found.train.target.mean())) < 1e-5  # type: ignore[union-attr]


def test_json_lines_and_parquet_come_to_the_same(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = rows()
    from_csv = make(tmp_path, table, id="id")
    full = [{k: v or None for k, v in row.items()} for row in table]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in full))
    pq.write_table(pa.Table.from_pylist(full), tmp_path / "t.parquet")
    for name in ("t.jsonl", "t.parquet"):
        config = from_csv.encoder.config.model_copy(update={"table": str(tmp_path / name)})
        other = prepare(config, folder=tmp_path, workers=1)
        for split in ("train", "validation", "test"):
            assert_same(getattr(other, split), getattr(from_csv, split))


def test_a_table_read_in_passes_equals_one_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = make(tmp_path, rows(), id="id")
    monkeypatch.setattr("polyfuse.data.encode._HELD_BYTES", 0)
    streamed = make(tmp_path, rows(), id="id")
    for split in ("train", "validation", "test"):
        assert_same(getattr(streamed, split), getattr(held, split))


def test_broken_files_stop_training_and_empty_cells_do_not(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    photo = {"photo": {"type": "image", "column": "photo", "size": 8}}
    table = [{**row, "photo": "a.png" if i % 10 == 0 else "b.png" if i % 2 else ""} for i, row in enumerate(rows())]
    with pytest.raises(
        UserError, match=r"modality 'photo': 22 of \d+ files broken, more than data.max_bad_fraction = 0.1.*wrong type"
    ):
        make(tmp_path, table, modalities={**SPECS, **photo})
    assert make(tmp_path, table, modalities={**SPECS, **photo}, max_bad_fraction=0.2).train.present[:, 1].any()
    table = [{**row, "photo": "b.png" if i % 50 == 0 else ""} for i, row in enumerate(rows())]
    assert make(tmp_path, table, modalities={**SPECS, **photo}, max_bad_fraction=0).train.present[:, 1].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "idd"}, "'t.csv' has no column 'idd'; did you mean 'id'. its columns: 'id', 'title'"),
        ({"split": {"group": "ownr"}}, "has no column 'ownr'; did you mean 'owner'"),
        ({"split": {"column": "brand"}}, "split column 'brand' must hold train"),
        ({"target": "id"}, "target 'id' has 211 classes in 211 training rows"),
        ({"table": "nowhere.csv"}, "table 'nowhere.csv' does not exist"),
    ],
)
def test_mistakes(tmp_path: Path, change: Row, message: str) -> None:
    config = DataConfig.model_validate(
        {"table": str(write(tmp_path, rows())), "target": "label", "modalities": SPECS, **change}
    )
    with pytest.raises(UserError, match=message):
        prepare(config, folder=tmp_path)


def test_tables_without_usable_rows(tmp_path: Path) -> None:
    table = rows()
    with pytest.raises(UserError, match=r"no row of table 't.csv' has a usable target 'label': .*211 x empty cell"):
        make(tmp_path, [{**row, "label": "nan"} for row in table])
    path = write(tmp_path, table)
    path.write_text(path.read_text().splitlines()[0] + "\n")
    config = DataConfig.model_validate({"table": str(path), "target": "label", "modalities": SPECS})
    with pytest.raises(UserError, match=r"table 't.csv' has no readable row below its header"):
        prepare(config, folder=tmp_path)
    path.write_text("price,brand,label\n1,2\n3,4\n")
    with pytest.raises(UserError, match=r"no readable row: row: 2 x unreadable .*expected 3 cells, got 2 \(line 2\)"):
        prepare(config, folder=tmp_path)
    with pytest.raises(UserError, match=r"has no training row; check data.split"):
        make(tmp_path, [{**row, "fold": "test"} for row in table], split={"column": "fold"})
    with pytest.raises(UserError, match=r"has no usable validation row out of 2; check data.split"):
        make(tmp_path, [{**row, "label": "ab"[i]} for i, row in enumerate(table[:2])])


def test_an_empty_chunk_is_an_empty_batch(tmp_path: Path) -> None:
    found = make(tmp_path, rows())
    encoded = found.encoder.encode(Chunk.from_records([]))
    assert (len(encoded.batch), encoded.ids, encoded.rows) == (0, [], [])
    only_bad = Chunk({"title": [None]}, 7, [(7, "why")], 1)
    encoded = found.encoder.encode(only_bad)
    assert (len(encoded.batch), encoded.unreadable) == (0, [(7, "why")])
