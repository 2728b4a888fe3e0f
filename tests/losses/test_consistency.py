import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from polyfuse.losses import (
    CEC,
    confidence_hinge,
    distillation,
    divergence,
    instance_coefficient,
    martingale_consistency,
    mean_monotone,
)


def logits(seed: int, columns: int = 4) -> torch.Tensor:
    return 2 * torch.randn(6, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_divergence_is_that_of_torch_distributions() -> None:
    p, q = logits(0), logits(1)
    expected = kl_divergence(Categorical(logits=p), Categorical(logits=q))
    torch.testing.assert_close(divergence("classification", p, q), expected)
    expected = kl_divergence(Bernoulli(logits=p), Bernoulli(logits=q)).mean(dim=1)
    torch.testing.assert_close(divergence("multilabel", p, q), expected)
    p, q = logits(0, 2), logits(1, 2)
    expected = kl_divergence(Normal(p[:, 0], (0.5 * p[:, 1]).exp()), Normal(q[:, 0], (0.5 * q[:, 1]).exp()))
    torch.testing.assert_close(divergence("regression", p, q), expected)


@pytest.mark.parametrize("loss", [distillation, martingale_consistency])
def test_only_the_poorer_prediction_learns(loss) -> None:
    richer, poorer = logits(0).requires_grad_(), logits(1).requires_grad_()
    loss("classification", richer, poorer).sum().backward()
    assert richer.grad is None
    assert poorer.grad.abs().sum() > 0


def test_consistency_is_least_at_the_mean_of_the_richer_predictions() -> None:
    """The martingale: one poorer prediction for rows that look alike without the lost input."""
    richer = logits(3)
    poorer = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([poorer], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = CEC()(richer, poorer.expand(6, 4))
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(poorer.detach().softmax(1)[0], richer.softmax(1).mean(0), atol=1e-4, rtol=0)


def test_distillation_weighs_by_the_entropy_of_the_teacher() -> None:
    sure, unsure = torch.tensor([[20.0, 0.0]]), torch.tensor([[0.1, 0.0]])
    poorer = torch.tensor([[0.0, 3.0], [0.0, 3.0]])
    rows = distillation("classification", torch.cat([sure, unsure]), poorer)
    assert rows[0] < 1e-4 < rows[1]
    even = torch.zeros(1, 2)
    torch.testing.assert_close(
        distillation("classification", even, poorer[:1]), divergence("classification", even, poorer[:1])
    )
    torch.testing.assert_close(rows[1:], distillation("classification", unsure, poorer[1:]))  # whatever the batch


def test_hinge_is_per_row_and_has_both_cases() -> None:
    target = torch.tensor([0, 0, 0, 0])
    richer = torch.tensor([[1.0, 0.0], [9.0, 0.0], [0.0, 1.0], [0.0, 1.0]], requires_grad=True)
    poorer = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 3.0], [3.0, 0.0]], requires_grad=True)
    rows = confidence_hinge("classification", richer, poorer, target)
    gap = torch.tensor([3.0, 0.0]).softmax(0)[0] - torch.tensor([1.0, 0.0]).softmax(0)[0]
    # right and more sure when poorer; no violation (it must not cancel the first); both wrong; only the richer wrong
    torch.testing.assert_close(rows, torch.stack([gap, gap * 0, gap, gap * 0]))
    rows.sum().backward()
    assert richer.grad[0].abs().sum() > 0  # right: its confidence may rise
    assert richer.grad[2].abs().sum() == 0  # wrong: it may not


def test_mean_monotone_sees_the_mean_only() -> None:
    assert mean_monotone(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 2.5])) == 0
    torch.testing.assert_close(mean_monotone(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0])), torch.tensor(0.5))


def test_coefficient_grows_with_disagreement_and_is_clipped() -> None:
    same = torch.zeros(5, 1, 2)
    torch.testing.assert_close(instance_coefficient("classification", same, least=0.1), torch.tensor([0.1]))
    split = torch.tensor([[[9.0, -9.0]], [[-9.0, 9.0]]])
    assert 0.1 < instance_coefficient("classification", split) < 1.0
    assert instance_coefficient("classification", split, scale=50.0) == 1.0


def test_refusals() -> None:
    with pytest.raises(ValueError, match="unknown task"):
        divergence("ranking", logits(0), logits(0))
    with pytest.raises(ValueError, match="one shape"):
        divergence("classification", logits(0), logits(0, 3))
    with pytest.raises(ValueError, match="for classification"):
        confidence_hinge("multilabel", logits(0), logits(0), logits(0))
