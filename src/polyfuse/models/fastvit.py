"""FastViT, the image tower of MobileCLIP S0, S1 and S2 (Apple's names: MCi0, MCi1, MCi2).

Source: FastViT, https://arxiv.org/abs/2303.14189. Shapes: B batch, D channels, H and W height and width, N pixels.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.layers.attention import attend, split_qkv
from polyfuse.models.reparameterized import (
    ConvNorm,
    Kernel,
    Reparameterizable,
    RepConv,
    SqueezeExcite,
    depthwise_identity,
    merged,
)

_HEAD_DIM = 32  # of the attention of the last stage, in every published size


class LargeKernelConv(Reparameterizable):
    """A 7 x 7 and a 3 x 3 convolution, depthwise, normalised, added; squeeze-excite where asked; GELU."""

    def __init__(self, dim: int, out_dim: int, *, squeeze_dim: int | None, **factory: Any) -> None:
        super().__init__()
        self.dims = (dim, out_dim)
        self.large = ConvNorm(dim, out_dim, (7, 7), stride=2, groups=dim, **factory)
        self.small = ConvNorm(dim, out_dim, (3, 3), stride=2, groups=dim, **factory)
        self.squeeze = None if squeeze_dim is None else SqueezeExcite(out_dim, squeeze_dim, **factory)
        self.fused = None

    def branches(self) -> tuple[str, ...]:
        """Names of the parallel parts."""
        return "large", "small"

    def like(self) -> dict[str, Any]:
        """Shape of the one convolution."""
        widths = {"in_channels": self.dims[0], "out_channels": self.dims[1]}
        return {**widths, "stride": 2, "padding": (3, 3), "groups": self.dims[0]}

    def folded(self) -> tuple[Tensor, Tensor]:
        """Sum of the two convolutions as one weight and bias."""
        return merged([self.large.folded(), self.small.folded()], (7, 7))

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """``(B, D, H, W)`` to ``(B, D_out, ceil(H / 2), ceil(W / 2))``."""
        if self.fused is None and self.training:
            out = self.large(x_BDHW) + self.small(x_BDHW)
        else:
            out = self.folded_conv(x_BDHW)
        return F.gelu(out if self.squeeze is None else self.squeeze(out))


class PositionConv(Reparameterizable):
    """Conditional position encoding: ``x + depthwise 7 x 7 (x)``, https://arxiv.org/abs/2102.10882."""

    def __init__(self, dim: int, **factory: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim, **factory)
        self.dim, self.fused = dim, None

    def branches(self) -> tuple[str, ...]:
        """Names of the parallel parts."""
        return ("conv",)

    def like(self) -> dict[str, Any]:
        """Shape of the one convolution."""
        widths = {"in_channels": self.dim, "out_channels": self.dim}
        return {**widths, "stride": 1, "padding": (3, 3), "groups": self.dim}

    def folded(self) -> tuple[Tensor, Tensor]:
        """The convolution with 1 added in the middle."""
        weight, bias = self.conv.weight, self.conv.bias
        if bias is None:
            raise ValueError("the position convolution must have a bias")
        return merged([(weight, bias), depthwise_identity(bias)], (7, 7))

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """``(B, D, H, W)`` to the same shape."""
        return x_BDHW + self.conv(x_BDHW) if self.fused is None and self.training else self.folded_conv(x_BDHW)


class RepMixer(Reparameterizable):
    """Mix tokens without attention: ``x + s (mix(x) - norm(x))``, one depthwise convolution in the end.

    Source: FastViT, section 3.2.1; the scale s per channel is the published models'.

    Args:
        dim: Channels D.
        kernel: Height and width; ``(1, k)`` mixes a sequence and has, as Apple's text tower, no 1 x 1 branch.
        factory: ``device`` and ``dtype``.
    """

    def __init__(self, dim: int, kernel: Kernel = (3, 3), **factory: Any) -> None:
        super().__init__()
        options = {"groups": dim, "activation": False, **factory}
        self.norm = RepConv(dim, dim, kernel, conv=False, scale=False, **options)
        self.mix = RepConv(dim, dim, kernel, scale=kernel[0] > 1, **options)
        self.scale = nn.Parameter(torch.full((dim,), 1e-5, **factory))
        self.dim, self.kernel, self.fused = dim, kernel, None

    def branches(self) -> tuple[str, ...]:
        """Names of the parallel parts."""
        return "norm", "mix", "scale"

    def like(self) -> dict[str, Any]:
        """Shape of the one convolution."""
        padding = (self.kernel[0] // 2, self.kernel[1] // 2)
        widths = {"in_channels": self.dim, "out_channels": self.dim}
        return {**widths, "stride": 1, "padding": padding, "groups": self.dim}

    def folded(self) -> tuple[Tensor, Tensor]:
        """All of it as one weight and bias."""
        (mix, mix_bias), (norm, norm_bias) = self.mix.folded(), self.norm.folded()
        weight, bias = self.scale[:, None, None, None] * (mix - norm), self.scale * (mix_bias - norm_bias)
        return merged([(weight, bias), depthwise_identity(bias)], self.kernel)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """``(B, D, H, W)`` to the same shape."""
        if self.fused is None and self.training:
            return x_BDHW + self.scale[:, None, None] * (self.mix(x_BDHW) - self.norm(x_BDHW))
        return self.folded_conv(x_BDHW)


class ConvFeedForward(nn.Module):
    """A large depthwise convolution with its norm, then two 1 x 1 convolutions with GELU between them."""

    def __init__(self, dim: int, hidden_dim: int, kernel: Kernel = (7, 7), **factory: Any) -> None:
        super().__init__()
        self.mix = ConvNorm(dim, dim, kernel, groups=dim, **factory)
        self.up = nn.Conv2d(dim, hidden_dim, 1, **factory)
        self.down = nn.Conv2d(hidden_dim, dim, 1, **factory)
        for conv in (self.mix.conv, self.up, self.down):
            nn.init.trunc_normal_(conv.weight, std=0.02)
        for bias in (self.up.bias, self.down.bias):
            if bias is not None:  # for mypy alone
                nn.init.zeros_(bias)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """``(B, D, H, W)`` to the same shape."""
        return self.down(F.gelu(self.up(self.mix(x_BDHW))))


class RepMixerBlock(nn.Module):
    """RepMixer, then the feed-forward part with a learned scale per channel on what it adds."""

    def __init__(
        self, dim: int, hidden_dim: int, kernel: Kernel = (3, 3), mlp_kernel: Kernel = (7, 7), **factory: Any
    ) -> None:
        super().__init__()
        self.mixer = RepMixer(dim, kernel, **factory)
        self.mlp = ConvFeedForward(dim, hidden_dim, mlp_kernel, **factory)
        self.scale = nn.Parameter(torch.full((dim,), 1e-5, **factory))

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """``(B, D, H, W)`` to the same shape."""
        x_BDHW = self.mixer(x_BDHW)
        return torch.addcmul(x_BDHW, self.scale[:, None, None], self.mlp(x_BDHW))


class PixelAttention(nn.Module):
    """Self-attention over the pixels; query, key and value without bias."""

    def __init__(self, dim: int, num_heads: int, **factory: Any) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False, **factory)
        self.out = nn.Linear(dim, dim, **factory)
        for linear in (self.qkv, self.out):
            nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(self.out.bias)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """``(B, D, H, W)`` to the same shape; maps are ``(B, heads, N, N)``, rows of pixels after one another."""
        query, key, value = split_qkv(self.qkv(x_BDHW.flatten(2).transpose(1, 2)), 3, self.num_heads)
        read_BND = self.out(attend(self, query, key, value))
        return read_BND.transpose(1, 2).unflatten(2, x_BDHW.shape[2:])


class AttentionBlock(nn.Module):
    """Attention over normalised pixels, then the feed-forward part, each with a learned scale per channel."""

    def __init__(self, dim: int, hidden_dim: int, **factory: Any) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim, **factory)
        self.attention = PixelAttention(dim, dim // _HEAD_DIM, **factory)
        self.attention_scale = nn.Parameter(torch.full((dim,), 1e-5, **factory))
        self.mlp = ConvFeedForward(dim, hidden_dim, **factory)
        self.mlp_scale = nn.Parameter(torch.full((dim,), 1e-5, **factory))

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """``(B, D, H, W)`` to the same shape."""
        x_BDHW = torch.addcmul(x_BDHW, self.attention_scale[:, None, None], self.attention(self.norm(x_BDHW)))
        return torch.addcmul(x_BDHW, self.mlp_scale[:, None, None], self.mlp(x_BDHW))


class PatchMerge(nn.Module):
    """Half the resolution, the next stage's width: a large depthwise convolution, then a pointwise block."""

    def __init__(self, dim: int, out_dim: int, *, squeeze: bool, **factory: Any) -> None:
        super().__init__()
        self.reduce = LargeKernelConv(dim, out_dim, squeeze_dim=_eighths(out_dim / 4) if squeeze else None, **factory)
        self.project = RepConv(out_dim, out_dim, (1, 1), scale=False, **factory)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """``(B, D, H, W)`` to ``(B, D_out, ceil(H / 2), ceil(W / 2))``."""
        return self.project(self.reduce(x_BDHW))


class FastViTStage(nn.Module):
    """Merge patches, add positions where asked, then the blocks."""

    merge: PatchMerge | None
    position: PositionConv | None
    blocks: nn.ModuleList

    def __init__(self, merge: PatchMerge | None, position: PositionConv | None, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.merge, self.position, self.blocks = merge, position, nn.ModuleList(blocks)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """``(B, D, H, W)`` to ``(B, D_out, H', W')``."""
        x_BDHW = x_BDHW if self.merge is None else self.merge(x_BDHW)
        x_BDHW = x_BDHW if self.position is None else self.position(x_BDHW)
        for block in self.blocks:
            x_BDHW = block(x_BDHW)
        return x_BDHW


class FastViT(nn.Module):
    """FastViT of the MCi kind: RepMixer stages, attention in the last, squeeze-excite in the last two merges.

    Args:
        depths: Blocks of every stage.
        dims: Widths of every stage; the last must be a multiple of 32, the width of a head.
        mlp_ratio: Hidden width of the feed-forward parts over their width.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If ``depths`` and ``dims`` differ in length, heads do not divide the last width, or a width does
            not divide the next.

    Example:
        >>> FastViT((1, 1), (8, 32))(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 64, 8, 8])
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        *,
        mlp_ratio: float = 3.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if len(depths) != len(dims) or not dims:
            raise ValueError(f"depths and dims must name the same stages, got {list(depths)} and {list(dims)}")
        if dims[-1] % _HEAD_DIM:
            raise ValueError(f"the last of dims must be a multiple of {_HEAD_DIM}, got {dims[-1]}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        first, last = dims[0], dims[-1]
        if any(after % before for before, after in pairwise(dims)):
            raise ValueError(f"every one of dims must be a multiple of the one before (depthwise), got {list(dims)}")
        self.stem = nn.Sequential(
            RepConv(3, first, (3, 3), stride=2, **factory),
            RepConv(first, first, (3, 3), stride=2, groups=first, **factory),
            RepConv(first, first, (1, 1), scale=False, **factory),
        )
        stages = []
        for index, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            at_end, hidden = index == len(dims) - 1, int(dim * mlp_ratio)
            merge = PatchMerge(dims[index - 1], dim, squeeze=index >= len(dims) - 2, **factory) if index else None
            position = PositionConv(dim, **factory) if at_end else None
            kind: type[nn.Module] = AttentionBlock if at_end else RepMixerBlock
            stages.append(FastViTStage(merge, position, [kind(dim, hidden, **factory) for _ in range(depth)]))
        self.stages = nn.ModuleList(stages)
        self.out_dim = 2 * last
        self.expand = RepConv(last, self.out_dim, (3, 3), groups=last, squeeze_dim=self.out_dim // 16, **factory)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``(B, 3, H, W)`` pixels to ``(B, 2 D_last, H / 32, W / 32)`` features (four stages)."""
        # The first convolutions take the usual layout: backward of a 1 x 1 convolution with stride 2 over 3 channels
        # that lie side by side writes outside of its memory on a CPU (PyTorch 2.13, 2.14).
        x_BDHW = self.stem[0](x_BCHW.contiguous())
        # In the rest depthwise convolutions, the larger part of the layers, take half the time with such channels.
        x_BDHW = self.stem[2](self.stem[1](x_BDHW.contiguous(memory_format=torch.channels_last)))
        for stage in self.stages:
            x_BDHW = stage(x_BDHW)
        return self.expand(x_BDHW)


def _eighths(width: float) -> int:
    """The nearest multiple of 8, at least 8 (the squeeze-excite of the merges)."""
    return max(8, int(width + 4) // 8 * 8)
