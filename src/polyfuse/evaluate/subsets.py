"""Subsets of modalities: their names, their list, and how often each occurs when inputs are dropped at random.

Shapes: S subsets, M modalities, N rows. Masks: True = present.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from polyfuse.data.keyed import uniform
from polyfuse.evaluate.selective import Floats

EXHAUSTIVE = 6
"""Up to this many modalities every subset is evaluated."""

SAMPLED = 63
"""Above that, this many subsets."""

Masks = NDArray[np.bool_]


def subset_name(mask: ArrayLike, modalities: Sequence[str]) -> str:
    """Names joined by "+"; "none" for the empty subset.

    Example:
        >>> subset_name([True, False, True], ["image", "audio", "text"])
        'image+text'
    """
    chosen = [name for name, here in zip(modalities, np.asarray(mask, bool), strict=True) if here]
    return "+".join(chosen) or "none"


def mask_codes(present: ArrayLike) -> NDArray[np.int64]:
    """One integer per mask, bit j = modality j.

    Raises:
        ValueError: For more than 62 modalities.
    """
    masks = np.asarray(present, bool)
    if masks.shape[-1] > 62:
        raise ValueError(f"masks of at most 62 modalities have a code, got {masks.shape[-1]}")
    return masks.astype(np.int64) @ (np.int64(1) << np.arange(masks.shape[-1], dtype=np.int64))


def all_subsets(modalities: int, *, seed: int = 0, sampled: int = SAMPLED, exhaustive: int = EXHAUSTIVE) -> Masks:
    """Every non-empty subset up to ``exhaustive`` modalities; above, ``sampled`` of them.

    The sampled list always holds all singletons, all subsets that lack one modality and the complete one; the rest is
    drawn by turns from the sizes between, each of a size with equal chance.

    Returns:
        ``(S, M)`` bool, small subsets first, the complete one last.

    Example:
        >>> all_subsets(2).tolist()
        [[True, False], [False, True], [True, True]]
    """
    if modalities < 1:
        raise ValueError(f"modalities must be at least 1, got {modalities}")
    if modalities <= exhaustive:
        codes = np.arange(1, 1 << modalities)
        masks = ((codes[:, None] >> np.arange(modalities)) & 1).astype(bool)
    else:
        masks = _sample_subsets(modalities, seed, sampled)
    return masks[np.argsort(masks.sum(axis=1), kind="stable")]


def subsets_of(
    present: ArrayLike,
    *,
    seed: int = 0,
    min_rows: int = 20,
    at_most: int = SAMPLED,
    sampled: int = SAMPLED,
    exhaustive: int = EXHAUSTIVE,
) -> Masks:
    """The subsets to evaluate on rows with these holes.

    They are ``all_subsets``; above ``exhaustive`` modalities also the patterns that ``min_rows`` rows or more have (the
    ``at_most`` most frequent), so that calibration has thresholds for them.
    """
    rows = np.asarray(present, bool)
    masks = all_subsets(rows.shape[1], seed=seed, sampled=sampled, exhaustive=exhaustive)
    if rows.shape[1] <= exhaustive:
        return masks
    codes, first, counts = np.unique(mask_codes(rows), return_index=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:at_most]
    extra = [first[i] for i in order if counts[i] >= min_rows and codes[i] and codes[i] not in mask_codes(masks)]
    masks = np.concatenate([masks, rows[extra]])
    return masks[np.argsort(masks.sum(axis=1), kind="stable")]


def drop_weights(subsets: ArrayLike, rate: float) -> Floats:
    """P(S | rate) for every listed subset, when each input is dropped with probability ``rate`` and one survives.

    P(S) ∝ (1 - rate)^|S| rate^(M - |S|) over non-empty S; rate 0.5 is uniform, rate 1 the limit (one survivor, chosen
    uniformly). Where not all subsets of a size are listed, those that are stand for it in equal parts.

    Returns:
        ``(S,)``, sums to 1.

    Example:
        >>> drop_weights(all_subsets(2), 0.5).round(4).tolist()
        [0.3333, 0.3333, 0.3333]
    """
    masks = np.asarray(subsets, bool)
    everyone = np.ones((1, masks.shape[1]), bool)
    return row_drop_weights(masks, everyone, rate)[:, 0]


def row_drop_weights(subsets: ArrayLike, present: ArrayLike, rate: float) -> Floats:
    """``drop_weights`` for rows that have holes already: only subsets of what a row has are left of it.

    Args:
        subsets: ``(S, M)``.
        present: ``(N, M)``.
        rate: Probability in [0, 1] that a present input is dropped.

    Returns:
        ``(S, N)``; a column sums to 1, or to 0 where no listed subset can occur (an empty row).

    Raises:
        ValueError: If ``rate`` is not in [0, 1].
    """
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"rate must be in [0, 1], got {rate}")
    masks, rows = np.asarray(subsets, bool), np.asarray(present, bool)
    valid = contained(masks, rows)
    sizes, held = masks.sum(axis=1), rows.sum(axis=1)
    modalities = masks.shape[1]
    law = np.zeros((modalities + 1, modalities + 1))  # law[k, n]: P(k of n survive), k >= 1
    for n in range(1, modalities + 1):
        for k in range(1, n + 1):
            law[k, n] = float(k == 1) if rate == 1.0 else math.comb(n, k) * (1 - rate) ** k * rate ** (n - k)
    listed = np.stack([valid[sizes == k].sum(axis=0) for k in range(modalities + 1)])  # (M+1, N) subsets of each size
    share = law[:, held] / np.maximum(listed, 1)
    weights = np.where(valid, share[sizes], 0.0)
    total = weights.sum(axis=0)
    return weights / np.where(total > 0, total, 1.0)


def contained(subsets: ArrayLike, present: ArrayLike) -> Masks:
    """``(S, N)`` bool: the row has every modality of the subset."""
    masks, rows = np.asarray(subsets, bool), np.asarray(present, bool)
    lacking = masks.astype(np.float32) @ (~rows).astype(np.float32).T
    return np.asarray(lacking == 0)


def _sample_subsets(modalities: int, seed: int, sampled: int) -> Masks:
    eye = np.eye(modalities, dtype=bool)
    masks = np.concatenate([eye, ~eye, np.ones((1, modalities), bool)])
    sizes = list(range(2, modalities - 1))
    middle = sum(math.comb(modalities, k) for k in sizes)
    want = min(sampled, len(masks) + middle)
    keys = torch.arange(max(4 * sampled, 64))
    for epoch in range(1000):
        if len(masks) >= want:
            break
        draws = uniform(seed, "subsets", epoch, keys, modalities).numpy()
        rank = draws.argsort(axis=1).argsort(axis=1)
        size = np.array(sizes)[np.arange(len(keys)) % len(sizes)]
        masks = np.concatenate([masks, rank < size[:, None]])
        _, first = np.unique(mask_codes(masks), return_index=True)
        masks = masks[np.sort(first)]
    return masks[: max(want, 2 * modalities + 1)]
