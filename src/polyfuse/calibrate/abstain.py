"""When to say nothing: a confidence threshold per mask for a wanted risk.

Shapes: S subsets, N rows, M modalities, C outputs. Masks: True = present.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyfuse.evaluate.metrics import check_task, confidence, confidence_and_loss
from polyfuse.evaluate.selective import Floats
from polyfuse.evaluate.subsets import mask_codes

Z = 1.2815515655446004
"""Standard normal quantile of 0.9."""

FEWEST = 20
"""Rows from which a bound for losses beyond [0, 1] is believed."""


def risk_threshold(sure: ArrayLike, loss: ArrayLike, risk: float) -> float:
    """Lowest confidence that is safe to accept: an upper bound on the risk of all above it is at most ``risk``.

    The bound is one-sided at 90 % for a threshold fixed beforehand, because the lowest threshold of many whose measured
    risk happens to be low enough would be too optimistic: Wilson's for losses in [0, 1] (at a risk of 0.1 it takes 15
    rows without a mistake), mean plus 1.28 standard errors for others. Choosing among thresholds still costs a little
    of the 90 %: a guarantee would need a correction for it.

    Returns:
        The threshold; infinity if nothing is safe.

    Example:
        >>> risk_threshold([0.9] * 15 + [0.5] * 5, [0] * 15 + [1] * 5, 0.1)
        0.9
    """
    c, x = np.asarray(sure, np.float64), np.asarray(loss, np.float64)
    if not len(c):
        return math.inf
    order = np.argsort(-c, kind="stable")
    c, x = c[order], x[order]
    n, mean = np.arange(1, len(c) + 1), np.cumsum(x) / np.arange(1, len(c) + 1)
    if x.min() >= 0 and x.max() <= 1:
        middle = mean + Z**2 / (2 * n)
        bound = (middle + Z * np.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2))) / (1 + Z**2 / n)
    else:
        spread = np.sqrt(np.maximum(np.cumsum(x**2) / n - mean**2, 0.0) / np.maximum(n - 1, 1))
        bound = np.where(n < FEWEST, math.inf, mean + Z * spread)
    last = np.r_[c[1:] != c[:-1], True]
    good = last & (bound <= risk)
    return float(c[good][-1]) if good.any() else math.inf


@dataclass(frozen=True)
class Abstention:
    """Confidence thresholds by mask.

    Attributes:
        task: classification, multilabel or regression.
        risk: Wanted mean loss of the answered rows: error rate; multilabel: share of wrong labels; regression: squared
            error in units of the (standardised) target's variance.
        thresholds: ``{mask code: least confidence}``; infinite = always abstain, as for every mask not here.
    """

    task: str
    risk: float
    thresholds: dict[int, float]

    @classmethod
    def fit(
        cls,
        probs: ArrayLike,
        target: ArrayLike,
        subsets: ArrayLike,
        valid: ArrayLike,
        risk: float = 0.1,
        *,
        task: str = "classification",
    ) -> "Abstention":
        """One threshold per subset, on the rows that have it.

        Args:
            probs: ``(S, N, C)`` calibrated probabilities, or mean and log-variance; read only where ``valid``.
            target: ``(N,)`` classes or values, ``(N, L)`` labels.
            subsets: ``(S, M)``.
            valid: ``(S, N)``.
            risk: Wanted risk, positive.
            task: classification, multilabel or regression.

        Raises:
            ValueError: If ``risk`` or a shape is wrong.
        """
        if not risk > 0:
            raise ValueError(f"risk must be positive, got {risk}")
        p, ok, codes = np.asarray(probs), np.asarray(valid, bool), mask_codes(subsets)
        if p.ndim != 3 or ok.shape != p.shape[:2] or len(codes) != len(p):
            raise ValueError(f"probs, valid and subsets must share S and N, got {p.shape}, {ok.shape}, {len(codes)}")
        y = np.asarray(target)
        thresholds = {
            int(code): risk_threshold(*confidence_and_loss(check_task(task), p[s, ok[s]], y[ok[s]]), risk)
            for s, code in enumerate(codes)
        }
        return cls(task, risk, thresholds)

    def flag(self, probs: ArrayLike, present: ArrayLike) -> NDArray[np.bool_]:
        """``(N,)`` bool: abstain on this row."""
        codes = mask_codes(present)
        known, place = np.unique(codes, return_inverse=True)
        least: Floats = np.array([self.thresholds.get(int(c), math.inf) for c in known], np.float64)[place]
        return np.asarray(confidence(self.task, probs) < least)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: an infinite threshold is None."""
        finite = {str(c): (t if math.isfinite(t) else None) for c, t in self.thresholds.items()}
        return {"task": self.task, "risk": self.risk, "thresholds": finite}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Abstention":
        """The inverse of ``to_dict``."""
        thresholds = {int(c): (math.inf if t is None else float(t)) for c, t in record["thresholds"].items()}
        return cls(record["task"], float(record["risk"]), thresholds)
