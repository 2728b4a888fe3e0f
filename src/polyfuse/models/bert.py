"""BERT: what ViLBERT, UNITER, VisualBERT, MMBT and the sentence encoders are made of.

Shapes: B batch, L tokens, D width, V vocabulary. Masks: True = present.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.layers.transformer import ACTIVATIONS, TransformerLayer, activation_named
from polyfuse.models.convert import Rule, rules_for, strip_prefix
from polyfuse.models.output import ModelOutput
from polyfuse.models.pretrained import PretrainedModel, arguments


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
    """BERT's encoder, with a masked-language head to attach (``mlm``).

    Source: https://arxiv.org/abs/1810.04805.

    Args:
        vocab_size: Token ids.
        dim: Width D.
        num_layers: Layers.
        num_heads: Heads.
        hidden_dim: Hidden width of the feed-forward parts.
        max_length: Positions.
        type_vocab_size: Token types.
        activation: Entry of ``ACTIVATIONS``.
        dropout: On embeddings and on what every part adds.
        attention_dropout: On attention weights.
        eps: Of the norms.
        pooler: Whether there is one.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Example:
        >>> model = Bert(vocab_size=50, dim=32, num_layers=2, num_heads=4, hidden_dim=48, max_length=16)
        >>> model(torch.ones(3, 5, dtype=torch.long)).sequence.shape
        torch.Size([3, 5, 32])
    """

    LAYOUTS = ("bert",)

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
        pooler: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = arguments(locals())
        super().__init__()
        self.config = config
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embeddings = BertEmbeddings(
            vocab_size, dim, max_length=max_length, type_vocab_size=type_vocab_size, eps=eps, dropout=dropout, **factory
        )
        self.layers = bert_layers(
            num_layers, dim, num_heads, hidden_dim, activation, dropout, attention_dropout, eps, **factory
        )
        self.pooler = BertPooler(dim, **factory) if pooler else None
        init_bert(self)

    def encode(
        self, input_ids: Tensor, token_type_ids: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Token states ``(B, L, D)`` of ``(B, L)`` ids, types and mask (True = a token)."""
        x_BLD = self.embeddings(input_ids, token_type_ids)
        for layer in self.layers:
            x_BLD = layer(x_BLD, text_mask)
        return x_BLD

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
        *,
        tasks: tuple[str, ...] | None = None,
    ) -> ModelOutput:
        """``sequence (B, L, D)``, ``pooled (B, D)`` and ``mlm_logits (B, L, V)``, as far as the model has them."""
        sequence = self.encode(input_ids, token_type_ids, text_mask)
        info = {"sequence": sequence}
        if self.pooler is not None:
            info["pooled"] = self.pooler(sequence)
        for task in self.asked(tasks):
            info[f"{task}_logits"] = self.heads[task](sequence, self.embeddings.words.weight)
        return ModelOutput(None, None, info)

    @classmethod
    def original_config(cls, state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Any]:
        """From Hugging Face's ``config.json`` of a ``bert`` model."""
        if config is None:
            raise ValueError("a BERT checkpoint needs its config (config.json), got None")
        kwargs = bert_arguments(config)
        kwargs["pooler"] = any(key.endswith("pooler.dense.weight") for key in state)
        return kwargs

    @classmethod
    def original_heads(cls, state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
        """``mlm``, where the checkpoint has it."""
        return {"mlm": {}} if "cls.predictions.bias" in state else {}

    def original_rules(
        self, state: Mapping[str, Tensor] | None, layout: str | None
    ) -> tuple[list[Rule], Callable[[str], bool]]:
        """The names that the BERT code base gave, ``bert.`` in front where there are heads or the file has it."""
        start = "bert." if self.heads or (state and any(key.startswith("bert.") for key in state)) else ""
        rules = bert_embedding_rules("embeddings", f"{start}embeddings")
        rules += bert_layer_rules("layers", f"{start}encoder.layer", len(self.layers))
        if self.pooler is not None:
            rules += rules_for("pooler.dense", f"{start}pooler.dense")
        if "mlm" in self.heads:
            rules += mlm_rules("heads.mlm", "cls.predictions", "embeddings.words.weight", rules)
        return (
            rules,
            lambda key: key.endswith("position_ids") or (not self.heads and key.startswith("cls.seq_relationship")),
        )


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


Bert.HEADS = {"mlm": _mlm_head}


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


def bert_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments from a BERT config's keys, those that are there."""
    names = {
        "vocab_size": "vocab_size",
        "hidden_size": "dim",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "intermediate_size": "hidden_dim",
        "max_position_embeddings": "max_length",
        "type_vocab_size": "type_vocab_size",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "layer_norm_eps": "eps",
    }
    return {ours: config[theirs] for theirs, ours in names.items() if theirs in config}


def bert_embedding_rules(ours: str, theirs: str) -> list[Rule]:
    """Word, position and type tables and their norm."""
    tables = {"words": "word_embeddings", "positions": "position_embeddings", "types": "token_type_embeddings"}
    rules = [Rule(f"{ours}.{mine}.weight", (f"{theirs}.{name}.weight",)) for mine, name in tables.items()]
    return rules + rules_for(f"{ours}.norm", f"{theirs}.LayerNorm")


def bert_layer_rules(ours: str, theirs: str, number: int) -> list[Rule]:
    """Layers ``0`` to ``number - 1`` of an encoder."""
    rules: list[Rule] = []
    for index in range(number):
        a, b = f"{ours}.{index}", f"{theirs}.{index}"
        own = f"{b}.attention.self"
        rules += rules_for(f"{a}.attention.qkv", f"{own}.query", f"{own}.key", f"{own}.value")
        rules += rules_for(f"{a}.attention.out", f"{b}.attention.output.dense")
        rules += rules_for(f"{a}.attention_norm", f"{b}.attention.output.LayerNorm")
        rules += rules_for(f"{a}.mlp.up", f"{b}.intermediate.dense")
        rules += rules_for(f"{a}.mlp.down", f"{b}.output.dense")
        rules += rules_for(f"{a}.mlp_norm", f"{b}.output.LayerNorm")
    return rules


def mlm_rules(ours: str, theirs: str, words: str, rules: list[Rule]) -> list[Rule]:
    """The masked-language head; its tied matrix becomes a checked copy of the word table's rule, which is changed."""
    place = next(index for index, one in enumerate(rules) if one.ours == words)
    old = rules[place]
    rules[place] = Rule(old.ours, old.theirs, copies=(*old.copies, f"{theirs}.decoder.weight"))
    return [
        Rule(f"{ours}.bias", (f"{theirs}.bias",), copies=()),
        *rules_for(f"{ours}.dense", f"{theirs}.transform.dense"),
        *rules_for(f"{ours}.norm", f"{theirs}.transform.LayerNorm"),
    ]


def gamma_beta_renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Old checkpoints call a norm's parameters ``gamma`` and ``beta``; a parallel run puts ``module.`` in front."""
    renamed = {
        key.removesuffix(".gamma") + ".weight"
        if key.endswith(".gamma")
        else key.removesuffix(".beta") + ".bias"
        if key.endswith(".beta")
        else key: value
        for key, value in state.items()
    }
    return strip_prefix(renamed, "module.")
