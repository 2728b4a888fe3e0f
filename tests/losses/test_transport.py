"""Word-region alignment: against plain loops, against the exact assignment, with padding and nothing to align."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from polyfuse.losses import WordRegionAlignment, transport_plan, word_region_alignment, word_region_distance

B, T, R, D = 3, 5, 7, 11
WORDS = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()
REGIONS = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0, 0]]).bool()


def states(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    words, regions = (torch.randn(B, n, D, generator=generator, dtype=torch.float64) for n in (T, R))
    return words, regions


def plan_in_loops(cost: list[list[float]], beta: float, iterations: int, inner: int) -> list[list[float]]:
    """IPOT of one row without padding, number by number."""
    n, m = len(cost), len(cost[0])
    kernel = [[math.exp(-cost[i][j] / beta) for j in range(m)] for i in range(n)]
    plan = [[1.0] * m for _ in range(n)]
    sigma, delta = [1.0 / n] * n, [0.0] * m
    for _ in range(iterations):
        q = [[kernel[i][j] * plan[i][j] for j in range(m)] for i in range(n)]
        for _ in range(inner):
            delta = [1.0 / (m * sum(q[i][j] * sigma[i] for i in range(n))) for j in range(m)]
            sigma = [1.0 / (n * sum(q[i][j] * delta[j] for j in range(m))) for i in range(n)]
        plan = [[sigma[i] * q[i][j] * delta[j] for j in range(m)] for i in range(n)]
    return plan


@pytest.mark.parametrize(("beta", "iterations", "inner"), [(0.5, 50, 1), (0.3, 3, 2)])
def test_equals_plain_loops_row_by_row(beta: float, iterations: int, inner: int) -> None:
    words, regions = states()
    words.requires_grad_()
    distance = word_region_distance(words, regions, WORDS, REGIONS, beta=beta, iterations=iterations, inner=inner)
    expected = []
    for row in range(B):
        x, y = words[row, WORDS[row]], regions[row, REGIONS[row]]
        cost = 1 - torch.stack([torch.stack([F.cosine_similarity(a, b, dim=0) for b in y]) for a in x])
        plan = torch.tensor(plan_in_loops(cost.tolist(), beta, iterations, inner), dtype=torch.float64)
        expected.append((cost * plan).sum())  # the plan is a constant
    torch.testing.assert_close(distance, torch.stack(expected))
    ours, theirs = (torch.autograd.grad(sum(x), words)[0] for x in (distance, expected))
    torch.testing.assert_close(ours, theirs)
    assert not ours[~WORDS].any()


def test_plan_is_the_exact_assignment() -> None:
    cost = torch.rand(B, T, T, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plan = transport_plan(cost, beta=0.05, iterations=1000)
    for row in range(B):
        rows, columns = linear_sum_assignment(cost[row].numpy())
        exact = np.zeros((T, T))
        exact[rows, columns] = 1 / T
        torch.testing.assert_close(plan[row], torch.from_numpy(exact), atol=1e-4, rtol=0)


def test_marginals() -> None:
    plan = transport_plan(torch.rand(B, T, R, generator=torch.Generator().manual_seed(2)), WORDS, REGIONS)
    torch.testing.assert_close(plan.sum(2), WORDS / WORDS.sum(1, keepdim=True))
    torch.testing.assert_close(plan.sum(1), REGIONS / REGIONS.sum(1, keepdim=True), atol=1e-3, rtol=0)
    assert not plan[~(WORDS[:, :, None] & REGIONS[:, None, :])].any()
    assert not plan.requires_grad


def test_padding_leaves_no_trace() -> None:
    words, regions = states()
    broken_words, broken_regions = words.clone(), regions.clone()
    broken_words[~WORDS] = math.nan
    broken_regions[~REGIONS] = math.inf
    broken_words.requires_grad_()
    broken_regions.requires_grad_()
    ours = word_region_alignment(broken_words, broken_regions, WORDS, REGIONS)
    torch.testing.assert_close(ours, word_region_alignment(words, regions, WORDS, REGIONS))
    for x, mask in zip(torch.autograd.grad(ours, (broken_words, broken_regions)), (WORDS, REGIONS), strict=True):
        assert x.isfinite().all()
        assert x[mask].any()
        assert not x[~mask].any()


def test_positives_are_added_and_negatives_subtracted() -> None:
    words, regions = states()
    distance = word_region_distance(words, regions, WORDS, REGIONS)
    match = torch.tensor([1, 0, 1])
    ours = WordRegionAlignment()(words, regions, WORDS, REGIONS, match)
    torch.testing.assert_close(ours, (distance[0] - distance[1] + distance[2]) / 3)
    present = torch.tensor([True, True, False])
    words[2] = math.nan
    ours = WordRegionAlignment()(words, regions, WORDS, REGIONS, match, present)
    torch.testing.assert_close(ours, (distance[0] - distance[1]) / 2)


@pytest.mark.parametrize("absent", ["pairs", "words", "regions"])
def test_nothing_to_align_is_zero_with_a_zero_gradient(absent: str) -> None:
    words, regions = (x.requires_grad_() for x in states())
    loss = word_region_alignment(
        words,
        regions,
        torch.zeros_like(WORDS) if absent == "words" else WORDS,
        torch.zeros_like(REGIONS) if absent == "regions" else None,
        present=torch.zeros(B, dtype=torch.bool) if absent == "pairs" else None,
    )
    assert loss.item() == 0.0
    for gradient in torch.autograd.grad(loss, (words, regions)):
        assert gradient.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    words, regions = (x.to(dtype) for x in states())
    ours = word_region_alignment(words, regions, WORDS, REGIONS)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, word_region_alignment(words.float(), regions.float(), WORDS, REGIONS))


def test_refusals_and_repr() -> None:
    words, regions = states()
    with pytest.raises(ValueError, match=r"word_mask must be bool of shape \(3, 5\), got torch.bool of \(3, 7\)"):
        word_region_distance(words, regions, REGIONS)
    assert repr(WordRegionAlignment()) == "WordRegionAlignment(beta=0.5, iterations=50, inner=1)"
