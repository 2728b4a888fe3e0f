"""Attention-pool fusion: one learned query weighs the modality embeddings, without dropping any.

Shapes: B batch, M modalities, D embedding width, H output width. Masks: True = present.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from polyfuse.fusion.base import FusionOutput
from polyfuse.fusion.named import NamedFusion, NamedModules, linear_by_name
from polyfuse.fusion.pool_subsets import gate_subsets, pool_subsets
from polyfuse.fusion.subsets import Readout
from polyfuse.layers.attention_pool import FusionPool
from polyfuse.layers.entropy_gate import EntropyGate


class AttentionPoolFusion(NamedFusion):
    """Project every embedding, then pool them with the multi-head attention of one learned query.

    Token m is ``LayerNorm(P_m x_m)``; ``fused = MHA(query, tokens, tokens)`` over the present ones. Without projection
    the pool cannot tell which modality a token came from.

    Source: multi-head attention, https://arxiv.org/abs/1706.03762, with one learned query as in Set Transformer
    pooling, https://arxiv.org/abs/1810.00825. Differs: no residual and no feed-forward.

    Args:
        modalities: Names, in the column order of ``present`` and ``weights``.
        embed_dim: Width of every embedding, or one width per name.
        out_dim: Width of ``fused`` and of the attention; None = the largest embedding width.
        num_heads: Heads; must divide ``out_dim``.
        dropout: Dropout on the attention weights in training.
        project: One linear layer per modality before the pool; needed where widths differ from ``out_dim``.
        norm: LayerNorm per modality before the pool.
        on_empty: What a row with nothing present gives: ``learned`` = a null token, ``zero`` = the output projection's
            bias, ``raise`` = ValueError (eager only).
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If names or widths are refused, or ``project=False`` and a width differs from ``out_dim``.

    Example:
        >>> fusion = AttentionPoolFusion(("image", "text"), embed_dim={"image": 4, "text": 6}, num_heads=2)
        >>> out = fusion({"image": torch.ones(3, 4), "text": torch.ones(3, 6)}, torch.tensor([[True, False]] * 3))
        >>> out.fused.shape, out.weights[0]
        (torch.Size([3, 6]), tensor([1., 0.]))
    """

    def __init__(
        self,
        modalities: Sequence[str],
        embed_dim: int | Mapping[str, int],
        out_dim: int | None = None,
        *,
        num_heads: int = 1,
        dropout: float = 0.0,
        project: bool = True,
        norm: bool = True,
        on_empty: str = "learned",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(modalities, embed_dim, out_dim)
        uneven = {name: width for name, width in self.widths.items() if width != self.out_dim}
        if uneven and not project:
            raise ValueError(f"project=False needs embeddings of width out_dim = {self.out_dim}, got {uneven}")
        self.project = linear_by_name(self.widths, self.out_dim, device=device, dtype=dtype) if project else None
        self.norm: NamedModules | None = None
        if norm:
            norms = {name: nn.LayerNorm(self.out_dim, device=device, dtype=dtype) for name in self.modalities}
            self.norm = NamedModules(norms)
        self.pool: nn.Module = FusionPool(
            self.out_dim, len(self.modalities), num_heads, dropout, on_empty=on_empty, device=device, dtype=dtype
        )

    def tokens(self, embeddings: Mapping[str, Tensor], present: Tensor | None) -> tuple[Tensor, Tensor]:
        """Projected, normalised embeddings ``(B, M, H)`` and presence ``(B, M)``, both in the order of sorted names."""
        inputs, present_BM, _ = self.canonical_inputs(embeddings, present)
        return self._stack(inputs), present_BM

    def _stack(self, inputs: list[Tensor]) -> Tensor:
        tokens = []
        for name, x_BD in zip(self.canonical, inputs, strict=True):
            token_BH = x_BD if self.project is None else self.project[name](x_BD)
            tokens.append(token_BH if self.norm is None else self.norm[name](token_BH))
        dtype = tokens[0].dtype  # under autocast all are alike anyway
        return torch.stack([token.to(dtype) for token in tokens], dim=1)

    def forward(self, embeddings: Mapping[str, Tensor], present: Tensor | None = None) -> FusionOutput:
        """Fuse one embedding per modality.

        Shape:
            - embeddings: ``{name: (B, D_m)}``; present: ``(B, M)`` bool, None = all present.
            - fused: ``(B, H)``; weights: ``(B, M)``, the head mean of the weights that made ``fused``, detached; rows
              sum to 1, or to 0 when nothing is present.
            - info: the tensors of ``FusionPool``, columns in the order of ``modalities``.

        Raises:
            ValueError: If an embedding is missing or has a wrong shape, or ``present`` is not ``(B, M)`` bool.
        """
        tokens_BMH, present_BM = self.tokens(embeddings, present)
        fused, info = self.pool(tokens_BMH, present_BM, return_info=True)
        info = {name: self.user_order(x) if x.ndim == 2 else x for name, x in info.items()}
        return FusionOutput(fused, info["masked_attention_weights"], info)

    def every_subset(self, inputs: list[Tensor], subsets: Tensor, readout: Readout | None) -> FusionOutput | None:
        """Tokens, keys and values once; weights per subset."""
        if isinstance(self.pool, FusionPool) and (self.pool.on_empty != "raise" or bool(subsets.any(dim=1).all())):
            pooled = pool_subsets(self.pool, self._stack(inputs), subsets, readout)
        elif isinstance(self.pool, EntropyGate):
            pooled = gate_subsets(self.pool, self._stack(inputs), subsets, readout)
        else:
            return None
        return None if pooled is None else FusionOutput(pooled[0], self.user_order(pooled[1]), {})
