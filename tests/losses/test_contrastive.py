"""InfoNCE: published numbers, duplicates, incomplete pairs, low precision."""

import math

import pytest
import torch
from torch.nn import functional as F

from polyfuse.losses import info_nce


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
