"""Contrastive losses without the table of similarities: tile by tile, computed again in the backward pass.

The table of B pairs has B x B entries; here a tile of chunk x chunk stands at a time, forward and backward, whatever B.
Beyond the inputs and their gradients nothing that grows with B remains: the sums of InfoNCE stand for one block of rows
at a time. With a ring of processes the second side travels, with its sums or its gradient, and no process ever holds
more than its own rows and one visitor's; there InfoNCE keeps two numbers per row (the logarithms of its two sums, as
flash attention keeps them, https://arxiv.org/abs/2205.14135).

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


class Flat(torch.autograd.Function):
    """InfoNCE of one process without a number per row.

    Its two directions share nothing but the similarities, so that each is gone through by itself, one block of rows at
    a time: all columns for the sums of the block's rows, in the backward pass again for their gradient. That is
    two products of the two sides for one (forward) and eight for three (backward, gradients included): 1.1 to 2.3 times
    as long as with the sums of all rows kept, which takes eight bytes a row and is what ``Streamed`` does in a ring.
    """

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, scale: Tensor, plan: Plan) -> Tensor:
        """Row sums of both directions, block by block."""
        ctx.save_for_backward(first, second, scale)
        ctx.plan = plan
        total = at_least_float32(first[:0]).new_zeros(())
        with full_precision(first):
            for mine, other in ((first, second), (second, first)):
                for rows in _blocks(len(first), plan.chunk):
                    block = _Block(mine, other, rows, scale, plan)
                    total += (block.log_sum - block.wanted).masked_fill(~block.here, 0.0).sum()
        return total / (2.0 * plan.present)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The sums of every block again, then its gradient."""
        first, second, scale = ctx.saved_tensors
        plan: Plan = ctx.plan
        like = at_least_float32(first[:0])
        weight = gradient / (2.0 * plan.present)
        to_first, to_second = (torch.zeros(x.shape, dtype=like.dtype, device=x.device) for x in (first, second))
        to_scale = like.new_zeros(())
        with full_precision(first):
            for mine, other, own, others in (
                (first, second, to_first, to_second),
                (second, first, to_second, to_first),
            ):
                for rows in _blocks(len(first), plan.chunk):
                    block = _Block(mine, other, rows, scale, plan)
                    for columns, y, cosines, both, together in block.tiles():
                        slope = (scale * cosines).sub_(block.log_sum[:, None]).exp_()
                        if together is not None:
                            slope -= together * ((1 - plan.smoothing) / block.count[:, None])
                        if plan.smoothing:
                            slope -= plan.smoothing / plan.present
                        if both is not None:
                            slope.masked_fill_(~both, 0.0)
                        slope *= weight
                        own[rows].addmm_(slope, y)
                        others[columns].addmm_(slope.t(), block.x)
                        to_scale += slope.mul_(cosines).sum()
            to_first.mul_(scale)
            to_second.mul_(scale)
        return to_first.to(first.dtype), to_second.to(second.dtype), to_scale.to(scale.dtype), None


class _Block:
    """Some rows of one side against all of the other: the logarithm of each row's sum and its wanted logit."""

    def __init__(self, mine: Tensor, other: Tensor, rows: slice, scale: Tensor, plan: Plan) -> None:
        self.other, self.rows, self.plan = other, rows, plan
        self.x, self.ids, self.here = _block(mine, plan.ids, plan.here, rows)
        self.log_sum = self.x.new_full((len(self.x),), -torch.inf)
        self.count, own, all_columns = (torch.zeros_like(self.log_sum) for _ in range(3))
        for _, _, cosines, both, together in self.tiles():
            logits = scale * cosines
            if together is not None:
                own += (logits * together).sum(dim=1)
                self.count += together.sum(dim=1)
            if plan.smoothing:
                all_columns += (logits if both is None else logits.masked_fill(~both, 0.0)).sum(dim=1)
            if both is not None:
                logits = logits.masked_fill_(~both, torch.finfo(logits.dtype).min)
            self.log_sum = torch.logaddexp(self.log_sum, logits.logsumexp(dim=1))
        self.count.clamp_(min=1)
        self.wanted = (1 - plan.smoothing) * own / self.count + plan.smoothing * all_columns / plan.present

    def tiles(self) -> Iterator[tuple[slice, Tensor, Tensor, Tensor | None, Tensor | None]]:
        """Columns, their rows, cosines, where both are there (None: everywhere), who belong together (None: nobody)."""
        plan = self.plan
        for columns in _blocks(len(self.other), plan.chunk):
            y, ids, here = _block(self.other, plan.ids, plan.here, columns)
            both = None if plan.here is None else self.here[:, None] & here[None, :]
            together = None
            if plan.ids is not None or columns == self.rows:  # else all differ
                together = self.ids[:, None] == ids[None, :]
                together = together if both is None else together & both
            yield columns, y, self.x @ y.t(), both, together


def _blocks(count: int, chunk: int) -> Iterator[slice]:
    for start in range(0, count, chunk):
        yield slice(start, min(start + chunk, count))


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
    scale, bias = _checked(first, second, plan, scale, bias)
    return Streamed.apply(first, second, scale, bias, plan)


def _checked(first: Tensor, second: Tensor, plan: Plan, *numbers: Tensor | float) -> list[Tensor]:
    """The numbers as tensors, of float32 at least."""
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"both sides must be (B, E), got {tuple(first.shape)} and {tuple(second.shape)}")
    if plan.chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {plan.chunk}")
    like = at_least_float32(first[:0])
    return [at_least_float32(x if isinstance(x, Tensor) else like.new_tensor(x)) for x in numbers]


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
    there = like.new_tensor(count) if present is None else present.sum().to(like.dtype)
    return Plan(ids, present, None, there.clamp(min=1), **settings)


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
    (number,) = _checked(first, second, plan, scale)
    return Flat.apply(first, second, number, plan)


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
