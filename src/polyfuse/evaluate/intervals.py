"""Paired differences with bootstrap intervals, resampling whole clusters.

Two models scored on the same rows are compared row by row; rows that belong together (styles of one emoji, visits of
one patient) are resampled together, or the interval is too narrow. With several seeds the seeds are resampled too.

Shapes: N rows, R seeds.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyfuse.data.keyed import seed_of
from polyfuse.evaluate.selective import Floats


class Interval(NamedTuple):
    """A mean difference and the interval around it."""

    mean: float
    low: float
    high: float


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of a - b over rows, with a percentile bootstrap interval.

    Args:
        a: ``(N,)`` or, over seeds, ``(R, N)`` values per row (losses, hits); NaN where a row has none.
        b: The same rows (and seeds) of the other side.
        groups: ``(N,)`` cluster of every row (strings or numbers); None = each row its own.
        draws: Bootstrap samples.
        level: Coverage of the interval.
        seed: Of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: If shapes differ or no row has a value on both sides.

    Example:
        >>> paired_difference([1, 1, 0, 1], [0, 1, 0, 0], ["x", "x", "y", "y"]).mean
        0.5
    """
    x, y = np.atleast_2d(np.asarray(a, np.float64)), np.atleast_2d(np.asarray(b, np.float64))
    if x.shape != y.shape or x.ndim != 2:
        raise ValueError(f"a and b must both be (N,) or (R, N), got {np.shape(a)} and {np.shape(b)}")
    difference = x - y
    known = np.isfinite(difference.sum(axis=0))
    if not known.any():
        raise ValueError("no row has a value on both sides")
    difference = difference[:, known]
    cluster = _clusters(groups, len(known))[known]
    _, cluster = np.unique(cluster, return_inverse=True)
    count = np.bincount(cluster).astype(np.float64)
    sums = np.stack([np.bincount(cluster, d) for d in difference])
    rng = np.random.default_rng(seed_of(seed, "bootstrap"))
    samples = []
    for _ in range(draws):
        times = _times(rng, len(count))
        picked = rng.integers(0, len(sums), len(sums)) if len(sums) > 1 else np.zeros(1, np.int64)
        samples.append((sums @ times)[picked].mean() / (count @ times))
    return Interval(float(difference.mean()), *_percentiles(np.array(samples), level))


def paired_statistic(
    statistic_a: Callable[[Floats], float],
    statistic_b: Callable[[Floats], float],
    groups: ArrayLike,
    *,
    draws: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """``paired_difference`` for a metric that is no mean over rows (average precision, R², ECE).

    Args:
        statistic_a: From row weights ``(N,)`` to the metric, such as ``lambda w: macro_ap(probs, target, w)``.
        statistic_b: The same of the other side.
        groups: ``(N,)`` cluster of every row.
        draws: Bootstrap samples; ones in which a side is not finite are left out.
        level: Coverage of the interval.
        seed: Of the resampling.

    Raises:
        ValueError: If no sample is finite.
    """
    _, cluster = np.unique(np.asarray(groups), return_inverse=True)
    rng = np.random.default_rng(seed_of(seed, "bootstrap"))
    ones = np.ones(len(cluster))
    samples = []
    for _ in range(draws):
        weight = _times(rng, int(cluster.max()) + 1)[cluster]
        samples.append(statistic_a(weight) - statistic_b(weight))
    finite = np.array(samples)[np.isfinite(samples)]
    if not len(finite):
        raise ValueError(f"the statistics are not finite in any of {draws} bootstrap samples")
    return Interval(float(statistic_a(ones) - statistic_b(ones)), *_percentiles(finite, level))


def _clusters(groups: ArrayLike | None, rows: int) -> NDArray[np.int64]:
    if groups is None:
        return np.arange(rows)
    names, cluster = np.unique(np.asarray(groups), return_inverse=True)
    if len(cluster) != rows:
        raise ValueError(f"groups must be (N,) = ({rows},), got ({len(cluster)},) with {len(names)} clusters")
    return cluster.astype(np.int64)


def _times(rng: np.random.Generator, clusters: int) -> Floats:
    """How often each cluster is in a sample of as many, drawn with replacement."""
    return np.bincount(rng.integers(0, clusters, clusters), minlength=clusters).astype(np.float64)


def _percentiles(samples: Floats, level: float) -> tuple[float, float]:
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
