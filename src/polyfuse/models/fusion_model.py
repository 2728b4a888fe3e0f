"""Encoders, one fusion and one head: the model that the workbench trains.

Shapes: B batch, M modalities, D embedding width, C outputs, S subsets. Masks: True = present.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.fusion.named import NamedModules
from polyfuse.fusion.subsets import Readout, fuse_repeated
from polyfuse.heads import split_head
from polyfuse.models.output import ModelOutput


def zero_absent(name: str, value: Any, present_B: Tensor) -> Any:
    """The input of a modality (a tensor, or a dict of tensors), zero or False in the rows where it is absent."""
    if isinstance(value, Mapping):
        return {key: zero_absent(name, part, present_B) for key, part in value.items()}
    if value.shape[0] != present_B.shape[0]:  # a single row would broadcast
        raise ValueError(f"input of '{name}' has {value.shape[0]} rows, but present has {present_B.shape[0]}")
    absent = ~present_B.view(-1, *(1,) * (value.ndim - 1))
    return value.masked_fill(absent, 0)


class FusionModel(nn.Module):
    """One encoder per modality, a fusion over their embeddings, a head on top.

    Absent inputs are replaced by zeros *before* their encoder, and absent embeddings again inside the fusion: a broken
    file reaches neither an output nor a gradient. Every encoder runs on every batch, on zeros if need be, because data
    parallel training fails when one rank skips a branch.

    Args:
        encoders: ``{name: module}``, from that modality's input form to ``(B, D_m)``; ``nn.Identity`` for embeddings
            computed before.
        fusion: Any fusion of ``FUSIONS``; its ``modalities`` fix the column order of ``present``.
        head: From ``(B, fusion.out_dim)`` to logits. None, or ``nn.Identity``, if and only if the fusion is
            decision-level (``late``), whose fused vector is the logits.

    Raises:
        ValueError: If encoders and fusion name different modalities, or head and fusion do not go together.

    Example:
        >>> from polyfuse.fusion import ConcatFusion
        >>> from polyfuse.heads import ClassificationHead
        >>> encoders = {"image": nn.Linear(3, 4), "text": nn.Identity()}
        >>> model = FusionModel(encoders, ConcatFusion(("image", "text"), embed_dim=4), ClassificationHead(4, 2))
        >>> inputs = {"image": torch.zeros(5, 3), "text": torch.zeros(5, 4)}
        >>> model(inputs, torch.tensor([[True, False]] * 5)).logits.shape
        torch.Size([5, 2])
    """

    def __init__(self, encoders: Mapping[str, nn.Module], fusion: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.modalities: tuple[str, ...] = tuple(fusion.modalities)  # type: ignore[arg-type]
        if sorted(encoders) != sorted(self.modalities):
            raise ValueError(f"encoders must be for {sorted(self.modalities)}, got {sorted(encoders)}")
        headless = head is None or isinstance(head, nn.Identity)
        if headless != bool(getattr(fusion, "decision_level", False)):
            rule = "must not have a head: its output is the logits" if not headless else "needs a head"
            raise ValueError(f"{type(fusion).__name__} {rule}, got {type(head).__name__}")
        self.encoders = NamedModules(encoders)
        self.fusion = fusion
        self.head = nn.Identity() if head is None else head

    def encode(self, inputs: Mapping[str, Any], present: Tensor | None = None) -> dict[str, Tensor]:
        """Embed every modality, once; ``fuse`` can then be called for any subset of what is present.

        Shape:
            - inputs: ``{name: tensor or dict of tensors}``, first axis B; present: ``(B, M)`` bool, None = all present.
            - returns ``{name: (B, D_m)}``; rows where the modality is absent hold the encoding of zeros.

        Raises:
            ValueError: If ``inputs`` lacks a modality, or ``present`` is not bool with one column per modality and as
                many rows as the inputs.
        """
        for name in self.modalities:
            if name not in inputs:
                raise ValueError(f"inputs lack '{name}', got {sorted(inputs)}, expected {list(self.modalities)}")
        if present is not None and (present.dtype != torch.bool or present.shape[1:] != (len(self.modalities),)):
            raise ValueError(
                f"present must be bool of shape (B, {len(self.modalities)}), got {present.dtype} {tuple(present.shape)}"
            )
        embeddings = {}
        for m, name in enumerate(self.modalities):
            value = inputs[name] if present is None else zero_absent(name, inputs[name], present[:, m])
            embeddings[name] = self.encoders[name](value)
        return embeddings

    def fuse(self, embeddings: Mapping[str, Tensor], present: Tensor | None = None) -> ModelOutput:
        """Fuse embeddings and apply the head.

        Shape:
            embeddings: ``{name: (B, D_m)}`` from ``encode``; present: ``(B, M)`` bool, None = all present.

        Raises:
            ValueError: If an embedding is missing or has a wrong shape, or ``present`` is not ``(B, M)`` bool.
        """
        fused, weights, info = self.fusion(embeddings, present)
        return ModelOutput(self.head(fused), weights, info)

    @property
    def shares_subsets(self) -> bool:
        """Whether ``fuse_subsets`` is cheaper than ``fuse`` pair by pair."""
        return bool(getattr(self.fusion, "shares_subsets", False))

    def fuse_subsets(self, embeddings: Mapping[str, Tensor], subsets: Tensor) -> ModelOutput:
        """``fuse`` every subset of every row, to rounding, with the work that subsets share done once.

        Shape:
            - embeddings: ``{name: (B, D_m)}`` of rows that have everything, or whose answers for subsets they lack are
              thrown away; subsets: ``(S, M)`` bool.
            - logits: ``(S B, C)``, weights ``(S B, M)`` or None: row b of subset s at s B + b.

        Raises:
            ValueError: If an embedding is missing or has a wrong shape, or ``subsets`` is not ``(S, M)`` bool.
        """
        shared: Any = getattr(self.fusion, "fuse_subsets", None)
        if shared is None:
            fused, weights, info = fuse_repeated(self.fusion, embeddings, subsets)
            return ModelOutput(self.head(fused), weights, info)
        first, after = split_head(self.head)
        fused, weights, info = shared(embeddings, subsets, None if first is None else Readout(first.weight, first.bias))
        return ModelOutput(after(fused), weights, info)

    def forward(self, inputs: Mapping[str, Any], present: Tensor | None = None) -> ModelOutput:
        """``fuse(encode(inputs, present), present)``."""
        return self.fuse(self.encode(inputs, present), present)
