"""The gate of the AECF paper: a two-layer network over all embeddings weighs the modalities.

Shapes: B batch, M modalities, D width. Masks: True = present; ``drop`` is True = dropped.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyfuse import functional as PF
from polyfuse.layers.curriculum_masking import CurriculumMasking
from polyfuse.layers.pooling import replace_empty


class EntropyGate(nn.Module):
    """Fuse as ``z = sum_m p_m W_m h_m``; ``p`` is the softmax of a two-layer gate over all ``h``, at a temperature.

    Source: arXiv 2505.15417, the fusion operator and the two-layer gate (figure 1). Differs: absent embeddings are zero
    in the gate's input and weigh exactly zero; the temperature is ``softplus(t) + min_temperature`` instead of a value
    clamped in place; a dropped modality is hidden from the gate too, which then runs twice in training.

    Args:
        embed_dim: Width D of every embedding.
        num_modalities: M.
        hidden_dim: Width of the gate's hidden layer, None = D.
        curriculum_masking: Drops modalities in training; None = no masking.
        temperature: Initial temperature of the softmax.
        min_temperature: Its floor.
        on_empty: What a row with nothing present gives: ``learned`` = a learned null token, ``zero`` = zeros.
        device: Where the parameters live.
        dtype: Their type.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> gate = EntropyGate(embed_dim=8, num_modalities=2)
        >>> fused, info = gate(torch.ones(5, 2, 8), torch.tensor([[True, False]] * 5), return_info=True)
        >>> fused.shape, info["attention_weights"][0]
        (torch.Size([5, 8]), tensor([1., 0.], grad_fn=<SelectBackward0>))
    """

    def __init__(
        self,
        embed_dim: int,
        num_modalities: int,
        hidden_dim: int | None = None,
        curriculum_masking: CurriculumMasking | None = None,
        *,
        temperature: float = 1.0,
        min_temperature: float = 0.1,
        on_empty: str = "learned",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"embed_dim": embed_dim, "num_modalities": num_modalities, "hidden_dim": hidden_dim}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ValueError(f"{name} must be positive, got {size}")
        if not 0.0 < min_temperature < temperature:
            raise ValueError(f"need 0 < min_temperature < temperature, got {min_temperature} and {temperature}")
        if on_empty not in ("learned", "zero"):
            raise ValueError(f"on_empty must be 'learned' or 'zero', got {on_empty!r}")
        hidden_dim = embed_dim if hidden_dim is None else hidden_dim
        width = embed_dim * num_modalities
        self.embed_dim, self.num_modalities = embed_dim, num_modalities
        self.min_temperature = min_temperature
        self.hidden = nn.Linear(width, hidden_dim, device=device, dtype=dtype)
        self.scores = nn.Linear(hidden_dim, num_modalities, device=device, dtype=dtype)
        self.values = nn.Linear(width, embed_dim, bias=False, device=device, dtype=dtype)  # the W_m side by side
        start = math.log(math.expm1(temperature - min_temperature))  # inverse of softplus
        self.raw_temperature = nn.Parameter(torch.full((), start, device=device, dtype=dtype))
        self.null: nn.Parameter | None = None
        if on_empty == "learned":
            self.null = nn.Parameter(torch.zeros(embed_dim, device=device, dtype=dtype))
        self.curriculum_masking = curriculum_masking

    @property
    def temperature(self) -> Tensor:
        """Current temperature of the softmax, a scalar above ``min_temperature``."""
        return F.softplus(self.raw_temperature) + self.min_temperature

    def _gate(self, features: Tensor, kept: Tensor) -> Tensor:
        scores = self.scores(self.hidden(features.flatten(1)).relu())
        return PF.masked_softmax(PF.at_least_float32(scores) / self.temperature, kept)

    def forward(
        self,
        features: Tensor,
        present: Tensor | None = None,
        *,
        drop: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_info: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Fuse.

        Args:
            features: ``(B, M, D)``.
            present: ``(B, M)`` bool, None = all present.
            drop: ``(B, M)`` bool to apply instead of sampling; a row it would empty loses nothing.
            generator: Source of randomness for the drop; eager only.
            return_info: Also return the dict that ``FusionPool`` returns (without ``head_entropy``).

        Returns:
            ``(B, D)``, with ``return_info`` also the dict.

        Raises:
            ValueError: If a shape or type does not fit.
        """
        expected = (self.num_modalities, self.embed_dim)
        if features.ndim != 3 or features.shape[1:] != expected:
            raise ValueError(f"features must be (B, M, D) with (M, D) = {expected}, got {tuple(features.shape)}")
        shape = features.shape[:2]
        if present is None:
            here = torch.ones(shape, dtype=torch.bool, device=features.device)
        elif present.dtype != torch.bool or present.shape != shape:
            got = f"{present.dtype} {tuple(present.shape)}"
            raise ValueError(f"present must be bool of shape (B, M) = {tuple(shape)}, got {got}")
        else:
            here = present
            features = features.masked_fill(~here[..., None], 0.0)
        masking = self.curriculum_masking
        first = weights = self._gate(features, here)
        kept = here
        if drop is not None:
            PF.check_drop(drop, shape)
        elif masking is not None and masking.active:
            drop = masking.sample_drop(first, here, generator)
        if drop is not None:
            kept = PF.surviving(here, drop)
            features = features.masked_fill(~kept[..., None], 0.0)
            weights = self._gate(features, kept)
        fused = self.values((features * weights.to(features.dtype)[..., None]).flatten(1))
        fused = replace_empty(fused, present, self.null)
        if not return_info:
            return fused
        info = {"attention_weights": first, "empty": ~here.any(dim=-1)}
        if masking is not None:
            described = masking.describe(first[:, None], here, here & ~kept)
            info.update({name: x.squeeze(1) for name, x in described.items()})
        info["masked_attention_weights"] = weights.detach()
        info["drop"] = here & ~kept
        return fused, info
