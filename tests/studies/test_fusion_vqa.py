"""The study of fusion strategies: its jobs, and a run at the smallest scale."""

from collections import Counter
from pathlib import Path

import pytest

from polyfuse.studies.answering import costs, new_model, questions_of, side_by_side, words_alone
from polyfuse.studies.fusion_vqa import FUSION_VQA, FUSIONS, jobs, world_options
from polyfuse.studies.fusion_vqa_page import COUNTED, PICTURE, TOGETHER, WORDS, tables, verdict
from polyfuse.studies.task_bench import run_task_study
from polyfuse.studies.task_records import read_records

OPTIONS = world_options("scenes", scenes=(29, 5, 7), steps=2, dim=16)


@pytest.mark.parametrize("scale", ["small", "full"])
def test_every_strategy_gets_the_same(scale: str) -> None:
    found = jobs(scale)
    assert len({job.key for job in found}) == len(found)
    for world in {job.setting for job in found}:
        here = [job for job in found if job.setting == world]
        tries = Counter(job.arm.split(" at rate ")[0] for job in here if " at rate " in job.arm)
        assert set(tries) == set(FUSIONS)
        assert len(set(tries.values())) == 1
        arms = [job for job in here if job.arm in FUSIONS]
        assert {len([job for job in arms if job.arm == fusion]) for fusion in FUSIONS} == {len(arms) // 3}
        assert len(arms) >= 9  # three seeds
        for key in ("data", "steps", "dim", "batch_size"):
            assert len({str(job.options[key]) for job in arms}) == 1


def test_parameters_are_about_equal_and_operations_are_counted() -> None:
    questions = questions_of(OPTIONS)
    found = {}
    for fusion, backbone in FUSIONS.items():
        model = new_model(questions, {**OPTIONS, "backbone": {**backbone, "num_heads": 4}, "dim": 64}, seed=0)
        found[fusion] = costs(model, questions)
    sizes = [one["parameters"] for one in found.values()]
    assert max(sizes) < 1.2 * min(sizes)
    assert found["early"]["multiply_adds"] > found["hybrid"]["multiply_adds"] > found["late"]["multiply_adds"]


def test_words_alone_are_counted_on_the_training_rows() -> None:
    questions = questions_of(OPTIONS)
    found = words_alone(questions)
    assert 0 < found["all"] < 1
    kinds = [questions.kind(row) for row in questions.rows["test"]]
    parts = sum(found[kind] * count for kind, count in Counter(kinds).items())
    assert found["all"] == pytest.approx(parts / len(kinds))


def test_models_are_timed_in_turns() -> None:
    questions = questions_of(OPTIONS)
    options = {**OPTIONS, "backbone": {**FUSIONS["late"], "num_heads": 2}}
    models = {name: new_model(questions, options, seed=0) for name in ("one", "other")}
    seconds = side_by_side(models, questions, (1, 3), rounds=1)
    assert set(seconds) == {(name, size) for name in models for size in (1, 3)}
    assert min(seconds.values()) > 0


def test_smoke_runs_and_says_what_it_found(tmp_path: Path) -> None:
    only = [*FUSIONS, TOGETHER, COUNTED, WORDS, PICTURE]
    result = run_task_study(FUSION_VQA, scale="smoke", out=tmp_path / "run", only=only, workers=1)
    assert not result.failed
    records = read_records(tmp_path / "run" / "records.parquet")
    assert records.settings == ["scenes", "scene pixels"]
    for world in records.settings:
        for fusion in FUSIONS:
            rates = {job.options["rate"]: records.mean(job.arm, "validation", world) for job in jobs("smoke")
                     if job.arm.startswith(f"{fusion} at rate") and job.setting == world}  # fmt: skip
            taken = records.mean(fusion, "rate", world)
            assert rates[taken] == max(rates.values()) == records.mean(fusion, "validation", world)
    assert any("differ" in table.title for table in tables(records))
    assert any("questions a second" in text for text in verdict(records))
    assert records.examples
    page = (tmp_path / "run" / "study.html").read_text(encoding="utf-8")
    assert "without picture" in page
    assert "data:image/png" in page
