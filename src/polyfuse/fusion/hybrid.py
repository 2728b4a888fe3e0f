"""Hybrid fusion: an early (joint) term plus a late (per-modality) term.

Shapes: B batch, M modalities, D embedding width, H output width. Masks: True = present.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polyfuse.fusion.base import FusionOutput
from polyfuse.fusion.concat import ConcatFusion
from polyfuse.fusion.late import LateFusion
from polyfuse.fusion.named import NamedFusion
from polyfuse.fusion.subsets import Readout


class HybridFusion(NamedFusion):
    """``F = f_early(x_1, ..., x_M) + mean_m f_m(x_m)``: concat fusion plus late fusion, in one feature space.

    With a linear head the fused logits are the sum of joint logits and of averaged per-modality logits: the late term
    keeps a path that works for any subset, the early term adds the interactions that late fusion cannot represent.

    Args:
        modalities: Names, in the column order of ``present``.
        embed_dim: Width of every embedding, or one width per name.
        out_dim: Width of ``fused``; None = the largest embedding width.
        hidden: Hidden width of the early MLP; None = its default.
        dropout: Dropout on the hidden layers of both terms.
        missing_tokens: Learned tokens in the empty slots of the early term.
        reduction: How the late term combines the present modalities, "mean" or "sum".
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If ``reduction`` is unknown, or names or widths are refused.

    Example:
        >>> fusion = HybridFusion(("image", "text"), embed_dim=4)
        >>> fusion({"image": torch.zeros(5, 4), "text": torch.zeros(5, 4)}).fused.shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        modalities: Sequence[str],
        embed_dim: int | Mapping[str, int],
        out_dim: int | None = None,
        *,
        hidden: int | None = None,
        dropout: float = 0.0,
        missing_tokens: bool = True,
        reduction: str = "mean",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(modalities, embed_dim, out_dim)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.early = ConcatFusion(
            modalities,
            embed_dim,
            self.out_dim,
            hidden=hidden,
            dropout=dropout,
            missing_tokens=missing_tokens,
            **factory,
        )
        self.late = LateFusion(modalities, embed_dim, self.out_dim, reduction=reduction, dropout=dropout, **factory)

    def forward(self, embeddings: Mapping[str, Tensor], present: Tensor | None = None) -> FusionOutput:
        """Fuse one embedding per modality.

        Shape:
            - embeddings: ``{name: (B, D_m)}``; present: ``(B, M)`` bool, None = all present.
            - fused: ``(B, H)``; weights: None; info: ``empty (B,)``.

        Raises:
            ValueError: If an embedding is missing or has a wrong shape, or ``present`` is not ``(B, M)`` bool.
        """
        early = self.early(embeddings, present)
        late = self.late(embeddings, present)
        return FusionOutput(early.fused + late.fused, None, {"empty": early.info["empty"]})

    def every_subset(self, inputs: list[Tensor], subsets: Tensor, readout: Readout | None) -> FusionOutput | None:
        """Both terms, each with its own shared work."""
        early = self.early.every_subset(inputs, subsets, readout)
        late = self.late.every_subset(inputs, subsets, None if readout is None else readout.without_bias())
        if early is None or late is None:
            return None
        return FusionOutput(early.fused + late.fused, None, {})
