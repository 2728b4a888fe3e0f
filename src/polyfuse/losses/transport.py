"""Alignment of words and regions by optimal transport.

Shapes: B rows, T words, R regions, D width. Masks: True = present.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.functional import at_least_float32
from polyfuse.losses.reduce import all_there, check_mask, full_precision

EPS = 1e-5  # of the norms in the cosine, as in UNITER's code


def cosine_cost(words: Tensor, regions: Tensor) -> Tensor:
    """``1 - cos`` between all words and regions: ``(B, T, D)`` and ``(B, R, D)`` to ``(B, T, R)``, at least float32."""
    words, regions = at_least_float32(words), at_least_float32(regions)
    words, regions = F.normalize(words, dim=-1, eps=EPS), F.normalize(regions, dim=-1, eps=EPS)
    with full_precision(words):
        return 1.0 - words @ regions.transpose(1, 2)


@torch.no_grad()
def transport_plan(
    cost: Tensor,
    word_mask: Tensor | None = None,
    region_mask: Tensor | None = None,
    *,
    beta: float = 0.5,
    iterations: int = 50,
    inner: int = 1,
) -> Tensor:
    """How much of each word goes to each region, at the least cost: IPOT, inexact proximal steps; no gradient.

    Words share a mass of 1 evenly, regions too. Source: IPOT, https://arxiv.org/abs/1802.04307, algorithm 1; UNITER,
    https://arxiv.org/abs/1909.11740, appendix, with the constants of its code.

    Args:
        cost: ``(B, T, R)``; what stands at absent words and regions is not read.
        word_mask: ``(B, T)`` bool; None = all.
        region_mask: ``(B, R)`` bool; None = all.
        beta: Weight of the proximal term: the smaller, the sharper the plan and the fewer iterations.
        iterations: Proximal steps.
        inner: Sinkhorn steps in each.

    Returns:
        ``(B, T, R)``, at least float32: a word's shares sum to 1 / words present, a region's nearly to 1 / regions
        present; zero where either is absent, and where a side has nothing.

    Example:
        >>> transport_plan(1.0 - torch.eye(2)[None])[0].round(decimals=3)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """
    batch, n, m = cost.shape
    words = all_there(word_mask, (batch, n), cost, "word_mask")
    regions = all_there(region_mask, (batch, m), cost, "region_mask")
    both = words[:, :, None] & regions[:, None, :]
    cost = at_least_float32(cost).masked_fill(~both, 0.0)
    kernel = (-cost / beta).exp().masked_fill(~both, 0.0)
    share_n = 1.0 / words.sum(dim=1).clamp(min=1).to(cost.dtype)[:, None]
    share_m = 1.0 / regions.sum(dim=1).clamp(min=1).to(cost.dtype)[:, None]
    plan = both.to(cost.dtype)
    sigma = share_n * words
    for _ in range(iterations):
        q = kernel * plan
        for _ in range(inner):
            delta = _over(share_m, (q * sigma[:, :, None]).sum(dim=1), regions)
            sigma = _over(share_n, (q * delta[:, None, :]).sum(dim=2), words)
        plan = sigma[:, :, None] * q * delta[:, None, :]
    return plan


def _over(share: Tensor, mass: Tensor, here: Tensor) -> Tensor:
    """``share / mass`` where something is, else 0: the mass of an absent word or of an empty row is 0."""
    safe = here & (mass > 0)
    return (share / torch.where(safe, mass, 1.0)) * safe


def word_region_distance(
    words: Tensor,
    regions: Tensor,
    word_mask: Tensor | None = None,
    region_mask: Tensor | None = None,
    *,
    beta: float = 0.5,
    iterations: int = 50,
    inner: int = 1,
) -> Tensor:
    """What it costs to carry a row's words to its regions: ``<C, T>``, the plan T being a constant.

    Shape:
        words ``(B, T, D)``; regions ``(B, R, D)``; masks ``(B, T)`` and ``(B, R)`` bool; returns ``(B,)`` in [0, 2], 0
        where a side has nothing.
    """
    there = ((words, word_mask, "word_mask"), (regions, region_mask, "region_mask"))
    for tokens, mask, name in there:
        if mask is not None:
            check_mask(mask, tuple(tokens.shape[:2]), name)
    # Before the norms: 0 * nan is nan in their gradient.
    words, regions = (t if mask is None else t.masked_fill(~mask[..., None], 0.0) for t, mask, _ in there)
    cost = cosine_cost(words, regions)
    plan = transport_plan(cost, word_mask, region_mask, beta=beta, iterations=iterations, inner=inner)
    return (cost * plan).sum(dim=(1, 2))


def word_region_alignment(
    words: Tensor,
    regions: Tensor,
    word_mask: Tensor | None = None,
    region_mask: Tensor | None = None,
    *,
    match: Tensor | None = None,
    present: Tensor | None = None,
    beta: float = 0.5,
    iterations: int = 50,
    inner: int = 1,
) -> Tensor:
    """Optimal-transport distance of pairs that belong together, less that of pairs that do not; a scalar (WRA).

    Source: UNITER, https://arxiv.org/abs/1909.11740, section 3.2, and its code: the distance is added for positives,
    subtracted for negatives, divided by the number of pairs, computed in float32 and weighed 0.1 beside ITM.

    Args:
        words: ``(B, T, D)``, states of the model.
        regions: ``(B, R, D)``.
        word_mask: ``(B, T)`` bool; None = all.
        region_mask: ``(B, R)`` bool; None = all.
        match: ``(B,)`` 1 or True = the two belong together; None = all do.
        present: ``(B,)`` bool, True = both sides are there; None = all. Rows without a word or a region never count.
        beta: As in ``transport_plan``, the rest too.
        iterations: Proximal steps.
        inner: Sinkhorn steps in each.

    Returns:
        The mean over the rows that count; 0 with a zero gradient where none does.

    Example:
        >>> word_region_alignment(torch.eye(3)[None], torch.eye(3)[None]).abs() < 1e-4
        tensor(True)
    """
    batch = len(words)
    here = all_there(present, (batch,), words, "present")
    word_mask = all_there(word_mask, tuple(words.shape[:2]), words, "word_mask") & here[:, None]
    region_mask = all_there(region_mask, tuple(regions.shape[:2]), regions, "region_mask") & here[:, None]
    distance = word_region_distance(
        words, regions, word_mask, region_mask, beta=beta, iterations=iterations, inner=inner
    )
    if match is not None:
        distance = torch.where(match.bool(), distance, -distance)
    return distance.sum() / (word_mask.any(dim=1) & region_mask.any(dim=1)).sum().clamp(min=1)


class WordRegionAlignment(nn.Module):
    """``word_region_alignment`` as a module.

    Args:
        beta: Weight of the proximal term.
        iterations: Proximal steps.
        inner: Sinkhorn steps in each.
    """

    def __init__(self, beta: float = 0.5, iterations: int = 50, inner: int = 1) -> None:
        super().__init__()
        self.beta, self.iterations, self.inner = beta, iterations, inner

    def forward(
        self,
        words: Tensor,
        regions: Tensor,
        word_mask: Tensor | None = None,
        region_mask: Tensor | None = None,
        match: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """Scalar of ``(B, T, D)`` words and ``(B, R, D)`` regions."""
        return word_region_alignment(
            words,
            regions,
            word_mask,
            region_mask,
            match=match,
            present=present,
            beta=self.beta,
            iterations=self.iterations,
            inner=self.inner,
        )

    def extra_repr(self) -> str:
        """The arguments."""
        return f"beta={self.beta}, iterations={self.iterations}, inner={self.inner}"
