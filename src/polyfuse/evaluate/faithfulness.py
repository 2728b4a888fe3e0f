"""Is what a map marks what the model needs? The top k tokens are removed, and as a yardstick k random ones.

Removal as in https://arxiv.org/abs/1909.11218 and https://arxiv.org/abs/2012.15761 (perturbation tests): a faithful map
loses more than chance does. Not every map has to: attention weights need not explain (https://arxiv.org/abs/1902.10186).

Shapes: B rows, P tokens, F figures (such as: right, probability of the truth), R random draws. Masks: True = present.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from polyfuse.evaluate.intervals import Interval, mean_intervals


class Removal(NamedTuple):
    """Figures per row; NaN where a row has too few tokens.

    Attributes:
        full: ``(B, F)`` with every token.
        top: ``(B, F)`` without the k that weigh most.
        least: ``(B, F)`` without the k that weigh least.
        random: ``(B, R, F)`` without k random ones.
    """

    full: Tensor
    top: Tensor
    least: Tensor
    random: Tensor

    @classmethod
    def of(cls, parts: "list[Removal]") -> "Removal":
        """Several batches as one."""
        return cls(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


class Faithfulness(NamedTuple):
    """Means over rows with intervals, of one figure.

    Attributes:
        full: Mean with every token.
        top_drop: What removing the k that weigh most costs.
        random_drop: What removing k random ones costs.
        least_drop: What removing the k that weigh least costs.
        gain: ``top_drop - random_drop``, paired by row: above 0 the map marks what the model needs.
        rows: How many counted.
    """

    full: float
    top_drop: Interval
    random_drop: Interval
    least_drop: Interval
    gain: Interval
    rows: int


def chosen(weights: Tensor, mask: Tensor, k: int) -> Tensor:
    """``(B, P)`` bool: the k present tokens that weigh most; of equal ones the first.

    Rows with k or fewer present tokens have none: something must be left.

    Example:
        >>> chosen(torch.tensor([[0.2, 0.5, 0.9]]), torch.tensor([[True, True, False]]), 1)
        tensor([[False,  True, False]])
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if weights.shape != mask.shape:
        raise ValueError(f"weights and mask must both be (B, P), got {tuple(weights.shape)} and {tuple(mask.shape)}")
    k = min(k, weights.shape[1])
    order = weights.masked_fill(~mask, -math.inf).sort(dim=1, descending=True, stable=True).indices
    picked = torch.zeros_like(mask).scatter(1, order[:, :k], value=True)
    return picked & (mask.sum(dim=1, keepdim=True) > k)


def removal(
    score: Callable[[Tensor], Tensor], weights: Tensor, mask: Tensor, k: int, draws: Tensor | None = None
) -> Removal:
    """Score rows with tokens removed.

    Args:
        score: From the tokens that are left, ``(B, P)`` bool, to figures ``(B, F)``.
        weights: ``(B, P)``: what the map says; larger is more important.
        mask: ``(B, P)``: tokens that are there.
        k: How many are removed; rows with k or fewer tokens do not count.
        draws: ``(B, R, P)`` uniform numbers, whose k largest say what a random choice removes; None = none.

    Raises:
        ValueError: If k is below 1 or shapes differ.
    """
    counted = mask.sum(dim=1, keepdim=True) > k

    def without(values: Tensor) -> Tensor:
        return score(mask & ~chosen(values, mask, k)).masked_fill(~counted, math.nan)

    full = score(mask).masked_fill(~counted, math.nan)
    random = [] if draws is None else [without(draws[:, r]) for r in range(draws.shape[1])]
    shape = (*full.shape[:1], 0, *full.shape[1:])
    return Removal(
        full, without(weights), without(-weights), torch.stack(random, dim=1) if random else full.new_empty(shape)
    )


def faithfulness(found: Removal, figure: int = 0, *, groups: np.ndarray | None = None) -> Faithfulness:
    """Means and intervals of one figure.

    Args:
        found: Of ``removal``, with random draws.
        figure: Its column.
        groups: ``(B,)`` clusters of rows, such as their picture; None = each row its own.

    Raises:
        ValueError: If there were no random draws, or no row counts.

    Example:
        >>> one = torch.ones(4, 1)
        >>> result = faithfulness(Removal(one, 0 * one, one, torch.full((4, 2, 1), 0.5)))
        >>> result.top_drop.mean, result.gain.mean
        (1.0, 0.5)
    """
    if not found.random.shape[1]:
        raise ValueError("faithfulness needs random draws to compare with; give removal draws")
    full, top, least = (part[:, figure].double().numpy() for part in (found.full, found.top, found.least))
    random = found.random[..., figure].double().numpy().mean(axis=1)
    rows = int(np.isfinite(full).sum())
    if not rows:
        raise ValueError("no row has more tokens than are to be removed")
    drops = np.stack([full - top, full - random, full - least, random - top])
    top_drop, random_drop, least_drop, gain = mean_intervals(drops, groups)
    return Faithfulness(float(np.nanmean(full)), top_drop, random_drop, least_drop, gain, rows)
