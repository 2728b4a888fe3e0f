"""Strategies over one joined sequence of all tokens: early, hybrid, adaptive, graph.

Shapes: B batch, M modalities, T tokens of one modality, S tokens of all together, D width. Masks: True = present.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polyfuse.fusion.named import NamedModules, masked_softmax, present_mean
from polyfuse.layers.attention import Attention
from polyfuse.layers.transformer import FeedForward
from polyfuse.models.multimodal_streams import (
    Mixed,
    Parts,
    Strategy,
    Streams,
    build_combine,
    check_pairs,
    token_means,
)


def split_like(x_BSD: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
    """A joined sequence back into one per modality."""
    return list(x_BSD.split([x.shape[1] for x in states], dim=1))


class EarlyStrategy(Strategy):
    """One stream: every token reads every present token of every modality, from the first layer on.

    Source: single-stream transformers, https://arxiv.org/abs/1908.03557 (VisualBERT), https://arxiv.org/abs/1909.11740
    (UNITER). Differs: no class token; the readout is the mean of token means.

    Args:
        modalities: Names.
        parts: Makes the layers.
        num_layers: Joint layers.
    """

    def __init__(self, modalities: Sequence[str], parts: Parts, num_layers: int) -> None:
        super().__init__(modalities, parts, num_layers)
        self.layers = nn.ModuleList(parts.layer() for _ in range(num_layers))

    def joined(self, streams: Streams) -> list[Tensor]:
        """States after the joint layers."""
        x_BSD, mask_BS = torch.cat(streams.states, dim=1), torch.cat(streams.masks, dim=1)
        for layer in self.layers:
            x_BSD = layer(x_BSD, mask_BS)
        return split_like(x_BSD, streams.states)

    def forward(self, streams: Streams) -> Mixed:
        """Join, read, split."""
        return self.read_out(self.joined(streams), streams)


class HybridStrategy(EarlyStrategy):
    """``F = f_early + f_late``: joint layers on top of the towers, plus a pooled fusion of the towers themselves.

    f_early is the readout after the joint layers, f_late a fusion of ``FUSIONS`` over the means of the towers' states.

    Args:
        modalities: Names.
        parts: Makes the layers.
        num_layers: Joint layers.
        combine: Entry of ``FUSIONS``, of the late path.
        combine_options: Its further arguments.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("combine", "combine_options")

    def __init__(
        self,
        modalities: Sequence[str],
        parts: Parts,
        num_layers: int,
        *,
        combine: str,
        combine_options: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(modalities, parts, num_layers)
        self.tower_end = NamedModules({name: parts.end_norm() for name in self.names})
        self.combine = build_combine(combine, modalities, parts, combine_options)

    def forward(self, streams: Streams) -> Mixed:
        """Both paths."""
        early = self.read_out(self.joined(streams), streams)
        named = zip(self.names, streams.states, streams.masks, strict=True)
        alone = [self.tower_end[name](x).masked_fill(~mask[..., None], 0.0) for name, x, mask in named]
        late, weights, info = self.combined(self.combine, token_means(alone, streams.masks), streams)
        return Mixed(early.states, early.pooled + late, weights, info)


class AdaptiveLayer(nn.Module):
    """Every token reads each modality on its own, then weighs what it read by context.

    For token i and modality j: ``c_ij = Attention_j(x_i, X_j)``, ``e_ij = v' tanh(W x_i + U_j c_ij)``,
    ``g_ij = softmax of e_ij over the present j``, ``x_i <- x_i + sum_j g_ij c_ij``; then feed-forward.

    Source: the hierarchical attention combination of https://arxiv.org/abs/1704.06567, per token instead of per decoder
    step. Differs: dot-product attention, whose output projection serves as the paper's second projection of ``c_ij``.

    Args:
        names: Sorted names.
        parts: Makes norms of the right kind.
    """

    def __init__(self, names: Sequence[str], parts: Parts) -> None:
        super().__init__()
        dim, factory = parts.dim, parts.factory
        self.names, self.norm_first = tuple(names), parts.norm_first
        self.read = NamedModules(
            {
                name: Attention(dim, parts.num_heads, context_dim=dim, dropout=parts.attention_dropout, **factory)
                for name in names
            }
        )
        self.state = nn.Linear(dim, dim, **factory)
        self.seen = NamedModules({name: nn.Linear(dim, dim, bias=False, **factory) for name in names})
        self.score = nn.Linear(dim, 1, bias=False, **factory)  # a bias would fall out of the softmax
        self.norm, self.mlp_norm = parts.norm(), parts.norm()
        self.mlp = FeedForward(dim, parts.hidden_dim, activation=parts.activation, **factory)
        self.drop = nn.Dropout(parts.dropout)

    def forward(self, states: Sequence[Tensor], streams: Streams) -> tuple[list[Tensor], Tensor]:
        """New states, and the gates ``(B, S, M)``."""
        x_BSD = torch.cat(list(states), dim=1)
        inside = self.norm(x_BSD) if self.norm_first else x_BSD
        named = zip(self.names, split_like(inside, states), streams.masks, strict=True)
        reads = [self.read[name](inside, part, mask=mask) for name, part, mask in named]
        own = self.state(inside)
        pairs = zip(self.names, reads, strict=True)
        energy_BSM = torch.cat([self.score(torch.tanh(own + self.seen[name](read))) for name, read in pairs], dim=2)
        gates_BSM = masked_softmax(energy_BSM, streams.present[:, None], dim=2)
        mixed = torch.einsum("bsm,bsmd->bsd", gates_BSM.to(own.dtype), torch.stack(reads, dim=2))
        x_BSD = x_BSD + self.drop(mixed)
        if self.norm_first:
            x_BSD = x_BSD + self.drop(self.mlp(self.mlp_norm(x_BSD)))
        else:
            x_BSD = self.norm(x_BSD)
            x_BSD = self.mlp_norm(x_BSD + self.drop(self.mlp(x_BSD)))
        return split_like(x_BSD, states), gates_BSM


class AdaptiveStrategy(Strategy):
    """Attention that weighs each modality by context, per token (``AdaptiveLayer``).

    ``weights`` are the gates of the last layer, averaged over the present tokens of each modality and then over the
    present modalities; the gates themselves stand in ``info`` as ``<name>_gates (B, T_m, M)``.

    Args:
        modalities: Names.
        parts: Makes the layers.
        num_layers: Layers.
    """

    def __init__(self, modalities: Sequence[str], parts: Parts, num_layers: int) -> None:
        super().__init__(modalities, parts, num_layers)
        self.layers = nn.ModuleList(AdaptiveLayer(self.names, parts) for _ in range(num_layers))

    def forward(self, streams: Streams) -> Mixed:
        """Layers, then the readout and the weights."""
        states, gates_BSM = list(streams.states), torch.empty(0)
        for layer in self.layers:
            states, gates_BSM = layer(states, streams)
        mixed = self.read_out(states, streams)
        gates = [
            gate.masked_fill(~mask[..., None], 0.0)
            for gate, mask in zip(split_like(gates_BSM, states), streams.masks, strict=True)
        ]
        weights_BM = present_mean(torch.stack(token_means(gates, streams.masks), dim=1), streams.present)
        info = {
            f"{name}_gates": gate[:, :, [self.names.index(other) for other in self.modalities]]
            for name, gate in zip(self.names, gates, strict=True)
        }
        return mixed._replace(weights=self.user_order(weights_BM).to(mixed.pooled.dtype), info=info)


class GraphStrategy(Strategy):
    """Message passing with attention: a node reads itself and its neighbours in other modalities.

    ``x_i <- x_i + sum over j in N(i) and i of a_ij V x_j`` with ``a_ij = softmax_j(q_i' k_j / sqrt d)``, per head, then
    feed-forward. Nodes are tokens: those of joined modalities are all neighbours. Or nodes are modalities: the mean of
    a modality's tokens, and afterwards each of its tokens gains what its node gained.

    Source: the graph transformer layer of https://arxiv.org/abs/2012.09699, which is graph attention
    (https://arxiv.org/abs/1710.10903) with dot-product scores. Differs: LayerNorm, no positional encoding of the graph
    and a loop at every node, so that a modality without present neighbours reads itself.

    Args:
        modalities: Names.
        parts: Makes the layers.
        num_layers: Rounds of messages.
        edges: Pairs of modalities that are joined, both ways; ``(a, a)`` joins the tokens of a among themselves. None =
            every two different modalities.
        nodes: "tokens" or "modalities".
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("edges", "nodes")

    def __init__(
        self,
        modalities: Sequence[str],
        parts: Parts,
        num_layers: int,
        *,
        edges: Sequence[Sequence[str]] | None,
        nodes: str,
    ) -> None:
        super().__init__(modalities, parts, num_layers)
        if nodes not in ("tokens", "modalities"):
            raise ValueError(f"nodes must be 'tokens' or 'modalities', got {nodes!r}")
        found = (
            list(combinations(self.names, 2))
            if edges is None
            else check_pairs(edges, self.names, "edges", ordered=False, loops=True)
        )
        self.edges = {*found, *((b, a) for a, b in found)}
        self.nodes = nodes
        self.layers = nn.ModuleList(parts.layer() for _ in range(num_layers))

    def neighbours(self, lengths: Sequence[int], device: torch.device) -> Tensor:
        """``(S, S)`` bool: who may read whom, presence aside."""
        rows = []
        for a, rows_of_a in zip(self.names, lengths, strict=True):
            row = [
                torch.full((rows_of_a, columns), (a, b) in self.edges, dtype=torch.bool, device=device)
                for b, columns in zip(self.names, lengths, strict=True)
            ]
            own = self.names.index(a)
            row[own] = row[own] | torch.eye(rows_of_a, dtype=torch.bool, device=device)
            rows.append(torch.cat(row, dim=1))
        return torch.cat(rows, dim=0)

    def messages(self, states: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        """The rounds."""
        x_BSD, mask_BS = torch.cat(list(states), dim=1), torch.cat(list(masks), dim=1)
        allowed_BSS = self.neighbours([x.shape[1] for x in states], x_BSD.device) & mask_BS[:, None]
        for layer in self.layers:
            x_BSD = layer(x_BSD, allowed_BSS)
        return split_like(x_BSD, states)

    def forward(self, streams: Streams) -> Mixed:
        """Messages between tokens, or between modalities and back to their tokens."""
        if self.nodes == "tokens":
            return self.read_out(self.messages(streams.states, streams.masks), streams)
        clean = [x.masked_fill(~mask[..., None], 0.0) for x, mask in zip(streams.states, streams.masks, strict=True)]
        before = [mean[:, None] for mean in token_means(clean, streams.masks)]
        after = self.messages(before, list(streams.present.split(1, dim=1)))
        gained = [new - old for new, old in zip(after, before, strict=True)]
        return self.read_out([x + gain for x, gain in zip(streams.states, gained, strict=True)], streams)
