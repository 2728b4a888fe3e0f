"""Contrastive losses: published numbers, plain loops, duplicates, incomplete pairs, low precision."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from polyfuse.losses import (
    CosinePairLoss,
    HardHinge,
    InfoNCELoss,
    LearnableScale,
    SigLIPLoss,
    chunked_info_nce,
    chunked_siglip,
    cosine_pair_loss,
    hard_hinge,
    info_nce,
    siglip_loss,
)


def pairs(seed: int = 0, count: int = 7, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(count, width, generator=generator, dtype=torch.float64) for _ in range(2))
    return first.requires_grad_(), second.requires_grad_()


@pytest.mark.parametrize(("smoothing", "expected"), [(0.0, 9.875298), (0.1, 10.252399)])
def test_numbers_of_torchmultimodal(smoothing: float, expected: float) -> None:
    torch.manual_seed(1234)  # facebookresearch/multimodal, tests of its contrastive loss with temperature
    first, second = torch.randn(3, 5), torch.randn(3, 5)
    assert info_nce(first, second, 1 / 0.07, label_smoothing=smoothing).item() == pytest.approx(expected, abs=1e-5)


def test_equals_two_cross_entropies() -> None:
    first, second = pairs()
    logits = 3.0 * first @ second.t()
    rows = torch.arange(len(logits))
    expected = (F.cross_entropy(logits, rows) + F.cross_entropy(logits.t(), rows)) / 2
    ours = info_nce(first, second, 3.0)
    torch.testing.assert_close(ours, expected)
    for got, wanted in zip(
        torch.autograd.grad(ours, (first, second)), torch.autograd.grad(expected, (first, second)), strict=True
    ):
        torch.testing.assert_close(got, wanted)


def test_duplicates_share_the_target() -> None:
    first = torch.eye(4, dtype=torch.float64)[[0, 0, 1]]
    ids = torch.tensor([5, 5, 6])
    shared = info_nce(first, first, 50.0, ids=ids)
    assert shared.item() == pytest.approx(2 / 3 * math.log(2), abs=1e-9)  # two rows, half a target each: entropy ln 2
    permuted = info_nce(first[[2, 0, 1]], first[[2, 0, 1]], 50.0, ids=ids[[2, 0, 1]])
    torch.testing.assert_close(permuted, shared)


def test_incomplete_pairs_leave_no_trace() -> None:
    first, second = pairs()
    present = torch.tensor([True, False, True, True, False, True, True])
    alone = info_nce(first[present], second[present], 2.0)
    broken = first.detach().clone()
    broken[1] = math.nan
    broken.requires_grad_()
    ours = info_nce(broken, second, 2.0, present=present)
    torch.testing.assert_close(ours, alone)
    gradient = torch.autograd.grad(ours, broken)[0]
    assert not gradient[~present].any()
    torch.testing.assert_close(gradient[present], torch.autograd.grad(alone, first)[0][present])


def test_nothing_to_match_is_zero_and_finite() -> None:
    first, second = pairs()
    loss = info_nce(first, second, 2.0, present=torch.zeros(7, dtype=torch.bool))
    assert loss.item() == 0.0
    assert not torch.autograd.grad(loss, first)[0].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    first, second = (F.normalize(x.detach(), dim=-1).to(dtype) for x in pairs())
    loss = info_nce(first, second, 100.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, info_nce(first.float(), second.float(), 100.0))


def check_gradients(ours: torch.Tensor, theirs: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> None:
    torch.testing.assert_close(ours, theirs)
    for got, wanted in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(got, wanted)


def test_temperature_is_held_within_its_bounds() -> None:
    first, second = (x.detach() for x in pairs())
    loss = InfoNCELoss().double()
    assert loss.scale.theta.item() == pytest.approx(math.log(1 / 0.07))
    at_most = InfoNCELoss(initial=100.0).double()
    with torch.no_grad():
        loss.scale.theta.fill_(9.0)
    torch.testing.assert_close(loss(first, second), at_most(first, second))
    free = InfoNCELoss(most=None).double()
    with torch.no_grad():
        free.scale.theta.fill_(9.0)
    assert free.scale().item() == pytest.approx(math.exp(9.0))
    with torch.no_grad():
        free.scale.theta.fill_(-3.0)
    assert free.scale().item() == 1.0  # ln 1 = 0 is a bound, not "none"
    assert InfoNCELoss(least=None, initial=0.5).scale().item() == pytest.approx(0.5)
    half = InfoNCELoss().half()
    assert half(first.half(), second.half()).dtype == torch.float32


@pytest.mark.parametrize(
    ("theta", "sign", "moves"), [(9.0, 1, True), (9.0, -1, False), (-3.0, -1, True), (-3.0, 1, False), (2.0, 1, True)]
)
def test_a_temperature_beyond_its_bound_can_come_back(theta: float, sign: int, moves: bool) -> None:
    scale = LearnableScale()
    with torch.no_grad():
        scale.theta.fill_(theta)
    (sign * scale()).backward()
    assert scale.theta.grad is not None
    assert bool(scale.theta.grad != 0) is moves


@pytest.mark.parametrize("numbers", [(0.5, 1.0, 100.0), (200.0, 1.0, 100.0), (1.0, 0.0, None)])
def test_bounds_are_checked(numbers: tuple[float, float, float | None]) -> None:
    with pytest.raises(ValueError, match=f"got {numbers[1]}, {numbers[0]} and {numbers[2]}"):
        LearnableScale(*numbers)


def test_siglip_equals_plain_loops() -> None:
    first, second = pairs()
    scale, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (1.7, -0.6))
    ids = torch.tensor([0, 1, 2, 1, 3, 4, 4])
    present = torch.tensor([True, True, False, True, True, True, True])
    total = first.new_zeros(())
    for i in range(7):
        for j in range(7):
            if present[i] and present[j]:
                z = 1.0 if ids[i] == ids[j] else -1.0
                total = total - torch.log(torch.sigmoid(z * (scale * (first[i] * second[j]).sum() + bias)))
    ours = siglip_loss(first, second, scale, bias, ids=ids, present=present)
    check_gradients(ours, total / 6, (first, second, scale, bias))


def test_siglip_starts_as_published() -> None:
    loss = SigLIPLoss()
    assert loss.scale().item() == pytest.approx(10.0)
    assert loss.bias.item() == -10.0
    assert SigLIPLoss(bias=-2.71).bias.item() == pytest.approx(-2.71)
    first, second = pairs()
    torch.testing.assert_close(loss(first, second), siglip_loss(first, second))


def test_the_cosine_loss_as_printed() -> None:
    here = torch.eye(4, dtype=torch.float64)
    first, second = here[[0, 1, 2]], 3 * here[[0, 1, 3]]
    match = torch.tensor([True, True, False])
    assert cosine_pair_loss(first, second, match).item() == 0.0  # the same, and orthogonal where apart
    opposite = cosine_pair_loss(first, -second.flip(0)[[2, 1, 0]], torch.zeros(3, dtype=torch.bool))
    assert opposite.item() == -2.0  # -1 for each of the two pairs that point away, no clamp
    assert cosine_pair_loss(first, -second, torch.ones(3, dtype=torch.bool)).item() == 2 + 2 + 1


@pytest.mark.parametrize("margin", [-0.2, 0.0, 0.3])
def test_the_margin_is_that_of_cosine_embedding_loss(margin: float) -> None:
    first, second = pairs()
    match = torch.tensor([1, 0, 0, 1, 0, 0, 1]).bool()
    theirs = torch.nn.CosineEmbeddingLoss(margin=margin)(first, second, 2 * match.long() - 1)
    check_gradients(CosinePairLoss(margin, "mean")(first, second, match), theirs, (first, second))
    with pytest.raises(ValueError, match=r"got 1\.5"):
        cosine_pair_loss(first, second, match, margin=1.5)


def test_number_of_mmf() -> None:
    torch.manual_seed(1234)  # facebookresearch/mmf, its test of the in-batch hinge: texts are drawn first
    text, image = torch.rand(5, 10), torch.rand(5, 10)
    assert hard_hinge(image, text).item() == pytest.approx(6.5529985, abs=1e-5)
    assert HardHinge()(torch.eye(5), torch.eye(5)).item() == 0.0


@pytest.mark.parametrize("hardest", [True, False])
def test_hinge_in_plain_loops_with_ids(hardest: bool) -> None:
    first, second = pairs()
    ids = torch.tensor([0, 1, 2, 1, 3, 4, 4])
    scores = first @ second.t()
    total = scores.new_zeros(())
    for i in range(7):
        for table in (scores, scores.t()):
            each = [(0.3 + table[i, j] - table[i, i]).clamp(min=0) for j in range(7) if ids[i] != ids[j]]
            total = total + (torch.stack(each).max() if hardest else sum(each))
    check_gradients(HardHinge(0.3, hardest)(first, second, ids), total, (first, second))


PAIRWISE = {
    "info_nce": lambda a, b, present: InfoNCELoss().double()(a, b, present=present),
    "siglip": lambda a, b, present: SigLIPLoss().double()(a, b, present=present),
    "cosine": lambda a, b, present: cosine_pair_loss(a, b, torch.arange(len(a)) % 2 == 0, present=present),
    "hinge": lambda a, b, present: HardHinge()(a, b, present=present),
    "chunked": lambda a, b, present: InfoNCELoss(form="chunked", chunk=2).double()(a, b, present=present),
    "chunked_siglip": lambda a, b, present: SigLIPLoss(form="chunked", chunk=2).double()(a, b, present=present),
    "ring": lambda a, b, present: InfoNCELoss(form="ring").double()(a, b, present=present),
    "gather": lambda a, b, present: InfoNCELoss(form="gather").double()(a, b, present=present),
    "ring_siglip": lambda a, b, present: SigLIPLoss(form="ring").double()(a, b, present=present),
    "gather_siglip": lambda a, b, present: SigLIPLoss(form="gather").double()(a, b, present=present),
}


@pytest.mark.parametrize("name", PAIRWISE)
def test_incomplete_pairs_leave_no_trace_in_any(name: str) -> None:
    first, second = pairs()
    present = torch.tensor([True, True, True, True, True, False, False])
    alone = PAIRWISE[name](first[:5], second[:5], None)
    broken = first.detach().clone()
    broken[5:] = math.nan
    other = second.detach().clone()
    other[6] = math.inf
    broken.requires_grad_()
    other.requires_grad_()
    ours = PAIRWISE[name](broken, other, present)
    torch.testing.assert_close(ours, alone)
    wanted = torch.autograd.grad(alone, (first, second))
    for got, expected in zip(torch.autograd.grad(ours, (broken, other)), wanted, strict=True):
        torch.testing.assert_close(got[:5], expected[:5])
        assert got[5:].eq(0).all()


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("rows", [7, 0])
def test_nothing_to_compare_is_zero_with_a_zero_gradient(name: str, rows: int) -> None:
    first, second = (x.detach()[:rows].requires_grad_() for x in pairs())
    loss = PAIRWISE[name](first, second, torch.zeros(rows, dtype=torch.bool))
    assert loss.item() == 0.0
    for gradient in torch.autograd.grad(loss, (first, second)):
        assert gradient.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_all_are_computed_in_float32(dtype: torch.dtype) -> None:
    first, second = (F.normalize(x.detach(), dim=-1).to(dtype) for x in pairs())
    match = torch.arange(7) % 2 == 0
    for loss in (siglip_loss, hard_hinge, chunked_info_nce_of_scale_100, chunked_siglip):
        ours = loss(first, second)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, loss(first.float(), second.float()))
    torch.testing.assert_close(
        cosine_pair_loss(first, second, match), cosine_pair_loss(first.float(), second.float(), match)
    )


def chunked_info_nce_of_scale_100(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return chunked_info_nce(first, second, 100.0, chunk=3)


@pytest.mark.parametrize("loss", [info_nce, siglip_loss, chunked_info_nce, chunked_siglip])
def test_autocast_does_not_reach_the_similarities(loss: Callable[..., torch.Tensor]) -> None:
    first, second = (F.normalize(x.detach(), dim=-1).float() for x in pairs())
    with torch.autocast("cpu", torch.bfloat16):
        ours = loss(first, second, 90.0)
    assert torch.equal(ours, loss(first, second, 90.0))


def test_refusals() -> None:
    first, second = pairs()
    with pytest.raises(ValueError, match=r"both sides must be \(B, E\), got \(7, 5\) and \(6, 5\)"):
        siglip_loss(first, second[1:])
    for module in (InfoNCELoss, SigLIPLoss):
        with pytest.raises(ValueError, match="got 'tree'"):
            module(form="tree")
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        chunked_siglip(first, second, chunk=0)
    with pytest.raises(ValueError, match=r"got \(7, 5\) and \(6, 5\)"):
        chunked_siglip(first, second[1:])
    with pytest.raises(ValueError, match=r"ids must have shape \(7,\), got \(6,\)"):
        chunked_siglip(first, second, ids=torch.zeros(6))
