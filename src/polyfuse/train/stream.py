"""The rows of each step, with their modality dropout and corruption: a function of (seed, epoch, step), with no state.

Rows are gathered a block of steps at a time, and corrupted there; a step then only slices. Blocks start at the epoch's
first step, so a run resumed in the middle of an epoch cuts the same blocks.

Shapes: N rows of the table, b rows of one pass, M modalities.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polyfuse.data.batch import Batch, map_tensors
from polyfuse.data.corrupt import corrupt, fit_scales
from polyfuse.data.keyed import permutation, uniform
from polyfuse.data.missing import Bernoulli, DropPolicy, SizeStratified, sample_drop

_BLOCK_BYTES = 8 << 20
_BLOCK_STEPS = 64


@dataclass(frozen=True)
class Masking:
    """What training takes away from the rows.

    Attributes:
        modality_dropout: Drop rate of every present modality, given that one survives; 0 = none.
        schedule: ``bernoulli`` (independent losses) or ``stratified`` (any number of survivors is equally likely; then
            the rate is the share of rows that are thinned).
        ramp: Share of the epochs over which the dropout rises from 0 to its rate, linearly by epoch.
        corruption: Share of the inputs replaced by noise or by another row's input, without a flag.
        kinds: What corruption does: ``noise``, ``swap``. With noise alone no row looks at another.
    """

    modality_dropout: float = 0.0
    schedule: str = "bernoulli"
    ramp: float = 0.0
    corruption: float = 0.0
    kinds: tuple[str, ...] = ("noise", "swap")


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of one process.

    Attributes:
        batch: The rows, dropped modalities already marked absent.
        available: ``(b, M)`` bool: what the rows had before the dropout.
        weight: 1, or 0 for a row that only stands in where this process has none (every process must take part).
    """

    batch: Batch
    available: Tensor
    weight: float


@dataclass(frozen=True)
class Step:
    """One optimiser step: the passes of this process and the rows of all processes together."""

    number: int
    passes: list[Pass]
    rows: int


class Stream:
    """Steps over a table that lies in memory.

    Args:
        table: The training rows.
        batch_size: Rows of one optimiser step, over all processes and passes.
        accumulate: Passes per step.
        masking: Dropout and corruption.
        seed: Of every draw.
        epochs: Epochs of the whole run, for the ramp of the dropout.
        rank: This process; it takes every ``world_size``-th row of a step.
        world_size: Number of processes.
        device: Where the rows go.
    """

    def __init__(
        self,
        table: Batch,
        batch_size: int,
        *,
        accumulate: int = 1,
        masking: Masking | None = None,
        seed: int = 0,
        epochs: float = 1.0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.table = replace(table, ids=None)
        self.batch_size = min(batch_size, max(len(table), 1))
        self.accumulate = accumulate
        self.masking = masking or Masking()
        self.seed = seed
        self.epochs = epochs
        self.rank, self.world_size = rank, world_size
        self.device = torch.device(device)
        self.steps_per_epoch = -(-len(table) // self.batch_size)
        self._scales = fit_scales(table) if self.masking.corruption > 0 else None
        self._row_bytes = max(_nbytes(table) // max(len(table), 1), 1)

    def presence(self, epoch: int) -> Tensor:
        """``(N, M)`` bool: what is left of every row in this epoch."""
        masking, present = self.masking, self.table.present
        rate = masking.modality_dropout * self._risen(epoch)
        if rate == 0.0:
            return present
        modalities = present.shape[1]
        policy: DropPolicy
        if masking.schedule == "stratified":
            policy = SizeStratified()
        else:
            policy = Bernoulli(rate)
        wanted = policy.draws(modalities)
        draws = uniform(self.seed, "modality dropout", epoch, self.table.keys, wanted + 1)
        drop = sample_drop(present, policy, draws[:, :wanted])
        if masking.schedule == "stratified":
            drop &= draws[:, wanted:] < rate
        return present & ~drop

    def _risen(self, epoch: int) -> float:
        """Share of the dropout's rate that holds in an epoch: 0 in the first one where it ramps, 1 from its end on."""
        span = self.masking.ramp * self.epochs
        return min(1.0, epoch / span) if span > 0 else 1.0

    def drop_counts(self, epoch: int, steps: int) -> tuple[int, int]:
        """Modalities dropped, and modalities that were there, in the first ``steps`` of an epoch."""
        before, after = self.table.present, self.presence(epoch)
        if steps < self.steps_per_epoch:
            order = permutation(self.seed, "order", epoch, len(self.table))[: steps * self.batch_size]
            before, after = before[order], after[order]
        offered = int(before.sum())
        return offered - int(after.sum()), offered

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Step]:
        """The steps of one epoch from number ``start`` on."""
        order = permutation(self.seed, "order", epoch, len(self.table))
        table = self.table.with_present(self.presence(epoch))
        size = max(1, min(_BLOCK_STEPS, _BLOCK_BYTES // (self._row_bytes * self.batch_size)))
        for first in range(start // size * size, self.steps_per_epoch, size):
            numbers = range(first, min(first + size, self.steps_per_epoch))
            for step in self._block(table, order, epoch, numbers):
                if step.number >= start:
                    yield step

    def _block(self, table: Batch, order: Tensor, epoch: int, numbers: range) -> Iterator[Step]:
        batches = [order[n * self.batch_size : (n + 1) * self.batch_size] for n in numbers]
        shares = [indices[self.rank :: self.world_size] for indices in batches]
        # A process without a row in the last batch of an epoch runs one that counts nothing: gradients are exchanged.
        stand_in = [len(share) == 0 for share in shares]
        shares = [order[:1] if absent else share for share, absent in zip(shares, stand_in, strict=True)]
        index = torch.cat(shares)
        block, available = table.rows(index), self.table.present[index].to(self.device)
        if self.masking.corruption > 0:
            masking = self.masking
            block = corrupt(block, masking.corruption, self.seed, epoch, masking.kinds, scales=self._scales)
        block = block.to(self.device)
        offset = 0
        for number, indices, share, absent in zip(numbers, batches, shares, stand_in, strict=True):
            passes = []
            for rows in _parts(len(share), self.accumulate):
                passes.append(
                    Pass(_slice(block, offset, rows), available.narrow(0, offset, rows), 0.0 if absent else 1.0)
                )
                offset += rows
            yield Step(number, passes, len(indices))


def _parts(rows: int, count: int) -> list[int]:
    """``rows`` in at most ``count`` near-equal parts, none of them empty."""
    count = min(count, rows)
    return [rows // count + (i < rows % count) for i in range(count)]


def _slice(batch: Batch, offset: int, rows: int) -> Batch:
    def cut(tensor: Tensor) -> Tensor:
        return tensor.narrow(0, offset, rows)

    return Batch(
        batch.modalities,
        map_tensors(batch.inputs, cut),
        cut(batch.present),
        None if batch.target is None else cut(batch.target),
        cut(batch.keys),
    )


def _nbytes(batch: Batch) -> int:
    sizes: list[int] = []
    map_tensors(batch.inputs, lambda tensor: sizes.append(tensor.numel() * tensor.element_size()))
    return sum(sizes)
