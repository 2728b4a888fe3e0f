"""Recipes: which passes a step makes, what each term asks, and that a run with one resumes to the same bits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.test_loop import make_model, make_table, run, weights

from polyfuse.config import RecipeConfig, TrainConfig
from polyfuse.data.batch import Batch
from polyfuse.errors import UserError
from polyfuse.losses.task import task_loss
from polyfuse.train.checkpoint import LAST, read_checkpoint
from polyfuse.train.loop import fit
from polyfuse.train.objective import Objective
from polyfuse.train.recipe import Recipe, active, passes_per_step
from polyfuse.train.stream import Masking, Stream
from polyfuse.train.subset_dro import SubsetDRO


def plain(**settings: Any) -> RecipeConfig:
    """These settings, and nothing else."""
    return RecipeConfig(**{"passes": "one", "distill": 0.0, **settings})


def make_recipe(model: Any = None, task: str = "classification", **settings: Any) -> Recipe:
    return Recipe(plain(**settings), model or make_model(task), Objective(task, None, None), seed=3)


def dropped(batch: Batch) -> Batch:
    """The rows without their second input, where another is left."""
    present = batch.present.clone()
    present[:, 1] &= ~(present[:, 0] | present[:, 2])
    return batch.with_present(present)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 1),
        ({"passes": "full"}, 2),
        ({"passes": "sandwich"}, 3),
        ({"distill": 1.0}, 2),
        ({"passes": "sandwich", "hinge": 1.0}, 3),
        ({"consistency": 1.0, "instance_passes": 4}, 6),
        ({"subset_dro": 0.1}, 1),
    ],
)
def test_passes(settings: dict[str, Any], count: int) -> None:
    recipe = make_recipe(**settings)
    batch = make_table(12)
    masks = recipe.masks(dropped(batch), batch.present, step=5)
    assert masks.shape == (count, 12, 3)
    assert recipe.passes == passes_per_step(plain(**settings)) == count
    assert active(plain(**settings)) == bool(settings)
    assert not (masks & ~batch.present).any()
    torch.testing.assert_close(masks[0], dropped(batch).present)
    if recipe.full:
        torch.testing.assert_close(masks[1], batch.present)
    if recipe.single:
        assert (masks[2].sum(dim=1) == batch.present.any(dim=1)).all()


def test_masks_belong_to_the_row() -> None:
    recipe, batch = make_recipe(passes="sandwich", consistency=1.0, instance_passes=2), make_table(12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    whole = recipe.masks(batch, batch.present, step=5)
    torch.testing.assert_close(recipe.masks(batch.rows(order), batch.present[order], step=5), whole[:, order])
    assert not torch.equal(recipe.masks(batch, batch.present, step=6), whole)


def test_full_pass_alone_is_the_mean_of_two_losses() -> None:
    model, batch = make_model().eval(), make_table(12)
    recipe, thinned = make_recipe(model, passes="full"), dropped(make_table(12))
    total, first, _ = recipe(recipe.network, thinned, batch.present, 0, 0.0)
    expected = [
        task_loss("classification", model(batch.inputs, present).logits, batch.target, reduction="sum")
        for present in (thinned.present, batch.present)
    ]
    torch.testing.assert_close(total, 0.5 * (expected[0] + expected[1]))
    torch.testing.assert_close(first, expected[0].detach())


@pytest.mark.parametrize(
    "settings",
    [
        {"distill": 1.0},
        {"consistency": 1.0},
        {"consistency": 1.0, "instance_passes": 3},
        {"hinge": 1.0},
        {"monotone": 1.0},
    ],
)
def test_a_term_adds_nothing_where_nothing_was_lost(settings: dict[str, Any]) -> None:
    model, batch = make_model().eval(), make_table(12)
    plain = make_recipe(model, passes="full")
    plain_total = plain(plain.network, batch, batch.present, 0, 0.0)[0]
    recipe = make_recipe(model, **settings)
    torch.testing.assert_close(recipe(recipe.network, batch, batch.present, 0, 0.0)[0], plain_total)
    more = recipe(recipe.network, dropped(batch), batch.present, 0, 0.0)[0]
    less = plain(plain.network, dropped(batch), batch.present, 0, 0.0)[0]
    assert more >= less
    if settings.keys() & {"distill", "consistency"}:  # the others may find nothing wrong with an untrained model
        assert more > less


def test_entropy_bonus_rewards_even_weights_and_fades() -> None:
    model, batch = make_model(fusion="gated").eval(), make_table(12)
    plain = make_recipe(model, passes="full")
    base = plain(plain.network, batch, batch.present, 0, 0.0)[0]
    recipe = make_recipe(model, passes="full", entropy_bonus=0.5, entropy_until=0.5)
    early, half, late = (recipe(recipe.network, batch, batch.present, 0, at)[0] for at in (0.0, 0.25, 0.75))
    assert early < half < base
    torch.testing.assert_close(late, base)
    slots = make_recipe(passes="full", entropy_bonus=0.5)
    with pytest.raises(UserError, match="fusion with weights"):
        slots(slots.network, batch, batch.present, 0, 0.0)


def test_proxies_learn_what_they_stand_for() -> None:
    model, batch = make_model(fusion="proxy"), make_table(200)
    recipe = make_recipe(model, proxy=1.0)
    assert recipe.passes == 2
    distances = []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(40):
        torch.manual_seed(0)
        total, _, _ = recipe(recipe.network, dropped(batch), batch.present, step, 0.0)
        plain = make_recipe(model, passes="full")
        torch.manual_seed(0)
        same = plain(plain.network, dropped(batch), batch.present, step, 0.0)[0]
        distances.append((total - same).item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert 0 < distances[-1] < 0.8 * distances[0]
    other = make_recipe(proxy=1.0)
    with pytest.raises(UserError, match=r"needs model\.fusion=proxy"):
        other(other.network, batch, batch.present, 0, 0.0)


def test_dro_favours_the_combination_above_its_floor() -> None:
    mask = torch.tensor([[True, False], [True, False], [False, True]])
    loss = torch.tensor([1.0, 1.0, 1.0])
    plain = SubsetDRO(("a", "b"), 0.5, {})
    for _ in range(20):
        weight = plain.weights(mask, loss)
    torch.testing.assert_close(weight, torch.ones(3))
    uneven = SubsetDRO(("a", "b"), 0.5, {"b": 1.0})  # all that b can do is a loss of 1; a could reach 0
    for _ in range(20):
        weight = uneven.weights(mask, loss)
    assert weight[0] > weight[2]
    torch.testing.assert_close(weight.mean(), torch.tensor(1.0))
    with pytest.raises(UserError, match="'c', which is no modality"):
        SubsetDRO(("a", "b"), 0.5, {"a+c": 1.0})


@pytest.mark.parametrize(
    ("settings", "task", "message"),
    [
        ({"hinge": 1.0}, "multilabel", "for classification"),
        ({"instance_passes": 1, "consistency": 1.0}, "classification", "at least 2"),
        ({"instance_passes": 3}, "classification", "both are 0"),
        ({"subset_floor": {"a": 0.1}}, "classification", "subset_dro, which is 0"),
    ],
)
def test_refusals(settings: dict[str, Any], task: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_recipe(task=task, **settings)


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_trains_on_every_task(task: str) -> None:
    recipe = {"passes": "sandwich", "distill": 0.5, "consistency": 0.5, "instance_passes": 2, "monotone": 0.1}
    result = run(make_model(task), task=task, recipe=recipe, masking=Masking(0.5), epochs=12, lr=0.02, patience=None)
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]


def test_resumes_to_the_same_bits(tmp_path: Path) -> None:
    recipe = {"passes": "sandwich", "distill": 0.5, "unimodal": 0.5, "subset_dro": 0.2, "subset_floor": {"a": 0.3}}
    settings = {"masking": Masking(0.5, ramp=0.5), "recipe": recipe, "patience": None, "checkpoint_steps": 1}
    whole = make_model()
    run(whole, run_dir=tmp_path / "whole", **settings)

    class Killed(Exception):
        pass

    part = make_model()
    calls, original = 0, Recipe.__call__

    def counted(self: Recipe, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise Killed
        return original(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recipe, "__call__", counted)
        with pytest.raises(Killed):
            run(part, run_dir=tmp_path / "part", **settings)
    assert "recipe.dro" in read_checkpoint(tmp_path / "part" / LAST).tensors
    again = make_model()
    run(again, run_dir=tmp_path / "part", resume=True, **settings)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(again)[name]), name


def test_dropout_ramps_by_epoch() -> None:
    table = make_table(400)
    stream = Stream(table, 40, masking=Masking(0.6, ramp=0.5), epochs=8)
    lost = [int((table.present & ~stream.presence(epoch)).sum()) for epoch in range(8)]
    assert lost[0] == 0
    assert lost[1] < lost[2] < lost[3] < lost[4]
    steady = Stream(table, 40, masking=Masking(0.6), epochs=8)
    assert [int((table.present & ~steady.presence(e)).sum()) for e in range(4, 8)] == lost[4:]


def test_fit_passes_the_epochs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(Stream, "_risen", lambda self, epoch: seen.append(self.epochs) or 1.0)
    fit(make_model(), make_table(40), None, TrainConfig(steps=15, batch_size=8), task="classification",
        masking=Masking(0.5))  # fmt: skip
    assert set(seen) == {3.0}
