"""What goes into UNITER: regions and their boxes, masks, and the layout of the stream.

Shapes: B batch, L tokens, R regions, T = L + R, D width, F width of region features. Masks: True = present.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BOX_DIM = 7


class RegionEmbeddings(nn.Module):
    """``LN(LN(W_f f) + LN(W_b box) + type)``, then dropout; no position index.

    A masked region has its features replaced by row 1 of ``masked``. The authors add row 0 to every other region and
    hold it at zero: here it is never read, so whatever a checkpoint keeps there has no effect.

    Args:
        region_dim: Width F of the features.
        dim: Width D.
        eps: Of the norms.
        dropout: On the result.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self,
        region_dim: int,
        dim: int,
        *,
        eps: float = 1e-12,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.feature = nn.Linear(region_dim, dim, **factory)
        self.feature_norm = nn.LayerNorm(dim, eps=eps, **factory)
        self.box = nn.Linear(BOX_DIM, dim, **factory)
        self.box_norm = nn.LayerNorm(dim, eps=eps, **factory)
        self.masked = nn.Embedding(2, region_dim, padding_idx=0, **factory)
        self.norm = nn.LayerNorm(dim, eps=eps, **factory)
        self.dropout = dropout

    def forward(
        self,
        features_BRF: Tensor,
        boxes_BR7: Tensor,
        types: Tensor,
        mask_BR: Tensor | None = None,
        masked_BR: Tensor | None = None,
    ) -> Tensor:
        """``(B, R, F)`` features, ``(B, R, 7)`` boxes and type vectors ``(..., D)`` to ``(B, R, D)``.

        ``mask_BR``: which regions are there; ``masked_BR``: which of them hide their features.
        """
        if masked_BR is None and self.training:
            # The row stays in the graph: data parallel training must not lack its gradient in some batch.
            masked_BR = torch.zeros(features_BRF.shape[:2], dtype=torch.bool, device=features_BRF.device)
        if masked_BR is not None:
            features_BRF = torch.where(masked_BR[..., None], self.masked.weight[1], features_BRF)
        if mask_BR is not None:
            features_BRF = features_BRF.masked_fill(~mask_BR[..., None], 0.0)
            boxes_BR7 = boxes_BR7.masked_fill(~mask_BR[..., None], 0.0)
        x_BRD = self.feature_norm(self.feature(features_BRF)) + self.box_norm(self.box(boxes_BR7)) + types
        return F.dropout(self.norm(x_BRD), self.dropout, self.training)


def joint_mask(
    input_ids: Tensor | None, text_mask: Tensor | None, region_features: Tensor | None, region_mask: Tensor | None
) -> Tensor | None:
    """``(B, L + R)`` bool over the stream; None = everything is there."""
    if text_mask is None and region_mask is None:
        return None
    parts = []
    for content, mask in ((input_ids, text_mask), (region_features, region_mask)):
        if content is not None:
            whole = torch.ones(content.shape[:2], dtype=torch.bool, device=content.device)
            parts.append(whole if mask is None else mask)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def compact(sequence: Tensor, text_mask: Tensor | None = None, region_mask: Tensor | None = None) -> Tensor:
    """The authors' layout: each row's regions right behind its last real token, padding at the end.

    Args:
        sequence: ``(B, L + R, ...)`` as ``UNITER`` gives it.
        text_mask: ``(B, L)`` bool; None = all (its length is what ``region_mask`` leaves).
        region_mask: ``(B, R)`` bool; None = all.

    Returns:
        ``(B, N, ...)``, N the largest number of real tokens and regions in a row. Behind a row's real states stand
        those that the authors' ``gather_index`` leaves there, position j of the stream at j: padding, not to be read.

    Raises:
        ValueError: If the masks are longer than the sequence.

    Example:
        >>> stream = torch.tensor([[1, 2, 0, 11, 12]])
        >>> compact(stream, torch.tensor([[True, True, False]]))
        tensor([[ 1,  2, 11, 12]])
    """
    batch, total = sequence.shape[:2]
    parts = [text_mask, region_mask]
    known = [part.shape[1] for part in parts if part is not None]
    if not known:
        return sequence
    rest = total - sum(known)
    if rest < 0 or (len(known) == 2 and rest):
        raise ValueError(f"masks of {known} positions do not make the sequence's {total}")
    whole = torch.ones(batch, rest, dtype=torch.bool, device=sequence.device)
    present = torch.cat([whole if part is None else part for part in parts], dim=1)
    number = present.sum(dim=1, keepdim=True)
    place = torch.arange(total, device=sequence.device).expand(batch, -1)
    order = torch.argsort((~present).to(torch.uint8), dim=1, stable=True)
    index = torch.where(place < number, order, place)[:, : int(number.max())]
    return sequence[torch.arange(batch, device=sequence.device)[:, None], index]


def box_features(boxes: Tensor, image_size: tuple[float, float] | Tensor) -> Tensor:
    """Pixel boxes to UNITER's seven numbers: x1, y1, x2, y2, width, height, area, as shares of the image.

    Args:
        boxes: ``(..., R, 4)``: x1, y1, x2, y2 in pixels.
        image_size: Width and height, or ``(..., 2)`` of them, one pair per image.

    Returns:
        ``(..., R, 7)``.

    Raises:
        ValueError: If boxes do not have four numbers, or a size is not positive.

    Example:
        >>> box_features(torch.tensor([[10.0, 20.0, 60.0, 100.0]]), (100, 200))
        tensor([[0.1000, 0.1000, 0.6000, 0.5000, 0.5000, 0.4000, 0.2000]])
    """
    if boxes.shape[-1] != 4:
        raise ValueError(f"boxes must have shape (..., R, 4), x1, y1, x2, y2, got {tuple(boxes.shape)}")
    dtype = boxes.dtype if boxes.is_floating_point() else torch.get_default_dtype()
    size = torch.as_tensor(image_size, dtype=dtype, device=boxes.device)
    if not bool((size > 0).all()):
        raise ValueError(f"image_size must be positive (width, height), got {size.tolist()}")
    corners = boxes.to(dtype) / torch.cat([size, size], dim=-1).unsqueeze(-2)
    sides = corners[..., 2:] - corners[..., :2]
    return torch.cat([corners, sides, sides.prod(dim=-1, keepdim=True)], dim=-1)


def check_inputs(
    input_ids: Tensor | None,
    token_type_ids: Tensor | None,
    text_mask: Tensor | None,
    region_features: Tensor | None,
    region_boxes: Tensor | None,
    region_mask: Tensor | None,
    region_masked: Tensor | None,
    region_type_ids: Tensor | None,
    *,
    region_dim: int,
) -> None:
    """Refuse what does not fit, before any work is done.

    Raises:
        ValueError: If shapes or dtypes disagree, or a part comes without the one it describes.
    """
    if input_ids is None and region_features is None:
        raise ValueError("give input_ids, region_features or both, got neither")
    if input_ids is None and (token_type_ids is not None or text_mask is not None):
        raise ValueError("token_type_ids and text_mask need input_ids, got None")
    others = {"region_boxes": region_boxes, "region_mask": region_mask}
    others |= {"region_masked": region_masked, "region_type_ids": region_type_ids}
    given = [name for name, value in others.items() if value is not None]
    if region_features is None and given:
        raise ValueError(f"{', '.join(given)} need region_features, got None")
    expected: list[tuple[str, Tensor | None, tuple[int, ...], str]] = []
    if input_ids is not None:
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids must have shape (B, L), got {tuple(input_ids.shape)}")
        size = tuple(input_ids.shape)
        expected += [("token_type_ids", token_type_ids, size, "(B, L)"), ("text_mask", text_mask, size, "(B, L)")]
    if region_features is not None:
        if region_features.ndim != 3 or region_features.shape[2] != region_dim:
            raise ValueError(
                f"region_features must have shape (B, R, {region_dim}), got {tuple(region_features.shape)}"
            )
        size = tuple(region_features.shape[:2])
        if region_boxes is None:
            raise ValueError("region_features need region_boxes (B, R, 7), see box_features; got None")
        boxes = "(B, R, 7), x1, y1, x2, y2, w, h, w h (see box_features),"
        expected += [("region_boxes", region_boxes, (*size, BOX_DIM), boxes)]
        expected += [("region_mask", region_mask, size, "(B, R)"), ("region_masked", region_masked, size, "(B, R)")]
        expected += [("region_type_ids", region_type_ids, size, "(B, R)")]
        if input_ids is not None and input_ids.shape[0] != size[0]:
            raise ValueError(f"texts and images must be as many, got {input_ids.shape[0]} and {size[0]}")
    for name, value, shape, what in expected:
        if value is not None and tuple(value.shape) != shape:
            raise ValueError(f"{name} must have shape {what} = {shape}, got {tuple(value.shape)}")
        if value is not None and name.endswith(("_mask", "_masked")) and value.dtype != torch.bool:
            sense = "masked" if name.endswith("d") else "present"
            raise ValueError(f"{name} must be bool (True = {sense}), got {value.dtype}")
