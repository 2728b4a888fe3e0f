"""Image-text matching: which pairs are asked, and the loss of the answers."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from polyfuse.losses import MatchingLoss, hard_pairs, matching_loss, random_pairs
from polyfuse.losses.matching import negatives, sample

LIKE = torch.zeros(())


def draws(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(seed))


def test_sample_follows_the_weights() -> None:
    weights = torch.tensor([0.0, 0.1, 0.0, 0.6, 0.3, 0.0])
    uniform = torch.rand(30011, generator=torch.Generator().manual_seed(0))
    column, found = sample(weights.expand(30011, -1), uniform)
    assert found.all()
    torch.testing.assert_close(torch.bincount(column, minlength=6) / 30011, weights, atol=0.01, rtol=0)
    edges, _ = sample(weights.expand(2, -1), torch.tensor([0.0, 1 - 2**-24]))
    assert edges.tolist() == [1, 4]


def test_hard_negatives_are_drawn_by_their_softmax() -> None:
    similarity = torch.tensor([[9.0, 1.0, 0.0, 2.0], [0.5, 9.0, 1.5, 0.0], [1.0, 0.0, 9.0, 0.0], [2.0, 1.0, 0.0, 9.0]])
    ids = torch.tensor([0, 1, 2, 1])  # rows 1 and 3 say the same
    seconds = torch.zeros(4, 4)
    firsts = torch.zeros(4, 4)
    for seed in range(4001):
        pairs = hard_pairs(similarity, draws(4, seed), ids=ids)
        assert pairs.first[:8].tolist() == [0, 1, 2, 3] * 2
        assert pairs.second[8:].tolist() == [0, 1, 2, 3]
        seconds[range(4), pairs.second[4:8]] += 1 / 4001
        firsts[range(4), pairs.first[8:]] += 1 / 4001
    allowed = negatives(4, LIKE, ids)
    for counted, scores in ((seconds, similarity), (firsts, similarity.t())):
        weights = scores.softmax(dim=1) * allowed  # as ALBEF's code: softmax first, then zeros
        torch.testing.assert_close(counted, weights / weights.sum(dim=1, keepdim=True), atol=0.03, rtol=0)
        assert not counted[~allowed].any()


def test_a_dominant_partner_does_not_hide_the_negatives() -> None:
    similarity = 200 * torch.eye(3) + torch.tensor([0.0, 1.0, 2.0])
    pairs = hard_pairs(similarity, draws(3))
    assert pairs.valid.all()  # softmax over all columns would have left them no mass in float32
    assert (pairs.first[3:] != pairs.second[3:]).all()


def test_rows_without_a_negative_fall_back() -> None:
    similarity = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    similarity[2] = similarity[:, 2] = math.nan
    present = torch.tensor([True, True, False, True])
    same = torch.tensor([5, 5, 6, 5])
    pairs = hard_pairs(similarity, draws(4), ids=same, present=present)
    assert pairs.valid.tolist() == [True, True, False, True] + [False] * 8
    assert pairs.first.tolist() == pairs.second.tolist() == [0, 1, 2, 3] * 3
    distinct = hard_pairs(similarity, draws(4), present=present)
    assert distinct.valid.tolist() == [True, True, False, True] * 3
    assert 2 not in distinct.first[distinct.valid]
    assert 2 not in distinct.second[distinct.valid]
    alone = hard_pairs(torch.zeros(1, 1), draws(1))
    assert alone.valid.tolist() == [True, False, False]
    nothing = hard_pairs(similarity, draws(4), present=torch.zeros(4, dtype=torch.bool))
    assert not nothing.valid.any()


def test_random_pairs_are_half_wrong_and_even() -> None:
    count = 1009
    ids = torch.arange(count) // 2
    pairs = random_pairs(count, draws(count), LIKE, ids=ids)
    wrong = pairs.label == 0
    assert wrong.double().mean().item() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(ids[pairs.first] == ids[pairs.second], ~wrong)
    assert pairs.second.tolist() == list(range(count))
    steps = torch.stack([random_pairs(5, draws(5, seed), LIKE, rate=1.0).first for seed in range(2003)])
    shares = torch.bincount(steps[:, 0], minlength=5) / 2003
    torch.testing.assert_close(shares, torch.tensor([0, 0.25, 0.25, 0.25, 0.25]), atol=0.04, rtol=0)


def test_random_pairs_without_a_negative_stay_together() -> None:
    pairs = random_pairs(3, torch.zeros(3, 2), LIKE, ids=torch.tensor([1, 1, 1]))
    assert pairs.label.tolist() == [1, 1, 1]
    present = torch.tensor([True, False, True])
    pairs = random_pairs(3, torch.zeros(3, 2), LIKE, present=present)
    assert pairs.valid.tolist() == present.tolist()
    assert pairs.first.tolist() == [2, 1, 0]
    generator = torch.Generator().manual_seed(0)
    assert random_pairs(3, generator, LIKE, rate=0.0).label.all()


def test_loss_is_the_cross_entropy_of_valid_pairs() -> None:
    logits = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label = torch.tensor([1, 0, 0, 1, 0])
    valid = torch.tensor([True, False, True, True, False])
    broken = logits.clone()
    broken[~valid] = math.nan
    broken.requires_grad_()
    ours = matching_loss(broken, label, valid)
    torch.testing.assert_close(ours, F.cross_entropy(logits[valid], label[valid]))
    gradient = torch.autograd.grad(ours, broken)[0]
    assert gradient.isfinite().all()
    assert not gradient[~valid].any()
    torch.testing.assert_close(MatchingLoss("sum")(logits, label), F.cross_entropy(logits, label, reduction="sum"))


def test_nothing_to_match_is_zero_with_a_zero_gradient() -> None:
    logits = torch.randn(3, 2).requires_grad_()
    loss = matching_loss(logits, torch.ones(3).long(), torch.zeros(3, dtype=torch.bool))
    assert loss.item() == 0.0
    assert torch.autograd.grad(loss, logits)[0].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits = torch.tensor([[0.0, 12.0], [3.0, 1.0]], dtype=dtype)
    loss = matching_loss(logits, torch.tensor([1, 0]))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, matching_loss(logits.float(), torch.tensor([1, 0])))
    assert hard_pairs(torch.zeros(3, 3, dtype=dtype), draws(3)).valid.all()


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"similarity must be \(B, B\), got \(2, 3\)"):
        hard_pairs(torch.zeros(2, 3), draws(2))
    with pytest.raises(ValueError, match=r"ids must have shape \(2,\), got \(3,\)"):
        hard_pairs(torch.zeros(2, 2), draws(2), ids=torch.zeros(3))
    with pytest.raises(ValueError, match="rate must be in"):
        random_pairs(2, draws(2), LIKE, rate=1.5)
    with pytest.raises(ValueError, match=r"logits must be \(N, 2\), got \(2, 1\)"):
        matching_loss(torch.zeros(2, 1), torch.zeros(2).long())
    with pytest.raises(ValueError, match=r"label must have shape \(2,\), got \(3,\)"):
        matching_loss(torch.zeros(2, 2), torch.zeros(3).long())
