"""Strategies made of pairs: cross (directed), co (two-way, layer by layer), pairwise (one vector for each pair).

Shapes: B batch, M modalities, P pairs, T tokens, D width. Masks: True = present.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations, permutations
from typing import Any, ClassVar
from urllib.parse import quote

import torch
from torch import Tensor, nn

from polyfuse.fusion.named import NamedModules
from polyfuse.models.multimodal_streams import (
    Mixed,
    Parts,
    Strategy,
    Streams,
    build_combine,
    check_pairs,
    mean_where,
    token_means,
)

Pair = tuple[str, str]


def by_pair(modules: Mapping[Pair, nn.Module]) -> NamedModules:
    """Modules by pair of names: nested by name, so that no two pairs can share a key."""
    firsts = sorted({first for first, _ in modules})
    return NamedModules(
        {first: NamedModules({b: module for (a, b), module in modules.items() if a == first}) for first in firsts}
    )


def of_pair(modules: NamedModules, pair: Pair) -> nn.Module:
    """The module of a pair."""
    inner = modules[pair[0]]
    assert isinstance(inner, NamedModules)  # noqa: S101 - for the type checker
    return inner[pair[1]]


class CrossStrategy(Strategy):
    """Directed cross-attention: a target reads a source, whose states stay those of its tower.

    For every direction s -> t a stack of its own: ``z_0 = x_t``, ``z_l = Layer_st,l(z_{l-1}, LN(x_s))``; then
    ``x_t <- Layer_t(mean over present s of z_st)``. A target without a present source keeps ``x_t`` up to ``Layer_t``.

    Source: crossmodal transformers, https://arxiv.org/abs/1906.00295 (MulT), section 3.2. Differs: the mean over the
    present sources in place of concatenation, one self-attention layer behind it, our pre- or post-norm.

    Args:
        modalities: Names.
        parts: Makes the layers.
        num_layers: Cross-attention layers of every direction.
        directions: Pairs ``(source, target)``; None = every ordered pair.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("directions",)
    LEAST_MODALITIES: ClassVar[int] = 2

    def __init__(
        self,
        modalities: Sequence[str],
        parts: Parts,
        num_layers: int,
        *,
        directions: Sequence[Sequence[str]] | None,
    ) -> None:
        super().__init__(modalities, parts, num_layers)
        self.directions = (
            list(permutations(self.names, 2))
            if directions is None
            else check_pairs(directions, self.names, "directions")
        )
        self.source_norm = by_pair({pair: parts.end_norm() for pair in self.directions})
        self.layers = by_pair(
            {pair: nn.ModuleList(parts.layer(context=True) for _ in range(num_layers)) for pair in self.directions}
        )
        self.after = parts.by_name(self.names, 1)

    def forward(self, streams: Streams) -> Mixed:
        """Every direction, then one layer per modality."""
        place = {name: m for m, name in enumerate(self.names)}
        read: dict[str, list[Tensor]] = {name: [] for name in self.names}
        here: dict[str, list[Tensor]] = {name: [] for name in self.names}
        for pair in self.directions:
            s, t = place[pair[0]], place[pair[1]]
            z_BTD, source = streams.states[t], of_pair(self.source_norm, pair)(streams.states[s])
            for layer in of_pair(self.layers, pair).children():
                z_BTD = layer(z_BTD, context=source, context_mask=streams.masks[s])
            read[pair[1]].append(z_BTD)
            here[pair[1]].append(streams.present[:, s])
        states = []
        for name, x_BTD, mask_BT in zip(self.names, streams.states, streams.masks, strict=True):
            if read[name]:
                x_BTD = mean_where(read[name], here[name], x_BTD)
            for layer in self.after[name].children():
                x_BTD = layer(x_BTD, mask_BT)
            states.append(x_BTD)
        return self.read_out(states, streams)


class CoStrategy(Strategy):
    """Two-way co-attention, layer by layer: both streams of a pair read each other as they are by then.

    Layer l: ``(x_a^b, x_b^a) = CoLayer_ab,l(x_a, x_b)`` for every pair, ``x_a <- Layer_a,l(mean over present b of
    x_a^b)``. A stream without a present partner goes to ``Layer_a,l`` as it is.

    Source: ViLBERT's connection layer followed by a transformer layer per stream, https://arxiv.org/abs/1908.02265,
    figure 1 and section 2; ``shared`` as in LXMERT, https://arxiv.org/abs/1908.07490. Differs: the mean for more than
    two streams.

    Args:
        modalities: Names.
        parts: Makes the layers.
        num_layers: Layers.
        shared: One set of co-attention weights for both directions of a pair.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("shared",)
    LEAST_MODALITIES: ClassVar[int] = 2

    def __init__(self, modalities: Sequence[str], parts: Parts, num_layers: int, *, shared: bool) -> None:
        super().__init__(modalities, parts, num_layers)
        self.pairs = list(combinations(self.names, 2))
        self.co_layers = nn.ModuleList(
            by_pair({pair: parts.co_layer(shared=shared) for pair in self.pairs}) for _ in range(num_layers)
        )
        self.layers = parts.by_name(self.names, num_layers)

    def forward(self, streams: Streams) -> Mixed:
        """All pairs, then every stream alone, layer by layer."""
        states, masks = list(streams.states), streams.masks
        place = {name: m for m, name in enumerate(self.names)}
        own = [list(self.layers[name].children()) for name in self.names]
        for depth, of_depth in enumerate(self.co_layers):
            assert isinstance(of_depth, NamedModules)  # noqa: S101 - for the type checker
            read: list[list[Tensor]] = [[] for _ in states]
            here: list[list[Tensor]] = [[] for _ in states]
            for pair in self.pairs:
                a, b = place[pair[0]], place[pair[1]]
                new_a, new_b = of_pair(of_depth, pair)(states[a], states[b], masks[a], masks[b])
                for one, other, new in ((a, b, new_a), (b, a, new_b)):
                    read[one].append(new)
                    here[one].append(streams.present[:, other])
            states = [
                layers[depth](mean_where(new, flags, x), mask)
                for layers, new, flags, x, mask in zip(own, read, here, states, masks, strict=True)
            ]
        return self.read_out(states, streams)


class PairwiseStrategy(Strategy):
    """One vector for each of the n(n-1)/2 pairs, then any fusion over the pairs.

    ``F = Combine({CrossAttention(x_a, x_b)})``. The vector of a pair is the mean of what each side became by reading
    the other in a stack of co-attention layers: ``(mean_t z_a + mean_t z_b) / 2``, the two-way sum of attentions made
    independent of lengths by pooling.

    A pair of which one member is absent is present all the same and falls back to the other member's own pooled tokens
    (nothing to read leaves a stream as its tower left it), so that a row with one present modality has an answer. A
    pair without members is absent for Combine. ``weights`` give the weight of a pair, where Combine has any, to its
    present members in equal parts; those of the pairs stand in ``info`` as ``pair_weights (B, P)``.

    Args:
        modalities: Names.
        parts: Makes the layers.
        num_layers: Co-attention layers of every pair.
        combine: Entry of ``FUSIONS``.
        combine_options: Its further arguments.
        shared: One set of co-attention weights for both directions of a pair.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("combine", "combine_options", "shared")
    LEAST_MODALITIES: ClassVar[int] = 2

    def __init__(
        self,
        modalities: Sequence[str],
        parts: Parts,
        num_layers: int,
        *,
        combine: str,
        combine_options: Mapping[str, Any] | None,
        shared: bool,
    ) -> None:
        super().__init__(modalities, parts, num_layers)
        self.pairs = list(combinations(self.names, 2))
        self.layers = by_pair(
            {pair: nn.ModuleList(parts.co_layer(shared=shared) for _ in range(num_layers)) for pair in self.pairs}
        )
        # Quoted, so that no two pairs of whatever names share a key, and "+" stands between two names only.
        self.pair_names = tuple("+".join(quote(name, safe=" ") for name in pair) for pair in self.pairs)
        self.combine = build_combine(combine, self.pair_names, parts, combine_options)

    def forward(self, streams: Streams) -> Mixed:
        """Every pair, then Combine."""
        masks, present_BM = streams.masks, streams.present
        read: list[list[Tensor]] = [[] for _ in self.names]
        here: list[list[Tensor]] = [[] for _ in self.names]
        vectors: dict[str, Tensor] = {}
        pair_present = []
        for pair, pair_name in zip(self.pairs, self.pair_names, strict=True):
            a, b = (self.names.index(name) for name in pair)
            members_B2 = present_BM[:, [a, b]]
            both_B11 = members_B2.all(dim=1)[:, None, None]
            z_a, z_b = streams.states[a], streams.states[b]
            for layer in of_pair(self.layers, pair).children():
                new_a, new_b = layer(z_a, z_b, masks[a], masks[b])
                z_a, z_b = torch.where(both_B11, new_a, z_a), torch.where(both_B11, new_b, z_b)
            for m, z in ((a, z_a), (b, z_b)):
                read[m].append(self.end[self.names[m]](z).masked_fill(~masks[m][..., None], 0.0))
                here[m].append(members_B2.all(dim=1))
            sides = token_means([read[a][-1], read[b][-1]], [masks[a], masks[b]])
            count_B1 = members_B2.sum(dim=1, keepdim=True).clamp(min=1).to(sides[0].dtype)
            vectors[pair_name] = (sides[0] + sides[1]) / count_B1
            pair_present.append(members_B2.any(dim=1))
        fused, weights_BP, info = self.combine(vectors, torch.stack(pair_present, dim=1))
        alone = self.finish(streams.states, masks)
        states = [mean_where(new, flags, x) for new, flags, x in zip(read, here, alone, strict=True)]
        if weights_BP is None:
            return Mixed(states, fused, None, info)
        weights_BM = self._to_members(weights_BP, present_BM)
        return Mixed(states, fused, self.user_order(weights_BM), {**info, "pair_weights": weights_BP})

    def _to_members(self, weights_BP: Tensor, present_BM: Tensor) -> Tensor:
        """Weights of pairs, in equal parts to their present members."""
        columns: list[Tensor] = [torch.zeros_like(weights_BP[:, 0]) for _ in self.names]
        for p, pair in enumerate(self.pairs):
            a, b = (self.names.index(name) for name in pair)
            share = weights_BP[:, p] / present_BM[:, [a, b]].sum(dim=1).clamp(min=1).to(weights_BP.dtype)
            for m in (a, b):
                columns[m] = columns[m] + share.masked_fill(~present_BM[:, m], 0.0)
        return torch.stack(columns, dim=1)
