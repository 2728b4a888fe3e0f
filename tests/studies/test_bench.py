"""The engine of studies: nothing is done twice or lost, and the records do not depend on how they were made."""

import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # worker processes take it over: they must be able to import the study

import bench_toy
import pool_toy
from bench_toy import STUDY

from polyfuse.cli import run as polyfuse
from polyfuse.errors import UserError
from polyfuse.studies import bench
from polyfuse.studies import jobs as jobs_module
from polyfuse.studies.bench import run_study
from polyfuse.studies.jobs import Place, StudyJob
from polyfuse.studies.pool import run_jobs
from polyfuse.studies.registry import STUDIES
from polyfuse.studies.results import SCHEMA, StudyResult, shard_meta

TIMES = {"train_seconds", "judge_seconds", "ms_per_row", "peak_mb"}


def rows(folder: Path, *, times: bool = False) -> list[dict[str, Any]]:
    found = pq.read_table(folder / "records.parquet").to_pylist()
    return [r for r in found if times or r["metric"] not in TIMES]


def numbers(folder: Path) -> list[str]:
    return [repr(row) for row in rows(folder)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyResult]:
    folder = tmp_path_factory.mktemp("study") / "toy"
    return folder, run_study(STUDY, scale="smoke", out=folder, workers=1)


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch, made: tuple[Path, StudyResult]) -> None:
    """Figures take time; the page of ``made`` is enough."""
    monkeypatch.setattr(bench, "_page", lambda run, folder: [])


@pytest.fixture
def folder(made: tuple[Path, StudyResult], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "copy"))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the arms as they are trained in this process."""
    seen: list[str] = []
    original = jobs_module.train_plan

    def watched(task: Any, plan: Any, *rest: Any) -> Any:
        seen.append(plan.name)
        return original(task, plan, *rest)

    monkeypatch.setattr(jobs_module, "train_plan", watched)
    return seen


def test_the_records_have_the_schema_and_every_kind(made: tuple[Path, StudyResult]) -> None:
    folder, result = made
    table = pq.read_table(folder / "records.parquet")
    assert table.schema.equals(SCHEMA)
    assert pq.ParquetFile(folder / "records.parquet").metadata.row_group(0).column(0).compression == "ZSTD"
    kinds = Counter((r["dataset"], r["kind"]) for r in table.to_pylist())
    for kind in ("data", "try", "setting", "job", "subset", "found", "curve", "broken", "flagged", "seed", "row"):
        assert kinds["one", kind], kind
        assert kinds["two", kind], kind
    assert (result.skipped, result.failed) == (0, ())
    assert (folder / "study.html").exists()
    assert str(folder / "study.html") in result.text()
    files = [p for p in (folder / "jobs").rglob("*") if p.is_file()]
    assert result.done == len(files) == 2 * (1 + 2 + 3 * 2 + 1 + 2 * 3)
    assert all(p.suffix == ".parquet" for p in files)


def test_every_arm_is_judged_on_every_subset_and_seed(made: tuple[Path, StudyResult]) -> None:
    found = [r for r in rows(made[0]) if r["kind"] == "subset" and (r["metric"], r["dataset"]) == ("nll", "one")]
    for arm in ("reference", "late"):
        got = {(r["seed"], r["subset"], r["stage"]) for r in found if r["arm"] == arm}
        assert {(n, s, "raw") for n in (0, 1) for s in ("a", "b", "a+b")} <= got
    assert {r["subset"] for r in found if r["arm"] == "b alone"} == {"b"}
    assert {r["seed"] for r in found if r["arm"] == "presence"} == {0}
    oracles = {(r["arm"], r["subset"]) for r in rows(made[0]) if r["kind"] == "oracle"}
    assert oracles == {(arm, s) for arm in ("oracle", "oracle reseeded") for s in ("a", "b", "a+b")}


def test_row_losses_are_those_of_the_table_and_belong_to_their_keys(made: tuple[Path, StudyResult]) -> None:
    found = [r for r in rows(made[0]) if r["dataset"] == "two" and r["seed"] == 0]
    test = bench_toy.load("two", 0).test
    kept = [r for r in found if (r["kind"], r["metric"], r["corruption"]) == ("row", "loss", "")]
    losses = {(r["arm"], r["subset"]): r for r in kept}
    for r in found:
        if (r["kind"], r["metric"], r["stage"]) == ("subset", "accuracy", "raw") and r["arm"] != "bayes":
            row = losses[r["arm"], r["subset"]]
            assert row["keys"] == test.keys.tolist()
            assert np.nanmean(row["values"]) == pytest.approx(1.0 - r["value"], abs=1e-6)
            has = test.present[:, [test.modalities.index(name) for name in r["subset"].split("+")]].all(dim=1)
            assert np.isfinite(row["values"]).tolist() == has.tolist()
    groups = next(r for r in found if (r["kind"], r["metric"]) == ("data", "groups"))
    assert groups["values"][0] == groups["values"][1] != groups["values"][2]
    assert len(set(groups["values"])) == groups["value"] == 41


def test_what_was_broken_before_encoding_is_judged_and_absent_content_never_leaks(
    made: tuple[Path, StudyResult],
) -> None:
    found = [r for r in rows(made[0]) if r["dataset"] == "one" and r["arm"] == "reference" and r["seed"] == 0]
    broken = {(r["modality"], r["corruption"]): r for r in found if (r["kind"], r["metric"]) == ("broken", "accuracy")}
    assert {name for m, name in broken if m == "a"} - {name for m, name in broken if m == "b"} == {"upside down"}
    assert broken["a", "upside down"]["value"] < 0.9 * broken["a", "scaled 4"]["value"]
    assert [r["value"] for r in found if r["kind"] == "flagged"] == [0.0, 0.0]


def test_a_known_posterior_is_judged_and_every_arm_is_held_against_it(made: tuple[Path, StudyResult]) -> None:
    found = [r for r in rows(made[0]) if r["seed"] == 0]
    exact = {r["subset"]: r["value"] for r in found if (r["arm"], r["kind"], r["metric"]) == ("bayes", "subset", "nll")}
    assert set(exact) == {"a", "b", "a+b"}
    assert exact["a+b"] < min(exact["a"], exact["b"])
    apart = {r["subset"]: r["value"] for r in found if (r["arm"], r["metric"]) == ("late", "bayes_kl")}
    assert set(apart) == set(exact)
    assert min(apart.values()) > 0.0
    assert not [r for r in found if r["dataset"] == "two" and (r["arm"] == "bayes" or "bayes" in r["metric"])]


def test_settings_are_chosen_on_validation_and_run_with_every_seed(made: tuple[Path, StudyResult]) -> None:
    late = [r for r in rows(made[0]) if r["arm"] == "late" and r["dataset"] == "one"]
    tried = {r["stage"]: r["value"] for r in late if r["kind"] == "try"}
    assert min(tried, key=lambda stage: tried[stage]) == '{"train.lr": 0.02}'
    assert [(r["seed"], r["metric"], r["stage"]) for r in late if r["kind"] == "setting"] == [
        (0, "train.lr", "0.02"),
        (1, "train.lr", "0.02"),
    ]


def test_a_second_run_trains_nothing(folder: Path, made: tuple[Path, StudyResult], trained: list[str]) -> None:
    again = run_study(STUDY, scale="smoke", out=folder, workers=1)
    assert (again.done, again.skipped) == (0, made[1].done)
    assert trained == []
    assert repr(rows(folder, times=True)) == repr(rows(made[0], times=True))


def test_only_runs_an_arm_again_and_leaves_the_others(
    folder: Path, made: tuple[Path, StudyResult], trained: list[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in (folder / "jobs").rglob("*.parquet")}
    run_study(STUDY, scale="smoke", out=folder, only=["late"], datasets=["two"], workers=1)
    assert trained == ["late"] * 4  # two settings, two seeds
    changed = {p.name for p, when in before.items() if p.stat().st_mtime_ns != when}
    assert changed == {"late-0.parquet", "late-1.parquet", "late-try-0.parquet", "late-try-1.parquet"}
    assert sorted(numbers(folder)) == sorted(numbers(made[0]))
    with pytest.raises(UserError, match="unknown arm 'lat'; did you mean 'late'"):
        run_study(STUDY, scale="smoke", out=folder, only=["lat"], workers=1)
    with pytest.raises(UserError, match="unknown arm"):
        run_study(STUDY, scale="smoke", out=folder / "new", only=["lat"], workers=1)
    assert not (folder / "new").exists()


@pytest.mark.parametrize(("first", "second"), [(1, 1), (2, 1)])
def test_an_interrupted_run_goes_on_to_the_same_records_with_any_workers(
    first: int, second: int, tmp_path: Path, made: tuple[Path, StudyResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = 0
    original = bench._Run.done

    def interrupted(self: Any, job: StudyJob, answer: Any) -> Any:
        nonlocal counted
        counted += 1
        if counted == 5:
            raise KeyboardInterrupt
        return original(self, job, answer)

    out = tmp_path / "toy"
    lines: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(bench._Run, "done", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_study(STUDY, scale="smoke", out=out, datasets=["one"], workers=first, say=lines.append)
    assert "interrupted after 4 jobs" in lines[-1]
    assert rows(out)  # what is done is there
    result = run_study(STUDY, scale="smoke", out=out, datasets=["one"], workers=second)
    assert 0 < result.skipped < result.done
    assert numbers(out) == [text for text in numbers(made[0]) if "'dataset': 'one'" in text]


def test_a_failed_job_is_told_and_does_not_stop_the_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch, trained: list[str]
) -> None:
    monkeypatch.setenv("TOY_SICK", "1")
    result = run_study(STUDY, scale="smoke", out=folder, datasets=["one"], only=["sick", "late"], workers=1)
    assert [job for job, _ in result.failed] == ["one: sick, seed 0", "one: sick, seed 1"]
    assert all(message.startswith("UserError: at step") for _, message in result.failed)
    assert trained.count("late") == 4
    failed = [r for r in rows(folder) if r["kind"] == "failed"]
    assert [(r["arm"], r["seed"], r["stage"]) for r in failed] == [
        ("sick", seed, message) for seed, (_, message) in enumerate(result.failed)
    ]
    trained.clear()
    assert len(run_study(STUDY, scale="smoke", out=folder, datasets=["one"], workers=1).failed) == 2  # tried again
    assert trained == ["sick", "sick"]
    monkeypatch.delenv("TOY_SICK")
    run_study(STUDY, scale="smoke", out=folder, datasets=["one"], workers=1)
    assert not [r for r in rows(folder) if r["arm"] == "sick"]  # no longer part of the study


def test_a_worker_that_dies_is_a_failed_job(tmp_path: Path) -> None:
    answers = []

    def done(job: Any, answer: str) -> list[Any]:
        answers.append(answer)
        return [pool_toy.Task(4)] if job.number == 3 else []

    run_jobs([pool_toy.Task(3), pool_toy.Task(1, deadly=True), pool_toy.Task(2)], 2, done)
    assert sorted(answers) == ["1 died with 7", "2 in 1 thread", "3 in 1 thread", "4 in 1 thread"]
    job = StudyJob("arm", Place("one"), 0, "late", 1, tmp_path / "late-1.parquet", bench_toy.load)
    assert job.died(-9).failed == "the worker process ended with status -9"
    assert shard_meta(job.path)["failed"] == "the worker process ended with status -9"


def test_changed_settings_are_run_again(folder: Path, monkeypatch: pytest.MonkeyPatch, trained: list[str]) -> None:
    original = STUDY.arms

    def changed(data: Any, size: Any) -> Any:
        plans = original(data, size)
        later = plans[0].train.model_copy(update={"lr": 3e-3})
        return [replace(plans[0], train=later, note="said otherwise"), *plans[1:]]

    study = replace(STUDY, arms=changed)
    run_study(study, scale="smoke", out=folder, datasets=["one"], workers=1)
    assert Counter(trained) == {"reference": 2, "oracle": 6}  # the oracles train as the reference does


def test_the_command_line_ends_1_when_a_job_failed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(STUDIES, "toy", STUDY)
    arguments = ["study", "toy", "--scale", "smoke", "--out", str(folder), "--datasets", "one", "--workers", "1"]
    assert polyfuse(arguments) == 0
    assert str(folder / "records.parquet") in capsys.readouterr().out
    monkeypatch.setenv("TOY_SICK", "1")
    assert polyfuse([*arguments, "--only", "sick"]) == 1
    assert "failed: one: sick, seed 1: UserError" in capsys.readouterr().out
    for wrong, message in (
        (["study", "tuy"], "unknown study 'tuy'; did you mean 'toy'"),
        ([*arguments, "--datasets", "three"], "unknown data set 'three'"),
        ([*arguments, "--scale", "huge"], "--scale must be one of smoke, small, got 'huge'"),
        ([*arguments, "--scale", "small"], "holds study toy at scale smoke, not toy at small"),
        ([*arguments, "--seeds", "0"], "--seeds must be at least 1, got 0"),
    ):
        assert polyfuse(wrong) == 2
        assert message in capsys.readouterr().err


def test_a_data_set_that_cannot_be_loaded_does_not_stop_the_others(tmp_path: Path) -> None:
    study = replace(STUDY, datasets=("gone", "one"))
    result = run_study(study, out=tmp_path / "toy", only=["presence"], workers=1)
    assert list(result.failed) == [("gone", "UserError: its files are not there")]
    assert result.done == 2


def test_a_place_is_a_data_set_with_a_variant() -> None:
    place = Place.parse("mfeat | missing 0.7")
    assert (place.dataset, place.variant, str(place)) == ("mfeat", "missing 0.7", "mfeat | missing 0.7")
    assert place.folder == "mfeat--missing-0.7"
    assert Place.parse("mfeat").folder == "mfeat"
