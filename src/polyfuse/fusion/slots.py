"""Slots fusion: a mean of what each modality says alone plus a joint MLP, trained with features of the slots missing.

Shapes: B batch, M modalities, D embedding width, H output width, W width of the hidden layer. Masks: True = present.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polyfuse.fusion.base import FusionOutput
from polyfuse.fusion.concat import ConcatFusion
from polyfuse.fusion.named import linear_by_name, present_mean
from polyfuse.fusion.subsets import Readout, combine


class SlotsFusion(ConcatFusion):
    """``ConcatFusion`` with a path for every modality alone, slot dropout and FiLM by the mask.

    Slots s_m are those of ``ConcatFusion``: ``LayerNorm(P_m x_m)``, or a learned token where the modality is absent.
    ``F = mean over present m of V_m s_m + W_2 gelu(FiLM(W_1 drop([s_1; ...; s_M]), present))``.

    The first term is what a modality says whoever else is here: with a linear head, an average of unimodal logits, so
    that a subset never depends on the joint term alone. In training ``drop`` zeroes single features of the slots, as
    EmbraceNet does when it draws every feature from one modality: no feature of one modality can lean on a certain
    feature of another. ``FiLM`` (see ``MaskFiLM``) gives every subset its own scale and shift of the hidden layer.

    Source: slots from EmbraceNet's docking layers, https://arxiv.org/abs/1904.09078, section 3, and FiLM by the mask
    from ModDrop++, https://arxiv.org/abs/2203.04959. Differs: both paths at once; Bernoulli dropout of features instead
    of a multinomial choice, because the joint path needs several modalities at a time to see interactions.

    Args:
        modalities: Names, in the column order of ``present``.
        embed_dim: Width of every embedding, or one width per name.
        out_dim: Width of ``fused`` and of the slots; None = the largest embedding width.
        hidden: Width W of the hidden layer; None = twice ``out_dim``.
        dropout: Dropout on the hidden layer.
        slot_dropout: Probability that a feature of a slot is zeroed on its way into the joint MLP, in training.
        alone: Whether there is a path for every modality alone.
        film: Scale and shift the hidden layer by what is absent.
        missing_tokens: Learn what stands in an empty slot; False leaves zeros there.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If ``slot_dropout`` is not in [0, 1), or names or widths are refused.

    Example:
        >>> fusion = SlotsFusion(("image", "text"), embed_dim=4)
        >>> fusion({"image": torch.zeros(5, 4), "text": torch.zeros(5, 4)}).fused.shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        modalities: Sequence[str],
        embed_dim: int | Mapping[str, int],
        out_dim: int | None = None,
        *,
        hidden: int | None = None,
        dropout: float = 0.0,
        slot_dropout: float = 0.5,
        alone: bool = True,
        film: bool = True,
        missing_tokens: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not 0.0 <= slot_dropout < 1.0:
            raise ValueError(f"slot_dropout must be in [0, 1), got {slot_dropout}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            modalities,
            embed_dim,
            out_dim,
            hidden=hidden,
            dropout=dropout,
            missing_tokens=missing_tokens,
            film=film,
            **factory,
        )
        self.slot_dropout = slot_dropout
        self.alone = linear_by_name(self.slot_widths, self.out_dim, **factory) if alone else None

    def forward(self, embeddings: Mapping[str, Tensor], present: Tensor | None = None) -> FusionOutput:
        """Fuse one embedding per modality.

        Shape:
            - embeddings: ``{name: (B, D_m)}``; present: ``(B, M)`` bool, None = all present.
            - fused: ``(B, H)``; weights: None; info: ``empty (B,)``.

        Raises:
            ValueError: If an embedding is missing or has a wrong shape, or ``present`` is not ``(B, M)`` bool.
        """
        inputs, present_BM, empty_B = self.canonical_inputs(embeddings, present)
        slots = [self._drop(slot_BH) for slot_BH in self.slots(inputs, present_BM)]
        fused_BH = self.joint(torch.cat(slots, dim=1), present_BM)
        if self.alone is not None:
            terms = [self.alone[name](slot_BH) for name, slot_BH in zip(self.canonical, slots, strict=True)]
            terms_BMH = torch.stack(terms, dim=1).masked_fill(~present_BM[..., None], 0.0)
            fused_BH = fused_BH + present_mean(terms_BMH, present_BM)
        return FusionOutput(fused_BH, None, {"empty": empty_B})

    def every_subset(self, inputs: list[Tensor], subsets: Tensor, readout: Readout | None) -> FusionOutput | None:
        """Slots, their part of the first layer and what each says alone once."""
        if self.training and self.slot_dropout > 0.0:
            return None
        out = super().every_subset(inputs, subsets, readout)
        if out is None or self.alone is None:
            return out
        terms = [
            self.alone[name](slot_BH) for name, slot_BH in zip(self.canonical, self.present_slots(inputs), strict=True)
        ]
        plain = None if readout is None else readout.without_bias()
        return out._replace(fused=out.fused + combine(terms, subsets, "mean", plain))

    def _drop(self, slot_BH: Tensor) -> Tensor:
        """Dropout drawn in float32 whatever the dtype, so that half precision drops the same features."""
        if not self.training or self.slot_dropout == 0.0:
            return slot_BH
        keep_BH = torch.rand(slot_BH.shape, device=slot_BH.device) >= self.slot_dropout
        return torch.where(keep_BH, slot_BH / (1.0 - self.slot_dropout), 0.0)
