"""Contrastive losses between two sets of embeddings.

``momentum`` has the one with a teacher and a queue, ``distributed`` and ``chunked`` the forms for several processes and
for batches whose similarities do not fit into memory.

Shapes: B pairs, E embedding width. Masks: True = present. What an incomplete pair holds, NaN too, reaches neither the
value nor the gradient; half precision is computed in float32.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from polyfuse.functional import at_least_float32
from polyfuse.losses.matching import negatives
from polyfuse.losses.reduce import all_there, full_precision, reduce


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
    with full_precision(first):
        logits = scale * first @ second.t()
    same = torch.eye(count, dtype=torch.bool, device=first.device) if ids is None else ids[:, None] == ids[None, :]
    both = here[:, None] & here[None, :]
    target = (same & both).to(logits.dtype)
    target = target / target.sum(dim=1, keepdim=True).clamp(min=1)
    if label_smoothing:
        even = both.to(logits.dtype) / here.sum().clamp(min=1)
        target = target * (1 - label_smoothing) + label_smoothing * even
    lowest = torch.finfo(logits.dtype).min
    total = logits.new_zeros(())
    for matrix in (logits, logits.t()):
        log_share = matrix.masked_fill(~here[None, :], lowest).log_softmax(dim=1)
        # The target is symmetric: ids and presence are.
        total = total - (log_share.masked_fill(~both, 0.0) * target).sum()
    return total / (2 * here.sum().clamp(min=1))


def siglip_loss(
    first: Tensor,
    second: Tensor,
    scale: Tensor | float = 10.0,
    bias: Tensor | float = -10.0,
    *,
    ids: Tensor | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """Sigmoid loss: every pair of rows is asked by itself whether it belongs together; a scalar.

    ``-1/B sum_ij log sigmoid(z_ij (scale x_i y_j + bias))``, z = 1 where i and j belong together, else -1. Source:
    SigLIP, https://arxiv.org/abs/2303.15343, algorithm 1. Differs: rows with one id belong together, and incomplete
    pairs are neither asked nor counted.

    Args:
        first: ``(B, E)``; unit vectors give cosines.
        second: ``(B, E)``, row i belongs to row i of ``first``.
        scale: What inner products are multiplied by; starts at 10.
        bias: What is added; starts at -10, since most pairs do not belong together (-2.71 in big_vision's example).
        ids: ``(B,)`` integers, equal for pairs that say the same; None = all differ.
        present: ``(B,)`` bool, True = both sides are there; None = all.

    Returns:
        The sum over all pairs, divided by the rows present; 0 with a zero gradient where none is.

    Example:
        >>> siglip_loss(torch.eye(3), torch.eye(3), 10.0, -10.0)
        tensor(0.6932)
    """
    first, second, here = _present_rows(first, second, present)
    both = here[:, None] & here[None, :]
    together = both & ~negatives(len(first), first, ids, here)
    with full_precision(first):
        logits = scale * first @ second.t() + bias
    each = F.logsigmoid(torch.where(together, logits, -logits)).masked_fill(~both, 0.0)
    return -each.sum() / here.sum().clamp(min=1)


def cosine_pair_loss(
    first: Tensor,
    second: Tensor,
    match: Tensor,
    *,
    margin: float | None = None,
    present: Tensor | None = None,
    reduction: str = "sum",
) -> Tensor:
    """``sum(1 - cos)`` over pairs that belong together plus ``sum(cos)`` over those that do not.

    Without a margin a pair that does not belong together is rewarded for pointing away, down to -1: the loss is not
    bounded by 0, and its optimum is not orthogonality. ``margin`` counts ``max(0, cos - margin)`` instead, as
    ``torch.nn.CosineEmbeddingLoss`` does.

    Args:
        first: ``(N, E)``.
        second: ``(N, E)``, row i against row i.
        match: ``(N,)`` bool, True = the two belong together.
        margin: Cosine that costs nothing in a pair that does not belong together; None = no clamp.
        present: ``(N,)`` bool, True = both sides are there; None = all.
        reduction: "sum", "mean" over present pairs, or "none": one value per present pair.

    Returns:
        A scalar; 0 with a zero gradient where no pair is present.

    Raises:
        ValueError: If the margin is not in [-1, 1].

    Example:
        >>> away = torch.tensor([[-1.0, 0.0]])
        >>> cosine_pair_loss(torch.tensor([[2.0, 0.0]]), away, torch.tensor([False]))
        tensor(-1.)
    """
    if margin is not None and not -1 <= margin <= 1:
        raise ValueError(f"margin must be in [-1, 1] or None, got {margin}")
    here = all_there(present, (len(first),), first, "present")
    cosine = F.cosine_similarity(at_least_float32(first[here]), at_least_float32(second[here]), dim=-1)
    apart = cosine if margin is None else (cosine - margin).relu()
    return reduce(torch.where(match[here].bool(), 1.0 - cosine, apart), reduction)


def hard_hinge(
    first: Tensor,
    second: Tensor,
    *,
    margin: float = 0.2,
    ids: Tensor | None = None,
    present: Tensor | None = None,
    hardest: bool = True,
) -> Tensor:
    """Triplet hinge with the hardest negative of the batch, both ways, summed; a scalar.

    ``sum_i max_j [margin + s_ij - s_ii]+ + max_j [margin + s_ji - s_ii]+`` with s the inner products. Source: VSE++,
    https://arxiv.org/abs/1707.05612, equation 6. Differs: rows with one id are no negatives of each other, nor are
    incomplete pairs.

    Args:
        first: ``(B, E)``; unit vectors give cosines.
        second: ``(B, E)``, row i belongs to row i of ``first``.
        margin: By how much the right partner should lead.
        ids: ``(B,)`` integers, equal for pairs that say the same; None = all differ.
        present: ``(B,)`` bool, True = both sides are there; None = all.
        hardest: False = the sum over all negatives (equation 5).

    Returns:
        The sum over present rows, as in the paper; 0 with a zero gradient where there is no negative.

    Example:
        >>> hard_hinge(torch.eye(3), torch.eye(3))
        tensor(0.)
    """
    first, second, here = _present_rows(first, second, present)
    if not len(first):
        return (first.sum() + second.sum()) * 0.0
    with full_precision(first):
        scores = first @ second.t()
    allowed = negatives(len(first), first, ids, here)
    own = scores.diagonal()
    total = scores.new_zeros(())
    for matrix, mask in ((scores, allowed), (scores.t(), allowed.t())):
        cost = (margin + matrix - own[:, None]).relu().masked_fill(~mask, 0.0)
        total = total + (cost.amax(dim=1) if hardest else cost.sum(dim=1)).sum()
    return total


def _present_rows(first: Tensor, second: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Both sides in at least float32 with zeros in absent rows, and which rows are present."""
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"both sides must be (B, E), got {tuple(first.shape)} and {tuple(second.shape)}")
    here = all_there(present, (len(first),), first, "present")
    first, second = at_least_float32(first), at_least_float32(second)
    return first.masked_fill(~here[:, None], 0.0), second.masked_fill(~here[:, None], 0.0), here
