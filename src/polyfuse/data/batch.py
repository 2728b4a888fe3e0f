"""A batch, or a whole table in memory: inputs by modality, who is present, the target and the row's identity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Tensor | dict[str, Tensor]]


def map_tensors(inputs: Mapping[str, Any], function: Any) -> Inputs:
    """Apply ``function`` to every tensor of a (possibly nested) input mapping."""
    return {
        name: {key: function(part) for key, part in value.items()} if isinstance(value, Mapping) else function(value)
        for name, value in inputs.items()
    }


@dataclass(frozen=True)
class Batch:
    """Rows of a table with holes.

    Attributes:
        modalities: Names, in the column order of ``present``.
        inputs: One tensor, or one dict of tensors, per modality; first axis B; zeros where absent.
        present: ``(B, M)`` bool, True = here.
        target: ``(B,)`` int64 classes, ``(B, L)`` float labels, ``(B,)`` float values, or None.
        keys: ``(B,)`` int64, the row's stable identity: every random draw about a row is keyed by it.
        ids: The row's id as the user wrote it, or None.
    """

    modalities: tuple[str, ...]
    inputs: Inputs
    present: Tensor
    target: Tensor | None
    keys: Tensor
    ids: Sequence[str] | None = None

    def __len__(self) -> int:
        return int(self.present.shape[0])

    def rows(self, index: Tensor) -> "Batch":
        """The rows at ``index`` (int64 ``(b,)``), in that order."""
        return Batch(
            modalities=self.modalities,
            inputs=map_tensors(self.inputs, lambda t: t[index]),
            present=self.present[index],
            target=None if self.target is None else self.target[index],
            keys=self.keys[index],
            ids=None if self.ids is None else [self.ids[i] for i in index.tolist()],
        )

    def to(self, device: torch.device | str) -> "Batch":
        """The same rows on another device."""
        return replace(
            self,
            inputs=map_tensors(self.inputs, lambda t: t.to(device, non_blocking=True)),
            present=self.present.to(device, non_blocking=True),
            target=None if self.target is None else self.target.to(device, non_blocking=True),
            keys=self.keys.to(device, non_blocking=True),
        )

    def with_present(self, present: Tensor) -> "Batch":
        """The same rows with another presence (``(B, M)`` bool); contents are left, fusions ignore what is absent."""
        return replace(self, present=present)


def concatenate(batches: Sequence[Batch]) -> Batch:
    """The rows of several batches of the same modalities, in order.

    Raises:
        ValueError: If there is none, or modalities differ.
    """
    if not batches:
        raise ValueError("batches must hold at least one batch, got none")
    first = batches[0]
    for other in batches:
        if other.modalities != first.modalities:
            raise ValueError(f"batches must have the same modalities {first.modalities}, got {other.modalities}")

    def joined(values: list[Any]) -> Any:
        if isinstance(values[0], Mapping):
            return {key: torch.cat([value[key] for value in values]) for key in values[0]}
        return torch.cat(values)

    targets = [batch.target for batch in batches]
    return Batch(
        modalities=first.modalities,
        inputs={name: joined([batch.inputs[name] for batch in batches]) for name in first.inputs},
        present=torch.cat([batch.present for batch in batches]),
        target=None if any(target is None for target in targets) else joined(targets),
        keys=torch.cat([batch.keys for batch in batches]),
        ids=None if first.ids is None else [name for batch in batches for name in (batch.ids or ())],
    )
