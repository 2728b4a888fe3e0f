"""What MMBERT is made of: visual tokens, layers whose norms are handed in, the head.

Shapes: B batch, P visual tokens, R tokens of a row, D width. Masks: True = present.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.layers.attention import Attention
from polyfuse.layers.transformer import FeedForward

EPS = 1e-12


class VisualTokens(nn.Module):
    """Each feature map: 1x1 convolution without bias, ReLU, average over the image: one token.

    The average comes *after* the ReLU, so pooled maps cannot stand in for maps.

    Args:
        channels: Of the maps, in the order of the tokens.
        dim: Width D of a token.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self,
        channels: Sequence[int],
        dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, dim, 1, bias=False, device=device, dtype=dtype) for c in channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps ``(B, C_i, H_i, W_i)`` to ``(B, P, D)``."""
        tokens = [F.relu(conv(part)).mean(dim=(2, 3)) for conv, part in zip(self.convs, maps, strict=True)]
        return torch.stack(tokens, dim=1)


class NormPair(nn.Module):
    """The norms before attention and before the feed-forward part. ``idle_second``: the first serves both.

    Args:
        dim: Width D.
        idle_second: Keep the second one, frozen and unused, for the original's names.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        *,
        idle_second: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.first = nn.LayerNorm(dim, eps=EPS, device=device, dtype=dtype)
        self.second = nn.LayerNorm(dim, eps=EPS, device=device, dtype=dtype)
        self.idle_second = idle_second
        # A parameter that never gets a gradient stops data parallel training, unless it asks for none.
        self.second.requires_grad_(not idle_second)

    def forward(self, x: Tensor, place: int) -> Tensor:
        """Normalise ``(..., D)`` before part ``place``: 0 attention, 1 feed-forward."""
        return self.first(x) if place == 0 or self.idle_second else self.second(x)


class MMBERTLayer(nn.Module):
    """A pre-norm transformer layer whose norms are handed in, because the original's layers share theirs.

    Args:
        dim: Width D.
        num_heads: Heads.
        hidden_dim: Hidden width of the feed-forward part.
        dropout: On attention weights and on what both parts add.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden_dim: int,
        *,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.attention = Attention(dim, num_heads, dropout=dropout, device=device, dtype=dtype)
        self.mlp = FeedForward(dim, hidden_dim, device=device, dtype=dtype)

    def forward(self, x_BRD: Tensor, mask_BR: Tensor | None, norms: NormPair) -> Tensor:
        """``(B, R, D)`` to the same shape."""
        read = self.attention(norms(x_BRD, 0), mask=mask_BR)
        x_BRD = x_BRD + F.dropout(read, self.dropout, self.training)
        return x_BRD + F.dropout(self.mlp(norms(x_BRD, 1)), self.dropout, self.training)


class MMBERTHead(nn.Module):
    """``V LayerNorm(U tanh(W x))``: the original's one head, per token (``mlm``) or on the pooled row (``vqa``).

    Args:
        dim: Width D.
        out_dim: Answers, or token ids.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.pooler = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.dense = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(dim, eps=EPS, device=device, dtype=dtype)
        self.out = nn.Linear(dim, out_dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., D)`` to ``(..., out_dim)``."""
        return self.out(self.norm(self.dense(torch.tanh(self.pooler(x)))))
