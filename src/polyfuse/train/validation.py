"""The number that decides when to stop: validation loss averaged over the subsets of inputs.

Shapes: N rows, M modalities, S subsets, P pairs of a subset and a row that has it. Masks: True = present.
"""

import itertools
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.data.batch import Batch
from polyfuse.data.keyed import uniform
from polyfuse.fusion.subsets import DENSE
from polyfuse.losses.task import task_loss

_EXHAUSTIVE = 6
_SAMPLED = 32


def validation_subsets(modalities: int, *, limit: int = _EXHAUSTIVE, sampled: int = _SAMPLED) -> Tensor:
    """``(S, M)`` bool: every non-empty subset up to ``limit`` modalities.

    Above it, the full set, every single modality and random subsets, ``sampled`` in all at least.

    Example:
        >>> validation_subsets(2).tolist()
        [[True, False], [False, True], [True, True]]
    """
    if modalities <= limit:
        bits = itertools.product((False, True), repeat=modalities)
        return torch.tensor([row[::-1] for row in bits if any(row)])
    fixed = torch.cat([torch.eye(modalities), torch.ones(1, modalities)]).bool()
    draws = uniform(0, "validation subsets", 0, torch.arange(4 * sampled), modalities) < 0.5
    size = draws.sum(dim=1)
    random = draws[(size > 1) & (size < modalities)].unique(dim=0)
    return torch.cat([fixed, random[: max(sampled - len(fixed), 0)]])


class SubsetLoss:
    """Mean over subsets of the mean loss over the rows that have that subset: encoders run once.

    Args:
        table: Validation rows with targets.
        task: Of ``task_loss``.
        rank: This process; it takes every ``world_size``-th row.
        world_size: Number of processes.
        device: Where to compute.
        batch_size: Rows per pass.
    """

    def __init__(
        self,
        table: Batch,
        task: str,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        batch_size: int = 1024,
    ) -> None:
        if table.target is None:
            raise ValueError("validation rows must have a target, got None")
        self.task, self.batch_size, self.device = task, batch_size, torch.device(device)
        mine = torch.arange(rank, len(table), world_size)
        self.table = replace(table, ids=None)
        self._chunks = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
        self.subsets = validation_subsets(len(table.modalities))
        valid_SN = (table.present[None] | ~self.subsets[:, None]).all(dim=2)
        has_rows = valid_SN.any(dim=1)
        self.subsets = self.subsets[has_rows]
        # Every (subset, row) pair of this process, in long batches: one pass each instead of one per subset.
        self._valid_SN = valid_SN[has_rows][:, mine].to(self.device)
        self._dense = DENSE * int(self._valid_SN.sum()) > self._valid_SN.numel()
        subset_P, row_P = self._valid_SN.cpu().nonzero(as_tuple=True)
        self._subset_P, self._row_P = subset_P.to(self.device), row_P.to(self.device)
        self._present_PM = self.subsets[subset_P].to(self.device)
        self.counts = valid_SN[has_rows].sum(dim=1).double()
        self._target = table.target[mine].to(self.device)

    @torch.no_grad()
    def sums(self, model: nn.Module, autocast: AbstractContextManager[Any]) -> Tensor:
        """``(S,)`` float64: this process's sum of losses per subset. The model must be in eval mode."""
        encode: Any = model.encode
        fuse: Any = model.fuse
        totals = torch.zeros(len(self.subsets), dtype=torch.float64, device=self.device)
        if not self._chunks:
            return totals
        with autocast:
            parts = []
            for index in self._chunks:
                batch = self.table.rows(index).to(self.device)
                parts.append(encode(batch.inputs, batch.present))
            embeddings = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            if self._dense and getattr(model, "shares_subsets", False):
                return self._together(model, embeddings)
            for start in range(0, len(self._row_P), self.batch_size):
                pairs = slice(start, start + self.batch_size)
                rows = self._row_P[pairs]
                logits = fuse({name: x[rows] for name, x in embeddings.items()}, self._present_PM[pairs]).logits
                losses = task_loss(self.task, logits, self._target[rows], reduction="none")
                totals.index_add_(0, self._subset_P[pairs], losses.double())
        return totals

    def _together(self, model: Any, embeddings: dict[str, Tensor]) -> Tensor:
        """The same, all subsets of a block of rows at once; rows that lack a subset count nothing for it."""
        subsets = self.subsets.to(self.device)
        totals = torch.zeros(len(subsets), dtype=torch.float64, device=self.device)
        size = max(1, 4 * self.batch_size // len(subsets))
        for start in range(0, len(self._target), size):
            block = slice(start, start + size)
            target, valid_SB = self._target[block], self._valid_SN[:, block]
            logits = model.fuse_subsets({name: x[block] for name, x in embeddings.items()}, subsets).logits
            repeated = target.repeat(len(subsets), *(1,) * (target.ndim - 1))
            losses = task_loss(self.task, logits, repeated, reduction="none").view_as(valid_SB)
            totals += losses.masked_fill(~valid_SB, 0.0).double().sum(dim=1)
        return totals

    def reduce(self, totals: Tensor) -> dict[str, float]:
        """From the sums of all processes: the mean over subsets, and the loss of the largest subset there is."""
        losses = totals.cpu() / self.counts
        complete = int(self.subsets.sum(dim=1).argmax())
        return {"validation_loss": losses.mean().item(), "validation_loss_complete": losses[complete].item()}
