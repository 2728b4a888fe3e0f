"""Stateless maths of weighing modalities: entropy, masked softmax, drop probabilities, drop sampling.

Everything here is free of parameters, of hidden state and of host synchronisation, and branches on shapes alone, so
that it compiles to one graph and exports. Statistics are computed in float32 at least; float64 stays float64.

Shapes: B batch, M modalities, ``...`` any leading axes. Masks: True = present, except ``drop``, where True = dropped.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

POLICIES: tuple[str, ...] = ("inverse_entropy", "entropy", "uniform", "dominance")

# Added to every policy score before it is rescaled to a rate, so that a batch in which the policy is flat zero (exactly
# uniform weights under "inverse_entropy") still reaches the rate, and rounding noise around zero is not blown up to 1.
_SCORE_FLOOR = 1e-6

LN_2 = math.log(2.0)


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32 if it is float16 or bfloat16, else unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def entropy(weights: Tensor) -> Tensor:
    """Shannon entropy in nats over the last axis, ``H = -sum w ln w`` with ``0 ln 0 = 0``.

    Zeros are replaced *before* the logarithm, so the gradient is finite for one-hot rows and for weights of slots that
    were masked with ``-inf`` (``torch.xlogy`` and ``torch.special.entr`` give NaN or infinity there). NaN stays NaN.

    Shape:
        - weights: ``(..., M)``, non-negative, rows sum to 1 (a row of zeros has entropy 0).
        - returns: ``(...)``, float32 or float64, attached to the graph.

    Example:
        >>> entropy(torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))
        tensor([0.6931, 0.0000])
    """
    weights = at_least_float32(weights)
    logs = torch.where(weights == 0, 1.0, weights).log()
    return (0.0 - (weights * logs).sum(dim=-1)).clamp(min=0.0)  # 0 - x: never -0.0


def max_entropy(count: Tensor) -> Tensor:
    """``ln n`` for a tensor of counts, 0 where ``n <= 1``.

    Shape:
        - count: any, integer or float; returns the same shape, float.
    """
    return count.clamp(min=1).log()


def masked_softmax(scores: Tensor, valid: Tensor | None = None, *, zero_empty: bool = True) -> Tensor:
    """Softmax over the last axis in which invalid entries weigh exactly zero, and a row without valid entries is zero.

    Output and gradient are finite for every row, also where ``scores`` hold NaN or infinities at invalid entries.
    With ``zero_empty=False`` a row without valid entries comes out uniform, and one operation is saved.

    Shape:
        - scores: ``(..., M)``; valid: bool, broadcastable to it, None = all valid.
        - returns: ``(..., M)``, float32 or float64; rows sum to 1, or to 0 where nothing is valid.
    """
    scores = at_least_float32(scores)
    if valid is None:
        return _softmax(scores)
    weights = _softmax(scores.masked_fill(~valid, torch.finfo(scores.dtype).min))
    return weights.masked_fill(~valid, 0.0) if zero_empty else weights  # changes rows with nothing valid alone


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the last axis. On CPU PyTorch is up to twenty times slower on a short last axis than on another."""
    if scores.ndim < 3:
        return scores.softmax(dim=-1)
    return scores.movedim(-1, 1).softmax(dim=1).movedim(1, -1)


def check_drop(drop: Tensor, shape: Sequence[int]) -> None:
    """Refuse a ``drop`` that is not a bool tensor of ``shape`` = (B, M).

    Raises:
        ValueError: With the shape or type it got.
    """
    if drop.dtype != torch.bool:
        raise ValueError(f"drop must be bool (True = dropped), got {drop.dtype}")
    if drop.shape != tuple(shape):
        raise ValueError(f"drop must have shape (B, M) = {tuple(shape)}, got {tuple(drop.shape)}")


def surviving(present: Tensor, drop: Tensor) -> Tensor:
    """``present & ~drop``, except that a row which would lose everything loses nothing.

    Shape:
        - present, drop: ``(B, M)`` bool; returns ``(B, M)`` bool.

    Example:
        >>> surviving(torch.tensor([[True, True], [True, False]]), torch.tensor([[True, False], [True, True]]))
        tensor([[False,  True],
                [ True, False]])
    """
    kept = present & ~drop
    return kept | (present & ~kept.any(dim=-1, keepdim=True))


def policy_score(weights: Tensor, present: Tensor, policy: str) -> Tensor:
    """How strongly a policy wants each present modality dropped; multiplied by the base rate it is a probability.

    With ``n`` present modalities of shares ``w`` and normalised entropy ``h = H(w) / ln n``:

    - ``uniform``: 1.
    - ``entropy``: h, as the package aecf 0.1.0 computes it: undecided rows are masked more.
    - ``inverse_entropy``: 1 - h, the text of PyTorch RFC 0042: rows that rely on one modality are masked more. It
      hardly drops anything while attention is near uniform, as it is at initialisation.
    - ``dominance``: n w, so that a modality is dropped in proportion to its share; 1 on average.

    Scores carry no gradient. A row that holds NaN scores 0.

    Shape:
        - weights: ``(B, M)``; present: ``(B, M)`` bool; returns ``(B, M)`` >= 0, 0 where absent.

    Raises:
        ValueError: If ``policy`` is not one of ``POLICIES``.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    weights = at_least_float32(weights.detach()).masked_fill(~present, 0.0)
    count = present.sum(dim=-1, keepdim=True)
    if policy == "uniform":
        score = torch.ones_like(weights)
    elif policy == "dominance":
        score = weights * count
    else:
        share = entropy(weights).unsqueeze(-1) / count.clamp(min=2).to(weights.dtype).log()
        share = share.clamp(max=1.0)
        score = (share if policy == "entropy" else 1.0 - share).expand_as(weights)
    return torch.nan_to_num(score, nan=0.0).masked_fill(~present, 0.0)


def rescale_to_rate(score: Tensor, eligible: Tensor, rate: float) -> Tensor:
    """Probabilities ``min(1, c * score)`` whose mean over the eligible entries is exactly ``rate``.

    The mean as a function of ``c`` is the lower envelope of ``(k + c * R_k) / N``, where ``R_k`` sums all scores but
    the ``k`` largest; hence ``c = max_k (rate * N - k) / R_k``: one sort, no iteration.

    Shape:
        - score, eligible: ``(B, M)``; returns ``(B, M)``, 0 where not eligible. ``c`` is shared by the whole batch.

    Example:
        >>> rescale_to_rate(torch.tensor([[1.0, 3.0]]), torch.tensor([[True, True]]), 0.75)
        tensor([[0.5000, 1.0000]])
    """
    score = (score + _SCORE_FLOOR).masked_fill(~eligible, 0.0)
    ascending = score.flatten().sort().values
    total = eligible.sum()
    # Entry j of the running sum leaves out the entries after it; ineligible entries sort first and count as none.
    left_out = torch.arange(ascending.numel() - 1, -1, -1, device=score.device)
    rest = ascending.cumsum(dim=0)
    slope = (rate * total - left_out) / rest.clamp(min=torch.finfo(score.dtype).tiny)
    scale = torch.where(rest > 0, slope, 0.0).amax().clamp(min=0.0)
    return (score * scale).clamp(max=1.0)


def drop_probability(
    weights: Tensor,
    present: Tensor,
    *,
    policy: str = "inverse_entropy",
    base: float = 0.15,
    target_rate: float | None = None,
    min_active: int = 1,
) -> Tensor:
    """Probability that each present modality is asked to be dropped, before the survivor rule of ``sample_drop``.

    Without ``target_rate`` it is ``min(1, base * policy_score)``. With it the score is rescaled, so that the mean
    probability over the present entries of all rows that can lose one (more than ``min_active`` present) equals
    ``target_rate`` and ``base`` does not matter. ``expected_drop_rate`` gives what the survivor rule leaves of it.

    Shape:
        - weights: ``(B, M)``; present: ``(B, M)`` bool; returns ``(B, M)`` in [0, 1], no gradient.
    """
    can_drop = present & (present.sum(dim=-1, keepdim=True) > min_active)
    if policy == "uniform":
        return can_drop.to(at_least_float32(weights).dtype) * (base if target_rate is None else target_rate)
    score = policy_score(weights, present, policy)
    if target_rate is not None:
        return rescale_to_rate(score, can_drop, target_rate)
    return (base * score).clamp(max=1.0).masked_fill(~can_drop, 0.0)


def sample_drop(
    probability: Tensor, present: Tensor, min_active: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """Sample which present modalities to drop, independently, leaving at least ``min(min_active, n)`` of ``n`` present.

    Where too few would be left, the missing survivors are drawn uniformly at random among the dropped (not by weight,
    which would shield the dominant modality). With ``min_active=1`` modality m of a row is therefore really dropped
    with probability ``p_m - prod_j p_j / n``. One uniform number per entry serves both draws: given that an entry is
    dropped, ``u / p`` is again uniform.

    Shape:
        - probability: ``(B, M)``; present: ``(B, M)`` bool; returns ``(B, M)`` bool, True = dropped.
    """
    size = probability.shape[-1]
    if size <= min_active:
        return torch.zeros_like(present)
    if generator is None:  # its keyword, even None, keeps PyTorch 2.6 from compiling a dynamic batch
        uniform = torch.rand_like(probability)
    else:
        uniform = torch.rand(probability.shape, generator=generator, device=probability.device, dtype=probability.dtype)
    rank = uniform / probability.clamp(min=torch.finfo(probability.dtype).tiny)  # >= 1 where kept anyway
    rank = rank.masked_fill(~present, -1.0)
    if min_active == 1:
        threshold = rank.amax(dim=-1, keepdim=True)
    else:
        threshold = rank.topk(min_active, dim=-1).values[..., -1:]
    kept = (uniform >= probability) | (rank >= threshold)
    return present & ~kept


def expected_drop_rate(probability: Tensor, present: Tensor, min_active: int = 1) -> Tensor:
    """Exact share of a row's present modalities that ``sample_drop`` drops on average, survivor rule included.

    The number kept before the rule is Poisson-binomial; the rule gives back its expected shortfall. Uniform probability
    r on n modalities with ``min_active=1`` realises ``r - r**n / n``.

    Shape:
        - probability: ``(B, M)``; present: ``(B, M)`` bool; returns ``(B,)``, 0 for rows with nothing present.

    Example:
        >>> expected_drop_rate(torch.full((1, 3), 0.5), torch.ones(1, 3, dtype=torch.bool))
        tensor([0.4583])
    """
    probability = at_least_float32(probability).masked_fill(~present, 0.0)
    count = present.sum(dim=-1)
    keep = (1.0 - probability).masked_fill(~present, 0.0)
    size = probability.shape[-1]
    kept = torch.zeros(probability.shape[0], size + 1, dtype=probability.dtype, device=probability.device)
    kept[:, 0] = 1.0
    for m in range(size):
        one_more = torch.nn.functional.pad(kept[:, :-1], (1, 0))
        kept = kept * (1.0 - keep[:, m, None]) + one_more * keep[:, m, None]
    shortfall = (count.clamp(max=min_active)[:, None] - torch.arange(size + 1, device=kept.device)).clamp(min=0)
    dropped = probability.sum(dim=-1) - (kept * shortfall).sum(dim=-1)
    return dropped / count.clamp(min=1)


def renormalise(weights: Tensor, kept: Tensor) -> Tensor:
    """Zero the weights outside ``kept`` and scale each row to sum 1.

    A row whose surviving weights are all exactly zero shares equally among the survivors: that is what the softmax over
    the survivors would tend to, and it is never silently left unmasked. A row with nothing kept is zero.

    Shape:
        - weights: ``(..., M)``; kept: bool, broadcastable to it; returns ``(..., M)`` in the type of ``weights``.
    """
    kept = kept.expand_as(weights)
    masked = at_least_float32(weights).masked_fill(~kept, 0.0)
    total = masked.sum(dim=-1, keepdim=True)
    equal = kept / kept.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.where(total > 0, masked / torch.where(total > 0, total, 1.0), equal).to(weights.dtype)


def attention_dropout(weights: Tensor, probability: float) -> Tensor:
    """Dropout on attention weights after which every row that had weight still has some; unbiased.

    Rows that would lose all of their ``n`` non-zero weights keep them all. A weight is thus kept with probability
    ``q = 1 - p + p**n`` and scaled by ``1 / q`` (``torch.nn.functional.dropout`` keeps with ``1 - p`` and lets rows
    vanish). One weight alone is never dropped, and p = 1 leaves the weights as they are.

    Shape:
        - weights: ``(..., M)``; returns the same shape and type.
    """
    if probability == 0.0:
        return weights
    carries = weights > 0
    count = carries.sum(dim=-1, keepdim=True)
    kept = carries & (torch.rand_like(weights) >= probability)
    kept = kept | ~kept.any(dim=-1, keepdim=True)
    log_p = math.log(probability)
    scale = 1.0 / (1.0 - probability + (count.to(weights.dtype) * log_p).exp())
    return (weights * scale).masked_fill(~kept, 0.0)
