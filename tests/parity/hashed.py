"""Weights and inputs made from names alone: the same numbers in every environment, so that no weight file is needed."""

import math
import zlib
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch

_POOL = 1_000_003  # a prime: rows of a matrix never line up with the period


@cache
def pool() -> np.ndarray:
    """Numbers in [-1, 1), by the splitmix64 hash of 0, 1, 2, ..."""
    with np.errstate(over="ignore"):
        z = np.arange(1, _POOL + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(40)).astype(np.float64) / 2.0**23 - 1.0).astype(np.float32)


def hashed(name: str, shape: Sequence[int]) -> torch.Tensor:
    """Uniform in [-1, 1), told by the name."""
    start = zlib.crc32(name.encode()) % _POOL
    flat = np.resize(np.roll(pool(), -start), math.prod(shape))
    return torch.from_numpy(flat.copy()).reshape(tuple(shape))


def weight(name: str, like: torch.Tensor) -> torch.Tensor:
    """A plausible value for the tensor of that name: variances positive, scales near 1, matrices by their fan-in."""
    value, last = hashed(name, like.shape), name.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.full_like(like, 7, device="cpu")
    if last == "running_var":
        return 1 + value / 2
    if last == "logit_scale":
        return 3.9 + value / 10
    if "layer_scale" in name:
        return 0.1 + value / 20
    if last in ("bias", "in_proj_bias", "running_mean", "cls_token", "pos_embed", "positional_embedding"):
        return value / 10
    if like.ndim == 1:
        return 1 + value / 5
    return value * (3 / math.prod(like.shape[1:])) ** 0.5


def weights(state: Mapping[str, torch.Tensor], zero: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """One value per name; ``zero`` names what stays zero."""
    return {k: torch.zeros(v.shape) if k in zero else weight(k, v) for k, v in state.items()}


def keys_digest(state: Mapping[str, torch.Tensor]) -> int:
    """A number that changes with any name or shape."""
    return zlib.crc32("\n".join(sorted(f"{k} {tuple(v.shape)}" for k, v in state.items())).encode())


def images(count: int, side: int) -> torch.Tensor:
    """Pixels in [0, 1)."""
    return (hashed(f"images {side}", (count, 3, side, side)) + 1) / 2


def texts(lengths: Sequence[int], context: int, vocab: int) -> torch.Tensor:
    """Texts of those lengths, start and end included, padded with 0."""
    ids = torch.zeros(len(lengths), context, dtype=torch.long)
    for row, length in enumerate(lengths):
        inner = ((hashed(f"text {row}", (length - 2,)) + 1) / 2 * (vocab - 3)).long() + 1
        ids[row, :length] = torch.cat([torch.tensor([vocab - 2]), inner, torch.tensor([vocab - 1])])
    return ids


def probe(name: str, value: torch.Tensor) -> float:
    """One number out of a tensor, by products with hashed numbers."""
    return float((value.double().flatten() * hashed(f"probe {name}", (value.numel(),)).double()).sum())
