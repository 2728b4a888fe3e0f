"""Reading the masks of an attention call: PyTorch's and ours brought to one sense, True = may be attended.

Shapes: B batch, T queries, M keys (modalities), H heads.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from polyfuse import functional as PF


def bool_or_additive(mask: Tensor, name: str) -> tuple[Tensor, Tensor | None]:
    """Read a PyTorch attention mask (bool: True = ignore; float: added, -inf = ignore) as (may attend, addend or None).

    Raises:
        ValueError: If the mask is neither bool nor floating point.
    """
    if mask.dtype == torch.bool:
        return ~mask, None
    if not mask.is_floating_point():
        raise ValueError(
            f"{name} must be bool (True = ignore) or floating point (added to the scores), got {mask.dtype}"
        )
    allowed = mask != float("-inf")
    return allowed, PF.at_least_float32(mask).masked_fill(~allowed, 0.0)


class Masks(NamedTuple):
    """The masks of one call, in one sense: True = may be attended.

    Attributes:
        present: ``(B, M)`` bool or None = all present.
        allowed: Broadcastable to ``(B, H, T, M)``, from ``attn_mask``, or None.
        addend: Added to the scores, broadcastable to ``(B, H, T, M)``, or None.
    """

    present: Tensor | None = None
    allowed: Tensor | None = None
    addend: Tensor | None = None

    def valid(self, kept: Tensor | None) -> Tensor | None:
        """``kept`` ``(B, M)`` and ``allowed`` together, broadcastable to ``(B, H, T, M)``; None = everything."""
        if kept is None:
            return self.allowed
        kept = kept[:, None, None, :]
        return kept if self.allowed is None else kept & self.allowed


def _is_exporting() -> bool:
    check = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return bool(check())


def is_shared(query: Tensor, value: Tensor | None, attn_mask: Tensor | None) -> bool:
    """Whether one query position serves all rows (batch 1, or expanded: stride 0) and values are the keys."""
    if value is not None or attn_mask is not None or query.shape[1] != 1:
        return False
    if query.shape[0] == 1:
        return True
    # A stride test would be baked into an exported graph, which may then be fed queries that differ by row.
    return not _is_exporting() and query.stride(0) == 0


def read_masks(
    key: Tensor, num_heads: int, key_padding_mask: Tensor | None, attn_mask: Tensor | None, present: Tensor | None
) -> Masks:
    """Check the masks of a call and bring them to one sense.

    Shape:
        - key: ``(B, M, D)``; key_padding_mask, present: ``(B, M)``; attn_mask: ``(T, M)`` or ``(B * num_heads, T, M)``.

    Raises:
        ValueError: If a mask does not fit, or both ``present`` and ``key_padding_mask`` are given.
    """
    batch, keys = key.shape[:2]
    addend: Tensor | None = None
    allowed: Tensor | None = None
    if present is not None:
        if key_padding_mask is not None:
            raise ValueError("give present (True = here) or key_padding_mask (True = ignore), not both")
        if present.dtype != torch.bool:
            raise ValueError(f"present must be bool (True = here), got {present.dtype}")
        if present.shape != (batch, keys):
            raise ValueError(f"present must have shape (B, M) = ({batch}, {keys}), got {tuple(present.shape)}")
    elif key_padding_mask is not None:
        if key_padding_mask.shape != (batch, keys):
            got = tuple(key_padding_mask.shape)
            raise ValueError(f"key_padding_mask must have shape (B, M) = ({batch}, {keys}), got {got}")
        present, addend = bool_or_additive(key_padding_mask, "key_padding_mask")
        addend = None if addend is None else addend[:, None, None, :]
    if attn_mask is not None:
        fits = attn_mask.ndim == 2 or (attn_mask.ndim == 3 and attn_mask.shape[0] == batch * num_heads)
        if not fits or attn_mask.shape[-1] != keys:
            got = tuple(attn_mask.shape)
            raise ValueError(f"attn_mask must have shape (T, M) or (B * num_heads, T, M) with M = {keys}, got {got}")
        if attn_mask.ndim == 3:
            attn_mask = attn_mask.unflatten(0, (batch, num_heads))
        allowed, extra = bool_or_additive(attn_mask, "attn_mask")
        addend = extra if addend is None else addend if extra is None else addend + extra
    return Masks(present, allowed, addend)
