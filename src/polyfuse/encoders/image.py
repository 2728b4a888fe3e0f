"""A small picture to one vector: a residual CNN with group norm, quick on one core.

Shapes: B batch, S side in pixels, D embedding width.
"""

from typing import Any

import torch
from torch import Tensor, nn


class ImageCNN(nn.Module):
    """Strided convolutions down to about 4 x 4, one residual block per stage; every stage is pooled.

    The embedding is made of the mean and the maximum over the map of each stage, so that colours and textures (early)
    count beside shapes (late): with a thousand pictures that is worth more than depth.
    Any side from 16 to 128 pixels: ``size`` sets the stride of the first layer and the number of stages, and pictures
    of other sizes still run. Group norm keeps rows apart.

    Args:
        embed_dim: Width D of the output.
        size: Side S in pixels.
        hidden_dim: Channels of the first stage; doubled per stage, four times at most.
        dropout: On the pooled features.

    Example:
        >>> ImageCNN(8, size=16)(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).shape
        torch.Size([2, 8])
    """

    modality_type = "image"

    def __init__(
        self,
        embed_dim: int,
        *,
        size: int = 32,
        hidden_dim: int = 24,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        stride = 4 if size >= 48 else 2 if size >= 24 else 1
        side = size / stride
        width, pooled = hidden_dim, 2 * hidden_dim
        stem = _Conv(3, width, kernel_size=stride + 3 - stride % 2, stride=stride, **factory)
        stages: list[nn.Module] = [stem]
        while side > 4:
            wider = min(2 * width, 4 * hidden_dim)
            stages.append(nn.Sequential(_Conv(width, wider, stride=2, **factory), _Conv(wider, wider, **factory)))
            width, side, pooled = wider, side / 2, pooled + 2 * wider
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(pooled, **factory)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(pooled, embed_dim, **factory)

    def forward(self, inputs: Tensor) -> Tensor:
        """Encode ``(B, 3, S, S)`` uint8 to ``(B, D)``."""
        x = (inputs.to(self.project.weight.dtype) / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)
        pooled = []
        for stage in self.stages:
            x = stage(x)
            pooled += [x.mean(dim=(2, 3)), x.amax(dim=(2, 3))]
        return self.project(self.dropout(self.norm(torch.cat(pooled, dim=-1))))


class _Conv(nn.Module):
    """Convolution, group norm, ReLU; residual where the shape allows."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int = 3, stride: int = 1, **factory: Any):
        super().__init__()
        self.residual = stride == 1 and in_channels == out_channels
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False, **factory)
        self.norm = nn.GroupNorm(max(1, out_channels // 16), out_channels, **factory)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu(self.norm(self.conv(x)))
        return x + y if self.residual else y
