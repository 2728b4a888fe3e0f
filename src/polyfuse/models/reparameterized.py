"""Convolutions with parallel branches while they train that are one convolution in evaluation.

Source: MobileOne, https://arxiv.org/abs/2206.04040. Shapes: B batch, D channels, H and W height and width.

Folding the branches costs one small product per layer and call in evaluation, so that the trainable form is nearly as
fast as the reparameterised one, whose branches are folded for good. Both give the same numbers (about 1e-6).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Kernel = tuple[int, int]


def folded(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that equals ``norm(conv(x))`` on running statistics.

    Raises:
        ValueError: If the norm keeps none.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a norm without running statistics cannot be folded")
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


def merged(parts: Sequence[tuple[Tensor, Tensor]], kernel: Kernel) -> tuple[Tensor, Tensor]:
    """The sum of convolutions of one input; smaller kernels sit in the middle of the ``kernel``."""
    weights = []
    for weight, _ in parts:
        rows, columns = (kernel[0] - weight.shape[2]) // 2, (kernel[1] - weight.shape[3]) // 2
        weights.append(F.pad(weight, (columns, columns, rows, rows)) if rows or columns else weight)
    return torch.stack(weights).sum(0) if len(weights) > 1 else weights[0], torch.stack([b for _, b in parts]).sum(0)


def depthwise_identity(like_D: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of the depthwise 1 x 1 convolution that changes nothing."""
    return torch.ones_like(like_D)[:, None, None, None], torch.zeros_like(like_D)


class ConvNorm(nn.Module):
    """A convolution without bias, then batch norm; ``padding`` None = half the kernel."""

    def __init__(
        self,
        dim: int,
        out_dim: int,
        kernel: Kernel,
        *,
        stride: int = 1,
        groups: int = 1,
        padding: Kernel | None = None,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.stride, self.groups = stride, groups
        self.padding = (kernel[0] // 2, kernel[1] // 2) if padding is None else padding
        self.conv = nn.Conv2d(
            dim, out_dim, kernel, stride=stride, padding=self.padding, groups=groups, bias=False, **factory
        )
        self.norm = nn.BatchNorm2d(out_dim, **factory)

    def folded(self) -> tuple[Tensor, Tensor]:
        """One weight and bias for both."""
        return folded(self.conv.weight, self.norm)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """``(B, D, H, W)`` to ``(B, D_out, H', W')``."""
        if self.training:
            return self.norm(self.conv(x_BDHW))
        return F.conv2d(x_BDHW, *self.folded(), self.stride, self.padding, 1, self.groups)


class SqueezeExcite(nn.Module):
    """Every channel weighed by what all channels average to, https://arxiv.org/abs/1709.01507."""

    def __init__(self, dim: int, hidden_dim: int, **factory: Any) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(dim, hidden_dim, 1, **factory)
        self.expand = nn.Conv2d(hidden_dim, dim, 1, **factory)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """``(B, D, H, W)`` to the same shape."""
        hidden = F.relu(self.reduce(x_BDHW.mean((2, 3), keepdim=True)))
        return x_BDHW * torch.sigmoid(self.expand(hidden))


class Reparameterizable(nn.Module):
    """A block that ends as one convolution, ``self.fused``, once it is reparameterised."""

    fused: nn.Conv2d | None

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that equals the block's linear part."""
        raise NotImplementedError

    def branches(self) -> tuple[str, ...]:
        """Names of the parts that the one convolution replaces."""
        raise NotImplementedError

    def like(self) -> dict[str, Any]:
        """Arguments of the one convolution but its kernel: width in and out, stride, padding, groups."""
        raise NotImplementedError

    def reparameterize(self) -> None:
        """Replace the branches by one convolution, in place; nothing happens the second time."""
        if self.fused is not None:
            return
        with torch.no_grad():
            weight, bias = self.folded()
        kernel = (weight.shape[2], weight.shape[3])
        fused = nn.Conv2d(**self.like(), kernel_size=kernel, device=weight.device, dtype=weight.dtype)
        fused.weight, fused.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.fused = fused.train(self.training)
        for name in self.branches():
            delattr(self, name)

    def folded_conv(self, x_BDHW: Tensor) -> Tensor:
        """The block's linear part as one convolution, folded for good or for this call."""
        if self.fused is not None:
            return self.fused(x_BDHW)
        like = self.like()
        return F.conv2d(x_BDHW, *self.folded(), like["stride"], like["padding"], 1, like["groups"])


class RepConv(Reparameterizable):
    """MobileOne's block: a convolution, a 1 x 1 convolution and the input itself, each normalised, added; then GELU.

    Args:
        dim: Channels in.
        out_dim: Channels out.
        kernel: Height and width, odd.
        stride: Of the convolution; with 1 and ``dim == out_dim`` the input itself is a branch.
        groups: 1, or ``dim`` (depthwise).
        conv: Whether the convolution branch exists.
        scale: Whether the 1 x 1 branch exists.
        squeeze_dim: Hidden width of a squeeze-excite behind the sum; None = none.
        activation: Whether GELU follows.
        factory: ``device`` and ``dtype``.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        kernel: Kernel,
        *,
        stride: int = 1,
        groups: int = 1,
        conv: bool = True,
        scale: bool = True,
        squeeze_dim: int | None = None,
        activation: bool = True,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.dims, self.kernel, self.stride, self.groups = (dim, out_dim), kernel, stride, groups
        self.activation = activation
        options = {"stride": stride, "groups": groups, **factory}
        self.conv = ConvNorm(dim, out_dim, kernel, **options) if conv else None
        self.scale = ConvNorm(dim, out_dim, (1, 1), **options) if scale else None
        self.skip = nn.BatchNorm2d(dim, **factory) if dim == out_dim and stride == 1 else None
        self.squeeze = None if squeeze_dim is None else SqueezeExcite(out_dim, squeeze_dim, **factory)
        self.fused = None

    def branches(self) -> tuple[str, ...]:
        """Names of the parallel parts."""
        return "conv", "scale", "skip"

    def like(self) -> dict[str, Any]:
        """Shape of the one convolution."""
        padding = (self.kernel[0] // 2, self.kernel[1] // 2)
        widths = {"in_channels": self.dims[0], "out_channels": self.dims[1]}
        return {**widths, "stride": self.stride, "padding": padding, "groups": self.groups}

    def folded(self) -> tuple[Tensor, Tensor]:
        """Sum of the branches as one weight and bias."""
        parts = [branch.folded() for branch in (self.conv, self.scale) if branch is not None]
        if self.skip is not None:
            one, _ = depthwise_identity(self.skip.weight)
            parts.append(folded(one if self.groups > 1 else one.flatten().diag()[:, :, None, None], self.skip))
        return merged(parts, self.kernel)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """``(B, D, H, W)`` to ``(B, D_out, H', W')``."""
        if self.fused is None and self.training:
            parts = [branch(x_BDHW) for branch in (self.conv, self.scale, self.skip) if branch is not None]
            out = sum(parts[1:], start=parts[0])
        else:
            out = self.folded_conv(x_BDHW)
        out = out if self.squeeze is None else self.squeeze(out)
        return F.gelu(out) if self.activation else out


def reparameterize(model: nn.Module) -> None:
    """Reparameterise every block of a model, in place."""
    for module in list(model.modules()):
        if isinstance(module, Reparameterizable):
            module.reparameterize()
