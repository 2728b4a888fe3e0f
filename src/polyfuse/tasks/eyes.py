"""Backbones that look at the pixels themselves: CLIP, MobileCLIP, MMBERT and MMBT, each with its image tower as stem.

Tokens that look at a cell of the picture come first, row by row; a class token, which looks at all of it, comes last.
Shapes: B rows, S pixels a side, T words, P visual tokens, D width, C channels. Masks: True = present.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.models.fastvit import FastViT
from polyfuse.models.mmbert import MMBERT
from polyfuse.models.mmbt import GRIDS, MMBT, POOLS
from polyfuse.models.mobileclip_text import mct_layers
from polyfuse.models.resnet import ResNet
from polyfuse.models.text_transformer import TextTower
from polyfuse.models.vision_transformer import VisionTower
from polyfuse.tasks.batch import TaskBatch
from polyfuse.tasks.stem import States, VisualTokens, cell_boxes, seen_pixels
from polyfuse.tasks.words import CLS, SEP

_STRIDE = 32  # pixels that one token of FastViT looks at


class Eye(nn.Module):
    """Base of the stems here: pixels to visual tokens. A subclass says what it makes of pixels, ``look``.

    Args:
        side: Pixels S.
        grid: Cells along a side, one token each; 0 = its tokens are no places.
        whole: Tokens behind them that look at the whole picture.
    """

    def __init__(self, side: int, grid: int, whole: int) -> None:
        super().__init__()
        self.side, self.grid, self.whole = side, grid, whole

    def look(self, image: Tensor) -> Tensor:
        """``(B, 3, S, S)`` in [0, 1] to ``(B, grid^2 + whole, D)``."""
        raise NotImplementedError(f"{type(self).__name__} must define look")

    def forward(self, batch: TaskBatch, hide: Tensor | None = None) -> VisualTokens:
        """Tokens of ``batch.image``; ``hide (B, grid^2)`` bool: cells that are seen as grey.

        Raises:
            ValueError: If there are no pictures of the right size, or cells are to be hidden where tokens are no
                places.
        """
        if hide is not None and not self.grid:
            raise ValueError("the visual tokens of this backbone are no places: it cannot learn masked_patches")
        image = seen_pixels(batch, self.side, hide, self.grid)
        states = self.look(image)
        frame = torch.tensor([0.0, 0.0, 1.0, 1.0], device=image.device).expand(self.whole, 4)
        boxes = torch.cat([cell_boxes(self.grid, image.device), frame]) if self.grid else frame
        mask = batch.present[:, :1].expand(-1, states.shape[1])
        return VisualTokens(states.masked_fill(~mask[..., None], 0.0), boxes.expand(len(image), -1, -1), mask)


class CLIPEye(Eye):
    """CLIP's vision transformer; the projection of its class token is the contrastive head's.

    Args:
        side: Pixels S.
        patch: Pixels of a patch.
        dim: Width D.
        num_layers: Layers.
        num_heads: Heads.
    """

    def __init__(self, side: int, patch: int, dim: int, num_layers: int, num_heads: int) -> None:
        tower = VisionTower(
            image_size=side,
            patch_size=patch,
            dim=dim,
            num_layers=num_layers,
            num_heads=num_heads,
            out_dim=None,
            activation="quick_gelu",
        )
        super().__init__(side, tower.grid, whole=1)
        self.tower = tower

    def look(self, image: Tensor) -> Tensor:
        """``(B, grid^2 + 1, D)``, the class token last."""
        return self.tower.sequence(2 * image - 1).roll(-1, dims=1)


class FastViTEye(Eye):
    """MobileCLIP's FastViT; the last width is D / 2, as its expansion doubles it.

    Args:
        side: Pixels S, a multiple of 32.
        patch: 32, what one token looks at.
        dim: Width D, a multiple of 64.
        depths: Blocks of its four stages.

    Raises:
        ValueError: If sizes do not fit.
    """

    def __init__(self, side: int, patch: int, dim: int, depths: Sequence[int]) -> None:
        if side % _STRIDE or patch != _STRIDE:
            raise ValueError(f"mobileclip needs patch={_STRIDE} and a side of as many times, got {patch} and {side}")
        if dim % 64 or len(depths) != 4:
            raise ValueError(f"mobileclip needs dim a multiple of 64 and four depths, got {dim} and {list(depths)}")
        super().__init__(side, side // _STRIDE, whole=0)
        self.trunk = FastViT(depths, [dim // 16, dim // 8, dim // 4, dim // 2])

    def look(self, image: Tensor) -> Tensor:
        """``(B, grid^2, D)``."""
        return self.trunk(image).flatten(2).transpose(1, 2)


class MapsEye(Eye):
    """MMBERT's: a ResNet, and one token per feature map.

    Args:
        side: Pixels S.
        resnet: Of the model.
        visual: Its 1x1 convolutions, deepest map first.
    """

    def __init__(self, side: int, resnet: ResNet, visual: nn.Module) -> None:
        super().__init__(side, 0, whole=len(visual.convs))  # type: ignore[arg-type]
        self.resnet, self.visual = resnet, visual

    def look(self, image: Tensor) -> Tensor:
        """``(B, whole, D)``."""
        return self.visual(self.resnet.feature_maps(2 * image - 1)[::-1][: self.whole])


class PooledEye(Eye):
    """MMBT's: a ResNet, and its last map pooled to a few vectors.

    Args:
        side: Pixels S.
        resnet: Of the model.
        pool: Of ``MMBT``.
        number: Vectors.
    """

    def __init__(self, side: int, resnet: ResNet, pool: str, number: int) -> None:
        height, width = GRIDS[number]
        super().__init__(side, height if height == width else 0, whole=0 if height == width else number)
        self.resnet, self.pool, self.number = resnet, pool, number
        self.mean: Tensor
        self.std: Tensor
        for name, values in (("mean", ResNet.IMAGE_MEAN), ("std", ResNet.IMAGE_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))

    def look(self, image: Tensor) -> Tensor:
        """``(B, number, C)``."""
        last = self.resnet.feature_maps((image - self.mean) / self.std)[-1]
        return POOLS[self.pool](last, GRIDS[self.number]).flatten(2).transpose(1, 2)


class _Towers(nn.Module):
    """Two towers that meet in their pooled vectors alone: a pair is the product of what its sides are alone."""

    text: TextTower

    def whole_of(self, visual: VisualTokens) -> Tensor:
        """``(B, D)``, what stands for the picture."""
        raise NotImplementedError(f"{type(self).__name__} must define whole_of")

    def states(self, text: Tensor, text_mask: Tensor) -> Tensor:
        """``(B, T, D)``."""
        return self.text.sequence(text, text_mask)

    def forward(self, visual: VisualTokens, text: Tensor, text_mask: Tensor) -> States:
        """States; where one side is absent the other's vector stands alone."""
        states = self.states(text, text_mask)
        said = states[torch.arange(len(text), device=text.device), self.text.end_of(text, text_mask)]
        here, there = visual.mask.any(dim=1, keepdim=True), text_mask.any(dim=1, keepdim=True)
        pooled = torch.where(there, said, 1.0) * torch.where(here, self.whole_of(visual), 1.0)
        return States(states, visual.states, pooled.masked_fill(~(here | there), 0.0))


class CLIPBackbone(_Towers):
    """``CLIP``: a vision transformer (the stem) and a causal text transformer, read at the end of the text.

    Source: https://arxiv.org/abs/2103.00020. With the contrastive head, whose two matrices are CLIP's projections, an
    embedding is exactly that of ``CLIP``. Tokens of the two sides do not meet; masked words see what stands before
    them, unless ``causal`` is off.

    Args:
        vocab_size: Token ids.
        dim: Width D of both towers.
        max_length: Places of words.
        num_layers: Of each tower.
        num_heads: Of each tower.
        causal: No word sees a later one.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        max_length: int,
        *,
        num_layers: int = 4,
        num_heads: int = 4,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.num_layers, self.num_heads = num_layers, num_heads
        self.text = TextTower(
            vocab_size=vocab_size,
            dim=dim,
            num_layers=num_layers,
            num_heads=num_heads,
            context_length=max_length,
            out_dim=None,
            causal=causal,
            activation="quick_gelu",
            pooling="eos",
            eos_id=SEP,
        )

    def take_stem(self, side: int, patch: int) -> Eye:
        """The image tower."""
        return CLIPEye(side, patch, self.text.positions.shape[1], self.num_layers, self.num_heads)

    def whole_of(self, visual: VisualTokens) -> Tensor:
        """The class token."""
        return visual.states[:, -1]


class MobileCLIPBackbone(_Towers):
    """``MobileCLIP`` of the S0 kind: FastViT (the stem) and a text tower with RepMixer blocks, which see both ways.

    Source: https://arxiv.org/abs/2311.17049. The text tower attends to padding, as in the original, so texts are
    padded to ``max_length``: a state never depends on the longest text of the batch.

    Args:
        vocab_size: Token ids.
        dim: Width D of both towers, a multiple of 64.
        max_length: Places of words.
        num_layers: Attention layers of the text tower.
        num_heads: Its heads.
        image_depths: Blocks of FastViT's four stages.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        max_length: int,
        *,
        num_layers: int = 4,
        num_heads: int = 4,
        image_depths: Sequence[int] = (2, 2, 4, 2),
    ) -> None:
        super().__init__()
        self.image_depths = tuple(image_depths)
        self.text = TextTower(
            vocab_size=vocab_size,
            dim=dim,
            context_length=max_length,
            out_dim=None,
            causal=False,
            pooling="eos",
            eos_id=SEP,
            layers=mct_layers(dim, num_layers, num_heads),
        )

    def take_stem(self, side: int, patch: int) -> Eye:
        """The image tower."""
        return FastViTEye(side, patch, self.text.positions.shape[1], self.image_depths)

    def whole_of(self, visual: VisualTokens) -> Tensor:
        """The mean over the cells."""
        return visual.states.mean(dim=1)

    def states(self, text: Tensor, text_mask: Tensor) -> Tensor:
        """``(B, T, D)``."""
        missing = self.text.positions.shape[0] - text.shape[1]
        padded = nn.functional.pad(text.masked_fill(~text_mask, 0), (0, max(missing, 0)))
        return self.text.sequence(padded)[:, : text.shape[1]]


class _OneStream(nn.Module):
    """A model that reads its image tower's tokens and the words in one stream."""

    model: Any
    reads: tuple[int, int]  # visual tokens and their width

    def forward(self, visual: VisualTokens, text: Tensor, text_mask: Tensor) -> States:
        """States. A batch whose visual tokens have another shape is one without any picture (``TaskModel.nothing``)."""
        features = visual.states if visual.states.shape[1:] == self.reads else None
        present = torch.stack([visual.mask.any(dim=1), text_mask.any(dim=1)], dim=1)
        output = self.model(None, text, text_mask, image_features=features, present=present, tasks=())
        image = output.image if features is not None else output.image[:, : visual.mask.shape[1]]
        return States(output.text, image, output.pooled)


class MMBERTBackbone(_OneStream):
    """``MMBERT``: five feature maps of a ResNet (the stem) and the words in one BERT.

    Source: https://arxiv.org/abs/2104.01394. Its tokens are no places, so there are no patches to mask.

    Args:
        vocab_size: Token ids.
        dim: Width D.
        max_length: Places of words.
        num_layers: Layers.
        num_heads: Heads.
        dropout: In the layers; a third of it on the embeddings, as in the original.
        depths: Blocks of the ResNet's four stages.
        resnet_width: Channels of its stem.
        norm_mode: Of its batch norms; ``batch`` mixes the rows of a pass, hence several processes or
            ``train.accumulate`` give other (not worse) results than one pass.
        options: Further arguments of ``MMBERT``.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        max_length: int,
        *,
        num_layers: int = 4,
        num_heads: int = 4,
        dropout: float = 0.1,
        depths: Sequence[int] = (1, 1, 1, 1),
        resnet_width: int = 16,
        norm_mode: str = "batch",
        **options: Any,
    ) -> None:
        super().__init__()
        tokens = options.pop("num_visual", 5)
        self.reads = (tokens, dim)
        places = max_length + tokens + 1
        self.model = MMBERT(
            vocab_size=vocab_size,
            dim=dim,
            num_layers=num_layers,
            num_heads=num_heads,
            max_length=places,
            positions=places,
            dropout=dropout,
            embedding_dropout=dropout / 3,
            depths=depths,
            resnet_width=resnet_width,
            norm_mode=norm_mode,
            num_visual=tokens,
            cls_id=CLS,
            sep_id=SEP,
            **options,
        )

    def take_stem(self, side: int, patch: int) -> Eye:
        """The image tower, which leaves the model."""
        stem = MapsEye(side, self.model.resnet, self.model.visual)
        del self.model.resnet, self.model.visual
        return stem


class MMBTBackbone(_OneStream):
    """``MMBT``: pooled vectors of a ResNet (the stem) and the words in one BERT.

    Source: https://arxiv.org/abs/1909.02950.

    Args:
        vocab_size: Token ids.
        dim: Width D.
        max_length: Places of words.
        num_layers: Layers.
        num_heads: Heads.
        dropout: Everywhere.
        depths: Blocks of the ResNet's four stages.
        resnet_width: Channels of its stem.
        num_image_tokens: Vectors of a picture, 1 to 9.
        norm_mode: As in ``MMBERTBackbone``.
        options: Further arguments of ``MMBT``.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        max_length: int,
        *,
        num_layers: int = 4,
        num_heads: int = 4,
        dropout: float = 0.1,
        depths: Sequence[int] = (1, 1, 1, 1),
        resnet_width: int = 16,
        num_image_tokens: int = 4,
        norm_mode: str = "batch",
        **options: Any,
    ) -> None:
        super().__init__()
        self.model = MMBT(
            vocab_size=vocab_size,
            dim=dim,
            num_layers=num_layers,
            num_heads=num_heads,
            max_length=max(max_length, num_image_tokens + 2),
            dropout=dropout,
            attention_dropout=dropout,
            depths=depths,
            resnet_width=resnet_width,
            num_image_tokens=num_image_tokens,
            norm_mode=norm_mode,
            cls_id=CLS,
            sep_id=SEP,
            **{"hidden_dim": 4 * dim, **options},
        )
        self.reads = (num_image_tokens, self.model.resnet.channels[-1])

    def take_stem(self, side: int, patch: int) -> Eye:
        """The image tower, which leaves the model."""
        stem = PooledEye(side, self.model.resnet, self.model.pool, self.reads[0])
        del self.model.resnet
        return stem
