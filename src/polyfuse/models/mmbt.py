"""MMBT: pooled image features as tokens of a BERT.

Shapes: B batch, N image tokens, L text tokens, R = N + 1 + L tokens of the row, C image channels, D width,
V vocabulary. Masks: True = present.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.layers.attention_maps import capture_attention
from polyfuse.models import mmbt_original
from polyfuse.models.bert_parts import BertEmbeddings, BertPooler, TransformHead, bert_layers, init_bert, mlm_head
from polyfuse.models.convert import Rule, strip_prefix, tensors_of
from polyfuse.models.image_and_text import batch_of, presence, text_after_cls, zeroed
from polyfuse.models.output import ModelOutput
from polyfuse.models.pretrained import PretrainedModel, arguments
from polyfuse.models.resnet import ResNet, with_batch_counters

#: Image tokens to the grid they are pooled to, height by width.
GRIDS = {1: (1, 1), 2: (2, 1), 3: (3, 1), 4: (2, 2), 5: (5, 1), 6: (3, 2), 7: (7, 1), 8: (4, 2), 9: (3, 3)}
POOLS: dict[str, Callable[..., Tensor]] = {"avg": F.adaptive_avg_pool2d, "max": F.adaptive_max_pool2d}


class MMBTHead(nn.Module):
    """Dropout, then a linear layer (Hugging Face), or MMF's transform (linear, GELU, norm) and a linear layer.

    Args:
        dim: Width D.
        num_classes: Outputs.
        transform: Which of the two.
        dropout: On the pooled vector.
        eps: Of the transform's norm.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        transform: bool = False,
        dropout: float = 0.1,
        eps: float = 1e-12,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        kind = TransformHead(dim, num_classes, eps=eps, **factory) if transform else None
        self.classifier = nn.Linear(dim, num_classes, **factory) if kind is None else kind

    def forward(self, pooled_BD: Tensor) -> Tensor:
        """``(B, D)`` to ``(B, num_classes)``."""
        return self.classifier(F.dropout(pooled_BD, self.dropout, self.training))


class MMBT(PretrainedModel):
    """The multimodal bitransformer: ``[CLS] v1 .. vN [SEP]`` and ``text [SEP]``, one BERT over both.

    A ResNet's last map is pooled to N vectors; a linear layer brings them to BERT's width. Both parts go through the
    same tables and norm of the embeddings, and *both count positions from 0*. Heads: ``classification``
    (``num_classes``, ``transform=True`` for MMF's), ``mlm``, ``alignment`` (BERT's 2 outputs on the pooled vector).

    Source: https://arxiv.org/abs/1909.02950; MMF ``models/mmbt.py``; Hugging Face's former ``modeling_mmbt.py``.
    Differs: an absent image or text is masked (there, image tokens are always attended to).

    Args:
        vocab_size: Token ids V.
        dim: Width D.
        num_layers: Layers.
        num_heads: Heads.
        hidden_dim: Hidden width of the feed-forward parts.
        max_length: Positions.
        type_vocab_size: Token types.
        activation: Entry of ``ACTIVATIONS``.
        dropout: On embeddings, what every part adds, and before the classifier.
        attention_dropout: On attention weights.
        eps: Of the norms.
        num_image_tokens: N, 1 to 9: grids 1x1, 2x1, 3x1, 2x2, 5x1, 3x2, 7x1, 4x2, 3x3.
        pool: ``avg`` or ``max``.
        image_type: Token type of the image part.
        text_type: Of the text. Hugging Face: 0 and 1; MMF gives the image whichever the text leaves free: 1 and 0.
        depths: Blocks per stage of the ResNet.
        resnet_width: Channels of its stem; its last map has 32 times as many.
        norm_mode: Of its batch norms, see ``ResNet``.
        cls_id: Id of [CLS].
        sep_id: Id of [SEP].
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If ``num_image_tokens`` or ``pool`` is none of those.

    Example:
        >>> model = mmbt_tiny().attach("classification", num_classes=3).eval()
        >>> model(torch.zeros(1, 3, 32, 32), torch.tensor([[2, 11, 12, 3]])).classification_logits.shape
        torch.Size([1, 3])
    """

    LAYOUTS = ("mmf", "hf")
    modalities = ("image", "text")
    IMAGE_MEAN, IMAGE_STD = ResNet.IMAGE_MEAN, ResNet.IMAGE_STD

    def __init__(
        self,
        *,
        vocab_size: int = 30522,
        dim: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        hidden_dim: int = 3072,
        max_length: int = 512,
        type_vocab_size: int = 2,
        activation: str = "gelu",
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        eps: float = 1e-12,
        num_image_tokens: int = 1,
        pool: str = "avg",
        image_type: int = 0,
        text_type: int = 1,
        depths: Sequence[int] = (3, 8, 36, 3),
        resnet_width: int = 64,
        norm_mode: str = "batch",
        cls_id: int = 101,
        sep_id: int = 102,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = arguments(locals())
        super().__init__()
        if num_image_tokens not in GRIDS:
            raise ValueError(f"num_image_tokens must be 1 to 9, got {num_image_tokens}")
        if pool not in POOLS:
            raise ValueError(f"pool must be one of {', '.join(POOLS)}, got {pool!r}")
        self.config = config
        self.num_image_tokens, self.pool = num_image_tokens, pool
        self.image_type, self.text_type = image_type, text_type
        self.cls_id, self.sep_id = cls_id, sep_id
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embeddings = BertEmbeddings(
            vocab_size, dim, max_length=max_length, type_vocab_size=type_vocab_size, eps=eps, dropout=dropout, **factory
        )
        self.resnet = ResNet(depths=depths, width=resnet_width, num_classes=None, norm_mode=norm_mode, **factory)
        self.image_proj = nn.Linear(self.resnet.channels[-1], dim, **factory)
        self.layers = bert_layers(
            num_layers, dim, num_heads, hidden_dim, activation, dropout, attention_dropout, eps, **factory
        )
        self.pooler = BertPooler(dim, **factory)
        init_bert(self)

    def image_vectors(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to ``(B, N, C)``: what ``image_features`` takes, so that a frozen ResNet runs once."""
        last = self.resnet.feature_maps(images)[-1]
        return POOLS[self.pool](last, GRIDS[self.num_image_tokens]).flatten(2).transpose(1, 2)

    def encode(
        self,
        images: Tensor | None = None,
        input_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        image_features: Tensor | None = None,
        present: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """States ``(B, R, D)`` of the row and its mask ``(B, R)``; see ``forward``."""
        size, device = batch_of(images, image_features, input_ids)
        no_image = images is None and image_features is None
        has_image, has_text = presence(present, size, device, no_image, input_ids)
        complete = present is None and text_mask is None and not no_image  # the kernel is faster without a mask
        if input_ids is None:
            input_ids, token_type_ids = torch.zeros(size, 1, dtype=torch.long, device=device), None
        rest_BL, seen_BL = text_after_cls(input_ids, text_mask, has_text)
        types_BL = torch.full_like(rest_BL, self.text_type)
        if token_type_ids is not None:
            types_BL = torch.where(seen_BL, token_type_ids[:, 1:], types_BL)
        x_BRD = torch.cat(
            [
                self._embed_image(zeroed(images, has_image), zeroed(image_features, has_image), size),
                self.embeddings(rest_BL, types_BL),
            ],
            dim=1,
        )
        frame = torch.ones(size, 1, dtype=torch.bool, device=device)
        mask_BR = torch.cat([frame, has_image[:, None].expand(-1, self.num_image_tokens), frame, seen_BL], dim=1)
        for layer in self.layers:
            x_BRD = layer(x_BRD, None if complete else mask_BR)
        return x_BRD, mask_BR

    def _embed_image(self, images: Tensor | None, features: Tensor | None, size: int) -> Tensor:
        """``(B, N + 2, D)``: [CLS], the projected vectors, [SEP], through BERT's position and type tables and norm."""
        if images is not None and features is not None:
            raise ValueError("give images or image_features, not both")
        table, number = self.embeddings, self.num_image_tokens
        if images is not None:
            features = self.image_vectors(images)
        if features is None:
            features = table.words.weight.new_zeros(size, number, self.image_proj.in_features)
        elif tuple(features.shape[1:]) != (number, self.image_proj.in_features):
            raise ValueError(
                f"image_features must be (B, {number}, {self.image_proj.in_features}), got {tuple(features.shape)}"
            )
        start, end = (table.words.weight[token].expand(size, 1, -1) for token in (self.cls_id, self.sep_id))
        tokens = self.image_proj(features)
        x_BND = torch.cat([start.to(tokens.dtype), tokens, end.to(tokens.dtype)], dim=1)
        x_BND = x_BND + table.positions.weight[: number + 2] + table.types.weight[self.image_type]
        return F.dropout(table.norm(x_BND), table.dropout, self.training)

    def forward(
        self,
        images: Tensor | None = None,
        input_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        image_features: Tensor | None = None,
        present: Tensor | None = None,
        tasks: Sequence[str] | None = None,
        return_attention: bool = False,
    ) -> ModelOutput:
        """States of the row, pooled, and the attached heads.

        The text's own [CLS] moves in front of the image, which gets a [SEP]; these two are always present, so that no
        row is empty.

        Args:
            images: ``(B, 3, H, W)``, normalised by ``IMAGE_MEAN`` and ``IMAGE_STD``; None = no image in any row. (In
                data parallel training give zeros and ``present`` instead: every rank must run every branch.)
            input_ids: ``(B, L)`` as BERT's tokenizer gives them, ``[CLS] text [SEP]``; None = no text in any row.
            text_mask: ``(B, L)`` bool; None = all.
            token_type_ids: ``(B, L)``; None = ``text_type`` everywhere.
            image_features: ``(B, N, C)`` instead of images, see ``image_vectors``.
            present: ``(B, 2)`` bool, image and text; None = both, where given.
            tasks: Heads to run; None = all attached.
            return_attention: Fill ``attentions``.

        Shape:
            - ``sequence (B, R, D)``, R = N + 1 + L; ``sequence_mask (B, R)``; ``pooled (B, D)``.
            - ``image (B, N, D)``, ``text (B, L, D)``: parts of ``sequence``; the text's first token is [CLS].
            - ``classification_logits (B, num_classes)``; ``mlm_logits (B, L, V)``, in line with ``input_ids``;
              ``alignment_logits (B, 2)``.

        Raises:
            ValueError: If nothing is given, or shapes do not fit.
        """
        wanted, maps = self.asked(tasks), None
        given: dict[str, Any] = {
            "token_type_ids": token_type_ids,
            "image_features": image_features,
            "present": present,
        }
        if return_attention:
            with capture_attention(self) as maps:
                sequence, mask = self.encode(images, input_ids, text_mask, **given)
        else:
            sequence, mask = self.encode(images, input_ids, text_mask, **given)
        end = 1 + self.num_image_tokens
        info = {
            "sequence": sequence,
            "sequence_mask": mask,
            "image": sequence[:, 1:end],
            "text": torch.cat([sequence[:, :1], sequence[:, end + 1 :]], dim=1),
            "pooled": self.pooler(sequence),
        }
        for task in wanted:
            head = self.heads[task]
            if task == "mlm":
                info["mlm_logits"] = head(info["text"], self.embeddings.words.weight)
            else:
                info[f"{task}_logits"] = head(info["pooled"])
        return ModelOutput(None, None, info, maps)

    @classmethod
    def from_original(
        cls,
        source: Mapping[str, Tensor] | str | Path,
        config: Mapping[str, Any] | str | Path | None = None,
        *,
        layout: str | None = None,
    ) -> Self:
        """From MMF's or Hugging Face's names, told apart by the names.

        ``config``, optional, may hold what tensors do not tell: ``num_attention_heads`` (12), ``num_image_embeds`` or
        ``num_output_features`` (1), ``pool_type`` (``avg``), and constructor arguments of ours, which go before.

        Raises:
            ValueError: With a list, if tensors cannot be mapped, are missing, or do not fit.
        """
        state = tensors_of(source)
        state = mmbt_original.new_names(strip_prefix(state, "module."))
        return super().from_original(with_batch_counters(state), config, layout=layout)

    @classmethod
    def original_config(cls, state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Any]:
        """From the tensors and what ``config`` adds."""
        return mmbt_original.config_of(state, config or {})

    @classmethod
    def original_heads(cls, state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
        """What the checkpoint holds: a classifier, or BERT's two pre-training heads."""
        return mmbt_original.heads_of(state)

    def original_rules(self, state: Mapping[str, Tensor] | None, layout: str | None) -> tuple[list[Rule], Any]:
        """The names of MMF's ``MMBT`` or Hugging Face's ``MMBTForClassification``."""
        rules = mmbt_original.rules_of(self, layout or mmbt_original.layout_of(state or {}))
        return rules, lambda key: key.endswith((".position_ids", ".token_type_ids"))


def _classification_head(model: Any, num_classes: int = 2, transform: bool = False) -> MMBTHead:
    words = model.embeddings.words.weight
    head = MMBTHead(
        words.shape[1],
        num_classes,
        transform=transform,
        dropout=model.config["dropout"],
        eps=model.config["eps"],
        device=words.device,
        dtype=words.dtype,
    )
    init_bert(head)
    return head


def _mlm_head(model: Any) -> nn.Module:
    return mlm_head(model.embeddings.words.weight, model.config["activation"], model.config["eps"])


def _alignment_head(model: Any) -> nn.Module:
    words = model.embeddings.words.weight
    head = nn.Linear(words.shape[1], 2, device=words.device, dtype=words.dtype)
    init_bert(head)
    return head


MMBT.HEADS = {"classification": _classification_head, "mlm": _mlm_head, "alignment": _alignment_head}


def mmbt_base(**kwargs: Any) -> MMBT:
    """The published size: BERT base and ResNet-152, one image token."""
    return MMBT(**kwargs)


def mmbt_tiny(**kwargs: Any) -> MMBT:
    """A twin for tests: one block a stage, 2 layers of width 16, 97 token ids ([CLS] 2, [SEP] 3), 3 image tokens."""
    small: dict[str, Any] = {"vocab_size": 97, "dim": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 24}
    small |= {"max_length": 32, "num_image_tokens": 3, "depths": (1, 1, 1, 1), "resnet_width": 4}
    return MMBT(**{**small, "cls_id": 2, "sep_id": 3, **kwargs})
