"""Temperature that depends on which inputs are present, and the split of rows that calibration needs.

A temperature fitted on complete inputs makes incomplete ones worse; one per mask has too few rows. Between them lies
log T(m) = a + Σ_j b_j (1 - m_j): one scale, one factor per absent modality.

Shapes: S subsets, N rows, M modalities, C classes, L labels. Masks: True = present.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from polyfuse.data.keyed import uniform
from polyfuse.evaluate.metrics import check_task
from polyfuse.evaluate.selective import Floats
from polyfuse.heads import LOG_VARIANCE_LIMIT

PRIOR_SCALE = 1.0
"""Standard deviation of the normal prior on a."""

PRIOR_MODALITY = 0.5
"""Standard deviation of the normal prior on every b_j."""

ENOUGH_ROWS = 50
"""A subset with this many rows weighs half of what it would with very many: none dominates, small ones count less."""


MOST_NUMBERS = 1 << 23
"""Logits used to fit at most; beyond it every k-th row is, which hardly moves M + 1 numbers."""


def halves(keys: ArrayLike, *, seed: int = 0) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Two disjoint parts of the rows, by key: temperatures are fitted on the first, thresholds on the second.

    Give the key of the group where rows belong together, so that no group is on both sides.

    Args:
        keys: ``(N,)`` int64.
        seed: Another seed gives another split.

    Returns:
        Two ``(N,)`` bool masks that sum to all rows.

    Example:
        >>> first, second = halves([1, 2, 3, 4])
        >>> bool((first != second).all())
        True
    """
    rows = torch.from_numpy(np.ascontiguousarray(keys, np.int64))
    first = uniform(seed, "calibration halves", 0, rows, 1)[:, 0].numpy() < 0.5
    return first, ~first


@dataclass(frozen=True)
class MaskTemperature:
    """log T(m) = a + Σ_j b_j (1 - m_j), dividing logits (regression: multiplying the predicted standard deviation).

    Attributes:
        task: classification, multilabel or regression.
        scale: a; one entry, or one per label (multilabel).
        modality: ``(M,)`` b; all >= 0 if fitted with ``ordered``.
    """

    task: str
    scale: tuple[float, ...]
    modality: tuple[float, ...]

    @classmethod
    def fit(
        cls,
        task: str,
        logits: ArrayLike,
        target: ArrayLike,
        subsets: ArrayLike,
        valid: ArrayLike,
        *,
        ordered: bool = False,
    ) -> "MaskTemperature":
        """Minimise the NLL over all subsets, each fitted on every row that has it, under normal priors on a and b.

        Every subset counts by its mean NLL times n / (n + ``ENOUGH_ROWS``), so that frequent subsets do not dominate;
        the priors weigh like so many rows as there are distinct ones, since subsets share rows.

        Args:
            task: classification, multilabel or regression.
            logits: ``(S, N, C)``; read only where ``valid``.
            target: ``(N,)`` classes or values, ``(N, L)`` labels.
            subsets: ``(S, M)``.
            valid: ``(S, N)``.
            ordered: Keep every b_j >= 0, hence T_S >= T_T for S inside T. False by default: it does not hold for summed
                logits of correlated inputs.

        Returns:
            The fitted temperature; T = 1 everywhere when no pair is valid.

        Raises:
            ValueError: If shapes do not fit.
        """
        z, ok, masks = np.asarray(logits), np.asarray(valid, bool), np.asarray(subsets, bool)
        if z.ndim != 3 or ok.shape != z.shape[:2] or masks.shape[0] != z.shape[0]:
            raise ValueError(f"logits, valid and subsets must share S and N, got {z.shape}, {ok.shape}, {masks.shape}")
        labels = z.shape[2] if check_task(task) == "multilabel" else 1
        stride = 1 + int(ok.sum()) * z.shape[2] // MOST_NUMBERS
        ok = ok & (np.arange(ok.shape[1]) % stride == 0)
        which, rows = np.nonzero(ok)
        if not len(rows):
            return cls(task, (0.0,) * labels, (0.0,) * masks.shape[1])
        count = ok.sum(axis=1)
        per_subset = count / (count + ENOUGH_ROWS)
        share = per_subset / per_subset.sum() / np.maximum(count, 1)
        absent = (~masks).astype(np.float64)
        prior_rows = float(ok.any(axis=0).sum())
        pairs, y = z[which, rows].astype(np.float64), np.asarray(target)[rows]
        if not ordered:
            a, b = _newton(_derivatives(task, pairs, y, which, share[which]), absent, labels, prior_rows)
            return cls(task, tuple(a.tolist()), tuple(b.tolist()))
        loss = _row_loss(task, torch.from_numpy(pairs), y)
        without = torch.from_numpy(absent)
        weight, at = torch.from_numpy(share[which]), torch.from_numpy(which)

        def objective(a: Tensor, b: Tensor) -> Tensor:
            log_t = (a + (without @ b)[:, None])[at]
            prior = a.square().sum() / PRIOR_SCALE**2 + b.square().sum() / PRIOR_MODALITY**2
            return (weight * loss(log_t)).sum() + 0.5 * prior / prior_rows

        scale, modality = _minimise(objective, labels, masks.shape[1])
        return cls(task, tuple(scale), tuple(modality))

    def log_temperature(self, present: ArrayLike) -> Floats:
        """``(N, 1)`` log T of every row, ``(N, L)`` for labels; defined for every mask, fitted or not."""
        absent = 1.0 - np.asarray(present, np.float64)
        return np.asarray(self.scale) + (absent @ np.asarray(self.modality))[..., None]

    def apply(self, logits: ArrayLike, present: ArrayLike) -> Floats:
        """Calibrated logits ``(N, C)`` (regression: mean and log-variance) of rows with ``present (N, M)``.

        Raises:
            ValueError: If ``present`` is not ``(N, M)``.
        """
        z, here = np.asarray(logits, np.float64), np.asarray(present, bool)
        if here.shape != (len(z), len(self.modality)):
            raise ValueError(f"present must be (N, M) = ({len(z)}, {len(self.modality)}), got {here.shape}")
        log_t = self.log_temperature(here)
        if self.task != "regression":
            return z * np.exp(-log_t)
        log_variance = z[:, 1].clip(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT) + 2 * log_t[:, 0]
        return np.stack([z[:, 0], log_variance], axis=1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"task": self.task, "scale": list(self.scale), "modality": list(self.modality)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "MaskTemperature":
        """The inverse of ``to_dict``."""
        return cls(record["task"], tuple(record["scale"]), tuple(record["modality"]))


def _row_loss(task: str, z: Tensor, target: NDArray[Any]) -> Callable[[Tensor], Tensor]:
    """NLL of every pair as a function of its log temperature ``(P, 1)`` or ``(P, L)``."""
    if task == "classification":
        y = torch.from_numpy(target.astype(np.int64))
        return lambda log_t: F.cross_entropy(z * torch.exp(-log_t), y, reduction="none")
    y = torch.from_numpy(target.astype(np.float64))
    if task == "multilabel":
        return lambda log_t: F.binary_cross_entropy_with_logits(z * torch.exp(-log_t), y, reduction="none").mean(dim=1)
    log_variance = z[:, 1].clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
    square = (y - z[:, 0]).square() * torch.exp(-log_variance)
    return lambda log_t: log_t[:, 0] + 0.5 * square * torch.exp(-2 * log_t[:, 0])


Derivatives = Callable[[Floats], tuple[float, Floats, Floats]]


def _derivatives(task: str, z: Floats, target: NDArray[Any], which: NDArray[np.int64], weight: Floats) -> Derivatives:
    """The weighted NLL as a function of log temperatures ``(S, 1)`` or ``(S, L)``: value, slopes and curvatures by S.

    Of a curvature only the part that is never negative is given where the rest may be (Gauss-Newton).
    """
    starts = np.flatnonzero(np.r_[True, which[1:] != which[:-1]])
    place, w = which[starts], weight[:, None]
    pair = np.arange(len(z))
    y: NDArray[Any] = target.astype(np.int64 if task == "classification" else np.float64)
    z = np.asfortranarray(z)  # sums over a few classes run down columns, several times as fast
    if task == "classification":
        z = z - z.max(axis=1, keepdims=True)
    elif task == "regression":
        log_variance = z[:, 1].clip(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        square = ((y - z[:, 0]) ** 2 * np.exp(-log_variance))[:, None]

    def of(log_t: Floats) -> tuple[float, Floats, Floats]:
        t = log_t[which]
        if task == "regression":
            ratio = square * np.exp(-2 * t)
            loss, slope, curve = t + 0.5 * ratio, 1 - ratio, 2 * ratio
        elif task == "multilabel":
            s = z * np.exp(-t)
            e = np.exp(-np.abs(s))
            p = np.where(s >= 0, 1.0, e) / (1.0 + e)
            count = z.shape[1]
            loss = (np.maximum(s, 0) - s * y + np.log1p(e)).sum(axis=1, keepdims=True) / count
            slope, curve = -(p - y) * s / count, p * (1 - p) * s**2 / count
        else:
            s = z * np.exp(-t)
            e = np.exp(s)
            total = e.sum(axis=1, keepdims=True)
            e *= s
            mean = e.sum(axis=1, keepdims=True) / total
            e *= s
            own = s[pair, y][:, None]
            loss, slope = np.log(total) - own, own - mean
            curve = e.sum(axis=1, keepdims=True) / total - mean**2
        sums = [np.add.reduceat(w * part, starts, axis=0) for part in (slope, curve)]
        slopes, curves = np.zeros_like(log_t), np.zeros_like(log_t)
        slopes[place], curves[place] = sums
        return float((w * loss).sum()), slopes, curves

    return of


def _newton(of: Derivatives, absent: Floats, labels: int, prior_rows: float) -> tuple[Floats, Floats]:
    """Newton's method from T = 1, halving steps that do not help: a ``(1,)`` or ``(L,)``, b ``(M,)``."""
    modalities = absent.shape[1]
    prior = np.r_[np.full(labels, PRIOR_SCALE**-2), np.full(modalities, PRIOR_MODALITY**-2)] / prior_rows

    def at(x: Floats) -> tuple[float, Floats, Floats]:
        loss, slopes, curves = of(x[:labels] + (absent @ x[labels:])[:, None])
        gradient = np.r_[slopes.sum(axis=0), absent.T @ slopes.sum(axis=1)] + prior * x
        hessian = np.diag(prior)
        hessian[:labels, :labels] += np.diag(curves.sum(axis=0))
        hessian[:labels, labels:] += curves.T @ absent
        hessian[labels:, :labels] += absent.T @ curves
        hessian[labels:, labels:] += absent.T @ (curves.sum(axis=1)[:, None] * absent)
        return loss + 0.5 * float(prior @ x**2), gradient, hessian

    x = np.zeros(labels + modalities)
    value, gradient, hessian = at(x)
    for _ in range(100):
        step = -np.linalg.solve(hessian, gradient)
        step *= min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-300))  # a temperature changes at most by e² at once
        if -float(gradient @ step) < 1e-14:
            break
        for _ in range(40):
            new = at(x + step)
            if new[0] <= value:
                break
            step = 0.5 * step
        else:
            break
        x, (value, gradient, hessian) = x + step, new
    return x[:labels], x[labels:]


def _minimise(
    objective: Callable[[Tensor, Tensor], Tensor], scales: int, modalities: int
) -> tuple[list[float], list[float]]:
    """L-BFGS over a and b >= 0, written as a square."""
    with torch.enable_grad():
        a = torch.zeros(scales, dtype=torch.float64, requires_grad=True)
        root = torch.full((modalities,), 0.3, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS(
            [a, root], max_iter=200, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = objective(a, root.square())
            loss.backward()
            return loss

        optimiser.step(closure)
    return a.detach().tolist(), root.detach().square().tolist()
