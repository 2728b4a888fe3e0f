"""Late fusion: every modality decides alone, the decisions are averaged or added.

Shapes: B batch, M modalities, D embedding width, C outputs (classes, labels or parameters). Masks: True = present.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polyfuse.fusion.base import FusionOutput
from polyfuse.fusion.named import NamedFusion, NamedModules, present_mean
from polyfuse.fusion.subsets import Readout, combine


class LateFusion(NamedFusion):
    """Mean or sum of per-modality logits over the present modalities; ``fused`` *are* the logits.

    Each modality has its own head ``f_m``: ``F = sum_m present_m f_m(x_m)``, divided by the number present for "mean".
    The mean of logits is the normalised geometric mean of the unimodal predictions (a logarithmic opinion pool); the
    sum is a product of experts, sharper the more modalities are here, and overconfident when they are correlated.
    Neither can represent interactions between modalities (an XOR of two inputs).

    Args:
        modalities: Names, in the column order of ``present``.
        embed_dim: Width of every embedding, or one width per name.
        out_dim: Number of logits C; None = the largest embedding width (only sensible inside another fusion).
        reduction: "mean" or "sum" over the present modalities.
        hidden: Width of one hidden GELU layer in every head; 0 = linear heads, None = as wide as the embedding.
        dropout: Dropout on the hidden layer.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If ``reduction`` is unknown, or names or widths are refused.

    Example:
        >>> fusion = LateFusion(("image", "text"), embed_dim=4, out_dim=3)
        >>> out = fusion({"image": torch.zeros(5, 4), "text": torch.zeros(5, 4)})
        >>> out.fused.shape, out.info["modality_logits"].shape
        (torch.Size([5, 3]), torch.Size([5, 2, 3]))
    """

    decision_level: ClassVar[bool] = True

    def __init__(
        self,
        modalities: Sequence[str],
        embed_dim: int | Mapping[str, int],
        out_dim: int | None = None,
        *,
        reduction: str = "mean",
        hidden: int | None = None,
        dropout: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(modalities, embed_dim, out_dim)
        if reduction not in ("sum", "mean"):
            raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
        self.reduction = reduction
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.heads = decision_heads(self.widths, self.out_dim, hidden, dropout, **factory)

    def forward(self, embeddings: Mapping[str, Tensor], present: Tensor | None = None) -> FusionOutput:
        """Combine one decision per modality.

        Shape:
            - embeddings: ``{name: (B, D_m)}``; present: ``(B, M)`` bool, None = all present.
            - fused: ``(B, C)`` logits, zeros in empty rows; weights: None.
            - info: ``empty (B,)``, ``modality_logits (B, M, C)`` in ``modalities`` order, zeros where absent.

        Raises:
            ValueError: If an embedding is missing or has a wrong shape, or ``present`` is not ``(B, M)`` bool.
        """
        inputs, present_BM, empty_B = self.canonical_inputs(embeddings, present)
        logits = [self.heads[name](x_BD) for name, x_BD in zip(self.canonical, inputs, strict=True)]
        logits_BMC = torch.stack(logits, dim=1).masked_fill(~present_BM[..., None], 0.0)
        fused_BC = logits_BMC.sum(dim=1) if self.reduction == "sum" else present_mean(logits_BMC, present_BM)
        return FusionOutput(fused_BC, None, {"empty": empty_B, "modality_logits": self.user_order(logits_BMC)})

    def every_subset(self, inputs: list[Tensor], subsets: Tensor, readout: Readout | None) -> FusionOutput | None:
        """Decisions once per modality."""
        parts = [self.heads[name](x_BD) for name, x_BD in zip(self.canonical, inputs, strict=True)]
        return FusionOutput(combine(parts, subsets, self.reduction, readout), None, {})


def decision_heads(
    widths: Mapping[str, int], out_dim: int, hidden: int | None, dropout: float, **factory: Any
) -> NamedModules:
    """One head per modality, ``(B, D_m)`` to ``(B, C)``; ``hidden`` as in ``LateFusion``."""
    heads: dict[str, nn.Module] = {}
    for name, width in widths.items():
        middle = width if hidden is None else hidden
        heads[name] = (
            nn.Sequential(
                nn.Linear(width, middle, **factory),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(middle, out_dim, **factory),
            )
            if middle
            else nn.Linear(width, out_dim, **factory)
        )
    return NamedModules(heads)
