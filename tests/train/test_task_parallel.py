"""Two processes give the losses and gradients of one, replicas and sharded; ``drive_tasks_ddp.py`` does the work."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from polyfuse.errors import UserError
from polyfuse.task_config import LoopConfig
from polyfuse.tasks.backbones import BACKBONES
from polyfuse.tasks.objectives import OBJECTIVES, Grounding
from polyfuse.train.task_devices import task_fabric
from polyfuse.train.task_layers import checkpointed, layers_of
from polyfuse.train.task_loop import LoopSettings, fit_tasks
from polyfuse.train.task_parts import visual_places
from polyfuse.train.task_shares import _CONTRAST, _PAIRED, COUNTS, can_share, shared_loss

from ..tasks.test_objectives import build
from ..two_processes import torchrun_two
from .task_toy import toy_tasks

SHAREABLE = (
    *("contrast", "siglip", "match", "hard_match", "masked_words", "masked_patches"),
    *("alignment", "caption", "answer", "value", "grounding"),
)
PASSES = ("in two passes", "sampled in two passes")
REPLICAS = (*SHAREABLE, "mixed", "sampled", *PASSES, "one stream after two", "two streams")
SHARDED = ("mixed", "sampled", "contrast", "hard_match", "two streams", "in two passes")


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return torchrun_two(Path(__file__).with_name("drive_tasks_ddp.py"), tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize("case", [*REPLICAS, *(f"sharded: {case}" for case in SHARDED)])
def test_two_processes_equal_one(driven: dict[str, dict[str, Any]], case: str) -> None:
    record = driven[case]
    assert record["size"] > 0.1  # there are gradients to compare
    allowed = 1e-6 * max(1.0, record["size"])  # a few roundings of the largest
    assert record["losses"] < allowed
    assert record["gradients"] < allowed
    assert record["same"]
    assert record["plain"], "the model comes back whole"


@pytest.mark.parametrize("label", ["", "sharded: "])
def test_two_processes_resume_to_the_same_bits(driven: dict[str, dict[str, Any]], label: str) -> None:
    record = driven[f"{label}resume"]
    assert record["stopped"]
    assert record["tensors"] > 50
    assert record["differs"] == []


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("name", SHAREABLE)
def test_the_shares_of_a_batch_add_up_to_it(name: str, parts: int) -> None:
    model, tasks = toy_tasks({name: 1.0})
    model.train()
    task = tasks[name]
    batch = task.collate(task.rows[:11])
    draws = task.objective.draws(batch, 4, 0, 1)
    whole, _ = task.objective.loss(model, batch, draws)
    whole.backward()
    wanted = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    total = torch.zeros(())
    for part in range(parts):
        loss, _ = shared_loss(task.objective, model, batch, draws, part=part, parts=parts, passes=parts)
        loss.backward()
        total = total + loss.detach()
    torch.testing.assert_close(total, whole.detach(), atol=1e-6, rtol=1e-5)
    size = max(gradient.abs().max().item() for gradient in wanted.values())
    for n, p in model.named_parameters():
        assert (p.grad is not None) == (n in wanted)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, wanted[n], atol=2e-6 * max(1.0, size), rtol=1e-4)


def test_passes_change_memory_and_not_the_result() -> None:
    found = []
    for accumulate in (1, 3):
        model, tasks = toy_tasks({"masked_words": 1.0, "contrast": 1.0, "answer": 1.0})
        settings = LoopSettings(steps=5, batch_size=7, lr=1e-3, accumulate=accumulate, evaluations=1)
        fit_tasks(model, tasks, settings)
        found.append(model.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], atol=1e-4, rtol=1e-3)


class Mine(Grounding):
    """Its loss may be another mean."""


def test_what_cannot_be_shared_is_refused_by_name() -> None:
    model, tasks = toy_tasks({"grounding": 1.0, "answer": 1.0})
    assert all(can_share(task.objective) for task in tasks.values())
    tasks["mine"] = replace(tasks["grounding"], objective=Mine(model))
    assert not can_share(tasks["mine"].objective)
    settings = LoopSettings(steps=2, batch_size=6, evaluations=1)
    with pytest.raises(UserError, match=r"'mine' \(Mine\) needs its whole batch .* got 2 shares"):
        fit_tasks(model, tasks, replace(settings, accumulate=2))
    assert fit_tasks(model, tasks, settings).steps == 2
    with pytest.raises(UserError, match="a batch of 6 rows cannot be cut into 7 shares"):
        fit_tasks(model, {"answer": tasks["answer"]}, replace(settings, accumulate=7))


def test_every_objective_can_be_shared() -> None:
    assert {*COUNTS, *_PAIRED, *_CONTRAST} == set(OBJECTIVES.values())


def test_the_means_of_grounding_are_over_different_rows() -> None:
    """Without which one weight for both would do."""
    model, tasks = toy_tasks({"grounding": 1.0})
    task = tasks["grounding"]
    counts = COUNTS[Grounding](task.objective, model, task.collate(task.rows), {})
    assert isinstance(counts, dict)
    assert 0 < counts["tokens"].sum() < counts["box"].sum() < len(task.rows)


@pytest.mark.parametrize(("backbone", "regions"), [*((name, False) for name in sorted(BACKBONES)), ("uniter", True)])
def test_places_are_those_of_the_stem_without_running_it(backbone: str, regions: bool) -> None:
    model, _, batch = build(backbone, "grounding", regions=regions)
    seen = model.eval().stem(batch)
    boxes, mask = visual_places(model, batch)
    assert torch.equal(boxes, seen.boxes)
    assert torch.equal(mask, seen.mask)


def test_shards_need_somebody_to_share_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match="needs several processes: torchrun"):
        task_fabric(LoopConfig(shard_parameters=True))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="got 16-mixed"):
        task_fabric(LoopConfig(shard_parameters=True, precision="16-mixed"))
    model, tasks = toy_tasks({"answer": 1.0})
    with pytest.raises(UserError, match="got shard_parameters=True and whole parameters"):
        fit_tasks(model, tasks, LoopSettings(steps=2, shard_parameters=True))


def kept_bytes(backbone: str, enabled: bool) -> tuple[int, dict[str, torch.Tensor]]:
    """Bytes that the backward pass of one batch finds kept, and the gradients."""
    model, tasks = toy_tasks({"answer": 1.0}, dropout=0.2, backbone=backbone)
    model.train()
    batch = tasks["answer"].collate(tasks["answer"].rows[:7])
    kept: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(7)
    with checkpointed(model, enabled):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss, _ = tasks["answer"].objective.loss(model, batch, {})
        held = sum(kept.values())  # in the forward pass; the second computation keeps layer by layer
        loss.backward()
    return held, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("backbone", ["uniter", "multimodal", "vilbert", "visual_bert"])
def test_activation_checkpointing_keeps_less_and_gives_the_same_gradients(backbone: str) -> None:
    all_bytes, wanted = kept_bytes(backbone, enabled=False)
    bytes_, found = kept_bytes(backbone, enabled=True)
    assert bytes_ < 0.6 * all_bytes
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in wanted.items())  # dropout too


def test_activation_checkpointing_leaves_the_model_as_it_was_and_the_run_the_same() -> None:
    weights = []
    for enabled in (False, True):
        model, tasks = toy_tasks({"answer": 1.0, "contrast": 1.0}, dropout=0.2)
        settings = LoopSettings(steps=4, batch_size=5, evaluations=1, activation_checkpointing=enabled)
        fit_tasks(model, tasks, settings)
        assert not any("forward" in vars(layer) for layer in layers_of(model).values())
        weights.append(model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
