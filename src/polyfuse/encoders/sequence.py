"""What the audio and the series encoder share: masked 1-D convolutions, normalised per time step, and masked pooling.

No value outside the mask reaches the output, so padding a batch further changes nothing.
Shapes: B batch, T time steps, C channels, D embedding width. Masks: True = present.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedConvBlock(nn.Module):
    """Convolution over time, LayerNorm over the channels of each step, ReLU; residual where the shape allows.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        kernel_size: Odd width of the convolution.
        stride: 2 halves the number of steps (rounded up), in the mask too.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        stride: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.stride = stride
        self.residual = stride == 1 and in_channels == out_channels
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, **factory)
        self.norm = nn.LayerNorm(out_channels, **factory)

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes ``(B, T, C)`` and ``(B, T)`` in and out; what lies outside the mask is zero on both sides."""
        y_BTC = self.conv(x_BTC.transpose(1, 2)).transpose(1, 2)
        if self.stride > 1:
            mask_BT = F.max_pool1d(mask_BT[:, None].float(), self.stride, ceil_mode=True)[:, 0] > 0
        y_BTC = F.relu(self.norm(y_BTC))
        if self.residual:
            y_BTC = y_BTC + x_BTC
        return y_BTC.masked_fill(~mask_BT[..., None], 0.0), mask_BT


class MaskedConvStack(nn.Module):
    """A few masked convolutions, each later stage half as long and wider, then mean and maximum over time.

    Args:
        in_channels: Channels per time step.
        embed_dim: Width D of the output.
        hidden_dim: Channels of the first stage; doubled per stage up to ``max_dim``.
        max_dim: Most channels.
        num_stages: Stages; each halves the length.
        dropout: On the pooled features.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dim: int,
        *,
        hidden_dim: int,
        max_dim: int,
        num_stages: int,
        dropout: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        blocks: list[nn.Module] = []
        width = in_channels
        for stage in range(num_stages):
            wider = min(hidden_dim * 2**stage, max(hidden_dim, max_dim))
            blocks.append(MaskedConvBlock(width, wider, kernel_size=3 if stage else 5, stride=2, **factory))
            blocks.append(MaskedConvBlock(wider, wider, kernel_size=3, **factory))
            width = wider
        self.blocks = nn.ModuleList(blocks)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(2 * width, embed_dim, **factory)

    def forward(self, x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        """``(B, T, C)`` and ``(B, T)`` to ``(B, D)``; a row whose mask is all False gives a finite constant."""
        x_BTC = x_BTC.masked_fill(~mask_BT[..., None], 0.0)
        for block in self.blocks:
            x_BTC, mask_BT = block(x_BTC, mask_BT)
        pooled = torch.cat([masked_mean(x_BTC, mask_BT), masked_max(x_BTC, mask_BT)], dim=-1)
        return self.project(self.dropout(pooled))


def masked_mean(x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over the steps in the mask, ``(B, C)``; zero where there is none."""
    total = x_BTC.masked_fill(~mask_BT[..., None], 0.0).sum(dim=1)
    return total / mask_BT.sum(dim=1, keepdim=True).clamp(min=1).to(total.dtype)


def masked_max(x_BTC: Tensor, mask_BT: Tensor) -> Tensor:
    """Maximum over the steps in the mask, ``(B, C)``; zero where there is none."""
    lowest = torch.finfo(x_BTC.dtype).min
    top = x_BTC.masked_fill(~mask_BT[..., None], lowest).amax(dim=1)
    return top.masked_fill(~mask_BT.any(dim=1, keepdim=True), 0.0)


def stages_for(length: int) -> int:
    """How often to halve ``length`` time steps so that a handful is left: 1 to 5."""
    return max(1, min(5, (max(length, 1) // 8).bit_length()))
