"""The models behind one interface: visual tokens and words in, states of both and one vector per row out.

Here are those that read any visual tokens; ``eyes.py`` has those that look at the pixels themselves.

Shapes: B rows, T words, P visual tokens, D width. Masks: True = present.
"""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.models.mmbert import MMBERT
from polyfuse.models.mmbt import MMBT
from polyfuse.models.multimodal_transformer import MultimodalTransformer
from polyfuse.models.pretrained import unknown_argument
from polyfuse.models.uniter import UNITER
from polyfuse.models.vilbert import ViLBERT
from polyfuse.models.visual_bert import VisualBert
from polyfuse.registry import Registry
from polyfuse.tasks.eyes import CLIPBackbone, MMBERTBackbone, MMBTBackbone, MobileCLIPBackbone
from polyfuse.tasks.stem import States, VisualTokens, seven


class MultimodalBackbone(nn.Module):
    """``MultimodalTransformer`` over word vectors and visual tokens, any of its nine strategies.

    Args:
        vocab_size: Token ids.
        dim: Width D.
        max_length: Places of words.
        num_layers: Of ``MultimodalTransformer``.
        num_heads: Likewise.
        fusion: Likewise.
        dropout: Likewise.
        options: Its further arguments.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        max_length: int,
        *,
        num_layers: int = 4,
        num_heads: int = 4,
        fusion: str = "early",
        dropout: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.words.weight, std=0.02)
        self.model = MultimodalTransformer(
            ("image", "text"),
            dim,
            fusion=fusion,
            dim=dim,
            num_layers=num_layers,
            num_heads=num_heads,
            max_length={"text": max_length},
            dropout=dropout,
            **options,
        )

    def forward(self, visual: VisualTokens, text: Tensor, text_mask: Tensor) -> States:
        """States; a modality whose mask is False throughout a row is absent from it."""
        words = self.words(text.masked_fill(~text_mask, 0))
        output = self.model.encode({"image": visual.states, "text": words}, {"image": visual.mask, "text": text_mask})
        return States(output.info["text_tokens"], output.info["image_tokens"], output.info["pooled"])


class UniterBackbone(nn.Module):
    """``UNITER``: one stream; the visual tokens are its regions.

    Args:
        vocab_size: Token ids.
        dim: Width D.
        max_length: Places of words.
        num_layers: Layers.
        num_heads: Heads.
        dropout: On embeddings, on what every part adds, on attention weights.
        options: Further arguments of ``UNITER``.
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
        **options: Any,
    ) -> None:
        super().__init__()
        self.model = UNITER(
            vocab_size=vocab_size,
            dim=dim,
            num_layers=num_layers,
            num_heads=num_heads,
            region_dim=dim,
            max_length=max_length,
            dropout=dropout,
            attention_dropout=dropout,
            **{"hidden_dim": 4 * dim, **options},
        )

    def forward(self, visual: VisualTokens, text: Tensor, text_mask: Tensor) -> States:
        """States."""
        output = self.model(
            text,
            text_mask=text_mask,
            region_features=visual.states,
            region_boxes=seven(visual.boxes),
            region_mask=visual.mask,
            tasks=(),
        )
        length = text.shape[1]
        return States(output.sequence[:, :length], output.sequence[:, length:], output.pooled)


class ViLBERTBackbone(nn.Module):
    """``ViLBERT``: two streams that meet in co-attention; the mean of the visual tokens is its region 0.

    Args:
        vocab_size: Token ids.
        dim: Width D of both streams.
        max_length: Places of words.
        num_layers: Text layers; half of them come before the first connection, the regions have as many as there are
            connections.
        num_heads: Heads.
        dropout: Everywhere.
        options: Further arguments of ``ViLBERT``.
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
        **options: Any,
    ) -> None:
        super().__init__()
        first = num_layers // 2
        met = max(1, num_layers - first)
        sizes = {
            "hidden_dim": 4 * dim,
            "region_hidden_dim": 4 * dim,
            "region_layers": met,
            "text_connections": tuple(range(num_layers - met, num_layers)),
            "region_connections": tuple(range(met)),
            **{f"{part}dropout": dropout for part in ("", "attention_", "region_", "region_attention_", "head_")},
        }
        self.model = ViLBERT(
            vocab_size=vocab_size,
            dim=dim,
            num_layers=num_layers,
            num_heads=num_heads,
            max_length=max_length,
            feature_dim=dim,
            region_dim=dim,
            region_heads=num_heads,
            co_dim=dim,
            co_heads=num_heads,
            **{**sizes, **options},
        )

    def forward(self, visual: VisualTokens, text: Tensor, text_mask: Tensor) -> States:
        """States; where one side is absent the other's pooled vector stands alone."""
        here = visual.mask[..., None].to(visual.states.dtype)
        whole = (visual.states * here).sum(dim=1, keepdim=True) / here.sum(dim=1, keepdim=True).clamp(min=1)
        frame = torch.tensor([0.0, 0.0, 1.0, 1.0], device=text.device).expand(len(text), 1, 4)
        boxes = torch.cat([frame, visual.boxes], dim=1)
        area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
        there = visual.mask.any(dim=1)
        output = self.model(
            text,
            text_mask=text_mask,
            region_features=torch.cat([whole, visual.states], dim=1),
            region_boxes=torch.cat([boxes, area[..., None]], dim=-1),
            region_mask=torch.cat([there[:, None], visual.mask], dim=1),
            tasks=(),
        )
        said = text_mask.any(dim=1)
        pooled = torch.where(said[:, None], output.pooled_text, 1.0) * torch.where(
            there[:, None], output.pooled_image, 1.0
        )
        return States(output.text, output.regions[:, 1:], pooled.masked_fill(~(said | there)[:, None], 0.0))


class VisualBertBackbone(nn.Module):
    """``VisualBert``: one stream without boxes; the visual tokens carry their own places.

    Args:
        vocab_size: Token ids.
        dim: Width D.
        max_length: Places of words.
        num_layers: Layers.
        num_heads: Heads.
        dropout: Everywhere.
        options: Further arguments of ``VisualBert``.
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
        **options: Any,
    ) -> None:
        super().__init__()
        self.model = VisualBert(
            vocab_size=vocab_size,
            dim=dim,
            num_layers=num_layers,
            num_heads=num_heads,
            region_dim=dim,
            max_length=max_length,
            dropout=dropout,
            attention_dropout=dropout,
            **{"hidden_dim": 4 * dim, **options},
        )

    def forward(self, visual: VisualTokens, text: Tensor, text_mask: Tensor) -> States:
        """States."""
        output = self.model(text, text_mask=text_mask, region_features=visual.states, region_mask=visual.mask, tasks=())
        return States(output.text, output.regions, output.pooled)


#: Backbones by name; each takes ``(vocab_size, dim, max_length, **options)``. Those of ``eyes.py`` bring a stem.
BACKBONES = Registry(
    "backbone",
    {
        "clip": CLIPBackbone,
        "mmbert": MMBERTBackbone,
        "mmbt": MMBTBackbone,
        "mobileclip": MobileCLIPBackbone,
        "multimodal": MultimodalBackbone,
        "uniter": UniterBackbone,
        "vilbert": ViLBERTBackbone,
        "visual_bert": VisualBertBackbone,
    },
)

#: Models whose further arguments a backbone hands on, and those of them that it sets itself.
_FURTHER: dict[str, tuple[Any, tuple[str, ...]]] = {
    "mmbert": (MMBERT, ("positions", "embedding_dropout", "cls_id", "sep_id")),
    "mmbt": (MMBT, ("attention_dropout", "cls_id", "sep_id")),
    "multimodal": (MultimodalTransformer, ("modalities", "input_dim")),
    "uniter": (UNITER, ("region_dim", "attention_dropout")),
    "vilbert": (ViLBERT, ("feature_dim", "region_dim", "region_heads", "co_dim", "co_heads")),
    "visual_bert": (VisualBert, ("region_dim", "attention_dropout")),
}
_NEVER = ("self", "vocab_size", "dim", "max_length", "device", "dtype", "options")


def backbone_options(backbone: str) -> tuple[str, ...]:
    """What ``backbone_options`` may name.

    Raises:
        KeyError: If the backbone is unknown.

    Example:
        >>> backbone_options("clip")
        ('num_layers', 'num_heads', 'causal')
    """
    known = dict.fromkeys(inspect.signature(BACKBONES[backbone].__init__).parameters)
    never = {*_NEVER}
    if backbone in _FURTHER:
        model, own = _FURTHER[backbone]
        known |= dict.fromkeys(inspect.signature(model.__init__).parameters)
        never |= {*own}
    return tuple(name for name in known if name not in never)


def check_options(backbone: str, given: Iterable[str]) -> None:
    """Refuse what a backbone does not take.

    Raises:
        KeyError: If the backbone is unknown.
        ValueError: For an unknown option, with the nearest and all that there are.
    """
    known = backbone_options(backbone)
    for name in given:
        if name not in known:
            raise ValueError(unknown_argument(f"backbone_options: backbone '{backbone}'", str(name), known))
