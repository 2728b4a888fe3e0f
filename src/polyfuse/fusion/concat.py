"""Concat (early) fusion: normalised slots side by side, a learned token in every empty slot, one MLP over all.

Shapes: B batch, M modalities, D embedding width, H output width. Masks: True = present.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.fusion.base import FusionOutput
from polyfuse.fusion.slotted import MaskFiLM, SlottedFusion
from polyfuse.fusion.subsets import Readout, pair_presence, read_out


class ConcatFusion(SlottedFusion):
    """Joint MLP over one slot per modality; the reference that every other fusion must beat.

    Slot m is ``LayerNorm(P_m x_m)`` where the modality is present and a learned missing token where it is not;
    ``F = W_2 gelu(W_1 [slot_1; ...; slot_M])``. Slots keep which modality said what, which pooling loses. In our pilot
    the LayerNorm gained 3 points of accuracy on embeddings of unlike scales (1, 20 and 0.05) and lost nothing on like
    ones; the projection before it keeps what a LayerNorm of a narrow embedding would erase.

    Args:
        modalities: Names, in the column order of ``present``.
        embed_dim: Width of every embedding, or one width per name.
        out_dim: Width of ``fused``; None = the largest embedding width.
        hidden: Width of the hidden layer; None = twice ``out_dim``.
        dropout: Dropout on the hidden layer.
        missing_tokens: Learn what stands in an empty slot; False leaves zeros there.
        project: Project every embedding to ``out_dim`` before its LayerNorm; False normalises it as it is.
        film: Scale and shift the hidden layer by what is absent, see ``MaskFiLM``.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If names or widths are refused.

    Example:
        >>> fusion = ConcatFusion(("image", "text"), embed_dim=4)
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
        missing_tokens: bool = True,
        project: bool = True,
        film: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(modalities, embed_dim, out_dim, missing_tokens=missing_tokens, project=project, **factory)
        hidden = 2 * self.out_dim if hidden is None else hidden
        self.mlp = nn.Sequential(
            nn.Linear(sum(self.slot_widths.values()), hidden, **factory),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, self.out_dim, **factory),
        )
        self.init_tokens()
        self.film = MaskFiLM(len(self.modalities), hidden, **factory) if film else None

    def forward(self, embeddings: Mapping[str, Tensor], present: Tensor | None = None) -> FusionOutput:
        """Fuse one embedding per modality.

        Shape:
            - embeddings: ``{name: (B, D_m)}``; present: ``(B, M)`` bool, None = all present.
            - fused: ``(B, H)``; weights: None; info: ``empty (B,)``.

        Raises:
            ValueError: If an embedding is missing or has a wrong shape, or ``present`` is not ``(B, M)`` bool.
        """
        inputs, present_BM, empty_B = self.canonical_inputs(embeddings, present)
        fused_BH = self.joint(torch.cat(self.slots(inputs, present_BM), dim=1), present_BM)
        return FusionOutput(fused_BH, None, {"empty": empty_B})

    def joint(self, slots_BK: Tensor, present_BM: Tensor) -> Tensor:
        """The MLP over all slots, ``(B, H)``; columns of presence in the order of sorted names."""
        first, activation, dropout, last = self.mlp
        hidden_BW = first(slots_BK)
        if self.film is not None:
            hidden_BW = self.film(hidden_BW, present_BM)
        return last(dropout(activation(hidden_BW)))

    def every_subset(self, inputs: list[Tensor], subsets: Tensor, readout: Readout | None) -> FusionOutput | None:
        """Slots and their part of the first layer once; last layer and readout as one where that is cheaper."""
        first, activation, dropout, last = self.mlp
        assert isinstance(first, nn.Linear)  # noqa: S101 - for the type checker
        assert isinstance(last, nn.Linear)  # noqa: S101 - for the type checker
        hidden = self.first_layer(first, inputs, subsets).flatten(0, 1)
        if self.film is not None:
            hidden = self.film(hidden, pair_presence(subsets, len(inputs[0])))
        return FusionOutput(read_out(dropout(activation(hidden)), last, readout), None, {})
