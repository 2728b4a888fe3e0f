"""The number that decides when to stop: validation loss averaged over the subsets of inputs.

Shapes: N rows, M modalities, S subsets. Masks: True = present.
"""

import itertools
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.data.batch import Batch
from polyfuse.data.keyed import uniform
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
    """Mean over subsets of the mean loss over the rows that have that subset: encoders run once, the fusion per subset.

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
        self._rows = [valid[mine].nonzero()[:, 0].to(self.device) for valid in valid_SN[has_rows]]
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
            for s, (subset, valid) in enumerate(zip(self.subsets.to(self.device), self._rows, strict=True)):
                for rows in valid.split(self.batch_size):
                    chosen = {name: x[rows] for name, x in embeddings.items()}
                    logits = fuse(chosen, subset.expand(len(rows), -1)).logits
                    totals[s] += task_loss(self.task, logits, self._target[rows], reduction="none").double().sum()
        return totals

    def reduce(self, totals: Tensor) -> dict[str, float]:
        """From the sums of all processes: the mean over subsets, and the loss of the largest subset there is."""
        losses = totals.cpu() / self.counts
        complete = int(self.subsets.sum(dim=1).argmax())
        return {"validation_loss": losses.mean().item(), "validation_loss_complete": losses[complete].item()}
