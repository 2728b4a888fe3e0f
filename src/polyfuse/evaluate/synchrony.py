"""Does a model notice when one stream of a row is shifted in time? True pairs against pairs that are late or early.

The model is a function that scores pairs; what it is made of is nobody's business here. A model that cannot see time
scores a shifted pair like the true one: AUC 0.5, a flat curve.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from polyfuse.data.keyed import seed_of
from polyfuse.evaluate.intervals import Interval, mean_intervals


@dataclass(frozen=True)
class Shift:
    """One shift.

    Attributes:
        seconds: By how much the stream is late (early where negative).
        score: Mean score over rows, with its interval.
        drop: Mean score of the true pairs minus that, row by row, with its interval; p tells it from no drop.
        auc: Chance that a true pair outscores a shifted one, over all pairs of rows; a tie counts half.
        paired: The same row by row: share of rows whose true pair outscores its own shifted one.
    """

    seconds: float
    score: Interval
    drop: Interval
    auc: Interval
    paired: Interval


@dataclass(frozen=True)
class Synchrony:
    """A model's answers to shifts.

    Attributes:
        true_score: Mean score of the pairs as they are.
        shifts: One entry per shift, in the order given.
        auc: Mean of the shifts' AUCs, with the interval over rows.
        rows: How many were scored.
    """

    true_score: Interval
    shifts: tuple[Shift, ...]
    auc: Interval
    rows: int

    @property
    def noticed(self) -> bool:
        """Whether the AUC's interval lies above one half."""
        return self.auc.low > 0.5

    def lines(self) -> list[str]:
        """A table for the console."""
        out = [f"shift       score   AUC (95 %), {self.rows} rows", f"{0.0:+6.2f} s {self.true_score.mean:9.3f}"]
        for s in self.shifts:
            out.append(
                f"{s.seconds:+6.2f} s {s.score.mean:9.3f}   {s.auc.mean:.3f} ({s.auc.low:.3f} to {s.auc.high:.3f})"
            )
        return [*out, f"all shifts           {self.auc.mean:.3f} ({self.auc.low:.3f} to {self.auc.high:.3f})"]


def synchrony(
    score: Callable[[float], ArrayLike],
    seconds: Sequence[float],
    *,
    groups: ArrayLike | None = None,
    loss: bool = False,
    draws: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> Synchrony:
    """Score the same rows with one stream shifted by several amounts.

    Args:
        score: From a shift in seconds (0 = the pairs as they are) to one number per row, ``(N,)``: a similarity, a log
            likelihood, a logit; higher = belongs together. NaN where a row cannot be scored at that shift.
        seconds: Shifts other than 0.
        groups: ``(N,)`` cluster of every row (rows of one recording); None = each its own.
        loss: ``score`` gives losses, lower = belongs together.
        draws: Bootstrap samples, over clusters.
        level: Coverage of the intervals.
        seed: Of the resampling.

    Raises:
        ValueError: If no shift is given or one is 0, scores are not ``(N,)``, or no row is scored at some shift.

    Example:
        >>> result = synchrony(lambda d: np.arange(5.0) * 0.1 - abs(d), [-1.0, 1.0])
        >>> result.auc.mean, result.shifts[0].drop.mean, result.noticed
        (1.0, 1.0, True)
    """
    if not len(seconds) or 0.0 in seconds:
        raise ValueError(f"seconds must hold at least one shift, and none of 0, got {list(seconds)}")
    sign = -1.0 if loss else 1.0
    true = _scores(score, 0.0, None)
    shifted = [_scores(score, d, len(true)) for d in seconds]
    for d, values in zip(seconds, shifted, strict=True):
        if not np.isfinite(values + true).any():
            raise ValueError(f"no row is scored both as it is and shifted by {d} s")
    names, cluster = np.unique(np.arange(len(true)) if groups is None else np.asarray(groups), return_inverse=True)
    if cluster.shape != true.shape:
        raise ValueError(f"groups must be (N,) = {true.shape}, got {cluster.shape}")
    rng = np.random.default_rng(seed_of(seed, "synchrony"))
    times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)[:, cluster].astype(float)
    options: dict[str, Any] = {"draws": draws, "level": level, "seed": seed}
    quantities = [true, *shifted, *(sign * (true - s) for s in shifted), *(_wins(sign * (true - s)) for s in shifted)]
    found = mean_intervals(np.stack(quantities), cluster, **options)
    count = len(seconds)
    areas = [_areas(sign * true, sign * s, np.vstack([np.ones_like(true), times])) for s in shifted]
    shifts = tuple(
        Shift(float(d), found[1 + k], found[1 + count + k], _around(areas[k], level), found[1 + 2 * count + k])
        for k, d in enumerate(seconds)
    )
    return Synchrony(found[0], shifts, _around(np.mean(areas, axis=0), level), len(true))


def _scores(score: Callable[[float], ArrayLike], seconds: float, rows: int | None) -> np.ndarray:
    values = np.asarray(score(seconds), dtype=np.float64)
    if values.ndim != 1 or not len(values) or (rows is not None and len(values) != rows):
        raise ValueError(
            f"scores at {seconds} s must be (N,){'' if rows is None else f' = ({rows},)'}, got {values.shape}"
        )
    return values


def _wins(margin: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(margin), 0.5 + 0.5 * np.sign(margin), math.nan)


def _areas(true: np.ndarray, shifted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``(draws,)`` weighted AUCs: sums over pairs with a tie worth one half, by cumulative weights of sorted scores.

    Only rows scored both ways count, so that both sides are the same rows.
    """
    both = np.isfinite(true + shifted)
    true, shifted, weights = true[both], shifted[both], weights[:, both]
    order = np.argsort(shifted, kind="stable")
    running = np.concatenate([np.zeros((len(weights), 1)), weights[:, order].cumsum(axis=1)], axis=1)
    below = running[:, np.searchsorted(shifted[order], true, side="left")]
    until = running[:, np.searchsorted(shifted[order], true, side="right")]
    total = weights.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return (weights * (below + until) / 2).sum(axis=1) / total**2


def _around(areas: np.ndarray, level: float) -> Interval:
    """The first is of the rows as they are, the others of the bootstrap."""
    drawn = areas[1:][np.isfinite(areas[1:])]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    tail = min(int((drawn <= 0.5).sum()), int((drawn >= 0.5).sum()))
    return Interval(float(areas[0]), float(low), float(high), min(2 * (1 + tail) / (1 + len(drawn)), 1.0))
