"""A feature vector to an embedding: a small MLP. Also what follows frozen pretrained features.

Shapes: B batch, F features, D embedding width.
"""

from typing import Any

import torch
from torch import Tensor, nn


class VectorMLP(nn.Module):
    """Linear, GELU, dropout, linear.

    Args:
        embed_dim: Width D of the output.
        width: Number of features F.
        hidden_dim: Width between the two layers.
        dropout: On the hidden layer.

    Example:
        >>> VectorMLP(8, width=5)(torch.zeros(2, 5)).shape
        torch.Size([2, 8])
    """

    modality_type = "vector"

    def __init__(
        self,
        embed_dim: int,
        *,
        width: int,
        hidden_dim: int = 128,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.hidden = nn.Linear(width, hidden_dim, **factory)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(hidden_dim, embed_dim, **factory)

    def forward(self, inputs: Tensor) -> Tensor:
        """Encode ``(B, F)`` float to ``(B, D)``."""
        hidden = nn.functional.gelu(self.hidden(inputs.to(self.hidden.weight.dtype)))
        return self.project(self.dropout(hidden))
