"""Methods against imbalance: the arithmetic, its direction, and what it does to gradients in a run."""

from typing import Any

import pytest
import torch
from tests.train.test_loop import make_table, weights
from tests.train.test_recipe import plain
from torch import nn

from polyfuse.config import ModelConfig, TrainConfig
from polyfuse.data.batch import Batch
from polyfuse.data.spec import ModalitySpec, TargetSpec
from polyfuse.errors import UserError
from polyfuse.train import balance
from polyfuse.train.balance import blend_weights, combine, modulate, ogm_coefficients, pareto_weights
from polyfuse.train.build import build_model
from polyfuse.train.devices import PlainDevice
from polyfuse.train.loop import fit
from polyfuse.train.objective import Objective
from polyfuse.train.recipe import Recipe

SPECS = {name: ModalitySpec(name, "vector", {"width": 5}) for name in ("a", "b", "c")}


def trainable(seed: int = 0) -> Any:
    config = ModelConfig(embed_dim=6, hidden=None, dropout=0.0)
    return build_model(SPECS, TargetSpec("classification", ("x", "y", "z")), config, seed=seed)


def recipe_of(model: nn.Module, **settings: Any) -> Recipe:
    objective = Objective("classification", None, None)
    return Recipe(plain(**settings), model, objective, seed=1, row=make_table(1))


def gradients(model: nn.Module, batch: Batch, **settings: Any) -> dict[str, torch.Tensor]:
    """Gradients of one step with these settings."""
    recipe = recipe_of(model.train(), **settings)
    model.zero_grad()
    torch.manual_seed(0)
    total, _, _ = recipe(recipe.network, batch, batch.present, 0, 0.0)
    recipe.backward(PlainDevice(), total, 1 / len(batch))
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_ogm_slows_the_leader_only() -> None:
    found = ogm_coefficients({"a": 0.9, "b": 0.3, "c": 0.3}, alpha=0.5)
    assert found["a"] == pytest.approx(1 - torch.tanh(torch.tensor(0.5 * 3.0)).item())
    assert found["b"] == found["c"] == 1.0
    assert ogm_coefficients({"a": 0.5, "b": 0.5}, 0.5) == {"a": 1.0, "b": 1.0}
    assert ogm_coefficients({"a": 0.5}, 0.5) == {"a": 1.0}


def test_modulation_scales_and_adds_noise_of_the_gradients_size() -> None:
    layer, other = nn.Linear(200, 200), nn.Linear(3, 3)
    for parameter in (*layer.parameters(), *other.parameters()):
        parameter.grad = torch.ones_like(parameter)
    layer.weight.grad = torch.arange(40_000.0).view(200, 200)
    std = 0.5 * layer.weight.grad.std()
    expected = 0.5 * layer.weight.grad
    modulate({"a": layer, "b": other}, {"a": 0.5, "b": 1.0})
    assert (layer.weight.grad - expected).std() / std == pytest.approx(1.0, abs=0.02)
    torch.testing.assert_close(layer.bias.grad, torch.full((200,), 0.5))
    torch.testing.assert_close(other.weight.grad, torch.ones(3, 3))


def test_a_batch_may_lack_a_modality() -> None:
    model, batch = trainable(), make_table(20)
    present = torch.ones_like(batch.present)
    present[:, 1] = False
    found = gradients(model, batch.with_present(present), passes="full", balance="ogm_ge")
    assert all(bool(value.isfinite().all()) for value in found.values())


def test_pareto_weights_are_the_point_of_least_norm() -> None:
    g = torch.Generator().manual_seed(0)
    first, second = torch.randn(7, generator=g), torch.randn(7, generator=g)
    second -= 1.5 * (first @ second / first.square().sum() + 0.3) * first  # they conflict
    assert first @ second < 0
    a, b = pareto_weights([first[:3], first[3:]], [second[:3], second[3:]])
    norms = [(t * first + (1 - t) * second).norm() for t in torch.linspace(0, 1, 1001)]
    assert a == pytest.approx(float(torch.stack(norms).argmin()) / 1000, abs=2e-3)
    assert a + b == pytest.approx(1.0)
    mixed = a * first + b * second
    assert mixed @ first >= 0 and mixed @ second >= 0  # noqa: PT018 - one statement: it harms neither


def test_agreeing_gradients_are_summed() -> None:
    first, second = [torch.tensor([1.0, 0.2])], [torch.tensor([0.5, 1.0])]
    torch.testing.assert_close(combine(first, second), [first[0] + second[0]])


def test_conflicting_gradients_keep_the_norm_of_the_sum() -> None:
    first, second = [torch.tensor([3.0, 0.5])], [torch.tensor([-1.0, 0.5])]
    mixed = combine(first, second)[0]
    assert mixed.norm() >= (first[0] + second[0]).norm() - 1e-5
    assert mixed @ second[0] >= -1e-6


def test_blend_prefers_what_generalises() -> None:
    found = blend_weights(
        {"": (2.0, 0.5), "a": (2.0, 1.0), "b": (2.0, 0.1), "c": (2.0, 1.9)},
        {"": (2.0, 1.0), "a": (2.0, 1.1), "b": (2.0, 1.9), "c": (2.0, 2.1)},
    )
    assert found["a"] > found[""] > found["b"]
    assert found["c"] == 0.0
    assert sum(found.values()) == pytest.approx(1.0)


def test_unimodal_heads_add_gradients_to_every_encoder() -> None:
    model, batch = trainable(), make_table(40)
    plain = gradients(model, batch, passes="full")
    helped = gradients(model, batch, passes="full", unimodal=1.0)
    for name, gradient in plain.items():
        same = torch.allclose(gradient, helped[name])
        assert same != name.startswith("encoders"), name
    doubled = gradients(model, batch, passes="full", unimodal=1.0, modality_weights={"b": 2.0})
    for key in ("encoders.a", "encoders.b"):
        name = next(n for n in plain if n.startswith(key))
        factor = 2.0 if key.endswith("b") else 1.0
        expected = plain[name] + factor * (helped[name] - plain[name])
        torch.testing.assert_close(doubled[name], expected, atol=1e-6, rtol=1e-4)


def test_probing_heads_leave_the_encoders_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """OGM-GE listens with heads that do not teach: with every coefficient 1 it changes nothing."""
    monkeypatch.setattr("polyfuse.train.recipe.ogm_coefficients", lambda scores, alpha: dict.fromkeys(scores, 1.0))
    model, batch = trainable(), make_table(40)
    plain, listened = gradients(model, batch, passes="full"), gradients(model, batch, passes="full", balance="ogm_ge")
    for name, gradient in plain.items():
        torch.testing.assert_close(gradient, listened[name])


def test_mmpareto_gives_each_encoder_its_mix() -> None:
    model, batch = trainable(), make_table(40)
    joint = gradients(model, batch, passes="full")
    both = gradients(model, batch, passes="full", unimodal=1.0)
    mixed = gradients(model, batch, passes="full", unimodal=1.0, balance="mmpareto")
    for encoder in ("a", "b", "c"):
        names = [name for name in joint if name.startswith(f"encoders.{encoder}")]
        first = [joint[name] for name in names]
        second = [both[name] - joint[name] for name in names]
        for name, expected in zip(names, combine(first, second), strict=True):
            torch.testing.assert_close(mixed[name], expected, atol=1e-5, rtol=1e-4)
    for name in joint:
        if not name.startswith("encoders"):
            torch.testing.assert_close(mixed[name], joint[name])


@pytest.mark.parametrize("method", ["ogm_ge", "mmpareto", "g_blend"])
def test_runs_train_and_repeat(method: str) -> None:
    results = []
    for _ in range(2):
        model = trainable()
        config = TrainConfig(
            steps=30, evaluations=5, batch_size=16, lr=0.01, recipe={"balance": method, "unimodal": 0.5}
        )
        outcome = fit(model, make_table(60), make_table(40, 1), config, task="classification")
        results.append(weights(model))
        assert outcome.history[-1]["validation_loss"] < outcome.history[0]["validation_loss"]
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_blend_reaches_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def spy(train: Any, validation: Any) -> dict[str, float]:
        seen.update(train)
        return balance.blend_weights(train, validation)

    monkeypatch.setattr("polyfuse.train.blend.blend_weights", spy)
    config = TrainConfig(steps=12, batch_size=16, recipe={"balance": "g_blend"})
    fit(trainable(), make_table(60), make_table(40, 1), config, task="classification")
    assert set(seen) == {"", "a", "b", "c"}
    model, batch = trainable().eval(), make_table(40)
    even, odd = (
        Recipe(plain(balance="g_blend"), model, Objective("classification", None, None), 1, make_table(1), blend)
        for blend in ({"": 1.0, "a": 1.0, "b": 1.0, "c": 1.0}, {"": 0.5, "a": 3.0, "b": 0.5, "c": 0.0})
    )
    found = []
    for recipe in (even, odd):
        model.zero_grad()
        recipe.backward(PlainDevice(), recipe(recipe.network, batch, batch.present, 0, 0.0)[0], 1.0)
        found.append(next(iter(model.head.parameters())).grad.clone())
    torch.testing.assert_close(found[1], 0.5 * found[0])


@pytest.mark.parametrize(
    ("recipe", "more", "message"),
    [
        ({"balance": "ogm_ge"}, {"accumulate": 2}, "whole batch in one pass"),
        ({"modality_weights": {"d": 1.0}, "unimodal": 1.0}, {}, "'d', which is no modality"),
        ({"modality_weights": {"a": 1.0}, "subset_dro": 1.0}, {}, "factors of train.recipe.unimodal"),
    ],
)
def test_refusals(recipe: dict[str, Any], more: dict[str, Any], message: str) -> None:
    config = TrainConfig(steps=2, recipe=recipe, **more)
    with pytest.raises(UserError, match=message):
        fit(trainable(), make_table(20), make_table(20, 1), config, task="classification")


def test_frozen_encoders_have_nothing_to_balance() -> None:
    model = trainable()
    model.encoders.requires_grad_(False)
    with pytest.raises(UserError, match="none of them trains"):
        recipe_of(model, balance="mmpareto")
    with pytest.raises(UserError, match="validation rows, got none"):
        fit(
            trainable(),
            make_table(20),
            None,
            TrainConfig(steps=4, recipe={"balance": "g_blend"}),
            task="classification",
        )
