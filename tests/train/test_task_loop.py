"""The loop of several objectives: against a plain loop, its draws, its choice of weights, groups and settings."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyfuse.data.keyed import permutation, uniform
from polyfuse.errors import UserError
from polyfuse.tasks.batch import TaskBatch
from polyfuse.tasks.model import TaskModel
from polyfuse.train.checkpoint import BEST, LAST, METRICS, read_checkpoint, read_metrics
from polyfuse.train.task_layers import task_groups
from polyfuse.train.task_loop import LoopSettings, Task, fit_tasks, visual_tokens

from .task_toy import toy_tasks

SETTINGS = LoopSettings(steps=11, batch_size=5, lr=0.01, warmup=0.2, evaluations=3, seed=3, weight_decay=0.1)
WEIGHTS = {"masked_words": 1.0, "contrast": 0.5, "answer": 2.0}


def weights_of(model: TaskModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def plain_loop(model: TaskModel, tasks: dict[str, Task], settings: LoopSettings) -> list[dict[str, float]]:
    """What ``fit_tasks`` is to do with "sum", written out: every batch, rate, draw and norm by itself."""
    model.train()
    matrices = [
        p
        for name, p in model.named_parameters()
        if p.ndim >= 2 and "embedding" not in name and "words.weight" not in name.replace("heads.words", "")
        if not any(word in name for word in ("token", "query", "position", "regions.masked"))
    ]
    rest = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    )
    rows = next(iter(tasks.values())).rows
    order = np.concatenate([rows[permutation(settings.seed, "task rows", e, len(rows))] for e in range(9)])
    warm = math.floor(settings.warmup * settings.steps)
    losses = []
    for step in range(settings.steps):
        taken = order[step * settings.batch_size : (step + 1) * settings.batch_size]
        rising = (step + 1) / warm if step < warm else None
        cosine = 0.5 * (1 + math.cos(math.pi * (step - warm) / (settings.steps - warm)))
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * (cosine if rising is None else rising)
        optimizer.zero_grad()
        total, found = torch.zeros(()), {}
        for name, task in tasks.items():
            batch = task.collate(taken)
            draws = task.objective.draws(batch, 4, settings.seed, step)
            loss, _ = task.objective.loss(model, batch, draws)
            total, found[name] = total + task.weight * loss, loss.item()
        total.backward()
        assert settings.clip is not None
        torch.nn.utils.clip_grad_norm_(list(model.parameters()), settings.clip)
        optimizer.step()
        losses.append(found)
    return losses


def test_sum_is_the_plain_loop() -> None:
    model, tasks = toy_tasks(WEIGHTS)
    expected = plain_loop(model, tasks, SETTINGS)
    wanted = weights_of(model)
    model, tasks = toy_tasks(WEIGHTS)
    result = fit_tasks(model, tasks, SETTINGS)
    assert not model.training
    assert [record["step"] for record in result.history] == [4, 7, 11]
    for record, (first, last) in zip(result.history, ((0, 4), (4, 7), (7, 11)), strict=True):
        means = {n: sum(step[n] for step in expected[first:last]) / (last - first) for n in WEIGHTS}
        for name, mean in means.items():
            assert record["objectives"][name]["loss"] == pytest.approx(mean, abs=1e-5)
            assert record["objectives"][name]["steps"] == last - first
        assert record["train_loss"] == pytest.approx(sum(WEIGHTS[n] * m for n, m in means.items()), abs=1e-4)
    for name, value in weights_of(model).items():
        torch.testing.assert_close(value, wanted[name], atol=2e-5, rtol=1e-4)
    assert (result.best_step, result.steps, result.stopped_early) == (11, 11, False)
    assert math.isnan(result.best_metric)


def test_sample_draws_one_task_per_step_by_weight() -> None:
    weights = {"masked_words": 1.0, "value": 3.0}
    model, tasks = toy_tasks(weights)
    seen: list[str] = []
    for name, task in tasks.items():
        collate = task.collate

        def note(rows: np.ndarray, name: str = name, collate: Any = collate) -> TaskBatch:
            seen.append(name)
            return collate(rows)

        note.keys = collate.keys  # type: ignore[attr-defined]
        tasks[name] = replace(task, collate=note)  # type: ignore[arg-type]
    settings = replace(SETTINGS, steps=31, mixing="sample", evaluations=1)
    result = fit_tasks(model, tasks, settings)
    draws = uniform(3, "task", 0, torch.arange(31), 1)[:, 0]
    assert seen == ["masked_words" if draw < 0.25 else "value" for draw in draws]
    counts = {name: found["steps"] for name, found in result.history[0]["objectives"].items()}
    assert counts == {name: seen.count(name) for name in weights}
    assert result.history[0]["objectives"]["value"]["epochs"] == pytest.approx(seen.count("value") * 5 / 17)
    weighted = sum(found["loss"] * found["steps"] for found in result.history[0]["objectives"].values()) / 31
    assert result.history[0]["train_loss"] == pytest.approx(weighted)


def test_a_task_alone_trains_nothing_of_the_others() -> None:
    model, tasks = toy_tasks(WEIGHTS)
    before = weights_of(model)
    fit_tasks(model, {"answer": tasks["answer"]}, SETTINGS)
    changed = {name for name, value in weights_of(model).items() if not torch.equal(value, before[name])}
    assert not any(name.startswith(("heads.words", "heads.contrast")) for name in changed)
    assert {
        name for name in before if name.startswith(("heads.answer", "stem", "backbone.model.layers"))
    } - changed <= {"stem.hidden"}


def test_the_same_seed_gives_the_same_bits_with_dropout_and_another_does_not() -> None:
    found = []
    for seed in (3, 3, 4):
        model, tasks = toy_tasks(WEIGHTS, dropout=0.2)
        torch.manual_seed(len(found))  # the caller's generator has no say, and is left alone
        before = torch.get_rng_state()
        fit_tasks(model, tasks, replace(SETTINGS, seed=seed))
        assert torch.equal(torch.get_rng_state(), before)
        found.append(weights_of(model))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    assert not torch.equal(found[0]["stem.places"], found[2]["stem.places"])


@pytest.mark.parametrize("best_is", ["lowest", "highest"])
def test_the_best_weights_are_kept_and_patience_ends_training(best_is: str) -> None:
    model, tasks = toy_tasks(WEIGHTS)
    figures = iter([0.5, 0.4, 0.6, 0.7, 0.1] if best_is == "lowest" else [0.5, 0.6, 0.4, 0.3, 0.9])
    weights: list[dict[str, torch.Tensor]] = []

    def validate(given: TaskModel) -> dict[str, float]:
        assert not given.training
        assert not torch.is_grad_enabled()
        weights.append(weights_of(given))
        return {"score": next(figures), "other": 3.0}

    settings = replace(SETTINGS, evaluations=5, patience=2)
    result = fit_tasks(model, tasks, settings, validate=validate, best_by="score", best_is=best_is)  # type: ignore[arg-type]
    assert result.stopped_early
    assert (result.steps, result.best_step) == (9, 4)
    assert result.best_metric == (0.4 if best_is == "lowest" else 0.6)
    assert result.history[1]["validation"] == {"score": result.best_metric, "other": 3.0}
    assert all(torch.equal(value, weights[1][name]) for name, value in model.state_dict().items())
    assert not torch.equal(weights[1]["stem.places"], weights[3]["stem.places"])


def test_layers_near_the_heads_learn_faster() -> None:
    model, tasks = toy_tasks({"answer": 1.0})
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = task_groups(model, 0.1, 0.5, frozen=False)
    share = {names[parameter]: group["lr_share"] for group in groups for parameter in group["params"]}
    assert set(share) == set(names.values())
    assert share["heads.answer.output.weight"] == 1.0
    assert share["backbone.model.pooler.dense.weight"] == 1.0  # above the layers
    assert share["backbone.model.layers.1.mlp.up.weight"] == 0.5
    assert share["backbone.model.layers.0.mlp.up.bias"] == 0.25
    assert share["stem.places"] == share["backbone.model.embeddings.words.weight"] == 0.125
    before = weights_of(model)
    fit_tasks(model, tasks, replace(SETTINGS, layer_decay=1e-3, weight_decay=0.0))
    moved = {name: (value - before[name]).abs().max().item() for name, value in weights_of(model).items()}
    assert moved["heads.answer.output.weight"] > 1e-2
    assert 1e-6 < moved["backbone.model.layers.1.mlp.up.weight"] < 1e-3
    assert moved["stem.places"] < 1e-7


def test_parameters_thaw_when_told_and_not_before() -> None:
    model, tasks = toy_tasks(WEIGHTS)
    stem = weights_of(model)["stem.places"]
    seen: list[bool] = []

    def before_step(step: int) -> None:
        for parameter in model.stem.parameters():
            parameter.requires_grad_(step >= 6)
        seen.append(torch.equal(model.stem.places, stem))  # type: ignore[arg-type]

    fit_tasks(model, tasks, SETTINGS, before_step=before_step)
    assert seen == [True] * 7 + [False] * 4


def test_frozen_parts_stay_and_their_dropout_is_off() -> None:
    model, tasks = toy_tasks({"answer": 1.0}, dropout=0.5)
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    before = weights_of(model)
    modes: list[bool] = []
    model.backbone.register_forward_hook(lambda module, *_: modes.append(module.training))
    fit_tasks(model, tasks, SETTINGS)
    assert modes == [False] * 11
    for name, value in weights_of(model).items():
        assert torch.equal(value, before[name]) == name.startswith("backbone.") or name == "stem.hidden"


def test_augment_sees_every_batch_and_its_step() -> None:
    model, tasks = toy_tasks(WEIGHTS)
    seen: list[tuple[int, int]] = []

    def augment(batch: TaskBatch, step: int) -> TaskBatch:
        seen.append((step, len(batch)))
        return batch.without("image")

    fit_tasks(model, tasks, SETTINGS, augment=augment)
    assert seen == [(step, 5) for step in range(11)]  # once for the three tasks, which share their rows
    assert torch.equal(weights_of(model)["stem.net.0.bias"], weights_of(toy_tasks(WEIGHTS)[0])["stem.net.0.bias"])


def test_bfloat16_trains() -> None:
    model, tasks = toy_tasks({**WEIGHTS, "caption": 1.0})
    result = fit_tasks(model, tasks, replace(SETTINGS, precision="bf16-mixed"))
    assert math.isfinite(result.history[-1]["train_loss"])


def test_visual_tokens_are_those_of_the_stem() -> None:
    model, tasks = toy_tasks({"answer": 1.0})
    batch = tasks["answer"].collate(np.arange(3))
    assert visual_tokens(model, batch) == model.encode(batch).visual.mask.shape[1] == 4


def test_files_of_a_run(tmp_path: Path) -> None:
    model, tasks = toy_tasks(WEIGHTS)
    losses = iter([3.0, 1.0, 2.0])
    result = fit_tasks(model, tasks, SETTINGS, validate=lambda _: {"loss": next(losses)}, run_dir=tmp_path)
    assert read_metrics(tmp_path / METRICS) == json.loads(json.dumps(result.history))
    best, last = read_checkpoint(tmp_path / BEST), read_checkpoint(tmp_path / LAST)
    assert best.state["step"] == 7
    assert all(torch.equal(best.part("model")[name], value) for name, value in model.state_dict().items())
    assert not torch.equal(best.part("model")["stem.places"], last.part("model")["stem.places"])
    with pytest.raises(UserError, match="holds a run already"):
        fit_tasks(model, tasks, SETTINGS, run_dir=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixing": "both"}, "mixing must be one of sum, sample, got 'both'"),
        ({"precision": "16-mixed"}, "got 16-mixed"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any], message: str) -> None:
    model, tasks = toy_tasks({"answer": 1.0})
    with pytest.raises(ValueError, match=message):
        fit_tasks(model, tasks, replace(SETTINGS, **change))


def test_tasks_that_cannot_be() -> None:
    model, tasks = toy_tasks({"answer": 1.0})
    with pytest.raises(ValueError, match="a task at least"):
        fit_tasks(model, {}, SETTINGS)
    with pytest.raises(ValueError, match="task 'answer' has no rows"):
        fit_tasks(model, {"answer": replace(tasks["answer"], rows=np.arange(0))}, SETTINGS)
    with pytest.raises(ValueError, match="weight of task 'answer' must be above 0, got 0"):
        fit_tasks(model, {"answer": replace(tasks["answer"], weight=0)}, SETTINGS)
    with pytest.raises(ValueError, match=r"no figure 'loss', which is to decide; it gave: accuracy"):
        fit_tasks(model, tasks, SETTINGS, validate=lambda _: {"accuracy": 0.1})
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing in the model is trainable"):
        fit_tasks(model, tasks, SETTINGS)


def test_a_loss_that_is_no_number_is_named() -> None:
    model, tasks = toy_tasks({"value": 1.0, "answer": 1.0})
    with pytest.raises(UserError, match=r"at step 4 the losses are value (inf|nan), answer"):
        fit_tasks(model, tasks, replace(SETTINGS, lr=1e30, clip=None))
