"""Transformer layers: self-attention, attention to a context, or both, normalised before or after.

Shapes: B batch, T tokens, K context tokens, D width. Masks: True = present, may be attended.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.layers.attention import Attention, CoAttention, pair
from polyfuse.layers.key_value_cache import KeyValueCache
from polyfuse.layers.padding import Packing


def quick_gelu(x: Tensor) -> Tensor:
    """``x sigmoid(1.702 x)``, what OpenAI's CLIP was trained with."""
    # silu(1.702 x) / 1.702: one kernel, and two passes in place where the plain formula writes three new tensors.
    scaled = 1.702 * x
    return F.silu(scaled, inplace=not torch.is_grad_enabled()).mul_(1 / 1.702)


#: By name, so that a saved model knows its own. ``gelu`` is the exact one (erf).
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


def activation_named(name: str) -> Callable[[Tensor], Tensor]:
    """The function of a name.

    Raises:
        ValueError: If there is none.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(sorted(ACTIVATIONS))}, got {name!r}")
    return ACTIVATIONS[name]


class FeedForward(nn.Module):
    """``down(act(up(x)))``.

    Args:
        dim: Width D in and out.
        hidden_dim: Width between.
        activation: Entry of ``ACTIVATIONS``.
        dropout: On the hidden layer (what the output loses is the layer's affair).
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If the activation is unknown.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        activation: str = "gelu",
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        activation_named(activation)
        self.activation, self.dropout = activation, dropout
        self.up = nn.Linear(dim, hidden_dim, device=device, dtype=dtype)
        self.down = nn.Linear(hidden_dim, dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., D)`` to ``(..., D)``."""
        hidden = ACTIVATIONS[self.activation](self.up(x))
        return self.down(F.dropout(hidden, self.dropout, self.training) if self.dropout else hidden)


class LayerCache(NamedTuple):
    """What one layer of a decoder remembers: its own tokens, and the context's."""

    tokens: KeyValueCache
    context: KeyValueCache


class TransformerLayer(nn.Module):
    """Self-attention, attention to a context where there is one, feed-forward; each with its residual and norm.

    ``norm_first``: ``x + f(LN(x))`` (CLIP, ViT); otherwise ``LN(x + f(x))`` (BERT). A context is never normalised here.
    Dropout falls on what every part adds.

    Args:
        dim: Width D.
        num_heads: Heads.
        hidden_dim: Hidden width of the feed-forward part; None = 4 D.
        context_dim: Width of the context; None = no attention to a context.
        self_attention: False = the stream reads the context only.
        norm_first: Pre-norm or post-norm.
        activation: Entry of ``ACTIVATIONS``.
        dropout: On what every part adds.
        attention_dropout: On attention weights; None = ``dropout``.
        eps: Of the norms.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If the layer would read nothing, or a number is out of range.

    Example:
        >>> layer = TransformerLayer(8, num_heads=2)
        >>> layer(torch.zeros(3, 5, 8), torch.ones(3, 5, dtype=torch.bool)).shape
        torch.Size([3, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden_dim: int | None = None,
        *,
        context_dim: int | None = None,
        self_attention: bool = True,
        norm_first: bool = True,
        activation: str = "gelu",
        dropout: float = 0.0,
        attention_dropout: float | None = None,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not self_attention and context_dim is None:
            raise ValueError("a layer without self_attention needs a context_dim")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        weights_dropout = dropout if attention_dropout is None else attention_dropout
        self.norm_first, self.dropout = norm_first, dropout
        self.attention = self.context_attention = None
        if self_attention:
            self.attention = Attention(dim, num_heads, dropout=weights_dropout, **factory)
            self.attention_norm = nn.LayerNorm(dim, eps=eps, **factory)
        if context_dim is not None:
            self.context_attention = Attention(
                dim, num_heads, context_dim=context_dim, dropout=weights_dropout, **factory
            )
            self.context_norm = nn.LayerNorm(dim, eps=eps, **factory)
        self.mlp = FeedForward(dim, 4 * dim if hidden_dim is None else hidden_dim, activation=activation, **factory)
        self.mlp_norm = nn.LayerNorm(dim, eps=eps, **factory)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout and self.training else x

    def forward(
        self,
        x_BTD: Tensor,
        mask: Tensor | Packing | None = None,
        *,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        causal: bool = False,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """One layer: ``(B, T, D)`` to ``(B, T, D)``.

        Args:
            x_BTD: The stream.
            mask: ``(B, T)`` bool (with a cache: over all tokens so far), or ``(B, T, T)``; None = all; a ``Packing``
                where the stream is packed.
            context: ``(B, K, context_dim)``; may be None once the cache holds it.
            context_mask: ``(B, K)`` bool.
            causal: No token sees a later one.
            cache: Of a decoder that runs token by token.
        """
        tokens = None if cache is None else cache.tokens
        if self.attention is not None:
            inside = self.attention_norm(x_BTD) if self.norm_first else x_BTD
            x_BTD = x_BTD + self._drop(self.attention(inside, mask=mask, causal=causal, cache=tokens))
            x_BTD = x_BTD if self.norm_first else self.attention_norm(x_BTD)
        if self.context_attention is not None:
            inside = self.context_norm(x_BTD) if self.norm_first else x_BTD
            kept = None if cache is None else cache.context
            x_BTD = x_BTD + self._drop(self.context_attention(inside, context, mask=context_mask, cache=kept))
            x_BTD = x_BTD if self.norm_first else self.context_norm(x_BTD)
        if self.norm_first:
            return x_BTD + self._drop(self.mlp(self.mlp_norm(x_BTD)))
        return self.mlp_norm(x_BTD + self._drop(self.mlp(x_BTD)))


class CoAttentionLayer(nn.Module):
    """Two streams read each other, then each goes through its own feed-forward part.

    Post-norm is ViLBERT's connection layer (https://arxiv.org/abs/1908.02265, figure 2b). With ``shared=True`` and
    ``self_attention=True`` it is LXMERT's cross-modality layer (https://arxiv.org/abs/1908.07490, section 2.2): one
    co-attention and one norm for both directions, then self-attention in each stream.

    Args:
        dims: Widths of the two streams.
        num_heads: Heads, of the co-attention and of the self-attention.
        hidden_dims: Hidden widths of the two feed-forward parts; None = 4 times the widths.
        inner_dim: Width of the co-attention's query, key and value; None = the larger of the two widths.
        shared: One set of co-attention weights (and one norm) for both directions.
        self_attention: Each stream reads itself after it read the other.
        norm_first: Pre-norm or post-norm.
        activation: Entry of ``ACTIVATIONS``.
        dropout: On what every part adds; two numbers = one per stream.
        attention_dropout: On attention weights; two numbers = on what each stream reads; None = ``dropout``.
        eps: Of the norms.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If the parts do not fit together.
    """

    def __init__(
        self,
        dims: tuple[int, int],
        num_heads: int,
        hidden_dims: tuple[int, int] | None = None,
        *,
        inner_dim: int | None = None,
        shared: bool = False,
        self_attention: bool = False,
        norm_first: bool = False,
        activation: str = "gelu",
        dropout: float | tuple[float, float] = 0.0,
        attention_dropout: float | tuple[float, float] | None = None,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        weights_dropout = pair(dropout if attention_dropout is None else attention_dropout)
        hidden_dims = (4 * dims[0], 4 * dims[1]) if hidden_dims is None else hidden_dims
        self.norm_first, self.dropout = norm_first, pair(dropout)
        self.co_attention = CoAttention(
            dims, num_heads, inner_dim=inner_dim, shared=shared, dropout=weights_dropout, **factory
        )
        self.co_norm = nn.ModuleList(nn.LayerNorm(dim, eps=eps, **factory) for dim in (dims[:1] if shared else dims))
        options: dict[str, Any] = {
            "norm_first": norm_first,
            "activation": activation,
            "eps": eps,
            **factory,
        }
        self.self_attention = self_attention
        if self_attention:
            self.streams = nn.ModuleList(
                TransformerLayer(dim, num_heads, hidden, dropout=drop, attention_dropout=weights_drop, **options)
                for dim, hidden, drop, weights_drop in zip(
                    dims, hidden_dims, self.dropout, weights_dropout, strict=True
                )
            )
        else:
            self.mlp = nn.ModuleList(
                FeedForward(dim, hidden, activation=activation, **factory)
                for dim, hidden in zip(dims, hidden_dims, strict=True)
            )
            self.mlp_norm = nn.ModuleList(nn.LayerNorm(dim, eps=eps, **factory) for dim in dims)

    def _drop(self, x: Tensor, stream: int) -> Tensor:
        rate = self.dropout[stream]
        return F.dropout(x, rate, self.training) if rate and self.training else x

    def forward(
        self, first: Tensor, second: Tensor, first_mask: Tensor | None = None, second_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``(B, T_1, D_1)`` and ``(B, T_2, D_2)``, with ``(B, T)`` masks, to the same shapes."""
        norms = (self.co_norm[0], self.co_norm[-1])
        inside = tuple(norm(x) if self.norm_first else x for norm, x in zip(norms, (first, second), strict=True))
        read = self.co_attention(*inside, first_mask=first_mask, second_mask=second_mask)
        streams = [
            x + self._drop(add, i) if self.norm_first else norm(x + self._drop(add, i))
            for i, (x, add, norm) in enumerate(zip((first, second), read, norms, strict=True))
        ]
        if self.self_attention:
            masks = (first_mask, second_mask)
            after = [layer(x, mask) for layer, x, mask in zip(self.streams, streams, masks, strict=True)]
            return after[0], after[1]
        after = []
        for i, (x, mlp, norm) in enumerate(zip(streams, self.mlp, self.mlp_norm, strict=True)):
            after.append(x + self._drop(mlp(norm(x)), i) if self.norm_first else norm(x + self._drop(mlp(x), i)))
        return after[0], after[1]
