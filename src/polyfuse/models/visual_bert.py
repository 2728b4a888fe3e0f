"""VisualBERT: words and image regions in one BERT.

Shapes: B batch, L tokens, R regions, D width, F width of a region's features, V vocabulary. Masks: True = present.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.layers.attention_maps import capture_attention
from polyfuse.layers.padding import run_layers
from polyfuse.models.bert_original import (
    bert_arguments,
    bert_embedding_rules,
    bert_layer_rules,
    check_bert_config,
    mlm_rules,
)
from polyfuse.models.bert_parts import (
    BertEmbeddings,
    BertPooler,
    bert_layers,
    first_present,
    init_bert,
    mlm_head,
    zero_empty,
)
from polyfuse.models.convert import Rule, rules_for
from polyfuse.models.output import ModelOutput
from polyfuse.models.pretrained import PretrainedModel, arguments

_CLASSES = {"vqa": 3129, "nlvr2": 2, "vcr": 1, "pair": 2}
_ARCHITECTURES = {
    "VisualBertForQuestionAnswering": "vqa",
    "VisualBertForVisualReasoning": "nlvr2",
    "VisualBertForMultipleChoice": "vcr",
}


class VisualBert(PretrainedModel):
    """One BERT over ``[text; regions]``; regions have a type and one position of their own, and no boxes.

    Source: https://arxiv.org/abs/1908.03557; layout and behaviour of Hugging Face's ``VisualBertModel``. Where it needs
    a text, this model also takes regions alone. Heads: ``mlm`` (over the text), ``pair`` (class 0 = text and image
    belong together), ``vqa`` (reads the last token before the final separator, as the original does), ``nlvr2`` and
    ``vcr`` (read the pooled vector; ``vcr`` gives one number per answer, rows are (question, answer) pairs).

    Args:
        vocab_size: Token ids.
        region_dim: Width F of a region's features: 2048 (VQA), 1024 (NLVR2), 512 (VCR).
        dim: Width D.
        num_layers: Layers.
        num_heads: Heads.
        hidden_dim: Hidden width of the feed-forward parts.
        max_length: Positions.
        type_vocab_size: Token types.
        padding_id: Id whose row of the word table gets no gradient; None = no such id.
        activation: Entry of ``ACTIVATIONS``.
        dropout: On embeddings and on what every part adds.
        attention_dropout: On attention weights.
        eps: Of the norms.
        pooler: Whether there is one.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Example:
        >>> model = visual_bert_tiny()
        >>> output = model(torch.ones(3, 5, dtype=torch.long), region_features=torch.zeros(3, 7, 12))
        >>> output.text.shape, output.regions.shape, output.pooled.shape
        (torch.Size([3, 5, 32]), torch.Size([3, 7, 32]), torch.Size([3, 32]))
    """

    LAYOUTS = ("visual_bert",)

    def __init__(
        self,
        *,
        vocab_size: int = 30522,
        region_dim: int = 2048,
        dim: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        hidden_dim: int = 3072,
        max_length: int = 512,
        type_vocab_size: int = 2,
        padding_id: int | None = 0,
        activation: str = "gelu",
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        eps: float = 1e-12,
        pooler: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = arguments(locals())
        super().__init__()
        self.config = config
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embeddings = BertEmbeddings(
            vocab_size,
            dim,
            max_length=max_length,
            type_vocab_size=type_vocab_size,
            padding_id=padding_id,
            eps=eps,
            dropout=dropout,
            **factory,
        )
        self.region_projection = nn.Linear(region_dim, dim, **factory)
        self.region_types = nn.Embedding(type_vocab_size, dim, **factory)
        self.region_positions = nn.Embedding(max_length, dim, **factory)
        self.layers = bert_layers(
            num_layers, dim, num_heads, hidden_dim, activation, dropout, attention_dropout, eps, **factory
        )
        self.pooler = BertPooler(dim, **factory) if pooler else None
        init_bert(self)
        with torch.no_grad():  # as the original's special_visual_initialize
            self.region_types.weight.copy_(self.embeddings.types.weight)
            self.region_positions.weight.copy_(self.embeddings.positions.weight)

    def _embed_regions(self, features_BRF: Tensor, type_ids: Tensor | None, alignment: Tensor | None) -> Tensor:
        """Before the norm. Without an alignment every region has position 0 of its own table."""
        types = self.region_types.weight[1] if type_ids is None else self.region_types(type_ids)
        x_BRD = self.region_projection(features_BRF) + types + self.region_positions.weight[0]
        if alignment is None:
            return x_BRD
        words_BRA1 = (alignment >= 0)[..., None]
        places = self.embeddings.positions(alignment.clamp(min=0)) * words_BRA1
        return x_BRD + places.sum(dim=2) / words_BRA1.sum(dim=2).clamp(min=1)

    def encode(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
        region_features: Tensor | None = None,
        region_mask: Tensor | None = None,
        *,
        region_type_ids: Tensor | None = None,
        alignment: Tensor | None = None,
        skip_padding: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Token states ``(B, L + R, D)`` and their mask.

        Args:
            input_ids: ``(B, L)``; None = no text.
            token_type_ids: ``(B, L)``, None = 0.
            text_mask: ``(B, L)`` bool, None = all present.
            region_features: ``(B, R, F)``; None = no image.
            region_mask: ``(B, R)`` bool, None = all present; what stands at absent regions is not read.
            region_type_ids: ``(B, R)``, None = 1.
            alignment: ``(B, R, A)``: words that a region belongs to, by position, -1 = none.
            skip_padding: Compute present tokens only, see ``run_layers``; ignored in a compiled model.

        Raises:
            ValueError: If there is neither a text nor an image, or a text is too long.
        """
        parts, masks = [], []
        if input_ids is not None:
            parts.append(self.embeddings(input_ids, token_type_ids))
            masks.append(torch.ones_like(input_ids, dtype=torch.bool) if text_mask is None else text_mask)
        if region_features is not None:
            if region_mask is None:
                region_mask = region_features.new_ones(region_features.shape[:2], dtype=torch.bool)
            kept = region_features.masked_fill(~region_mask[..., None], 0.0)
            x_BRD = self.embeddings.norm(self._embed_regions(kept, region_type_ids, alignment))
            parts.append(F.dropout(x_BRD, self.embeddings.dropout, self.training))
            masks.append(region_mask)
        if not parts:
            raise ValueError("VisualBert needs input_ids, region_features, or both, got neither")
        mask_BT = torch.cat(masks, dim=1)
        x_BTD = run_layers(self.layers, torch.cat(parts, dim=1), mask_BT, skip_padding=skip_padding)
        return zero_empty(x_BTD, mask_BT), mask_BT

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
        region_features: Tensor | None = None,
        region_mask: Tensor | None = None,
        *,
        region_type_ids: Tensor | None = None,
        alignment: Tensor | None = None,
        tasks: Sequence[str] | None = None,
        return_attention: bool = False,
        skip_padding: bool = False,
    ) -> ModelOutput:
        """Encode, and run the attached heads; arguments as in ``encode``.

        ``info``: ``sequence (B, L + R, D)``, its parts ``text`` and ``regions``, ``pooled (B, D)`` (of the first token
        present: an image alone is pooled at its first region), ``mlm_logits (B, L, V)``, ``<task>_logits (B, C)``.

        Args:
            input_ids: ``(B, L)``; None = no text.
            token_type_ids: ``(B, L)``.
            text_mask: ``(B, L)`` bool.
            region_features: ``(B, R, F)``; None = no image.
            region_mask: ``(B, R)`` bool.
            region_type_ids: ``(B, R)``.
            alignment: ``(B, R, A)``.
            tasks: Heads to run, None = all attached.
            return_attention: Fill ``attentions``, ``{"layers.0.attention": (B, H, L + R, L + R), ...}``.
            skip_padding: As in ``encode``.
        """
        asked = self.asked(tasks)
        inputs = (input_ids, token_type_ids, text_mask, region_features, region_mask)
        options: dict[str, Any] = {"region_type_ids": region_type_ids, "alignment": alignment}
        attentions = None
        if return_attention:
            with capture_attention(self) as attentions:
                sequence, mask = self.encode(*inputs, **options)
        else:
            sequence, mask = self.encode(*inputs, **options, skip_padding=skip_padding)
        length = 0 if input_ids is None else input_ids.shape[1]
        info = {"sequence": sequence, "text": sequence[:, :length], "regions": sequence[:, length:]}
        if self.pooler is not None:
            info["pooled"] = self.pooler(first_present(sequence, mask))
        for task in asked:
            info[f"{task}_logits"] = self._head(task, info, mask, length)
        return ModelOutput(None, None, info, attentions)

    def _head(self, task: str, info: Mapping[str, Tensor], mask_BT: Tensor, length: int) -> Tensor:
        head = self.heads[task]
        if task == "mlm":
            return head(info["text"], self.embeddings.words.weight)
        if task != "vqa":
            return head(info["pooled"])
        first = mask_BT.int().argmax(dim=1)
        last = mask_BT[:, :length].sum(dim=1) - 2  # the text's last token, its separator apart
        place_B11 = torch.where(last >= 0, last, first)[:, None, None]
        return head(info["sequence"].gather(1, place_B11.expand(-1, -1, info["sequence"].shape[2]))[:, 0])

    @classmethod
    def original_config(cls, state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Any]:
        """From Hugging Face's ``config.json`` of a ``visual_bert`` model."""
        if config is None:
            raise ValueError("a VisualBERT checkpoint needs its config (config.json), got None")
        check_bert_config(config)
        if config.get("bypass_transformer"):
            raise ValueError("bypass_transformer must be False, got True")
        kwargs = {**bert_arguments(config), "padding_id": config.get("pad_token_id", 1)}
        kwargs["pooler"] = any(key.endswith("pooler.dense.weight") for key in state)
        for key, value in state.items():
            if key.endswith("embeddings.visual_projection.weight"):
                kwargs["region_dim"] = value.shape[1]
        return kwargs

    @classmethod
    def original_heads(cls, state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
        """``mlm`` and ``pair`` of pre-training, or the one classifier, named by the config's class or by its size."""
        heads: dict[str, dict[str, Any]] = {}
        if "cls.predictions.bias" in state:
            heads["mlm"] = {}
        if "cls.seq_relationship.weight" in state:
            heads["pair"] = {}
        if "cls.weight" in state:
            classes = state["cls.weight"].shape[0]
            names = (config or {}).get("architectures") or [""]
            by_size = {1: "vcr", 2: "nlvr2"}.get(classes, "vqa")
            heads[_ARCHITECTURES.get(names[0], by_size)] = {"num_classes": classes}
        return heads

    def original_rules(
        self, state: Mapping[str, Tensor] | None, layout: str | None
    ) -> tuple[list[Rule], Callable[[str], bool]]:
        """BERT's names, ``visual_bert.`` in front where there are heads or the file has it.

        Raises:
            ValueError: If two heads would be written under one name.
        """
        classifiers = [task for task in self.heads if task in ("vqa", "nlvr2", "vcr")]
        if len(classifiers) + any(task in self.heads for task in ("mlm", "pair")) > 1:
            raise ValueError(f"the original layout has room for one kind of head, got {list(self.heads)}")
        names = self.read_names if state is None else state
        start = "visual_bert." if self.heads or any(key.startswith("visual_bert.") for key in names) else ""
        rules = bert_embedding_rules("embeddings", f"{start}embeddings")
        rules += rules_for("region_projection", f"{start}embeddings.visual_projection")
        rules.append(Rule("region_types.weight", (f"{start}embeddings.visual_token_type_embeddings.weight",)))
        rules.append(Rule("region_positions.weight", (f"{start}embeddings.visual_position_embeddings.weight",)))
        rules += bert_layer_rules("layers", f"{start}encoder.layer", len(self.layers))
        if self.pooler is not None:
            rules += rules_for("pooler.dense", f"{start}pooler.dense")
        if "mlm" in self.heads:
            rules += mlm_rules("heads.mlm", "cls.predictions", "embeddings.words.weight", rules)
        if "pair" in self.heads:
            rules += rules_for("heads.pair.linear", "cls.seq_relationship")
        for task in classifiers:
            rules += rules_for(f"heads.{task}.linear", "cls")
        return rules, lambda key: key.endswith("position_ids")


class DropoutClassifier(nn.Module):
    """A linear layer behind dropout.

    Args:
        like: A matrix ``(_, D)``: width, device and dtype.
        num_classes: Outputs.
        dropout: On the input.
    """

    def __init__(self, like: Tensor, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.linear = nn.Linear(like.shape[1], num_classes, device=like.device, dtype=like.dtype)
        init_bert(self)

    def forward(self, x_BD: Tensor) -> Tensor:
        """``(B, D)`` to ``(B, C)``."""
        return self.linear(F.dropout(x_BD, self.dropout, self.training))


def _mlm(model: VisualBert) -> nn.Module:
    return mlm_head(model.embeddings.words.weight, model.config["activation"], model.config["eps"])


def _classifier(task: str) -> Callable[..., nn.Module]:
    def build(model: VisualBert, num_classes: int = _CLASSES[task]) -> nn.Module:
        if model.pooler is None and task != "vqa":
            raise ValueError(f"the head {task!r} reads the pooled vector; build the model with pooler=True")
        dropout = 0.0 if task == "pair" else model.config["dropout"]
        return DropoutClassifier(model.embeddings.words.weight, num_classes, dropout)

    return build


VisualBert.HEADS = {"mlm": _mlm, **{task: _classifier(task) for task in _CLASSES}}


def visual_bert_base(**kwargs: Any) -> VisualBert:
    """2048-d regions, as for VQA and COCO pre-training: 111,450,624 parameters; keywords as ``VisualBert``'s."""
    return VisualBert(**kwargs)


def visual_bert_nlvr2(**kwargs: Any) -> VisualBert:
    """1024-d regions, as for NLVR2."""
    return VisualBert(**{"region_dim": 1024, **kwargs})


def visual_bert_vcr(**kwargs: Any) -> VisualBert:
    """512-d regions, as for VCR: 110,270,976 parameters."""
    return VisualBert(**{"region_dim": 512, **kwargs})


def visual_bert_tiny(**kwargs: Any) -> VisualBert:
    """19,296 parameters, for tests."""
    tiny = {"vocab_size": 50, "dim": 32, "num_layers": 2, "num_heads": 4, "hidden_dim": 48, "max_length": 16}
    return VisualBert(**{**tiny, "region_dim": 12, **kwargs})
