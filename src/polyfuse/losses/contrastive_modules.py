"""The contrastive losses as modules, with the temperature and bias they learn.

Shapes: B pairs, E embedding width. Masks: True = present.
"""

from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.losses.contrastive import cosine_pair_loss, hard_hinge, info_nce, siglip_loss
from polyfuse.losses.scale import LearnableScale


class InfoNCELoss(nn.Module):
    """``info_nce`` with a learnable, bounded temperature.

    Args:
        initial: Scale (1 / temperature) at the start.
        least: Smallest scale; None = any.
        most: Largest scale; None = any.
        label_smoothing: Share of the target that is spread over all columns.
        device: Device of the parameter.
        dtype: Dtype of the parameter.

    Example:
        >>> InfoNCELoss()(torch.eye(3), torch.eye(3)) < 1e-5
        tensor(True)
    """

    def __init__(
        self,
        initial: float = 1 / 0.07,
        least: float | None = 1.0,
        most: float | None = 100.0,
        label_smoothing: float = 0.0,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.scale = LearnableScale(initial, least, most, device=device, dtype=dtype)
        self.label_smoothing = label_smoothing

    def forward(
        self, first: Tensor, second: Tensor, ids: Tensor | None = None, present: Tensor | None = None
    ) -> Tensor:
        """Scalar of ``(B, E)`` sides; ids ``(B,)``, present ``(B,)``."""
        return info_nce(first, second, self.scale(), ids=ids, present=present, label_smoothing=self.label_smoothing)


class SigLIPLoss(nn.Module):
    """``siglip_loss`` with a learnable scale and bias.

    Args:
        initial: Scale at the start.
        bias: Bias at the start; big_vision's example starts at -2.71.
        least: Smallest scale; None = any, as in the paper.
        most: Largest scale; None = any, as in the paper.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Example:
        >>> [name for name, _ in SigLIPLoss().named_parameters()]
        ['bias', 'scale.theta']
    """

    def __init__(
        self,
        initial: float = 10.0,
        bias: float = -10.0,
        least: float | None = None,
        most: float | None = None,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.scale = LearnableScale(initial, least, most, device=device, dtype=dtype)
        self.bias = nn.Parameter(torch.full((), bias, device=device, dtype=dtype))

    def forward(
        self, first: Tensor, second: Tensor, ids: Tensor | None = None, present: Tensor | None = None
    ) -> Tensor:
        """Scalar of ``(B, E)`` sides; ids ``(B,)``, present ``(B,)``."""
        return siglip_loss(first, second, self.scale(), self.bias, ids=ids, present=present)


class CosinePairLoss(nn.Module):
    """``cosine_pair_loss`` as a module.

    Args:
        margin: Cosine that costs nothing in a pair that does not belong together; None = no clamp.
        reduction: "sum", "mean" or "none".
    """

    def __init__(self, margin: float | None = None, reduction: str = "sum") -> None:
        super().__init__()
        self.margin, self.reduction = margin, reduction

    def forward(self, first: Tensor, second: Tensor, match: Tensor, present: Tensor | None = None) -> Tensor:
        """Scalar of ``(N, E)`` sides; match ``(N,)``, present ``(N,)``."""
        return cosine_pair_loss(first, second, match, margin=self.margin, present=present, reduction=self.reduction)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"margin={self.margin}, reduction={self.reduction}"


class HardHinge(nn.Module):
    """``hard_hinge`` as a module.

    Args:
        margin: By how much the right partner should lead.
        hardest: False = the sum over all negatives.
    """

    def __init__(self, margin: float = 0.2, hardest: bool = True) -> None:
        super().__init__()
        self.margin, self.hardest = margin, hardest

    def forward(
        self, first: Tensor, second: Tensor, ids: Tensor | None = None, present: Tensor | None = None
    ) -> Tensor:
        """Scalar of ``(B, E)`` sides; ids ``(B,)``, present ``(B,)``."""
        return hard_hinge(first, second, margin=self.margin, ids=ids, present=present, hardest=self.hardest)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"margin={self.margin}, hardest={self.hardest}"
