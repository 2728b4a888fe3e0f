"""Task losses against torch.distributions, and their weights and reductions."""

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Normal

from polyfuse.losses.task import TaskLoss, task_loss

CASES = {
    "classification": (3, torch.tensor([0, 2, 1, 2, 2])),
    "multilabel": (3, torch.tensor([[0, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1]])),
    "regression": (2, torch.tensor([0.3, -1.0, 2.0, 0.0, 5.0])),
}


def logits_of(width: int) -> torch.Tensor:
    return torch.randn(5, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("task", CASES)
def test_equals_minus_log_probability(task: str) -> None:
    width, target = CASES[task]
    logits = logits_of(width)
    if task == "classification":
        expected = -Categorical(logits=logits).log_prob(target)
    elif task == "multilabel":
        expected = -Bernoulli(logits=logits).log_prob(target.double()).mean(dim=1)
    else:
        expected = -Normal(logits[:, 0], (logits[:, 1] / 2).exp()).log_prob(target.double())
    torch.testing.assert_close(task_loss(task, logits, target, reduction="none"), expected)
    torch.testing.assert_close(task_loss(task, logits, target), expected.mean())
    torch.testing.assert_close(TaskLoss(task, reduction="sum")(logits, target), expected.sum())


def test_class_weights_multiply_rows_and_the_mean_is_over_rows() -> None:
    width, target = CASES["classification"]
    logits, weight = logits_of(width), torch.tensor([0.5, 2.0, 0.25])
    rows = task_loss("classification", logits, target, reduction="none") * weight[target]
    torch.testing.assert_close(task_loss("classification", logits, target, weight, "none"), rows)
    torch.testing.assert_close(task_loss("classification", logits, target, weight), rows.mean())
    parts = [task_loss("classification", logits[i], target[i], weight) for i in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close((2 * parts[0] + 3 * parts[1]) / 5, rows.mean())  # any split of the batch


def test_label_weights_are_those_of_the_positives() -> None:
    logits, target = torch.zeros(1, 2), torch.tensor([[1, 0]])
    loss = task_loss("multilabel", logits, target, torch.tensor([3.0, 5.0]))
    torch.testing.assert_close(loss, (3 + 1) * torch.tensor(0.5).log().neg() / 2)


def test_half_precision_logits_give_a_float32_loss() -> None:
    logits = torch.tensor([[0.0, 12.0]], dtype=torch.float16)
    loss = task_loss("classification", logits, torch.tensor([1]))
    assert loss.dtype == torch.float32
    assert 0 < loss < 1e-5


def test_extreme_log_variance_is_bounded() -> None:
    loss = task_loss("regression", torch.tensor([[0.0, -1e4], [0.0, 1e4]]), torch.tensor([1.0, 1.0]), reduction="none")
    assert loss.isfinite().all()


def test_weight_moves_with_the_module_and_is_not_saved() -> None:
    loss = TaskLoss("classification", torch.ones(3)).to(torch.float64)
    assert loss.weight is not None
    assert loss.weight.dtype == torch.float64
    assert not loss.state_dict()


def test_refusals() -> None:
    logits = torch.zeros(5, 3)
    with pytest.raises(ValueError, match="unknown task 'ranking'"):
        task_loss("ranking", logits, torch.zeros(5))
    with pytest.raises(ValueError, match=r"must be \(5,\).*got \(4,\)"):
        task_loss("classification", logits, torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"must be \(5, 3\).*got \(5,\)"):
        task_loss("multilabel", logits, torch.zeros(5))
    with pytest.raises(ValueError, match="got 'max'"):
        task_loss("multilabel", logits, torch.zeros(5, 3), reduction="max")
    with pytest.raises(ValueError, match="regression takes no weight"):
        task_loss("regression", torch.zeros(5, 2), torch.zeros(5), torch.ones(2))
    with pytest.raises(ValueError, match=r"got \(5, 3\)"):
        task_loss("regression", logits, torch.zeros(5))
