"""The study of attention: its jobs, its maps, and a run at the smallest scale."""

from pathlib import Path

import numpy as np
import pytest
import torch

from polyfuse.studies.answering import new_model, questions_of
from polyfuse.studies.attention import ARMS, ATTENTION, STRATEGIES, answers_from, jobs, maps_of
from polyfuse.studies.attention_page import SPEED, main_map, tables, verdict
from polyfuse.studies.fusion_vqa import world_options
from polyfuse.studies.task_bench import run_task_study
from polyfuse.studies.task_records import read_records

OPTIONS = world_options("scenes", scenes=(29, 5, 7), steps=2, dim=16)


@pytest.mark.parametrize("scale", ["small", "full"])
def test_arms_differ_in_the_strategy_alone(scale: str) -> None:
    found = [job for job in jobs(scale) if job.arm != SPEED and job.setting == "scenes"]
    assert {job.arm for job in found} == set(ARMS)
    assert len(found) >= 3 * len(ARMS)
    rest = [{key: value for key, value in job.options.items() if key != "backbone"} for job in found]
    assert all(one == rest[0] for one in rest)


@pytest.mark.parametrize("arm", STRATEGIES)
def test_maps_weigh_present_tokens_alone(arm: str) -> None:
    questions = questions_of(OPTIONS)
    model = new_model(questions, {**OPTIONS, "backbone": ARMS[arm]}, seed=0).eval()
    batch = questions.collate(questions.rows["test"][:5])
    maps, mask = maps_of(model, batch), model.stem(batch).mask
    assert set(maps) == {"late": {"readout"}, "bottleneck": {"words", "readout"}}.get(arm, {"words", "last", "readout"})
    for weights in maps.values():
        assert weights.shape == mask.shape
        assert not weights[~mask].any()
        assert (weights[mask] > 0).all()


def test_all_tokens_left_is_the_model_itself() -> None:
    questions = questions_of(OPTIONS)
    model = new_model(questions, {**OPTIONS, "backbone": ARMS["co"]}, seed=0).eval()
    batch = questions.collate(questions.rows["test"][:5])
    wanted = torch.tensor([0, 1, 2, -1, 0])
    with torch.no_grad():
        score = answers_from(model, batch, wanted)
        whole = model(batch, tasks=("answer",)).answer_logits.softmax(dim=1)
        mask = model.stem(batch).mask
        torch.testing.assert_close(score(mask)[:, 1], whole[torch.arange(5), wanted.clamp(min=0)] * (wanted >= 0))
        assert score(mask)[3].tolist() == [0.0, 0.0]  # an answer that the vocabulary lacks
        assert not torch.equal(score(mask & (torch.arange(mask.shape[1]) > 0))[:, 1], score(mask)[:, 1])


def test_smoke_runs_and_says_what_it_found(tmp_path: Path) -> None:
    result = run_task_study(ATTENTION, scale="smoke", out=tmp_path / "run", workers=1)
    assert not result.failed
    records = read_records(tmp_path / "run" / "records.parquet")
    assert records.settings == ["scenes", "scene pixels"]
    for arm in ARMS:
        name = main_map(records, arm, "scenes")
        assert name == ("readout" if arm == "late" else "words")
        drops = [records.mean(arm, f"{name} {which} probability", "scenes") for which in ("top", "random", "gain")]
        assert drops[0] - drops[1] == pytest.approx(drops[2], abs=1e-6)
        best = records.mean(arm, "best top probability", "scenes")
        assert best >= max(drops[0], drops[1]) - 1e-6  # one token of few: nothing costs more than the best choice
        assert np.isfinite(records.mean(SPEED, f"{arm} ms at 64", "scenes"))
    assert any("cross-modal" in row[0] for table in tables(records) for row in table.rows)
    assert any("multiply-adds" in text for text in verdict(records))
    assert "no cross-modal map: the picture" in (tmp_path / "run" / "study.html").read_text(encoding="utf-8")
