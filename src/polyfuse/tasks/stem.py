"""Pictures to visual tokens: a grid cut from the pixels, or what a detector found.

Shapes: B rows, S pixels a side, P visual tokens, R regions, F features, D width. Masks: True = present.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from polyfuse.tasks.batch import TaskBatch


class VisualTokens(NamedTuple):
    """What a backbone reads of the pictures.

    Attributes:
        states: ``(B, P, D)``, zero at absent tokens (MMBT reads ``(B, P, C)``, channels of its ResNet).
        boxes: ``(B, P, 4)``: x0, y0, x1, y1 as shares of the picture.
        mask: ``(B, P)`` bool; False throughout where the row has no picture.
    """

    states: Tensor
    boxes: Tensor
    mask: Tensor


class States(NamedTuple):
    """What a backbone makes of a batch.

    Attributes:
        text: ``(B, T, D)``.
        image: ``(B, P, D)``.
        pooled: ``(B, D)``, of what is present.
    """

    text: Tensor
    image: Tensor
    pooled: Tensor


class GridStem(nn.Module):
    """Pixels to a grid of tokens: convolutions of stride 2 down to one token per patch, and a place for each.

    Source: convolutional stems, https://arxiv.org/abs/2106.14881: they learn faster from little than one large
    convolution ("patches", as in ViT, https://arxiv.org/abs/2010.11929). A hidden patch is cut out of the pixels and
    its token replaced by a learned one (BEiT, https://arxiv.org/abs/2106.08254), so that nothing of it leaks.

    Args:
        side: Pixels S.
        patch: Pixels of a patch: a power of two for "conv".
        dim: Width D.
        kind: "conv" or "patches".
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If the patch does not divide the side, is no power of two, or the kind is unknown.
    """

    def __init__(self, side: int, patch: int, dim: int, kind: str = "conv", **factory: Any) -> None:
        super().__init__()
        if side % patch or patch < 1:
            raise ValueError(f"patch must divide side={side}, got {patch}")
        if kind not in ("conv", "patches"):
            raise ValueError(f"kind must be 'conv' or 'patches', got {kind!r}")
        if kind == "conv" and (patch < 2 or patch & (patch - 1)):
            raise ValueError(f"patch must be a power of two from 2 on for a convolutional stem, got {patch}")
        self.side, self.patch, self.grid = side, patch, side // patch
        self.net = (
            nn.Conv2d(3, dim, patch, patch, **factory) if kind == "patches" else _convolutions(patch, dim, factory)
        )
        self.places = nn.Parameter(torch.empty(self.grid**2, dim, **factory))
        self.hidden = nn.Parameter(torch.empty(dim, **factory))
        for table in (self.places, self.hidden):
            nn.init.normal_(table, std=0.02)

    def forward(self, batch: TaskBatch, hide: Tensor | None = None) -> VisualTokens:
        """Tokens of ``batch.image``; ``hide (B, P)`` bool: patches that are not to be seen.

        Raises:
            ValueError: If there are no pictures of the right size.
        """
        image = seen_pixels(batch, self.side, hide, self.grid)
        states = self.net(2 * image - 1).flatten(2).transpose(1, 2)
        if hide is not None:
            states = torch.where(hide[..., None], self.hidden, states)
        mask = batch.present[:, :1].expand(-1, states.shape[1])
        states = (states + self.places).masked_fill(~mask[..., None], 0.0)
        return VisualTokens(states, cell_boxes(self.grid, image.device).expand(len(image), -1, -1), mask)


def seen_pixels(batch: TaskBatch, side: int, hide: Tensor | None, grid: int) -> Tensor:
    """``(B, 3, S, S)`` in [0, 1]: zero where the row has no picture, grey in the cells of ``hide (B, grid^2)``.

    Raises:
        ValueError: If there are no pictures of the right size.
    """
    image = batch.image
    if image is None or image.shape[1:] != (3, side, side):
        raise ValueError(f"image must be (B, 3, {side}, {side}), got {None if image is None else tuple(image.shape)}")
    image = image.masked_fill(~batch.present[:, 0, None, None, None], 0.0)
    if hide is None:
        return image
    cells, pixels = hide.view(-1, 1, grid, grid), side // grid
    return image.masked_fill(cells.repeat_interleave(pixels, 2).repeat_interleave(pixels, 3), 0.5)


def cell_boxes(grid: int, device: torch.device) -> Tensor:
    """``(grid^2, 4)``: where each token of a grid looks, row by row."""
    step = torch.arange(grid, device=device, dtype=torch.float32) / grid
    top, left = (part.flatten() for part in torch.meshgrid(step, step, indexing="ij"))
    return torch.stack([left, top, left + 1 / grid, top + 1 / grid], dim=1)


def _convolutions(patch: int, dim: int, factory: dict[str, Any]) -> nn.Sequential:
    stages = patch.bit_length() - 1
    widths = [3, *(max(16, dim >> (stages - 1 - stage)) // 8 * 8 for stage in range(stages - 1)), dim]
    parts: list[nn.Module] = []
    for stage, (narrow, wide) in enumerate(pairwise(widths)):
        parts.append(nn.Conv2d(narrow, wide, 3, 2, 1, **factory))
        if stage < stages - 1:
            parts += [nn.GroupNorm(8 if wide % 8 == 0 else 1, wide, **factory), nn.GELU()]
    return nn.Sequential(*parts)


class RegionStem(nn.Module):
    """Region features and boxes to tokens: ``LayerNorm(W f) + LayerNorm(V box)``.

    Source: UNITER, https://arxiv.org/abs/1909.11740, section 3.1; boxes here have width, height and area beside the
    corners.

    Args:
        features: Width F.
        dim: Width D.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(self, features: int, dim: int, **factory: Any) -> None:
        super().__init__()
        self.project = nn.Linear(features, dim, **factory)
        self.place = nn.Linear(7, dim, **factory)
        self.norms = nn.ModuleList(nn.LayerNorm(dim, **factory) for _ in range(2))
        self.hidden = nn.Parameter(torch.empty(dim, **factory))
        nn.init.normal_(self.hidden, std=0.02)

    def forward(self, batch: TaskBatch, hide: Tensor | None = None) -> VisualTokens:
        """Tokens of ``batch.regions``; ``hide (B, R)`` bool: regions whose features are not to be seen.

        Raises:
            ValueError: If the batch has no regions.
        """
        if batch.regions is None or batch.region_boxes is None or batch.region_mask is None:
            raise ValueError("this model reads regions, got a batch without any")
        mask = batch.region_mask & batch.present[:, :1]
        features = batch.regions.masked_fill(~mask[..., None], 0.0)
        boxes = batch.region_boxes.masked_fill(~mask[..., None], 0.0)
        states = self.norms[0](self.project(features))
        if hide is not None:
            states = torch.where(hide[..., None], self.hidden, states)
        states = states + self.norms[1](self.place(seven(boxes)))
        return VisualTokens(states.masked_fill(~mask[..., None], 0.0), boxes, mask)


def seven(boxes: Tensor) -> Tensor:
    """``(..., 4)`` corners to corners, width, height and area ``(..., 7)``."""
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return torch.cat([boxes, torch.stack([width, height, width * height], dim=-1)], dim=-1)
