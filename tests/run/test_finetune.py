"""`polyfuse finetune`: what trains is what was asked, a run folder answers for itself, mistakes are named."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from polyfuse.cli import run as cli
from polyfuse.errors import UserError
from polyfuse.finetune_config import make_finetune_config
from polyfuse.run.finetune import finetune_run
from polyfuse.run.task_folder import read_task_run
from polyfuse.tasks.batch import Collator
from polyfuse.tasks.judge import judge
from polyfuse.tasks.model import TaskModel
from polyfuse.tasks.sources import load_source
from polyfuse.tasks.words import WordTokenizer
from polyfuse.train import task_loop
from polyfuse.train.finetune import FineTune, dropped, fine_tune, labelled_rows
from polyfuse.train.task_loop import LoopSettings
from polyfuse.yaml_text import dump_yaml

SCENES = {"train": 19, "validation": 7, "test": 5, "novel": 3, "side": 32}
SMALL = {"dim": 8, "max_length": 40, "patch": 8, "backbone_options": {"num_layers": 2, "num_heads": 2}}
SOURCES = {
    "vqa": "scene_questions",
    "captioning": "scene_captions",
    "retrieval": "scene_captions",
    "grounding": "scene_phrases",
}


def config_file(folder: Path, task: str = "vqa", **more: object) -> Path:
    values = {
        "task": task,
        "data": {"source": SOURCES[task], "args": SCENES},
        "model": SMALL,
        "train": {"steps": 6, "evaluations": 2, "batch_size": 11},
        **more,
    }
    path = folder / f"{task}.yaml"
    path.write_text(dump_yaml(values), encoding="utf-8")
    return path


@pytest.mark.parametrize("task", sorted(SOURCES))
def test_a_run_folder_answers_as_it_was_judged(task: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = finetune_run("none", config_file(tmp_path, task), out=out, progress=False)
    assert result.text()
    told = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert list(told) == ["test", "novel"]
    table = pq.read_table(out / "predictions.parquet")
    assert set(table["part"].to_pylist()) == {"test", "novel"}
    found = read_task_run(out)
    assert found.task == task
    data = load_source(SOURCES[task], **SCENES)
    task_of = {"vqa": "answers"}.get(task, task)
    again = judge(found.model, data, found.words, task=task_of, answers=found.answers, max_length=40)
    for name, value in again.to_dict()["figures"].items():
        wanted = told["test"]["figures"][name]
        assert value == (None if wanted is None else pytest.approx(wanted, rel=1e-5)), name
    assert json.loads(json.dumps(result.to_dict()))["parts"]["novel"]


def test_what_is_frozen_rests_and_a_pattern_without_match_is_an_error(tmp_path: Path) -> None:
    config = config_file(tmp_path)
    said: list[str] = []
    finetune_run("none", config, out=tmp_path / "first", progress=False)
    finetune_run(
        str(tmp_path / "first"), config, overrides=["freeze=[stem, 'backbone.model.*']", "train.seed=3"],
        out=tmp_path / "second", progress=False, say=said.append,
    )  # fmt: skip
    assert any(line.startswith("froze stem, backbone.model.*: ") and "trainable now" in line for line in said)
    before, after = (read_task_run(tmp_path / name).model.state_dict() for name in ("first", "second"))
    rests = {name: torch.equal(before[name], after[name]) for name in before}
    assert all(same for name, same in rests.items() if name.startswith(("stem.", "backbone.model.")))
    assert not any(same for name, same in rests.items() if name.startswith(("heads.", "backbone.words.")))
    with pytest.raises(UserError, match="no parameter matches 'stme'"):
        finetune_run(str(tmp_path / "first"), config, overrides=["freeze=[stme]"], out=tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_gradual_unfreezing_wakes_parts_at_their_step(tmp_path: Path) -> None:
    data = load_source("scene_questions", **SCENES)
    words = WordTokenizer.train(data.texts, 200)
    torch.manual_seed(0)
    model = TaskModel(vocab_size=len(words), side=32, **SMALL)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    said: list[str] = []
    schedule = {3: ("backbone",), 99: ("stem",)}
    options = FineTune("vqa", LoopSettings(steps=6, batch_size=11, evaluations=6), unfreeze=schedule)
    fine_tune(model, data, words, options, say=said.append)
    assert any(line.startswith("unfroze at step 3: ") for line in said)
    assert "warning: unfreeze at step 99 has no effect: step 5 is the last" in said
    moved = {
        name for name, value in model.state_dict().items() if name in start and not torch.equal(value, start[name])
    }
    assert not any(name.startswith("stem.") for name in moved)


RESUMED = {
    "new": [],
    "adapters": ["lora={rank: 3, dropout: 0.3}"],
    "gradual": ["unfreeze={0: [heads], 2: [backbone], 5: [stem]}"],
    "augmented": ["augment={erase: 0.5, words: 0.2}", "drop={image: 0.3}"],
    "frozen": ["freeze=[stem, backbone]"],
}


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_two_processes_do_not_train_into_one_folder(tmp_path: Path) -> None:
    import fcntl

    finetune_run("none", config_file(tmp_path), out=tmp_path / "run", progress=False)
    handle = os.open(tmp_path / "run", os.O_RDONLY)  # a lock of its own, as another process has
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process is training into"):
        finetune_run(str(tmp_path / "run"), resume=True, progress=False)
    os.close(handle)


@pytest.mark.parametrize("how", sorted(RESUMED))
def test_a_killed_run_resumes_to_the_same_model(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, config = "none", config_file(tmp_path)
    if how != "new":
        start = str(tmp_path / "first")
        finetune_run("none", config, out=tmp_path / "first", progress=False)
    settings = [*RESUMED[how], "train.checkpoint_steps=2"]
    whole = finetune_run(start, config, overrides=settings, out=tmp_path / "whole", progress=False)
    original = task_loop._Loop._train

    def dies(self: task_loop._Loop, number: int) -> None:
        if number == 5:
            raise KeyboardInterrupt
        original(self, number)

    monkeypatch.setattr(task_loop._Loop, "_train", dies)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        finetune_run(start, config, overrides=settings, out=tmp_path / "cut", progress=False, say=said.append)
    assert said[-1].endswith(f"polyfuse finetune --resume {tmp_path / 'cut'}")
    with pytest.raises(UserError, match="is no finished run"):
        read_task_run(tmp_path / "cut")
    monkeypatch.setattr(task_loop._Loop, "_train", original)
    monkeypatch.setattr(WordTokenizer, "train", None)  # resuming reads what was learned
    resumed = finetune_run(str(tmp_path / "cut"), resume=True, progress=False)
    before, after = (read_task_run(tmp_path / name).model.state_dict() for name in ("whole", "cut"))
    for name, value in before.items():
        if how == "frozen":  # cached states are those of other batches
            torch.testing.assert_close(after[name], value)
        else:
            assert torch.equal(after[name], value), name
    test, wanted = (run.result.judgements["test"].figures for run in (resumed, whole))
    assert test == pytest.approx(wanted, nan_ok=True)


def test_resuming_takes_the_run_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_file(tmp_path)
    out = str(tmp_path / "run")
    assert cli(["finetune", "none", str(config), "--out", out]) == 0
    assert cli(["finetune", "--resume", out, "--json"]) == 0  # a finished run is judged again
    assert cli(["finetune", "--resume", out, str(config)]) == 2
    assert "leave out CONFIG, KEY=VALUE and --out" in capsys.readouterr().err
    assert cli(["finetune", "--resume", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    assert cli(["finetune", "none"]) == 2
    assert "a config is missing" in capsys.readouterr().err


def test_adapters_are_folded_in_and_leave_the_rest_alone(tmp_path: Path) -> None:
    config = config_file(tmp_path)
    finetune_run("none", config, out=tmp_path / "first", progress=False)
    said: list[str] = []
    result = finetune_run(
        str(tmp_path / "first"), config, overrides=["lora={rank: 3}", "train.lr=0.01"], out=tmp_path / "second",
        progress=False, say=said.append,
    )  # fmt: skip
    assert any(line.startswith("adapters of rank 3 on ") for line in said)
    before, after = (read_task_run(tmp_path / name).model.state_dict() for name in ("first", "second"))
    assert list(before) == list(after)
    assert torch.equal(before["stem.places"], after["stem.places"])
    layers = [name for name in before if name.startswith("backbone.") and not torch.equal(before[name], after[name])]
    assert layers
    for name in layers:
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= 3
    data = load_source("scene_questions", **SCENES)
    found = read_task_run(tmp_path / "second")
    again = judge(found.model, data, found.words, task="answers", answers=found.answers, max_length=40)
    assert again.figures["accuracy"] == pytest.approx(result.result.judgements["test"].figures["accuracy"])


def test_a_head_stays_where_the_answers_are_the_same_and_others_are_left_behind(tmp_path: Path) -> None:
    said: list[str] = []
    finetune_run("none", config_file(tmp_path), out=tmp_path / "vqa", progress=False)
    finetune_run(
        str(tmp_path / "vqa"), config_file(tmp_path, "grounding"), out=tmp_path / "box", progress=False, say=said.append
    )
    assert "heads left behind: answer" in said
    assert list(read_task_run(tmp_path / "box").model.heads) == ["box"]
    data = load_source("scene_questions", **SCENES)
    found = read_task_run(tmp_path / "vqa")
    old = found.model.heads["answer"].hidden.weight.clone()
    options = FineTune("vqa", LoopSettings(steps=1, batch_size=3, evaluations=1, lr=1e-12))
    fine_tune(found.model, data, found.words, options, answers=found.answers)
    torch.testing.assert_close(found.model.heads["answer"].hidden.weight, old)
    fine_tune(found.model, data, found.words, replace(options, new_head=True), answers=found.answers)
    assert not torch.allclose(found.model.heads["answer"].hidden.weight, old)


def test_training_stops_where_validation_gets_worse() -> None:
    data = load_source("scene_questions", **SCENES)
    # Answers of training rows that say nothing: what is learned of them does not hold on validation rows.
    rng = np.random.default_rng(0)
    assert data.answers is not None
    answers = [str(rng.integers(5)) for _ in data.answers]
    noise = replace(data, answers=answers)
    words = WordTokenizer.train(data.texts, 200)
    torch.manual_seed(0)
    model = TaskModel(vocab_size=len(words), side=32, **SMALL)
    loop = LoopSettings(steps=400, batch_size=19, evaluations=40, patience=3, lr=1e-2)
    result = fine_tune(model, noise, words, FineTune("vqa", loop, best_by="loss"))
    assert result.fit.stopped_early
    assert result.fit.steps < 400
    assert result.fit.best_step <= result.fit.steps - 30
    losses = [record["validation"]["loss"] for record in result.fit.history]
    assert min(losses) == pytest.approx(result.fit.best_metric)


def test_values_are_learned_in_their_own_unit() -> None:
    data = load_source("scene_captions", **{**SCENES, "train": 61})
    numbered = replace(data, values=np.array([1400.0 if "picture" in t else 1000.0 for t in data.texts], np.float32))
    words = WordTokenizer.train(data.texts, 200)
    torch.manual_seed(0)
    model = TaskModel(vocab_size=len(words), side=32, **SMALL)
    loop = LoopSettings(steps=60, batch_size=31, evaluations=4, lr=5e-3)
    result = fine_tune(model, numbered, words, FineTune("regression", loop), parts=("train",))
    assert result.shift[0] == pytest.approx(numbered.values[numbered.rows("train")].mean())
    figures = result.judgements["train"].figures
    assert {"text_only_r2", "image_only_r2"} < set(figures)
    assert figures["mae"] < 0.5 * figures["mean_mae"]
    assert 900 < np.mean(result.judgements["train"].predictions["predicted"]) < 1400


def test_labels_are_pictures_and_the_smaller_share_lies_in_the_larger() -> None:
    data = load_source("scene_questions", **{**SCENES, "train": 50})
    shares = {share: labelled_rows(data, share, 1) for share in (0.01, 0.1, 0.5, 1.0)}
    assert {share: len(set(data.image_of[rows])) for share, rows in shares.items()} == {
        0.01: 1,
        0.1: 5,
        0.5: 25,
        1.0: 50,
    }
    assert set(shares[0.1]) <= set(shares[0.5]) <= set(shares[1.0])
    assert set(labelled_rows(data, 0.5, 2)) != set(shares[0.5])


def test_dropped_rows_keep_one_modality_and_do_not_depend_on_their_batch() -> None:
    data = load_source("scene_questions", **{**SCENES, "train": 90})
    words = WordTokenizer.train(data.texts, 200)
    collate = Collator(data, words, max_length=40)
    whole = dropped(collate(np.arange(301)), {"image": 0.3, "text": 0.2}, 0, 5)
    assert whole.present.any(dim=1).all()
    assert 0.2 < (~whole.present[:, 0]).float().mean() < 0.4
    assert 0.1 < (~whole.present[:, 1]).float().mean() < 0.3
    part = dropped(collate(np.arange(17)), {"image": 0.3, "text": 0.2}, 0, 5)
    assert torch.equal(part.present, whole.present[:17])
    assert not torch.equal(dropped(collate(np.arange(301)), {"image": 0.3}, 0, 6).present, whole.present)


def test_augmentation_changes_training_rows_alone(tmp_path: Path) -> None:
    config = config_file(tmp_path, "grounding", augment={"crop": 0.6, "flip": 0.5, "colour": 0.2, "words": 0.1})
    plain = finetune_run("none", config_file(tmp_path, "grounding"), out=tmp_path / "a", progress=False)
    config = config_file(tmp_path, "grounding", augment={"crop": 0.6, "flip": 0.5, "colour": 0.2, "words": 0.1})
    changed = finetune_run("none", config, out=tmp_path / "b", progress=False)
    assert plain.result.fit.history[0]["train_loss"] != changed.result.fit.history[0]["train_loss"]
    rows = [result.result.judgements["test"].predictions["box"] for result in (plain, changed)]
    assert rows[0] == rows[1]


def test_a_table_of_two_classes_is_fine_tuned_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["image,text,label"]
    for number in range(40):
        dark = number % 2
        Image.new("RGB", (12, 9), (20, 20, 20) if dark else (230, 230, 230)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,picture,{'dark' if dark else 'light'}")
    lines.append("gone.png,,dark")
    (tmp_path / "rows.csv").write_text("\n".join(lines), encoding="utf-8")
    config = tmp_path / "classes.yaml"
    config.write_text(
        dump_yaml(
            {
                "task": "classification",
                "data": {"source": "table", "args": {"path": str(tmp_path / "rows.csv"), "side": 16}},
                "model": {**SMALL, "patch": 8},
                "train": {"steps": 40, "evaluations": 2, "batch_size": 13, "lr": 0.005},
            }
        ),
        encoding="utf-8",
    )
    assert cli(["finetune", "none", str(config), "--out", str(tmp_path / "run"), "--json"]) == 0
    out, log = capsys.readouterr()
    assert json.loads(out)["parts"]["test"]["figures"]["accuracy"] == 1.0
    assert "missing file (row 41: 'gone.png')" in log


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=vqq"], "task"),
        (["train.pateince=3"], "pateince"),
        (["lora={}", "freeze=[stem]"], "leave out freeze"),
        (["drop={image: 0.7, text: 0.7}"], "add up to 1"),
        (["task=grounding"], r"needs rows with boxes.*data.args.box=\[x0, y0, x1, y1\].*shares \(0 to 1\)"),
        (["task=captioning", "hide=image"], "needs both picture and text"),
        (["cache=true", "augment.crop=0.5"], "leave out augment and unfreeze"),
        (["objective=siglip"], "has the objectives answer; got 'siglip'"),
        (["data.source=scene_question"], "did you mean 'scene_questions'"),
        (["data.args.validation=0"], r"got \d+ and 0; give validation some: .*data.args.validation=100"),
        (["train.shard_parameters=true"], "train.shard_parameters needs several processes: torchrun"),
        (["lora.rnk=2"], "unknown key 'lora.rnk' .value 2.; did you mean 'rank'"),
        (["drop.imag=0.1"], "unknown key 'drop.imag'; did you mean 'image'. known: image, text"),
        (["model.backbone_options={num_layers:1}"], "a space is missing after ':' in 'num_layers:1'"),
        (["train.best_by=acc"], "no validation figure 'acc' .*did you mean 'accuracy'. known: loss, accuracy"),
        (["head.num_layer=2"], "the head of task 'vqa' has no argument 'num_layer'; known: dropout"),
        (["head.num_answers=2"], "has no argument 'num_answers'"),
        (["head.dropout=2"], "the head cannot be built of {'dropout': 2}"),
        (["task=captioning", "head.num_layer=2"], "did you mean 'num_layers'. known: num_layers, num_heads, dropout"),
        (["model.backbone_options.num_layer=3"], "backbone 'multimodal' has no argument 'num_layer'.*'num_layers'"),
        (
            ["task=grounding", "data.source=scene_phrases", "model.backbone=mmbert"],
            "task 'grounding' cannot train: the visual tokens of backbone 'mmbert' are no places",
        ),
        (
            ["task=retrieval", "data.source=scene_captions", "train.batch_size=1"],
            "task 'retrieval' .* needs 2 rows, got 1",
        ),
        (["model.backbone=unitr"], "did you mean 'uniter'"),
        (["model.inputs=regions"], "data.args.regions=true"),
    ],
)
def test_mistakes_are_named_and_leave_no_folder(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        finetune_run("none", config_file(tmp_path), overrides=overrides, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_settings_without_effect_are_named(tmp_path: Path) -> None:
    said: list[str] = []
    finetune_run("none", config_file(tmp_path), out=tmp_path / "first", progress=False, say=said.append)
    finetune_run(
        str(tmp_path / "first"), config_file(tmp_path), out=tmp_path / "same", progress=False, say=said.append,
    )  # fmt: skip
    assert not any(line.startswith("warning") for line in said)
    finetune_run(
        str(tmp_path / "first"),
        config_file(tmp_path),
        overrides=["model.dim=16", "model.backbone_options.num_layers=5", "cache=true"],
        out=tmp_path / "second",
        progress=False,
        say=said.append,
    )
    warned = [line for line in said if line.startswith("warning: ")]
    first = f"it is of a new model, checkpoint '{tmp_path / 'first'}' has"
    assert warned == [
        f"warning: model.dim=16 has no effect: {first} 8",
        f"warning: model.backbone_options.num_layers=5 has no effect: {first} 2",
        "warning: cache=true has no effect: the stem trains; freeze it: freeze=[stem]",
    ]


@pytest.mark.parametrize("error", [MemoryError, KeyError])
def test_any_exception_before_the_first_checkpoint_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def dies(self: task_loop._Loop, number: int) -> None:
        raise error("of something else")

    said: list[str] = []
    monkeypatch.setattr(task_loop._Loop, "_train", dies)
    with pytest.raises(error):
        finetune_run("none", config_file(tmp_path), out=tmp_path / "run", progress=False, say=said.append)
    assert not (tmp_path / "run").exists()
    assert said[-1] == f"run folder: {tmp_path / 'run'}"


def test_the_folder_is_named_when_training_begins_and_a_later_exception_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with pytest.raises(UserError, match="cannot be cut into 12 shares"):
        finetune_run(
            "none", config_file(tmp_path), overrides=["train.accumulate=12"], out=tmp_path / "run", say=said.append
        )
    assert not any(line.startswith("run folder") for line in said)
    monkeypatch.setattr("polyfuse.run.finetune.write", None)
    with pytest.raises(TypeError):
        finetune_run("none", config_file(tmp_path), out=tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "checkpoints" / "last.safetensors").is_file()


def test_a_checkpoint_must_be_one_and_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no finished run"):
        finetune_run(str(tmp_path / "nothing"), config_file(tmp_path), out=tmp_path / "run")
    finetune_run("none", config_file(tmp_path), out=tmp_path / "first", progress=False)
    with pytest.raises(UserError, match="reads pictures of 32 pixels, 'scene_questions' has 48"):
        finetune_run(
            str(tmp_path / "first"), config_file(tmp_path), overrides=["data.args.side=48"], out=tmp_path / "run"
        )
    (tmp_path / "first" / "answers.json").write_text('["yes"]', encoding="utf-8")
    with pytest.raises(UserError, match="has 1 answers"):
        read_task_run(tmp_path / "first")
    (tmp_path / "first" / "model" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="the run is damaged"):
        read_task_run(tmp_path / "first")


def test_every_setting_has_a_description() -> None:
    from polyfuse.config import describe
    from polyfuse.finetune_config import FinetuneConfig

    assert all(text for _, _, text in describe(FinetuneConfig))
    config = make_finetune_config({"task": "vqa", "data": {"source": "easy_vqa"}, "lora": True})
    assert config.lora is not None


def test_the_page_lists_every_setting() -> None:
    from polyfuse.config import describe
    from polyfuse.finetune_config import FinetuneConfig

    page = (Path(__file__).parents[2] / "docs" / "fine-tuning.md").read_text(encoding="utf-8")
    for key, default, _ in describe(FinetuneConfig):
        assert f"| `{key}` | `{default}` | " in page, f"docs/fine-tuning.md lacks the line of {key}"
