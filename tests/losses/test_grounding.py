"""Grounding: overlaps computed by hand, box and region losses, Grad-CAM of a match score."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from polyfuse.losses import (
    BoxLoss,
    RegionPhraseLoss,
    box_area,
    box_iou,
    box_loss,
    centers_to_corners,
    generalized_iou,
    grad_cam,
    region_phrase_loss,
    region_targets,
)

# first, second, IoU, GIoU: by hand
OVERLAPS = [
    ((0, 0, 2, 2), (0, 0, 2, 2), 1.0, 1.0),
    ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7, 1 / 7 - 2 / 9),
    ((0, 0, 1, 1), (2, 0, 3, 1), 0.0, -1 / 3),
    ((0, 0, 4, 4), (1, 1, 3, 2), 2 / 16, 2 / 16),
    ((0, 0, 2, 1), (2, 0, 3, 1), 0.0, 0.0),  # side by side: their hull is all theirs
    ((1, 1, 1, 1), (1, 1, 1, 1), 0.0, 0.0),  # no area at all
    ((0, 0, 0, 0), (0, 0, 2, 2), 0.0, 0.0),
]
FIRST, SECOND, IOU, GIOU = (torch.tensor(x, dtype=torch.float64) for x in zip(*OVERLAPS, strict=True))


def boxes(seed: int, count: int = 5) -> Tensor:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cat([corners.amin(1), corners.amax(1)], dim=-1)


def test_overlaps_by_hand() -> None:
    torch.testing.assert_close(box_iou(FIRST, SECOND), IOU)
    torch.testing.assert_close(generalized_iou(FIRST, SECOND), GIOU)
    torch.testing.assert_close(generalized_iou(SECOND, FIRST), GIOU)
    for overlap, expected in ((box_iou, IOU), (generalized_iou, GIOU)):
        table = overlap(FIRST, SECOND, pairwise=True)
        assert table.shape == (len(FIRST), len(SECOND))
        torch.testing.assert_close(table.diagonal(), expected)
        torch.testing.assert_close(table[2], overlap(FIRST[2].expand_as(SECOND), SECOND))


def test_overlaps_do_not_depend_on_the_unit() -> None:
    first, second = boxes(0), boxes(1)
    scale, shift = torch.tensor([3.0, 5.0, 3.0, 5.0]), torch.tensor([7.0, -2.0, 7.0, -2.0])
    for overlap in (box_iou, generalized_iou):
        torch.testing.assert_close(overlap(first * scale + shift, second * scale + shift), overlap(first, second))
    assert (generalized_iou(first, second) <= box_iou(first, second)).all()
    torch.testing.assert_close(box_area(first), (first[:, 2] - first[:, 0]) * (first[:, 3] - first[:, 1]))


def test_boxes_apart_are_drawn_together_and_gradients_are_finite() -> None:
    prediction = torch.tensor([[0.0, 0.0, 0.1, 0.1]], requires_grad=True)
    target = torch.tensor([[0.8, 0.8, 0.9, 0.9]])
    gradient = torch.autograd.grad((1 - generalized_iou(prediction, target)).sum(), prediction)[0]
    assert (gradient[:, 2:] < 0).all()  # it should grow towards the target
    empty = torch.zeros(1, 4, requires_grad=True)
    for other in (target, torch.zeros(1, 4)):
        assert torch.autograd.grad(box_loss(empty, other), empty)[0].isfinite().all()


def test_box_loss_by_hand_and_its_masks() -> None:
    loss = box_loss(FIRST, SECOND)
    l1 = (FIRST - SECOND).abs().sum(1)
    torch.testing.assert_close(loss, (5 * l1 + 2 * (1 - GIOU)).mean())
    present = torch.tensor([True, False, True, True, False, False, False])
    broken, wanted = FIRST.clone(), SECOND.clone()
    broken[~present] = wanted[~present] = math.nan
    broken.requires_grad_()
    ours = BoxLoss(l1=1.0, giou=3.0)(broken, wanted, present)
    torch.testing.assert_close(ours, (l1 + 3 * (1 - GIOU))[present].mean())
    gradient = torch.autograd.grad(ours, broken)[0]
    assert gradient.isfinite().all()
    assert not gradient[~present].any()
    nothing = box_loss(broken, wanted, torch.zeros_like(present))
    assert nothing.item() == 0.0
    assert torch.autograd.grad(nothing, broken)[0].eq(0).all()


def test_centers_and_targets() -> None:
    torch.testing.assert_close(
        centers_to_corners(torch.tensor([[0.5, 0.25, 0.5, 0.5]])), torch.tensor([[0.25, 0.0, 0.75, 0.5]])
    )
    regions = torch.stack([FIRST[:4], SECOND[:4]])
    mask = torch.ones(2, 4, dtype=torch.bool)
    mask[0, 0] = False
    target = region_targets(regions, torch.stack([FIRST[0], SECOND[2]]), mask)
    assert target.tolist() == [[False, True, False, False], [False, False, True, False]]


SCORES = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGET = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 1, 1, 0, 0]]).bool()


def test_regions_in_plain_loops() -> None:
    asked, chosen = [], []
    for row in range(3):
        x, y = SCORES[row, MASK[row]], TARGET[row, MASK[row]].double()
        asked.append(F.binary_cross_entropy_with_logits(x, y))
        if y.any():
            chosen.append(F.cross_entropy(x[None], y[None] / y.sum()))
    torch.testing.assert_close(region_phrase_loss(SCORES, TARGET, MASK, form="bce"), torch.stack(asked).mean())
    torch.testing.assert_close(region_phrase_loss(SCORES, TARGET, MASK), torch.stack(chosen).mean())
    assert len(chosen) == 2  # the phrase that no region shows does not count


@pytest.mark.parametrize("form", ["bce", "info_nce"])
def test_absent_regions_leave_no_trace(form: str) -> None:
    module = RegionPhraseLoss(form)
    broken = SCORES.clone()
    broken[~MASK] = math.nan
    broken.requires_grad_()
    ours = module(broken, TARGET, MASK)
    torch.testing.assert_close(ours, module(SCORES, TARGET, MASK))
    gradient = torch.autograd.grad(ours, broken)[0]
    assert gradient.isfinite().all()
    assert not gradient[~MASK].any()
    nothing = module(broken, TARGET, torch.zeros_like(MASK))
    assert nothing.item() == 0.0
    assert torch.autograd.grad(nothing, broken)[0].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    first, second, scores = FIRST.to(dtype), SECOND.to(dtype), SCORES.to(dtype)
    ours = (box_loss(first, second), region_phrase_loss(scores, TARGET), region_phrase_loss(scores, TARGET, form="bce"))
    wide = (
        box_loss(first.float(), second.float()),
        region_phrase_loss(scores.float(), TARGET),
        region_phrase_loss(scores.float(), TARGET, form="bce"),
    )
    for x, y in zip(ours, wide, strict=True):
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, y)


def test_grad_cam_in_plain_loops_and_its_masks() -> None:
    generator = torch.Generator().manual_seed(0)
    batch, heads, words, tokens = 2, 3, 5, 7
    attention = torch.randn(batch, heads, words, tokens, generator=generator).softmax(-1)
    gradient = torch.randn(batch, heads, words, tokens, generator=generator)
    text = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()
    image = torch.tensor([[0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]]).bool()
    expected = torch.zeros(batch, tokens)
    for n in range(1, tokens):
        each = [max(0.0, (attention[0, h, t, n] * gradient[0, h, t, n]).item()) for h in range(heads) for t in range(3)]
        expected[0, n] = sum(each) / len(each)
    gradient[1] = math.nan  # a row without a word
    attention[0, :, 3:] = math.nan
    torch.testing.assert_close(grad_cam(attention, gradient, text, image), expected)
    assert grad_cam(attention.half(), gradient.half(), text, image).dtype == torch.float32


def test_grad_cam_finds_what_the_score_reads() -> None:
    """A score that reads attention to token 4 alone lights up token 4 alone."""
    scores = torch.randn(1, 2, 3, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    attention = scores.softmax(-1)
    match = (attention @ torch.eye(7)[:, 4:5]).sum()
    found = grad_cam(attention, torch.autograd.grad(match, attention)[0])
    assert found[0].nonzero().flatten().tolist() == [4]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="got 'hinge'"):
        region_phrase_loss(SCORES, TARGET, form="hinge")
    with pytest.raises(ValueError, match="got 'hinge'"):
        RegionPhraseLoss("hinge")
    with pytest.raises(ValueError, match=r"target must have shape \(3, 5\), got \(3, 4\)"):
        region_phrase_loss(SCORES, TARGET[:, 1:])
    with pytest.raises(ValueError, match=r"both boxes must be \(B, 4\), got \(7, 4\) and \(5, 4\)"):
        box_loss(FIRST, SECOND[:5])
    with pytest.raises(ValueError, match=r"boxes must be \(..., 4\), got \(7, 3\)"):
        box_iou(FIRST[:, :3], SECOND)
    with pytest.raises(ValueError, match=r"must be \(B, H, T, N\), got \(1, 2\)"):
        grad_cam(torch.zeros(1, 2), torch.zeros(1, 2))
