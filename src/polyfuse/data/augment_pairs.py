"""Changing pictures, texts and features at random without changing what is true of them.

Every draw is keyed by the row (``polyfuse.data.keyed``): a row is changed the same way whatever batch it stands in, and
differently in every epoch. Rows never mix, except in ``mix_features``, which says with whom.

Boxes are ``(x0, y0, x1, y1)`` as shares of width and height, y down. Masks: True = present.
Shapes: B rows, S side, R regions, T tokens, F features, P rows of a pool.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from polyfuse.data.keyed import normal, uniform

_SIDE_WORDS = re.compile(r"\b(?:left|right|leftmost|rightmost|(?:anti|counter)?-?clockwise|east|west)\b", re.IGNORECASE)
_GREY = (0.299, 0.587, 0.114)  # BT.601's weights of red, green and blue


def names_a_side(texts: Sequence[str]) -> Tensor:
    """``(B,)`` bool: the text speaks of left or right, so its picture must not be mirrored.

    Example:
        >>> names_a_side(["a cube left of a ball", "a bright cube"]).tolist()
        [True, False]
    """
    return torch.tensor([_SIDE_WORDS.search(text) is not None for text in texts], dtype=torch.bool)


def crop_windows(
    keys: Tensor,
    seed: int,
    epoch: int = 0,
    *,
    area: tuple[float, float] = (0.5, 1.0),
    ratio: tuple[float, float] = (0.75, 4 / 3),
    boxes: Tensor | None = None,
    keep: float = 0.5,
) -> Tensor:
    """A random window of each picture, ``(B, 4)`` as shares.

    Area and log aspect ratio are uniform, then the place; sides longer than the picture are cut to it. Where less than
    ``keep`` of the row's box would be left inside, the window is the whole picture: what is asked for must be there.

    Source: https://arxiv.org/abs/1409.4842, section 6. Differs: one draw, no retries.

    Args:
        keys: ``(B,)`` int64.
        seed: Of the draws.
        epoch: Another epoch gives other windows.
        area: Smallest and largest share of the area.
        ratio: Smallest and largest width over height.
        boxes: ``(B, 4)`` that must stay in sight; a row of NaN has none.
        keep: Share of the box's area.
    """
    draw = uniform(seed, "augment/crop", epoch, keys, 4)
    size = area[0] + (area[1] - area[0]) * draw[:, 0]
    low, high = torch.tensor(ratio).log()
    aspect = (low + (high - low) * draw[:, 1].cpu()).exp().to(size.device)
    width, height = (size * aspect).sqrt().clamp(max=1.0), (size / aspect).sqrt().clamp(max=1.0)
    x0, y0 = draw[:, 2] * (1.0 - width), draw[:, 3] * (1.0 - height)
    windows = torch.stack([x0, y0, x0 + width, y0 + height], dim=1)
    if boxes is None:
        return windows
    sides = torch.minimum(boxes[:, 2:], windows[:, 2:]) - torch.maximum(boxes[:, :2], windows[:, :2])
    seen, whole = sides.clamp(min=0).prod(dim=1), (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    lost = seen < keep * whole
    return torch.where(lost[:, None], torch.tensor([0.0, 0.0, 1.0, 1.0], device=windows.device), windows)


def crop_images(images: Tensor, windows: Tensor) -> Tensor:
    """Each picture's window, stretched to the picture's size (bilinear): ``(B, C, S, S)``."""
    size = windows[:, 2:] - windows[:, :2]
    centre = windows[:, 2:] + windows[:, :2] - 1.0  # in the -1 to 1 of grid_sample
    turn = images.new_zeros(len(images), 2, 3)
    turn[:, 0, 0], turn[:, 1, 1], turn[:, :, 2] = size[:, 0], size[:, 1], centre
    grid = F.affine_grid(turn, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def crop_boxes(boxes: Tensor, windows: Tensor) -> Tensor:
    """Boxes ``(B, 4)`` or ``(B, R, 4)`` as shares of the window, cut at its edges; outside it they are empty.

    Example:
        >>> crop_boxes(torch.tensor([[0.25, 0.0, 0.5, 1.0]]), torch.tensor([[0.0, 0.0, 0.5, 0.5]]))
        tensor([[0.5000, 0.0000, 1.0000, 1.0000]])
    """
    frame = windows if boxes.ndim == 2 else windows[:, None]
    start, size = frame[..., :2], frame[..., 2:] - frame[..., :2]
    return torch.cat([(boxes[..., :2] - start) / size, (boxes[..., 2:] - start) / size], dim=-1).clamp(0.0, 1.0)


def flip_images(images: Tensor, flipped: Tensor) -> Tensor:
    """The rows of ``flipped (B,)`` mirrored left to right."""
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)


def flip_boxes(boxes: Tensor, flipped: Tensor) -> Tensor:
    """Boxes ``(B, 4)`` or ``(B, R, 4)`` of the same rows mirrored."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    mirrored = torch.stack([1.0 - x1, y0, 1.0 - x0, y1], dim=-1)
    return torch.where(flipped.view(-1, *[1] * (boxes.ndim - 1)), mirrored, boxes)


def jitter_colours(
    images: Tensor, keys: Tensor, seed: int, epoch: int = 0, *, strength: tuple[float, float, float] = (0.2, 0.2, 0.2)
) -> Tensor:
    """Brightness, then contrast, then saturation times a factor uniform in 1 ± strength; cut to [0, 1].

    Hue is left alone: it would make a lie of every word of colour.
    """
    factor = 1.0 + torch.tensor(strength, device=keys.device) * (
        2.0 * uniform(seed, "augment/colour", epoch, keys, 3) - 1.0
    )
    bright, contrast, colour = factor.to(images.dtype)[..., None, None, None].unbind(1)
    weights = images.new_tensor(_GREY).view(1, 3, 1, 1)
    images = (images * bright).clamp(0.0, 1.0)
    mean = (images * weights).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    images = (mean + contrast * (images - mean)).clamp(0.0, 1.0)
    grey = (images * weights).sum(dim=1, keepdim=True)
    return (grey + colour * (images - grey)).clamp(0.0, 1.0)


def erase(
    images: Tensor,
    keys: Tensor,
    seed: int,
    epoch: int = 0,
    *,
    probability: float = 0.25,
    area: tuple[float, float] = (0.02, 0.2),
    spare: Tensor | None = None,
) -> Tensor:
    """Some pictures lose a square window, which takes the picture's mean colour.

    Source: https://arxiv.org/abs/1708.04896, algorithm 1. Differs: square, the mean instead of noise.

    Args:
        images: ``(B, 3, S, S)``.
        keys: ``(B,)``.
        seed: Of the draws.
        epoch: Another epoch gives other windows.
        probability: Share of the pictures.
        area: Smallest and largest share of the area.
        spare: ``(B, 4)`` boxes that are never erased.
    """
    draw = uniform(seed, "augment/erase", epoch, keys, 4)
    side = (area[0] + (area[1] - area[0]) * draw[:, 1]).sqrt()
    start = draw[:, 2:] * (1.0 - side[:, None])
    window = torch.cat([start, start + side[:, None]], dim=1)
    gone = _inside(window, images.shape[-2], images.shape[-1]) & (draw[:, 0] < probability)[:, None, None]
    if spare is not None:
        gone &= ~_inside(spare, images.shape[-2], images.shape[-1])
    return torch.where(gone[:, None], images.mean(dim=(2, 3), keepdim=True), images)


def _inside(windows: Tensor, height: int, width: int) -> Tensor:
    """``(B, H, W)`` bool: the pixel's centre lies in the row's window."""
    y = (torch.arange(height, device=windows.device) + 0.5) / height
    x = (torch.arange(width, device=windows.device) + 0.5) / width
    x0, y0, x1, y1 = (edge[:, None] for edge in windows.unbind(1))
    return ((y >= y0) & (y <= y1))[:, :, None] & ((x >= x0) & (x <= x1))[:, None, :]


@dataclass(frozen=True)
class ImageAugmentation:
    """Crop, mirror, colours, erasing, in this order; a part whose number is 0 (or None) is left out.

    Attributes:
        crop: Smallest share of the area of a window; None = no crop.
        flip: Probability of a mirrored picture, among the rows that allow it.
        colour: Strengths of brightness, contrast and saturation.
        erase: Probability of an erased window.

    Example:
        >>> images, keys = torch.rand(2, 3, 8, 8), torch.arange(2)
        >>> changed, boxes = ImageAugmentation(flip=0.5)(images, keys, seed=0, boxes=torch.rand(2, 4).sort().values)
        >>> changed.shape, boxes.shape
        (torch.Size([2, 3, 8, 8]), torch.Size([2, 4]))
    """

    crop: float | None = 0.5
    flip: float = 0.0
    colour: tuple[float, float, float] = (0.2, 0.2, 0.2)
    erase: float = 0.25

    def __call__(
        self,
        images: Tensor,
        keys: Tensor,
        *,
        seed: int,
        epoch: int = 0,
        boxes: Tensor | None = None,
        may_flip: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Changed pictures and where the boxes are in them.

        Args:
            images: ``(B, 3, S, S)`` in [0, 1].
            keys: ``(B,)`` int64.
            seed: Of the draws.
            epoch: Another epoch gives other draws.
            boxes: ``(B, 4)``: kept in sight by the crop, never erased; or ``(B, R, 4)``: they only move along.
            may_flip: ``(B,)`` bool, ``~names_a_side(texts)``; None = all.
        """
        single = boxes if boxes is not None and boxes.ndim == 2 else None
        if self.crop is not None:
            windows = crop_windows(keys, seed, epoch, area=(self.crop, 1.0), boxes=single)
            images = crop_images(images, windows.to(images.dtype))
            boxes = None if boxes is None else crop_boxes(boxes, windows)
        if self.flip:
            flipped = uniform(seed, "augment/flip", epoch, keys, 1)[:, 0] < self.flip
            flipped = flipped if may_flip is None else flipped & may_flip
            images = flip_images(images, flipped)
            boxes = None if boxes is None else flip_boxes(boxes, flipped)
        if any(self.colour):
            images = jitter_colours(images, keys, seed, epoch, strength=self.colour)
        if self.erase:
            spare = boxes if boxes is not None and boxes.ndim == 2 else None
            images = erase(images, keys, seed, epoch, probability=self.erase, spare=spare)
        return images, boxes


def drop_tokens(
    text: Tensor,
    mask: Tensor,
    keys: Tensor,
    seed: int,
    epoch: int = 0,
    *,
    share: float = 0.1,
    special_ids: Collection[int] = (),
    unknown_id: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Leave words out (or make them unknown), never special tokens, never the last word of a row.

    What remains closes up, so the result has as many columns as before and more padding (0).

    Args:
        text: ``(B, T)`` ids.
        mask: ``(B, T)`` bool.
        keys: ``(B,)``.
        seed: Of the draws.
        epoch: Another epoch gives other draws.
        share: Probability of each word.
        special_ids: Ids that stay: begin, end, mask, separators.
        unknown_id: Stands in the place of a dropped word; None = the word goes.

    Returns:
        Text and mask.

    Example:
        >>> text, mask = torch.tensor([[1, 7, 8, 9, 2]]), torch.ones(1, 5, dtype=torch.bool)
        >>> drop_tokens(text, mask, torch.tensor([3]), seed=0, share=0.5, special_ids={1, 2})[0]
        tensor([[1, 7, 9, 2, 0]])
    """
    special = torch.isin(text, torch.tensor(sorted(special_ids), dtype=text.dtype, device=text.device))
    words = mask & ~special
    draw = uniform(seed, "augment/tokens", epoch, keys, text.shape[1])
    best = draw.masked_fill(~words, -1.0)
    gone = words & (draw < share) & (best < best.amax(dim=1, keepdim=True))
    if unknown_id is not None:
        return text.masked_fill(gone, unknown_id), mask
    left = mask & ~gone
    order = (~left).to(torch.uint8).argsort(dim=1, stable=True)
    left = left.gather(1, order)
    return text.gather(1, order).masked_fill(~left, 0), left


def noisy_features(features: Tensor, keys: Tensor, seed: int, epoch: int = 0, *, spread: float = 0.1) -> Tensor:
    """Features ``(B, F)`` or ``(B, R, F)`` plus ``spread`` times a standard normal draw of their own."""
    noise = normal(seed, "augment/noise", epoch, keys, features.shape[1:].numel()).view(features.shape)
    return features + spread * noise.to(features.dtype)


def drop_features(features: Tensor, keys: Tensor, seed: int, epoch: int = 0, *, share: float = 0.1) -> Tensor:
    """Features ``(B, F)`` or ``(B, R, F)``, each 0 with probability ``share``, the others divided by 1 - share.

    Raises:
        ValueError: If ``share`` is not in [0, 1).
    """
    if not 0.0 <= share < 1.0:
        raise ValueError(f"share must be in [0, 1), got {share}")
    gone = uniform(seed, "augment/features", epoch, keys, features.shape[1:].numel()).view(features.shape) < share
    return (features / (1.0 - share)).masked_fill(gone, 0.0)


def mix_features(
    features: Tensor,
    target: Tensor,
    keys: Tensor,
    seed: int,
    epoch: int = 0,
    *,
    pool: Tensor,
    pool_target: Tensor,
    most: float = 0.5,
    present: Tensor | None = None,
    pool_present: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Each row and its target mixed with those of a row drawn from a pool: ``(1 - w) x + w x'``, w ~ U(0, most).

    The pool is given whole (the training features, say) so that a row's partner does not depend on its batch.

    Source: mixup, https://arxiv.org/abs/1710.09412, equation 1. Differs: w is uniform, and at most ``most``.

    Args:
        features: ``(B, ...)``.
        target: ``(B, A)`` soft targets, or ``(B,)`` values.
        keys: ``(B,)``.
        seed: Of the draws.
        epoch: Another epoch gives other partners.
        pool: ``(P, ...)``.
        pool_target: ``(P, A)`` or ``(P,)``.
        most: Largest weight of the partner.
        present: ``(B,)`` bool; absent rows stay as they are.
        pool_present: ``(P,)`` bool; absent rows are nobody's partner.

    Raises:
        ValueError: If no row of the pool is present.
    """
    rows = torch.arange(len(pool), device=pool.device) if pool_present is None else pool_present.nonzero()[:, 0]
    if not len(rows):
        raise ValueError("the pool has no row that is present; leave mixing out")
    draw = uniform(seed, "augment/mix", epoch, keys, 2)
    partner = rows[(draw[:, 0].double() * len(rows)).long()]
    mixed = []
    for own, other in ((features, pool[partner]), (target, pool_target[partner])):
        share = (most * draw[:, 1]).to(own.dtype).view(-1, *[1] * (own.ndim - 1))
        both = (1.0 - share) * own + share * other
        mixed.append(both if present is None else torch.where(present.view(share.shape), both, own))
    return mixed[0], mixed[1]
