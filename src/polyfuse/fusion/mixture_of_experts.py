"""Mixture of experts: a router that sees which modalities are here mixes a few MLPs over the slots.

Shapes: B batch, M modalities, D embedding width, K all slots side by side, E experts, W expert width, H output width.
Masks: True = present.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.fusion.base import FusionOutput
from polyfuse.fusion.slotted import SlottedFusion


class MixtureOfExpertsFusion(SlottedFusion):
    """Experts over ``ConcatFusion``'s slots, routed by the presence mask and, if wanted, by the content.

    ``F = sum_e g_e W_e gelu(V_e s + a_e) + b`` with ``s = [slot_1; ...; slot_M]`` and router
    ``g = softmax(R tanh(Q present) + C s)``, where C s is there only with ``content``. Subsets that need the same
    computation share an expert, subsets that conflict may part: what one MLP per subset would buy, without 2^M of them.

    Source: routing by the observed modality combination as in Flex-MoE, https://arxiv.org/abs/2410.08245, and FuseMoE,
    https://arxiv.org/abs/2402.03226. Differs from both: every expert runs and the mixture is dense (top-1 or top-k and
    a balancing loss there); Flex-MoE's bank of one missing embedding per observed combination and modality is one token
    per modality; softmax instead of FuseMoE's Laplace gate; the experts share the bias b.

    Args:
        modalities: Names, in the column order of ``present``.
        embed_dim: Width of every embedding, or one width per name.
        out_dim: Width of ``fused``; None = the largest embedding width.
        experts: Number E of experts.
        hidden: Hidden width W of every expert; None = ``out_dim``.
        dropout: Dropout on the experts' hidden layers.
        content: Whether the router also reads the slots.
        missing_tokens: Learn what stands in an empty slot; False leaves zeros there.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If ``experts`` is not positive, or names or widths are refused.

    Example:
        >>> fusion = MixtureOfExpertsFusion(("image", "text"), embed_dim=4, experts=3)
        >>> out = fusion({"image": torch.zeros(5, 4), "text": torch.zeros(5, 4)})
        >>> out.fused.shape, out.info["routing"].shape
        (torch.Size([5, 4]), torch.Size([5, 3]))
    """

    def __init__(
        self,
        modalities: Sequence[str],
        embed_dim: int | Mapping[str, int],
        out_dim: int | None = None,
        *,
        experts: int = 4,
        hidden: int | None = None,
        dropout: float = 0.0,
        content: bool = False,
        missing_tokens: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(modalities, embed_dim, out_dim, missing_tokens=missing_tokens, **factory)
        if experts < 1:
            raise ValueError(f"experts must be positive, got {experts}")
        self.experts = experts
        hidden = self.out_dim if hidden is None else hidden
        width = sum(self.slot_widths.values())
        number = len(self.modalities)
        self.router = nn.Sequential(
            nn.Linear(number, 4 * number, **factory), nn.Tanh(), nn.Linear(4 * number, experts, **factory)
        )
        self.content = nn.Linear(width, experts, bias=False, **factory) if content else None
        self.first = nn.Linear(width, experts * hidden, **factory)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)
        # W_1 .. W_E side by side: one product of gated hidden layers with them is the mixture of the experts.
        self.last = nn.Linear(experts * hidden, self.out_dim, **factory)
        self.init_tokens()

    def forward(self, embeddings: Mapping[str, Tensor], present: Tensor | None = None) -> FusionOutput:
        """Fuse one embedding per modality.

        Shape:
            - embeddings: ``{name: (B, D_m)}``; present: ``(B, M)`` bool, None = all present.
            - fused: ``(B, H)``; weights: None.
            - info: ``empty (B,)``, ``routing (B, E)``, rows sum to 1, for balancing losses and reports.

        Raises:
            ValueError: If an embedding is missing or has a wrong shape, or ``present`` is not ``(B, M)`` bool.
        """
        inputs, present_BM, empty_B = self.canonical_inputs(embeddings, present)
        slots_BK = torch.cat(self.slots(inputs, present_BM), dim=1)
        scores_BE = self.router(present_BM.to(slots_BK.dtype))
        if self.content is not None:
            scores_BE = scores_BE + self.content(slots_BK)
        wide = scores_BE if scores_BE.dtype == torch.float64 else scores_BE.float()
        routing_BE = wide.softmax(dim=1).to(slots_BK.dtype)
        hidden_BEW = self.dropout(self.activation(self.first(slots_BK))).unflatten(1, (self.experts, -1))
        fused_BH = self.last((hidden_BEW * routing_BE[..., None]).flatten(1))
        return FusionOutput(fused_BH, None, {"empty": empty_B, "routing": routing_BE})
