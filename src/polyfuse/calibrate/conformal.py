"""Conformal sets per mask: a set of classes, a set of labels or an interval that keeps its promise for that mask.

Every subset of the inputs has a threshold of its own (Mondrian categories), calibrated on all rows that have the
subset, with the other inputs taken away. The promise is marginal over rows with that mask and assumes that what is
missing does not depend on the input or the answer (missing completely at random); rows must be exchangeable with those
calibrated on. A mask without a threshold, or with too few rows for one, gets the full set: the promise holds, at the
price of saying nothing.

Sources: split conformal with Mondrian categories, Vovk et al. 2005, "Algorithmic learning in a random world"; the score
1 - p_y (LAC), Sadinle et al. 2019, arXiv 1609.00451; masking of the calibration rows, Zaffran et al. 2023, arXiv
2306.02732; false-negative rate, conformal risk control, Angelopoulos et al. 2022, arXiv 2208.02814.

Shapes: S subsets, N rows, M modalities, C classes or labels. Masks: True = present.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyfuse.evaluate.metrics import check_task
from polyfuse.evaluate.selective import Floats
from polyfuse.evaluate.subsets import mask_codes


def conformal_quantile(scores: ArrayLike, alpha: float) -> float:
    """The ⌈(n + 1)(1 - alpha)⌉-th smallest score; infinity when there are too few.

    Example:
        >>> conformal_quantile(range(1, 10), 0.1), conformal_quantile(range(1, 9), 0.1)
        (9.0, inf)
    """
    ranked = np.sort(np.asarray(scores, np.float64))
    rank = math.ceil((len(ranked) + 1) * (1 - alpha) - 1e-9)  # 150 * (1 - 0.18) must be 123
    return float(ranked[rank - 1]) if rank <= len(ranked) else math.inf


@dataclass(frozen=True)
class ConformalSets:
    """Thresholds by mask.

    Attributes:
        task: classification, multilabel or regression.
        alpha: Share of rows (of true labels) that a set may miss.
        thresholds: ``{mask code: threshold}``; infinite = the full set, as for every mask that is not here.
        rows: ``{mask code: rows calibrated on}``.
        outputs: C.
    """

    task: str
    alpha: float
    thresholds: dict[int, float]
    rows: dict[int, int]
    outputs: int

    @classmethod
    def fit(
        cls,
        probs: ArrayLike,
        target: ArrayLike,
        subsets: ArrayLike,
        valid: ArrayLike,
        alpha: float = 0.1,
        *,
        task: str = "classification",
    ) -> "ConformalSets":
        """One threshold per subset, on the rows that have it.

        - classification: sets of classes that hold the true one with probability 1 - alpha. They may be empty: no class
          is then as plausible as 1 - alpha of the true ones were.
        - multilabel: sets of labels that miss on average at most alpha of a row's true labels, among rows with any
          (conformal risk control of the false-negative rate).
        - regression: intervals of predicted standard deviations that hold the value with probability 1 - alpha.

        Args:
            probs: ``(S, N, C)`` calibrated probabilities, or mean and log-variance; read only where ``valid``.
            target: ``(N,)`` classes or values, ``(N, L)`` labels.
            subsets: ``(S, M)``.
            valid: ``(S, N)``.
            alpha: In (0, 1).
            task: classification, multilabel or regression.

        Raises:
            ValueError: If ``alpha`` or a shape is wrong.
        """
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must be in (0, 1), got {alpha}")
        p, ok, codes = np.asarray(probs), np.asarray(valid, bool), mask_codes(subsets)
        if p.ndim != 3 or ok.shape != p.shape[:2] or len(codes) != len(p):
            raise ValueError(f"probs, valid and subsets must share S and N, got {p.shape}, {ok.shape}, {len(codes)}")
        y = np.asarray(target)
        find = {"classification": _class_threshold, "multilabel": _label_threshold, "regression": _width_threshold}
        threshold = find[check_task(task)]
        pairs = [(p[s, ok[s]].astype(np.float64), y[ok[s]]) for s in range(len(p))]
        return cls(
            task=task,
            alpha=alpha,
            thresholds={int(c): threshold(q, t, alpha) for c, (q, t) in zip(codes, pairs, strict=True)},
            rows={int(c): len(t) for c, (_, t) in zip(codes, pairs, strict=True)},
            outputs=p.shape[2],
        )

    def threshold(self, present: ArrayLike) -> Floats:
        """``(N,)`` threshold of every row; infinite for a mask that was not calibrated."""
        codes = mask_codes(present)
        known, place = np.unique(codes, return_inverse=True)
        return np.array([self.thresholds.get(int(c), math.inf) for c in known], np.float64)[place]

    def sets(self, probs: ArrayLike, present: ArrayLike) -> NDArray[np.bool_]:
        """``(N, C)`` bool sets of classes or labels.

        Raises:
            ValueError: In regression, which has ``intervals``.
        """
        if self.task == "regression":
            raise ValueError("a regression has intervals, not sets: call intervals()")
        return np.asarray(1.0 - np.asarray(probs, np.float64) <= self.threshold(present)[:, None])

    def intervals(self, params: ArrayLike, present: ArrayLike) -> Floats:
        """``(N, 2)`` low and high, on the scale of the predicted mean; infinite where there is no threshold.

        Raises:
            ValueError: Unless the task is regression.
        """
        if self.task != "regression":
            raise ValueError(f"a {self.task} has sets, not intervals: call sets()")
        p = np.asarray(params, np.float64)
        half = self.threshold(present) * np.exp(0.5 * p[:, 1])
        return np.stack([p[:, 0] - half, p[:, 0] + half], axis=1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: an infinite threshold is None."""
        finite = {str(c): (t if math.isfinite(t) else None) for c, t in self.thresholds.items()}
        rows = {str(c): n for c, n in self.rows.items()}
        return {"task": self.task, "alpha": self.alpha, "thresholds": finite, "rows": rows, "outputs": self.outputs}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "ConformalSets":
        """The inverse of ``to_dict``."""
        thresholds = {int(c): (math.inf if t is None else float(t)) for c, t in record["thresholds"].items()}
        rows = {int(c): int(n) for c, n in record["rows"].items()}
        return cls(record["task"], float(record["alpha"]), thresholds, rows, int(record["outputs"]))


def _class_threshold(p: Floats, y: NDArray[Any], alpha: float) -> float:
    return conformal_quantile(1.0 - p[np.arange(len(p)), y], alpha)


def _width_threshold(p: Floats, y: NDArray[Any], alpha: float) -> float:
    return conformal_quantile(np.abs(y - p[:, 0]) * np.exp(-0.5 * p[:, 1]), alpha)


def _label_threshold(p: Floats, y: NDArray[Any], alpha: float) -> float:
    """Smallest λ with (Σ false-negative rates at λ + 1) / (n + 1) <= alpha, where a set holds labels of 1 - p <= λ."""
    positive = y > 0.5
    count = positive.sum(axis=1)
    rows = int((count > 0).sum())
    if alpha * (rows + 1) < 1 - 1e-9:
        return math.inf
    row, label = np.nonzero(positive)
    score, cost = 1.0 - p[row, label], 1.0 / count[row]
    order = np.argsort(-score, kind="stable")
    score, cost = score[order], cost[order]
    # Lowering λ below a score loses that label: lose the highest as long as it is allowed. Ties stay in together.
    kept = int((np.cumsum(cost) + 1 <= alpha * (rows + 1) + 1e-9).sum())
    return float(score[kept]) if kept < len(score) else 0.0
