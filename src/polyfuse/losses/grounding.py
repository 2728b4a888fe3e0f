"""Where a phrase is: boxes and their overlap, the loss of a predicted box, and phrases against regions.

Shapes: B rows, R regions. Boxes: ``(x0, y0, x1, y1)``, y down, in any one unit. Masks: True = present.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.functional import at_least_float32
from polyfuse.losses.reduce import all_there, check_mask, reduce

FORMS = ("bce", "info_nce")


def box_area(boxes: Tensor) -> Tensor:
    """Area, 0 where a corner is on the wrong side: ``(..., 4)`` to ``(...)``, at least float32.

    Example:
        >>> box_area(torch.tensor([[0.0, 0.0, 2.0, 3.0], [2.0, 0.0, 0.0, 3.0]]))
        tensor([6., 0.])
    """
    boxes = at_least_float32(boxes)
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)


def centers_to_corners(boxes: Tensor) -> Tensor:
    """``(centre x, centre y, width, height)`` to corners, ``(..., 4)`` each.

    Example:
        >>> centers_to_corners(torch.tensor([0.5, 0.5, 0.5, 1.0]))
        tensor([0.2500, 0.0000, 0.7500, 1.0000])
    """
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def box_iou(first: Tensor, second: Tensor, *, pairwise: bool = False) -> Tensor:
    """Intersection over union, 0 for two boxes without area.

    Args:
        first: ``(..., N, 4)``.
        second: ``(..., N, 4)``, box for box; with ``pairwise`` ``(..., M, 4)``, all against all.
        pairwise: Which of the two.

    Returns:
        ``(..., N)``, or ``(..., N, M)`` with ``pairwise``; in [0, 1].

    Example:
        >>> box_iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 1.0, 3.0, 3.0]]))
        tensor([0.1429])
    """
    shared, union, _ = _overlap(first, second, pairwise)
    return _share(shared, union)


def generalized_iou(first: Tensor, second: Tensor, *, pairwise: bool = False) -> Tensor:
    """IoU less the share of the smallest enclosing box that belongs to neither: a gradient for boxes that do not touch.

    Source: https://arxiv.org/abs/1902.09630, algorithm 1. Where the enclosing box has no area, IoU.

    Shape:
        As ``box_iou``; in (-1, 1].

    Example:
        >>> generalized_iou(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[2.0, 0.0, 3.0, 1.0]]))
        tensor([-0.3333])
    """
    shared, union, hull = _overlap(first, second, pairwise)
    return _share(shared, union) - _share(hull - union, hull)


def _overlap(first: Tensor, second: Tensor, pairwise: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Areas of intersection, union and enclosing box."""
    if first.shape[-1] != 4 or second.shape[-1] != 4:
        raise ValueError(f"boxes must be (..., 4), got {tuple(first.shape)} and {tuple(second.shape)}")
    first, second = at_least_float32(first), at_least_float32(second)
    if pairwise:
        first, second = first[..., :, None, :], second[..., None, :, :]
    inner = (torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:]))
    outer = (torch.minimum(first[..., :2], second[..., :2]), torch.maximum(first[..., 2:], second[..., 2:]))
    shared = box_area(torch.cat(inner, dim=-1))
    return shared, box_area(first) + box_area(second) - shared, box_area(torch.cat(outer, dim=-1))


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole``, 0 where the whole is 0; the gradient is finite there too."""
    some = whole > 0
    return torch.where(some, part, 0.0) / torch.where(some, whole, 1.0)


def box_loss(
    prediction: Tensor,
    target: Tensor,
    present: Tensor | None = None,
    *,
    l1: float = 5.0,
    giou: float = 2.0,
    reduction: str = "mean",
) -> Tensor:
    """Box regression: ``l1 * |prediction - target| + giou * (1 - generalised IoU)``.

    Source: DETR, https://arxiv.org/abs/2005.12872, appendix A.2, weights 5 and 2, boxes in shares of the picture.
    Differs: the distance is that of the corners, DETR's of centre and size.

    Args:
        prediction: ``(B, 4)``.
        target: ``(B, 4)``; no gradient reaches it.
        present: ``(B,)`` bool, rows with a box to find; None = all.
        l1: Weight of the distance, summed over the four numbers.
        giou: Weight of the overlap.
        reduction: "mean" over present rows, "sum", or "none": one value per present row.

    Returns:
        A scalar; 0 with a zero gradient where no row is present.

    Example:
        >>> box_loss(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[0.0, 0.0, 1.0, 0.5]]))
        tensor(3.5000)
    """
    if prediction.shape != target.shape or prediction.ndim != 2:
        raise ValueError(f"both boxes must be (B, 4), got {tuple(prediction.shape)} and {tuple(target.shape)}")
    here = all_there(present, (len(prediction),), prediction, "present")
    found, wanted = at_least_float32(prediction[here]), at_least_float32(target.detach()[here])
    distance = (found - wanted).abs().sum(dim=-1)
    return reduce(l1 * distance + giou * (1.0 - generalized_iou(found, wanted)), reduction)


def region_targets(region_boxes: Tensor, box: Tensor, region_mask: Tensor, *, threshold: float = 0.5) -> Tensor:
    """Which regions show what the phrase names: those whose IoU with its box is at least ``threshold``.

    Shape:
        region_boxes ``(B, R, 4)``; box ``(B, 4)``; region_mask ``(B, R)`` bool; returns ``(B, R)`` bool.
    """
    check_mask(region_mask, tuple(region_boxes.shape[:2]), "region_mask")
    return (box_iou(region_boxes, box[:, None, :].expand_as(region_boxes)) >= threshold) & region_mask


def region_phrase_loss(
    scores: Tensor,
    target: Tensor,
    region_mask: Tensor | None = None,
    *,
    form: str = "info_nce",
    reduction: str = "mean",
) -> Tensor:
    """Phrase against the regions of its picture.

    ``bce``: each region is asked by itself, a phrase weighs the mean over its regions. ``info_nce``: cross-entropy over
    the regions, the target shared evenly by those that show it (MDETR's soft token loss turned to regions,
    https://arxiv.org/abs/2104.12763, section 2.2); a phrase that no region shows has nothing to predict.

    Args:
        scores: ``(B, R)`` logits.
        target: ``(B, R)`` bool or 0 / 1, the regions that show what the phrase names.
        region_mask: ``(B, R)`` bool; None = all. Rows whose picture or phrase is absent are False throughout.
        form: "bce" or "info_nce".
        reduction: "mean" over the phrases with something to predict, "sum", or "none": one value for each of them.

    Returns:
        A scalar; 0 with a zero gradient where nothing is to be predicted.

    Raises:
        ValueError: If the form is unknown or a shape is wrong.

    Example:
        >>> region_phrase_loss(torch.zeros(1, 4), torch.tensor([[1, 0, 0, 0]]))
        tensor(1.3863)
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got '{form}'")
    if scores.shape != target.shape:
        raise ValueError(f"target must have shape {tuple(scores.shape)}, got {tuple(target.shape)}")
    mask = all_there(region_mask, tuple(scores.shape), scores, "region_mask")
    positive = target.bool() & mask
    asked = (mask if form == "bce" else positive).any(dim=1)
    scores, positive, mask = scores[asked], positive[asked], mask[asked]
    scores = at_least_float32(scores).masked_fill(~mask, 0.0)
    if form == "bce":
        each = F.binary_cross_entropy_with_logits(scores, positive.to(scores.dtype), reduction="none")
        return reduce(each.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1), reduction)
    log_share = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).log_softmax(dim=1)
    each = -log_share.masked_fill(~positive, 0.0).sum(dim=1) / positive.sum(dim=1).clamp(min=1)
    return reduce(each, reduction)


def grad_cam(
    attention: Tensor,
    gradient: Tensor,
    text_mask: Tensor | None = None,
    image_mask: Tensor | None = None,
) -> Tensor:
    """Where in the picture the match score comes from: ``relu(gradient * attention)``, averaged over heads and words.

    Take the maps of one cross-attention layer (words ask, image tokens answer) and the gradient of the match score
    (ITM's logit of class 1) with respect to them. Source: Grad-CAM, https://arxiv.org/abs/1610.02391, as ALBEF uses
    it, https://arxiv.org/abs/2107.07651, section 6.4. Differs: the mean is over words that are there, ALBEF's code
    divides by the padded length.

    Args:
        attention: ``(B, H, T, N)``, words by image tokens, of H heads.
        gradient: ``(B, H, T, N)``.
        text_mask: ``(B, T)`` bool, the words of the phrase (leave out start and end tokens); None = all.
        image_mask: ``(B, N)`` bool, the tokens of the picture (leave out its class token); None = all.

    Returns:
        ``(B, N)``, at least float32, at least 0; 0 at absent tokens and in rows without a word.

    Example:
        >>> grad_cam(torch.full((1, 2, 1, 2), 0.5), torch.tensor([1.0, -1.0]).expand(1, 2, 1, 2))
        tensor([[0.5000, 0.0000]])
    """
    if attention.shape != gradient.shape or attention.ndim != 4:
        raise ValueError(
            f"attention and gradient must be (B, H, T, N), got {tuple(attention.shape)} and {tuple(gradient.shape)}"
        )
    batch, _, words, tokens = attention.shape
    text = all_there(text_mask, (batch, words), attention, "text_mask")
    image = all_there(image_mask, (batch, tokens), attention, "image_mask")
    hidden = ~(text[:, None, :, None] & image[:, None, None, :])
    product = at_least_float32(attention).masked_fill(hidden, 0.0) * at_least_float32(gradient).masked_fill(hidden, 0.0)
    by_word = product.relu().mean(dim=1)
    return by_word.sum(dim=1) / text.sum(dim=1, keepdim=True).clamp(min=1)


class BoxLoss(nn.Module):
    """``box_loss`` as a module.

    Args:
        l1: Weight of the distance of the corners.
        giou: Weight of the generalised IoU.
        reduction: "mean", "sum" or "none".
    """

    def __init__(self, l1: float = 5.0, giou: float = 2.0, reduction: str = "mean") -> None:
        super().__init__()
        reduce(torch.zeros(0), reduction)
        self.l1, self.giou, self.reduction = l1, giou, reduction

    def forward(self, prediction: Tensor, target: Tensor, present: Tensor | None = None) -> Tensor:
        """Loss of ``(B, 4)`` boxes over the present rows."""
        return box_loss(prediction, target, present, l1=self.l1, giou=self.giou, reduction=self.reduction)


class RegionPhraseLoss(nn.Module):
    """``region_phrase_loss`` as a module.

    Args:
        form: "info_nce" or "bce".
        reduction: "mean", "sum" or "none".
    """

    def __init__(self, form: str = "info_nce", reduction: str = "mean") -> None:
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got '{form}'")
        reduce(torch.zeros(0), reduction)
        self.form, self.reduction = form, reduction

    def forward(self, scores: Tensor, target: Tensor, region_mask: Tensor | None = None) -> Tensor:
        """Loss of ``(B, R)`` scores over phrases with something to predict."""
        return region_phrase_loss(scores, target, region_mask, form=self.form, reduction=self.reduction)
