"""A small image-text matcher: two towers into one space, on frozen features or from pixels and words.

Shapes: B batch, D feature width, S pixels, L words, E embedding width. Masks: True = present.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.models.output import ModelOutput
from polyfuse.models.pretrained import PretrainedModel, arguments

LARGEST_SCALE = 100.0


class DualEncoder(PretrainedModel):
    """Unit vectors for pictures and texts whose inner product says how well they go together.

    Source: CLIP, https://arxiv.org/abs/2103.00020, section 2.3; frozen towers with trained projections as in LiT,
    https://arxiv.org/abs/2111.07991. Differs: the projections are ``W x + down(gelu(up(x)))``, so that a linear map can
    be their starting point.

    Args:
        image_dim: Width of the features of a frozen image network; None = grey pixels through a small CNN.
        text_dim: Width of the features of a frozen text network; None = word ids through a table.
        embed_dim: Width E of the common space.
        hidden_dim: Hidden width of the projections of features.
        image_size: Side S of the pictures that the CNN takes.
        channels: Channels per stage of the CNN; each stage halves the side.
        blocks: Residual blocks behind every stage of the CNN but the first.
        vocab_size: Rows of the word table; row 0 is padding.
        word_hidden_dim: Hidden width of what mixes the summed words; 0 = the sum itself.
        dropout: On the features, or on the CNN's last map.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If there is neither a text width nor a vocabulary.

    Example:
        >>> model = DualEncoder(image_dim=8, text_dim=6, embed_dim=4)
        >>> model(torch.ones(2, 8), torch.ones(3, 6)).logits_per_image.shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        *,
        image_dim: int | None = None,
        text_dim: int | None = None,
        embed_dim: int = 256,
        hidden_dim: int = 512,
        image_size: int = 32,
        channels: Sequence[int] = (32, 64, 128),
        blocks: int = 0,
        vocab_size: int = 0,
        word_hidden_dim: int = 0,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = arguments(locals())
        super().__init__()
        self.config = config
        if text_dim is None and vocab_size < 2:
            raise ValueError(f"text_dim or a vocab_size of at least 2 is needed, got None and {vocab_size}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.image: PixelTower | FeatureTower = (
            PixelTower(image_size, channels, embed_dim, blocks=blocks, dropout=dropout, **factory)
            if image_dim is None
            else FeatureTower(image_dim, embed_dim, hidden_dim, dropout=dropout, **factory)
        )
        self.text: WordTower | FeatureTower = (
            WordTower(vocab_size, embed_dim, word_hidden_dim, **factory)
            if text_dim is None
            else FeatureTower(text_dim, embed_dim, hidden_dim, dropout=dropout, **factory)
        )
        self.logit_scale = nn.Parameter(torch.full((), math.log(1 / 0.07), **factory))

    def scale(self) -> Tensor:
        """What cosines are multiplied by, at most 100."""
        return self.logit_scale.exp().clamp(max=LARGEST_SCALE)

    def encode_image(self, images: Tensor) -> Tensor:
        """``(B, E)`` unit vectors of ``(B, D)`` features or ``(B, 1, S, S)`` pixels in [0, 1]."""
        return F.normalize(self.image(images), dim=-1)

    def encode_text(self, texts: Tensor) -> Tensor:
        """``(B, E)`` unit vectors of ``(B, D)`` features or ``(B, L)`` word ids."""
        return F.normalize(self.text(texts), dim=-1)

    def encode(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Both."""
        return self.encode_image(images), self.encode_text(texts)

    def forward(self, images: Tensor, texts: Tensor) -> ModelOutput:
        """``logits_per_image (B, B')``, ``image_embedding (B, E)`` and ``text_embedding (B', E)``."""
        image, text = self.encode(images, texts)
        logits = self.scale() * image @ text.t()
        return ModelOutput(None, None, {"logits_per_image": logits, "image_embedding": image, "text_embedding": text})


class FeatureTower(nn.Module):
    """``W x + down(gelu(up(x)))`` of standardised features."""

    mean: Tensor
    spread: Tensor

    def __init__(self, dim: int, out_dim: int, hidden_dim: int, *, dropout: float, **factory: Any) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim, **factory))
        self.register_buffer("spread", torch.ones(dim, **factory))
        self.linear = nn.Linear(dim, out_dim, **factory)
        self.up = nn.Linear(dim, hidden_dim, **factory)
        self.down = nn.Linear(hidden_dim, out_dim, **factory)
        self.dropout = dropout
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    @torch.no_grad()
    def standardise(self, features: Tensor) -> None:
        """Take mean and spread from training rows ``(N, D)``."""
        self.mean.copy_(features.mean(dim=0))
        self.spread.copy_(features.std(dim=0).clamp(min=1e-3))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, D)`` to ``(B, E)``."""
        x = F.dropout((x - self.mean) / self.spread, self.dropout, self.training)
        return self.linear(x) + self.down(F.gelu(self.up(x)))


class ConvBlock(nn.Module):
    """``x + conv(gelu(norm(conv(gelu(norm(x))))))``; source: https://arxiv.org/abs/1603.05027."""

    def __init__(self, width: int, **factory: Any) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for _ in range(2):
            parts += [nn.GroupNorm(1, width, **factory), nn.GELU()]
            parts.append(nn.Conv2d(width, width, 3, padding=1, bias=False, **factory))
        self.parts = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        return x + self.parts(x)


class PixelTower(nn.Module):
    """Convolutions that halve the side, normalised per picture, then one matrix over all places."""

    def __init__(
        self, side: int, channels: Sequence[int], out_dim: int, *, blocks: int, dropout: float, **factory: Any
    ) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        width = 1
        for number, wider in enumerate(channels):
            kernel = 3 if number else 5
            stages.append(nn.Conv2d(width, wider, kernel, stride=2, padding=kernel // 2, **factory))
            stages += [ConvBlock(wider, **factory) for _ in range(blocks if number else 0)]
            stages += [nn.GroupNorm(1, wider, **factory), nn.GELU()]
            width, side = wider, (side + 1) // 2
        self.stages = nn.Sequential(*stages)
        self.dropout = dropout
        self.project = nn.Linear(width * side * side, out_dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 1, S, S)`` to ``(B, E)``."""
        return self.project(F.dropout(self.stages(x).flatten(1), self.dropout, self.training))


class WordTower(nn.Module):
    """Sum of word vectors, and ``x + down(gelu(up(norm(x))))`` on it if there is a hidden width; id 0 is padding."""

    def __init__(self, vocab_size: int, out_dim: int, hidden_dim: int, **factory: Any) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, out_dim, padding_idx=0, **factory)
        self.mix: nn.Sequential | None = None
        if hidden_dim:
            down = nn.Linear(hidden_dim, out_dim, **factory)
            nn.init.zeros_(down.weight)
            nn.init.zeros_(down.bias)
            up = nn.Linear(out_dim, hidden_dim, **factory)
            self.mix = nn.Sequential(nn.LayerNorm(out_dim, **factory), up, nn.GELU(), down)

    def forward(self, ids: Tensor) -> Tensor:
        """``(B, L)`` to ``(B, E)``."""
        x = self.words(ids).sum(dim=1)
        return x if self.mix is None else x + self.mix(x)
