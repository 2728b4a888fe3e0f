"""Every row of a table has its own answer, whatever is broken in it."""

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from polyfuse.data.spec import TargetSpec
from polyfuse.errors import UserError
from polyfuse.run import predict_table
from polyfuse.run.answers import Answers
from polyfuse.run.folder import Run
from polyfuse.run.predict import Predicted, _writer


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_order_ids_and_counts_are_kept(run: Run, table: Path, tmp_path: Path) -> None:
    found = predict_table(run, table, output=tmp_path / "p.csv")
    rows, asked = read(tmp_path / "p.csv"), read(table)
    assert [r["id"] for r in rows] == [r["id"] for r in asked]
    assert [int(r["row"]) for r in rows] == list(range(1, len(asked) + 1))
    assert (found.rows, found.predicted, found.unreadable) == (len(asked), len(asked), 0)
    for row, question in zip(rows, asked, strict=True):
        here = {"picture": question["picture"], "name": question["name"], "facts": question["style"]}
        assert row["present"] == "+".join(name for name, cell in here.items() if cell)
        probabilities = {k[2:]: float(v) for k, v in row.items() if k.startswith("p:")}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
        assert row["prediction"] == max(probabilities, key=lambda k: probabilities[k])
        assert float(row["confidence"]) == pytest.approx(max(probabilities.values()), abs=1e-4)
        assert set(json.loads(row["set"])) <= set(run.encoder.target.classes)


def test_one_row_alone_gets_the_answer_it_has_in_the_table(run: Run, table: Path, tmp_path: Path) -> None:
    predict_table(run, table, output=tmp_path / "p.csv")
    asked = read(table)
    for number in (0, 17, 101):
        cells = {key: value for key, value in asked[number].items() if value}
        answer = run.predict([cells], folder=table.parent)[0]
        row = read(tmp_path / "p.csv")[number]
        assert answer.label == row["prediction"]
        assert answer.confidence == pytest.approx(float(row["confidence"]), abs=1e-4)
        assert answer.abstain == (row["abstain"] == "true")


def test_csv_and_parquet_agree(run: Run, table: Path, tmp_path: Path) -> None:
    predict_table(run, table, output=tmp_path / "p.csv")
    predict_table(run, table, output=tmp_path / "p.parquet")
    rows, typed = read(tmp_path / "p.csv"), pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert [r["prediction"] for r in rows] == [r["prediction"] for r in typed]
    assert [json.loads(r["set"]) for r in rows] == [r["set"] for r in typed]
    np.testing.assert_allclose([float(r["confidence"]) for r in rows], [r["confidence"] for r in typed], atol=1e-5)


def test_bad_rows_stand_in_the_output_with_their_reason(run: Run, table: Path, tmp_path: Path) -> None:
    (tmp_path / "half.png").write_bytes((table.parent / read(table)[0]["picture"]).read_bytes()[:200])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_bytes(b"not an image")
    (tmp_path / "folder.png").mkdir()
    lines = [
        "id,picture,name,style,code_points,words",
        "good,,grinning face,fluent,1,2",
        "ragged,one,two",
        "nothing,,,,,",
        "lost,gone.png,red heart,fluent,1,2",
        "half,half.png,red heart,fluent,1,2",
        "zero,empty.png,red heart,fluent,1,2",
        "text,text.png,red heart,fluent,1,2",
        "folder,folder.png,red heart,fluent,1,2",
        "out,../secret.png,red heart,fluent,1,2",
        "number,,red heart,fluent,many,2",
        "last,,nan,NA,null,",
    ]
    (tmp_path / "bad.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = predict_table(run, tmp_path / "bad.csv", output=tmp_path / "p.csv")
    rows = {r["id"] or f"row {r['row']}": r for r in read(tmp_path / "p.csv")}
    assert len(rows) == found.rows == 11
    assert found.unreadable == 1
    notes = {name: row["note"] for name, row in rows.items()}
    assert notes["good"] == ""
    assert notes["row 2"].startswith("unreadable: ")
    assert rows["row 2"]["prediction"] == ""
    kinds = {"lost": "missing file", "zero": "zero bytes", "text": "wrong type", "folder": "directory"}
    kinds |= {"out": "outside the folder", "half": "truncated"}
    for name, kind in kinds.items():
        assert notes[name] == f"picture: {kind}"
        assert rows[name]["present"] == "name+facts"
        assert rows[name]["p:flags"] == rows["lost"]["p:flags"]  # the content of a broken slot is irrelevant
    for name in ("nothing", "last"):
        assert rows[name]["present"] == ""
        assert rows[name]["abstain"] == "true"
        assert set(json.loads(rows[name]["set"])) == set(run.encoder.target.classes)


def test_the_summary_says_what_is_flagged_and_why(run: Run, table: Path, tmp_path: Path) -> None:
    codes, total = range(1, 8), len(read(table))

    def predict(source: Path = table, **changes: Any) -> Predicted:
        assert run.calibration is not None
        assert run.calibration.abstention is not None
        abstention = dataclasses.replace(run.calibration.abstention, **changes)
        calibration = dataclasses.replace(run.calibration, abstention=abstention)
        return predict_table(dataclasses.replace(run, calibration=calibration), source, output=tmp_path / "p.csv")

    never = predict(thresholds=dict.fromkeys(codes, 0.0))
    empty = never.patterns[""]
    assert never.abstained == empty < never.predicted == total
    assert never.always_flagged == never.to_dict()["always_flagged"] == ""
    assert f": {total} predicted, of which {empty} flagged as too unsure (abstain); 0 unreadable\n" in never.text()
    assert "answered" not in never.text() + json.dumps(never.to_dict())
    all_of = predict(
        thresholds=dict.fromkeys(codes, math.inf), rows=dict.fromkeys(codes, 12), needed=dict.fromkeys(codes, 34)
    )
    assert (all_of.predicted, all_of.abstained) == (total, total)
    assert "\nHowever sure the model is, every row is flagged, with complete inputs (12 validation rows, about 34 " in (
        all_of.text()
    )
    assert "more validation rows (more data, or data.split.ratios) or a higher calibrate.risk" in all_of.text()
    silent = {"thresholds": dict.fromkeys(codes, 0.0) | {2: math.inf}, "rows": {2: 9}, "needed": {2: None}}
    one = predict(**silent)
    assert one.abstained == empty + one.patterns["name"] > empty
    assert (
        "rows with name alone (9 validation rows, wrong too often at any confidence) are always flagged" in one.text()
    )
    (tmp_path / "facts.csv").write_text("style,words\nfluent,1\n", encoding="utf-8")
    other = predict(tmp_path / "facts.csv", **silent)  # no row has the silent combination: nothing to explain
    assert (dict(other.patterns), other.abstained, other.always_flagged) == ({"facts": 1}, 0, "")


def test_missing_columns_are_missing_inputs(run: Run, table: Path, tmp_path: Path) -> None:
    asked = [{"id": r["id"], "name": r["name"]} for r in read(table)]
    with (tmp_path / "names.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in asked)
    said: list[str] = []
    predict_table(run, tmp_path / "names.jsonl", output=tmp_path / "p.csv", say=said.append)
    assert {r["present"] for r in read(tmp_path / "p.csv")} == {"name", ""}
    assert any("no column 'picture': 'picture' is missing in every row" in line for line in said)


def test_a_table_without_a_row_and_one_without_a_readable_row(run: Run, tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_text("id,name\n", encoding="utf-8")
    for name in ("p.csv", "p.parquet"):
        assert predict_table(run, tmp_path / "none.csv", output=tmp_path / name).rows == 0
    assert (tmp_path / "p.csv").read_text(encoding="utf-8").startswith("row,id,prediction,confidence,set,abstain,")
    typed = pq.read_table(tmp_path / "p.parquet")
    (tmp_path / "bad.csv").write_text("id,name\n1\n2\n", encoding="utf-8")
    found = predict_table(run, tmp_path / "bad.csv", output=tmp_path / "q.parquet")
    assert (found.rows, found.predicted, found.unreadable) == (2, 0, 2)
    assert pq.read_table(tmp_path / "q.parquet").schema == typed.schema


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_parquet_has_one_type_per_column_whatever_a_chunk_holds(tmp_path: Path, task: str) -> None:
    target = TargetSpec(task, (), 0.0, 1.0) if task == "regression" else TargetSpec(task, ("x", "y"))
    some = Answers(target, ("a",), np.array([[0.6, 0.7]]), None, np.array([True]), np.array([[True]])).columns()
    none = {name: [None] for name in some}
    with _writer(tmp_path / "p.parquet", task) as writer:
        for columns in (some, none, some):
            writer.write(columns)
    answers = pq.read_table(tmp_path / "p.parquet").column("prediction").to_pylist()
    assert answers == [{"classification": "y", "multilabel": ["x", "y"], "regression": 0.6}[task], None, answers[0]]


def test_the_delimiter_of_the_run_holds_where_the_table_has_it(run: Run, tmp_path: Path) -> None:
    config = run.encoder.config.model_copy(update={"delimiter": "^"})
    other = dataclasses.replace(run, encoder=dataclasses.replace(run.encoder, config=config))
    (tmp_path / "caret.csv").write_text("id^name\na^red heart\n", encoding="utf-8")
    (tmp_path / "comma.csv").write_text("id,name\na,red heart\n", encoding="utf-8")
    for name in ("caret", "comma"):
        predict_table(other, tmp_path / f"{name}.csv", output=tmp_path / f"p-{name}.csv")
        assert [(r["id"], r["present"]) for r in read(tmp_path / f"p-{name}.csv")] == [("a", "name")]


def test_mistakes_are_one_sentence(run: Run, table: Path, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"'other.csv' has none of the run's input columns \('picture'"):
        predict_table(run, tmp_path / "other.csv", output=tmp_path / "p.csv")
    with pytest.raises(UserError, match=r"written as .csv or .parquet, got 'p.xls'"):
        predict_table(run, table, output=tmp_path / "p.xls")
    with pytest.raises(UserError, match="does not exist; make it"):
        predict_table(run, table, output=tmp_path / "no" / "p.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="is a folder; name a file in it"):
        predict_table(run, table, output=tmp_path / "folder.csv")
    own, text = tmp_path / "own.csv", "name\ngrinning face\n"
    own.write_text(text, encoding="utf-8")
    (tmp_path / "link.csv").symlink_to(own)
    for same in (own, tmp_path / "link.csv"):
        with pytest.raises(UserError, match=r"csv' is the table itself, which predictions would replace"):
            predict_table(run, own, output=same)
    assert own.read_text(encoding="utf-8") == text
    (tmp_path / "blank.jsonl").write_text("\n\n", encoding="utf-8")
    with pytest.raises(UserError, match="it has no row"):
        predict_table(run, tmp_path / "blank.jsonl", output=tmp_path / "p.csv")
    assert not list(tmp_path.glob(".*tmp"))


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([], ValueError, "rows must hold at least one row, got none"),
        ({"name": "grinning face"}, TypeError, r"rows must be a list of dicts, got one dict: write \[row\]"),
        ([{}, None], TypeError, "rows must be dicts of cells, got NoneType as row 2"),
        ("name", TypeError, "rows must be dicts of cells, got str as row 1"),
    ],
)
def test_rows_of_another_kind_are_refused(run: Run, rows: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run.predict(rows)


def test_an_interrupted_prediction_leaves_no_half_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "quote.csv").write_text('id,name\n1,"never closed\n2,x\n', encoding="utf-8")
    with pytest.raises(UserError, match="line 2"):
        predict_table(run, tmp_path / "quote.csv", output=tmp_path / "p.csv")
    assert not (tmp_path / "p.csv").exists()
