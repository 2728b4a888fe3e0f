"""The text tower of MobileCLIP S0 (Apple's ``mct``): RepMixer, attention layers, RepMixer.

Shapes: B batch, L tokens, D width.
"""

from typing import Any

from torch import Tensor, nn

from polyfuse.layers.transformer import TransformerLayer
from polyfuse.models.fastvit import RepMixerBlock
from polyfuse.models.text_transformer import init_layers


class TextRepMixerBlock(RepMixerBlock):
    """A RepMixer block over a sequence: every convolution spans 11 tokens.

    Source: MobileCLIP, https://arxiv.org/abs/2311.17049, section 4.1 (``Text-RepMixer``).

    Example:
        >>> import torch
        >>> TextRepMixerBlock(8, hidden_dim=32)(torch.zeros(3, 13, 8)).shape
        torch.Size([3, 13, 8])
    """

    def __init__(self, dim: int, hidden_dim: int, kernel: int = 11, **factory: Any) -> None:
        super().__init__(dim, hidden_dim, (1, kernel), (1, kernel), **factory)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """``(B, L, D)`` to the same shape."""
        return super().forward(x_BLD.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)


def mct_layers(dim: int, num_layers: int, num_heads: int, **factory: Any) -> list[nn.Module]:
    """``num_layers`` attention layers between two RepMixer blocks, for ``TextTower(layers=...)``."""
    between = [TransformerLayer(dim, num_heads, **factory) for _ in range(num_layers)]
    init_layers(between, dim)
    return [TextRepMixerBlock(dim, 4 * dim, **factory), *between, TextRepMixerBlock(dim, 4 * dim, **factory)]
