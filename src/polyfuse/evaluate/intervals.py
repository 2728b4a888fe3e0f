"""Paired differences with bootstrap intervals, resampling whole clusters.

Two models scored on the same rows are compared row by row; rows that belong together (styles of one emoji, visits of
one patient) are resampled together, or the interval is too narrow. With several seeds the seeds are resampled too.

Shapes: N rows, R seeds.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyfuse.data.keyed import seed_of
from polyfuse.evaluate.selective import Floats


class Interval(NamedTuple):
    """A mean difference, the interval around it, and the two-sided bootstrap p-value of no difference."""

    mean: float
    low: float
    high: float
    p: float = math.nan


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of a - b over rows, with a percentile bootstrap interval and ``p_value``.

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
    return _interval(float(difference.mean()), np.array(samples), level)


def mean_intervals(
    values: ArrayLike, groups: ArrayLike | None = None, *, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> list[Interval]:
    """Means of many quantities over the same rows, all from the same resamples: one matrix product.

    Args:
        values: ``(K, N)`` one paired difference per row and quantity; NaN where a row has none.
        groups: ``(N,)`` cluster of every row; None = each row its own.
        draws: Bootstrap samples.
        level: Coverage of the intervals.
        seed: Of the resampling.

    Returns:
        K intervals; NaN throughout for a quantity that no row has.

    Example:
        >>> mean_intervals([[1, 1, 1], [0, 2, 1]])[0]
        Interval(mean=1.0, low=1.0, high=1.0, p=0.001998001998001998)
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 2:
        raise ValueError(f"values must be (K, N), got {x.shape}")
    known = np.isfinite(x)
    cluster = _clusters(groups, x.shape[1])
    clusters = int(cluster.max(initial=-1)) + 1
    filled = np.where(known, x, 0.0)
    sums = np.stack([np.bincount(cluster, row, clusters) for row in (*filled, *known.astype(np.float64))], axis=1)
    rng = np.random.default_rng(seed_of(seed, "bootstrap"))
    step = max(1, (1 << 22) // max(clusters, 1))
    parts = []
    for start in range(0, draws if clusters else 0, step):
        size = min(step, draws - start)
        picked = rng.integers(0, clusters, (size, clusters)) + clusters * np.arange(size)[:, None]
        times = np.bincount(picked.ravel(), minlength=size * clusters).reshape(size, clusters)
        parts.append(times.astype(np.float64) @ sums)
    drawn = np.concatenate(parts) if parts else np.zeros((0, 2 * len(x)))
    out = []
    for k in range(len(x)):
        total, count = drawn[:, k], drawn[:, len(x) + k]
        samples = total[count > 0] / count[count > 0]
        mean = float(filled[k].sum() / known[k].sum()) if known[k].any() else math.nan
        out.append(_interval(mean, samples, level) if len(samples) else Interval(math.nan, math.nan, math.nan))
    return out


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down correction: adjusted p-values, in the order given; not below the plain ones, not above 1.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure": the i-th smallest of k, times
    k - i + 1, made monotone. NaN (not tested) stays NaN and counts for nothing.

    Example:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or bool(((p < 0) | (p > 1)).any()):
        raise ValueError(f"p_values must be (K,) within [0, 1], got {p}")
    out = np.full(p.shape, math.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    out[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return out


def p_value(samples: ArrayLike) -> float:
    """Two-sided bootstrap p-value of zero: twice the smaller share of samples on one side of it, zero included.

    One is added to both counts (Davison and Hinkley 1997, equation 4.11), so that it is never 0.

    Example:
        >>> p_value([0.1] * 19), p_value([-1.0, 0.0, 1.0])
        (0.1, 1.0)
    """
    drawn = np.asarray(samples, np.float64)
    tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(2 * (1 + tail) / (1 + len(drawn)), 1.0)


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
    return _interval(float(statistic_a(ones) - statistic_b(ones)), finite, level)


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


def _interval(mean: float, samples: Floats, level: float) -> Interval:
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), p_value(samples))
