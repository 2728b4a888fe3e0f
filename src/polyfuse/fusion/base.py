"""The contract every embedding-level fusion keeps, and the checks they share.

Shapes: B batch, M modalities, D embedding width. Masks: True = present.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class FusionOutput(NamedTuple):
    """What a fusion returns.

    Attributes:
        fused: ``(B, D_out)``.
        weights: ``(B, M)`` share of each modality, exactly zero where absent; None where the fusion has no weights.
        info: Further tensors by name (tensors only, so that the output exports and takes hooks).
    """

    fused: Tensor
    weights: Tensor | None
    info: dict[str, Tensor]


def check_modalities(modalities: Sequence[str]) -> tuple[str, ...]:
    """Return the names as a tuple; refuse none, duplicates and names that cannot key a module."""
    names = tuple(modalities)
    if not names:
        raise ValueError("modalities must name at least one modality, got none")
    if len(set(names)) != len(names):
        raise ValueError(f"modalities must be distinct, got {names}")
    for name in names:
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(f"a modality name must be a non-empty string without '.', got {name!r}")
    return names


def embedding_widths(modalities: Sequence[str], embed_dim: int | Mapping[str, int]) -> dict[str, int]:
    """Width of every modality's embedding, in ``modalities`` order, from one int or one per name."""
    if isinstance(embed_dim, int):
        widths = dict.fromkeys(modalities, embed_dim)
    else:
        missing = [name for name in modalities if name not in embed_dim]
        if missing:
            raise ValueError(f"embed_dim lacks {missing}, got {dict(embed_dim)}")
        widths = {name: int(embed_dim[name]) for name in modalities}
    for name, width in widths.items():
        if width < 1:
            raise ValueError(f"embed_dim of '{name}' must be positive, got {width}")
    return widths


def check_embeddings(
    embeddings: Mapping[str, Tensor], modalities: Sequence[str], present: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """Order the embeddings, zero what is absent, and return them with a ``(B, M)`` bool presence.

    The zeroing is a ``where``: multiplying by zero would let NaN through.

    Raises:
        ValueError: If ``embeddings`` lacks a modality, batch sizes differ, or ``present`` is not ``(B, M)`` bool.
    """
    for name in modalities:
        if name not in embeddings:
            raise ValueError(f"embeddings lack '{name}', got {sorted(embeddings)}, expected {list(modalities)}")
    ordered = [embeddings[name] for name in modalities]
    batch = ordered[0].shape[0]
    for name, x_BD in zip(modalities, ordered, strict=True):
        if x_BD.ndim != 2 or x_BD.shape[0] != batch:
            raise ValueError(f"embedding of '{name}' must be (B, D) with B = {batch}, got {tuple(x_BD.shape)}")
    if present is None:
        return ordered, torch.ones(batch, len(ordered), dtype=torch.bool, device=ordered[0].device)
    if present.dtype != torch.bool:
        raise ValueError(f"present must be bool (True = here), got {present.dtype}")
    if present.shape != (batch, len(ordered)):
        raise ValueError(f"present must have shape (B, M) = ({batch}, {len(ordered)}), got {tuple(present.shape)}")
    return [x.masked_fill(~present[:, m, None], 0.0) for m, x in enumerate(ordered)], present
