"""From a sweep to numbers: curves over drop rate, rows' losses, monotone confidence, worst subset, regret, shares.

Shapes: S subsets, N rows, M modalities, C outputs.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from polyfuse.evaluate.metrics import HIGHER_IS_BETTER, confidence, confidence_and_loss, primary, row_nll, score
from polyfuse.evaluate.metrics import probabilities as plain_probabilities
from polyfuse.evaluate.reliability import BINS
from polyfuse.evaluate.selective import Floats
from polyfuse.evaluate.subsets import mask_codes, row_drop_weights
from polyfuse.evaluate.sweep import Sweep

RATES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)


class Calibrator(Protocol):
    """What the functions here need of ``polyfuse.calibrate.Calibration``."""

    def apply(self, logits: ArrayLike, present: ArrayLike) -> Any:
        """Object with ``probs (N, C)``, ``sets``, ``intervals``, ``abstain (N,)``."""
        ...


def predictions(sweep: Sweep, task: str, s: int, calibration: Calibrator | None = None) -> Floats:
    """``(N, C)`` predictions for subset number ``s`` (-1: the rows as they are); NaN where a row lacks part of it."""
    logits = sweep.own if s == -1 else sweep.logits[s]
    if calibration is None:
        return plain_probabilities(task, logits)
    present = sweep.present if s == -1 else np.broadcast_to(sweep.subsets[s], sweep.present.shape)
    out = np.full(logits.shape, np.nan)
    known = ~np.isnan(logits).any(axis=1)
    out[known] = calibration.apply(logits[known], present[known]).probs
    return out


def all_predictions(sweep: Sweep, task: str, calibration: Calibrator | None = None) -> Floats:
    """``(S + 1, N, C)``: ``predictions`` of every subset in one go, the rows as they are last."""
    logits = np.concatenate([sweep.logits, sweep.own[None]])
    if calibration is None:
        return plain_probabilities(task, logits)
    subsets = np.broadcast_to(sweep.subsets[:, None], (*sweep.logits.shape[:2], sweep.subsets.shape[1]))
    present = np.concatenate([subsets, sweep.present[None]])
    out = np.full(logits.shape, np.nan)
    known = ~np.isnan(logits).any(axis=2)
    out[known] = calibration.apply(logits[known], present[known]).probs
    return out


def drop_curve(
    sweep: Sweep,
    task: str,
    rates: Sequence[float] = RATES,
    *,
    calibration: Calibrator | None = None,
    scale: float = 1.0,
    bins: int = BINS,
    predicted: Floats | None = None,
    classwise: bool = True,
) -> list[dict[str, float]]:
    """Scores when every input that is there is dropped with one probability and one survives, without sampling.

    Each (subset, row) pair is weighted by its probability and all are scored in one pool, so that ECE, average
    precision and areas are those of the mixture; means of rows (accuracy, NLL, Brier) are the exact expectation. Rate 0
    is the rows as they are. Rows without any input are left out.

    ``predicted`` are ``all_predictions``, if there are any already.

    Returns:
        One ``{"rate", "n" (rows), and every name of "score"}`` per rate; ``ece_classwise`` only if ``classwise``.
    """
    rows = sweep.valid.any(axis=0)
    curve = []
    pools = _pools(sweep, rates, all_predictions(sweep, task, calibration) if predicted is None else predicted)
    for rate, (probs, target, weight) in zip(rates, pools, strict=True):
        scores = score(task, probs, target, weight=weight, scale=scale, bins=bins, classwise=classwise)
        curve.append({"rate": float(rate), "n": float(rows.sum()), **scores})
    return curve


def primary_curve(
    sweep: Sweep, task: str, rates: Sequence[float] = RATES, *, predicted: Floats | None = None
) -> list[tuple[float, float]]:
    """``(rate, primary metric)`` of ``drop_curve``, which is most of what is asked for and little of the work.

    Args:
        sweep: Of a model.
        task: classification, multilabel or regression.
        rates: Of the drops.
        predicted: ``all_predictions``; None = uncalibrated ones.
    """
    pools = _pools(sweep, rates, all_predictions(sweep, task) if predicted is None else predicted)
    return [(float(rate), primary(task, *pool)) for rate, pool in zip(rates, pools, strict=True)]


def _pools(sweep: Sweep, rates: Sequence[float], predicted: Floats) -> Iterator[tuple[Floats, Any, Floats]]:
    """Predictions, targets and weights of all pairs that can occur, per rate."""
    rows = sweep.valid.any(axis=0)
    listed = np.isin(mask_codes(sweep.present), mask_codes(sweep.subsets))
    probs = predicted[:, rows].reshape(-1, predicted.shape[2])
    target = np.concatenate([sweep.target[rows]] * len(predicted))
    for rate in rates:
        weights = row_drop_weights(sweep.subsets, sweep.present[rows], rate)
        # A pattern that is not in the list (above six modalities) survives whole with this probability.
        held = sweep.present[rows].sum(axis=1)
        whole = np.where(listed[rows], 0.0, (1 - rate) ** held / np.maximum(1 - rate**held, 1e-300))
        weight = np.concatenate([weights * (1 - whole), whole[None]]).ravel()
        keep = weight > 0
        yield probs[keep], target[keep], weight[keep]


def row_losses(
    sweep: Sweep,
    task: str,
    kind: str = "loss",
    calibration: Calibrator | None = None,
    *,
    predicted: Floats | None = None,
) -> Floats:
    """``(S, N)`` loss of every pair, NaN where not valid: "loss" (error, Hamming, squared error) or "nll".

    ``predicted`` are ``all_predictions``, if there are any already.
    """
    if kind not in ("loss", "nll"):
        raise ValueError(f"kind must be 'loss' or 'nll', got {kind!r}")
    probs = all_predictions(sweep, task, calibration) if predicted is None else predicted
    out = np.full(sweep.valid.shape, np.nan)
    valid = sweep.valid
    p, y = probs[:-1][valid], sweep.target[np.nonzero(valid)[1]]
    out[valid] = row_nll(task, p, y) if kind == "nll" else confidence_and_loss(task, p, y)[1]
    return out


def row_means(sweep: Sweep, task: str, kind: str = "loss", calibration: Calibrator | None = None) -> Floats:
    """``(N,)`` mean loss of every row over its subsets (NaN for a row without one): what paired differences compare."""
    losses = row_losses(sweep, task, kind, calibration)
    count = sweep.valid.sum(axis=0)
    return np.where(count > 0, np.nansum(losses, axis=0) / np.maximum(count, 1), np.nan)


def violation_rate(
    sweep: Sweep, task: str, calibration: Calibrator | None = None, *, predicted: Floats | None = None
) -> dict[str, float]:
    """How often confidence grows when an input is taken away: pairs S = T + one modality, over rows that have S.

    Not a defect to be driven to zero: an exact Bayes predictor violates it on 16 to 27 % of pairs, because a
    conflicting second input should lower confidence. Only the means must be monotone: E[max p_S] >= E[max p_T], and
    NLL too. ``predicted`` are ``all_predictions``, if there are any already.

    Returns:
        ``violation_rate`` mean [c_T > c_S], ``violation_mean`` mean max(0, c_T - c_S), ``confidence_gain`` mean
        c_S - c_T and ``nll_gain`` mean NLL(T) - NLL(S) (both >= 0 for a coherent model), ``violation_pairs`` counted.
        Regression takes minus the predicted standard deviation for confidence.
    """
    codes = mask_codes(sweep.subsets)
    place = {int(code): s for s, code in enumerate(codes)}
    probs = all_predictions(sweep, task, calibration) if predicted is None else predicted
    sure = confidence(task, probs)
    sums, pairs = np.zeros(4), 0
    losses = row_losses(sweep, task, "nll", predicted=probs)
    for s, mask in enumerate(sweep.subsets):
        for m in np.flatnonzero(mask):
            t = place.get(int(codes[s]) & ~(1 << int(m)))
            if t is None:
                continue
            valid = sweep.valid[s]
            gap = sure[t][valid] - sure[s][valid]
            gain = losses[t][valid] - losses[s][valid]
            sums += [(gap > 1e-9).sum(), np.maximum(gap, 0).sum(), -gap.sum(), gain.sum()]
            pairs += int(valid.sum())
    rate, mean, confidence_gain, nll_gain = sums / pairs if pairs else np.full(4, np.nan)
    return {
        "violation_rate": float(rate),
        "violation_mean": float(mean),
        "confidence_gain": float(confidence_gain),
        "nll_gain": float(nll_gain),
        "violation_pairs": float(pairs),
    }


def is_better_high(metric: str) -> bool:
    """Whether more of a metric is better."""
    return metric.removesuffix("_calibrated") in HIGHER_IS_BETTER


def worst_subset(records: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """``{"subset", "value"}`` of the record with the worst ``metric``; records without it are passed over.

    Raises:
        ValueError: If no record has the metric.
    """
    known = [r for r in records if r.get(metric) is not None]
    if not known:
        raise ValueError(f"no record has metric '{metric}', got {len(records)} records")
    worst = (min if is_better_high(metric) else max)(known, key=lambda r: float(r[metric]))
    return {"subset": worst["subset"], "value": float(worst[metric])}


def summary(records: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """A metric over subsets: ``complete`` (of the one largest; else None), ``mean``, ``worst``, ``worst_subset``."""
    known = [r for r in records if r.get(metric) is not None]
    worst = worst_subset(records, metric)
    largest = max(int(r["size"]) for r in records)
    complete = [float(r[metric]) for r in known if r["size"] == largest]
    return {
        "complete": complete[0] if len(complete) == 1 else None,
        "mean": float(np.mean([float(r[metric]) for r in known])),
        "worst": worst["value"],
        "worst_subset": worst["subset"],
    }


def regret(
    records: Sequence[Mapping[str, Any]], oracles: Sequence[Mapping[str, Any]] | Mapping[str, float], metric: str
) -> dict[str, Any]:
    """How much worse a model is than models trained for one subset each: the gain that is left to be had.

    Args:
        records: Of the model, one per subset.
        oracles: ``{subset: value}``, or records of models trained and tested on one subset.
        metric: Key; the sign makes positive regret bad whatever its direction.

    Returns:
        ``worst`` and ``worst_subset`` (the largest regret), ``mean``, ``by_subset``; over subsets that both sides have.

    Raises:
        ValueError: If they share none.
    """
    ideal = (
        {str(k): float(v) for k, v in oracles.items()}
        if isinstance(oracles, Mapping)
        else {str(r["subset"]): float(r[metric]) for r in oracles if r.get(metric) is not None}
    )
    sign = 1.0 if is_better_high(metric) else -1.0
    gaps = {
        str(r["subset"]): sign * (ideal[str(r["subset"])] - float(r[metric]))
        for r in records
        if r.get(metric) is not None and str(r["subset"]) in ideal
    }
    if not gaps:
        raise ValueError(f"records and oracles share no subset with metric '{metric}'")
    worst = max(gaps, key=lambda name: gaps[name])
    return {
        "worst": gaps[worst],
        "worst_subset": worst,
        "mean": float(np.mean(list(gaps.values()))),
        "by_subset": gaps,
    }


def shapley(values: Mapping[str, float], modalities: Sequence[str], nothing: float) -> dict[str, float]:
    """Each modality's exact share of v(all) - v(none): φ_m = Σ_T |T|!(M-|T|-1)!/M! [v(T+m) - v(T)].

    Args:
        values: ``{"image+text": v}`` for every non-empty subset.
        modalities: Names, in the order the subsets are named.
        nothing: v of no input: the best constant prediction, not zero.

    Raises:
        KeyError: If a subset is not in ``values``.
    """
    names, count = tuple(modalities), len(modalities)

    def value(members: Sequence[str]) -> float:
        return values["+".join(n for n in names if n in members)] if members else nothing

    shares = {}
    for name in names:
        others = [n for n in names if n != name]
        shares[name] = sum(
            math.factorial(k) * math.factorial(count - k - 1) / math.factorial(count) * (value((*t, name)) - value(t))
            for k in range(count)
            for t in itertools.combinations(others, k)
        )
    return shares
