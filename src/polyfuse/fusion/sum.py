"""Sum fusion: one linear projection per modality, added over what is present.

Shapes: B batch, M modalities, D embedding width, H output width. Masks: True = present.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polyfuse.fusion.base import FusionOutput
from polyfuse.fusion.named import NamedFusion, linear_by_name, present_mean
from polyfuse.fusion.subsets import Readout, combine


class SumFusion(NamedFusion):
    """Add, or average, the projected embeddings of the present modalities.

    ``F = sum_m present_m (W_m x_m + b_m)``: the plainest joint representation, and the shortest fusion to copy from.

    Args:
        modalities: Names, in the column order of ``present``.
        embed_dim: Width of every embedding, or one width per name.
        out_dim: Width of ``fused``; None = the largest embedding width.
        reduction: "sum", or "mean" over the present modalities (the scale then does not depend on how many are here).
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If ``reduction`` is unknown, or names or widths are refused.

    Example:
        >>> fusion = SumFusion(("image", "text"), {"image": 4, "text": 2}, out_dim=3)
        >>> fusion({"image": torch.zeros(5, 4), "text": torch.zeros(5, 2)}).fused.shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        modalities: Sequence[str],
        embed_dim: int | Mapping[str, int],
        out_dim: int | None = None,
        *,
        reduction: str = "sum",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(modalities, embed_dim, out_dim)
        if reduction not in ("sum", "mean"):
            raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
        self.reduction = reduction
        self.project = linear_by_name(self.widths, self.out_dim, device=device, dtype=dtype)

    def forward(self, embeddings: Mapping[str, Tensor], present: Tensor | None = None) -> FusionOutput:
        """Fuse one embedding per modality.

        Shape:
            - embeddings: ``{name: (B, D_m)}``; present: ``(B, M)`` bool, None = all present.
            - fused: ``(B, H)``, zeros in empty rows; weights: None; info: ``empty (B,)``.

        Raises:
            ValueError: If an embedding is missing or has a wrong shape, or ``present`` is not ``(B, M)`` bool.
        """
        inputs, present_BM, empty_B = self.canonical_inputs(embeddings, present)
        slots = [self.project[name](x_BD) for name, x_BD in zip(self.canonical, inputs, strict=True)]
        x_BMH = torch.stack(slots, dim=1).masked_fill(~present_BM[..., None], 0.0)  # the bias of an absent slot too
        fused_BH = x_BMH.sum(dim=1) if self.reduction == "sum" else present_mean(x_BMH, present_BM)
        return FusionOutput(fused_BH, None, {"empty": empty_B})

    def every_subset(self, inputs: list[Tensor], subsets: Tensor, readout: Readout | None) -> FusionOutput | None:
        """A sum over what every modality says alone."""
        parts = [self.project[name](x_BD) for name, x_BD in zip(self.canonical, inputs, strict=True)]
        return FusionOutput(combine(parts, subsets, self.reduction, readout), None, {})
