"""A clip to one vector: a small CNN per frame, the frames' times, one layer of attention, masked pooling.

Shapes: B batch, F frames, S side in pixels, W width, D embedding width. Masks: True = present.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.encoders.image import ImageCNN
from polyfuse.encoders.sequence import masked_max, masked_mean
from polyfuse.layers.time_embedding import TimeEmbedding
from polyfuse.layers.transformer import TransformerLayer


class VideoFrames(nn.Module):
    """Frame embeddings plus time embeddings, mixed by attention, then mean and maximum over the frames that are there.

    Frames at any times, in any order: only ``times`` say what comes first. ``tokens`` gives the frames before pooling,
    for models that attend to them.

    Args:
        embed_dim: Width D of the output.
        frames: Usual number of frames; sets nothing, any number runs.
        size: Side S in pixels.
        hidden_dim: Width W of the frame tokens.
        num_layers: Layers of attention between frames.
        num_heads: Attention heads.
        dropout: On the frame tokens and on the pooled features.

    Raises:
        ValueError: If ``hidden_dim`` is no multiple of ``num_heads``.

    Example:
        >>> encoder = VideoFrames(8, size=16)
        >>> clip = {"frames": torch.zeros(2, 5, 3, 16, 16, dtype=torch.uint8), "times": torch.zeros(2, 5)}
        >>> encoder({**clip, "mask": torch.ones(2, 5, dtype=torch.bool)}).shape
        torch.Size([2, 8])
    """

    modality_type = "video"

    def __init__(
        self,
        embed_dim: int,
        *,
        frames: int = 8,
        size: int = 64,
        hidden_dim: int = 64,
        num_layers: int = 1,
        num_heads: int = 4,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if hidden_dim % num_heads:
            raise ValueError(f"hidden_dim must be a multiple of num_heads = {num_heads}, got {hidden_dim}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.frame = ImageCNN(hidden_dim, size=size, hidden_dim=16, dropout=0.0, **factory)
        self.time = TimeEmbedding(hidden_dim, **factory)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(hidden_dim, num_heads, 2 * hidden_dim, dropout=dropout, **factory)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(2 * hidden_dim, **factory)
        self.project = nn.Linear(2 * hidden_dim, embed_dim, **factory)

    def tokens(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """``(B, F, W)``: frames that know their time and each other, zeros where absent."""
        frames, mask_BF = inputs["frames"], inputs["mask"]
        frames = frames.masked_fill(~mask_BF[..., None, None, None], 0)
        x_BFW = self.frame(frames.flatten(0, 1)).unflatten(0, mask_BF.shape)
        x_BFW = self.dropout(x_BFW + self.time(inputs["times"], mask_BF).to(x_BFW.dtype))
        # A row without any frame attends to its first place: a softmax over nothing would be NaN.
        first = torch.arange(mask_BF.shape[1], device=mask_BF.device) == 0
        attend = mask_BF | (first & ~mask_BF.any(dim=1, keepdim=True))
        for layer in self.layers:
            x_BFW = layer(x_BFW, attend)
        return x_BFW.masked_fill(~mask_BF[..., None], 0.0)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Encode a batch.

        Shape:
            - inputs: ``frames (B, F, 3, S, S)`` uint8, ``times (B, F)`` seconds, ``mask (B, F)`` bool.
            - returns ``(B, D)``.
        """
        x_BFW, mask_BF = self.tokens(inputs), inputs["mask"]
        pooled = torch.cat([masked_mean(x_BFW, mask_BF), masked_max(x_BFW, mask_BF)], dim=-1)
        return self.project(self.dropout(self.norm(pooled)))
