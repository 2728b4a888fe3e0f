import math

import pytest
import torch
from torch import Tensor

from polyfuse import functional as PF

ALL = {"inverse_entropy", "entropy", "uniform", "dominance"}


def random_weights(batch: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(batch, size, generator=generator) < 0.7
    present[0] = True
    scores = 3 * torch.randn(batch, size, generator=generator, dtype=torch.float64)
    return PF.masked_softmax(scores, present), present


def test_entropy_equals_the_formula_in_plain_loops() -> None:
    weights, _ = random_weights(13, 5)
    expected = [-sum(w * math.log(w) for w in row if w > 0) for row in weights.tolist()]
    torch.testing.assert_close(PF.entropy(weights), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_entropy_is_computed_in_float32_at_least(dtype: torch.dtype) -> None:
    weights = torch.full((2, 7), 1 / 7, dtype=dtype)
    result = PF.entropy(weights)
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert PF.entropy(torch.tensor([0.0, 1.0, 0.0], dtype=dtype)).item() == 0.0


def test_entropy_gradient_is_exact_inside_and_finite_at_the_corners() -> None:
    inside = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(PF.entropy(inside).sum(), inside)
    torch.testing.assert_close(gradient, -(inside.detach().log() + 1))
    corner = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(PF.entropy(corner).sum(), corner)
    assert gradient.isfinite().all()


def test_entropy_gradient_is_finite_with_infinite_logits() -> None:
    logits = torch.tensor([[0.3, -math.inf, 1.0], [200.0, 0.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(PF.entropy(logits.softmax(-1)).sum(), logits)
    assert gradient.isfinite().all()
    assert gradient[0, 0] != 0


def test_masked_softmax_equals_softmax_over_the_valid_entries() -> None:
    scores = torch.randn(11, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    _, valid = random_weights(11, 5)
    valid[3] = False
    weights = PF.masked_softmax(scores, valid)
    for row, mask, logits in zip(weights, valid, scores, strict=True):
        assert not row[~mask].any()
        if mask.any():
            torch.testing.assert_close(row[mask], logits[mask].softmax(0))
    uniform = PF.masked_softmax(scores, valid, zero_empty=False)
    torch.testing.assert_close(uniform[3], torch.full((5,), 0.2, dtype=torch.float64))
    assert torch.equal(uniform[:3], weights[:3])


def test_masked_softmax_keeps_broken_values_out_of_output_and_gradient() -> None:
    scores = torch.tensor([[1.0, math.nan, 2.0], [math.inf, math.nan, -math.inf]], requires_grad=True)
    valid = torch.tensor([[True, False, True], [False, False, False]])
    weights = PF.masked_softmax(scores, valid)
    (gradient,) = torch.autograd.grad(weights.square().sum(), scores)
    assert weights.isfinite().all()
    assert gradient.isfinite().all()
    assert not gradient[~valid].any()


def test_policies_are_the_documented_formulas() -> None:
    weights, present = random_weights(17, 5)
    count = present.sum(-1, keepdim=True).double()
    share = PF.entropy(weights)[:, None] / count.clamp(min=2).log()
    expected = {
        "uniform": torch.ones_like(weights),
        "entropy": share.expand_as(weights),
        "inverse_entropy": 1 - share.expand_as(weights),
        "dominance": weights * count,
    }
    assert set(PF.POLICIES) == ALL == set(expected)
    for policy, score in expected.items():
        torch.testing.assert_close(PF.policy_score(weights, present, policy), score * present)
        many = present & (count > 1)
        probability = PF.drop_probability(weights, present, policy=policy, base=0.4)
        torch.testing.assert_close(probability, (0.4 * score).clamp(max=1) * many, rtol=1e-6, atol=1e-7)


def test_policies_point_in_their_direction() -> None:
    peaked, flat = torch.tensor([[0.98, 0.01, 0.01]]), torch.tensor([[1 / 3] * 3])
    here = torch.ones(1, 3, dtype=torch.bool)

    def score(weights: Tensor, policy: str) -> Tensor:
        return PF.policy_score(weights, here, policy)

    assert (score(peaked, "inverse_entropy") > 0.8).all()
    assert (score(flat, "inverse_entropy") < 1e-6).all()
    assert (score(peaked, "entropy") < 0.2).all()
    assert (score(flat, "entropy") > 1 - 1e-6).all()
    assert score(peaked, "dominance")[0, 0] > 50 * score(peaked, "dominance")[0, 1]


def test_unknown_policy_is_named() -> None:
    here = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"policy must be one of .*got 'reverse'"):
        PF.policy_score(torch.ones(1, 2), here, "reverse")


def test_a_broken_row_drops_nothing_and_leaves_its_neighbours_alone() -> None:
    weights, present = random_weights(7, 3)
    broken = weights.clone()
    broken[2] = math.nan
    for policy in ALL:
        probability = PF.drop_probability(broken, present, policy=policy, base=0.5)
        assert probability.isfinite().all()
        if policy != "uniform":
            assert not probability[2].any()
        rest = [0, 1, 3, 4, 5, 6]
        expected = PF.drop_probability(weights, present, policy=policy, base=0.5)
        torch.testing.assert_close(probability[rest], expected[rest])


@pytest.mark.parametrize("policy", sorted(ALL))
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("min_active", [1, 2])
def test_target_rate_is_the_mean_over_entries_that_can_be_dropped(policy: str, rate: float, min_active: int) -> None:
    weights, present = random_weights(29, 5)
    probability = PF.drop_probability(weights, present, policy=policy, target_rate=rate, min_active=min_active)
    can_drop = present & (present.sum(-1, keepdim=True) > min_active)
    assert (probability >= 0).all()
    assert (probability <= 1).all()
    assert not probability[~can_drop].any()
    assert probability[can_drop].mean().item() == pytest.approx(rate, abs=1e-6)


def test_target_rate_is_reached_when_the_policy_is_flat_zero_and_keeps_proportions_else() -> None:
    here = torch.ones(4, 3, dtype=torch.bool)
    flat = torch.full((4, 3), 1 / 3)
    probability = PF.drop_probability(flat, here, policy="inverse_entropy", target_rate=0.25)
    torch.testing.assert_close(probability, torch.full((4, 3), 0.25))
    weights = torch.tensor([[0.7, 0.2, 0.1]])
    probability = PF.drop_probability(weights, here[:1], policy="dominance", target_rate=0.2)
    torch.testing.assert_close(probability / probability.sum(), weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [[], [[True, False, False]]])
def test_target_rate_without_anything_to_drop(rows: list[list[bool]]) -> None:
    present = torch.tensor(rows, dtype=torch.bool).reshape(-1, 3)
    if len(rows) == 0:
        present = torch.zeros(1, 3, dtype=torch.bool)
    probability = PF.drop_probability(torch.zeros(present.shape), present, policy="entropy", target_rate=0.5)
    assert not probability.any()


def exact_drop_law(probability: list[float], min_active: int) -> Tensor:
    """Probability that each modality is dropped, by enumeration of all kept sets and all choices of survivors."""
    import itertools

    size = len(probability)
    result = [0.0] * size
    for kept in itertools.product((False, True), repeat=size):
        chance = math.prod(1 - p if k else p for p, k in zip(probability, kept, strict=True))
        dropped = [m for m in range(size) if not kept[m]]
        short = max(min(min_active, size) - (size - len(dropped)), 0)
        choices = list(itertools.combinations(dropped, short))
        for saved in choices:
            for m in dropped:
                if m not in saved:
                    result[m] += chance / len(choices)
    return torch.tensor(result, dtype=torch.float64)


@pytest.mark.parametrize("min_active", [1, 2, 3])
def test_drop_rates_follow_the_exact_law(min_active: int) -> None:
    probability = torch.tensor([0.9, 0.5, 0.2, 0.7])
    draws = 20_000
    present = torch.ones(draws, 4, dtype=torch.bool)
    generator = torch.Generator().manual_seed(min_active)
    drop = PF.sample_drop(probability.expand(draws, -1), present, min_active, generator)
    assert ((~drop).sum(-1) >= min_active).all()
    law = exact_drop_law(probability.tolist(), min_active)
    sigma = (law * (1 - law) / draws).sqrt()
    assert ((drop.double().mean(0) - law).abs() < 4 * sigma + 1e-9).all()
    if min_active == 1:  # the formula of the docstring
        torch.testing.assert_close(law, probability.double() - probability.double().prod() / 4)
    expected = PF.expected_drop_rate(probability[None].double(), present[:1], min_active)
    torch.testing.assert_close(expected, law.mean()[None])


def test_survivor_is_uniform_among_the_dropped() -> None:
    draws = 20_000
    present = torch.tensor([[True, False, True, True]]).expand(draws, -1)
    drop = PF.sample_drop(torch.ones(draws, 4), present, 1, torch.Generator().manual_seed(0))
    survivors = (present & ~drop).double()
    assert (survivors.sum(-1) == 1).all()
    assert (survivors.mean(0)[[0, 2, 3]] - 1 / 3).abs().max() < 4 * math.sqrt(2 / 9 / draws)


def test_only_present_entries_are_dropped_and_zero_probability_never() -> None:
    weights, present = random_weights(997, 5)
    drop = PF.sample_drop(torch.full(weights.shape, 0.8), present)
    assert not (drop & ~present).any()
    assert ((present & ~drop).any(-1) == present.any(-1)).all()
    assert not PF.sample_drop(torch.zeros(weights.shape), present).any()


def test_expected_rate_equals_enumeration_with_holes() -> None:
    probability = torch.tensor([[0.9, 0.3, 0.6], [0.9, 0.3, 0.6], [0.5, 0.5, 0.5]], dtype=torch.float64)
    present = torch.tensor([[True, True, False], [False, False, False], [False, True, False]])
    expected = exact_drop_law([0.9, 0.3], 1).mean()
    torch.testing.assert_close(
        PF.expected_drop_rate(probability, present), torch.stack([expected, 0 * expected, 0 * expected])
    )


def test_surviving_never_empties_a_row() -> None:
    _, present = random_weights(31, 3)
    everything = torch.ones_like(present)
    assert torch.equal(PF.surviving(present, everything), present)
    assert torch.equal(PF.surviving(present, ~everything), present)


@pytest.mark.parametrize("drop", [torch.ones(2, 3), torch.ones(3, 2, dtype=torch.bool)])
def test_check_drop_names_what_it_got(drop: Tensor) -> None:
    with pytest.raises(ValueError, match=r"got torch.float32|= \(2, 3\), got \(3, 2\)"):
        PF.check_drop(drop, (2, 3))


def test_renormalise_with_vanishing_survivors_shares_equally() -> None:
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.25, 0.25], [0.2, 0.3, 0.5]], requires_grad=True)
    kept = torch.tensor([[False, True, True], [False, True, True], [False, False, False]])
    result = PF.renormalise(weights, kept)
    torch.testing.assert_close(result, torch.tensor([[0.0, 0.5, 0.5], [0.0, 0.5, 0.5], [0.0, 0.0, 0.0]]))
    (gradient,) = torch.autograd.grad(result.square().sum(), weights)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("probability", [0.1, 0.5, 1.0])
def test_attention_dropout_is_unbiased_and_never_empties_a_row(probability: float) -> None:
    torch.manual_seed(0)
    weights = torch.tensor([[0.5, 0.3, 0.2, 0.0], [1.0, 0.0, 0.0, 0.0]]).expand(20_000, -1, -1)
    dropped = PF.attention_dropout(weights, probability)
    assert (dropped > 0).any(-1).all()
    assert not dropped[..., 3].any()
    torch.testing.assert_close(dropped.mean(0), weights[0], rtol=0, atol=0.02)
    assert torch.equal(dropped[:, 1], weights[:, 1])
    assert probability == 1.0 or not dropped[:, 0, :3].all()
    zero = torch.zeros(2, 3)
    assert torch.equal(PF.attention_dropout(zero, probability), zero)
