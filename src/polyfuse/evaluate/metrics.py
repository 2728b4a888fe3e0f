"""Scores of predictions, one function per metric and one table of all for each task.

Predictions are what calibration also speaks: class probabilities ``(N, C)``, label probabilities ``(N, L)``, or the
mean and log-variance of a Gaussian ``(N, 2)``. NumPy in, plain floats out; everything is computed in float64.
``weight`` weighs rows, which makes curves over drop rates and bootstraps exact without copying rows. A metric of no
rows is NaN.

Shapes: N rows, C classes, L labels.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from polyfuse.evaluate import selective
from polyfuse.evaluate.reliability import BINS, calibration_error
from polyfuse.evaluate.selective import Floats
from polyfuse.heads import LOG_VARIANCE_LIMIT

TASKS = ("classification", "multilabel", "regression")

PRIMARY = {"classification": "accuracy", "multilabel": "macro_ap", "regression": "r2"}
"""The metric that ranks models, by task."""

HIGHER_IS_BETTER = frozenset({"accuracy", "macro_f1", "macro_ap", "r2", "coverage", "coverage_at_risk_5"})
"""Names of scores where more is better; all others are losses."""


def check_task(task: str) -> str:
    """Return ``task`` if it is one of ``TASKS``.

    Raises:
        ValueError: If it is not.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    return task


def probabilities(task: str, logits: ArrayLike) -> Floats:
    """Logits to predictions: softmax, sigmoid, or (regression) mean and clamped log-variance, in float64."""
    z = np.asarray(logits, np.float64)
    if check_task(task) == "regression":
        return np.stack([z[..., 0], z[..., 1].clip(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)], axis=-1)
    if not z.size:
        return z
    if task == "multilabel":
        e = np.exp(-np.abs(z))
        return np.where(z >= 0, 1.0, e) / (1.0 + e)
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def scorable(task: str, target: ArrayLike) -> NDArray[np.bool_]:
    """``(N,)`` rows whose target can be scored: a known class (>= 0), no NaN among labels or values."""
    y = np.asarray(target)
    if check_task(task) == "classification":
        return np.asarray(y >= 0)
    finite = np.isfinite(y)
    return finite.reshape(len(y), -1).all(axis=1) if len(y) else np.zeros(0, bool)


# ---- classification and multilabel -------------------------------------------------------------------------------


def accuracy(probs: ArrayLike, target: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Share of rows whose most probable class is the target; multilabel: share of labels on the right side of 0.5."""
    p, y, w = _checked(probs, target, weight)
    hit = p.argmax(axis=1) == y if y.ndim == 1 else ((p >= 0.5) == (y > 0.5)).mean(axis=1)
    return _mean(hit, w)


def nll(probs: ArrayLike, target: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Mean -log p of the target; multilabel: mean binary cross-entropy over labels. Clipped at float64 epsilon."""
    p, y, w = _checked(probs, target, weight)
    return _mean(row_nll("classification" if y.ndim == 1 else "multilabel", p, y), w)


def brier(probs: ArrayLike, target: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Mean Σ_k (p_k - [y = k])², between 0 and 2; multilabel: mean (p - y)² over labels, between 0 and 1."""
    p, y, w = _checked(probs, target, weight)
    return _mean(_row_brier(p, y), w)


def macro_f1(probs: ArrayLike, target: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Mean F1 over classes (multilabel: over labels, cut at 0.5) that occur in the target or the prediction."""
    p, y, w = _checked(probs, target, weight)
    hits: NDArray[Any]
    sizes: NDArray[Any]
    if y.ndim == 1:
        classes = p.shape[1]
        guess = p.argmax(axis=1)
        hits = np.bincount(y, w * (guess == y), minlength=classes)
        sizes = np.bincount(y, w, minlength=classes) + np.bincount(guess, w, minlength=classes)
    else:
        hits = w @ ((p >= 0.5) & (y > 0.5))
        sizes = w @ (p >= 0.5) + w @ (y > 0.5)
    seen = sizes > 0
    return float((2 * hits[seen] / sizes[seen]).mean()) if seen.any() else float("nan")


def average_precision(scores: ArrayLike, positive: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Σ_t (recall step) x precision over thresholds, ties taken together; NaN without a positive.

    Example:
        >>> round(average_precision([0.9, 0.8, 0.7], [1, 0, 1]), 4)  # (1 + 2/3) / 2
        0.8333
    """
    s, y = np.asarray(scores, np.float64), np.asarray(positive, np.float64) > 0.5
    w = np.ones(len(s)) if weight is None else np.asarray(weight, np.float64)
    order = np.argsort(-s, kind="stable")
    s, gain, w = s[order], (w * y)[order], w[order]
    if gain.sum() <= 0:
        return float("nan")
    last = np.r_[s[1:] != s[:-1], True]
    hits, taken = np.cumsum(gain)[last], np.cumsum(w)[last]
    return float((np.diff(hits, prepend=0.0) * hits / np.maximum(taken, 1e-300)).sum() / hits[-1])


def macro_ap(probs: ArrayLike, target: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Mean average precision over labels that have a positive (classification: one class against the rest)."""
    p, y, w = _checked(probs, target, weight)
    hot = y if y.ndim == 2 else np.eye(p.shape[1])[y]
    values = [average_precision(p[:, k], hot[:, k], w) for k in range(p.shape[1])]
    known = [v for v in values if not math.isnan(v)]
    return float(np.mean(known)) if known else float("nan")


def ece(
    probs: ArrayLike, target: ArrayLike, *, bins: int = BINS, equal_mass: bool = False, weight: ArrayLike | None = None
) -> float:
    """Expected calibration error of the top class; multilabel: of P(positive), per label, averaged over labels.

    Example:
        >>> ece([[0.75, 0.25], [0.25, 0.75]], [0, 1])
        0.25
    """
    p, y, w = _checked(probs, target, weight)
    if y.ndim == 1:
        return calibration_error(p.max(axis=1), p.argmax(axis=1) == y, bins=bins, equal_mass=equal_mass, weight=w)
    return calibration_error(p, y, bins=bins, equal_mass=equal_mass, weight=w)


def ece_equal_mass(probs: ArrayLike, target: ArrayLike, *, bins: int = BINS, weight: ArrayLike | None = None) -> float:
    """``ece`` with bins of equal row counts: the steadier one on small test sets."""
    return ece(probs, target, bins=bins, equal_mass=True, weight=weight)


def ece_classwise(probs: ArrayLike, target: ArrayLike, *, bins: int = BINS, weight: ArrayLike | None = None) -> float:
    """Calibration error of every class probability against "is it this class", averaged over classes or labels."""
    p, y, w = _checked(probs, target, weight)
    hot = y if y.ndim == 2 else np.eye(p.shape[1])[y]
    return calibration_error(p, hot, bins=bins, weight=w)


def aurc(probs: ArrayLike, target: ArrayLike) -> float:
    """Area under the risk-coverage curve (``selective.area_under_risk_coverage``)."""
    return selective.area_under_risk_coverage(*_selective(probs, target))


def eaurc(probs: ArrayLike, target: ArrayLike) -> float:
    """AURC above that of the best order (``selective.excess_area``)."""
    return selective.excess_area(*_selective(probs, target))


def augrc(probs: ArrayLike, target: ArrayLike) -> float:
    """Area under the generalised risk-coverage curve (``selective.area_under_generalized_risk``)."""
    return selective.area_under_generalized_risk(*_selective(probs, target))


# ---- regression --------------------------------------------------------------------------------------------------


def r2(params: ArrayLike, target: ArrayLike, weight: ArrayLike | None = None) -> float:
    """1 - squared error / variance of the target; NaN when the target does not vary."""
    mean, _, y, w = _gaussian(params, target, weight)
    if not len(y) or y.min() == y.max():
        return float("nan")
    return 1.0 - _mean((y - mean) ** 2, w) / _mean((y - _mean(y, w)) ** 2, w)


def rmse(params: ArrayLike, target: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Root of the mean squared error."""
    mean, _, y, w = _gaussian(params, target, weight)
    return math.sqrt(_mean((y - mean) ** 2, w))


def mae(params: ArrayLike, target: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Mean absolute error."""
    mean, _, y, w = _gaussian(params, target, weight)
    return _mean(np.abs(y - mean), w)


def gaussian_nll(params: ArrayLike, target: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Mean -log density, constant included."""
    mean, sd, y, w = _gaussian(params, target, weight)
    return _mean(0.5 * ((y - mean) / sd) ** 2 + np.log(sd) + 0.5 * math.log(2 * math.pi), w)


def crps(params: ArrayLike, target: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Continuous ranked probability score of the Gaussian, in units of the target.

    Source: Gneiting and Raftery 2007, "Strictly proper scoring rules": σ [z (2Φ(z) - 1) + 2φ(z) - 1/√π], z = (y - μ)/σ.
    """
    mean, sd, y, w = _gaussian(params, target, weight)
    z = (y - mean) / sd
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return _mean(sd * (z * (2 * normal_cdf(z) - 1) + 2 * density - 1 / math.sqrt(math.pi)), w)


def quantile_calibration_error(params: ArrayLike, target: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Mean |share of rows inside - level| over central intervals of 19 levels, 5 % to 95 %.

    Source: the calibration of Kuleshov et al. 2018, https://arxiv.org/abs/1807.00263.
    Differs: absolute differences, central intervals.
    """
    mean, sd, y, w = _gaussian(params, target, weight)
    inside = 2 * normal_cdf(np.abs(y - mean) / sd) - 1  # the smallest central interval that holds the target
    levels = np.arange(1, 20) / 20
    shares = np.array([_mean(inside <= level, w) for level in levels])
    return float(np.abs(shares - levels).mean())


def normal_cdf(z: Floats) -> Floats:
    """Standard normal distribution function."""
    return torch.special.ndtr(torch.from_numpy(np.ascontiguousarray(z, np.float64))).numpy()


# ---- all of a task -----------------------------------------------------------------------------------------------


def confidence_and_loss(task: str, probs: ArrayLike, target: ArrayLike) -> tuple[Floats, Floats]:
    """``(N,)`` confidence and ``(N,)`` loss of every row, for selective prediction.

    Classification: top probability and error. Multilabel: mean of max(p, 1 - p) and Hamming loss. Regression: minus
    the predicted standard deviation and the squared error.
    """
    p, y, _ = _checked(probs, target, None)
    if check_task(task) == "classification":
        guess = p.argmax(axis=1)
        return p[np.arange(len(p)), guess], (guess != y).astype(np.float64)
    if task == "multilabel":
        return confidence(task, p), ((p >= 0.5) != (y > 0.5)).mean(axis=1)
    return confidence(task, p), (p[:, 0] - y) ** 2


def confidence(task: str, probs: ArrayLike) -> Floats:
    """Confidence of every row as in ``confidence_and_loss``; the last axis of ``probs`` is reduced."""
    p = np.asarray(probs, np.float64)
    if check_task(task) == "classification":
        return np.asarray(p.max(axis=-1))
    if task == "multilabel":
        return np.asarray(np.maximum(p, 1 - p).mean(axis=-1))
    return np.asarray(-np.exp(0.5 * p[..., 1]))


def row_nll(task: str, probs: ArrayLike, target: ArrayLike) -> Floats:
    """``(N,)`` negative log-likelihood of every row (multilabel: mean over labels; regression: Gaussian)."""
    p, y, _ = _checked(probs, target, None)
    tiny = np.finfo(np.float64).eps
    if check_task(task) == "classification":
        return -np.log(np.clip(p[np.arange(len(p)), y], tiny, 1.0))
    if task == "multilabel":
        p = np.clip(p, tiny, 1 - tiny)
        return -(y * np.log(p) + (1 - y) * np.log1p(-p)).mean(axis=1)
    return 0.5 * ((y - p[:, 0]) ** 2 * np.exp(-p[:, 1]) + p[:, 1] + math.log(2 * math.pi))


def score(
    task: str,
    probs: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    scale: float = 1.0,
    bins: int = BINS,
    classwise: bool = True,
) -> dict[str, float]:
    """Every metric of a task.

    Args:
        task: classification, multilabel or regression.
        probs: ``(N, C)``, ``(N, L)``, or mean and log-variance ``(N, 2)``.
        target: ``(N,)`` int classes, ``(N, L)`` 0/1 labels, or ``(N,)`` values on the scale of the mean.
        weight: ``(N,)`` row weights.
        scale: Standard deviation that undoes the target's standardisation (regression): errors come out in its units.
        bins: Bins of the calibration errors.
        classwise: Also ``ece_classwise``, the one that takes longest.

    Returns:
        Always ``nll, ece, ece_equal_mass, confidence, aurc, eaurc, augrc, risk_at_coverage_80``. Classification adds
        ``accuracy, macro_f1, brier, ece_classwise, coverage_at_risk_5``; multilabel ``macro_ap, macro_f1, accuracy``
        (labels right) and ``brier``, its ``ece`` is class-wise; regression ``r2, rmse, mae, crps``, its ``ece`` and
        ``ece_equal_mass`` are the ``quantile_calibration_error`` and its confidence is minus the mean predicted spread.

    Raises:
        ValueError: If shapes or classes do not fit.
    """
    p, y, w = _checked(probs, target, weight)
    if check_task(task) == "regression":
        return _score_regression(p, y, w, scale)
    if (y.ndim == 2) != (task == "multilabel"):
        raise ValueError(f"target of task {task} must have {1 + (task == 'multilabel')} axes, got shape {y.shape}")
    sure, loss = confidence_and_loss(task, p, y)
    selected = selective.selective_scores(sure, loss, w)
    right = _mean(1.0 - loss, w)
    if task == "classification":
        judged, outcome = sure, 1.0 - loss
    else:
        judged, outcome = p, np.asarray(y, np.float64)
        del selected["coverage_at_risk_5"]
    out = {
        PRIMARY[task]: right if task == "classification" else macro_ap(p, y, w),
        "macro_f1": macro_f1(p, y, w),
        "nll": _mean(row_nll(task, p, y), w),
        "brier": _mean(_row_brier(p, y), w),
        "ece": calibration_error(judged, outcome, bins=bins, weight=w),
        "ece_equal_mass": calibration_error(judged, outcome, bins=bins, equal_mass=True, weight=w),
        "confidence": _mean(sure, w),
        **selected,
    }
    if task == "classification":
        if classwise:
            out["ece_classwise"] = ece_classwise(p, y, bins=bins, weight=w)
    else:
        out["accuracy"] = right
    return out


def primary(task: str, probs: ArrayLike, target: ArrayLike, weight: ArrayLike | None = None) -> float:
    """``PRIMARY[task]`` alone, as in ``score``."""
    return {"classification": accuracy, "multilabel": macro_ap, "regression": r2}[check_task(task)](
        probs, target, weight
    )


def _score_regression(p: Floats, y: Floats, w: Floats, scale: float) -> dict[str, float]:
    sure, loss = confidence_and_loss("regression", p, y)
    calibration = quantile_calibration_error(p, y, w)
    selected = selective.selective_scores(sure * scale, loss * scale**2, w)
    del selected["coverage_at_risk_5"]
    return {
        "r2": r2(p, y, w),
        "rmse": rmse(p, y, w) * scale,
        "mae": mae(p, y, w) * scale,
        "nll": gaussian_nll(p, y, w) + math.log(scale),
        "crps": crps(p, y, w) * scale,
        "ece": calibration,
        "ece_equal_mass": calibration,
        "confidence": _mean(sure, w) * scale,
        **selected,
    }


def _mean(values: ArrayLike, weight: Floats) -> float:
    return float((weight * np.asarray(values, np.float64)).sum()) if len(weight) else float("nan")


def _row_brier(p: Floats, y: NDArray[Any]) -> Floats:
    if y.ndim == 2:
        return ((p - y) ** 2).mean(axis=1)
    return 1.0 - 2.0 * p[np.arange(len(p)), y] + (p**2).sum(axis=1)


def _selective(probs: ArrayLike, target: ArrayLike) -> tuple[Floats, Floats]:
    task = "classification" if np.ndim(target) == 1 else "multilabel"
    return confidence_and_loss(task, probs, target)


def _gaussian(params: ArrayLike, target: ArrayLike, weight: ArrayLike | None) -> tuple[Floats, Floats, Floats, Floats]:
    p, y, w = _checked(params, target, weight)
    if p.shape[1] != 2 or y.ndim != 1:
        raise ValueError(f"regression needs (N, 2) mean and log-variance and (N,) target, got {p.shape} and {y.shape}")
    return p[:, 0], np.exp(0.5 * p[:, 1]), np.asarray(y, np.float64), w


def _checked(probs: ArrayLike, target: ArrayLike, weight: ArrayLike | None) -> tuple[Floats, NDArray[Any], Floats]:
    """Float64 predictions, target, and weights that sum to 1; rows of weight 0 are left out."""
    p, y = np.asarray(probs, np.float64), np.asarray(target)
    w = np.ones(len(p)) if weight is None else np.asarray(weight, np.float64)
    if p.ndim != 2 or y.ndim not in (1, 2) or len(y) != len(p) or (y.ndim == 2 and y.shape != p.shape):
        raise ValueError(f"predictions must be (N, C) and target (N,) or (N, C), got {p.shape} and {y.shape}")
    if w.shape != (len(p),):
        raise ValueError(f"weight must be (N,) = ({len(p)},), got {w.shape}")
    if y.ndim == 1 and np.issubdtype(y.dtype, np.integer) and len(y) and (y.min() < 0 or y.max() >= p.shape[1]):
        raise ValueError(f"target classes must lie in 0 .. {p.shape[1] - 1}, got {y.min()} .. {y.max()}")
    keep = w > 0
    if not keep.all():
        p, y, w = p[keep], y[keep], w[keep]
    return p, y, w / w.sum() if len(w) else w


__all__ = [
    "HIGHER_IS_BETTER",
    "PRIMARY",
    "TASKS",
    "accuracy",
    "augrc",
    "aurc",
    "average_precision",
    "brier",
    "check_task",
    "confidence",
    "confidence_and_loss",
    "crps",
    "eaurc",
    "ece",
    "ece_classwise",
    "ece_equal_mass",
    "gaussian_nll",
    "macro_ap",
    "macro_f1",
    "mae",
    "nll",
    "normal_cdf",
    "primary",
    "probabilities",
    "quantile_calibration_error",
    "r2",
    "rmse",
    "row_nll",
    "scorable",
    "score",
]
