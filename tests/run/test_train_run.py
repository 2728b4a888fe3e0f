"""A config becomes a run folder that holds what it promises and can be taken up again."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from polyfuse.errors import UserError
from polyfuse.files import new_folder
from polyfuse.run import load, train_run
from polyfuse.run.folder import Run
from polyfuse.train.checkpoint import BEST, LAST, METRICS


def test_a_run_folder_holds_what_the_design_lists(run: Run) -> None:
    for name in (
        "config.yaml",
        "encoder.json",
        "calibration.json",
        "problems.json",
        "versions.json",
        METRICS,
        BEST,
        LAST,
    ):
        assert (run.folder / name).is_file(), name
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    record = json.loads((run.folder / "report.json").read_text(encoding="utf-8"))
    assert {"picture+name+facts", "name"} <= {"+".join(r["subset"]) for r in record["subset_records"]}
    assert json.loads((run.folder / "versions.json").read_text(encoding="utf-8"))["torch"] == torch.__version__
    resolved = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    assert resolved["train"]["lr"] > 0  # defaults are written down
    assert Path(resolved["data"]["table"]).is_absolute()


def test_the_same_config_gives_the_same_parameters(run: Run, config: Path, tmp_path: Path) -> None:
    again = train_run(config, out=tmp_path / "again", progress=False)
    assert again is not None
    ours, theirs = run.model.state_dict(), load(tmp_path / "again").model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, theirs[name]), name


def test_resume_of_a_run_without_its_later_half_ends_the_same(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run.folder, folder)
    for name in (LAST, BEST, "calibration.json", "report.html"):  # as if killed before the first checkpoint
        (folder / name).unlink()
    resumed = train_run(folder, resume=True, progress=False)
    assert resumed is not None
    assert (folder / "report.html").is_file()
    for name, value in load(folder).model.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, run.model.state_dict()[name]), name


def test_resume_refuses_a_changed_table(run: Run, table: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run.folder, folder)
    changed = tmp_path / "emoji.csv"
    lines = table.read_text(encoding="utf-8").splitlines()
    changed.write_text("\n".join(lines[:200]) + "\n", encoding="utf-8")
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    (folder / "config.yaml").write_text(text.replace(str(table), str(changed)) + "\n", encoding="utf-8")
    shutil.copytree(table.parent / "pictures", tmp_path / "pictures")
    with pytest.raises(UserError, match=r"since .*copy' was trained on it \(\d+ training rows then, \d+ now\)"):
        train_run(folder, resume=True, progress=False)


def test_a_table_that_only_moved_is_no_changed_table(run: Run, table: Path, tmp_path: Path) -> None:
    folder, moved = tmp_path / "copy", tmp_path / "elsewhere"
    shutil.copytree(run.folder, folder)
    shutil.copytree(table.parent, moved)
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    (folder / "config.yaml").write_text(text.replace(str(table), str(moved / table.name)), encoding="utf-8")
    trained = train_run(folder, resume=True, progress=False)
    assert trained is not None
    assert trained.fit.steps == run.config.train.steps


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_two_processes_do_not_train_into_one_folder(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run.folder, folder)
    before = sorted(path.name for path in folder.iterdir())
    code = (
        f"import fcntl, os, sys; fcntl.flock(os.open({str(folder)!r}, 0), fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:  # noqa: S603  our own code
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError, match=r"another process is training into .*copy"):
            train_run(folder, resume=True, progress=False)
        other.kill()
    assert sorted(path.name for path in folder.iterdir()) == before
    assert train_run(folder, resume=True, progress=False) is not None  # a lock ends with its process


def test_a_run_is_never_overwritten(run: Run, config: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists and is not empty; a run is never overwritten"):
        train_run(config, out=run.folder, progress=False)
    assert [new_folder("a", None, tmp_path).name for _ in range(3)] == ["a-1", "a-2", "a-3"]


@pytest.mark.parametrize(
    "override", ["data.id=nothing", "model.fusion_args.nothing=1", "train.class_weights.nothing=2"]
)
def test_a_mistake_leaves_the_folder_free(config: Path, tmp_path: Path, override: str) -> None:
    for out in (tmp_path / "new", tmp_path / "new"):
        with pytest.raises(UserError, match="nothing"):
            train_run(config, overrides=[override], out=out, progress=False)
        assert not out.exists()


def test_of_several_processes_one_speaks(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, spoken in (("0", True), ("1", False)):
        said: list[str] = []
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr("polyfuse.run.train.make_fabric", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_run(table, target="category", say=said.append)
        assert bool(said) == spoken


def test_an_interrupt_at_any_time_says_how_to_carry_on(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for place in ("prepare", "fit", "finish"):
        said: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(f"polyfuse.run.train.{place}", interrupt)
            with pytest.raises(KeyboardInterrupt):
                train_run(config, overrides=["train.steps=2"], out=tmp_path / f"{place} 1", say=said.append)
        assert said[-1] == f"interrupted; carry on with: polyfuse train --resume '{tmp_path}/{place} 1'"
    assert train_run(tmp_path / "prepare 1", resume=True, progress=False) is not None


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("missing.yaml", {}, "cannot read the config 'missing.yaml'"),
        ("missing.csv", {"target": "x"}, "table 'missing.csv' does not exist"),
        ("missing.csv", {"target": ["x", "y"]}, "table 'missing.csv' does not exist"),
        ("missing.yaml", {"target": ["x", "y"]}, r"use data.target=\[x,y\]"),
        ("missing.csv", {}, "which column of 'missing.csv' is to be predicted"),
        ("missing.yaml", {"target": "x"}, "--target belongs to a table"),
        ("missing", {"resume": True}, "'missing' is not a run folder"),
        ("missing", {"resume": True, "overrides": ["train.lr=1"]}, "leave out KEY=VALUE"),
    ],
)
def test_mistakes_are_one_sentence(source: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_run(Path(source), **options)  # type: ignore[arg-type]


def test_load_refuses_what_is_no_run(tmp_path: Path, run: Run) -> None:
    with pytest.raises(UserError, match=r"is no run folder \(it has no config.yaml\)"):
        load(tmp_path)
    folder = tmp_path / "unfinished"
    folder.mkdir()
    shutil.copy(run.folder / "config.yaml", folder)
    with pytest.raises(UserError, match=r"encoder.json' is missing: the run is not finished"):
        load(folder)


def test_an_interrupted_or_damaged_run_does_not_answer(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run.folder, folder)
    whole = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))
    (folder / "calibration.json").unlink()  # interrupted in training: there is a best checkpoint, and no calibration
    with pytest.raises(UserError, match=r"calibration.json' is missing: the run is not finished; .*--resume"):
        load(folder)
    (folder / "calibration.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"calibration.json' does not hold what .*'format'"):
        load(folder)
    other = whole | {"prior": whole["prior"][:-1]}
    (folder / "calibration.json").write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(UserError, match="belongs to another run"):
        load(folder)
    (folder / "encoder.json").write_text('{"version": 1}', encoding="utf-8")
    with pytest.raises(UserError, match=r"encoder.json' does not hold what .*'codecs'"):
        load(folder)
