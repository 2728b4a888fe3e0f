"""How much of every input token reaches every output token of a ``MultimodalTransformer``, by its attention alone.

Attention rollout, https://arxiv.org/abs/2005.00928, section 3: maps are averaged over heads, the residual connection is
an identity of the same weight, and layers are multiplied. Told here per stream, so that strategies that read another
stream, a shared token or a gated mixture are followed exactly as they run.

Shapes: B rows, T tokens of one stream, S input tokens of both streams, N shared tokens. Masks: True = present.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from polyfuse.layers.attention_maps import capture_attention
from polyfuse.models.multimodal_joint import AdaptiveLayer
from polyfuse.models.multimodal_transformer import MultimodalTransformer

#: Strategies in which one modality attends to the other, directly or through shared tokens.
CROSS_MODAL = frozenset({"early", "hybrid", "cross", "co", "pairwise", "adaptive", "bottleneck"})


@dataclass(frozen=True)
class AttentionFlow:
    """What a forward pass read.

    Attributes:
        streams: ``{name: (B, T, S)}``: share of every input token in every token that the strategy gives out; rows sum
            to 1 at present tokens, to less through shared tokens, which begin with nothing of the inputs.
        masks: ``{name: (B, T)}``.
        last: ``{(reader, read): (B, T_reader, T_read)}``: the last map, averaged over heads, in which tokens of one
            modality read those of the other; its rows are cut out of a joint one where the layer reads both.
    """

    streams: dict[str, Tensor]
    masks: dict[str, Tensor]
    last: dict[tuple[str, str], Tensor]

    def read_by(self, reader: str, read: str) -> Tensor:
        """``(B, T_read)``: the share of each token of ``read``, averaged over the present tokens of ``reader``."""
        start = sum(x.shape[1] for name, x in self.masks.items() if name < read)
        part = self.streams[reader][..., start : start + self.masks[read].shape[1]]
        return _token_mean(part, self.masks[reader])

    def read_out(self, read: str) -> Tensor:
        """``(B, T_read)``: the share in the readout, the mean over modalities of the mean over their tokens."""
        return torch.stack([self.read_by(name, read) for name in self.streams]).mean(dim=0)

    def last_read_by(self, reader: str, read: str) -> Tensor | None:
        """``(B, T_read)``: the last cross-modal map, averaged over the present tokens of ``reader``; None = no map."""
        found = self.last.get((reader, read))
        return None if found is None else _token_mean(found, self.masks[reader])


def attention_flow(
    model: MultimodalTransformer, run: Callable[[], object], masks: Mapping[str, Tensor]
) -> AttentionFlow:
    """Follow one forward pass.

    Args:
        model: Of two modalities, any strategy but "graph", in evaluation mode.
        run: Runs the model once.
        masks: ``{name: (B, T)}`` of the tokens; every row has both modalities.

    Raises:
        ValueError: If the strategy is not known here, or a row lacks a modality.
    """
    names = tuple(sorted(masks))
    if len(names) != 2 or names != model.names:
        raise ValueError(f"attention_flow follows two modalities, {model.names} of the model, got masks of {names}")
    if model.fusion not in CROSS_MODAL | {"late"}:
        raise ValueError(f"attention_flow does not know the strategy '{model.fusion}'")
    if not all(bool(mask.any(dim=1).all()) for mask in masks.values()):
        raise ValueError("attention_flow needs rows in which both modalities are present")
    with torch.no_grad(), _gates(model) as gates, capture_attention(model) as maps:
        run()
    walk = _Walk({name: masks[name] for name in names}, gates)
    for name, weights in maps.items():
        walk.take(name.split("."), weights.float().mean(dim=1))
    return AttentionFlow(walk.finished(), walk.masks, walk.last)


@contextmanager
def _gates(model: MultimodalTransformer) -> Iterator[list[Tensor]]:
    """Gates ``(B, S, 2)`` of the adaptive layers, in the order of the layers."""
    found: list[Tensor] = []
    layers = [layer for layer in model.modules() if isinstance(layer, AdaptiveLayer)]
    hooks = [layer.register_forward_hook(lambda _m, _x, out: found.append(out[1].float())) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


class _Walk:
    """The streams as they stand after some maps."""

    def __init__(self, masks: dict[str, Tensor], gates: list[Tensor]) -> None:
        self.masks, self.gates, self.names = masks, gates, list(masks)
        self.lengths = {name: mask.shape[1] for name, mask in masks.items()}
        rows, total = len(next(iter(masks.values()))), sum(self.lengths.values())
        parts = torch.eye(total).expand(rows, -1, -1).split(list(self.lengths.values()), dim=1)
        self.streams = dict(zip(self.names, parts, strict=True))
        self.held: list[Tensor] = []  # one half of a two-way layer
        self.read: dict[str, Tensor] = {}  # target of a directed stack: what it has become
        self.shared: Tensor | None = None  # (B, N, S) bottleneck tokens
        self.updates: list[Tensor] = []
        self.last: dict[tuple[str, str], Tensor] = {}

    def take(self, path: list[str], weights: Tensor) -> None:
        """The next map ``(B, Q, K)``, heads averaged."""
        queries, keys = weights.shape[1:]
        owner = next((name for name in self.names if name in path), "")
        if path[-1] in ("first", "second") and path[-2] == "co_attention":
            self._both_ways(weights)
        elif path[-1] == "context_attention":
            source, target = (part for part in path if part in self.names)
            self.last[target, source] = weights
            self.read[target] = _mixed(self.read.get(target, self.streams[target]), weights, self.streams[source])
        elif "read" in path:
            self._gated(path[-1], weights)
        elif not owner:
            self._joint(weights)
        elif queries == keys == self.lengths[owner]:
            own = self.read.pop(owner, self.streams[owner])
            self.streams[owner] = _mixed(own, weights, own)
        else:
            self._through_shared(owner, weights)

    def finished(self) -> dict[str, Tensor]:
        """The streams, with what directed stacks without a layer behind them have become."""
        return {**self.streams, **self.read}

    def _both_ways(self, weights: Tensor) -> None:
        self.held.append(weights)
        if len(self.held) == 2:
            (a, b), (first, second) = self.names, self.held
            self.last[a, b], self.last[b, a] = first, second
            x, y = self.streams[a], self.streams[b]
            self.streams = {a: _mixed(x, first, y), b: _mixed(y, second, x)}
            self.held = []

    def _gated(self, name: str, weights: Tensor) -> None:
        self.held.append(weights)
        if name == self.names[-1]:
            gates = self.gates.pop(0)
            self._joint(torch.cat([w * gates[..., m, None] for m, w in enumerate(self.held)], dim=2))
            self.held = []

    def _joint(self, weights: Tensor) -> None:
        lengths = list(self.lengths.values())
        rows = dict(zip(self.names, weights.split(lengths, dim=1), strict=True))
        for reader, part in rows.items():
            for read, columns in zip(self.names, part.split(lengths, dim=2), strict=True):
                if read != reader:
                    self.last[reader, read] = columns
        everything = torch.cat([self.streams[name] for name in self.names], dim=1)
        parts = _mixed(everything, weights, everything).split(lengths, dim=1)
        self.streams = dict(zip(self.names, parts, strict=True))

    def _through_shared(self, owner: str, weights: Tensor) -> None:
        own, length = self.streams[owner], self.lengths[owner]
        if self.shared is None:  # nothing of the inputs is in them yet
            self.shared = own.new_zeros(len(own), weights.shape[1] - length, own.shape[2])
        both = torch.cat([own, self.shared], dim=1)
        both = _mixed(both, weights, both)
        self.streams[owner] = both[:, :length]
        self.updates.append(both[:, length:])
        if len(self.updates) == len(self.names):
            self.shared = torch.stack(self.updates).mean(dim=0)
            self.updates = []


def _mixed(own: Tensor, weights: Tensor, read: Tensor) -> Tensor:
    """A residual layer: half its own, half what it reads; all its own where it may read nothing."""
    amount = weights.sum(dim=2, keepdim=True)
    return (own + weights @ read) / (1 + amount)


def _token_mean(x: Tensor, mask: Tensor) -> Tensor:
    """``(B, T, K)`` to ``(B, K)`` over present tokens."""
    return (x * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
