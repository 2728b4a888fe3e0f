"""Calibration errors and reliability diagrams: does a confidence of 0.8 mean right in 80 of 100 rows?

Shapes: N rows, K columns (labels or classes) that are judged one by one.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyfuse.evaluate.selective import Floats, tie_means

BINS = 15


def calibration_error(
    confidence: ArrayLike,
    outcome: ArrayLike,
    *,
    bins: int = BINS,
    equal_mass: bool = False,
    weight: ArrayLike | None = None,
) -> float:
    """Expected calibration error Σ_b (n_b / n) |mean outcome - mean confidence|; columns are averaged.

    Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3; equal mass: Nixon et al. 2019, arXiv
    1904.01685. Differs: bins are closed below, [lo, hi), the last one on both sides. The estimate is biased upwards
    when rows are few: read it beside NLL or Brier.

    Args:
        confidence: ``(N,)`` or ``(N, K)`` in [0, 1].
        outcome: Same shape; 1 where the event that the confidence speaks of came true.
        bins: Number of bins.
        equal_mass: Bins of equal row counts, not of equal width; rows of equal confidence count alike in whatever bin.
        weight: ``(N,)`` row weights.

    Raises:
        ValueError: If shapes differ or a confidence leaves [0, 1].

    Example:
        >>> calibration_error([0.25, 0.25, 0.75, 0.75], [0, 1, 1, 1], bins=2)  # |0.5 - 0.25| and |1 - 0.75|
        0.25
    """
    c_NK, y_NK, w_N = _columns(confidence, outcome, weight)
    n, columns = c_NK.shape
    if n == 0 or columns == 0:
        return float("nan")
    index_NK, y_NK = _bin_index(c_NK, y_NK, w_N, bins, equal_mass)
    flat = (index_NK + bins * np.arange(columns)).ravel()
    gap = np.bincount(flat, (w_N[:, None] * (c_NK - y_NK)).ravel(), minlength=bins * columns)
    return float(np.abs(gap).sum() / columns)


def reliability_bins(
    confidence: ArrayLike, outcome: ArrayLike, *, bins: int = BINS, equal_mass: bool = False
) -> list[dict[str, float]]:
    """Non-empty bins in order, columns pooled: ``{"confidence": mean, "accuracy": mean outcome, "count": rows}``."""
    c_NK, y_NK, _ = _columns(confidence, outcome, None)
    c, y = c_NK.ravel(), y_NK.ravel()
    if not len(c):
        return []
    index_NK, y_NK = _bin_index(c[:, None], y[:, None], np.full(len(c), 1 / len(c)), bins, equal_mass)
    index = index_NK[:, 0]
    count = np.bincount(index, minlength=bins)
    sums = np.bincount(index, c, minlength=bins), np.bincount(index, y_NK[:, 0], minlength=bins)
    return [
        {"confidence": float(sums[0][b] / count[b]), "accuracy": float(sums[1][b] / count[b]), "count": int(count[b])}
        for b in np.flatnonzero(count)
    ]


def _columns(confidence: ArrayLike, outcome: ArrayLike, weight: ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    c, y = np.asarray(confidence, np.float64), np.asarray(outcome, np.float64)
    if c.shape != y.shape or c.ndim not in (1, 2):
        raise ValueError(f"confidence and outcome must both be (N,) or (N, K), got {c.shape} and {y.shape}")
    if c.size and not (c.min() >= 0.0 and c.max() <= 1.0 + 1e-9):
        raise ValueError(f"confidence must lie in [0, 1], got {c.min()} to {c.max()}")
    w = np.ones(len(c)) if weight is None else np.asarray(weight, np.float64)
    if w.shape != (len(c),):
        raise ValueError(f"weight must be (N,) = ({len(c)},), got {w.shape}")
    keep = w > 0
    if not keep.all():
        c, y, w = c[keep], y[keep], w[keep]
    if c.ndim == 1:
        c, y = c[:, None], y[:, None]
    return c, y, w / w.sum() if len(w) else w


def _bin_index(
    c_NK: Floats, y_NK: Floats, w_N: Floats, bins: int, equal_mass: bool
) -> tuple[NDArray[np.int64], Floats]:
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if not equal_mass:
        return np.minimum((c_NK * bins).astype(np.int64), bins - 1), y_NK
    index_NK, tied_NK = np.empty(c_NK.shape, np.int64), np.empty_like(y_NK)
    for k in range(c_NK.shape[1]):
        order = np.argsort(c_NK[:, k], kind="stable")
        before = np.cumsum(w_N[order]) - w_N[order]
        index_NK[order, k] = np.minimum((before * bins + 1e-9).astype(np.int64), bins - 1)
        tied_NK[order, k] = tie_means(c_NK[order, k], y_NK[order, k], w_N[order])
    return index_NK, tied_NK
