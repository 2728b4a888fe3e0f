"""`polyfuse ask`, `caption`, `ground`: what the model says, the names of what cannot be read, boxes where they are."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from polyfuse.cli import run as cli
from polyfuse.errors import UserError
from polyfuse.run.ask import ask, caption, ground, tidy
from polyfuse.run.draw import draw_box
from polyfuse.run.finetune import finetune_run
from polyfuse.run.items import Item, items_of
from polyfuse.run.task_folder import newest_run, read_task_run
from polyfuse.tasks.batch import Collator, TaskData
from polyfuse.tasks.sources import load_source
from polyfuse.yaml_text import dump_yaml

SCENES = {"train": 13, "validation": 3, "test": 5, "side": 32}
MODEL = {"dim": 8, "max_length": 40, "backbone_options": {"num_layers": 1, "num_heads": 2}}
SOURCES = {"vqa": "scene_questions", "captioning": "scene_captions", "grounding": "scene_phrases"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``runs/TASK`` for three tasks, and pictures of test scenes as files."""
    folder = tmp_path_factory.mktemp("home")
    for task, source in SOURCES.items():
        values = {
            "task": task,
            "data": {"source": source, "args": SCENES},
            "model": MODEL,
            "train": {"steps": 5, "evaluations": 1, "batch_size": 7},
        }
        (folder / f"{task}.yaml").write_text(dump_yaml(values), encoding="utf-8")
        finetune_run("none", folder / f"{task}.yaml", out=folder / "runs" / task, progress=False)
    data = load_source("scene_captions", **SCENES)
    assert data.images is not None
    for number, picture in enumerate(data.images[data.image_of[data.rows("test")]]):
        Image.fromarray(picture).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:60])
    (folder / "words.txt").write_text("no picture")
    return folder


def test_answers_are_those_of_the_judged_rows(home: Path) -> None:
    import pyarrow.parquet as pq

    told = pq.read_table(home / "runs" / "vqa" / "predictions.parquet").to_pylist()
    first = min(row["picture"] for row in told)
    items = [Item(str(home / f"{row['picture'] - first}.png"), row["text"]) for row in told]
    replies = ask(items, run=home / "runs" / "vqa", top=3)
    assert [row["answer"] for row in replies.rows] == [row["predicted"] for row in told]
    assert [row["probability"] for row in replies.rows] == pytest.approx([row["probability"] for row in told], rel=1e-4)
    for row in replies.rows:
        shares = [one["probability"] for one in row["answers"]]
        assert len(shares) == 3
        assert shares == sorted(shares, reverse=True)


def test_captions_are_those_of_the_judged_pictures(home: Path) -> None:
    import pyarrow.parquet as pq

    told = pq.read_table(home / "runs" / "captioning" / "predictions.parquet").to_pylist()
    replies = caption([str(home / f"{number}.png") for number in range(5)], run=home / "runs" / "captioning")
    assert [row["caption"] for row in replies.rows] == [tidy(row["caption"]) for row in told]
    assert caption([str(home / "0.png")], run=home / "runs" / "captioning", beams=3, length=7).rows


def test_what_cannot_be_read_is_named_and_the_rest_is_answered(home: Path) -> None:
    names = ["0.png", "broken.png", "1.png", "gone.png", "words.txt"]
    replies = ask([Item(str(home / name), "what is this?") for name in names], run=home / "runs" / "vqa")
    assert [Path(row["image"]).name for row in replies.rows] == ["0.png", "1.png"]
    reasons = {Path(one.image).name: one.reason for one in replies.unreadable}
    assert reasons["gone.png"] == "missing file"
    assert reasons["words.txt"].startswith("wrong type")
    assert set(reasons) == {"broken.png", "gone.png", "words.txt"}
    assert "not readable: 3" in replies.text()
    alone = ask([Item(str(home / "0.png"), "what is this?")], run=home / "runs" / "vqa")
    assert alone.rows[0]["probability"] == pytest.approx(replies.rows[0]["probability"], rel=1e-5)


def test_a_box_is_drawn_where_it_is(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "box.png"
    (row,) = ground([Item(str(home / "0.png"), "the red circle")], run=home / "runs" / "grounding", out=file).rows
    with Image.open(file) as opened:
        drawn = np.asarray(opened.convert("RGB")).astype(int)
    yellow = (np.abs(drawn - (255, 214, 10)).sum(axis=2) == 0)[:384]
    rows, columns = np.nonzero(yellow)
    x0, y0, x1, y1 = (share * 383 for share in row["box"])
    assert [columns.min(), rows.min(), columns.max(), rows.max()] == pytest.approx([x0, y0, x1, y1], abs=1)
    assert row["pixels"] == [round(share * 32) for share in row["box"]]
    with pytest.raises(UserError, match="exists; nothing is written over"):
        ground([Item(str(home / "0.png"), "the red circle")], run=home / "runs" / "grounding", out=file)


def test_a_long_phrase_and_a_degenerate_box_are_drawn_too(tmp_path: Path) -> None:
    draw_box(np.zeros((50, 30, 3), np.uint8), (1.0, 1.0, 0.2, 0.1), "a very long phrase " * 40, tmp_path / "long.png")
    with Image.open(tmp_path / "long.png") as opened:
        assert opened.width == 360


def test_batch_forms_answer_all_rows(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (home / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["image", "question"], ["0.png", "is there a ring?"], ["1.png", "how many stars are there?"]])
    run = ["--run", str(home / "runs" / "vqa"), "--json"]
    assert cli(["ask", "--table", str(home / "rows.csv"), *run]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["question"] for row in rows] == ["is there a ring?", "how many stars are there?"]
    assert cli(["ask", str(home / "0.png"), str(home / "1.png"), "is there a ring?", *run]) == 0
    again = json.loads(capsys.readouterr().out)["rows"]
    assert again[0]["answer"] == rows[0]["answer"]
    assert again[0]["probability"] == pytest.approx(rows[0]["probability"], rel=1e-5)
    out = tmp_path / "drawn"
    pictures = [str(home / "0.png"), str(home / "1.png")]
    assert cli(["ground", *pictures, "the ring", "--run", str(home / "runs" / "grounding"), "--out", str(out)]) == 0
    assert sorted(file.name for file in out.iterdir()) == ["001-0.png", "002-1.png"]
    assert cli(["caption", *pictures, "--run", str(home / "runs" / "captioning")]) == 0
    assert capsys.readouterr().out.count(".png: ") == 4
    assert cli(["caption", str(home / "gone.png"), "--run", str(home / "runs" / "captioning")]) == 1


def test_the_newest_run_of_the_task_answers(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert newest_run(("vqa",)) == Path("runs/vqa")
    said: list[str] = []
    assert ask([Item("0.png", "is there a ring?")], say=said.append).rows
    assert said == ["run: runs/vqa"]
    with pytest.raises(UserError, match="no finished run for retrieval in 'runs'"):
        newest_run(("retrieval",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", "0.png"], "give IMAGE... and then the question"),
        (["ask", "0.png", "why", "--table", "rows.csv"], "not both"),
        (["caption"], "name a picture"),
        (["ground", "0.png", " "], "needs a phrase"),
        (["ask", "0.png", ""], "'0.png' needs a question, got an empty one"),
        (["ground", "0.png", "ring", "--out", "box.txt"], "got 'box.txt', which looks like another kind of file"),
        (["ground", "0.png", "ring", "--out", "box.jpg"], "which looks like another kind of file"),
        (["ground", "0.png", "1.png", "ring", "--out", "one.png"], "name a folder"),
        (["ask", "0.png", "why", "--run", "runs/captioning"], "it has caption; fine-tune it for vqa"),
        (["ask", "0.png", "why", "--run", "nowhere"], "is no finished run"),
    ],
)
def test_mistakes_are_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(home)
    assert cli(arguments) != 0
    assert message in capsys.readouterr().err


def test_a_run_for_values_says_a_number_in_its_unit(home: Path, tmp_path: Path) -> None:
    lines = ["image,text,value"] + [f"{n % 5}.png,number {n},{1000 + n}" for n in range(30)]
    (home / "values.csv").write_text("\n".join(lines), encoding="utf-8")
    values = {
        "task": "regression",
        "data": {"source": "table", "args": {"path": str(home / "values.csv"), "side": 32}},
        "model": MODEL,
        "train": {"steps": 5, "evaluations": 1, "batch_size": 7},
    }
    (tmp_path / "values.yaml").write_text(dump_yaml(values), encoding="utf-8")
    finetune_run("none", tmp_path / "values.yaml", out=tmp_path / "run", progress=False)
    mean, deviation = read_task_run(tmp_path / "run").shift
    assert 1000 < mean < 1030
    assert deviation > 1
    (row,) = ask([Item(str(home / "0.png"), "number 3")], run=tmp_path / "run").rows
    assert abs(row["value"] - mean) < 10 * deviation
    assert row["value"] > 900


def test_items_come_from_arguments_or_a_table() -> None:
    assert items_of(["a.png", "b.png", "why?"], None, "question") == [Item("a.png", "why?"), Item("b.png", "why?")]
    assert items_of(["a.png"], None, None) == [Item("a.png")]


def table(folder: Path, *lines: str) -> Path:
    path = folder / "asked.csv"
    path.write_text("\n".join(["image,text", *lines]), encoding="utf-8")
    return path


def test_a_row_without_a_picture_is_answered_from_its_text(home: Path) -> None:
    path = table(home, "0.png,is there a ring?", "gone.png,why?", "1.png, ", ",is there a ring?", ",", "gone.png,why?")
    replies = ask(items_of([], path, "question|text"), run=home / "runs" / "vqa")
    assert [row["row"] for row in replies.rows] == [1, 4]
    assert [(one.row, one.reason) for one in replies.unreadable] == [
        (2, "missing file"),
        (3, "no question"),
        (5, "no question"),
        (6, "missing file"),
    ]
    found = read_task_run(home / "runs" / "vqa")
    assert replies.rows[0]["probability"] != replies.rows[1]["probability"]
    (alone,) = ask([Item("", "is there a ring?")], run=home / "runs" / "vqa", top=len(found.answers)).rows
    data = TaskData(
        "alone",
        np.zeros((1, 32, 32, 3), np.uint8),
        np.array([-1]),
        ["is there a ring?"],
        np.zeros(1, np.int8),
        np.arange(1),
    )
    with torch.no_grad():
        shares = found.model(Collator(data, found.words, max_length=40)(np.arange(1)), tasks=("answer",)).answer_logits
    wanted = shares.softmax(dim=1).max().item()
    assert alone["probability"] == pytest.approx(wanted, rel=1e-5) == pytest.approx(replies.rows[1]["probability"])
    assert "row 4, no picture: is there a ring?" in replies.text()
    assert f"  row 6: {home / 'gone.png'}: missing file" in replies.text()
    assert replies.to_dict()["unreadable"][1] == {"image": str(home / "1.png"), "reason": "no question", "row": 3}


def test_captions_and_boxes_need_a_picture_and_boxes_a_phrase(home: Path, tmp_path: Path) -> None:
    path = table(home, "0.png,the ring", ",the ring", "1.png,", "2.png,the ring")
    said = caption(items_of([], path, None), run=home / "runs" / "captioning")
    assert [row["row"] for row in said.rows] == [1, 3, 4]
    assert "  row 2: no picture" in said.text()
    boxes = ground(items_of([], path, "phrase|text"), run=home / "runs" / "grounding", out=tmp_path / "drawn")
    assert [row["row"] for row in boxes.rows] == [1, 4]
    assert [(one.row, one.reason) for one in boxes.unreadable] == [(2, "no picture"), (3, "no phrase")]
    assert sorted(file.name for file in (tmp_path / "drawn").iterdir()) == ["001-0.png", "004-2.png"]


def test_a_cell_that_is_no_text_is_named(home: Path) -> None:
    path = home / "asked.jsonl"
    path.write_text('{"image": ["0.png"], "text": "why?"}\n{"image": "0.png", "text": "why?"}\n', encoding="utf-8")
    replies = ask(items_of([], path, "question|text"), run=home / "runs" / "vqa")
    assert [row["row"] for row in replies.rows] == [2]
    assert [(one.row, one.reason.partition(",")[0]) for one in replies.unreadable] == [(1, "image must be a text")]


def test_help_says_what_the_table_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["caption", "--help"]) == 0
    assert "one of the text" not in capsys.readouterr().out
