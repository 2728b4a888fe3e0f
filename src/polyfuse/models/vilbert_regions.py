"""What ViLBERT reads of an image: boxes as shares of it, and the whole image as region 0.

Shapes: B batch, R regions, F feature width. Masks: True = present.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

#: x1, y1, x2, y2 and the area, each as a share of the image.
BOX_SIZE = 5
_WHOLE = (0.0, 0.0, 1.0, 1.0, 1.0)


def box_shares(boxes: Tensor, width: Tensor | float, height: Tensor | float) -> Tensor:
    """Corners in pixels ``(..., 4)`` to ``(..., 5)``: x1, y1, x2, y2 as shares of the image, and the share of its area.

    Args:
        boxes: x1, y1, x2, y2.
        width: Of the image, in pixels; a tensor must broadcast against ``boxes[..., 0]``.
        height: Likewise.

    Raises:
        ValueError: If ``boxes`` are not four numbers each.

    Example:
        >>> box_shares(torch.tensor([10.0, 0.0, 20.0, 30.0]), width=20, height=30)
        tensor([0.5000, 0.0000, 1.0000, 1.0000, 0.5000])
    """
    if boxes.shape[-1] != 4:
        raise ValueError(f"boxes must be (..., 4), got {tuple(boxes.shape)}")
    x1, y1, x2, y2 = boxes.unbind(-1)
    left, top, right, bottom = x1 / width, y1 / height, x2 / width, y2 / height
    return torch.stack([left, top, right, bottom, (right - left) * (bottom - top)], dim=-1)


def with_whole_image(
    region_features: Tensor, region_boxes: Tensor, region_mask: Tensor | None = None, left_out: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Put region 0 in front: the mean of the regions' features with the box of the whole image.

    Source: the data code of vilbert-multi-task. In pretraining 15 % of the regions are to be predicted, and 90 % of
    those have their features zeroed. All that overlap one of them with an IoU above 0.4 (itself among them) leave the
    number that the sum is divided by, but *not* the sum, and are not zeroed: pass them as ``left_out``.

    Differs: absent regions never count; the original's pretraining loader divides by padded places too.

    Args:
        region_features: ``(B, R, F)``.
        region_boxes: ``(B, R, 5)``, as from ``box_shares``.
        region_mask: ``(B, R)`` bool, True = a region; None = all.
        left_out: ``(B, R)`` bool; None = none.

    Returns:
        Features, boxes and mask of ``R + 1`` regions. Region 0 is present where any other is.

    Example:
        >>> features, boxes, mask = with_whole_image(torch.tensor([[[2.0], [4.0]]]), torch.rand(1, 2, 5))
        >>> features[0, :, 0], boxes[0, 0]
        (tensor([3., 2., 4.]), tensor([0., 0., 1., 1., 1.]))
    """
    present = torch.ones_like(region_features[..., 0], dtype=torch.bool) if region_mask is None else region_mask.bool()
    inside = region_features.masked_fill(~present[..., None], 0.0)
    counted = present if left_out is None else present & ~left_out
    mean = inside.sum(dim=1) / counted.sum(dim=1, keepdim=True).clamp(min=1)
    whole = region_boxes.new_tensor(_WHOLE).expand(region_boxes.shape[0], 1, -1)
    return (
        torch.cat([mean[:, None], region_features], dim=1),
        torch.cat([whole, region_boxes], dim=1),
        torch.cat([present.any(dim=1, keepdim=True), present], dim=1),
    )


def checked_mask(name: str, mask: Tensor | None, shape: Sequence[int]) -> Tensor | None:
    """As bool; numbers 0 and 1 are taken, a mask to be added is not."""
    if mask is None:
        return None
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f"{name} must be {tuple(shape)}, got {tuple(mask.shape)}")
    if mask.is_floating_point():
        raise ValueError(f"{name} must be bool, True = present, got {mask.dtype}")
    return mask.bool()


def check_regions(features: Tensor, boxes: Tensor, width: int) -> None:
    """Refuse regions that are not ``(B, R, width)`` with ``(B, R, 5)`` boxes."""
    if features.ndim != 3 or features.shape[-1] != width:
        raise ValueError(f"region_features must be (B, R, {width}), got {tuple(features.shape)}")
    if boxes.shape != (*features.shape[:2], BOX_SIZE):
        expected = (*features.shape[:2], BOX_SIZE)
        raise ValueError(
            f"region_boxes must be {tuple(expected)}: x1, y1, x2, y2 and area as shares, got {tuple(boxes.shape)}"
        )


def without_absent(features: Tensor, boxes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Zeros for absent regions; in a row without any region, the box of the whole image.

    With zeros alone and fresh biases such a row would be exactly 0 in every layer, where a norm with eps = 1e-12
    multiplies the gradient by a million: a few layers make it infinite.
    """
    absent = ~mask[..., None]
    boxes = boxes.masked_fill(absent, 0.0)
    return features.masked_fill(absent, 0.0), boxes + boxes.new_tensor(_WHOLE) * absent.all(dim=1, keepdim=True)
