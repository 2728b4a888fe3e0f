"""Product of experts: per-modality posteriors are multiplied, and the prior is counted once.

Shapes: B batch, M modalities, D embedding width, C outputs (classes, labels or parameters). Masks: True = present.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polyfuse.fusion.base import FusionOutput
from polyfuse.fusion.late import decision_heads
from polyfuse.fusion.named import NamedFusion
from polyfuse.heads import gaussian_parameters


class ProductOfExpertsFusion(NamedFusion):
    """Bayes' rule for conditionally independent modalities; ``fused`` *are* the logits.

    If the modalities are independent given y, ``p(y | x_S) ~ prod_{m in S} p(y | x_m) / p(y)^{|S| - 1}``. With the
    logits ``f_m`` of one expert per modality and those of a learned prior expert ``f_0``:
    ``F = sum_{m in S} f_m(x_m) - (|S| - 1) f_0``. A modality alone is its own posterior, an empty row gets
    the prior. Correlated modalities are counted twice and make the product overconfident; ``late`` averages instead.

    Source: product of experts, Hinton 2002, Neural Computation 14(8), equation 1; with a prior expert and quotients of
    it, Wu and Goodman, https://arxiv.org/abs/1802.05335, section 2. Differs: decisions instead of latent variables.

    Args:
        modalities: Names, in the column order of ``present``.
        embed_dim: Width of every embedding, or one width per name.
        out_dim: Number of outputs C; None = the largest embedding width.
        family: What an expert says. ``logits``: of classes or of labels. ``gaussian``: mean and log-variance of a
            regression (C = 2); precisions add up, ``precision = precision_0 + sum_m exp(-log_variance_m)``, and the
            mean is the one weighted by them, with the prior expert as one more term.
        hidden: Width of one hidden GELU layer in every expert; 0 = linear experts, None = as wide as the embedding.
        dropout: Dropout on the hidden layer.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If ``family`` is unknown or does not fit ``out_dim``, or names or widths are refused.

    Example:
        >>> fusion = ProductOfExpertsFusion(("image", "text"), embed_dim=4, out_dim=3)
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
        family: str = "logits",
        hidden: int | None = None,
        dropout: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(modalities, embed_dim, out_dim)
        if family not in ("logits", "gaussian"):
            raise ValueError(f"family must be 'logits' or 'gaussian', got {family!r}")
        if family == "gaussian" and self.out_dim != 2:
            raise ValueError(f"family='gaussian' needs out_dim = 2 (mean, log-variance), got {self.out_dim}")
        self.family = family
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.heads = decision_heads(self.widths, self.out_dim, hidden, dropout, **factory)
        self.prior = nn.Embedding(1, self.out_dim, **factory)  # an embedding: per-sample gradients need a lookup
        nn.init.zeros_(self.prior.weight)

    def forward(self, embeddings: Mapping[str, Tensor], present: Tensor | None = None) -> FusionOutput:
        """Combine one decision per modality.

        Shape:
            - embeddings: ``{name: (B, D_m)}``; present: ``(B, M)`` bool, None = all present.
            - fused: ``(B, C)``, the prior in empty rows; weights: None.
            - info: ``empty (B,)``, ``modality_logits (B, M, C)`` in ``modalities`` order, zeros where absent.

        Raises:
            ValueError: If an embedding is missing or has a wrong shape, or ``present`` is not ``(B, M)`` bool.
        """
        inputs, present_BM, empty_B = self.canonical_inputs(embeddings, present)
        logits = [self.heads[name](x_BD) for name, x_BD in zip(self.canonical, inputs, strict=True)]
        experts_BMC = torch.stack(logits, dim=1).masked_fill(~present_BM[..., None], 0.0)
        row_B1 = torch.zeros_like(present_BM[:, :1], dtype=torch.long)
        prior_BC = self.prior(row_B1)[:, 0].to(experts_BMC.dtype)
        if self.family == "gaussian":
            fused_BC = _multiply_gaussians(experts_BMC, prior_BC, present_BM)
        else:
            extra_B1 = present_BM.sum(dim=1, keepdim=True).to(prior_BC.dtype) - 1
            fused_BC = experts_BMC.sum(dim=1) - extra_B1 * prior_BC
        return FusionOutput(fused_BC, None, {"empty": empty_B, "modality_logits": self.user_order(experts_BMC)})


def _multiply_gaussians(experts_BM2: Tensor, prior_B2: Tensor, present_BM: Tensor) -> Tensor:
    """Mean and log-variance ``(B, 2)`` of the product of the prior and of the present experts."""
    prior_mean_B, prior_log_variance_B = gaussian_parameters(prior_B2)
    mean_BM, log_variance_BM = gaussian_parameters(experts_BM2)
    prior_precision_B = (-prior_log_variance_B).exp()
    precision_BM = (-log_variance_BM).exp().masked_fill(~present_BM, 0.0)
    precision_B = prior_precision_B + precision_BM.sum(dim=1)
    mean_B = (prior_precision_B * prior_mean_B + (precision_BM * mean_BM).sum(dim=1)) / precision_B
    return torch.stack([mean_B, -precision_B.log()], dim=1)
