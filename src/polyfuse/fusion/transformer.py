"""Transformer pool: a class token reads the modality tokens, which read each other.

Shapes: B batch, M modalities, D embedding width, H output width. Masks: True = present.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.fusion.attention_block import AttentionBlock
from polyfuse.fusion.base import FusionOutput
from polyfuse.fusion.slotted import SlottedFusion


class TransformerFusion(SlottedFusion):
    """Self-attention over ``[CLS, token_1, ..., token_M]``; absent tokens are masked out as keys.

    Token m is ``LayerNorm(P_m x_m) + e_m`` with a type embedding e_m; ``F = LayerNorm(CLS after the last layer)``. In
    the last layer only CLS reads. Absent tokens are in nobody's sight, so a subset gives what a transformer built for
    that subset with the same weights would give; with ``missing_tokens`` a learned token stands there instead and is
    read by all.

    Source: https://arxiv.org/abs/1706.03762, section 3; class token and type embeddings as in the single-stream
    transformers of https://arxiv.org/abs/1908.03557. Differs: normalisation first, one token per modality.

    Args:
        modalities: Names, in the column order of ``present``.
        embed_dim: Width of every embedding, or one width per name.
        out_dim: Width of ``fused`` and of the tokens; None = the largest embedding width.
        num_layers: Transformer layers.
        num_heads: Heads; must divide ``out_dim``.
        hidden: Hidden width of every layer's MLP; None = twice ``out_dim``.
        dropout: Dropout on what attention and MLP add.
        missing_tokens: Read a learned token in place of an absent modality, instead of masking it out.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If ``num_layers`` is not positive, ``num_heads`` does not divide ``out_dim``, or names or widths are
            refused.

    Example:
        >>> fusion = TransformerFusion(("image", "text"), embed_dim=4, num_heads=2)
        >>> fusion({"image": torch.zeros(5, 4), "text": torch.zeros(5, 4)}).fused.shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        modalities: Sequence[str],
        embed_dim: int | Mapping[str, int],
        out_dim: int | None = None,
        *,
        num_layers: int = 2,
        num_heads: int = 1,
        hidden: int | None = None,
        dropout: float = 0.0,
        missing_tokens: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(modalities, embed_dim, out_dim, missing_tokens=missing_tokens, **factory)
        if num_layers < 1:
            raise ValueError(f"num_layers must be positive, got {num_layers}")
        hidden = 2 * self.out_dim if hidden is None else hidden
        self.type_embedding = nn.Embedding(
            1 + len(self.modalities), self.out_dim, **factory
        )  # row 0 is the class token
        self.layers = nn.ModuleList(
            AttentionBlock(self.out_dim, num_heads=num_heads, hidden=hidden, dropout=dropout, **factory)
            for _ in range(num_layers)
        )
        self.final = nn.LayerNorm(self.out_dim, **factory)
        nn.init.normal_(self.type_embedding.weight, std=0.02)
        self.init_tokens()

    def forward(self, embeddings: Mapping[str, Tensor], present: Tensor | None = None) -> FusionOutput:
        """Fuse one embedding per modality.

        Shape:
            - embeddings: ``{name: (B, D_m)}``; present: ``(B, M)`` bool, None = all present.
            - fused: ``(B, H)``; weights: None; info: ``empty (B,)``.

        Raises:
            ValueError: If an embedding is missing or has a wrong shape, or ``present`` is not ``(B, M)`` bool.
        """
        inputs, present_BM, empty_B = self.canonical_inputs(embeddings, present)
        slots_BMH = torch.stack(self.slots(inputs, present_BM), dim=1)
        index = torch.arange(1 + len(self.modalities), device=present_BM.device)
        types_BTH = self.type_embedding(index.expand(present_BM.shape[0], -1)).to(slots_BMH.dtype)
        x_BTH = torch.cat([types_BTH[:, :1], slots_BMH + types_BTH[:, 1:]], dim=1)
        seen_BM = torch.ones_like(present_BM) if self.token is not None else present_BM
        seen_BT = torch.cat([torch.ones_like(present_BM[:, :1]), seen_BM], dim=1)
        last = len(self.layers) - 1
        for depth, layer in enumerate(self.layers):
            x_BTH = layer(x_BTH if depth < last else x_BTH[:, :1], x_BTH, seen_BT)
        return FusionOutput(self.final(x_BTH[:, 0]), None, {"empty": empty_B})
