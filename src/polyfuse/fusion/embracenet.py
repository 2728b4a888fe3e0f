"""EmbraceNet fusion: every feature of the fused vector comes from one present modality, drawn at random in training.

Shapes: B batch, M modalities, D embedding width, H output width. Masks: True = present.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polyfuse.fusion.base import FusionOutput
from polyfuse.fusion.named import NamedFusion, linear_by_name
from polyfuse.fusion.subsets import Readout, mix


class EmbraceNetFusion(NamedFusion):
    """Per-feature multinomial choice among the present modalities in training, its expectation in eval.

    Source: EmbraceNet, https://arxiv.org/abs/1904.09078, section 3: docking ``d_m = relu(W_m x_m + b_m)``, then feature
    i of the embraced vector is ``d_m[i]`` with ``m ~ Multinomial(1, p)``, p renormalised over the available modalities.
    Differs: the published code draws at test time too; in eval mode this is the expectation ``sum_m p_m d_m``, so that
    predictions are deterministic. Draws come from the global generator (``torch.manual_seed``).

    Args:
        modalities: Names, in the column order of ``present`` and ``weights``.
        embed_dim: Width of every embedding, or one width per name.
        out_dim: Width of ``fused``; None = the largest embedding width.
        probabilities: ``{name: p_m}``, positive, need not sum to 1; None = all alike.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If a probability is missing or not positive, or names or widths are refused.

    Example:
        >>> fusion = EmbraceNetFusion(("image", "text"), embed_dim=4).eval()
        >>> fusion({"image": torch.ones(1, 4), "text": torch.ones(1, 4)}).weights
        tensor([[0.5000, 0.5000]])
    """

    def __init__(
        self,
        modalities: Sequence[str],
        embed_dim: int | Mapping[str, int],
        out_dim: int | None = None,
        *,
        probabilities: Mapping[str, float] | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(modalities, embed_dim, out_dim)
        self.probabilities = dict.fromkeys(self.modalities, 1.0) if probabilities is None else dict(probabilities)
        for name in self.modalities:
            if not 0.0 < self.probabilities.get(name, math.nan) < math.inf:
                raise ValueError(f"probabilities must hold a positive number for '{name}', got {self.probabilities}")
        self.docking = linear_by_name(self.widths, self.out_dim, device=device, dtype=dtype)

    def forward(self, embeddings: Mapping[str, Tensor], present: Tensor | None = None) -> FusionOutput:
        """Fuse one embedding per modality.

        Shape:
            - embeddings: ``{name: (B, D_m)}``; present: ``(B, M)`` bool, None = all present.
            - fused: ``(B, H)``, zeros in empty rows.
            - weights: ``(B, M)``, the probability that a feature comes from the modality (training and eval alike).
            - info: ``empty (B,)``.

        Raises:
            ValueError: If an embedding is missing or has a wrong shape, or ``present`` is not ``(B, M)`` bool.
        """
        inputs, present_BM, empty_B = self.canonical_inputs(embeddings, present)
        docked = [self.docking[name](x_BD) for name, x_BD in zip(self.canonical, inputs, strict=True)]
        d_BMH = torch.stack(docked, dim=1).relu().masked_fill(~present_BM[..., None], 0.0)
        weights_BM = self._shares(present_BM)
        if self.training:
            fused_BH = d_BMH.gather(1, self._draw(weights_BM)).squeeze(1)
        else:
            fused_BH = (weights_BM[..., None].to(d_BMH.dtype) * d_BMH).sum(dim=1)
        return FusionOutput(fused_BH, self.user_order(weights_BM).to(d_BMH.dtype), {"empty": empty_B})

    def every_subset(self, inputs: list[Tensor], subsets: Tensor, readout: Readout | None) -> FusionOutput | None:
        """In eval the weights are those of the subset, whatever the row."""
        if self.training:
            return None
        parts = [self.docking[name](x_BD).relu() for name, x_BD in zip(self.canonical, inputs, strict=True)]
        shares_SM = self._shares(subsets)
        weights = self.user_order(shares_SM).to(parts[0].dtype).repeat_interleave(len(inputs[0]), dim=0)
        return FusionOutput(mix(parts, shares_SM, readout), weights, {})

    def _shares(self, present_BM: Tensor) -> Tensor:
        """``(B, M)`` fp32: p renormalised over what is present, zeros in an empty row."""
        chance_BM = torch.stack(
            [present_BM[:, m].float() * self.probabilities[name] for m, name in enumerate(self.canonical)], dim=1
        )
        return chance_BM / chance_BM.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)

    def _draw(self, weights_BM: Tensor) -> Tensor:
        """Index ``(B, 1, H)`` of the modality that gives each feature; in an empty row any, all are zero there."""
        # Exponential race: argmin of Exp(1) / p_m follows Multinomial(1, p), and p_m = 0 can never win by rounding,
        # as it could by comparing one uniform number with a cumulative sum.
        shape = (*weights_BM.shape, self.out_dim)
        race_BMH = -torch.log1p(-torch.rand(shape, device=weights_BM.device)) / weights_BM[..., None]
        return race_BMH.nan_to_num(nan=math.inf).argmin(dim=1, keepdim=True)
