"""The contrastive losses as modules, with the temperature and bias they learn.

Shapes: B pairs, E embedding width. Masks: True = present.
"""

from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.losses.chunked import CHUNK, chunked_info_nce, chunked_siglip
from polyfuse.losses.contrastive import cosine_pair_loss, hard_hinge, info_nce, siglip_loss
from polyfuse.losses.distributed import distributed_info_nce, distributed_siglip
from polyfuse.losses.scale import LearnableScale

FORMS = ("dense", "chunked", "gather", "ring")


def _check_form(form: str) -> str:
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got '{form}'")
    return form


class InfoNCELoss(nn.Module):
    """``info_nce`` with a learnable, bounded temperature.

    Args:
        initial: Scale (1 / temperature) at the start.
        least: Smallest scale; None = any.
        most: Largest scale; None = any.
        label_smoothing: Share of the target that is spread over all columns.
        form: "dense" or "chunked" over this process's rows, "gather" or "ring" over those of all processes.
        chunk: Rows of a tile ("chunked", "ring").
        group: Process group ("gather", "ring"); None = all processes.
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
        form: str = "dense",
        *,
        chunk: int = CHUNK,
        group: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.scale = LearnableScale(initial, least, most, device=device, dtype=dtype)
        self.label_smoothing, self.form, self.chunk, self.group = label_smoothing, _check_form(form), chunk, group

    def forward(
        self, first: Tensor, second: Tensor, ids: Tensor | None = None, present: Tensor | None = None
    ) -> Tensor:
        """Scalar of ``(B, E)`` sides; ids ``(B,)``, present ``(B,)``."""
        scale = self.scale()
        rows: dict[str, Any] = {"ids": ids, "present": present, "label_smoothing": self.label_smoothing}
        if self.form == "dense":
            return info_nce(first, second, scale, **rows)
        if self.form == "chunked":
            return chunked_info_nce(first, second, scale, chunk=self.chunk, **rows)
        return distributed_info_nce(first, second, scale, mode=self.form, chunk=self.chunk, group=self.group, **rows)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"label_smoothing={self.label_smoothing}, form={self.form}"


class SigLIPLoss(nn.Module):
    """``siglip_loss`` with a learnable scale and bias.

    Args:
        initial: Scale at the start.
        bias: Bias at the start; big_vision's example starts at -2.71.
        least: Smallest scale; None = any, as in the paper.
        most: Largest scale; None = any, as in the paper.
        form: "dense" or "chunked" over this process's rows, "gather" or "ring" over those of all processes.
        chunk: Rows of a tile ("chunked", "ring").
        group: Process group ("gather", "ring"); None = all processes.
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
        form: str = "dense",
        *,
        chunk: int = CHUNK,
        group: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.scale = LearnableScale(initial, least, most, device=device, dtype=dtype)
        self.bias = nn.Parameter(torch.full((), bias, device=device, dtype=dtype))
        self.form, self.chunk, self.group = _check_form(form), chunk, group

    def forward(
        self, first: Tensor, second: Tensor, ids: Tensor | None = None, present: Tensor | None = None
    ) -> Tensor:
        """Scalar of ``(B, E)`` sides; ids ``(B,)``, present ``(B,)``."""
        sides = (first, second, self.scale(), self.bias)
        rows: dict[str, Any] = {"ids": ids, "present": present}
        if self.form == "dense":
            return siglip_loss(*sides, **rows)
        if self.form == "chunked":
            return chunked_siglip(*sides, chunk=self.chunk, **rows)
        return distributed_siglip(*sides, mode=self.form, chunk=self.chunk, group=self.group, **rows)

    def extra_repr(self) -> str:
        """The form."""
        return f"form={self.form}"


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
