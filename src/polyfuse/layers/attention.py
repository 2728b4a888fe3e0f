"""Multi-head attention on ``scaled_dot_product_attention``: self, cross, and two streams at once.

Shapes: B batch, T tokens, Q queries, K keys, H heads, D width. Masks: True = present, may be attended.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.layers.attention_maps import recorder
from polyfuse.layers.key_value_cache import KeyValueCache
from polyfuse.layers.padding import Packing


def attend(
    module: nn.Module,
    query_BHQd: Tensor,
    key_BHKd: Tensor,
    value_BHKd: Tensor,
    *,
    mask_BK: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    part: str = "",
) -> Tensor:
    """``softmax(Q K' / sqrt(d)) V`` over the keys in the mask, heads joined: ``(B, Q, H d)``.

    A row without any key gives zeros and no gradient. What stands at a masked key must be finite (0 times NaN is NaN):
    models zero absent tokens before their first layer.

    Args:
        module: Whose maps these are, for ``capture_attention``.
        query_BHQd: ``(B, H, Q, d)``.
        key_BHKd: ``(B, H, K, d)``.
        value_BHKd: ``(B, H, K, d_v)``.
        mask_BK: ``(B, K)`` bool, or ``(B, Q, K)`` where queries may see different keys; None = all keys.
        causal: Query i sees the first ``K - Q + i + 1`` keys only.
        dropout: On the weights.
        part: Name of the map where a module has several.

    Source: https://arxiv.org/abs/1706.03762, equation 1.
    """
    queries, keys = query_BHQd.shape[2], key_BHKd.shape[2]
    allowed = None
    if mask_BK is not None:
        allowed = mask_BK[:, None, None, :] if mask_BK.ndim == 2 else mask_BK[:, None]
    causal = causal and queries > 1
    # The kernel's own causal mask is aligned to the first key, ours to the last: the same only where Q = K.
    alone = causal and allowed is None and queries == keys
    if causal and not alone:
        earlier = torch.ones(queries, keys, dtype=torch.bool, device=query_BHQd.device).tril(keys - queries)
        allowed = earlier if allowed is None else allowed & earlier
    watching = recorder()
    if watching is not None:
        weights = attention_weights(query_BHQd, key_BHKd, allowed, causal=alone)
        watching.add(module, weights, part)
        if watching.differentiable:
            return F.dropout(weights, dropout).matmul(value_BHKd).transpose(1, 2).flatten(2)
    read = F.scaled_dot_product_attention(
        query_BHQd, key_BHKd, value_BHKd, attn_mask=allowed, dropout_p=dropout, is_causal=alone
    )
    return read.transpose(1, 2).flatten(2)


def attention_weights(
    query_BHQd: Tensor, key_BHKd: Tensor, allowed: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """The weights that ``attend`` uses, ``(B, H, Q, K)``; rows sum to 1, or to 0 where nothing is allowed."""
    scores = query_BHQd @ key_BHKd.transpose(-1, -2) * query_BHQd.shape[-1] ** -0.5
    if causal:
        earlier = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        allowed = earlier if allowed is None else allowed & earlier
    if allowed is None:
        return scores.softmax(dim=-1)
    weights = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return weights.masked_fill(~allowed, 0.0)  # also a row that may see nothing


def split_heads(x_BTD: Tensor, num_heads: int) -> Tensor:
    """``(B, T, H d)`` to ``(B, H, T, d)``."""
    return x_BTD.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def split_qkv(x_BTD: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """``(B, T, parts * H d)`` to ``parts`` tensors ``(B, H, T, d)``."""
    return x_BTD.unflatten(-1, (parts, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


class Attention(nn.Module):
    """Multi-head attention of a stream to itself, or to a context.

    Self-attention projects query, key and value in one product (``qkv``, stacked in that order); attention to a context
    has ``query`` and ``key_value``. Weights are what ``torch.nn.MultiheadAttention`` calls ``in_proj_weight`` and
    ``out_proj``.

    Args:
        dim: Width D of the stream and of the output.
        num_heads: Heads H; must divide ``inner_dim``.
        context_dim: Width of the context; None = self-attention.
        inner_dim: Width of query, key and value together; None = ``dim``.
        bias: Whether projections have biases.
        dropout: On the attention weights, in training.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If ``num_heads`` does not divide ``inner_dim``.

    Example:
        >>> Attention(8, num_heads=2)(torch.zeros(3, 5, 8)).shape
        torch.Size([3, 5, 8])
        >>> Attention(8, num_heads=2, context_dim=6)(torch.zeros(3, 5, 8), torch.zeros(3, 7, 6)).shape
        torch.Size([3, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        context_dim: int | None = None,
        inner_dim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        inner_dim = check_heads(dim if inner_dim is None else inner_dim, num_heads)
        factory: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        self.num_heads, self.dropout, self.context_dim = num_heads, dropout, context_dim
        if context_dim is None:
            self.qkv = nn.Linear(dim, 3 * inner_dim, **factory)
        else:
            self.query = nn.Linear(dim, inner_dim, **factory)
            self.key_value = nn.Linear(context_dim, 2 * inner_dim, **factory)
        self.out = nn.Linear(inner_dim, dim, **factory)

    def forward(
        self,
        x_BQD: Tensor,
        context_BKD: Tensor | None = None,
        *,
        mask: Tensor | Packing | None = None,
        causal: bool = False,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Let the stream read itself or the context.

        Args:
            x_BQD: ``(B, Q, dim)``.
            context_BKD: ``(B, K, context_dim)``, if and only if the layer was built with ``context_dim``; not needed
                again once a ``cache`` holds its keys.
            mask: ``(B, K)`` bool over the keys (those in the cache included), or ``(B, Q, K)``; a ``Packing`` where the
                stream is ``(1, N, D)``, packed: every token reads those of its own row.
            causal: No token sees a later one.
            cache: Keys and values of earlier calls; self-attention appends to it, attention to a context fills it once,
                after which the stream may have several rows side by side (beams) for each row of the context.

        Raises:
            ValueError: If a context is given to self-attention, or missing, or a packed stream needs more than
                self-attention.
        """
        dropout = self.dropout if self.training else 0.0
        if isinstance(mask, Packing):
            if self.context_dim is not None or context_BKD is not None or cache is not None:
                raise ValueError("packed tokens take self-attention alone, without a context and without a cache")
            return self.out(self._attend_packed(self.qkv(x_BQD), mask, causal, dropout))
        folded = False
        if self.context_dim is None:
            if context_BKD is not None:
                raise ValueError("self-attention takes no context; build the layer with context_dim")
            query, key, value = split_qkv(self.qkv(x_BQD), 3, self.num_heads)
            if cache is not None:
                key, value = cache.append(key, value)
        else:
            query = split_heads(self.query(x_BQD), self.num_heads)
            if cache is not None and cache.filled:
                key, value = cache.read()
                query, folded = _folded(query, key.shape[0]), len(query) != len(key)
            elif context_BKD is None:
                raise ValueError(f"attention built with context_dim = {self.context_dim} needs a context, got None")
            else:
                key, value = split_qkv(self.key_value(context_BKD), 2, self.num_heads)
                if cache is not None:
                    key, value = cache.append(key, value)
        read = attend(self, query, key, value, mask_BK=mask, causal=causal, dropout=dropout)
        return self.out(read).view_as(x_BQD) if folded else self.out(read)

    def _attend_packed(self, qkv_1NE: Tensor, packing: Packing, causal: bool, dropout: float) -> Tensor:
        """``(1, N, inner_dim)``: rows of one length lie side by side, so a group is a view and needs no mask."""
        read = []
        for (rows, length), part in zip(packing.groups, qkv_1NE[0].split(packing.sizes), strict=True):
            query, key, value = split_qkv(part.unflatten(0, (rows, length)), 3, self.num_heads)
            read.append(attend(self, query, key, value, causal=causal, dropout=dropout).flatten(0, 1))
        return torch.cat(read)[None]


def _folded(query_NHQd: Tensor, rows: int) -> Tensor:
    """Beams of one row read one context: their queries become queries of that row, ``(B, H, N / B Q, d)``."""
    held = query_NHQd.shape[0]
    if held == rows:
        return query_NHQd
    if held % rows:
        raise ValueError(f"the stream's rows must be a multiple of the {rows} rows in the context's cache, got {held}")
    return query_NHQd.unflatten(0, (rows, -1)).transpose(1, 2).flatten(2, 3)


class CoAttention(nn.Module):
    """Two streams read each other at once: each one's queries over the other's keys and values.

    Source: ViLBERT, https://arxiv.org/abs/1908.02265, figure 2b. ``shared=True`` uses one set of weights for both
    directions, as LXMERT does, https://arxiv.org/abs/1908.07490, section 2.2.

    Args:
        dims: Widths of the two streams.
        num_heads: Heads H.
        inner_dim: Width of query, key and value; None = the larger of the two.
        shared: One set of weights for both directions; needs equal widths.
        bias: Whether projections have biases.
        dropout: On the attention weights, in training; two numbers = on what the first, the second stream reads.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If widths differ under ``shared``, or ``num_heads`` does not divide ``inner_dim``.

    Example:
        >>> layer = CoAttention((8, 6), num_heads=2)
        >>> first, second = layer(torch.zeros(3, 5, 8), torch.zeros(3, 7, 6))
        >>> first.shape, second.shape
        (torch.Size([3, 5, 8]), torch.Size([3, 7, 6]))
    """

    def __init__(
        self,
        dims: tuple[int, int],
        num_heads: int,
        *,
        inner_dim: int | None = None,
        shared: bool = False,
        bias: bool = True,
        dropout: float | tuple[float, float] = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if shared and dims[0] != dims[1]:
            raise ValueError(f"shared weights need streams of one width, got {dims[0]} and {dims[1]}")
        inner_dim = check_heads(max(dims) if inner_dim is None else inner_dim, num_heads)
        factory: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        self.num_heads, self.dropout, self.shared = num_heads, pair(dropout), shared
        streams = dims[:1] if shared else dims
        self.qkv = nn.ModuleList(nn.Linear(dim, 3 * inner_dim, **factory) for dim in streams)
        self.out = nn.ModuleList(nn.Linear(inner_dim, dim, **factory) for dim in streams)

    def forward(
        self, first: Tensor, second: Tensor, *, first_mask: Tensor | None = None, second_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What each stream read: ``(B, T_1, D_1)`` and ``(B, T_2, D_2)``.

        The maps are named ``first`` (the first stream's queries over the second's tokens) and ``second``.
        """
        q_1, k_1, v_1 = split_qkv(self.qkv[0](first), 3, self.num_heads)
        q_2, k_2, v_2 = split_qkv(self.qkv[-1](second), 3, self.num_heads)
        drop_1, drop_2 = self.dropout if self.training else (0.0, 0.0)
        read_1 = attend(self, q_1, k_2, v_2, mask_BK=second_mask, dropout=drop_1, part="first")
        read_2 = attend(self, q_2, k_1, v_1, mask_BK=first_mask, dropout=drop_2, part="second")
        return self.out[0](read_1), self.out[-1](read_2)


def pair(value: float | tuple[float, float]) -> tuple[float, float]:
    """One number for each of two streams."""
    return value if isinstance(value, tuple) else (value, value)


def check_heads(inner_dim: int, num_heads: int) -> int:
    """``inner_dim``, if heads divide it."""
    if num_heads < 1 or inner_dim % num_heads:
        raise ValueError(f"num_heads must divide the width {inner_dim}, got {num_heads}")
    return inner_dim
