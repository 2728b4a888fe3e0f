"""The learnable temperature of the contrastive losses."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.functional import at_least_float32


class _Held(torch.autograd.Function):
    """A value held within bounds, whose gradient is cut only where it would push further out.

    A plain clamp has no gradient beyond its bounds: a temperature that stepped out could never come back.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.bounds = (low, high)
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (value,) = ctx.saved_tensors
        low, high = ctx.bounds
        outward = ((value >= high) & (gradient < 0)) | ((value <= low) & (gradient > 0))
        return gradient.masked_fill(outward, 0.0), None, None


class LearnableScale(nn.Module):
    """``exp(theta)``, what cosines are multiplied by (1 / temperature), held within bounds.

    Source: CLIP, https://arxiv.org/abs/2103.00020, section 2.5: starts at 1 / 0.07, never above 100. Differs: the
    parameter itself is not overwritten; beyond a bound the scale equals the bound and only gradients that lead back
    pass.

    Args:
        initial: The scale at the start.
        least: Smallest scale; None = any above 0.
        most: Largest scale; None = any.
        device: Device of the parameter.
        dtype: Dtype of the parameter.

    Raises:
        ValueError: If the numbers are not 0 < least <= initial <= most.

    Example:
        >>> LearnableScale(most=10.0, initial=10.0)()
        tensor(10., grad_fn=<ExpBackward0>)
    """

    def __init__(
        self,
        initial: float = 1 / 0.07,
        least: float | None = 1.0,
        most: float | None = 100.0,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        # None, not falsehood: ln 1 = 0 is a bound.
        low = 0.0 if least is None else least
        high = math.inf if most is None else most
        if not (0 <= low <= initial <= high) or initial <= 0 or least == 0:
            raise ValueError(f"need 0 < least <= initial <= most, got {least}, {initial} and {most}")
        self.least, self.most = least, most
        self.theta = nn.Parameter(torch.full((), math.log(initial), device=device, dtype=dtype))

    def forward(self) -> Tensor:
        """The scale, a scalar."""
        low = -math.inf if self.least is None else math.log(self.least)
        high = math.inf if self.most is None else math.log(self.most)
        return _Held.apply(at_least_float32(self.theta), low, high).exp()

    def extra_repr(self) -> str:
        """The bounds."""
        return f"least={self.least}, most={self.most}"
