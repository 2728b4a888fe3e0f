"""When to say nothing: a confidence threshold per mask for a wanted risk.

Shapes: S subsets, N rows, M modalities, C outputs. Masks: True = present.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
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


def risk_threshold(sure: ArrayLike, loss: ArrayLike, risk: float, rows: ArrayLike | None = None) -> float:
    """Lowest confidence that is safe to accept: an upper bound on the risk of all above it is at most ``risk``.

    The bound is one-sided at 90 % for a threshold fixed beforehand, because the lowest threshold of many whose measured
    risk happens to be low enough would be too optimistic: Wilson's for losses in [0, 1] (at a risk of 0.1 it takes 15
    rows without a mistake), mean plus 1.28 standard errors for others. Choosing among thresholds still costs a little
    of the 90 %: a guarantee would need a correction for it.

    Args:
        sure: ``(N,)`` confidences.
        loss: ``(N,)`` losses.
        risk: Wanted mean loss.
        rows: ``(N,)`` int number of the row that each entry is of, where a row comes several times. The bound then
            counts Kish's effective rows, (Σ c)² / Σ c² for c entries a row: as if a row's entries were all the same.

    Returns:
        The threshold; infinity if nothing is safe.

    Example:
        >>> risk_threshold([0.9] * 15 + [0.5] * 5, [0] * 15 + [1] * 5, 0.1)
        0.9
    """
    c, mean, spread, n, bounded = _accepted(sure, loss, rows)
    if not len(c):
        return math.inf
    if bounded:
        middle = mean + Z**2 / (2 * n)
        bound = (middle + Z * np.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2))) / (1 + Z**2 / n)
    else:
        bound = np.where(n < FEWEST, math.inf, mean + Z * spread / np.sqrt(np.maximum(n - 1, 1)))
    last = np.r_[c[1:] != c[:-1], True]
    good = last & (bound <= risk)
    return float(c[good][-1]) if good.any() else math.inf


def rows_needed(sure: ArrayLike, loss: ArrayLike, risk: float) -> int | None:
    """About how many rows like these ``risk_threshold`` needs to accept anything: a rough estimate when they are few.

    Were there k times as many rows with the same losses, the bound of a threshold with n rows and mean loss μ would
    come down to ``risk`` at k n = z² risk (1 - risk) / (risk - μ)² (Wilson's, solved for n). The least k counts.

    Returns:
        A number of rows; None where the measured loss is above ``risk`` at every confidence: more of them will not do.

    Example:
        >>> rows_needed([0.9] * 12 + [0.5] * 12, [0] * 12 + [1] * 12, 0.1)
        30
        >>> rows_needed([], [], 0.1), rows_needed([0.9] * 2, [0, 1], 0.1)
        (15, None)
    """
    c, mean, spread, n, bounded = _accepted(sure, loss)
    if not len(c):
        return _fewest(risk, bounded)
    at = np.r_[c[1:] != c[:-1], True] & (mean < risk * (1 - 1e-6))
    if not at.any():
        return None
    gap = risk - mean[at]
    if bounded:
        wanted = Z**2 * max(risk * (1 - risk), 0.0) / gap**2
    else:
        wanted = np.maximum(1 + (Z * spread[at] / gap) ** 2, FEWEST)
    return max(math.ceil(len(c) * float((wanted / n[at]).min()) - 1e-9), _fewest(risk, bounded))


def _accepted(
    sure: ArrayLike, loss: ArrayLike, rows: ArrayLike | None = None
) -> tuple[Floats, Floats, Floats, Floats, bool]:
    """By falling confidence: it; mean and deviation of losses and rows down to there; are losses in [0, 1]?"""
    c, x = np.asarray(sure, np.float64), np.asarray(loss, np.float64)
    order = np.argsort(-c, kind="stable")
    c, x = c[order], x[order]
    count = np.arange(1.0, len(c) + 1)
    mean = np.cumsum(x) / count
    spread = np.sqrt(np.maximum(np.cumsum(x**2) / count - mean**2, 0.0))
    n = count if rows is None else count**2 / np.cumsum(2 * _times_before(np.asarray(rows)[order]) + 1)
    return c, mean, spread, n, bool(not len(x) or (x.min() >= 0 and x.max() <= 1))


def _times_before(rows: NDArray[Any]) -> NDArray[np.int64]:
    """How often each row has come before.

    Example:
        >>> _times_before(np.array([7, 5, 7, 7])).tolist()
        [0, 0, 1, 2]
    """
    order = np.argsort(rows, kind="stable")
    new = np.r_[True, rows[order][1:] != rows[order][:-1]][: len(rows)]
    place = np.arange(len(rows))
    out = np.empty(len(rows), np.int64)
    out[order] = place - np.maximum.accumulate(np.where(new, place, 0))
    return out


def _fewest(risk: float, bounded: bool) -> int:
    """Rows below which no threshold is found whatever their losses."""
    return max(math.ceil(Z**2 * (1 - risk) / risk - 1e-9), 1) if bounded else FEWEST


@dataclass(frozen=True)
class Abstention:
    """Confidence thresholds by mask.

    Attributes:
        task: classification, multilabel or regression.
        risk: Wanted mean loss of the answered rows: error rate; multilabel: share of wrong labels; regression: squared
            error in units of the (standardised) target's variance.
        thresholds: ``{mask code: least confidence}``; infinite = always abstain, as for every mask not here.
        rows: ``{mask code: rows that have it}``, on which its threshold was looked for.
        needed: ``{mask code: rows_needed}`` of the infinite thresholds.
        borrowed: Codes of the masks with too few rows of their own, whose threshold is that of the masks inside them.
    """

    task: str
    risk: float
    thresholds: dict[int, float]
    rows: dict[int, int] = field(default_factory=dict)
    needed: dict[int, int | None] = field(default_factory=dict)
    borrowed: tuple[int, ...] = ()

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

        A subset with so few rows that not even a flawless model would get a threshold borrows one: from its own rows
        and those of all subsets inside it together, inputs taken away. That is safe as far as a row with more inputs
        is no worse at the same calibrated confidence; a subset of one input has nothing to borrow from.

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
        p, ok, codes = np.asarray(probs), np.asarray(valid, bool), mask_codes(subsets).tolist()
        if p.ndim != 3 or ok.shape != p.shape[:2] or len(codes) != len(p):
            raise ValueError(f"probs, valid and subsets must share S and N, got {p.shape}, {ok.shape}, {len(codes)}")
        y = np.asarray(target)
        found = [confidence_and_loss(check_task(task), p[s, here], y[here]) for s, here in enumerate(ok)]
        thresholds = {code: risk_threshold(*pair, risk) for code, pair in zip(codes, found, strict=True)}
        bounded = task != "regression"
        borrowed = []
        for code, here in zip(codes, ok, strict=True):
            inside = [s for s, other in enumerate(codes) if other & code == other]
            if here.sum() >= _fewest(risk, bounded) or len(inside) < 2:
                continue
            sure, loss = (np.concatenate([found[s][part] for s in inside]) for part in (0, 1))
            shared = risk_threshold(sure, loss, risk, np.concatenate([np.flatnonzero(ok[s]) for s in inside]))
            if math.isfinite(shared):
                borrowed.append(code)
                thresholds[code] = shared
        return cls(
            task=task,
            risk=risk,
            thresholds=thresholds,
            rows={code: int(here.sum()) for code, here in zip(codes, ok, strict=True)},
            needed={
                code: rows_needed(*pair, risk)
                for code, pair in zip(codes, found, strict=True)
                if math.isinf(thresholds[code])
            },
            borrowed=tuple(borrowed),
        )

    def flag(self, probs: ArrayLike, present: ArrayLike) -> NDArray[np.bool_]:
        """``(N,)`` bool: abstain on this row."""
        codes = mask_codes(present)
        known, place = np.unique(codes, return_inverse=True)
        least: Floats = np.array([self.thresholds.get(int(c), math.inf) for c in known], np.float64)[place]
        return np.asarray(confidence(self.task, probs) < least)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: an infinite threshold is None."""
        finite = {str(c): (t if math.isfinite(t) else None) for c, t in self.thresholds.items()}
        return {
            "task": self.task,
            "risk": self.risk,
            "thresholds": finite,
            "rows": {str(c): n for c, n in self.rows.items()},
            "needed": {str(c): n for c, n in self.needed.items()},
            "borrowed": list(self.borrowed),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Abstention":
        """The inverse of ``to_dict``; a record of before rows were kept has none."""
        return cls(
            task=record["task"],
            risk=float(record["risk"]),
            thresholds={int(c): (math.inf if t is None else float(t)) for c, t in record["thresholds"].items()},
            rows={int(c): int(n) for c, n in record.get("rows", {}).items()},
            needed={int(c): (None if n is None else int(n)) for c, n in record.get("needed", {}).items()},
            borrowed=tuple(int(c) for c in record.get("borrowed", ())),
        )
