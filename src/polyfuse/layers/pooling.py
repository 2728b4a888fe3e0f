"""Stateless multi-head attention over few keys, split into scores and output so that masks can act in between.

The parameters are those of ``torch.nn.MultiheadAttention``: ``in_proj_weight`` (3D, D), ``in_proj_bias`` (3D) and
``out_proj``.

Shapes: B batch, T queries, M keys (modalities), D width, H heads, d = D / H. Masks: True = may be attended.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from polyfuse import functional as PF
from polyfuse.layers.curriculum_masking import CurriculumMasking
from polyfuse.layers.masks import Masks, is_shared, read_masks

_BLOCK = 2**20  # pooled numbers per block: 4 MB in float32


class PoolWeights(NamedTuple):
    """Projections of an attention pool; all None = no projections at all (identity).

    Attributes:
        in_weight: ``(3D, D)``, query, key and value projection stacked.
        in_bias: ``(3D,)`` or None.
        out_weight: ``(D, D)``.
        out_bias: ``(D,)`` or None.
    """

    in_weight: Tensor | None = None
    in_bias: Tensor | None = None
    out_weight: Tensor | None = None
    out_bias: Tensor | None = None


class Projected(NamedTuple):
    """A call's tensors after the projections that come before the weights.

    Attributes:
        query: ``(B, H, T, d)``; on the shared-query path the folded queries ``(H, D)``, to be met by raw features.
        key: ``(B, H, M, d)``; on the shared-query path the raw features ``(B, M, D)``.
        value: As ``key``.
        value_weight: On the shared-query path ``(H, d, D)``, to be applied to the pooled raw features; else None.
        value_bias: On the shared-query path ``(H, 1, d)`` or None.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    value_weight: Tensor | None = None
    value_bias: Tensor | None = None


def _bias_parts(bias: Tensor | None, parts: int) -> list[Tensor | None]:
    return [None] * parts if bias is None else list(bias.chunk(parts))


def zero_absent(x: Tensor, present: Tensor) -> Tensor:
    """``x`` with zeros, whatever was there, in the slots that are absent.

    It is ``masked_fill``, which PyTorch does not vectorise on CPU. Where no gradient is asked for, bits are masked
    instead, five times as fast: any bits and zero are zero, NaN too.

    Shape:
        - x: ``(B, M, D)``; present: ``(B, M)`` bool; returns ``(B, M, D)``.
    """
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(x.element_size())
    tracked = x.requires_grad and torch.is_grad_enabled()
    if bits is None or tracked or torch.compiler.is_compiling():
        return x.masked_fill(~present[..., None], 0.0)
    return (x.view(bits) & -present[..., None].to(bits)).view(x.dtype)  # -1 has all bits set


def fold_query(query: Tensor, features: Tensor, weights: PoolWeights, num_heads: int) -> Projected:
    """Prepare the shared-query path: one query serves all rows, and keys and values are the same features.

    The query is projected once and the key projection folded into it: ``q_h . (K_h x + b) = (K_h^T q_h) . x + const``,
    and the constant cancels in the softmax. Values are pooled raw and projected afterwards, which is exact because the
    value projection is linear. Multiply-adds fall from ``B (2 + 2 M) D^2`` to ``2 B D^2 + 2 B M H D``.

    Shape:
        - query: ``(1, 1, D)``; features: ``(B, M, D)``.
    """
    width = features.shape[-1]
    head = width // num_heads
    assert weights.in_weight is not None  # noqa: S101 - a pool without projections is not shared
    query_weight, key_weight, value_weight = weights.in_weight.chunk(3)
    query_bias, _, value_bias = _bias_parts(weights.in_bias, 3)
    projected = F.linear(query.reshape(1, width), query_weight, query_bias) * head**-0.5
    return Projected(
        torch.bmm(projected.view(num_heads, 1, head), key_weight.view(num_heads, head, width)).squeeze(1),
        features,
        features,
        value_weight.view(num_heads, head, width),
        None if value_bias is None else value_bias.view(num_heads, 1, head),
    )


def project(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    weights: PoolWeights,
    num_heads: int,
) -> Projected:
    """Project every query, key and value; keys and values in one product where they are the same (``value`` None).

    Shape:
        - query: ``(B, T, D)`` or ``(1, T, D)``; key, value: ``(B, M, D)``.
    """
    width = key.shape[-1]
    parts: tuple[Tensor, ...]
    if weights.in_weight is None:
        parts = (query, key, key if value is None else value)
    elif value is None:
        sizes = [width, 2 * width]
        query_weight, rest_weight = weights.in_weight.split_with_sizes(sizes)
        query_bias, rest_bias = (None, None) if weights.in_bias is None else weights.in_bias.split_with_sizes(sizes)
        both = F.linear(key, rest_weight, rest_bias)
        parts = (F.linear(query, query_weight, query_bias), *both.chunk(2, dim=-1))
    else:
        split = zip((query, key, value), weights.in_weight.chunk(3), _bias_parts(weights.in_bias, 3), strict=True)
        parts = tuple(F.linear(x, w, b) for x, w, b in split)
    head = width // num_heads
    q, k, v = (x.view(x.shape[0], x.shape[1], num_heads, head).transpose(1, 2) for x in parts)
    return Projected(q if q.shape[0] != 1 else q.expand(k.shape[0], -1, -1, -1), k, v)


def scores_of(projected: Projected) -> Tensor:
    """Scaled scores in at least float32, ``(B, H, T, M)``."""
    if projected.value_weight is not None:
        return PF.at_least_float32(F.linear(projected.key, projected.query).transpose(1, 2).unsqueeze(2))
    query, scale = projected.query, projected.query.shape[-1] ** -0.5
    if query.dtype == torch.float16:  # products may leave its range; elsewhere the scores are the smaller tensor
        return torch.matmul(query * scale, projected.key.transpose(-2, -1)).float()
    return PF.at_least_float32(torch.matmul(query, projected.key.transpose(-2, -1))) * scale


def pool_values(projected: Projected, attention: Tensor, *, sums_to_one: bool) -> Tensor:
    """Weigh the values and join the heads, ``(B, T, D)``.

    Args:
        projected: From one of the two functions above.
        attention: ``(B, H, T, M)`` weights.
        sums_to_one: Whether every row of them does; if not, the value bias is weighed too.
    """
    weights = attention.to(projected.value.dtype)
    if projected.value_weight is None:
        return torch.matmul(weights, projected.value).transpose(1, 2).flatten(2)
    pooled = torch.bmm(weights.squeeze(2), projected.value).transpose(0, 1)  # (H, B, D)
    matrix, bias = projected.value_weight.transpose(1, 2), projected.value_bias
    if bias is None:
        heads = torch.bmm(pooled, matrix)
    elif sums_to_one:
        heads = torch.baddbmm(bias, pooled, matrix)
    else:
        total = attention.sum(dim=-1).to(bias.dtype).transpose(0, 1)  # (H, B, 1)
        heads = torch.bmm(pooled, matrix) + total * bias
    return heads.transpose(0, 1).flatten(1).unsqueeze(1)


def fused_kernel(projected: Projected, kept: Tensor | None, empty: Tensor | None) -> Tensor:
    """The same in PyTorch's fused kernel, where nobody asks for the weights: ``(B, T, D)``.

    Shape:
        - kept: ``(B, M)`` bool or None = everything; empty: ``(B,)`` bool, rows of ``kept`` that hold nothing and shall
          attend to everything, or None.
    """
    mask = None
    if kept is not None:
        mask = kept if empty is None else kept | empty[:, None]
        mask = mask[:, None, None, :]
    # True = may be attended in this one function of PyTorch, as everywhere in this package.
    out = F.scaled_dot_product_attention(projected.query, projected.key, projected.value, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


def kernel_zeroes_empty(x: Tensor) -> bool:
    """Whether ``fused_kernel`` itself gives zeros for a row without any key: PyTorch's CPU kernels do, run eagerly.

    Elsewhere (other devices, exported graphs) such a row may be NaN, so it attends to everything and is zeroed after.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    weights: PoolWeights,
    num_heads: int,
    masks: Masks,
    *,
    shared: bool,
    masking: CurriculumMasking | None = None,
    sampling: bool = False,
    drop: Tensor | None = None,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
    need_info: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One pass: scores, weights, drop, weights over the survivors, output.

    ``sampling`` asks ``masking`` for a drop; ``need_info`` fills the dict. ``value`` None = the keys.

    Shape:
        - query: ``(B or 1, T, D)``; key, value: ``(B, M, D)``; drop: ``(B, M)`` bool.
        - returns ``(B, T, D)`` and the tensors that ``MultimodalAttentionPool`` lists.
    """
    batch, keys = key.shape[:2]
    present = masks.present
    plain = shared and not (need_info or sampling or dropout > 0.0 or masks.addend is not None)
    if plain and not _keeps_graph() and batch * num_heads * key.shape[2] >= 2 * _BLOCK:
        return _in_blocks(query, key, weights, num_heads, present, drop), {}
    if present is not None:  # 0 * nan is nan: a zero weight alone would let a broken sensor through
        key = zero_absent(key, present)
        value = None if value is None else zero_absent(value, present)
    if shared:
        projected = fold_query(query[:1], key, weights, num_heads)
    else:
        projected = project(query, key, value, weights, num_heads)
    masked_scores = masks.allowed is not None or masks.addend is not None
    explicit = shared or need_info or masked_scores or dropout > 0.0
    empty = None
    if present is not None and (explicit or not kernel_zeroes_empty(key)):
        empty = ~present.any(dim=-1)
    sampler = masking if sampling and drop is None else None

    scores = first = None
    if explicit:
        scores = scores_of(projected) if masks.addend is None else scores_of(projected) + masks.addend
    if scores is not None and (need_info or (sampler is None and drop is None)):
        first = PF.masked_softmax(scores, masks.valid(present), zero_empty=need_info or masked_scores)

    here = present
    if here is None and (need_info or sampler is not None or drop is not None):
        here = torch.ones(batch, keys, dtype=torch.bool, device=key.device)
    kept = present
    if sampler is not None and here is not None:
        with torch.no_grad():
            if not sampler.follows_weights:
                shares = torch.zeros(batch, keys, device=key.device)
            else:
                before = scores_of(projected) if scores is None else scores
                before = PF.masked_softmax(before, masks.valid(present)) if first is None else first
                shares = before.mean(dim=(1, 2))
        kept = here & ~sampler.sample_drop(shares, here, generator)
    elif drop is not None and here is not None:
        kept = PF.surviving(here, drop)

    info: dict[str, Tensor] = {}
    if scores is None:
        out = fused_kernel(projected, kept, empty)
    else:
        attention = first
        if attention is None or kept is not present:
            attention = PF.masked_softmax(scores, masks.valid(kept), zero_empty=need_info or masked_scores)
        if need_info and first is not None and here is not None:
            info = _describe(first, attention, here, here & ~(here if kept is None else kept), masking)
        attention = PF.attention_dropout(attention, dropout)
        out = pool_values(projected, attention, sums_to_one=dropout == 0.0)
    if empty is not None:
        out = out * (~empty).to(out.dtype)[:, None, None]
    if weights.out_weight is not None:
        out = F.linear(out, weights.out_weight, weights.out_bias)
    return out, info


def _keeps_graph() -> bool:
    return torch.is_grad_enabled() or torch.compiler.is_compiling()


def _in_blocks(
    query: Tensor, key: Tensor, weights: PoolWeights, num_heads: int, present: Tensor | None, drop: Tensor | None
) -> Tensor:
    """The shared-query path over blocks of rows whose pooled features, H times the width, stay in the cache."""
    rows = max(1, _BLOCK // (num_heads * key.shape[2]))
    count = -(-key.shape[0] // rows)
    nothing: list[Tensor | None] = [None] * count
    presents = nothing if present is None else present.split(rows)
    drops = nothing if drop is None else drop.split(rows)
    blocks = [
        attend(query, k, None, weights, num_heads, Masks(p), shared=True, drop=d)[0]
        for k, p, d in zip(key.split(rows), presents, drops, strict=True)
    ]
    return torch.cat(blocks)


def _describe(
    first: Tensor, attention: Tensor, present: Tensor, drop: Tensor, masking: CurriculumMasking | None
) -> dict[str, Tensor]:
    average = first.mean(dim=1)
    info = {"attention_weights": average, "empty": ~present.any(dim=-1)}
    if masking is not None:
        info.update(masking.describe(average, present, drop))
        info["head_entropy"] = PF.entropy(first).mean(dim=1)
    info["masked_attention_weights"] = attention.mean(dim=1).detach()
    info["drop"] = drop
    return info


def replace_empty(fused: Tensor, present: Tensor | None, null: Tensor | None) -> Tensor:
    """``null`` in the rows of ``fused`` that have nothing present.

    With ``null`` it stays part of the graph whatever is present, so that no process of a data-parallel run is without
    its gradient.

    Shape:
        - fused: ``(B, D)``; present: ``(B, M)`` bool or None = all; null: ``(D,)`` or None = leave the rows alone.
    """
    if null is None:
        return fused
    if present is None:
        empty = torch.zeros(fused.shape[0], dtype=torch.bool, device=fused.device)
    else:
        empty = ~present.any(dim=-1)
    return torch.where(empty[:, None], null.to(fused.dtype), fused)


def multimodal_attention_pool(
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    embed_dim: int | None = None,
    num_heads: int = 1,
    dropout: float = 0.0,
    curriculum_masking: CurriculumMasking | None = None,
    training: bool = False,
    *,
    in_proj_weight: Tensor | None = None,
    in_proj_bias: Tensor | None = None,
    out_proj_weight: Tensor | None = None,
    out_proj_bias: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    present: Tensor | None = None,
    drop: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Attention pooling as a function: nothing is created, nothing is remembered.

    Without weights it is ``softmax(q k^T / sqrt(D)) v``, in every mode: no projections, one head. With
    ``in_proj_weight`` and ``out_proj_weight`` it is what ``MultimodalAttentionPool`` computes with them. ``training``
    alone decides whether ``dropout`` and ``curriculum_masking`` act; the module's own mode is neither read nor changed.

    Args:
        query: ``(B, T, D)`` or ``(1, T, D)``.
        key: ``(B, M, D)``.
        value: ``(B, M, D)``; None = ``key``.
        embed_dim: D, checked if given.
        num_heads: Heads; more than one needs weights.
        dropout: Dropout on the attention weights when ``training``.
        curriculum_masking: Drops modalities when ``training``.
        training: Whether to drop anything.
        in_proj_weight: ``(3D, D)``, as in ``nn.MultiheadAttention``.
        in_proj_bias: ``(3D,)``.
        out_proj_weight: ``(D, D)``.
        out_proj_bias: ``(D,)``.
        key_padding_mask: ``(B, M)``, True = ignore, or float.
        present: ``(B, M)`` bool, True = here.
        drop: ``(B, M)`` bool, True = drop.
        generator: Source of randomness for the drop; eager only.

    Returns:
        ``(B, T, D)``.

    Raises:
        ValueError: If shapes do not fit, only one of the two weights is given, or ``num_heads > 1`` comes without
            weights: aecf 0.1.0 then drew new random ones in every call.
        RuntimeError: If the shapes of query, key and value disagree.

    Example:
        >>> multimodal_attention_pool(torch.zeros(1, 1, 2), torch.tensor([[[1.0, 2.0], [3.0, 6.0]]]))
        tensor([[[2., 4.]]])
    """
    width = query.shape[-1]
    if embed_dim is not None and embed_dim != width:
        raise ValueError(f"embed_dim must be the width of query, {width}, got {embed_dim}")
    if (in_proj_weight is None) != (out_proj_weight is None):
        raise ValueError("give both in_proj_weight and out_proj_weight, or neither")
    if num_heads <= 0 or width % num_heads != 0:
        raise ValueError(f"embed_dim ({width}) must be divisible by num_heads ({num_heads})")
    if in_proj_weight is None and num_heads > 1:
        raise ValueError(
            f"num_heads = {num_heads} needs in_proj_weight and out_proj_weight (aecf 0.1.0 drew new random ones in "
            "every call); pass them, or use MultimodalAttentionPool"
        )
    if (query.shape[0] != 1 and key.shape[0] != query.shape[0]) or key.shape[-1] != width:
        raise RuntimeError(f"Key shape {key.shape} incompatible with query shape {query.shape}")
    if value is key:
        value = None
    if value is not None and value.shape != key.shape:
        raise RuntimeError(f"Value shape {value.shape} incompatible with key shape {key.shape}")
    if drop is not None:
        PF.check_drop(drop, key.shape[:2])
    sampling = training and curriculum_masking is not None and curriculum_masking.apply_mask
    return attend(
        query,
        key,
        value,
        PoolWeights(in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias),
        num_heads,
        read_masks(key, num_heads, key_padding_mask, None, present),
        shared=in_proj_weight is not None and is_shared(query, value, None),
        masking=curriculum_masking,
        sampling=sampling,
        drop=drop,
        dropout=dropout if training else 0.0,
        generator=generator,
    )[0]
