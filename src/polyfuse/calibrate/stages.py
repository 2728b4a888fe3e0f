"""Post-hoc methods side by side: no, full-fit, pooled and per-mask temperature; full, pooled and per-mask sets.

``Calibration`` is the one that is used; these records say what its parts buy. Fitted on validation rows in the same
halves: temperatures on the first, conformal thresholds on the second; abstention thresholds on both. Thresholds come
after the temperature per mask, so that sets of different stages differ in their threshold alone. Unlike ``Calibration``
a mask borrows no threshold of abstention: that is what "pooled" shows.

- "full": from complete rows only, which is what is usually done. "pooled": one number from all subsets together; its
  pairs share rows, so that it promises nothing. "mask": by subset; "raw": no temperature.
- "lac": the score 1 - p_y of ``ConformalSets``. "aps": adaptive prediction sets, Romano, Sesia and Candès 2020,
  https://arxiv.org/abs/2006.02544, equations 3 to 7 with split calibration: classes in falling order of probability,
  the last one kept by a draw u, which gives the promised coverage exactly; u is keyed by the row. "aps whole" always
  keeps the last one (u = 1): no draw and mostly larger sets. All three keep the promise, and all may be empty.
- Regression has "residual": |y - mean| over the predicted spread. Multilabel has temperatures only: class-wise, one
  scale per label; sets of labels are scored by ``Calibration``.

Shapes: S subsets, N rows, C classes or labels, P pairs of subset and row. Masks: True = present.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from polyfuse.calibrate.abstain import risk_threshold
from polyfuse.calibrate.conformal import conformal_quantile
from polyfuse.calibrate.temperature import MaskTemperature, halves
from polyfuse.data.keyed import uniform
from polyfuse.evaluate.intervals import holm
from polyfuse.evaluate.metrics import (
    check_task,
    confidence_and_loss,
    crps,
    probabilities,
    quantile_calibration_error,
    row_nll,
)
from polyfuse.evaluate.reliability import BINS
from polyfuse.evaluate.selective import Floats
from polyfuse.evaluate.subsets import mask_codes, subset_name
from polyfuse.evaluate.sweep import Sweep

Record = dict[str, Any]

FITS = ("full", "pooled", "mask")
"""What a number was fitted on."""

SCORES = {"classification": ("lac", "aps", "aps whole"), "multilabel": (), "regression": ("residual",)}
"""Conformal scores by task."""


@dataclass(frozen=True)
class Stages:
    """Everything fitted on validation rows.

    Attributes:
        task: classification, multilabel or regression.
        alpha: Share that a set may miss.
        temperatures: ``{"full" | "pooled" | "mask": temperature}``.
        thresholds: ``{"lac full": {mask code: threshold}}`` and so on, for every subset of the validation sweep;
            infinite where rows were too few, as for a mask that is not here.
        confidences: ``{"abstain full": {mask code: least confidence}}``; infinite = always abstain.
        rows: ``{mask code: rows calibrated on}``, for ``coverage_check``.
    """

    task: str
    alpha: float
    temperatures: dict[str, MaskTemperature]
    thresholds: dict[str, dict[int, float]]
    confidences: dict[str, dict[int, float]]
    rows: dict[int, int]


def fit_stages(
    swept: Sweep,
    task: str,
    alpha: float = 0.1,
    groups: ArrayLike | None = None,
    *,
    risk: float = 0.1,
    seed: int = 0,
) -> Stages:
    """Fit every stage on a sweep over rows that the model was not trained on.

    Args:
        swept: Sweep over validation rows. Where it does not hold the complete subset, "full" has T = 1 and full sets.
        task: classification, multilabel or regression.
        alpha: Share that a set may miss.
        groups: ``(N,)`` int64 key of each row's group, kept on one side of the split; None = the row's own key.
        risk: Wanted risk of answered rows.
        seed: Of the split in halves; that of ``Calibration.fit`` gives the same halves.

    Raises:
        ValueError: If ``alpha`` is not in (0, 1) or the task is unknown.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1), got {alpha}")
    first, second = halves(swept.keys if groups is None else groups, seed=seed)
    complete: NDArray[np.bool_] = np.asarray(swept.subsets.all(axis=1))
    ok = swept.valid & first
    masks = {
        "full": (np.ones_like(swept.subsets), ok & complete[:, None]),
        "pooled": (np.ones_like(swept.subsets), ok),  # nothing absent: one temperature for all
        "mask": (swept.subsets, ok),
    }
    temperatures = {
        name: MaskTemperature.fit(check_task(task), swept.logits, swept.target, listed, rows)
        for name, (listed, rows) in masks.items()
    }
    held = _Pairs.of(swept, second)
    probs = held.predictions(task, temperatures["mask"], swept.subsets)
    codes: list[int] = mask_codes(swept.subsets).tolist()
    full = np.flatnonzero(complete)
    thresholds: dict[str, dict[int, float]] = {}
    for score, values in _own_scores(task, probs, held).items():
        by_mask = {code: conformal_quantile(values[held.of_subset(s)], alpha) for s, code in enumerate(codes)}
        on_full = by_mask[codes[full[0]]] if len(full) else math.inf
        thresholds[f"{score} full"] = dict.fromkeys(codes, on_full)
        thresholds[f"{score} pooled"] = dict.fromkeys(codes, conformal_quantile(values, alpha))
        thresholds[f"{score} mask"] = by_mask
    every = _Pairs.of(swept, np.ones(len(swept.target), bool))
    sure, loss = confidence_and_loss(task, every.predictions(task, temperatures["mask"], swept.subsets), every.target)
    pieces = [every.of_subset(s) for s in range(len(codes))]
    least = {code: risk_threshold(sure[at], loss[at], risk) for code, at in zip(codes, pieces, strict=True)}
    everywhere = {"full": least[codes[full[0]]] if len(full) else math.inf, "pooled": risk_threshold(sure, loss, risk)}
    confidences = {f"abstain {name}": dict.fromkeys(codes, value) for name, value in everywhere.items()}
    confidences["abstain mask"] = least
    rows = {code: int(held.count[s]) for s, code in enumerate(codes)}
    return Stages(task, alpha, temperatures, thresholds, confidences, rows)


def stage_records(stages: Stages, swept: Sweep, *, scale: float = 1.0, bins: int = BINS) -> list[Record]:
    """What every stage makes of test rows, per subset.

    Args:
        stages: From ``fit_stages``.
        swept: Sweep over test rows.
        scale: Standard deviation that undoes the target's standardisation (regression).
        bins: Of the calibration errors.

    Returns:
        ``{"kind": "subset", "subset": "a+b", "stage", "metric", "value", "n"}`` with stages

        - "raw", "full", "pooled", "mask": nll, ece, ace (equal mass), augrc, aurc; classification and multilabel also
          brier and accuracy (which no temperature changes), regression crps;
        - "lac full" and so on: coverage, set_size (regression: mean width);
        - "abstain full" and so on: abstained (share), risk_accepted (mean loss of the others).

        A subset that no row has gives none; what cannot be computed is left out.
    """
    task, names = stages.task, [subset_name(mask, swept.modalities) for mask in swept.subsets]
    pairs = _Pairs.of(swept, np.ones(len(swept.target), bool))
    codes = mask_codes(swept.subsets)
    out: list[Record] = []

    def add(stage: str, metric: str, values: Floats) -> None:
        for name, value, n in zip(names, values.tolist(), pairs.count.tolist(), strict=True):
            if n and math.isfinite(value):
                out.append({"kind": "subset", "subset": name, "stage": stage, "metric": metric, "value": value, "n": n})

    probs = np.zeros((0, 0))
    for stage in ("raw", *FITS):
        temperature = stages.temperatures.get(stage)
        probs = pairs.predictions(task, temperature, swept.subsets)
        for metric, values in _scores(task, probs, pairs, scale, bins).items():
            add(stage, metric, values)
    for score, values in _all_scores(task, probs, pairs).items():  # after the temperature per mask, the last one
        for fit in FITS:
            stage = f"{score} {fit}"
            threshold = np.array([stages.thresholds[stage].get(int(c), math.inf) for c in codes])[pairs.which]
            inside = values <= threshold[:, None]
            if task == "regression":
                add(stage, "coverage", pairs.mean(inside[:, 0]))
                add(stage, "set_size", pairs.mean(2 * threshold * np.exp(0.5 * probs[:, 1]) * scale))
            else:
                add(stage, "coverage", pairs.mean(inside[np.arange(len(inside)), pairs.target]))
                add(stage, "set_size", pairs.mean(inside.sum(axis=1)))
    sure, loss = confidence_and_loss(task, probs, pairs.target)
    for stage, by_mask in stages.confidences.items():
        answered = sure >= np.array([by_mask.get(int(c), math.inf) for c in codes])[pairs.which]
        share = pairs.mean(answered)
        add(stage, "abstained", 1.0 - share)
        with np.errstate(invalid="ignore", divide="ignore"):
            add(stage, "risk_accepted", pairs.mean(loss * answered) / share * (scale**2 if task == "regression" else 1))
    return out


def coverage_check(
    records: list[Record], n_calibration: int | dict[str, int], alpha: float, *, stage: str = "lac mask"
) -> list[Record]:
    """Does coverage lie where split conformal promises it, mask by mask?

    Over n exchangeable test rows the number covered is beta-binomial, n draws with the chance Beta(k, m + 1 - k), m
    rows calibrated on and k = ⌈(m + 1)(1 - alpha)⌉ (Vovk 2012, https://arxiv.org/abs/1209.2673; Angelopoulos and Bates
    2021, https://arxiv.org/abs/2107.07511, section 3.2), when scores have no ties. The p-value is two-sided, twice the
    smaller tail; Holm's correction is over all masks of ``records``: subsets share rows, which Holm allows.

    Args:
        records: With ``subset``, ``stage``, ``metric`` "coverage", ``value``, ``n``; others are passed over.
        n_calibration: Rows that each threshold was calibrated on, for all or ``{subset: rows}``. Groups of rows that
            belong together make the effective number smaller, and the check too strict.
        alpha: The share that may be missed.
        stage: Which sets to check.

    Returns:
        ``{"subset", "n", "coverage", "low", "high" (central 95 % for this mask alone), "p", "p_holm", "passed"}`` per
        mask; a mask with too few rows for a threshold (k > m) has the full set: coverage 1 passes, p is 1.

    Raises:
        ValueError: If no record is of the stage.
    """
    from scipy.stats import betabinom  # type: ignore[import-untyped, unused-ignore]  # comes with scikit-learn

    chosen = [r for r in records if r["metric"] == "coverage" and r["stage"] == stage]
    if not chosen:
        raise ValueError(f"no coverage record has stage '{stage}'; known: {sorted({r['stage'] for r in records})}")
    out = []
    for r in chosen:
        n = int(r["n"])
        rows = n_calibration[r["subset"]] if isinstance(n_calibration, dict) else n_calibration
        k = math.ceil((rows + 1) * (1 - alpha) - 1e-9)
        covered = round(float(r["value"]) * n)
        if k > rows:
            low, high, p = 1.0, 1.0, float(covered == n)
        else:
            law = betabinom(n, k, rows + 1 - k)
            low, high = (float(v) / n for v in law.ppf([0.025, 0.975]))
            p = min(1.0, 2 * min(float(law.cdf(covered)), float(law.sf(covered - 1))))
        out.append({"subset": r["subset"], "n": n, "coverage": float(r["value"]), "low": low, "high": high, "p": p})
    for record, adjusted in zip(out, holm([record["p"] for record in out]), strict=True):
        record |= {"p_holm": float(adjusted), "passed": bool(adjusted > 0.05)}
    return out


# ---- all subsets at once -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pairs:
    """Valid pairs of subset and row, ordered by subset.

    Attributes:
        logits: ``(P, C)`` float64.
        target: ``(P,)`` or ``(P, L)``.
        which: ``(P,)`` number of the subset.
        count: ``(S,)`` pairs of each subset.
        draws: ``(P,)`` u of the row, for APS.
    """

    logits: Floats
    target: NDArray[Any]
    which: NDArray[np.int64]
    count: NDArray[np.int64]
    draws: Floats

    @classmethod
    def of(cls, swept: Sweep, rows: NDArray[np.bool_]) -> "_Pairs":
        which, row = np.nonzero(swept.valid & rows)
        keys = torch.from_numpy(np.ascontiguousarray(swept.keys, np.int64))
        draws = uniform(0, "adaptive prediction sets", 0, keys, 1)[:, 0].double().numpy()
        count = np.bincount(which, minlength=len(swept.subsets))
        logits = np.asfortranarray(swept.logits[which, row], np.float64)  # sums over a few classes run down columns
        return cls(logits, swept.target[row], which, count, draws[row])

    def of_subset(self, s: int) -> slice:
        start = int(self.count[:s].sum())
        return slice(start, start + int(self.count[s]))

    def mean(self, values: ArrayLike) -> Floats:
        """``(S,)`` mean over the pairs of every subset; NaN where there are none."""
        total = np.bincount(self.which, np.asarray(values, np.float64), minlength=len(self.count))
        return np.where(self.count > 0, total / np.maximum(self.count, 1), math.nan)

    def predictions(self, task: str, temperature: MaskTemperature | None, subsets: NDArray[np.bool_]) -> Floats:
        """``(P, C)`` probabilities; regression: mean and log-variance."""
        z = self.logits
        if temperature is not None:
            z = temperature.apply(z, subsets[self.which])
            if task == "regression":
                return z
        return probabilities(task, z)


def _scores(task: str, probs: Floats, pairs: _Pairs, scale: float, bins: int) -> dict[str, Floats]:
    """``(S,)`` of every metric, equal to ``metrics.score`` subset by subset."""
    y, subsets = pairs.target, len(pairs.count)
    if not len(probs):
        return {}
    out = {"nll": pairs.mean(row_nll(task, probs, y)) + (math.log(scale) if task == "regression" else 0.0)}
    sure, loss = confidence_and_loss(task, probs, y)
    if task == "regression":
        each = [
            (crps(probs[at], y[at]), quantile_calibration_error(probs[at], y[at]))
            if pairs.count[s]
            else (math.nan, math.nan)
            for s, at in enumerate(map(pairs.of_subset, range(subsets)))
        ]
        out["crps"] = np.array([e[0] for e in each]) * scale
        out["ece"] = out["ace"] = np.array([e[1] for e in each])
        sure, loss = sure * scale, loss * scale**2
    else:
        if task == "classification":
            brier = 1.0 - 2.0 * probs[np.arange(len(y)), y] + (probs**2).sum(axis=1)
            stated, came, block = sure, 1.0 - loss, pairs.which
        else:
            labels = probs.shape[1]
            brier = ((probs - y) ** 2).mean(axis=1)
            stated, came = probs.ravel(), np.asarray(y, np.float64).ravel()
            block = (pairs.which[:, None] * labels + np.arange(labels)).ravel()
        out |= {"accuracy": pairs.mean(1.0 - loss), "brier": pairs.mean(brier)}
        blocks = subsets * (1 if task == "classification" else probs.shape[1])
        out["ece"] = _gaps(np.minimum((stated * bins).astype(np.int64), bins - 1), stated - came, block, blocks, bins)
        order, place, size = _ranked(stated, block, blocks)
        tied = _tie_means(stated[order], came[order], block[order])
        bin_of = np.minimum((place / size * bins + 1e-9).astype(np.int64), bins - 1)
        out["ace"] = _gaps(bin_of, stated[order] - tied, block[order], blocks, bins)
        for key in ("ece", "ace"):
            out[key] = out[key].reshape(subsets, -1).mean(axis=1)
    order, place, size = _ranked(-sure, pairs.which, subsets)
    tied = _tie_means(sure[order], loss[order], pairs.which[order])
    total = np.cumsum(tied)
    before = np.r_[0.0, np.cumsum(pairs.mean(loss)[pairs.count > 0] * pairs.count[pairs.count > 0])[:-1]]
    accepted = total - np.repeat(before, pairs.count[pairs.count > 0])
    out["aurc"] = pairs.mean(accepted / (place + 1))
    out["augrc"] = pairs.mean((accepted - tied / 2) / size)
    return out


def _ranked(key: Floats, block: NDArray[np.int64], blocks: int) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Order by block, then rising key; each place within its block from 0; and the block's size."""
    count = np.bincount(block, minlength=blocks)
    start = np.cumsum(count) - count
    if (block[1:] >= block[:-1]).all():  # pairs come by subset: a sort of each is several times as fast as one of all
        order = np.concatenate([a + key[a : a + n].argsort(kind="stable") for a, n in zip(start, count, strict=True)])
    else:
        order = np.lexsort((key, block))
    return order, np.arange(len(key)) - start[block[order]].astype(np.float64), count[block[order]].astype(np.float64)


def _tie_means(sorted_key: Floats, values: Floats, block: NDArray[np.int64]) -> Floats:
    """``selective.tie_means`` within blocks."""
    run = np.cumsum(np.r_[False, (sorted_key[1:] != sorted_key[:-1]) | (block[1:] != block[:-1])])
    return np.asarray((np.bincount(run, values) / np.bincount(run))[run])


def _gaps(
    bin_of: NDArray[np.int64], gap: Floats, block: NDArray[np.int64], blocks: int, bins: int
) -> NDArray[np.float64]:
    """``(blocks,)`` Σ over bins of |Σ gap| / n."""
    total = np.bincount(block * bins + bin_of, gap, minlength=blocks * bins).reshape(blocks, bins)
    count = np.bincount(block, minlength=blocks)
    return np.where(count > 0, np.abs(total).sum(axis=1) / np.maximum(count, 1), math.nan)


def _own_scores(task: str, probs: Floats, pairs: _Pairs) -> dict[str, Floats]:
    """``(P,)`` conformal scores of the targets."""
    own = pairs.target if task == "classification" else np.zeros(len(probs), np.int64)
    return {name: values[np.arange(len(values)), own] for name, values in _all_scores(task, probs, pairs).items()}


def _all_scores(task: str, probs: Floats, pairs: _Pairs) -> dict[str, Floats]:
    """``(P, C)`` conformal scores of every class by name of the score; regression ``(P, 1)`` of the target."""
    if task == "regression":
        return {"residual": (np.abs(pairs.target - probs[:, 0]) * np.exp(-0.5 * probs[:, 1]))[:, None]}
    if task == "multilabel":
        return {}
    whole = _mass_up_to(probs)
    return {"lac": 1.0 - probs, "aps": whole - (1.0 - pairs.draws[:, None]) * probs, "aps whole": whole}


def _mass_up_to(probs: Floats) -> Floats:
    """``(P, C)`` probability of each class and all likelier ones; equal ones in the order of the classes.

    Example:
        >>> _mass_up_to(np.array([[0.25, 0.5, 0.25]])).tolist()
        [[0.75, 0.5, 1.0]]
    """
    order = np.argsort(-probs, axis=1, kind="stable")
    out = np.empty_like(probs)
    np.put_along_axis(out, order, np.cumsum(np.take_along_axis(probs, order, axis=1), axis=1), axis=1)
    return out
