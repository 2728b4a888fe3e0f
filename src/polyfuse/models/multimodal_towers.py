"""Strategies in which modalities keep their own layers: late, and through a bottleneck.

Shapes: B batch, M modalities, T tokens, N bottleneck tokens, D width. Masks: True = present.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polyfuse.fusion.named import present_mean
from polyfuse.models.multimodal_streams import Mixed, Parts, Strategy, Streams, build_combine, token_means


class LateStrategy(Strategy):
    """Towers to the end, then a pooled fusion: ``F = Combine({mean_t LN(x_m)})``.

    Args:
        modalities: Names.
        parts: Makes the layers.
        num_layers: None here: all layers are in the towers.
        combine: Entry of ``FUSIONS``.
        combine_options: Its further arguments.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("combine", "combine_options")
    LEAST_LAYERS: ClassVar[int] = 0

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
        self.combine = build_combine(combine, modalities, parts, combine_options)

    def forward(self, streams: Streams) -> Mixed:
        """Norm, pool, fuse."""
        states = self.finish(streams.states, streams.masks)
        return Mixed(states, *self.combined(self.combine, token_means(states, streams.masks), streams))


class BottleneckStrategy(Strategy):
    """Multimodal Bottleneck Transformer: modalities exchange what N shared tokens carry, and nothing else.

    Layer l of modality m: ``[x_m; b_m] <- Layer_m,l([x_m; b])``, then ``b <- mean over present m of b_m``.

    Source: MBT, https://arxiv.org/abs/2107.00135, equations 8 and 9. Differs: the mean leaves absent modalities out;
    the readout is the mean of token means (the paper averages the logits of one class token per modality).

    Args:
        modalities: Names.
        parts: Makes the layers.
        num_layers: At least 2: what the first writes into the bottlenecks, the second reads.
        bottlenecks: Shared tokens N (4 in the paper).
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("bottlenecks",)
    LEAST_LAYERS: ClassVar[int] = 2

    def __init__(self, modalities: Sequence[str], parts: Parts, num_layers: int, *, bottlenecks: int) -> None:
        super().__init__(modalities, parts, num_layers)
        if bottlenecks < 1:
            raise ValueError(f"bottlenecks must be at least 1, got {bottlenecks}")
        self.layers = parts.by_name(self.names, num_layers)
        self.bottleneck = nn.Parameter(torch.empty(bottlenecks, parts.dim, **parts.factory))
        nn.init.normal_(self.bottleneck, std=0.02)

    def forward(self, streams: Streams) -> Mixed:
        """Alternate layers and means."""
        states = list(streams.states)
        layers = [list(self.layers[name].children()) for name in self.names]
        batch, count = streams.present.shape[0], self.bottleneck.shape[0]
        shared_BND = self.bottleneck.to(states[0].dtype).expand(batch, -1, -1)
        always_BN = torch.ones(batch, count, dtype=torch.bool, device=shared_BND.device)
        for depth in range(self.num_layers):
            updates: list[Tensor] = []
            for m, mask_BT in enumerate(streams.masks):
                both = torch.cat([states[m], shared_BND], dim=1)
                both = layers[m][depth](both, torch.cat([mask_BT, always_BN], dim=1))
                states[m], update_BND = both[:, :-count], both[:, -count:]
                updates.append(update_BND.flatten(1))
            x_BMX = torch.stack(updates, dim=1).masked_fill(~streams.present[..., None], 0.0)
            shared_BND = present_mean(x_BMX, streams.present).unflatten(1, (count, -1))
        return self.read_out(states, streams)
