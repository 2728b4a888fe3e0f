"""Attention maps on request: the true weights, whichever kernel made the output, at no cost when nobody asks.

Shapes: B batch, H heads, Q queries, K keys.
"""

from types import TracebackType

import torch
from torch import Tensor, nn

# The recorder in charge, one at a time. A module global, so that a compiled graph guards on it and pays nothing.
_recorder: "capture_attention | None" = None


class capture_attention:  # reads like a function, as torch.no_grad does
    """Record the attention weights of every attention layer of ``model`` that runs inside the block.

    ``maps`` holds ``{layer name: (B, H, Q, K)}`` in the order of the calls; of two calls of a layer the last stays.
    Weights are taken before dropout: rows sum to 1, masked keys are exactly 0, a row that may attend to nothing is all
    zeros. Only maps cost anything: without a block around it a layer runs its fused kernel alone.

    Args:
        model: Names the layers; a layer outside of it is not recorded.
        differentiable: Make the output *from* the maps and keep their graph, so that gradients with respect to a map
            can be had (Grad-CAM); otherwise maps are detached and the output comes from the usual kernel.

    Raises:
        RuntimeError: If blocks are nested, or a compiled model runs inside.

    Example:
        >>> from polyfuse.layers import Attention
        >>> layer = Attention(8, num_heads=2)
        >>> with capture_attention(layer) as maps:
        ...     _ = layer(torch.zeros(1, 3, 8), mask=torch.tensor([[True, True, False]]))
        >>> maps[""][0, 0, 0]
        tensor([0.5000, 0.5000, 0.0000])
    """

    def __init__(self, model: nn.Module, *, differentiable: bool = False) -> None:
        self.names = {id(module): name for name, module in model.named_modules()}
        self.differentiable = differentiable
        self.maps: dict[str, Tensor] = {}

    def __enter__(self) -> dict[str, Tensor]:
        global _recorder
        if _recorder is not None:
            raise RuntimeError("capture_attention blocks cannot be nested")
        _recorder = self
        return self.maps

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _recorder
        _recorder = None

    def add(self, module: nn.Module, weights_BHQK: Tensor, part: str) -> None:
        """Keep one map under the module's name, with ``part`` behind it where a module has several."""
        name = self.names.get(id(module))
        if name is None:
            return
        key = ".".join(piece for piece in (name, part) if piece)
        self.maps.pop(key, None)  # a later call goes to the end
        self.maps[key] = weights_BHQK if self.differentiable else weights_BHQK.detach()


def recorder() -> "capture_attention | None":
    """The recorder in charge, or None."""
    if _recorder is not None and torch.compiler.is_compiling():
        raise RuntimeError("capture_attention needs the eager model, not a compiled or exported one")
    return _recorder
