"""Attention pools and gates asked about every subset: keys and values once, then only the weights differ.

Shapes: S subsets, B rows, M modalities, D width, H heads, R width of the result. Masks: True = present. Pairs run
subset by subset.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from polyfuse import functional as PF
from polyfuse.fusion.subsets import Readout, sum_over_subsets
from polyfuse.layers import pooling
from polyfuse.layers.attention_pool import FusionPool
from polyfuse.layers.entropy_gate import EntropyGate

Pooled = tuple[Tensor, Tensor]
"""``(S B, R)`` result and ``(S B, M)`` weights, the mean over heads."""


def pool_subsets(pool: FusionPool, features: Tensor, subsets: Tensor, readout: Readout | None) -> Pooled | None:
    """``FusionPool`` in eval mode; None while something is drawn.

    Every head's value is projected out before it is weighed, and the readout with it.

    Shape:
        - features: ``(B, M, D)`` finite; subsets: ``(S, M)`` bool, none of them empty unless the pool allows it.
    """
    attention, masking = pool.pool.attention, pool.pool.curriculum_masking
    if (attention.dropout > 0 and pool.training) or (masking is not None and masking.active):
        return None
    heads = attention.num_heads
    out = attention.out_proj
    projections = pooling.PoolWeights(attention.in_proj_weight, attention.in_proj_bias, out.weight, out.bias)
    projected = pooling.fold_query(pool.query, features, projections, heads)
    scores_BHM = pooling.scores_of(projected).squeeze(2)
    weights_SBHM = PF.masked_softmax(scores_BHM.expand(len(subsets), -1, -1, -1), subsets[:, None, None, :])

    value_weight, value_bias = attention.in_proj_weight.chunk(3)[2], None
    if attention.in_proj_bias is not None:
        value_bias = attention.in_proj_bias.chunk(3)[2]
    values_BMHd = F.linear(features, value_weight, value_bias).unflatten(2, (heads, -1))
    last = Readout(out.weight, out.bias)
    if readout is not None:
        last = Readout(readout.weight @ out.weight, readout.bias if out.bias is None else readout(out.bias))
    by_head_RHd = last.weight.unflatten(1, (heads, -1))
    parts_BHMR = torch.einsum("bmhd,rhd->bhmr", values_BMHd, by_head_RHd.to(values_BMHd.dtype))
    shares_BSK = weights_SBHM.to(parts_BHMR.dtype).flatten(2).transpose(0, 1)
    fused_SBR = torch.bmm(shares_BSK, parts_BHMR.flatten(1, 2)).transpose(0, 1)
    if last.bias is not None:
        fused_SBR = fused_SBR + last.bias
    return _with_null(fused_SBR, subsets, pool.null, readout), weights_SBHM.mean(dim=2).detach().flatten(0, 1)


def gate_subsets(gate: EntropyGate, features: Tensor, subsets: Tensor, readout: Readout | None) -> Pooled | None:
    """The same for the two-layer gate: its first layer is a sum over modalities."""
    if gate.curriculum_masking is not None and gate.curriculum_masking.active:
        return None
    parts = features.unbind(dim=1)
    read = [F.linear(x, w) for x, w in zip(parts, gate.hidden.weight.chunk(len(parts), dim=1), strict=True)]
    hidden = sum_over_subsets(read, subsets, bias=gate.hidden.bias).relu()
    scores_SBM = PF.at_least_float32(gate.scores(hidden)) / gate.temperature
    weights_SBM = PF.masked_softmax(scores_SBM, subsets[:, None, :])
    values = [F.linear(x, w) for x, w in zip(parts, gate.values.weight.chunk(len(parts), dim=1), strict=True)]
    if readout is not None:
        values = [F.linear(x, readout.weight) for x in values]
    values_BMR = torch.stack(values, dim=1)
    fused_SBR = torch.bmm(weights_SBM.to(values_BMR.dtype).transpose(0, 1), values_BMR).transpose(0, 1)
    if readout is not None and readout.bias is not None:
        fused_SBR = fused_SBR + readout.bias
    return _with_null(fused_SBR, subsets, gate.null, readout), weights_SBM.detach().flatten(0, 1)


def _with_null(fused_SBR: Tensor, subsets: Tensor, null: Tensor | None, readout: Readout | None) -> Tensor:
    """The null token, read out, for empty subsets."""
    if null is None:
        return fused_SBR.flatten(0, 1)
    null = null if readout is None else readout(null)
    empty_S11 = ~subsets.any(dim=1)[:, None, None]
    return torch.where(empty_S11, null.to(fused_SBR.dtype), fused_SBR).flatten(0, 1)
