"""Proxy fusion: concat whose empty slots hold what the present inputs let one expect there.

Shapes: B batch, M modalities, D embedding width, H slot width. Masks: True = present.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.fusion.base import FusionOutput
from polyfuse.fusion.concat import ConcatFusion
from polyfuse.fusion.named import NamedModules, present_mean
from polyfuse.fusion.subsets import Readout


class ProxyFusion(ConcatFusion):
    """``ConcatFusion`` with proxy tokens: an empty slot m holds ``t_m + G_m(mean of the present slots)``.

    ``G_m`` is a small MLP, ``t_m`` the learned missing token. The task alone trains it; ``train.recipe.proxy`` also
    asks that it resemble the slot it stands for, in training rows that had it before dropout.

    Source: cross-modal proxy tokens, https://arxiv.org/abs/2501.17823, section 3. Differs: one vector per modality in
    place of the class token of a frozen transformer with LoRA, from the mean of all that is present.

    Args:
        modalities: Names, in the column order of ``present``.
        embed_dim: Width of every embedding, or one width per name.
        out_dim: Width of ``fused`` and of the slots; None = the largest embedding width.
        hidden: Width of the hidden layer over the slots; None = twice ``out_dim``.
        dropout: Dropout on that layer.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If names or widths are refused.

    Example:
        >>> fusion = ProxyFusion(("image", "text"), embed_dim=4)
        >>> out = fusion({"image": torch.zeros(5, 4), "text": torch.zeros(5, 4)})
        >>> out.info["proxies"].shape
        torch.Size([5, 2, 4])
    """

    def __init__(
        self,
        modalities: Sequence[str],
        embed_dim: int | Mapping[str, int],
        out_dim: int | None = None,
        *,
        hidden: int | None = None,
        dropout: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(modalities, embed_dim, out_dim, hidden=hidden, dropout=dropout, **factory)
        width = self.out_dim
        self.guess = NamedModules(
            {
                name: nn.Sequential(nn.Linear(width, width, **factory), nn.GELU(), nn.Linear(width, width, **factory))
                for name in self.modalities
            }
        )

    def forward(self, embeddings: Mapping[str, Tensor], present: Tensor | None = None) -> FusionOutput:
        """Fuse one embedding per modality.

        Shape:
            - embeddings: ``{name: (B, D_m)}``; present: ``(B, M)`` bool, None = all present.
            - fused: ``(B, H)``; weights: None; info: ``empty (B,)``, ``slots (B, M, H)`` (tokens where absent) and
              ``proxies (B, M, H)``, what each slot is expected to hold, in the order of ``modalities``.

        Raises:
            ValueError: If an embedding is missing or has a wrong shape, or ``present`` is not ``(B, M)`` bool.
        """
        inputs, present_BM, empty_B = self.canonical_inputs(embeddings, present)
        slots_BMH = torch.stack(self.slots(inputs, present_BM), dim=1)
        here_BM1 = present_BM[..., None]
        context_BH = present_mean(slots_BMH.masked_fill(~here_BM1, 0.0), present_BM)
        token_BMH = torch.stack(self.slots(inputs, torch.zeros_like(present_BM)), dim=1)
        proxies_BMH = token_BMH + torch.stack([self.guess[name](context_BH) for name in self.canonical], dim=1)
        filled_BMH = torch.where(here_BM1, slots_BMH, proxies_BMH)
        info = {"empty": empty_B, "slots": self.user_order(slots_BMH), "proxies": self.user_order(proxies_BMH)}
        return FusionOutput(self.joint(filled_BMH.flatten(1), present_BM), None, info)

    def every_subset(self, inputs: list[Tensor], subsets: Tensor, readout: Readout | None) -> FusionOutput | None:
        """A proxy depends on the whole subset: nothing can be shared."""
        return None
