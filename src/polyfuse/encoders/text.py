"""Token ids to one vector: a small transformer encoder for short texts.

Shapes: B batch, L tokens, D embedding width, W hidden width, H heads. Masks: True = present.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.encoders.sequence import masked_mean


class TextTransformer(nn.Module):
    """Pre-norm transformer with learned positions and a masked mean over the tokens.

    The mean runs over the residual stream, so what an untrained network returns is already a bag of embeddings: few
    rows suffice to learn from single words, more rows teach their order. Embeddings start near zero (std 0.02, as in
    BERT), so that a token the training rows hardly showed says hardly anything: with N(0, 1), PyTorch's default, rare
    tokens are noise and a thousand short names cost five points of accuracy.

    Args:
        embed_dim: Width D of the output.
        vocab_size: Number of token ids; id 0 is padding.
        max_length: Longest text L.
        hidden_dim: Width W of the transformer.
        num_layers: Blocks.
        num_heads: Attention heads.
        dropout: On the token embeddings and on the pooled vector.

    Example:
        >>> encoder = TextTransformer(8, vocab_size=50, max_length=6)
        >>> ids = torch.tensor([[4, 7, 0, 0, 0, 0]])
        >>> encoder({"ids": ids, "mask": ids > 0}).shape
        torch.Size([1, 8])
    """

    modality_type = "text"

    def __init__(
        self,
        embed_dim: int,
        *,
        vocab_size: int,
        max_length: int,
        hidden_dim: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        dropout: float = 0.2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if hidden_dim % num_heads:
            raise ValueError(f"hidden_dim must be a multiple of num_heads = {num_heads}, got {hidden_dim}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.max_length = max_length
        self.tokens = nn.Embedding(vocab_size, hidden_dim, **factory)
        self.positions = nn.Embedding(max_length, hidden_dim, **factory)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(hidden_dim, num_heads, **factory) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_dim, **factory)
        self.project = nn.Linear(hidden_dim, embed_dim, **factory)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.004)  # words matter more than places, at first

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Encode a batch.

        Shape:
            - inputs: ``ids (B, L)`` int, ``mask (B, L)`` bool.
            - returns ``(B, D)``.

        Raises:
            ValueError: If a text is longer than ``max_length``.
        """
        ids, mask_BL = inputs["ids"], inputs["mask"]
        length = ids.shape[1]
        if length > self.max_length:
            raise ValueError(f"a text may have at most max_length = {self.max_length} tokens, got {length}")
        place = torch.arange(length, device=ids.device).expand(ids.shape)
        x_BLW = self.dropout(self.tokens(ids) + self.positions(place))
        # A row without any token attends to its first place: a softmax over nothing would be NaN.
        attend = (mask_BL | (place == 0))[:, None, None, :]
        for block in self.blocks:
            x_BLW = block(x_BLW, attend)
        return self.project(self.dropout(self.norm(masked_mean(x_BLW, mask_BL))))


class _Block(nn.Module):
    """Pre-norm self-attention and a feed-forward layer of twice the width."""

    def __init__(self, width: int, heads: int, **factory: Any) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(width, **factory)
        self.qkv = nn.Linear(width, 3 * width, **factory)
        self.out = nn.Linear(width, width, **factory)
        self.norm_2 = nn.LayerNorm(width, **factory)
        self.up = nn.Linear(width, 2 * width, **factory)
        self.down = nn.Linear(2 * width, width, **factory)

    def forward(self, x_BLW: Tensor, attend: Tensor) -> Tensor:
        batch, length, width = x_BLW.shape
        qkv = self.qkv(self.norm_1(x_BLW)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attend)
        x_BLW = x_BLW + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x_BLW + self.down(nn.functional.gelu(self.up(self.norm_2(x_BLW))))
