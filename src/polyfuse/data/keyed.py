"""Random draws without a random state: every number is a hash of (seed, stream, epoch, row key, column).

A draw about a row is the same whatever the batch size, the order of the rows, the worker, the rank or the moment at
which a run was resumed. There is no generator to save in a checkpoint.

Shapes: B rows, n draws per row.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

_QUANTILES = 1 << 16


def _signed(value: int) -> int:
    """The int64 that has the bits of an unsigned 64-bit integer."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch shifts the sign in, so mask it away."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators")."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _hash(seed: int, stream: str, epoch: int, keys: Tensor, n: int) -> Tensor:
    """``(B, n)`` int64, all 64 bits random."""
    if keys.ndim != 1 or keys.dtype != torch.int64:
        raise ValueError(f"keys must be int64 of shape (B,), got {keys.dtype} of shape {tuple(keys.shape)}")
    base = _signed(_digest(seed, stream, epoch))
    columns = torch.arange(1, n + 1, device=keys.device) * _GOLDEN
    return _mix(_mix(keys + base)[:, None] + columns)


def uniform(seed: int, stream: str, epoch: int, keys: Tensor, n: int) -> Tensor:
    """Uniform draws in [0, 1), one row of them per key.

    Args:
        seed: The run's seed.
        stream: What the draws are for, e.g. ``"dropout"``: streams are independent.
        epoch: Another epoch gives other draws.
        keys: ``(B,)`` int64, the identity of each row (``Batch.keys``).
        n: Draws per row.

    Returns:
        ``(B, n)`` float32 on the keys' device, multiples of 2**-24.

    Raises:
        ValueError: If ``keys`` is not int64 of shape (B,).

    Example:
        >>> keys = torch.tensor([3, 1, 2])
        >>> draws = uniform(0, "dropout", 0, keys, 4)
        >>> bool((uniform(0, "dropout", 0, keys[1:], 4) == draws[1:]).all())
        True
    """
    return _shift_right(_hash(seed, stream, epoch, keys, n), 40).to(torch.float32) * 2.0**-24


def normal(seed: int, stream: str, epoch: int, keys: Tensor, n: int) -> Tensor:
    """Standard normal draws, ``(B, n)`` float32, keyed as ``uniform``.

    Sixteen bits pick one of 65,536 quantiles of equal mass: exact on every device and batch split, which a logarithm
    and a cosine are not, and four draws for the price of one hash. The largest magnitude is 4.32.
    """
    bits = _hash(seed, stream, epoch, keys, -(-n // 4))
    parts = torch.stack([(bits >> shift) & (_QUANTILES - 1) for shift in (0, 16, 32, 48)], dim=-1)
    return _normal_quantiles().to(keys.device)[parts.flatten(1)[:, :n]]


@lru_cache(maxsize=1)
def _normal_quantiles() -> Tensor:
    middle = (torch.arange(_QUANTILES // 2, _QUANTILES, dtype=torch.float64) + 0.5) / _QUANTILES
    upper = torch.special.ndtri(middle).to(torch.float32)
    return torch.cat([-upper.flip(0), upper])


def permutation(seed: int, stream: str, epoch: int, n: int) -> Tensor:
    """A random order of ``range(n)``, int64 ``(n,)``.

    Example:
        >>> sorted(permutation(0, "order", 1, 5).tolist())
        [0, 1, 2, 3, 4]
    """
    return _hash(seed, stream, epoch, torch.arange(n), 1)[:, 0].argsort(stable=True)


def _digest(*parts: int | str) -> int:
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def seed_of(*parts: int | str) -> int:
    """A seed for ``torch.manual_seed`` made of numbers and words: 63 bits, the same on every machine.

    Example:
        >>> seed_of(0, "step", 7) == seed_of(0, "step", 7) != seed_of(0, "step", 8)
        True
    """
    return _digest(*parts) >> 1


def key_of(strings: Sequence[str]) -> Tensor:
    """A stable 63-bit key per string, int64 ``(B,)``: the row keys of a table with an id column.

    Example:
        >>> key_of(["a", "b", "a"]).unique().numel()
        2
    """
    digests = [hashlib.blake2b(s.encode("utf-8", "surrogatepass"), digest_size=8).digest() for s in strings]
    return torch.tensor([int.from_bytes(digest, "little") >> 1 for digest in digests], dtype=torch.int64)
