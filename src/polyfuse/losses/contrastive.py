"""Contrastive losses between two sets of embeddings.

Shapes: B pairs, E embedding width.
"""

import torch
from torch import Tensor

from polyfuse.functional import at_least_float32


def info_nce(
    first: Tensor,
    second: Tensor,
    scale: Tensor | float,
    *,
    ids: Tensor | None = None,
    present: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Symmetric InfoNCE: each row must find its partner among all, in both directions; a scalar.

    Source: CLIP, https://arxiv.org/abs/2103.00020, figure 3. Differs: rows with one id are each other's partners too
    (their share of the target is equal), and incomplete pairs neither count nor serve as negatives.

    Args:
        first: ``(B, E)``; unit vectors give cosines.
        second: ``(B, E)``, row i belongs to row i of ``first``.
        scale: What inner products are multiplied by (1 / temperature).
        ids: ``(B,)`` integers, equal for pairs that say the same; None = all differ.
        present: ``(B,)`` bool, True = both sides are there; None = all.
        label_smoothing: Share of the target that is spread evenly over all present columns.

    Returns:
        The mean over present rows and both directions; 0 with a zero gradient where no row is present.

    Example:
        >>> info_nce(torch.eye(3), torch.eye(3), 100.0)
        tensor(0.)
    """
    first, second = at_least_float32(first), at_least_float32(second)
    count = first.shape[0]
    here = torch.ones(count, dtype=torch.bool, device=first.device) if present is None else present
    first = first.masked_fill(~here[:, None], 0.0)
    second = second.masked_fill(~here[:, None], 0.0)
    logits = scale * first @ second.t()
    same = torch.eye(count, dtype=torch.bool, device=first.device) if ids is None else ids[:, None] == ids[None, :]
    both = here[:, None] & here[None, :]
    target = (same & both).to(logits.dtype)
    target = target / target.sum(dim=1, keepdim=True).clamp(min=1)
    if label_smoothing:
        target = target * (1 - label_smoothing) + label_smoothing * both / both.sum(dim=1, keepdim=True).clamp(min=1)
    lowest = torch.finfo(logits.dtype).min
    total = logits.new_zeros(())
    for matrix in (logits, logits.t()):
        log_share = matrix.masked_fill(~here[None, :], lowest).log_softmax(dim=1)
        # The target is symmetric: ids and presence are.
        total = total - (log_share.masked_fill(~both, 0.0) * target).sum()
    return total / (2 * here.sum().clamp(min=1))
