"""BERT: what ViLBERT, UNITER, VisualBERT, MMBT and the sentence encoders are made of.

Shapes: B batch, L tokens, D width, V vocabulary. Masks: True = present.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.layers.attention_maps import capture_attention
from polyfuse.layers.padding import run_layers
from polyfuse.layers.transformer import ACTIVATIONS, TransformerLayer, activation_named
from polyfuse.models.bert_original import (
    bert_arguments,
    bert_embedding_rules,
    bert_layer_rules,
    check_bert_config,
    gamma_beta_renamed,
    gamma_beta_written,
    mlm_rules,
)
from polyfuse.models.convert import Rule, read_tensors, rules_for
from polyfuse.models.output import ModelOutput
from polyfuse.models.pretrained import PretrainedModel, arguments

__all__ = [
    "Bert",
    "BertEmbeddings",
    "BertPooler",
    "TransformHead",
    "bert_arguments",
    "bert_base",
    "bert_embedding_rules",
    "bert_layer_rules",
    "bert_layers",
    "bert_tiny",
    "first_present",
    "gamma_beta_renamed",
    "init_bert",
    "mlm_head",
    "mlm_rules",
    "zero_empty",
]


class BertEmbeddings(nn.Module):
    """``LayerNorm(word + position + type)``, then dropout.

    Args:
        vocab_size: Number of token ids V.
        dim: Width D.
        max_length: Positions.
        type_vocab_size: Token types.
        padding_id: Id whose row of the word table gets no gradient; None = no such id.
        first_position: Where positions start (RoBERTa: 2).
        eps: Of the norm.
        dropout: On the sum.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        *,
        max_length: int = 512,
        type_vocab_size: int = 2,
        padding_id: int | None = 0,
        first_position: int = 0,
        eps: float = 1e-12,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.first_position = first_position
        self.words = nn.Embedding(vocab_size, dim, padding_idx=padding_id, **factory)
        self.positions = nn.Embedding(max_length, dim, **factory)
        self.types = nn.Embedding(type_vocab_size, dim, **factory)
        self.norm = nn.LayerNorm(dim, eps=eps, **factory)
        self.dropout = dropout

    def forward(self, ids_BL: Tensor, type_ids_BL: Tensor | None = None) -> Tensor:
        """``(B, L)`` ids (and token types, None = 0) to ``(B, L, D)``.

        Raises:
            ValueError: If there are more tokens than positions.
        """
        length, most = ids_BL.shape[1], self.positions.num_embeddings - self.first_position
        if length > most:
            raise ValueError(f"a text may have at most {most} tokens, got {length}")
        place = torch.arange(self.first_position, self.first_position + length, device=ids_BL.device)
        types = self.types.weight[0] if type_ids_BL is None else self.types(type_ids_BL)
        x_BLD = self.words(ids_BL) + self.positions(place) + types
        return F.dropout(self.norm(x_BLD), self.dropout, self.training)


class BertPooler(nn.Module):
    """``act(W x_0)`` of the first token.

    Args:
        dim: Width of the tokens.
        out_dim: Width of the result; None = ``dim``.
        activation: Entry of ``ACTIVATIONS``.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int | None = None,
        *,
        activation: str = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        activation_named(activation)
        self.activation = activation
        self.dense = nn.Linear(dim, dim if out_dim is None else out_dim, device=device, dtype=dtype)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """``(B, T, D)`` to ``(B, D_out)``."""
        return ACTIVATIONS[self.activation](self.dense(x_BTD[:, 0]))


class TransformHead(nn.Module):
    """``LayerNorm(act(W x))``, then a matrix of its own, or one that belongs to somebody else (tied weights).

    Args:
        dim: Width D.
        out_dim: Width of the result.
        tied: Whether the last matrix is passed to ``forward`` and only its bias is kept here.
        activation: Entry of ``ACTIVATIONS``.
        eps: Of the norm.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        tied: bool = False,
        activation: str = "gelu",
        eps: float = 1e-12,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        activation_named(activation)
        self.activation = activation
        self.dense = nn.Linear(dim, dim, **factory)
        self.norm = nn.LayerNorm(dim, eps=eps, **factory)
        self.decoder = None if tied else nn.Linear(dim, out_dim, **factory)
        self.bias = nn.Parameter(torch.zeros(out_dim, **factory)) if tied else None

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """``(..., D)`` to ``(..., out_dim)``; ``weight (out_dim, D)`` where it is tied."""
        hidden = self.norm(ACTIVATIONS[self.activation](self.dense(x)))
        if self.decoder is not None:
            return self.decoder(hidden)
        if weight is None:
            raise ValueError("a tied head needs the weight it is tied to, got None")
        return F.linear(hidden, weight, self.bias)


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
        state = dict(source) if isinstance(source, Mapping) else read_tensors(Path(source))
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


def zero_empty(x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Zeros in rows without any token: what stands in an absent text reaches neither output nor gradient."""
    return x_BTD.masked_fill(~mask_BT.any(dim=1)[:, None, None], 0.0)


def first_present(x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """``(B, 1, D)``: the first token that is there, the first one where none is."""
    if mask_BT is None:
        return x_BTD[:, :1]
    place_B11 = mask_BT.int().argmax(dim=1)[:, None, None]
    return x_BTD.gather(1, place_B11.expand(-1, -1, x_BTD.shape[2]))


def _mlm_head(model: Any, **kwargs: Any) -> nn.Module:
    return mlm_head(model.embeddings.words.weight, model.config["activation"], model.config["eps"], **kwargs)


def mlm_head(words: Tensor, activation: str, eps: float) -> TransformHead:
    """The masked-language head tied to a word table ``(V, D)``."""
    head = TransformHead(
        words.shape[1],
        words.shape[0],
        tied=True,
        activation=activation,
        eps=eps,
        device=words.device,
        dtype=words.dtype,
    )
    init_bert(head)
    return head


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


def bert_layers(
    number: int,
    dim: int,
    num_heads: int,
    hidden_dim: int,
    activation: str,
    dropout: float,
    attention_dropout: float,
    eps: float,
    **factory: Any,
) -> nn.ModuleList:
    """Post-norm layers, as in BERT."""
    return nn.ModuleList(
        TransformerLayer(
            dim,
            num_heads,
            hidden_dim,
            norm_first=False,
            activation=activation,
            dropout=dropout,
            attention_dropout=attention_dropout,
            eps=eps,
            **factory,
        )
        for _ in range(number)
    )


def init_bert(module: nn.Module, std: float = 0.02) -> None:
    """BERT's initial values: matrices and tables N(0, std), biases 0, norms the identity, padding row 0."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            with torch.no_grad():
                part.weight[part.padding_idx].fill_(0.0)
