import math

import pytest
import torch
from torch import nn

from polyfuse.fusion import FUSIONS
from polyfuse.train.schedule import (
    evaluation_steps,
    learning_rate,
    make_optimizer,
    parameter_groups,
    set_learning_rate,
)


def test_cosine_equals_the_schedulers_of_torch() -> None:
    """Warm-up of 7 steps and cosine of 23, against LinearLR and CosineAnnealingLR in sequence."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 7, 1.0, total_iters=6)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=23)
    rates = []
    for step in range(30):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        (warm if step < 6 else cosine if step >= 7 else _Nothing()).step()
    for step, rate in enumerate(rates):
        assert learning_rate(step, 30, 0.3, warmup=7.4 / 30) == pytest.approx(rate, rel=1e-6), step


class _Nothing:
    def step(self) -> None:
        """The first step of the cosine is its peak."""


def test_without_warmup_the_first_step_is_the_peak_and_all_learn() -> None:
    rates = [learning_rate(step, 11, 1.0, warmup=0.0) for step in range(11)]
    assert rates[0] == 1.0
    assert min(rates) > 0
    assert rates == sorted(rates, reverse=True)
    assert learning_rate(0, 1, 1.0, warmup=0.5) == 1.0
    assert learning_rate(10**6, 10**6, 1.0, floor=0.1) == pytest.approx(0.1)


@pytest.mark.parametrize("total", [1, 2, 3, 7, 100, 1001])
@pytest.mark.parametrize("times", [1, 2, 5, 20, 1000])
def test_evaluations_are_spread_and_end_with_the_last_step(total: int, times: int) -> None:
    steps = sorted(evaluation_steps(total, times))
    assert steps[-1] == total
    assert len(steps) == min(total, times)
    assert steps[0] >= 1
    gaps = [b - a for a, b in zip([0, *steps], steps, strict=False)]
    assert max(gaps) - min(gaps) <= 1 or total < times
    assert max(gaps) <= math.ceil(total / min(total, times))


@pytest.mark.parametrize(("total", "expected"), [(1, 1), (39, 1), (40, 2), (150, 7), (5000, 20)])
def test_short_runs_are_evaluated_less_often(total: int, expected: int) -> None:
    assert len(evaluation_steps(total, None)) == expected


@pytest.mark.parametrize("name", sorted(FUSIONS))
def test_norms_biases_and_tokens_do_not_decay(name: str) -> None:
    fusion = FUSIONS[name](("a", "b"), embed_dim=6)
    groups = parameter_groups(fusion, 0.1)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(list(fusion.parameters()))
    owner = {id(p): module for module in fusion.modules() for p in module.parameters(recurse=False)}
    for path, parameter in fusion.named_parameters():
        spared = (
            parameter.ndim < 2 or "token" in path or "query" in path or isinstance(owner[id(parameter)], nn.Embedding)
        )
        assert decay[id(parameter)] == (0.0 if spared else 0.1), path
    assert 0.1 in decay.values()


def test_frozen_and_tied_parameters_are_counted_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    optimizer, parameters = make_optimizer(model, lr=0.1, weight_decay=0.1)
    assert len(parameters) == 3
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no trainable parameter"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), 0.1, 0.1)
