"""Bottleneck fusion: modalities exchange what a few shared tokens can carry, and nothing else.

Shapes: B batch, M modalities, D embedding width, T tokens per modality, N bottleneck tokens, H output width. Masks:
True = present.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.fusion.attention_block import AttentionBlock
from polyfuse.fusion.base import FusionOutput
from polyfuse.fusion.named import NamedFusion, NamedModules, linear_by_name, present_mean


class BottleneckFusion(NamedFusion):
    """Multimodal Bottleneck Transformer (MBT); bottlenecks are averaged over the present modalities only.

    Modality m becomes T tokens ``z_m = LayerNorm(P_m x_m)``. Layer l of modality m reads its own tokens and the shared
    ones, ``[z_m; b_m] <- Transformer_m,l([z_m; b])``, then ``b <- mean over present m of b_m``;
    ``F = mean over present m of LayerNorm(mean over T of z_m)`` after the last layer.

    Source: MBT, https://arxiv.org/abs/2107.00135, equations 8 and 9, and google-research/scenic, where b is the plain
    mean over all modalities. Differs: the masked means; T projected tokens of one embedding instead of patches; mean of
    features instead of the mean of per-modality logits (the same with a linear head).

    Args:
        modalities: Names, in the column order of ``present``.
        embed_dim: Width of every embedding, or one width per name.
        out_dim: Width of ``fused`` and of the tokens; None = the largest embedding width.
        tokens: Tokens T per modality.
        bottlenecks: Shared tokens N (4 in the paper).
        num_layers: Layers, at least 2: what the first writes into the bottlenecks, the second reads.
        num_heads: Heads; must divide ``out_dim``.
        hidden: Hidden width of every layer's MLP; None = twice ``out_dim``.
        dropout: Dropout on what attention and MLP add.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If a number is out of range, ``num_heads`` does not divide ``out_dim``, or names or widths are
            refused.

    Example:
        >>> fusion = BottleneckFusion(("image", "text"), embed_dim=4, num_heads=2)
        >>> fusion({"image": torch.zeros(5, 4), "text": torch.zeros(5, 4)}).fused.shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        modalities: Sequence[str],
        embed_dim: int | Mapping[str, int],
        out_dim: int | None = None,
        *,
        tokens: int = 1,
        bottlenecks: int = 4,
        num_layers: int = 2,
        num_heads: int = 1,
        hidden: int | None = None,
        dropout: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(modalities, embed_dim, out_dim)
        for what, value, least in (
            ("tokens", tokens, 1),
            ("bottlenecks", bottlenecks, 1),
            ("num_layers", num_layers, 2),
        ):
            if value < least:
                raise ValueError(f"{what} must be at least {least}, got {value}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = 2 * self.out_dim if hidden is None else hidden
        self.tokens, self.bottlenecks = tokens, bottlenecks
        self.project = linear_by_name(self.widths, tokens * self.out_dim, **factory)
        self.norm = NamedModules({name: nn.LayerNorm(self.out_dim, **factory) for name in self.modalities})
        self.bottleneck = nn.Embedding(bottlenecks, self.out_dim, **factory)
        options: dict[str, Any] = {"num_heads": num_heads, "hidden": hidden, "dropout": dropout, **factory}
        self.num_layers = num_layers
        self.layers = NamedModules(
            {
                name: nn.ModuleList(AttentionBlock(self.out_dim, **options) for _ in range(num_layers))
                for name in self.canonical
            }
        )
        self.final = NamedModules({name: nn.LayerNorm(self.out_dim, **factory) for name in self.modalities})
        nn.init.normal_(self.bottleneck.weight, std=0.02)

    def forward(self, embeddings: Mapping[str, Tensor], present: Tensor | None = None) -> FusionOutput:
        """Fuse one embedding per modality.

        Shape:
            - embeddings: ``{name: (B, D_m)}``; present: ``(B, M)`` bool, None = all present.
            - fused: ``(B, H)``, zeros in empty rows; weights: None; info: ``empty (B,)``.

        Raises:
            ValueError: If an embedding is missing or has a wrong shape, or ``present`` is not ``(B, M)`` bool.
        """
        inputs, present_BM, empty_B = self.canonical_inputs(embeddings, present)
        streams = {
            name: self.norm[name](self.project[name](x_BD).unflatten(1, (self.tokens, self.out_dim)))
            for name, x_BD in zip(self.canonical, inputs, strict=True)
        }
        index = torch.arange(self.bottlenecks, device=present_BM.device).expand(present_BM.shape[0], -1)
        shared_BNH = self.bottleneck(index).to(streams[self.canonical[0]].dtype)
        last = self.num_layers - 1
        layers = {name: list(blocks.children()) for name, blocks in self.layers.items()}
        for depth in range(self.num_layers):
            updates = []
            for name in self.canonical:
                both_BSH = torch.cat([streams[name], shared_BNH], dim=1)
                # Nobody reads the bottlenecks after the last layer.
                moved_BSH = layers[name][depth](both_BSH if depth < last else streams[name], both_BSH)
                streams[name] = moved_BSH[:, : self.tokens]
                updates.append(moved_BSH[:, self.tokens :].flatten(1))
            if depth < last:
                shared_BNH = _mean(updates, present_BM).unflatten(1, (self.bottlenecks, self.out_dim))
        ends = [self.final[name](streams[name].mean(dim=1)) for name in self.canonical]
        return FusionOutput(_mean(ends, present_BM), None, {"empty": empty_B})


def _mean(parts: Sequence[Tensor], present_BM: Tensor) -> Tensor:
    """Mean of ``(B, ...)`` per modality over the present ones, zeros in empty rows."""
    x_BMX = torch.stack(list(parts), dim=1)
    return present_mean(x_BMX.masked_fill(~present_BM[..., None], 0.0), present_BM)
