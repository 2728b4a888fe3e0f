"""MMBERT (medical): a ResNet's feature pyramid as five visual tokens among BERT's word embeddings.

Shapes: B batch, P visual places, L text tokens, R = P + 1 + L tokens of the row, D width, V vocabulary, N classes.
Masks: True = present.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from polyfuse.layers.attention_maps import capture_attention
from polyfuse.models import mmbert_original
from polyfuse.models.bert_parts import BertEmbeddings, init_bert
from polyfuse.models.convert import Rule, strip_prefix, tensors_of
from polyfuse.models.image_and_text import batch_of, presence, text_after_cls, zeroed
from polyfuse.models.mmbert_parts import EPS, MMBERTHead, MMBERTLayer, NormPair, VisualTokens
from polyfuse.models.output import ModelOutput
from polyfuse.models.pretrained import PretrainedModel, arguments
from polyfuse.models.resnet import ResNet, with_batch_counters

POOLED_LAYERS = ("last", "all")


class Row(NamedTuple):
    """What the layers made of ``[CLS] image [SEP] text``.

    Attributes:
        layers: ``(B, R, D)`` after each layer.
        mask: ``(B, R)`` bool.
    """

    layers: tuple[Tensor, ...]
    mask: Tensor


class MMBERT(PretrainedModel):
    """MMBERT for medical images: ``[CLS] v1 v2 v3 v4 v5 [SEP] text [SEP]`` through four fresh pre-norm layers.

    v1 to v5 are the maps of a ResNet, deepest first (stage 4, 3, 2, 1, then the stem after its ReLU and before the
    pooling), each through its own 1x1 convolution, ReLU and average. They replace the *finished* embeddings at their
    places: no position, type or norm is added to them. There is no norm after the last layer. Heads: ``mlm`` and
    ``vqa`` (``num_classes``).

    Source: https://arxiv.org/abs/2104.01394 and the authors' code (VirajBagal/MMBERT). Not JHU's multilingual mmBERT.
    Differs by default where the code has a defect; the five switches below bring each of them back, and
    ``from_original`` turns them on. ``docs/mmbert.md`` tells them apart.

    Args:
        vocab_size: Token ids V.
        dim: Width D.
        num_layers: Layers.
        num_heads: Heads.
        hidden_dim: Hidden width of the feed-forward parts; None = 4 D.
        max_length: Tokens of a row at most, R.
        positions: Rows of the position table (BERT's has 512).
        type_vocab_size: Token types: 0 before the text, 1 in it.
        dropout: On attention weights and on what every part adds.
        embedding_dropout: On the word embeddings.
        depths: Blocks per stage of the ResNet.
        resnet_width: Channels of its stem.
        resnet_classes: Keep the ResNet's classifier, frozen and unused, because a checkpoint has it; None = no.
        norm_mode: Of the ResNet's batch norms, see ``ResNet``. ``batch`` lets rows of a training batch mix, absent
            images (zeros) among them; ``eval`` and ``frozen`` do not.
        num_visual: Maps used, deepest first: 1 to 5.
        image_places: Places the row keeps for them; None = ``num_visual``. The original always keeps 5: what is left
            over holds the embedding of id 0 and is attended to.
        pooled_layers: What ``vqa`` averages: ``last`` layer (the authors' VQA-Med 2019 script) or ``all`` of them
            (their VQA-RAD script).
        shared_norms: Defect: one pair of norms serves every layer.
        idle_norm: Defect: the first norm of a pair is used before the feed-forward part too; the second is idle, kept
            frozen.
        pool_padding: Defect: padding counts in the average for ``vqa``, which then depends on how far rows are padded.
        count_padding_label: Defect: label 0 (padding, and every token that was not masked) counts in the
            masked-language loss. Nothing here computes a loss: ``mlm_ignore_index`` tells it to whoever does.
        five_passes: Defect: the ResNet runs once per map, so that in training its running statistics move up to five
            times a step (the stem's five times, stage 4's once). Outputs and gradients are the same.
        cls_id: Id of [CLS].
        sep_id: Id of [SEP].
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> model = mmbert_tiny().attach("vqa", num_classes=3).eval()
        >>> ids = torch.tensor([[2, 11, 12, 3]])
        >>> model(torch.zeros(1, 3, 32, 32), ids).vqa_logits.shape
        torch.Size([1, 3])
    """

    LAYOUTS = ("mmbert",)
    modalities = ("image", "text")
    #: Images in [0, 1], then ``(x - mean) / std`` per channel; the authors use 224 x 224.
    IMAGE_MEAN, IMAGE_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(
        self,
        *,
        vocab_size: int = 30522,
        dim: int = 768,
        num_layers: int = 4,
        num_heads: int = 12,
        hidden_dim: int | None = None,
        max_length: int = 75,
        positions: int = 512,
        type_vocab_size: int = 2,
        dropout: float = 0.3,
        embedding_dropout: float = 0.1,
        depths: Sequence[int] = (3, 8, 36, 3),
        resnet_width: int = 64,
        resnet_classes: int | None = None,
        norm_mode: str = "batch",
        num_visual: int = 5,
        image_places: int | None = None,
        pooled_layers: str = "last",
        shared_norms: bool = False,
        idle_norm: bool = False,
        pool_padding: bool = False,
        count_padding_label: bool = False,
        five_passes: bool = False,
        cls_id: int = 101,
        sep_id: int = 102,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = arguments(locals())
        super().__init__()
        self.config = config
        self.num_visual = num_visual
        self.image_places = num_visual if image_places is None else image_places
        if not 1 <= num_visual <= 5 or self.image_places < num_visual:
            raise ValueError(
                f"num_visual must be 1 to 5 and fit its places, got {num_visual} in {self.image_places} places"
            )
        if pooled_layers not in POOLED_LAYERS:
            raise ValueError(f"pooled_layers must be one of {', '.join(POOLED_LAYERS)}, got {pooled_layers!r}")
        if max_length > positions:
            raise ValueError(f"max_length must be at most positions = {positions}, got {max_length}")
        self.max_length, self.pooled_layers, self.five_passes = max_length, pooled_layers, five_passes
        self.pool_padding, self.cls_id, self.sep_id = pool_padding, cls_id, sep_id
        #: The label that a masked-language loss leaves out; None = every label counts, as in the original.
        self.mlm_ignore_index: int | None = None if count_padding_label else 0
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embeddings = BertEmbeddings(
            vocab_size,
            dim,
            max_length=positions,
            type_vocab_size=type_vocab_size,
            eps=EPS,
            dropout=embedding_dropout,
            **factory,
        )
        self.resnet = ResNet(
            depths=depths, width=resnet_width, num_classes=resnet_classes, norm_mode=norm_mode, **factory
        )
        if self.resnet.fc is not None:
            self.resnet.fc.requires_grad_(False)
        self.visual = VisualTokens(self.resnet.channels[::-1][:num_visual], dim, **factory)
        self.norms = nn.ModuleList(
            NormPair(dim, idle_second=idle_norm, **factory) for _ in range(1 if shared_norms else num_layers)
        )
        inner = 4 * dim if hidden_dim is None else hidden_dim
        self.layers = nn.ModuleList(
            MMBERTLayer(dim, num_heads, inner, dropout=dropout, **factory) for _ in range(num_layers)
        )
        init_bert(self)

    def visual_tokens(
        self, images: Tensor | None, image_features: Tensor | Sequence[Tensor] | None = None
    ) -> Tensor | None:
        """The visual tokens ``(B, num_visual, D)``: what ``image_features`` takes, so that a frozen ResNet runs once.

        Args:
            images: ``(B, 3, H, W)``.
            image_features: The tokens themselves, or the five maps of ``self.resnet.feature_maps``, stem first (then
                the 1x1 convolutions still train).

        Raises:
            ValueError: If both are given, or features have another shape.
        """
        if images is not None and image_features is not None:
            raise ValueError("give images or image_features, not both")
        if isinstance(image_features, Tensor):
            wanted = (self.num_visual, self.embeddings.words.embedding_dim)
            if image_features.ndim != 3 or tuple(image_features.shape[1:]) != wanted:
                raise ValueError(
                    f"image_features must be (B, {wanted[0]}, {wanted[1]}) visual tokens or five maps, "
                    f"got {tuple(image_features.shape)}"
                )
            return image_features
        if image_features is not None:
            if len(image_features) != 5:
                raise ValueError(f"image_features must be five maps, stem first, got {len(image_features)}")
            maps = tuple(image_features)
        elif images is None:
            return None
        elif self.five_passes:
            maps = tuple(self.resnet.feature_maps(images, number)[-1] for number in range(1, 6))
        else:
            maps = self.resnet.feature_maps(images)
        return self.visual(maps[::-1][: self.num_visual])

    def encode(
        self,
        images: Tensor | None = None,
        input_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
        *,
        image_features: Tensor | Sequence[Tensor] | None = None,
        present: Tensor | None = None,
    ) -> Row:
        """All layers' states of the row; see ``forward``."""
        size, device = batch_of(images, image_features, input_ids)
        has_image, has_text = presence(present, size, device, images is None and image_features is None, input_ids)
        # With nothing missing the kernel needs no mask, and is faster without.
        complete = present is None and text_mask is None and not (images is None and image_features is None)
        tokens_BPD = self.visual_tokens(zeroed(images, has_image), zeroed(image_features, has_image))
        if input_ids is None:
            input_ids = torch.zeros(size, 1, dtype=torch.long, device=device)
        rest_BL, seen_BL = text_after_cls(input_ids, text_mask, has_text)
        x_BRD = self._embed(tokens_BPD, rest_BL)
        frame = torch.ones(size, 1, dtype=torch.bool, device=device)
        mask_BR = torch.cat([frame, has_image[:, None].expand(-1, self.image_places), frame, seen_BL], dim=1)
        states = []
        for index, layer in enumerate(self.layers):
            x_BRD = layer(x_BRD, None if complete else mask_BR, self.norms[index % len(self.norms)])
            states.append(x_BRD)
        return Row(tuple(states), mask_BR)

    def _embed(self, tokens_BPD: Tensor | None, rest_BL: Tensor) -> Tensor:
        """Embeddings of ``[CLS] 0 .. 0 [SEP] text``, the zeros overwritten by the visual tokens."""
        size, places = rest_BL.shape[0], self.image_places
        length = places + 2 + rest_BL.shape[1]
        if length > self.max_length:
            raise ValueError(
                f"a row may have at most {self.max_length} tokens, got {length}: {places} of the image, [CLS], [SEP] "
                f"and {rest_BL.shape[1]} of the text behind its [CLS]"
            )
        start = rest_BL.new_zeros(places + 2)
        start[0], start[-1] = self.cls_id, self.sep_id
        ids_BR = torch.cat([start.expand(size, -1), rest_BL], dim=1)
        types_BR = (torch.arange(length, device=rest_BL.device) >= places + 2).long().expand(size, -1)
        x_BRD = self.embeddings(ids_BR, types_BR)
        if tokens_BPD is None:
            return x_BRD
        last = 1 + self.num_visual
        return torch.cat([x_BRD[:, :1], tokens_BPD.to(x_BRD.dtype), x_BRD[:, last:]], dim=1)

    def forward(
        self,
        images: Tensor | None = None,
        input_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
        *,
        image_features: Tensor | Sequence[Tensor] | None = None,
        present: Tensor | None = None,
        tasks: Sequence[str] | None = None,
        return_attention: bool = False,
    ) -> ModelOutput:
        """States of the row and the attached heads.

        [CLS], the visual places and a [SEP] are put in front of the text, whose own [CLS] they replace. The frame
        ([CLS] and that [SEP]) is always present, so that no row is empty.

        Args:
            images: ``(B, 3, H, W)``, normalised by ``IMAGE_MEAN`` and ``IMAGE_STD``; None = no image in any row. (In
                data parallel training give zeros and ``present`` instead: every rank must run every branch.)
            input_ids: ``(B, L)`` as BERT's tokenizer gives them, ``[CLS] text [SEP]``; None = no text in any row.
            text_mask: ``(B, L)`` bool; None = all.
            image_features: Instead of images, see ``visual_tokens``.
            present: ``(B, 2)`` bool, image and text; None = both, where given.
            tasks: Heads to run; None = all attached.
            return_attention: Fill ``attentions``.

        Shape:
            - ``sequence (B, R, D)``: the last layer, R = P + 1 + L; ``sequence_mask (B, R)``.
            - ``image (B, P, D)``, ``text (B, L, D)``: its parts; the text's first token is [CLS].
            - ``pooled (B, D)``: the average over present tokens.
            - ``mlm_logits (B, L, V)``, in line with ``input_ids``; ``vqa_logits (B, N)``.

        Raises:
            ValueError: If nothing is given, or shapes do not fit.
        """
        wanted = self.asked(tasks)
        if return_attention:
            with capture_attention(self) as maps:
                row = self.encode(images, input_ids, text_mask, image_features=image_features, present=present)
        else:
            maps = None
            row = self.encode(images, input_ids, text_mask, image_features=image_features, present=present)
        last, end = row.layers[-1], 1 + self.image_places
        info = {
            "sequence": last,
            "sequence_mask": row.mask,
            "image": last[:, 1:end],
            "text": torch.cat([last[:, :1], last[:, end + 1 :]], dim=1),
            "pooled": self._pool(row),
        }
        for task in wanted:
            info[f"{task}_logits"] = self.heads[task](info["pooled"] if task == "vqa" else info["text"])
        return ModelOutput(None, None, info, maps)

    def _pool(self, row: Row) -> Tensor:
        x_BRD = torch.stack(row.layers).mean(dim=0) if self.pooled_layers == "all" else row.layers[-1]
        if self.pool_padding:
            return x_BRD.mean(dim=1)
        kept = row.mask[..., None]
        return x_BRD.masked_fill(~kept, 0.0).sum(dim=1) / kept.sum(dim=1)

    @classmethod
    def from_original(
        cls,
        source: Mapping[str, Tensor] | str | Path,
        config: Mapping[str, Any] | str | Path | None = None,
        *,
        layout: str | None = None,
    ) -> Self:
        """From a ``state_dict`` of the authors' ``Model``, with their defects switched on: it was trained with them.

        ``config`` holds their command line's arguments (``vars(args)``), all optional, and may hold constructor
        arguments of ours, which go before. Read from the tensors: every size but ``heads`` (12), dropouts (.3) and
        ``max_position_embeddings`` (75). ``pooled_layers`` is ``last`` where ``num_vis`` is named (their VQA-Med 2019
        script), otherwise ``all`` (VQA-RAD). A head with one output per token id is taken for ``mlm``, unless
        ``config["task"]`` says ``vqa``.

        Raises:
            ValueError: With a list, if tensors cannot be mapped, are missing, or do not fit.
        """
        state = tensors_of(source)
        return super().from_original(with_batch_counters(strip_prefix(state, "module.")), config, layout=layout)

    @classmethod
    def original_config(cls, state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Any]:
        """From the tensors and the authors' arguments."""
        return mmbert_original.config_of(state, config or {})

    @classmethod
    def original_heads(cls, state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
        """``mlm`` or ``vqa``: both have the same names."""
        return mmbert_original.heads_of(state, config or {})

    def original_rules(self, state: Mapping[str, Tensor] | None, layout: str | None) -> tuple[list[Rule], Any]:
        """The names of the authors' ``Model``."""
        return mmbert_original.rules_of(self), lambda key: key.endswith((".position_ids", ".token_type_ids"))


def _head(model: Any, out_dim: int) -> MMBERTHead:
    words = model.embeddings.words.weight
    head = MMBERTHead(words.shape[1], out_dim, device=words.device, dtype=words.dtype)
    init_bert(head)
    return head


def _mlm_head(model: Any) -> MMBERTHead:
    return _head(model, model.config["vocab_size"])


def _vqa_head(model: Any, num_classes: int) -> MMBERTHead:
    return _head(model, num_classes)


MMBERT.HEADS = {"mlm": _mlm_head, "vqa": _vqa_head}


def mmbert_medical(**kwargs: Any) -> MMBERT:
    """The published size: ResNet-152, 4 layers of width 768, 12 heads, rows of 75 tokens."""
    return MMBERT(**kwargs)


def mmbert_tiny(**kwargs: Any) -> MMBERT:
    """A twin for tests: one block a stage, 2 layers of width 16, 97 token ids ([CLS] 2, [SEP] 3)."""
    small: dict[str, Any] = {
        "vocab_size": 97,
        "dim": 16,
        "num_layers": 2,
        "num_heads": 2,
        "max_length": 32,
        "positions": 32,
    }
    small |= {"depths": (1, 1, 1, 1), "resnet_width": 4, "cls_id": 2, "sep_id": 3}
    return MMBERT(**{**small, **kwargs})
