"""One pre-norm transformer layer in which some tokens read some others: shared by the transformer and the bottleneck.

Shapes: B batch, Q reading tokens, T read tokens, H width. Masks: True = present.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AttentionBlock(nn.Module):
    """``y = x + MHA(LN x, LN c, LN c)``, then ``y + MLP(LN y)``, for tokens x that read a context c.

    Source: https://arxiv.org/abs/1706.03762, section 3, with the normalisation first. Attention is made of
    ``nn.Linear``, so that per-sample gradients work.

    Args:
        width: Width H of the tokens.
        num_heads: Heads; must divide ``width``.
        hidden: Width of the hidden layer of the MLP.
        dropout: Dropout on what attention and MLP add.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Shape:
        ``x (B, Q, H)``, ``context (B, T, H)``, ``present (B, T)`` (every row must have one True) to ``(B, Q, H)``.

    Raises:
        ValueError: If ``num_heads`` does not divide ``width``.

    Example:
        >>> block = AttentionBlock(8, num_heads=2, hidden=16)
        >>> block(torch.zeros(5, 1, 8), torch.zeros(5, 3, 8)).shape
        torch.Size([5, 1, 8])
    """

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        hidden: int,
        dropout: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or width % num_heads:
            raise ValueError(f"num_heads must divide the width {width}, got {num_heads}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width, **factory)
        self.query = nn.Linear(width, width, **factory)
        self.key_value = nn.Linear(width, 2 * width, **factory)
        self.out = nn.Linear(width, width, **factory)
        self.dropout = nn.Dropout(dropout)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width, **factory),
            nn.Linear(width, hidden, **factory),
            nn.GELU(),
            nn.Linear(hidden, width, **factory),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor, context: Tensor, present: Tensor | None = None) -> Tensor:
        """Let ``x`` read the present tokens of ``context``."""
        query = self._split(self.query(self.norm(x)))
        key, value = (self._split(part) for part in self.key_value(self.norm(context)).chunk(2, dim=-1))
        mask = None if present is None else present[:, None, None, :]  # True = attend, as in PyTorch's function
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.dropout(self.out(read.transpose(1, 2).flatten(2)))
        return x + self.mlp(x)

    def _split(self, x: Tensor) -> Tensor:
        """``(B, T, H)`` to ``(B, heads, T, H / heads)``."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
