"""Contrastive losses without the table of similarities: tile by tile, computed again in the backward pass.

The table of B pairs has B x B entries; here a tile of chunk x chunk stands at a time, forward and backward, whatever B.
Beyond the inputs and their gradients there remain two numbers per row for InfoNCE (the logarithms of its two sums, as
flash attention keeps them, https://arxiv.org/abs/2205.14135) and none for SigLIP. With a ring of processes the second
side travels, with its sums or its gradient, and no process ever holds more than its own rows and one visitor's.

Shapes: n rows of this process, E width. Masks: True = present.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from polyfuse.functional import at_least_float32
from polyfuse.losses.reduce import check_mask, full_precision

CHUNK = 256


class Ring:
    """Processes in a circle, of which this one passes tensors on to the next. Here: one process, nobody to pass to."""

    size = 1

    def pass_on(self, parts: list[Tensor]) -> list[Tensor]:
        """What the process before passes on, in exchange for ``parts``."""
        return parts

    def total(self, value: Tensor) -> Tensor:
        """The sum over processes."""
        return value


@dataclass(frozen=True)
class Plan:
    """What a streamed loss needs beside its four tensors.

    Attributes:
        ids: ``(n,)`` int64 of this process's rows; None = all differ (one process alone: numbers must go round a ring).
        here: ``(n,)`` bool; None = all present.
        counts: ``(n,)``, rows of all processes that say the same as each; None = 1.
        present: Rows present in all processes, a scalar, at least 1.
        smoothing: Label smoothing (InfoNCE).
        sigmoid: SigLIP rather than InfoNCE.
        chunk: Rows of a tile.
        ring: The processes.
    """

    ids: Tensor | None
    here: Tensor | None
    counts: Tensor | None
    present: Tensor
    smoothing: float = 0.0
    sigmoid: bool = False
    chunk: int = CHUNK
    ring: Ring = Ring()  # noqa: RUF009 - it has no state


@dataclass
class _Tile:
    """One block of rows against one block of visitors."""

    rows: slice
    columns: slice
    x: Tensor
    y: Tensor
    cosines: Tensor
    logits: Tensor
    both: Tensor
    together: Tensor


def _tiles(first: Tensor, visitor: list[Tensor | None], scale: Tensor, bias: Tensor, plan: Plan) -> Iterator[_Tile]:
    """All tiles of this process's rows against a visitor ``[values, ids, here]``."""
    second, ids, here = visitor
    assert second is not None  # noqa: S101 - the values always travel
    count, step = len(first), plan.chunk
    for top in range(0, count, step):
        rows = slice(top, min(top + step, count))
        x, ids_x, here_x = _block(first, plan.ids, plan.here, rows)
        for left in range(0, count, step):
            columns = slice(left, min(left + step, count))
            y, ids_y, here_y = _block(second, ids, here, columns)
            both = here_x[:, None] & here_y[None, :]
            cosines = x @ y.t()
            together = (ids_x[:, None] == ids_y[None, :]) & both
            yield _Tile(rows, columns, x, y, cosines, scale * cosines + bias, both, together)


def _block(values: Tensor, ids: Tensor | None, here: Tensor | None, part: slice) -> tuple[Tensor, Tensor, Tensor]:
    x = at_least_float32(values[part])
    numbers = torch.arange(part.start, part.stop, device=x.device) if ids is None else ids[part]
    if here is None:
        return x, numbers, torch.ones(len(x), dtype=torch.bool, device=x.device)
    there = here[part].bool()
    return x.masked_fill(~there[:, None], 0.0), numbers, there


def _target(tile: _Tile, plan: Plan) -> Tensor:
    """The share of each column in its row's target; symmetric, as ids, presence and counts are."""
    target = tile.together.to(tile.logits.dtype)
    if plan.counts is not None:
        target /= plan.counts[tile.rows, None]
    if plan.smoothing:
        target = target * (1 - plan.smoothing) + tile.both * (plan.smoothing / plan.present)
    return target


class Streamed(torch.autograd.Function):
    """The loss over all rows of all processes; its gradient is that of the processes' number times the loss.

    So that the average over processes, which data parallel training takes, is the gradient of the loss.
    """

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, scale: Tensor, bias: Tensor, plan: Plan) -> Tensor:
        """Sum tile by tile."""
        ring, like = plan.ring, at_least_float32(first[:0])
        total = like.new_zeros(())
        row_sum = None if plan.sigmoid else like.new_full((len(first),), -torch.inf)
        column_sum = None if plan.sigmoid else like.new_full((len(first),), -torch.inf)
        visitor: list[Tensor | None] = [second, plan.ids, plan.here]
        with full_precision(first):
            for step in range(ring.size):
                for tile in _tiles(first, visitor, scale, bias, plan):
                    if row_sum is None or column_sum is None:
                        signed = torch.where(tile.together, tile.logits, -tile.logits)
                        total -= F.logsigmoid(signed).masked_fill(~tile.both, 0.0).sum()
                        continue
                    total -= 2.0 * (_target(tile, plan) * tile.logits).sum()
                    logits = tile.logits.masked_fill(~tile.both, torch.finfo(total.dtype).min)
                    row_sum[tile.rows] = torch.logaddexp(row_sum[tile.rows], logits.logsumexp(dim=1))
                    column_sum[tile.columns] = torch.logaddexp(column_sum[tile.columns], logits.logsumexp(dim=0))
                last = step == ring.size - 1
                *visitor, column_sum = _pass_on(ring, [*([None] * 3 if last else visitor), column_sum])
        if row_sum is not None and column_sum is not None:
            sums = row_sum + column_sum
            total += sums.sum() if plan.here is None else sums.masked_fill(~plan.here, 0.0).sum()
        ctx.save_for_backward(first, second, scale, bias, row_sum, column_sum)
        ctx.plan = plan
        return ring.total(total) / (plan.present if plan.sigmoid else 2.0 * plan.present)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the tiles again."""
        first, second, scale, bias, row_sum, column_sum = ctx.saved_tensors
        plan: Plan = ctx.plan
        ring, like = plan.ring, at_least_float32(first[:0])
        weight = gradient * ring.size / (plan.present if plan.sigmoid else 2.0 * plan.present)
        to_first = torch.zeros(first.shape, dtype=like.dtype, device=first.device)
        to_second: Tensor | None = torch.zeros(second.shape, dtype=like.dtype, device=first.device)
        to_scale, to_bias = like.new_zeros(()), like.new_zeros(())
        visitor: list[Tensor | None] = [second, plan.ids, plan.here, column_sum]
        with full_precision(first):
            for step in range(ring.size):
                for tile in _tiles(first, visitor[:3], scale, bias, plan):
                    slope = _slope(tile, row_sum, visitor[3], plan).mul_(weight)
                    to_first[tile.rows].addmm_(slope, tile.y)
                    assert to_second is not None  # noqa: S101 - it travels in every step
                    to_second[tile.columns].addmm_(slope.t(), tile.x)
                    to_scale += (slope * tile.cosines).sum()
                    to_bias += slope.sum()
                last = step == ring.size - 1
                *visitor, to_second = _pass_on(ring, [*([None] * 4 if last else visitor), to_second])
            to_first.mul_(scale)
            assert to_second is not None  # noqa: S101
            to_second.mul_(scale)
        return to_first.to(first.dtype), to_second.to(second.dtype), to_scale.to(scale.dtype), to_bias, None


def _slope(tile: _Tile, row_sum: Tensor | None, column_sum: Tensor | None, plan: Plan) -> Tensor:
    """What the sum that is to be averaged changes by with each logit of a tile."""
    if row_sum is None or column_sum is None:
        slope = torch.where(tile.together, -torch.sigmoid(-tile.logits), torch.sigmoid(tile.logits))
    else:
        slope = (tile.logits - row_sum[tile.rows, None]).exp_()
        slope += (tile.logits - column_sum[None, tile.columns]).exp_()
        slope -= 2.0 * _target(tile, plan)
    return slope.masked_fill_(~tile.both, 0.0)


def _pass_on(ring: Ring, parts: list[Tensor | None]) -> list[Tensor | None]:
    """Pass on what is there."""
    there = [part for part in parts if part is not None]
    got = iter(ring.pass_on(there) if there else [])
    return [None if part is None else next(got) for part in parts]


def streamed(
    first: Tensor,
    second: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    plan: Plan,
) -> Tensor:
    """``Streamed`` with numbers made tensors and shapes checked.

    Raises:
        ValueError: If the sides differ in shape, or the chunk is not positive.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"both sides must be (B, E), got {tuple(first.shape)} and {tuple(second.shape)}")
    if plan.chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {plan.chunk}")
    like = at_least_float32(first[:0])
    scale, bias = (x if isinstance(x, Tensor) else like.new_tensor(x) for x in (scale, bias))
    return Streamed.apply(first, second, at_least_float32(scale), at_least_float32(bias), plan)


def same_id_counts(own: Tensor, ids: Tensor, here: Tensor, dtype: torch.dtype) -> Tensor:
    """How many present rows of ``ids (N,)`` have each id of ``own (n,)``, at least 1; O(N) memory."""
    ordered = ids[here].sort().values
    count = torch.searchsorted(ordered, own, right=True) - torch.searchsorted(ordered, own)
    return count.clamp(min=1).to(dtype)


def _alone(first: Tensor, ids: Tensor | None, present: Tensor | None, **settings: Any) -> Plan:
    count = len(first)
    if present is not None:
        check_mask(present, (count,), "present")
    if ids is not None and ids.shape != (count,):
        raise ValueError(f"ids must have shape {(count,)}, got {tuple(ids.shape)}")
    like = at_least_float32(first[:0])
    here = torch.ones(count, dtype=torch.bool, device=first.device) if present is None else present
    counts = None if ids is None else same_id_counts(ids, ids, here, like.dtype)
    return Plan(ids, present, counts, here.sum().clamp(min=1).to(like.dtype), **settings)


def chunked_info_nce(
    first: Tensor,
    second: Tensor,
    scale: Tensor | float,
    *,
    ids: Tensor | None = None,
    present: Tensor | None = None,
    label_smoothing: float = 0.0,
    chunk: int = CHUNK,
) -> Tensor:
    """``info_nce``, value and gradient, in tiles of ``chunk`` x ``chunk``: memory beyond the inputs flat in B.

    Example:
        >>> chunked_info_nce(torch.eye(3), torch.eye(3), 100.0, chunk=2).abs()
        tensor(0.)
    """
    plan = _alone(first, ids, present, smoothing=label_smoothing, chunk=chunk)
    return streamed(first, second, scale, 0.0, plan)


def chunked_siglip(
    first: Tensor,
    second: Tensor,
    scale: Tensor | float = 10.0,
    bias: Tensor | float = -10.0,
    *,
    ids: Tensor | None = None,
    present: Tensor | None = None,
    chunk: int = CHUNK,
) -> Tensor:
    """``siglip_loss``, value and gradient, in tiles of ``chunk`` x ``chunk``: memory beyond the inputs flat in B.

    Example:
        >>> chunked_siglip(torch.eye(3), torch.eye(3), chunk=2)
        tensor(0.6932)
    """
    return streamed(first, second, scale, bias, _alone(first, ids, present, sigmoid=True, chunk=chunk))
