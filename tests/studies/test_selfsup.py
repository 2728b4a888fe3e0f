"""Study selfsup: its jobs, that they run, and words that follow from the figures."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from polyfuse.studies.selfsup import ALONE, LONG, PRETRAIN, SELFSUP, SHARES, SHORT, SIZES, TUNED, arm_of, jobs, verdict
from polyfuse.studies.task_bench import run_task_study
from polyfuse.studies.task_jobs import TaskJob, needs_of
from polyfuse.studies.task_records import SCHEMA, Records, read_records


def few(scale: str) -> list[TaskJob]:
    """One world each way, one seed, the smallest and the largest share."""
    return [
        job
        for job in jobs(scale)
        if job.seed == 0 and job.setting in ("", "1 %", "100 %") and (job.arm.startswith("scenes") or not job.setting)
    ]


def test_every_arm_has_every_share_and_equal_steps() -> None:
    for scale, sizes in SIZES.items():
        found = jobs(scale)
        keys = {job.key for job in found}
        for world, size in sizes.items():
            assert size["seeds"] >= (1 if scale == "smoke" else 3)
            for share in SHARES:
                mine = {
                    arm: next(j for j in found if j.key == (arm_of(world, arm), 0, share))
                    for arm in (TUNED, LONG, SHORT)
                }
                before = next(job for job in found if job.key == (arm_of(world, PRETRAIN), 0, ""))
                total = before.options["steps"] + mine[TUNED].options["steps"]
                assert mine[LONG].options["steps"] == total
                assert mine[SHORT].options["steps"] == mine[TUNED].options["steps"]
        assert all(need in keys for job in found for need in needs_of(job))


def test_it_runs(tmp_path: Path) -> None:
    result = run_task_study(replace(SELFSUP, jobs=few), scale="smoke", out=tmp_path / "study", workers=1)
    assert result.failed == ()
    assert result.done == 11  # every pre-training, three arms at two shares, two ceilings
    records = read_records(result.records)
    assert 0 <= records.mean(arm_of("scenes", TUNED), "accuracy", "1 %") <= 1
    assert records.mean(arm_of("scenes", LONG), "steps", "100 %") == 9
    assert records.curve_names(arm_of("emoji", PRETRAIN)) == ["train contrast"]
    text = (tmp_path / "study" / "study.html").read_text()
    assert "<image" in text
    assert "words alone, all labels" in text


def made(gains: dict[str, float]) -> Records:
    """Accuracies of three seeds: from scratch 50 %, pre-trained so much more."""
    rows = []
    for seed in range(3):
        for share, gain in gains.items():
            for arm, value in ((LONG, 0.5), (TUNED, 0.5 + gain + 0.001 * seed)):
                rows.append({"arm": arm_of("emoji", arm), "setting": share, "value": value, "metric": "accuracy"})
        for place, arm in enumerate(ALONE.values()):
            value = 0.3 + 0.1 * place
            rows.append({"arm": arm_of("emoji", arm), "setting": "100 %", "value": value, "metric": "accuracy"})
        for row in rows[-2 * len(gains) - 2 :]:
            row |= {"seed": seed, "kind": "figure"}
    return Records(pa.Table.from_pylist(rows, schema=SCHEMA))


def test_words_follow_from_the_figures() -> None:
    better = " ".join(verdict(made({"1 %": 0.1, "5 %": 0.2, "10 %": 0.1, "100 %": -0.1})))
    assert "surely helps with 1 %, 5 % and 10 % of the labels" in better
    assert "+10.1 points (+9.9 to +10.3) with 1 % of the labels" in better
    assert "The expected gain at 1 to 10 % is there on classes of emoji." in better
    assert "It surely loses on classes of emoji with 100 % of the labels." in better
    assert "50.0 % of the time, from picture alone 40.0 %: +10.0 points" in better
    mixed = " ".join(verdict(made({"1 %": 0.0, "5 %": 0.2, "10 %": 0.1, "100 %": 0.0})))
    assert "surely helps with 5 % and 10 % of the labels" in mixed
    assert "is not there throughout on classes of emoji: not at 1 %." in mixed
    none = " ".join(verdict(made({"1 %": -0.1, "100 %": 0.0})))
    assert "does not surely help with few labels" in none
    assert "It surely loses on classes of emoji with 1 % of the labels." in none
