"""One decoding step of a ``Captioner``: what the functions of ``generation`` call.

Shapes: G rows of context, N rows of text (G times beams), K context tokens, D width, V vocabulary.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from polyfuse.layers.key_value_cache import KeyValueCache
from polyfuse.layers.transformer import LayerCache

if TYPE_CHECKING:
    from polyfuse.models.captioner import Captioner


class DecoderStep:
    """Logits of the next token; keys and values of earlier tokens, and of the context, are kept.

    The context is projected once and held once per prompt, however many beams read it: they are queries of one row.

    Args:
        model: In evaluation mode.
        states: ``(G, K, C)``, as ``Captioner.read_context`` gives them.
        mask: ``(G, K)`` bool.
        room: Most tokens that are read; None = nothing is kept, every step computes all tokens again.
    """

    def __init__(self, model: "Captioner", states: Tensor, mask: Tensor | None, room: int | None) -> None:
        self.model, self.states = model, states
        # The kernel is faster without a mask; one look at the start is the only wait for the device here.
        self.mask = None if mask is None or bool(mask.all()) else mask
        self.caches: list[LayerCache] | None = None
        self.seen = 0
        if room is not None:
            self.caches = [LayerCache(KeyValueCache(room), KeyValueCache()) for _ in model.layers]

    def __call__(self, ids_NT: Tensor) -> Tensor:
        """``(N, V)``, the token after ``ids (N, T)``."""
        if self.caches is None:
            beams = ids_NT.shape[0] // self.states.shape[0]
            context, mask = self.states, self.mask
            if beams > 1:
                context = context.repeat_interleave(beams, dim=0)
                mask = None if mask is None else mask.repeat_interleave(beams, dim=0)
            x_NTD = self.model._embed(ids_NT)
            for layer in self.model.layers:
                x_NTD = layer(x_NTD, context=context, context_mask=mask, causal=True)
        else:
            x_NTD = self.model._embed(ids_NT[:, self.seen :], first=self.seen)
            self.seen = ids_NT.shape[1]
            for layer, cache in zip(self.model.layers, self.caches, strict=True):
                x_NTD = layer(x_NTD, context=self.states, context_mask=self.mask, causal=True, cache=cache)
        return self.model._logits(self.model._last_norm(x_NTD[:, -1]))

    def reorder(self, rows: Tensor, groups: Tensor | None) -> None:
        """Go on with these rows of text; ``groups`` = the rows of context that are left, None = all."""
        if groups is not None:
            self.states = self.states.index_select(0, groups)
            self.mask = None if self.mask is None else self.mask.index_select(0, groups)
        for cache in self.caches or ():
            cache.tokens.reorder(rows)
            if groups is not None:
                cache.context.reorder(groups)
