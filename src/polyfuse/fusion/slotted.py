"""What fusions over slots share: one normalised vector per modality, a learned token where the modality is absent.

Shapes: B batch, M modalities, D embedding width, H slot width, W width of a hidden layer. Masks: True = present.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyfuse.fusion.named import NamedFusion, NamedModules, linear_by_name
from polyfuse.fusion.subsets import sum_over_subsets


class SlottedFusion(NamedFusion):
    """Slot m is ``LayerNorm(P_m x_m)`` where the modality is present and a learned missing token where it is not.

    Subclasses build their layers, call ``init_tokens`` last, and read ``slots``.

    Args:
        modalities: Names, in the column order of ``present``.
        embed_dim: Width of every embedding, or one width per name.
        out_dim: Width of ``fused``; None = the largest embedding width.
        missing_tokens: Learn what stands in an empty slot; False leaves zeros there.
        project: Project every embedding to ``out_dim`` before its LayerNorm; False normalises it as it is.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        embed_dim: int | Mapping[str, int],
        out_dim: int | None = None,
        *,
        missing_tokens: bool = True,
        project: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(modalities, embed_dim, out_dim)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.slot_widths = dict.fromkeys(self.modalities, self.out_dim) if project else dict(self.widths)
        self.project = linear_by_name(self.widths, self.out_dim, **factory) if project else None
        self.norm = NamedModules({name: nn.LayerNorm(width, **factory) for name, width in self.slot_widths.items()})
        self.token = (
            NamedModules({name: nn.Embedding(1, width, **factory) for name, width in self.slot_widths.items()})
            if missing_tokens
            else None
        )

    def init_tokens(self) -> None:
        """Draw the missing tokens small: an empty slot starts near the zeros that it would hold without them."""
        if self.token is not None:
            for token in self.token.values():
                nn.init.normal_(token.get_parameter("weight"), std=0.02)

    def slots(self, inputs: Sequence[Tensor], present_BM: Tensor) -> list[Tensor]:
        """Slots ``(B, H)`` in the order of sorted names, from the ``canonical_inputs``."""
        # A token is looked up once per row (not read as .weight): per-sample gradients need the batch axis.
        row_B1 = torch.zeros_like(present_BM[:, :1], dtype=torch.long)
        slots = []
        for m, (name, slot_BH) in enumerate(zip(self.canonical, self.present_slots(inputs), strict=True)):
            token = slot_BH.new_zeros(()) if self.token is None else self.token[name](row_B1)[:, 0].to(slot_BH.dtype)
            slots.append(torch.where(present_BM[:, m, None], slot_BH, token))
        return slots

    def present_slots(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Slots ``(B, H)`` as if everything were present, in the order of sorted names."""
        named = zip(self.canonical, inputs, strict=True)
        return [self.norm[name](x_BD if self.project is None else self.project[name](x_BD)) for name, x_BD in named]

    def first_layer(self, layer: nn.Linear, inputs: Sequence[Tensor], subsets_SM: Tensor) -> Tensor:
        """``(S, B, W)``: a linear layer over all slots, side by side, for every subset.

        It is a sum over slots, so that each is met by its columns once as it is and once as a token.
        """
        columns = layer.weight.split([self.slot_widths[name] for name in self.canonical], dim=1)
        parts, absent = [], []
        for name, slot_BH, weight in zip(self.canonical, self.present_slots(inputs), columns, strict=True):
            parts.append(F.linear(slot_BH, weight))
            if self.token is not None:
                token_H = self.token[name].get_parameter("weight")[0].to(slot_BH.dtype)
                absent.append(F.linear(token_H, weight))
        return sum_over_subsets(parts, subsets_SM, absent or None, layer.bias)


class MaskFiLM(nn.Module):
    """Scale and shift of a hidden layer by what is absent; the identity at initialisation and on complete rows.

    ``h (1 + s) + t`` with ``[s; t] = W (1 - present)``, W starting at zero: one scale and shift per absent modality,
    added up, so that any subset of many modalities has its own.

    Source: the filter scaling of ModDrop++, https://arxiv.org/abs/2203.04959, in the form of FiLM,
    https://arxiv.org/abs/1709.07871. Differs: a linear map of the absences in place of a network of the presences.

    Args:
        num_modalities: M.
        width: Width W of the hidden layer.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Shape:
        ``(B, W)`` and presence ``(B, M)`` to ``(B, W)``.

    Example:
        >>> film = MaskFiLM(2, 3)
        >>> film(torch.ones(1, 3), torch.tensor([[True, False]])).detach()
        tensor([[1., 1., 1.]])
    """

    def __init__(
        self, num_modalities: int, width: int, *, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.by_absence = nn.Linear(num_modalities, 2 * width, bias=False, device=device, dtype=dtype)
        nn.init.zeros_(self.by_absence.weight)

    def forward(self, hidden_BW: Tensor, present_BM: Tensor) -> Tensor:
        """Modulate ``hidden_BW``; the columns of ``present_BM`` must keep one order."""
        scale_BW, shift_BW = self.by_absence((~present_BM).to(hidden_BW.dtype)).to(hidden_BW.dtype).chunk(2, dim=1)
        return hidden_BW * (1 + scale_BW) + shift_BW
