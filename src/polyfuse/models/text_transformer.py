"""The text tower of CLIP and its kin: a pre-norm transformer over token ids, read at the end-of-text token.

Shapes: B batch, L tokens, D width, E embedding width, V vocabulary. Masks: True = present.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.layers.attention_maps import recorder
from polyfuse.layers.padding import pack, unpack
from polyfuse.layers.transformer import FeedForward, TransformerLayer

#: Where a text is read: at its highest id (OpenAI: end-of-text has the highest), or at the first ``eos_id``.
POOLINGS = ("argmax", "eos")


class TextTower(nn.Module):
    """Token ids to one vector per text.

    Source: https://arxiv.org/abs/2103.00020, section 2.4. A tower that is not causal (MobileCLIP) attends to padding,
    as it did in training: give it texts padded to ``context_length``. In a causal one nothing behind the end of a text
    reaches its embedding: ``forward`` computes the tokens up to the ends alone (``layers/padding.py``).

    Args:
        vocab_size: Token ids V.
        dim: Width D.
        num_layers: Layers.
        num_heads: Heads.
        hidden_dim: Hidden width of the feed-forward parts; None = 4 D.
        context_length: Most tokens of a text, start and end included.
        out_dim: Width E of the embedding; None = D, without a projection.
        causal: No token sees a later one.
        activation: Entry of ``polyfuse.layers.transformer.ACTIVATIONS``.
        pooling: Entry of ``POOLINGS``.
        eos_id: Id of the end of a text, for ``pooling="eos"``.
        eps: Of the norms.
        layers: Instead of the ``num_layers`` usual ones: modules from ``(B, L, D)`` to ``(B, L, D)``. They see neither
            a mask nor ``causal``, unless they are of ``TransformerLayer``.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If ``pooling`` is unknown.

    Example:
        >>> tower = TextTower(vocab_size=20, dim=8, num_layers=1, num_heads=2, context_length=7, out_dim=5)
        >>> tower(torch.tensor([[18, 3, 19, 0, 0, 0, 0]])).shape
        torch.Size([1, 5])
    """

    def __init__(
        self,
        *,
        vocab_size: int = 49408,
        dim: int = 512,
        num_layers: int = 12,
        num_heads: int = 8,
        hidden_dim: int | None = None,
        context_length: int = 77,
        out_dim: int | None = 512,
        causal: bool = True,
        activation: str = "gelu",
        pooling: str = "argmax",
        eos_id: int = 49407,
        eps: float = 1e-5,
        layers: Iterable[nn.Module] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.causal, self.pooling, self.eos_id = causal, pooling, eos_id
        self.tokens = nn.Embedding(vocab_size, dim, **factory)
        self.positions = nn.Parameter(torch.empty(context_length, dim, **factory))
        if layers is None:
            layers = (
                TransformerLayer(dim, num_heads, hidden_dim, activation=activation, eps=eps, **factory)
                for _ in range(num_layers)
            )
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(dim, eps=eps, **factory)
        self.projection = None if out_dim is None else nn.Linear(dim, out_dim, bias=False, **factory)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        init_layers(self.layers, dim)
        if self.projection is not None:
            nn.init.normal_(self.projection.weight, std=dim**-0.5)

    def end_of(self, input_ids: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """Where each text is read: ``(B, L)`` ids (and mask) to ``(B,)`` positions; 0 where a text has no end."""
        if self.pooling == "eos":
            ends = input_ids == self.eos_id
            return (ends if text_mask is None else ends & text_mask).int().argmax(dim=-1)
        return (input_ids if text_mask is None else input_ids.masked_fill(~text_mask, -1)).argmax(dim=-1)

    def sequence(self, input_ids: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """Token states ``(B, L, D)`` after the last norm, of ``(B, L)`` ids and mask (None = every id is attended to).

        Raises:
            ValueError: If a text is longer than ``context_length``, or the mask is not of the ids' shape.
        """
        return self.norm(self._states(input_ids, text_mask))

    def forward(self, input_ids: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """One vector per text, ``(B, E)``, not normalised.

        Args:
            input_ids: ``(B, L)``. Ids under a False of the mask may be anything.
            text_mask: ``(B, L)`` bool. A causal tower does not need it; one that is not was trained without: give it
                only to a tower that was trained with.

        Raises:
            ValueError: If a text is longer than ``context_length``, or the mask is not of the ids' shape.
        """
        self.check(input_ids, text_mask)
        ends_B = self.end_of(input_ids, text_mask)
        read = (torch.arange(input_ids.shape[0], device=input_ids.device), ends_B)
        pooled_BD = self.norm(self._states(input_ids, text_mask, ends_B)[read])
        return pooled_BD if self.projection is None else self.projection(pooled_BD)

    def _states(self, input_ids: Tensor, text_mask: Tensor | None, ends_B: Tensor | None = None) -> Tensor:
        """``(B, L, D)`` before the last norm; with ``ends_B``, what stands behind the end of a text may be anything."""
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        if text_mask is not None:
            text_mask = text_mask | (~text_mask.any(dim=1, keepdim=True) & (place == 0))  # no row is without any token
            input_ids = input_ids.masked_fill(~text_mask, 0)
        x_BLD = self.tokens(input_ids) + self.positions[: input_ids.shape[1]]
        if ends_B is not None and self._may_pack():
            needed = place <= ends_B[:, None]
            needed = needed if text_mask is None else needed & text_mask
            if not bool(needed.all()):
                packed, packing = pack(x_BLD, needed)
                for layer in self.layers:
                    packed = layer(packed, packing, causal=True)
                return unpack(packed, packing)
        for layer in self.layers:
            known = isinstance(layer, TransformerLayer)
            x_BLD = layer(x_BLD, text_mask, causal=self.causal) if known else layer(x_BLD)
        return x_BLD

    def _may_pack(self) -> bool:
        """Not in a compiled graph, whose shapes may not depend on values, nor when maps of all tokens are wanted."""
        own = all(isinstance(layer, TransformerLayer) for layer in self.layers)
        return self.causal and own and not torch.compiler.is_compiling() and recorder() is None

    def check(self, input_ids: Tensor, text_mask: Tensor | None) -> None:
        """Refuse ids that are too long and masks that do not fit, with a ValueError."""
        most = self.positions.shape[0]
        if input_ids.ndim != 2 or input_ids.shape[1] > most:
            raise ValueError(f"input_ids must be (B, L) with L up to {most}, got {tuple(input_ids.shape)}")
        if text_mask is not None and (text_mask.shape != input_ids.shape or text_mask.dtype != torch.bool):
            got = f"{tuple(text_mask.shape)} {text_mask.dtype}"
            raise ValueError(f"text_mask must be bool (True = present) of shape {tuple(input_ids.shape)}, got {got}")


def init_layers(layers: Iterable[nn.Module], dim: int) -> None:
    """CLIP's initial values of transformer layers; what writes to the residual stream is scaled down with the depth.

    Biases are 0 (OpenAI: those of the feed-forward parts are PyTorch's default).
    """
    layers = list(layers)
    if not layers:
        return
    inside, added, up = dim**-0.5, dim**-0.5 * (2 * len(layers)) ** -0.5, (2 * dim) ** -0.5
    for layer in layers:
        if not isinstance(layer, TransformerLayer) or layer.attention is None:
            continue
        mlp: FeedForward = layer.mlp
        stds = {layer.attention.qkv: inside, layer.attention.out: added, mlp.up: up, mlp.down: added}
        for linear, std in stds.items():
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)
