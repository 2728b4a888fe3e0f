"""A set of points to one vector: the same small network for every point, then the maximum over all of them.

Source: PointNet, https://arxiv.org/abs/1612.00593, equation 1. Differs: no learned alignment of the input, LayerNorm
for batch norm (rows stay apart), and the number of points is one more feature.

Shapes: B batch, N points, C values of a point, W width, D embedding width. Masks: True = present.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.encoders.sequence import masked_max


class PointNet(nn.Module):
    """Shared perceptron, masked maximum: the order of the points is nothing, their repetition too.

    Args:
        embed_dim: Width D of the output.
        count: Most points; the unit of how many there are.
        channels: Values C of a point, coordinates first.
        hidden_dim: Width of a point's features; doubled before the maximum.
        dropout: On the pooled features.

    Example:
        >>> encoder = PointNet(8, count=5, channels=4)
        >>> encoder({"points": torch.zeros(2, 5, 4), "mask": torch.ones(2, 5, dtype=torch.bool)}).shape
        torch.Size([2, 8])
    """

    modality_type = "points"

    def __init__(
        self,
        embed_dim: int,
        *,
        count: int,
        channels: int,
        hidden_dim: int = 64,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.count = count
        self.first = nn.Linear(channels, hidden_dim, **factory)
        self.first_norm = nn.LayerNorm(hidden_dim, **factory)
        self.second = nn.Linear(hidden_dim, 2 * hidden_dim, **factory)
        self.second_norm = nn.LayerNorm(2 * hidden_dim, **factory)
        self.dropout = nn.Dropout(dropout)
        self.join = nn.Linear(2 * hidden_dim + 1, 2 * hidden_dim, **factory)
        self.project = nn.Linear(2 * hidden_dim, embed_dim, **factory)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Encode a batch.

        Shape:
            - inputs: ``points (B, N, C)`` float, ``mask (B, N)`` bool.
            - returns ``(B, D)``.
        """
        mask_BN = inputs["mask"]
        x_BNC = inputs["points"].to(self.project.weight.dtype).masked_fill(~mask_BN[..., None], 0.0)
        x_BNW = F.relu(self.first_norm(self.first(x_BNC)))
        x_BNW = F.relu(self.second_norm(self.second(x_BNW)))
        pooled = masked_max(x_BNW, mask_BN)
        share = mask_BN.sum(dim=1, keepdim=True).to(pooled.dtype) / self.count
        return self.project(self.dropout(F.relu(self.join(torch.cat([pooled, share], dim=-1)))))
