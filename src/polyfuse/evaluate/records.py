"""Plain records: one flat dict of numbers per subset, ready for JSON, CSV and the report.

Shapes: S subsets, N rows, M modalities, C outputs.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyfuse.data.batch import Batch
from polyfuse.evaluate.metrics import confidence_and_loss, normal_cdf, probabilities, score
from polyfuse.evaluate.reliability import BINS, reliability_bins
from polyfuse.evaluate.subsets import Masks, subset_name
from polyfuse.evaluate.sweep import Sweep, sweep
from polyfuse.evaluate.table import Calibrator, all_predictions

Record = dict[str, Any]

AFTER = ("nll", "brier", "crps", "ece", "ece_equal_mass", "ece_classwise", "confidence", "aurc", "eaurc", "augrc")
"""Scores that calibration changes: repeated with the suffix ``_calibrated``."""


def evaluate_model(
    model: Any,
    batch: Batch,
    task: str,
    calibration: Calibrator | None = None,
    subsets: ArrayLike | None = None,
    *,
    scale: float = 1.0,
    batch_size: int = 1024,
    bins: int = BINS,
) -> list[Record]:
    """``records`` of a ``sweep`` in one call.

    Args:
        model: A fusion model or a baseline.
        batch: Test rows.
        task: classification, multilabel or regression.
        calibration: Adds calibrated scores, coverage, set size and abstention.
        subsets: ``(S, M)`` bool, None = all (sampled above six modalities).
        scale: Standard deviation that undoes the target's standardisation (regression).
        batch_size: Rows per encoder call.
        bins: Bins of the calibration errors.
    """
    swept = sweep(model, batch, subsets=subsets, task=task, batch_size=batch_size)
    return records(swept, task, calibration, scale=scale, bins=bins)


def records(
    swept: Sweep, task: str, calibration: Calibrator | None = None, *, scale: float = 1.0, bins: int = BINS
) -> list[Record]:
    """One record per subset, scored on the rows that have all of it.

    Returns:
        Dicts with ``subset`` ("image+text"), ``modalities`` (list), ``size``, ``n``, ``ms_per_row``; every name of
        ``score``; with a calibration ``<name>_calibrated`` for the names in ``AFTER``, ``coverage`` and ``set_size``
        of the conformal sets (multilabel: coverage is the mean share of true labels in the set, over rows that have
        one; regression: set_size is the mean width of the interval), ``empty_sets`` (share; not regression),
        ``abstained`` (share), ``risk_accepted`` (mean loss of the others); ``weights`` ({name: mean weight}) where
        the fusion has them. What cannot be computed is None, so that the record is valid JSON.
    """
    out = []
    for s, mask in enumerate(swept.subsets):
        valid = swept.valid[s]
        record: Record = {
            "subset": subset_name(mask, swept.modalities),
            "modalities": [m for m, here in zip(swept.modalities, mask, strict=True) if here],
            "size": int(mask.sum()),
            "n": int(valid.sum()),
            "ms_per_row": swept.ms_per_row,
        }
        present = np.broadcast_to(mask, (int(valid.sum()), len(mask)))
        record |= scores(
            task, swept.logits[s, valid], present, swept.target[valid], calibration, scale=scale, bins=bins
        )
        if swept.weights is not None:
            record["weights"] = dict(zip(swept.modalities, swept.weights[s].tolist(), strict=True))
        out.append(plain(record))
    return out


def own_record(
    swept: Sweep, task: str, calibration: Calibrator | None = None, *, scale: float = 1.0, bins: int = BINS
) -> Record:
    """The same scores for the rows as they are, with their natural holes (empty ones too); ``subset`` is "as found"."""
    rows = swept.scored
    record: Record = {"subset": "as found", "n": int(rows.sum()), "ms_per_row": swept.ms_per_row}
    found = scores(task, swept.own[rows], swept.present[rows], swept.target[rows], calibration, scale=scale, bins=bins)
    return plain({**record, **found})


def scores(
    task: str,
    logits: ArrayLike,
    present: ArrayLike,
    target: ArrayLike,
    calibration: Calibrator | None = None,
    *,
    scale: float = 1.0,
    bins: int = BINS,
    classwise: bool = True,
) -> dict[str, float]:
    """Raw scores of some rows and, with a calibration, what it makes of them (names in ``records``)."""
    y, here = np.asarray(target), np.asarray(present, bool)
    out = score(task, probabilities(task, logits), y, scale=scale, bins=bins, classwise=classwise)
    if calibration is None:
        return out
    calibrated = calibration.apply(logits, here)
    after = score(task, calibrated.probs, y, scale=scale, bins=bins)
    out |= {f"{name}_calibrated": after[name] for name in AFTER if name in after}
    out |= _set_scores(task, calibrated, y, scale)
    abstain = np.asarray(calibrated.abstain, bool)
    loss = confidence_and_loss(task, calibrated.probs, y)[1] * (scale**2 if task == "regression" else 1.0)
    out["abstained"] = float(abstain.mean()) if len(abstain) else math.nan
    out["risk_accepted"] = float(loss[~abstain].mean()) if (~abstain).any() else math.nan
    return out


def reliability_records(
    swept: Sweep,
    task: str,
    calibration: Calibrator | None = None,
    *,
    bins: int = BINS,
    predicted: NDArray[np.float64] | None = None,
) -> list[Record]:
    """Reliability diagrams per subset: ``{"subset", "modalities", "stage": "raw" | "calibrated", "bins"}``.

    Multilabel pools P(positive) over labels; regression has one bin per nominal level of a central interval, with
    the share of rows inside it. ``predicted`` are ``all_predictions`` of the calibration, if there are any already.
    """
    stages = {"raw": all_predictions(swept, task)}
    if calibration is not None:
        stages["calibrated"] = all_predictions(swept, task, calibration) if predicted is None else predicted
    out = []
    for s, mask in enumerate(swept.subsets):
        valid = swept.valid[s]
        for stage, probs in stages.items():
            p, y = probs[s, valid], swept.target[valid]
            out.append(
                {
                    "subset": subset_name(mask, swept.modalities),
                    "modalities": [m for m, here in zip(swept.modalities, mask, strict=True) if here],
                    "stage": stage,
                    "bins": _bins(task, p, y, bins) if len(p) else [],
                }
            )
    return out


def plain(record: Mapping[str, Any]) -> Record:
    """NumPy scalars to Python numbers; NaN and infinities to None, also inside dicts."""
    return {key: _plain_value(value) for key, value in record.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return plain(value)
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _set_scores(task: str, calibrated: Any, y: NDArray[Any], scale: float) -> dict[str, float]:
    if task == "regression":
        low, high = np.asarray(calibrated.intervals).T
        inside, width = (low <= y) & (y <= high), (high - low) * scale
        return {"coverage": _mean(inside), "set_size": _mean(width)}
    sets: Masks = np.asarray(calibrated.sets, bool)
    size, empty = _mean(sets.sum(axis=1)), _mean(sets.sum(axis=1) == 0)
    if task == "classification":
        return {"coverage": _mean(sets[np.arange(len(y)), y]), "set_size": size, "empty_sets": empty}
    positive = y > 0.5
    count = positive.sum(axis=1)
    kept = (sets & positive).sum(axis=1)[count > 0] / count[count > 0]
    return {"coverage": _mean(kept), "set_size": size, "empty_sets": empty}


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if values.size else math.nan


def _bins(task: str, p: NDArray[Any], y: NDArray[Any], bins: int) -> list[dict[str, float]]:
    if task == "classification":
        return reliability_bins(p.max(axis=1), p.argmax(axis=1) == y, bins=bins)
    if task == "multilabel":
        return reliability_bins(p, y, bins=bins)
    inside = 2 * normal_cdf(np.abs(y - p[:, 0]) * np.exp(-0.5 * p[:, 1])) - 1
    levels = np.arange(1, 20) / 20
    return [{"confidence": float(v), "accuracy": float((inside <= v).mean()), "count": len(y)} for v in levels]
