"""Low-rank tensor fusion: products of per-modality projections, summed over a rank.

Shapes: B batch, M modalities, D embedding width, R rank, H output width. Masks: True = present.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.fusion.base import FusionOutput
from polyfuse.fusion.named import NamedFusion, linear_by_name
from polyfuse.fusion.subsets import Readout


class LowRankFusion(NamedFusion):
    """Low-rank Multimodal Fusion (LMF); an absent modality is the neutral factor 1.

    Source: LMF, https://arxiv.org/abs/1806.00064, section 3.2: with ``z_m = [x_m; 1]`` and factors ``w_m^(r)``,
    ``F = sum_r prod_m (w_m^(r) z_m)``, which equals the full tensor ``W . (z_1 x ... x z_M)`` of rank R; with the
    learned weight per rank and the bias of the authors' code.
    Differs: the constant rows start at 1 and the others small, so that "absent = 1" is where a factor starts and a
    product over many modalities starts near 1 instead of near 0 (with eight modalities +1.2 points in our pilot).

    Args:
        modalities: Names, in the column order of ``present``.
        embed_dim: Width of every embedding, or one width per name.
        out_dim: Width of ``fused``; None = the largest embedding width.
        rank: Number R of rank-one terms.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If ``rank`` is not positive, or names or widths are refused.

    Example:
        >>> fusion = LowRankFusion(("image", "text"), embed_dim=4, rank=2)
        >>> fusion({"image": torch.zeros(5, 4), "text": torch.zeros(5, 4)}).fused.shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        modalities: Sequence[str],
        embed_dim: int | Mapping[str, int],
        out_dim: int | None = None,
        *,
        rank: int = 4,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(modalities, embed_dim, out_dim)
        if rank < 1:
            raise ValueError(f"rank must be positive, got {rank}")
        self.rank = rank
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.factor = linear_by_name(self.widths, self.out_dim * rank, **factory)
        self.mix = nn.Linear(rank, 1, bias=False, **factory)
        self.bias = nn.Embedding(1, self.out_dim, **factory)  # an embedding: per-sample gradients need a lookup
        for factor in self.factor.values():
            nn.init.ones_(factor.get_parameter("bias"))
        nn.init.zeros_(self.bias.weight)

    def forward(self, embeddings: Mapping[str, Tensor], present: Tensor | None = None) -> FusionOutput:
        """Fuse one embedding per modality.

        Shape:
            - embeddings: ``{name: (B, D_m)}``; present: ``(B, M)`` bool, None = all present.
            - fused: ``(B, H)``; weights: None; info: ``empty (B,)``.

        Raises:
            ValueError: If an embedding is missing or has a wrong shape, or ``present`` is not ``(B, M)`` bool.
        """
        inputs, present_BM, empty_B = self.canonical_inputs(embeddings, present)
        product_BHR: Tensor | None = None
        for m, (name, x_BD) in enumerate(zip(self.canonical, inputs, strict=True)):
            factor = self.factor[name](x_BD).unflatten(1, (self.out_dim, self.rank))
            factor_BHR = factor.masked_fill(~present_BM[:, m, None, None], 1.0)
            product_BHR = factor_BHR if product_BHR is None else product_BHR * factor_BHR
        row_B1 = torch.zeros_like(present_BM[:, :1], dtype=torch.long)
        fused_BH = self.mix(product_BHR).squeeze(-1)
        fused_BH = fused_BH + self.bias(row_B1)[:, 0].to(fused_BH.dtype)
        return FusionOutput(fused_BH, None, {"empty": empty_B})

    def every_subset(self, inputs: list[Tensor], subsets: Tensor, readout: Readout | None) -> FusionOutput | None:
        """Factors once per modality."""
        product: Tensor | None = None
        for m, (name, x_BD) in enumerate(zip(self.canonical, inputs, strict=True)):
            factor = torch.where(subsets[:, m, None, None], self.factor[name](x_BD), 1.0)  # (S, B, H R)
            product = factor if product is None else product * factor
        assert product is not None  # noqa: S101 - a fusion has a modality
        fused = self.mix(product.flatten(0, 1).unflatten(1, (self.out_dim, self.rank))).squeeze(-1)
        fused = fused + self.bias.weight[0].to(fused.dtype)
        return FusionOutput(fused if readout is None else readout(fused), None, {})
