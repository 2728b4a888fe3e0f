"""What BERT, ViLBERT, UNITER, VisualBERT and MMBT are made of: embeddings, layers, pooler, heads, initial values.

Shapes: B batch, L tokens, T tokens of any kind, D width, V vocabulary. Masks: True = present.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.layers.transformer import ACTIVATIONS, TransformerLayer, activation_named


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


def zero_empty(x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Zeros in rows without any token: what stands in an absent text reaches neither output nor gradient."""
    return x_BTD.masked_fill(~mask_BT.any(dim=1)[:, None, None], 0.0)


def first_present(x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """``(B, 1, D)``: the first token that is there, the first one where none is."""
    if mask_BT is None:
        return x_BTD[:, :1]
    place_B11 = mask_BT.int().argmax(dim=1)[:, None, None]
    return x_BTD.gather(1, place_B11.expand(-1, -1, x_BTD.shape[2]))
