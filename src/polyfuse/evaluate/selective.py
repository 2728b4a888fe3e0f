"""Selective prediction: how the error falls when the least confident rows are refused.

Every function takes a confidence and a loss per row, so that it serves any task: the error (0 or 1) in classification,
the Hamming loss in multilabel, the squared error in regression. Rows of equal confidence have no order: each takes the
mean loss of its ties, which is the expectation over all their orders, so that no result depends on the order of rows.

Shapes: N rows.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class Accepted(NamedTuple):
    """Rows in falling order of confidence.

    Attributes:
        confidence: ``(n,)``.
        weight: ``(n,)``, sums to 1.
        coverage: ``(n,)`` share of rows at least this far up.
        accepted_loss: ``(n,)`` loss accepted so far, as a share of all rows.
        last: ``(n,)`` bool, the last row of its ties: only there can a threshold cut.
    """

    confidence: Floats
    weight: Floats
    coverage: Floats
    accepted_loss: Floats
    last: NDArray[np.bool_]


def tie_means(sorted_key: Floats, values: Floats, weight: Floats) -> Floats:
    """Replace every value by the weighted mean of the values whose (sorted) key is equal.

    Example:
        >>> tie_means(np.array([1.0, 2.0, 2.0]), np.array([5.0, 0.0, 1.0]), np.ones(3)).tolist()
        [5.0, 0.5, 0.5]
    """
    if not len(sorted_key):
        return values
    block = np.cumsum(np.r_[False, sorted_key[1:] != sorted_key[:-1]])
    return (np.bincount(block, weight * values) / np.bincount(block, weight))[block]


def accept(confidence: ArrayLike, loss: ArrayLike, weight: ArrayLike | None = None) -> Accepted:
    """Sort rows by falling confidence and accumulate what is accepted.

    Raises:
        ValueError: If shapes differ.
    """
    c, x, w = _checked(confidence, loss, weight)
    order = np.argsort(-c, kind="stable")
    c, x, w = c[order], x[order], w[order]
    x = tie_means(c, x, w)
    last = np.r_[c[1:] != c[:-1], True][: len(c)]
    return Accepted(c, w, np.cumsum(w), np.cumsum(w * x), last)


def area_under_risk_coverage(confidence: ArrayLike, loss: ArrayLike, weight: ArrayLike | None = None) -> float:
    """AURC = (1/n) Σ_i (loss of the i most confident) / i.

    Source: Geifman et al. 2019, https://arxiv.org/abs/1805.08206.

    Example:
        >>> round(area_under_risk_coverage([0.9, 0.8, 0.7], [0, 1, 0]), 4)  # (0 + 1/2 + 1/3) / 3
        0.2778
    """
    return _area(accept(confidence, loss, weight))


def excess_area(confidence: ArrayLike, loss: ArrayLike, weight: ArrayLike | None = None) -> float:
    """E-AURC: AURC minus that of the best order.

    For a 0/1 loss the best order has the area r + (1 - r) ln(1 - r) in the limit of many rows, r the overall error
    (Geifman et al. 2019), which is what other libraries subtract: with few rows a perfect order is not exactly 0. For
    other losses the exact area of the rows in rising order of loss is subtracted.
    """
    _, x, w = _checked(confidence, loss, weight)
    return area_under_risk_coverage(confidence, loss, weight) - _least_area(x, w)


def area_under_generalized_risk(confidence: ArrayLike, loss: ArrayLike, weight: ArrayLike | None = None) -> float:
    """AUGRC: area under (loss accepted) / n over coverage, by trapezoids from (0, 0).

    Source: Traub et al. 2024, https://arxiv.org/abs/2407.01032. Unlike AURC it does not weigh the most confident few
    above all others. For a 0/1 loss it is (1 - AUROC) r (1 - r) + r²/2, r the error.

    Example:
        >>> area_under_generalized_risk([0.9, 0.1], [0, 1])  # 0, 0, 1/2 at coverage 0, 1/2, 1
        0.125
    """
    return _generalized_area(accept(confidence, loss, weight))


def risk_at_coverage(confidence: ArrayLike, loss: ArrayLike, coverage: float, weight: ArrayLike | None = None) -> float:
    """Mean loss of the most confident share ``coverage`` of rows (rounded up to a whole row).

    Raises:
        ValueError: If ``coverage`` is not in (0, 1].
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage must be in (0, 1], got {coverage}")
    return _risk_at(accept(confidence, loss, weight), coverage)


def coverage_at_risk(confidence: ArrayLike, loss: ArrayLike, risk: float, weight: ArrayLike | None = None) -> float:
    """Largest share of rows that a confidence threshold accepts at a mean loss of at most ``risk``; 0 if none does."""
    return _coverage_at(accept(confidence, loss, weight), risk)


def selective_scores(confidence: ArrayLike, loss: ArrayLike, weight: ArrayLike | None = None) -> dict[str, float]:
    """``aurc, eaurc, augrc, risk_at_coverage_80, coverage_at_risk_5``: the functions above, from one sort."""
    c, x, w = _checked(confidence, loss, weight)
    a = accept(c, x, w)
    area = _area(a)
    return {
        "aurc": area,
        "eaurc": area - _least_area(x, w),
        "augrc": _generalized_area(a),
        "risk_at_coverage_80": _risk_at(a, 0.8),
        "coverage_at_risk_5": _coverage_at(a, 0.05),
    }


def risk_coverage_curve(confidence: ArrayLike, loss: ArrayLike) -> list[dict[str, float]]:
    """Points of the risk-coverage curve, one per threshold: ``{"threshold", "coverage", "risk"}``."""
    a = accept(confidence, loss)
    rows = np.flatnonzero(a.last)
    return [
        {"threshold": float(t), "coverage": float(c), "risk": float(g / c)}
        for t, c, g in zip(a.confidence[rows], a.coverage[rows], a.accepted_loss[rows], strict=True)
    ]


def auroc(positive: ArrayLike, negative: ArrayLike) -> float:
    """P[positive > negative] + P[equal] / 2 over all pairs; NaN when a side is empty.

    Example:
        >>> auroc([3.0, 1.0], [1.0, 0.0])
        0.875
    """
    above, below = np.sort(np.asarray(positive, np.float64)), np.sort(np.asarray(negative, np.float64))
    if not len(above) or not len(below):
        return float("nan")
    wins = np.searchsorted(below, above, "left") + np.searchsorted(below, above, "right")
    return float(wins.sum() / (2 * len(above) * len(below)))


def _checked(confidence: ArrayLike, loss: ArrayLike, weight: ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    c, x = np.asarray(confidence, np.float64), np.asarray(loss, np.float64)
    w = np.ones(len(c)) if weight is None else np.asarray(weight, np.float64)
    if c.ndim != 1 or x.shape != c.shape or w.shape != c.shape:
        raise ValueError(f"confidence, loss and weight must be (N,), got {c.shape}, {x.shape}, {w.shape}")
    keep = w > 0
    c, x, w = c[keep], x[keep], w[keep]
    return c, x, w / w.sum() if len(w) else w


def _area(a: Accepted) -> float:
    return float((a.weight * a.accepted_loss / a.coverage).sum()) if len(a.weight) else float("nan")


def _least_area(loss: Floats, weight: Floats) -> float:
    """AURC of the best order; 0 of no rows, whose area is NaN."""
    if not len(loss):
        return 0.0
    if ((loss == 0.0) | (loss == 1.0)).all():
        risk = float((weight * loss).sum())
        return risk + (1 - risk) * float(np.log1p(-risk)) if risk < 1 else 1.0
    return _area(accept(-loss, loss, weight))


def _generalized_area(a: Accepted) -> float:
    if not len(a.weight):
        return float("nan")
    before = np.r_[0.0, a.accepted_loss[:-1]]
    return float((a.weight * (a.accepted_loss + before) / 2).sum())


def _risk_at(a: Accepted, coverage: float) -> float:
    if not len(a.weight):
        return float("nan")
    at = min(int(np.searchsorted(a.coverage, coverage - 1e-9)), len(a.weight) - 1)
    return float(a.accepted_loss[at] / a.coverage[at])


def _coverage_at(a: Accepted, risk: float) -> float:
    if not len(a.weight):
        return float("nan")
    good = a.last & (a.accepted_loss <= risk * a.coverage + 1e-12)
    return float(a.coverage[good].max(initial=0.0))
