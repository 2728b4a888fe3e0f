"""Study finetune: its jobs, that every way of tuning runs and does what its name says, words that follow."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from polyfuse.studies.finetune import (
    ARMS,
    CAPTIONS,
    FINETUNE,
    FROZEN,
    FULL,
    GRADUAL,
    LONG,
    LORA,
    SCRATCH,
    SIZES,
    VQA,
    jobs,
    thaw,
    verdict,
)
from polyfuse.studies.task_bench import run_task_study
from polyfuse.studies.task_jobs import TaskJob
from polyfuse.studies.task_records import SCHEMA, Records, read_records
from polyfuse.tasks.model import TaskModel


def one_seed(scale: str) -> list[TaskJob]:
    return [job for job in jobs(scale) if job.seed == 0 and (job.setting != CAPTIONS or job.arm in (FULL, FROZEN))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finetune") / "study"
    result = run_task_study(replace(FINETUNE, jobs=one_seed), scale="smoke", out=out, workers=1)
    assert result.failed == ()
    assert result.done == 10
    return out


def test_what_trains_is_what_the_name_says(made: Path) -> None:
    records = read_records(made / "records.parquet")
    trained = {arm: records.mean(arm, "trainable", VQA) for arm in ARMS[VQA]}
    assert trained[FROZEN] < trained[LORA] < trained[FULL]
    assert trained[FULL] == trained[SCRATCH] == trained[GRADUAL]
    assert records.mean(LONG, "steps", VQA) == SIZES["smoke"]["pretrain"] + records.mean(FULL, "steps", VQA)
    assert set(records.curve_names(FULL, VQA)) == {"train loss", "validation loss", "validation accuracy"}
    assert records.mean(FROZEN, "trainable", CAPTIONS) < records.mean(FULL, "trainable", CAPTIONS)
    for metric in ("bleu_4", "cider_d", "nll", "human_nll"):
        assert records.stat(FULL, metric, CAPTIONS) is not None
    assert records.stat(FULL, "novel", VQA) is not None


def test_the_page_shows_answers_and_captions(made: Path) -> None:
    text = (made / "study.html").read_text()
    assert "answer: " in text
    assert "one of the references: " in text
    assert "over-fits" in text


def test_gradual_unfreezing_names_every_part_once() -> None:
    options = {"fusion": "early", "num_layers": 2, "num_heads": 2, "dropout": 0.0}
    model = TaskModel(vocab_size=11, dim=8, region_dim=5, backbone_options=options)
    schedule = thaw(model, 60)
    assert list(schedule) == [0, 10, 20, 30]
    assert schedule[10][0].endswith("layers.1")
    assert schedule[30] == ("backbone", "stem")


def records_of(values: dict[tuple[str, str, str], float]) -> Records:
    rows = [
        {"arm": arm, "setting": setting, "seed": seed, "kind": "figure", "metric": metric, "value": value + 1e-4 * seed}
        for (arm, setting, metric), value in values.items()
        for seed in range(3)
    ]
    for row in rows:
        if row["arm"] == FULL:
            row["value"] += 3e-4 * (row["seed"] == 2)
    return Records(pa.Table.from_pylist(rows, schema=SCHEMA))


def test_words_follow_from_the_figures() -> None:
    values = {(arm, VQA, "accuracy"): 0.5 for arm in (SCRATCH, LONG, FROZEN, LORA)}
    values |= {(arm, VQA, "trainable"): 1000.0 for arm in (FULL, FROZEN)}
    values |= {(FULL, VQA, "accuracy"): 0.6, (FULL, VQA, "novel"): 0.6, (LONG, VQA, "accuracy"): 0.7}
    values |= {(SCRATCH, VQA, "novel"): 0.5, (LONG, VQA, "novel"): 0.5}
    values |= {(FULL, VQA, "validation_loss"): 1.0, (FULL, VQA, "last_loss"): 2.0, (FULL, CAPTIONS, "bleu_4"): 0.4}
    text = " ".join(verdict(records_of(values)))
    assert "nan" not in text
    assert "surely beats one from scratch with the same fine-tuning steps: +10.0 points" in text
    assert "surely loses to one from scratch with the steps of the pre-training too: −10.0 points" in text
    assert "a frozen backbone −10.0 points" in text
    assert "(100 % of the weights)" in text
    assert "LoRA −10" not in text  # what trains there is not known
    assert "all weights 1.00 to 2.00" in text
    assert "all weights 40.0 / – / –" in text
    assert verdict(records_of({})) == []
