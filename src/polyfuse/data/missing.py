"""Missing patterns: which of the inputs that a row has are taken away from it.

Pure functions of the uniform draws passed in: with keyed draws a pattern belongs to the row and not to the batch.
Only present modalities are ever dropped. Shapes: B batch, M modalities. Masks: True = present; True = drop.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class DropPolicy(Protocol):
    """A law of missingness: how many draws it uses per row, and the drop mask it makes of them."""

    def draws(self, modalities: int) -> int:
        """Number of uniform draws that one row needs."""
        ...

    def drop(self, present: Tensor, draws: Tensor, group: Tensor | None = None) -> Tensor:
        """``(B, M)`` bool drop mask, True only where present."""
        ...


@dataclass(frozen=True)
class Bernoulli:
    """Every present modality is lost independently, given that at least one survives.

    The law is the exact conditional one, not "drop, then restore one": with one rate p and n present modalities,
    P(S) = (1 - p)^|S| p^(n - |S|) / (1 - p^n) for every non-empty S. Rate 0.5 is uniform over the non-empty subsets;
    rate 1 leaves one survivor, chosen uniformly. The realised rate is therefore below ``rate``: ``mean_rate``.

    Args:
        rate: One drop rate, or one per modality.
    """

    rate: float | Sequence[float] = 0.5

    def __post_init__(self) -> None:
        _check_rates(self.rate)

    def draws(self, modalities: int) -> int:
        """One draw per modality."""
        return modalities

    def drop(self, present: Tensor, draws: Tensor, group: Tensor | None = None) -> Tensor:
        """See ``bernoulli_drop``."""
        rate = torch.as_tensor(self.rate, dtype=torch.float64, device=present.device)
        return bernoulli_drop(present, rate, draws)


@dataclass(frozen=True)
class SizeStratified:
    """The number of survivors is uniform over 1..n, then the subset is uniform among those of that size."""

    def draws(self, modalities: int) -> int:
        """One draw per modality and one for the size."""
        return modalities + 1

    def drop(self, present: Tensor, draws: Tensor, group: Tensor | None = None) -> Tensor:
        """Keep the ``size`` present modalities with the smallest draws."""
        modalities = present.shape[1]
        count = present.sum(dim=1)
        size = 1 + (draws[:, modalities].double() * count).long()
        rank = _rank_among(present, draws[:, :modalities])
        return present & (rank >= size[:, None])


@dataclass(frozen=True)
class FixedSubset:
    """Only these modalities are left. A row that has none of them is left empty: nothing is put in their place.

    Args:
        keep: Column numbers that stay.
    """

    keep: tuple[int, ...]

    def draws(self, modalities: int) -> int:
        """None: nothing is random."""
        return 0

    def drop(self, present: Tensor, draws: Tensor, group: Tensor | None = None) -> Tensor:
        """Drop every present modality outside ``keep``."""
        outside = [column for column in self.keep if not 0 <= column < present.shape[1]]
        if outside:
            raise ValueError(f"keep must name columns 0..{present.shape[1] - 1}, got {outside}")
        kept = torch.zeros(present.shape[1], dtype=torch.bool, device=present.device)
        kept[list(self.keep)] = True
        return present & ~kept


@dataclass(frozen=True)
class Incomplete:
    """The "70 % incomplete" protocol of missing-aware prompting: ``rate`` counts incomplete rows, not lost cells.

    Source: missing-aware prompts, https://arxiv.org/abs/2303.03369, section 3.1: every incomplete pattern of the M
    modalities gets an equal share of ``rate``; the remaining rows stay complete. With two modalities and ``lose=None``
    half of the incomplete rows keep one input and half the other ("both"); ``lose=(m,)`` is the one-sided setting.
    Differs: a row is incomplete with probability ``rate``, independently of its batch, where the original draws an
    exact share of a table once. A row with a single input keeps it.

    Args:
        rate: Share of the rows that lose something.
        lose: Columns that an incomplete row loses; None = a uniform non-empty proper subset of what it has.
    """

    rate: float = 0.7
    lose: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check_rates(self.rate)

    def draws(self, modalities: int) -> int:
        """One draw per modality and one that says whether the row is incomplete."""
        return modalities + 1

    def drop(self, present: Tensor, draws: Tensor, group: Tensor | None = None) -> Tensor:
        """Drop ``lose``, or a random proper part, in a share ``rate`` of the rows."""
        modalities = present.shape[1]
        chosen = draws[:, modalities] < self.rate
        if self.lose is None:
            drop = _proper_part(present, draws[:, :modalities])
        else:
            drop = present & ~FixedSubset(self.lose).drop(torch.ones_like(present), draws)
            drop = drop & (present & ~drop).any(dim=1, keepdim=True)
        return drop & chosen[:, None]


@dataclass(frozen=True)
class ByGroup:
    """Missing not at random: the drop rate depends on the row's label or group.

    Within a group the law is ``Bernoulli``'s, so one input always survives.

    Args:
        rates: One entry per group; each is one rate, or one per modality.
    """

    rates: tuple[float | tuple[float, ...], ...]

    def __post_init__(self) -> None:
        for rate in self.rates:
            _check_rates(rate)

    def draws(self, modalities: int) -> int:
        """One draw per modality."""
        return modalities

    def drop(self, present: Tensor, draws: Tensor, group: Tensor | None = None) -> Tensor:
        """Look up each row's rate by ``group`` (int64 ``(B,)``).

        Raises:
            ValueError: If ``group`` is None or outside ``0..len(rates) - 1``.
        """
        if group is None:
            raise ValueError("ByGroup needs group, an int64 (B,) tensor of labels or groups, got None")
        if group.numel() and not 0 <= int(group.min()) <= int(group.max()) < len(self.rates):
            raise ValueError(
                f"group must lie in 0..{len(self.rates) - 1}, got {int(group.min())}..{int(group.max())}; "
                "give one rate per group"
            )
        modalities = present.shape[1]
        rows = [[r] * modalities if isinstance(r, (int, float)) else list(r) for r in self.rates]
        table = torch.tensor(rows, dtype=torch.float64, device=present.device)
        return bernoulli_drop(present, table[group], draws)


def sample_drop(present: Tensor, policy: float | DropPolicy, draws: Tensor, *, group: Tensor | None = None) -> Tensor:
    """Which present modalities to drop, as a pure function of the draws.

    Args:
        present: ``(B, M)`` bool.
        policy: A drop rate (``Bernoulli``), or a policy of this module.
        draws: ``(B, n)`` uniform in [0, 1), n at least ``policy.draws(M)``.
        group: ``(B,)`` int64 label or group, for ``ByGroup``.

    Returns:
        ``(B, M)`` bool, True = drop, only where present; ``present & ~drop`` is what the model sees.

    Raises:
        ValueError: If a shape, a dtype or a rate is not as above.

    Example:
        >>> present = torch.tensor([[True, True, False]])
        >>> sample_drop(present, 0.5, torch.tensor([[0.9, 0.1, 0.1]]))
        tensor([[ True, False, False]])
    """
    policy = Bernoulli(policy) if isinstance(policy, (int, float)) else policy
    if present.ndim != 2 or present.dtype != torch.bool:
        raise ValueError(f"present must be (B, M) bool, got {tuple(present.shape)} {present.dtype}")
    needed = policy.draws(present.shape[1])
    if draws.ndim != 2 or draws.shape[0] != present.shape[0] or draws.shape[1] < needed:
        raise ValueError(f"draws must have shape ({present.shape[0]}, >= {needed}), got {tuple(draws.shape)}")
    return policy.drop(present, draws, group)


def bernoulli_drop(present: Tensor, rate: Tensor, draws: Tensor) -> Tensor:
    """Independent losses given one survivor, exactly, in one pass over the draws.

    Column j survives, given that none before it did, with probability q_j = (1 - p_j) / (1 - prod_{i >= j} p_i), the
    product over present columns; after the first survivor plainly with 1 - p_j. As q_j >= 1 - p_j, both tests can read
    the same draw, so no loop is needed.

    Args:
        present: ``(B, M)`` bool.
        rate: Drop rates, broadcastable to ``(B, M)``, float64.
        draws: ``(B, >= M)`` uniform in [0, 1).

    Returns:
        ``(B, M)`` bool, True = drop.
    """
    modalities = present.shape[1]
    u = draws[:, :modalities].double()
    try:
        p = rate.double().expand(present.shape)
    except RuntimeError as error:
        raise ValueError(f"rate must fit (B, M) = {tuple(present.shape)}, got {tuple(rate.shape)}") from error
    tail = torch.where(present, p, 1.0).flip(1).cumprod(1).flip(1)
    left = present.flip(1).cumsum(1).flip(1).clamp(min=1)
    certain = tail >= 1.0  # every one left is lost for sure: the limit gives each an equal chance
    q = torch.where(certain, 1.0 / left, (1.0 - p) / torch.where(certain, 1.0, 1.0 - tail))
    saved = present & (u < q)
    first = saved & (saved.cumsum(1) == 1)
    return present & ~first & (u >= 1.0 - p)


def mean_rate(rate: float, modalities: int) -> float:
    """Share of the present modalities that ``Bernoulli(rate)`` really drops, given one survivor.

    Example:
        >>> round(mean_rate(0.5, 3), 4)  # 1 - (1 - p) / (1 - p^n)
        0.4286
    """
    _check_rates(rate)
    return 1.0 - 1.0 / sum(rate**k for k in range(modalities))


def _proper_part(present: Tensor, draws: Tensor) -> Tensor:
    """Drop a uniform non-empty proper subset of what is present; rows with fewer than two inputs lose nothing.

    Column by column with k columns left: while all so far share one fate, the other fate has 2^(k-1) ways out of
    2^k - 1; once the fates are mixed (and for the very first column) both are equally likely.
    """
    drop = torch.zeros_like(present)
    left = present.sum(dim=1)
    splits = left >= 2
    kept_any = torch.zeros_like(splits)
    lost_any = torch.zeros_like(splits)
    for column in range(present.shape[1]):
        here = present[:, column] & splits
        other = torch.exp2(left.double() - 1) / (torch.exp2(left.double()) - 1).clamp(min=1)
        lose_chance = torch.where(kept_any & ~lost_any, other, torch.where(lost_any & ~kept_any, 1.0 - other, 0.5))
        lost = here & (draws[:, column].double() < lose_chance)
        drop[:, column] = lost
        lost_any = lost_any | lost
        kept_any = kept_any | (here & ~lost)
        left = left - present[:, column].long()
    return drop


def _rank_among(present: Tensor, draws: Tensor) -> Tensor:
    """Rank of each present column's draw within its row, absent columns last."""
    order = draws.masked_fill(~present, 2.0).argsort(dim=1, stable=True)
    return order.argsort(dim=1)


def _check_rates(rate: float | Sequence[float]) -> None:
    for value in [rate] if isinstance(rate, (int, float)) else rate:
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"a drop rate must lie in [0, 1], got {value}")
