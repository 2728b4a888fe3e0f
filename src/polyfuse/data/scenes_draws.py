"""Numbers for the scene worlds without a random state: every draw is a hash of (seed, stream, scene, column).

The same splitmix64 as :mod:`polyfuse.data.keyed`, in numpy: scene 7 is scene 7 whether ten or ten thousand are made.

Shapes: N scenes, J choices.
"""

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def bits(seed: int, stream: str, keys: np.ndarray, n: int) -> np.ndarray:
    """``(N, n)`` uint64, all 64 bits random, one row per key."""
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    start = np.frombuffer(digest[:8], dtype="<u8").astype(np.uint64)
    rows = _mix(np.asarray(keys).astype(np.int64).view(np.uint64) + start)
    return _mix(rows[:, None] + np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN)


def uniform(seed: int, stream: str, keys: np.ndarray, n: int) -> np.ndarray:
    """``(N, n)`` float64 in [0, 1), multiples of 2**-53, one row per key.

    Example:
        >>> few, many = (uniform(0, "place", np.arange(size), 3) for size in (2, 5))
        >>> bool((few == many[:2]).all())
        True
    """
    return (bits(seed, stream, keys, n) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def pick(weights: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """One choice per row in proportion to its weights; -1 where no choice has weight.

    Args:
        weights: ``(N, J)``, not negative.
        draws: ``(N,)`` in [0, 1).

    Returns:
        ``(N,)`` int64.
    """
    sums = np.cumsum(weights, axis=1, dtype=np.float64)
    total = sums[:, -1]
    chosen = (sums > (draws * total)[:, None]).argmax(axis=1)
    return np.where(total > 0, chosen, -1)
