"""Does this text belong to this picture: pairs to ask about (random and hard negatives), and the loss of the answers.

Shapes: B rows, N pairs. Masks: True = present. Row i of one side belongs to row i of the other.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.functional import at_least_float32, masked_softmax
from polyfuse.losses.reduce import all_there, reduce, uniform_draws


class MatchingPairs(NamedTuple):
    """Pairs to score, as row numbers of the batch.

    Attributes:
        first: ``(N,)`` int64, the row of the first side (``first[pairs.first]`` gathers it).
        second: ``(N,)`` int64, the row of the second side.
        label: ``(N,)`` int64, 1 = they belong together.
        valid: ``(N,)`` bool, False = not to be counted: a side is absent, or there was no negative to be had.
    """

    first: Tensor
    second: Tensor
    label: Tensor
    valid: Tensor


def negatives(count: int, like: Tensor, ids: Tensor | None = None, present: Tensor | None = None) -> Tensor:
    """``(B, B)`` bool: which rows do not belong together, neither being absent.

    Args:
        count: Number B of rows.
        like: A tensor on the device wanted.
        ids: ``(B,)``, equal for rows that say the same; None = all differ.
        present: ``(B,)`` bool, True = both sides are there; None = all.

    Example:
        >>> negatives(3, torch.zeros(3), ids=torch.tensor([4, 4, 5]))
        tensor([[False, False,  True],
                [False, False,  True],
                [ True,  True, False]])
    """
    here = all_there(present, (count,), like, "present")
    if ids is None:
        ids = torch.arange(count, device=like.device)
    elif ids.shape != (count,):
        raise ValueError(f"ids must have shape {(count,)}, got {tuple(ids.shape)}")
    return (ids[:, None] != ids[None, :]) & here[:, None] & here[None, :]


def sample(weights: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """One column per row, in proportion to its weight, by inverting the cumulative sum.

    Shape:
        weights ``(B, N)`` >= 0; draws ``(B,)`` in [0, 1); returns column ``(B,)`` int64 and found ``(B,)`` bool, False
        (with column 0) in a row of zeros. A column of weight 0 is never taken.

    Example:
        >>> sample(torch.tensor([[0.0, 1.0, 3.0], [0.0, 0.0, 0.0]]), torch.tensor([0.3, 0.3]))
        (tensor([2, 0]), tensor([ True, False]))
    """
    weights = weights.double()
    mass = weights.cumsum(dim=1)
    found = mass[:, -1] > 0
    column = (mass <= (draws.double() * mass[:, -1])[:, None]).sum(dim=1)
    # A draw of almost 1 may be rounded to the whole mass: the last column that weighs anything.
    last = ((weights > 0) * torch.arange(weights.shape[1], device=weights.device)).amax(dim=1)
    return torch.minimum(column, last).masked_fill(~found, 0), found


def random_pairs(
    count: int,
    draws: Tensor | torch.Generator,
    like: Tensor,
    *,
    ids: Tensor | None = None,
    present: Tensor | None = None,
    rate: float = 0.5,
) -> MatchingPairs:
    """One pair per row: its own partner, or with probability ``rate`` another row's, all being equally likely.

    Source: UNITER, https://arxiv.org/abs/1909.11740 (half of the pairs have another picture, drawn at random). Differs:
    drawn within the batch, never from a row that says the same; a row without any such partner keeps its own.

    Args:
        count: Number B of rows.
        draws: ``(B, 2)`` in [0, 1), or a generator: whether, and which.
        like: A tensor on the device wanted.
        ids: ``(B,)``, equal for rows that say the same; None = all differ.
        present: ``(B,)`` bool, True = both sides are there; None = all.
        rate: Probability of a negative.

    Returns:
        N = B pairs: ``second`` is the row's own number, ``first`` its own or another.

    Example:
        >>> random_pairs(3, torch.tensor([[0.9, 0.0], [0.1, 0.0], [0.1, 0.9]]), torch.zeros(3)).first
        tensor([0, 0, 1])
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be in [0, 1], got {rate}")
    draws = uniform_draws(draws, (count, 2), like)
    other, found = sample(negatives(count, like, ids, present).float(), draws[:, 1])
    own = torch.arange(count, device=like.device)
    swapped = (draws[:, 0] < rate) & found
    here = all_there(present, (count,), like, "present")
    return MatchingPairs(torch.where(swapped, other, own), own, (~swapped).long(), here)


def hard_pairs(
    similarity: Tensor,
    draws: Tensor | torch.Generator,
    *,
    ids: Tensor | None = None,
    present: Tensor | None = None,
) -> MatchingPairs:
    """Three pairs per row: its own, and two mistakes that are easily made, one partner for each side.

    A partner j of row i is drawn in proportion to softmax(similarity)_ij, without the row itself, those that say the
    same, and absent ones. Source: ALBEF, https://arxiv.org/abs/2107.07651, section 3.2. Differs: the softmax is taken
    over what may be drawn: the same distribution, but it cannot vanish where the right partner has all the mass.

    Args:
        similarity: ``(B, B)`` logits (cosines times scale), rows first, columns second side; no gradient reaches it.
        draws: ``(B, 2)`` in [0, 1), or a generator: for a second to each first, and a first to each second.
        ids: ``(B,)``, equal for rows that say the same; None = all differ.
        present: ``(B,)`` bool, True = both sides are there; None = all.

    Returns:
        N = 3B pairs: all own ones, each first with another second, each second with another first. Where a row has no
        negative its own pair stands, not valid.

    Example:
        >>> pairs = hard_pairs(torch.tensor([[9.0, 5.0, -5.0]] * 3), torch.zeros(3, 2))
        >>> pairs.label
        tensor([1, 1, 1, 0, 0, 0, 0, 0, 0])
    """
    count = len(similarity)
    if similarity.shape != (count, count):
        raise ValueError(f"similarity must be (B, B), got {tuple(similarity.shape)}")
    draws = uniform_draws(draws, (count, 2), similarity)
    allowed = negatives(count, similarity, ids, present)
    scores = similarity.detach()
    second, found_second = sample(masked_softmax(scores, allowed), draws[:, 0])
    first, found_first = sample(masked_softmax(scores.t(), allowed.t()), draws[:, 1])
    own = torch.arange(count, device=similarity.device)
    here = all_there(present, (count,), similarity, "present")
    label = torch.cat([torch.ones_like(own), torch.zeros_like(own), torch.zeros_like(own)])
    return MatchingPairs(
        torch.cat([own, own, torch.where(found_first, first, own)]),
        torch.cat([own, torch.where(found_second, second, own), own]),
        label,
        torch.cat([here, found_second, found_first]),
    )


def matching_loss(logits: Tensor, label: Tensor, valid: Tensor | None = None, *, reduction: str = "mean") -> Tensor:
    """Two-way cross-entropy: class 1 = the two belong together (ITM).

    Source: UNITER, https://arxiv.org/abs/1909.11740, section 3.2; ALBEF, https://arxiv.org/abs/2107.07651, equation 4.

    Args:
        logits: ``(N, 2)``.
        label: ``(N,)`` int64, 0 or 1.
        valid: ``(N,)`` bool, the pairs that count; None = all. What others hold, NaN too, leaves no trace.
        reduction: "mean" over valid pairs, "sum", or "none": one value per valid pair.

    Returns:
        A scalar; 0 with a zero gradient where no pair is valid.

    Raises:
        ValueError: If a shape is wrong.

    Example:
        >>> matching_loss(torch.zeros(3, 2), torch.tensor([1, 0, 0]))
        tensor(0.6931)
    """
    if logits.ndim != 2 or logits.shape[1] != 2:
        raise ValueError(f"logits must be (N, 2), got {tuple(logits.shape)}")
    valid = all_there(valid, (len(logits),), logits, "valid")
    if label.shape != (len(logits),):
        raise ValueError(f"label must have shape {(len(logits),)}, got {tuple(label.shape)}")
    kept = logits[valid]
    return reduce(F.cross_entropy(at_least_float32(kept), label[valid], reduction="none"), reduction)


class MatchingLoss(nn.Module):
    """``matching_loss`` as a module."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        reduce(torch.zeros(0), reduction)
        self.reduction = reduction

    def forward(self, logits: Tensor, label: Tensor, valid: Tensor | None = None) -> Tensor:
        """Cross-entropy of ``(N, 2)`` logits at ``(N,)`` labels, over the valid pairs."""
        return matching_loss(logits, label, valid, reduction=self.reduction)
