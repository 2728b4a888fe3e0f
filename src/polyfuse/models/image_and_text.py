"""What models of an image and a text do first: count rows, see what is present, blank what is not.

Shapes: B batch, L text tokens. Masks: True = present.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def batch_of(
    images: Tensor | None, image_features: Tensor | Sequence[Tensor] | None, input_ids: Tensor | None
) -> tuple[int, torch.device]:
    """Rows and device of what is given.

    Raises:
        ValueError: If nothing is given, or the numbers of rows differ.
    """
    features = (
        () if image_features is None else (image_features,) if isinstance(image_features, Tensor) else image_features
    )
    given = [part for part in (images, *features, input_ids) if part is not None]
    if not given:
        raise ValueError("give images (or image_features) or input_ids, got neither")
    rows = {part.shape[0] for part in given}
    if len(rows) > 1:
        raise ValueError(f"images and input_ids must have the same number of rows, got {sorted(rows)}")
    return given[0].shape[0], given[0].device


def presence(
    present: Tensor | None, size: int, device: torch.device, no_image: bool, input_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``(B,)`` bool of image and of text: present where ``present`` says so and it is given.

    Raises:
        ValueError: If ``present`` is not ``(B, 2)``.
    """
    if present is None:
        present = torch.ones(size, 2, dtype=torch.bool, device=device)
    if present.shape != (size, 2):
        raise ValueError(f"present must have shape (B, M) = ({size}, 2), got {tuple(present.shape)}")
    nowhere = torch.zeros(size, dtype=torch.bool, device=device)
    return nowhere if no_image else present[:, 0], nowhere if input_ids is None else present[:, 1]


def zeroed(value: Any, present_B: Tensor) -> Any:
    """A tensor (or a sequence of them, or None) with zeros in the rows where it is absent, whatever stood there."""
    if value is None:
        return None
    if not isinstance(value, Tensor):
        return tuple(zeroed(part, present_B) for part in value)
    return value.masked_fill(~present_B.view(-1, *(1,) * (value.ndim - 1)), 0.0)


def text_after_cls(input_ids: Tensor, text_mask: Tensor | None, has_text: Tensor) -> tuple[Tensor, Tensor]:
    """Ids behind the text's [CLS], 0 where masked or absent, and which of them are present: ``(B, L - 1)`` each.

    Raises:
        ValueError: If the mask has another shape.
    """
    if text_mask is None:
        text_mask = torch.ones_like(input_ids, dtype=torch.bool)
    elif text_mask.shape != input_ids.shape:
        raise ValueError(
            f"text_mask must have the shape of input_ids {tuple(input_ids.shape)}, got {tuple(text_mask.shape)}"
        )
    seen_BL = text_mask[:, 1:].bool() & has_text[:, None]
    return input_ids[:, 1:].masked_fill(~seen_BL, 0), seen_BL
