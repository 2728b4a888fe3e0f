"""Every subset of the inputs in one call: what depends on one modality alone is computed once, not once per subset.

A fusion whose first step is linear in its inputs, or weighs what it computed from each of them, needs for a subset only
a sum over modalities; all subsets together are then one matrix product with the table of subsets.

Shapes: S subsets, B rows, M modalities, H width, R width of the readout. Masks: True = present. Pairs run subset by
subset: pair s B + b is row b of subset s.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DENSE = 6
"""Asking about all pairs of subset and row at once costs about as much as a sixth of them one by one, or less."""


class Readout(NamedTuple):
    """A linear map to be applied to what a fusion returns, and so mergeable with what is linear at its end.

    Attributes:
        weight: ``(R, H)``.
        bias: ``(R,)`` or None.
    """

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """``(..., H)`` to ``(..., R)``."""
        return F.linear(x, self.weight, self.bias)

    def without_bias(self) -> "Readout":
        """The same map for the second and later terms of a sum."""
        return Readout(self.weight)


def pairs(x_BD: Tensor, subsets: int) -> Tensor:
    """The rows once per subset, ``(S B, D)``."""
    return x_BD.expand(subsets, *x_BD.shape).flatten(0, 1)


def pair_presence(subsets_SM: Tensor, rows: int) -> Tensor:
    """The subset of every pair, ``(S B, M)``."""
    return subsets_SM.repeat_interleave(rows, dim=0)


def fuse_repeated(fusion: Any, embeddings: Mapping[str, Tensor], subsets_SM: Tensor) -> Any:
    """``fusion`` asked about every pair: right for any fusion, at the price of one pass per subset."""
    rows = len(next(iter(embeddings.values())))
    repeated = {name: pairs(x, len(subsets_SM)) for name, x in embeddings.items()}
    return fusion(repeated, pair_presence(subsets_SM, rows))


def sum_over_subsets(
    parts: Sequence[Tensor], shares_SM: Tensor, absent: Sequence[Tensor] | None = None, bias: Tensor | None = None
) -> Tensor:
    """``(S, B, H)``: sum_m share_sm part_m, plus what absent modalities add instead, plus a bias.

    Args:
        parts: M times ``(B, H)``; finite, for 0 * nan is nan.
        shares_SM: Weights, 0 where a subset lacks the modality.
        absent: M times ``(H,)``, added with the weight 1 - share; None = nothing.
        bias: ``(H,)`` or None.

    Example:
        >>> parts = [torch.tensor([[1.0], [2.0]]), torch.tensor([[10.0], [20.0]])]
        >>> sum_over_subsets(parts, torch.tensor([[1.0, 0.0], [1.0, 1.0]])).squeeze(-1)
        tensor([[ 1.,  2.],
                [11., 22.]])
    """
    constant = bias
    table = torch.stack(list(parts))  # (M, B, H)
    if absent is not None:
        replaced = torch.stack(list(absent))
        table = table - replaced[:, None]
        constant = replaced.sum(dim=0) if bias is None else replaced.sum(dim=0) + bias
    shares = shares_SM.to(table.dtype)
    if constant is not None:  # as one more part that every subset has
        table = torch.cat([table, constant.to(table.dtype).expand(1, *table.shape[1:])])
        shares = torch.cat([shares, shares.new_ones(len(shares), 1)], dim=1)
    return (shares @ table.flatten(1)).unflatten(1, table.shape[1:])


def combine(parts: Sequence[Tensor], subsets_SM: Tensor, reduction: str, readout: Readout | None) -> Tensor:
    """Sum or mean of the present parts of every subset, zeros for an empty one; read out: ``(S B, H or R)``."""
    shares = subsets_SM.to(parts[0].dtype)
    if reduction == "mean":
        shares = shares / shares.sum(dim=1, keepdim=True).clamp(min=1)
    return mix(parts, shares, readout)


def mix(parts: Sequence[Tensor], shares_SM: Tensor, readout: Readout | None) -> Tensor:
    """``readout(sum_m share_sm part_m)``, the readout taken before the sum: ``(S B, H or R)``."""
    if readout is None:
        return sum_over_subsets(parts, shares_SM).flatten(0, 1)
    plain = readout.without_bias()
    return sum_over_subsets([plain(x) for x in parts], shares_SM, bias=readout.bias).flatten(0, 1)


def read_out(x: Tensor, last: nn.Linear, readout: Readout | None) -> Tensor:
    """``readout(last(x))``, as one product where that is the cheaper way."""
    if readout is None:
        return last(x)
    apart = last.out_features * (last.in_features + len(readout.weight))
    if last.in_features * len(readout.weight) > apart:
        return readout(last(x))
    bias = readout.bias if last.bias is None else readout(last.bias)
    return F.linear(x, readout.weight @ last.weight, bias)


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether a zero weight silences every entry."""
    return all(bool(x.isfinite().all()) for x in tensors)
