"""`polyfuse pretrain`: a folder that holds what it promises, resumes to the same bits, and says what is wrong."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from polyfuse import cli
from polyfuse.errors import UserError
from polyfuse.run import pretrain_parts
from polyfuse.run.pretrain import Pretrained, pretrain_run
from polyfuse.run.pretrain_parts import HeldOut, build_parts
from polyfuse.task_config import load_pretrain_config, make_pretrain_config
from polyfuse.tasks import sources
from polyfuse.tasks.batch import Regions, TaskData
from polyfuse.tasks.model import TaskModel
from polyfuse.tasks.words import WordTokenizer
from polyfuse.train import task_loop
from polyfuse.train.checkpoint import BEST, LAST, METRICS

from ..train.task_toy import toy_data

CONFIG = """
data: {source: toy, args: {rows: 41}}
objectives: {contrast: 1, masked_words: 0.5}
model: {backbone: uniter, backbone_options: {num_layers: 2, num_heads: 2}, dim: 16, max_length: 8, embed_dim: 6}
train: {steps: 7, batch_size: 6, evaluations: 3, checkpoint_steps: 2}
"""


def load(name: str, *, rows: int = 23, seed: int = 0, texts: bool = True, regions: bool = False) -> TaskData:
    """A stand-in for the sources."""
    data = toy_data(rows, seed)
    if not texts:
        data = replace(data, texts=[""] * rows)
    if regions:
        rng = np.random.default_rng(0)
        features, boxes = rng.random((rows, 3, 5), dtype=np.float32), np.tile(np.float32([0, 0, 1, 1]), (rows, 3, 1))
        classes = rng.random((rows, 3, 4), dtype=np.float32)
        data = replace(data, regions=Regions(features, boxes, np.ones((rows, 3), dtype=bool), classes))
    return replace(data, name=name, notes=("drawn at random",))


@pytest.fixture(autouse=True)
def _toy_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "load_source", load)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


class Killed(BaseException):
    """What no code answers: a kill leaves the folder as it is."""


def run(config: Path, out: Path, *overrides: str) -> Pretrained:
    result = pretrain_run(config, out=out, overrides=overrides, progress=False)
    assert result is not None
    return result


def test_a_run_folder_holds_what_fine_tuning_needs(config: Path, tmp_path: Path) -> None:
    said: list[str] = []
    result = pretrain_run(config, out=tmp_path / "run", say=said.append, progress=False)
    assert result is not None
    folder = result.folder
    for name in ("config.yaml", "words.json", "data.json", "held_out.json", "versions.json", METRICS, BEST, LAST):
        assert (folder / name).is_file(), name
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert resolved["train"]["lr"] == 0.001  # defaults are written down
    assert load_pretrain_config(folder / "config.yaml").objectives == {"contrast": 1.0, "masked_words": 0.5}
    model = TaskModel.from_pretrained(folder / "model")
    words = WordTokenizer.read(folder / "words.json")
    assert model.config["vocab_size"] == len(words)
    assert set(model.heads) == {"contrast", "words"}
    assert "toy: 30 rows, 11 for validation" in said
    assert "  drawn at random" in said
    kept = json.loads((folder / "held_out.json").read_text())
    assert kept["kept"] == result.figures
    assert kept["untrained"] == result.untrained


def test_the_figures_are_those_of_the_kept_weights_on_held_out_rows(config: Path, tmp_path: Path) -> None:
    result = run(config, tmp_path / "run")
    parts = build_parts(load_pretrain_config(config), WordTokenizer.read(result.folder / "words.json"))
    figures = result.figures
    assert figures["loss"] == pytest.approx(figures["contrast.loss"] + 0.5 * figures["masked_words.loss"])
    validations = [record["validation"]["loss"] for record in result.fit.history]
    assert result.fit.best_metric == min(validations) == figures["loss"]
    model = TaskModel.from_pretrained(result.folder / "model")
    collate, rows = parts.held_out["contrast"]
    assert rows.tolist() == list(range(0, 41, 4))
    batch = collate(rows)
    with torch.no_grad():
        scores = model.embed_image(batch) @ model.embed_text(batch).t()
    here = batch.present.all(dim=1)
    scores, same = scores[here][:, here], batch.ids[here]
    found = (same[scores.argmax(dim=1)] == same).float().mean().item()
    assert figures["contrast.image_to_text@1"] == pytest.approx(found)
    assert figures["contrast.chance@1"] == pytest.approx(1 / here.sum().item())
    with torch.no_grad():
        assert HeldOut(parts, load_pretrain_config(config))(model) == figures  # the same words are hidden each time


def test_means_over_hidden_words_do_not_depend_on_the_batch_size(config: Path) -> None:
    overrides = ["objectives={masked_words: 1, caption: 1, answer: 1, grounding: 1}"]
    figures = []
    for size in (3, 11):
        settings = load_pretrain_config(config, [*overrides, f"train.batch_size={size}"])
        parts = build_parts(settings)
        words = parts.words
        parts = build_parts(settings, words if not figures else figures[0][1])
        parts.model.eval()
        with torch.no_grad():
            figures.append((HeldOut(parts, settings)(parts.model), parts.words))
    assert figures[0][0] == pytest.approx(figures[1][0], rel=1e-5)


def test_wide_tables_are_cut_into_blocks(config: Path, tmp_path: Path) -> None:
    text = run(config, tmp_path / "run", "train.steps=11", "train.evaluations=11").text()
    table, _, rest = text.partition("figure ")
    assert all(len(line) <= 80 for line in text.splitlines()[:-1])
    assert table.count("masked_words") == table.count("objective") == 2
    assert rest


def test_the_run_of_another_command_is_not_resumed(config: Path, tmp_path: Path) -> None:
    from polyfuse.run.finetune import finetune_run

    run(config, tmp_path / "run", "train.steps=1")
    with pytest.raises(UserError, match=f"is a run of polyfuse pretrain; use polyfuse pretrain --resume {tmp_path}"):
        finetune_run(str(tmp_path / "run"), resume=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text("task: vqa\ndata: {source: toy}\n")
    with pytest.raises(UserError, match=f"is a run of polyfuse finetune; use polyfuse finetune --resume {tmp_path}"):
        pretrain_run(other, resume=True)


def test_the_table_has_a_line_per_objective(config: Path, tmp_path: Path) -> None:
    result = run(config, tmp_path / "run")
    lines = result.text().splitlines()
    assert lines[1].split() == ["objective", "weight", "untrained", *"step 2 step 5 step 7".split(), "kept"]
    for line, name, weight in ((lines[3], "contrast", "1"), (lines[4], "masked_words", "0.5")):
        cells = line.split()
        assert cells[:2] == [name, weight]
        assert float(cells[2]) == pytest.approx(result.untrained[f"{name}.loss"], abs=1e-4)
        assert float(cells[-1]) == pytest.approx(result.figures[f"{name}.loss"], abs=1e-4)
    assert any(line.startswith("contrast.image_to_text@1 ") for line in lines)
    json.dumps(result.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("step", "backbone"), [(0, "uniter"), (3, "uniter"), (6, "uniter"), (3, "clip"), (3, "mmbert"), (3, "mmbt")]
)
def test_a_killed_run_resumes_to_the_same_model(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, backbone: str
) -> None:
    config.write_text(CONFIG.replace("uniter", backbone), encoding="utf-8")
    whole = run(config, tmp_path / "whole")
    original = task_loop._Loop._train
    trained: list[int] = []

    def dies(self: Any, number: int) -> None:
        if number == step and number not in trained:
            raise Killed
        trained.append(number)
        original(self, number)

    cut = tmp_path / "cut"
    cut.mkdir()
    monkeypatch.setattr(  # tokenizers number their pieces as they like: the comparison needs the same ones
        pretrain_parts.WordTokenizer, "train", lambda *_: WordTokenizer.read(tmp_path / "whole" / "words.json")
    )
    monkeypatch.setattr(task_loop._Loop, "_train", dies)
    with pytest.raises(Killed):
        run(config, cut)
    monkeypatch.setattr(task_loop._Loop, "_train", original)
    monkeypatch.setattr(pretrain_parts.WordTokenizer, "train", None)  # resuming reads what was learned
    resumed = pretrain_run(cut, resume=True, progress=False)
    assert resumed is not None
    assert (cut / "model/model.safetensors").read_bytes() == (whole.folder / "model/model.safetensors").read_bytes()
    assert resumed.figures == whole.figures
    for a, b in zip(resumed.fit.history, whole.fit.history, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_ctrl_c_says_how_to_carry_on(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Any, number: int) -> None:
        raise KeyboardInterrupt

    said: list[str] = []
    monkeypatch.setattr(task_loop._Loop, "_train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain_run(config, out=tmp_path / "run", say=said.append, progress=False)
    assert said[-1] == f"interrupted; carry on with: polyfuse pretrain --resume {tmp_path / 'run'}"


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_two_processes_do_not_train_into_one_folder(config: Path, tmp_path: Path) -> None:
    import fcntl

    run(config, tmp_path / "run", "train.steps=1")
    handle = os.open(tmp_path / "run", os.O_RDONLY)  # a lock of its own, as another process has
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process is training into"):
        pretrain_run(tmp_path / "run", resume=True, progress=False)
    os.close(handle)
    assert pretrain_run(tmp_path / "run", resume=True, progress=False) is not None


def test_sources_that_changed_are_not_resumed(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config, tmp_path / "run")
    monkeypatch.setattr(sources, "load_source", lambda name, **args: load(name, **args, seed=1))
    with pytest.raises(UserError, match="its sources have changed since it began"):
        pretrain_run(tmp_path / "run", resume=True, progress=False)


def test_several_sources_share_an_objective(config: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load(CONFIG)
    tree["data"] = [
        {"source": "one", "args": {"rows": 29}},
        {"source": "two", "objectives": ["masked_words", "answer"]},
    ]
    tree["objectives"] = {"contrast": 1, "masked_words": 0.5, "answer": 2}
    parts = build_parts(make_pretrain_config(tree))
    weights = {name: task.weight for name, task in parts.tasks.items()}
    assert weights == {
        "contrast": 1.0,
        "masked_words@one": 0.25,
        "masked_words@two": 0.25,
        "answer@one": 1.0,
        "answer@two": 1.0,
    }
    assert parts.tasks["contrast"].rows is parts.tasks["answer@one"].rows  # their batches are made once
    assert set(parts.answers) == {"maybe", "no", "yes"}
    config.write_text(yaml.safe_dump(tree))
    result = run(config, tmp_path / "run", "train.mixing=sample", "train.steps=9")
    assert json.loads((result.folder / "answers.json").read_text()) == list(parts.answers)
    assert sum(found["steps"] for record in result.fit.history for found in record["objectives"].values()) == 9


def test_regions_in_place_of_pixels(config: Path, tmp_path: Path) -> None:
    overrides = ["model.inputs=regions", "data.args.regions=true", "objectives.masked_classes_kl=1", "train.steps=2"]
    result = run(config, tmp_path / "run", *overrides)
    assert TaskModel.from_pretrained(result.folder / "model").config["region_dim"] == 5
    assert result.figures["masked_classes_kl.loss"] > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objectives.contrst=1"], "unknown objective 'contrst'; did you mean 'contrast'"),
        (["objectives.contrast=0"], "the weight of objective 'contrast' must be above 0, got 0"),
        (["model.backbone=unitr"], "unknown backbone 'unitr'; did you mean 'uniter'"),
        (
            ["model.backbone_options.num_layer=3"],
            "backbone 'uniter' has no argument 'num_layer'; did you mean 'num_layers'",
        ),
        (
            ["model.backbone_options.layers=3"],
            "has no argument 'layers'; did.* known: num_layers, num_heads, dropout, hid",
        ),
        (["model.backbone_options={num_layers:1}"], "a space is missing after ':' in 'num_layers:1'"),
        (["data={source: toy, agrs: {rows: 41}}"], "unknown key 'data.0.agrs' .*did you mean 'args'"),
        (["train.batch_size=1"], "objective 'contrast' .* needs 2 rows, got 1 .train.batch_size=1, 30 training rows"),
        (
            ["model.backbone=mmbert", "objectives.grounding=1"],
            "'grounding' cannot train: the visual tokens of backbone",
        ),
        (["model.patch=5"], "patch must divide side=16, got 5"),
        (["train.step=3"], "unknown key 'train.step' .*did you mean 'steps'"),
        (["trian.steps=3"], "unknown key 'trian.steps' .*did you mean 'train'"),
        (["train.steps"], "an override must read key=value"),
        (["train.lr=-1"], "train.lr"),
        (["objectives.masked_features=1"], r"'masked_features' cannot train: source 'toy' has no regions"),
        (["data.args.texts=false"], "'contrast' cannot train: source 'toy' has no texts"),
        (["data.objectives=[match]"], "data.0.objectives names 'match', objectives do not"),
        (["data.objectives=[contrast]"], "objective 'masked_words' cannot train: no source lists it"),
        (["model.inputs=regions"], "'contrast' cannot train: source 'toy' has no regions"),
        (["train.shard_parameters=true"], "needs several processes"),
        (["model.backbone=clip", "model.inputs=regions", "data.args.regions=true"], "'clip' looks at pixels itself"),
        (["model.backbone=mmbert", "objectives.masked_patches=1"], "visual tokens of backbone 'mmbert' are no places"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_no_folder(
    config: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(config, tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


def test_overrides_of_lists_need_a_number() -> None:
    values = {"data": [{"source": "a"}, {"source": "b"}], "objectives": {"contrast": 1}}
    assert make_pretrain_config(values, ["data.1.args.rows=5"]).data[1].args == {"rows": 5}
    with pytest.raises(UserError, match="say which of the 2 entries by its number"):
        make_pretrain_config(values, ["data.args.rows=5"])
    with pytest.raises(UserError, match=r"'objectives\.contrast' is the value 1, it has no keys below it"):
        make_pretrain_config(values, ["objectives.contrast.x=1"])
    with pytest.raises(UserError, match="a config must be a mapping"):
        make_pretrain_config([1])


def test_runs_are_not_overwritten(config: Path, tmp_path: Path) -> None:
    run(config, tmp_path / "run", "train.steps=1")
    with pytest.raises(UserError, match="not empty"):
        run(config, tmp_path / "run")
    with pytest.raises(UserError, match="leave out KEY=VALUE and --out"):
        pretrain_run(tmp_path / "run", resume=True, overrides=["train.steps=2"])
    with pytest.raises(UserError, match="is not a run folder"):
        pretrain_run(tmp_path, resume=True)
    with pytest.raises(UserError, match="is a folder; give a config"):
        pretrain_run(tmp_path / "run")
    with pytest.raises(UserError, match="cannot read the config"):
        pretrain_run(tmp_path / "none.yaml")


def test_the_command_line(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert cli.run(["pretrain", str(config), "train.steps=2", "--out", out, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["run"], printed["steps"]) == (out, 2)
    assert cli.run(["pretrain", out, "--resume"]) == 0
    assert capsys.readouterr().out.startswith("held-out loss\n")
    assert cli.run(["pretrain", str(config), "train.stps=2"]) == 2
    assert "did you mean 'steps'" in capsys.readouterr().err


def test_two_processes_at_the_command_line_end_where_one_does(tmp_path: Path) -> None:
    source = "{source: scene_captions, args: {train: 23, validation: 7, test: 1, side: 32}}"
    text = CONFIG.replace("{source: toy, args: {rows: 41}}", source).replace(
        "num_heads: 2}", "num_heads: 2, dropout: 0}"
    )
    config = tmp_path / "scenes.yaml"
    config.write_text(text, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def python(*words: str) -> str:
        command = [sys.executable, "-W", "ignore", "-m", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)  # noqa: S603
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "polyfuse")
    one, two = tmp_path / "one", tmp_path / "two"
    printed = python(*launch, "pretrain", str(config), "--out", str(two), "--json")
    two_figures = json.loads(printed)["held_out"]  # one process prints
    one.mkdir()
    for name in ("config.yaml", "words.json", "data.json"):  # the same tokenizer
        shutil.copy(two / name, one / name)
    one_figures = json.loads(python("polyfuse", "pretrain", "--resume", str(one), "--json"))["held_out"]
    assert two_figures == pytest.approx(one_figures, abs=1e-4)
    assert TaskModel.from_pretrained(two / "model").config == TaskModel.from_pretrained(one / "model").config
