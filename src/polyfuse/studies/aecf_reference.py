"""AECF as it was published, kept as a control: its curriculum masks weights that no output is made of.

Shapes: B batch, M modalities, D embedding width, H output width. Masks: True = present.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from polyfuse.fusion.base import FusionOutput
from polyfuse.fusion.named import NamedFusion, NamedModules, linear_by_name


class AecfReference(NamedFusion):
    """What the PyPI package ``aecf`` 0.1.0 computes, behind the constructor of a fusion. Not for use: ``aecf`` is.

    Tokens are those of ``AttentionPoolFusion``. As in the package, ``nn.MultiheadAttention`` pools *all* of them, the
    curriculum then masks the attention weights it returned, and the masked weights go to ``info`` and nowhere else. So
    the output is the same in training and in eval, whatever the mask probability, and an entropy loss on
    ``info["entropy"]``, which is detached in training, moves no parameter: the layer is attention pooling without
    presence. An absent modality is a zero embedding and keeps its share of the attention.

    Source: ``AECFLayer.py`` of ``aecf`` 0.1.0, ``CurriculumMasking.forward`` and ``MultimodalAttentionPool.forward``.
    Differs: nothing that reaches a number; embeddings of absent modalities are set to zero before the projection, as
    the published experiments do, so the *content* of what is absent does not leak.

    Args:
        modalities: Names, in the column order of ``weights``.
        embed_dim: Width of every embedding, or one width per name.
        out_dim: Width of ``fused`` and of the attention; None = the largest embedding width.
        num_heads: Heads; must divide ``out_dim``.
        dropout: Dropout on the attention weights in training.
        base_mask_prob: Scale of the mask probability, in (0, 1].
        entropy_target: Target entropy as a fraction of ln M.
        min_active: How many modalities every row keeps at least, the heaviest.

    Example:
        >>> fusion = AecfReference(("image", "text"), embed_dim=4, base_mask_prob=1.0)
        >>> x = {"image": torch.ones(1, 4), "text": torch.zeros(1, 4)}
        >>> torch.equal(fusion.train()(x).fused, fusion.eval()(x).fused)
        True
    """

    def __init__(
        self,
        modalities: Sequence[str],
        embed_dim: int | Mapping[str, int],
        out_dim: int | None = None,
        *,
        num_heads: int = 1,
        dropout: float = 0.0,
        base_mask_prob: float = 0.15,
        entropy_target: float = 0.7,
        min_active: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(modalities, embed_dim, out_dim)
        self.base_mask_prob, self.entropy_target, self.min_active = base_mask_prob, entropy_target, min_active
        self.project = linear_by_name(self.widths, self.out_dim, device=device, dtype=dtype)
        norms = {name: nn.LayerNorm(self.out_dim, device=device, dtype=dtype) for name in self.modalities}
        self.norm = NamedModules(norms)
        self.query = nn.Parameter(torch.empty(1, 1, self.out_dim, device=device, dtype=dtype))
        nn.init.normal_(self.query, 0.0, (2.0 / self.out_dim) ** 0.5)  # as in its create_fusion_pool
        self.attention = nn.MultiheadAttention(
            self.out_dim, num_heads, dropout=dropout, batch_first=True, device=device, dtype=dtype
        )

    def forward(self, embeddings: Mapping[str, Tensor], present: Tensor | None = None) -> FusionOutput:
        """Fuse one embedding per modality.

        Shape:
            - embeddings: ``{name: (B, D_m)}``; present: ``(B, M)`` bool, None = all present; it only sets embeddings to
              zero.
            - fused: ``(B, H)``; weights: ``(B, M)``, what made ``fused``, not zero where absent.
            - info: ``empty (B,)``; ``masked_attention_weights (B, M)``, ``entropy``, ``target_entropy`` and
              ``mask_rate``, each ``(B,)``, as the package reports them.

        Raises:
            ValueError: If an embedding is missing or has a wrong shape, or ``present`` is not ``(B, M)`` bool.
        """
        inputs, _, empty_B = self.canonical_inputs(embeddings, present)
        tokens = [self.norm[name](self.project[name](x_BD)) for name, x_BD in zip(self.canonical, inputs, strict=True)]
        x_BMH = torch.stack(tokens, dim=1)
        query_B1H = self.query.to(x_BMH.dtype).expand(x_BMH.shape[0], -1, -1)
        fused_B1H, weights_B1M = self.attention(query_B1H, x_BMH, x_BMH)
        weights_BM = weights_B1M[:, 0]
        masked_BM, info = self.curriculum(weights_BM)
        info |= {"empty": empty_B, "masked_attention_weights": self.user_order(masked_BM.detach())}
        return FusionOutput(fused_B1H[:, 0], self.user_order(weights_BM), info)

    def curriculum(self, weights_BM: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The package's masked weights and statistics; the draw is its own, from the global generator."""
        number = weights_BM.shape[1]
        if number <= 1:
            zero_B = torch.zeros_like(weights_BM[:, 0])
            return weights_BM, {"entropy": zero_B, "mask_rate": zero_B, "target_entropy": zero_B}
        most = math.log(number)
        target_B = torch.full_like(weights_BM[:, 0], most * self.entropy_target)
        if not self.training:
            entropy_B = (-torch.xlogy(weights_BM, weights_BM).sum(dim=-1)).clamp(0.0, most)
            return weights_BM, {
                "entropy": entropy_B,
                "mask_rate": torch.zeros_like(entropy_B),
                "target_entropy": target_B,
            }
        weights_BM = weights_BM / weights_BM.sum(dim=-1, keepdim=True)
        entropy_B = (-torch.xlogy(weights_BM, weights_BM).sum(dim=-1)).clamp(0.0, most)
        keep_B1 = (1.0 - self.base_mask_prob * (entropy_B / most).clamp(0.0, 1.0)).clamp(0.0, 1.0)[:, None]
        mask_BM = torch.bernoulli(keep_B1.expand_as(weights_BM))
        least = min(self.min_active, number)
        heaviest_BM = torch.zeros_like(mask_BM).scatter(1, weights_BM.topk(least, dim=-1).indices, 1.0)
        mask_BM = torch.where(mask_BM.sum(dim=-1, keepdim=True) < least, heaviest_BM, mask_BM)
        masked_BM = weights_BM * mask_BM
        total_B1 = masked_BM.sum(dim=-1, keepdim=True)
        masked_BM = torch.where(total_B1 > 1e-8, masked_BM / total_B1, weights_BM)
        return masked_BM, {
            "entropy": entropy_B.detach(),
            "mask_rate": (1.0 - mask_BM.mean(dim=-1)).detach(),
            "target_entropy": target_B,
        }
