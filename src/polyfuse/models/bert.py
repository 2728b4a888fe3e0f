"""BERT: what ViLBERT, UNITER, VisualBERT, MMBT and the sentence encoders are made of.

Shapes: B batch, L tokens, D width, V vocabulary. Masks: True = present.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from polyfuse.layers.attention_maps import capture_attention
from polyfuse.layers.padding import run_layers
from polyfuse.models.bert_original import (
    bert_arguments,
    bert_embedding_rules,
    bert_layer_rules,
    check_bert_config,
    gamma_beta_renamed,
    gamma_beta_written,
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
from polyfuse.models.convert import Rule, rules_for, tensors_of
from polyfuse.models.output import ModelOutput
from polyfuse.models.pretrained import PretrainedModel, arguments


class Bert(PretrainedModel):
    """BERT's encoder, with heads for masked words (``mlm``) and the next sentence (``nsp``) to attach.

    Source: https://arxiv.org/abs/1810.04805. A text without any token (all False in its mask) comes out as zeros.

    Args:
        vocab_size: Token ids.
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
        >>> model = bert_tiny()
        >>> model(torch.ones(3, 5, dtype=torch.long)).sequence.shape
        torch.Size([3, 5, 32])
    """

    #: Hugging Face's names, and the same from the days when a norm had ``gamma`` and ``beta``.
    LAYOUTS = ("bert", "gamma_beta")

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
        self.layers = bert_layers(
            num_layers, dim, num_heads, hidden_dim, activation, dropout, attention_dropout, eps, **factory
        )
        self.pooler = BertPooler(dim, **factory) if pooler else None
        init_bert(self)

    def encode(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
        *,
        skip_padding: bool = False,
    ) -> Tensor:
        """Token states ``(B, L, D)`` of ``(B, L)`` ids, types and mask (True = a token).

        ``skip_padding`` computes present tokens only, see ``run_layers``: the same states, zeros at absent tokens;
        ignored in a compiled or exported model and while attention is captured.
        """
        x_BLD = self.embeddings(input_ids, token_type_ids)
        x_BLD = run_layers(self.layers, x_BLD, text_mask, skip_padding=skip_padding)
        return x_BLD if text_mask is None else zero_empty(x_BLD, text_mask)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
        *,
        tasks: Sequence[str] | None = None,
        return_attention: bool = False,
        skip_padding: bool = False,
    ) -> ModelOutput:
        """``sequence (B, L, D)``, ``pooled (B, D)``, and of heads ``mlm_logits (B, L, V)``, ``nsp_logits (B, 2)``.

        Args:
            input_ids: ``(B, L)``.
            token_type_ids: ``(B, L)``, None = 0.
            text_mask: ``(B, L)`` bool, None = all present.
            tasks: Heads to run, None = all attached.
            return_attention: Fill ``attentions`` with ``{"layers.0.attention": (B, H, L, L), ...}``.
            skip_padding: As in ``encode``.
        """
        asked = self.asked(tasks)
        if return_attention:
            with capture_attention(self) as attentions:
                sequence = self.encode(input_ids, token_type_ids, text_mask)
        else:
            attentions = None
            sequence = self.encode(input_ids, token_type_ids, text_mask, skip_padding=skip_padding)
        info = {"sequence": sequence}
        if self.pooler is not None:
            info["pooled"] = self.pooler(first_present(sequence, text_mask))
        for task in asked:
            head = self.heads[task]
            info[f"{task}_logits"] = (
                head(sequence, self.embeddings.words.weight) if task == "mlm" else head(info["pooled"])
            )
        return ModelOutput(None, None, info, attentions)

    @classmethod
    def from_original(
        cls,
        source: Mapping[str, Tensor] | str | Path,
        config: Mapping[str, Any] | str | Path | None = None,
        *,
        layout: str | None = None,
    ) -> Self:
        """Build the model from a Hugging Face BERT: bare, with the masked-language head, or with both heads.

        Old norms (``gamma``, ``beta``), a ``bert.`` or ``module.`` prefix, index buffers and tied matrices may be there
        or not. For arguments and errors see ``PretrainedModel.from_original``.
        """
        state = tensors_of(source)
        model = super().from_original(gamma_beta_renamed(state), config, layout=layout)
        if any(key.endswith(".gamma") for key in state):
            model.read_layout = "gamma_beta"
        return model

    def to_original(self, layout: str | None = None) -> dict[str, Tensor]:
        """The weights under their original names: as they were read, or as Hugging Face's class has them now."""
        written = super().to_original(layout)
        for key in self.read_names if layout is None else ():
            if key.endswith("position_ids"):
                written[key] = torch.arange(self.config["max_length"])[None]
        if (layout or self.read_layout) == "gamma_beta":
            written = gamma_beta_written(written)
        return written

    @classmethod
    def original_config(cls, state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Any]:
        """From Hugging Face's ``config.json`` of a ``bert`` model."""
        if config is None:
            raise ValueError("a BERT checkpoint needs its config (config.json), got None")
        check_bert_config(config)
        kwargs = {**bert_arguments(config), "pooler": any(key.endswith("pooler.dense.weight") for key in state)}
        return {**kwargs, "padding_id": config["pad_token_id"]} if "pad_token_id" in config else kwargs

    @classmethod
    def original_heads(cls, state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
        """``mlm`` and ``nsp``, where the checkpoint has them."""
        marks = {"mlm": "cls.predictions.bias", "nsp": "cls.seq_relationship.weight"}
        return {task: {} for task, key in marks.items() if key in state}

    def original_rules(
        self, state: Mapping[str, Tensor] | None, layout: str | None
    ) -> tuple[list[Rule], Callable[[str], bool]]:
        """The names that the BERT code base gave, ``bert.`` in front where there are heads or the file has it."""
        names = self.read_names if state is None else state
        start = "bert." if self.heads or any(key.startswith("bert.") for key in names) else ""
        rules = bert_embedding_rules("embeddings", f"{start}embeddings")
        rules += bert_layer_rules("layers", f"{start}encoder.layer", len(self.layers))
        if self.pooler is not None:
            rules += rules_for("pooler.dense", f"{start}pooler.dense")
        if "mlm" in self.heads:
            rules += mlm_rules("heads.mlm", "cls.predictions", "embeddings.words.weight", rules)
        if "nsp" in self.heads:
            rules += rules_for("heads.nsp", "cls.seq_relationship")
        return rules, lambda key: key.endswith("position_ids")


def _mlm_head(model: Any, **kwargs: Any) -> nn.Module:
    return mlm_head(model.embeddings.words.weight, model.config["activation"], model.config["eps"], **kwargs)


def _nsp_head(model: Bert) -> nn.Module:
    if model.pooler is None:
        raise ValueError("the next-sentence head reads the pooled vector; build the model with pooler=True")
    like = model.embeddings.words.weight
    head = nn.Linear(like.shape[1], 2, device=like.device, dtype=like.dtype)
    init_bert(head)
    return head


Bert.HEADS = {"mlm": _mlm_head, "nsp": _nsp_head}


def bert_base(**kwargs: Any) -> Bert:
    """BERT base, uncased: 109,482,240 parameters; keywords as ``Bert``'s."""
    return Bert(**kwargs)


def bert_tiny(**kwargs: Any) -> Bert:
    """18,304 parameters, for tests."""
    tiny = {"vocab_size": 50, "dim": 32, "num_layers": 2, "num_heads": 4, "hidden_dim": 48, "max_length": 16}
    return Bert(**{**tiny, **kwargs})
