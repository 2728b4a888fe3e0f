"""Does a model use each input, and is each input worth having? Drops with paired intervals over rows.

An input is taken away, shuffled among the rows, or replaced by that of a row with another label; what the model loses
on the same rows is what it took from the input. The row as found is always the other side: never compare two altered
ones. All numbers are gains from the intact input: positive = it helps.

Sources: perceptual score, Gat et al. 2021, https://arxiv.org/abs/2110.14375, here divided by score minus that of the
constant answer; Shapley 1953 with the constant answer for no input.

Shapes: S subsets, N rows, M modalities, C outputs. Masks: True = present.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from polyfuse.data.batch import Batch, Inputs, map_tensors
from polyfuse.data.keyed import permutation, uniform
from polyfuse.evaluate.corruptions import Reusing
from polyfuse.evaluate.intervals import mean_intervals
from polyfuse.evaluate.metrics import confidence_and_loss, row_nll, scorable
from polyfuse.evaluate.records import Record, plain
from polyfuse.evaluate.selective import Floats
from polyfuse.evaluate.subsets import Masks, mask_codes
from polyfuse.evaluate.sweep import embed, sweep
from polyfuse.evaluate.table import Calibrator, predictions

WAYS = ("added", "removed", "permuted", "other row")
"""``added``: what the input brings on average over what else a row has (its Shapley value for the loss). ``removed``:
what taking it from the row as found costs (the value of adding it last). ``permuted``: it comes from another row, along
one random cycle of the rows that have it. ``other row``: it comes from a row with another label, drawn uniformly."""


def unplug(
    model: Any,
    batch: Batch,
    task: str,
    subsets: Masks,
    losses: ArrayLike,
    nll: ArrayLike,
    constant: ArrayLike,
    calibration: Calibrator | None = None,
    *,
    groups: ArrayLike | None = None,
    permutations: int = 1,
    draws: int = 1000,
    seed: int = 0,
    batch_size: int = 1024,
) -> list[Record]:
    """What each input is to a model, in every way of ``WAYS``, over the rows that have it.

    Args:
        model: A fusion model or a baseline.
        batch: Test rows.
        task: classification, multilabel or regression.
        subsets: ``(S, M)`` of ``losses`` and ``nll``.
        losses: ``(S, N)`` from ``row_losses``: error, share of wrong labels, squared error.
        nll: ``(S, N)``, after ``calibration`` where there is one.
        constant: ``(C,)`` predictions for rows without any input: class frequencies; mean and log-variance.
        calibration: Calibrates the answers to altered rows, as it did those of ``nll``.
        groups: ``(N,)`` what each row belongs to: resampled together.
        permutations: Shuffles, and draws of donors, that are averaged.
        draws: Bootstrap samples.
        seed: Of donors and shuffles.
        batch_size: Rows per call.

    Returns:
        Dicts with ``modality``, ``way``, ``n`` (rows with a value), ``gain``, ``gain_low``, ``gain_high``, ``gain_p``
        in the primary metric (multilabel: share of right labels; regression: R², with the variance of the rows as it
        is), the same of ``nll``, and ``share``: gain over what the model has on these rows above ``constant`` (None
        where it has nothing).
    """
    y = batch.target.cpu().numpy() if batch.target is not None else np.zeros(0)
    known, present = scorable(task, y), batch.present.cpu().numpy()
    empty = np.full((2, len(batch)), np.nan)
    answer = np.broadcast_to(np.asarray(constant, np.float64), (int(known.sum()), len(np.asarray(constant))))
    empty[:, known] = confidence_and_loss(task, answer, y[known])[1], row_nll(task, answer, y[known])
    table = np.stack([np.asarray(losses, np.float64), np.asarray(nll, np.float64)])
    unit = 1.0 / max(float(y[known].var()), 1e-12) if task == "regression" and known.any() else 1.0
    reusable = isinstance(model, torch.nn.Module) and hasattr(model, "encoders")
    inputs: Inputs = {**embed(model, batch, batch_size=batch_size)} if reusable else batch.inputs
    whole, asked = replace(batch, inputs=inputs), Reusing(model) if reusable else model
    as_found = _as_found(asked, whole, task, calibration, empty, batch_size)
    asked_of: list[tuple[str, str, Floats]] = []
    for m, modality in enumerate(batch.modalities):
        here = present[:, m] & known
        if not here.any():
            continue
        rows = np.flatnonzero(present[:, m])
        gains = dict(zip(WAYS[:2], worth(table, subsets, present, empty, m), strict=True))
        shuffled: dict[str, list[Floats]] = {"permuted": [], "other row": []}
        for k in range(permutations):
            stream = f"unplug/{modality}/{k}"
            cycle = rows[permutation(seed, stream, 0, len(rows)).numpy()]
            mixed = np.arange(len(batch))
            mixed[cycle] = np.roll(cycle, 1)
            given = donors(task, y, here, batch.keys, seed=seed, stream=stream)
            for way, source in (("permuted", mixed), ("other row", given)):
                index = torch.from_numpy(np.where(source >= 0, source, np.arange(len(batch))))
                part = map_tensors({modality: inputs[modality]}, lambda tensor, index=index: tensor[index])
                now = _as_found(asked, replace(whole, inputs={**inputs, **part}), task, calibration, empty, batch_size)
                usable = here & (source >= 0) & (source != np.arange(len(batch)))
                shuffled[way].append(np.where(usable, now - as_found, np.nan))
        gains |= {way: np.mean(parts, axis=0) for way, parts in shuffled.items()}
        asked_of += [(modality, way, gains[way] * np.array([[unit], [1.0]])) for way in WAYS]
    flat = np.concatenate([np.zeros((0, len(batch))), *(values for _, _, values in asked_of)])
    found = mean_intervals(flat, groups, draws=draws, seed=seed)  # all from the same resamples
    out: list[Record] = []
    for k, (modality, way, values) in enumerate(asked_of):
        rows_with = np.isfinite(values[0])
        above = unit * float(np.mean((empty - as_found)[0, rows_with])) if rows_with.any() else 0.0
        record: Record = {"modality": modality, "way": way, "n": int(rows_with.sum())}
        for name, interval in zip(("gain", "nll"), found[2 * k : 2 * k + 2], strict=True):
            record |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
            record[f"{name}_p"] = interval.p
        record["share"] = found[2 * k].mean / above if above > 1e-9 else math.nan
        out.append(plain(record))
    return out


def worth(table: Floats, subsets: Masks, present: Masks, empty: Floats, m: int) -> tuple[Floats, Floats]:
    """Per row, what input ``m`` brings: on average over what else the row has, and when it is added last.

    The average is the Shapley value within the inputs that the row has, Σ_T |T|! (k - |T| - 1)! / k! over its sets T
    without m, k inputs in all. Above six modalities, where not all sets are listed, those that are share the weight.

    Args:
        table: ``(K, S, N)`` losses, NaN where a row lacks the subset.
        subsets: ``(S, M)``.
        present: ``(N, M)``.
        empty: ``(K, N)`` losses of no input.
        m: Column of the input.

    Returns:
        Two ``(K, N)``, NaN for rows without the input.
    """
    place = {int(code): s for s, code in enumerate(mask_codes(subsets))}
    held, codes = present.sum(axis=1), mask_codes(present)
    size = subsets.shape[1]
    law = np.array(
        [
            [
                math.factorial(t) * math.factorial(k - t - 1) / math.factorial(k) if t < k else 0.0
                for k in range(size + 1)
            ]
            for t in range(size)
        ]
    )
    total, weight = np.zeros(empty.shape), np.zeros(present.shape[0])
    last = np.full(empty.shape, np.nan)
    for s, mask in enumerate(subsets):
        code = int(mask_codes(mask)) & ~(1 << m)
        if not mask[m] or (code and code not in place):
            continue
        gain = (table[:, place[code]] if code else empty) - table[:, s]
        rows = np.isfinite(gain).all(axis=0)
        share = np.where(rows, law[int(mask.sum()) - 1, held], 0.0)
        total += np.where(rows, gain, 0.0) * share
        weight += share
        complete = rows & (codes == mask_codes(mask))
        last[:, complete] = gain[:, complete]
    return np.where(weight > 0, total / np.where(weight > 0, weight, 1.0), np.nan), last


def donors(
    task: str,
    target: NDArray[Any],
    here: NDArray[np.bool_],
    keys: torch.Tensor,
    *,
    seed: int = 0,
    stream: str = "donor",
) -> NDArray[np.int64]:
    """``(N,)`` for each row of ``here`` another row of ``here`` with a different label, uniformly; -1 without one.

    Different: another class; another set of labels; in regression a value more than a standard deviation away.

    Example:
        >>> donors("classification", np.array([0, 0, 1]), np.array([True, True, True]), torch.arange(3))[:2].tolist()
        [2, 2]
    """
    rows = np.flatnonzero(here)
    out = np.full(len(here), -1, np.int64)
    if not len(rows):
        return out
    y = np.asarray(target)[rows]
    if task == "multilabel":
        y = np.unique(y, axis=0, return_inverse=True)[1].reshape(-1)
    order = np.argsort(y, kind="stable")
    ranked = y[order].astype(np.float64)
    near = float(ranked.std()) if task == "regression" else 0.0
    start = np.searchsorted(ranked, y - near, "left")
    alike = np.searchsorted(ranked, y + near, "right") - start
    u = uniform(seed, stream, 0, keys.cpu(), 1)[:, 0].double().numpy()[rows]
    pick = (u * (len(rows) - alike)).astype(np.int64)
    pick = pick + np.where(pick >= start, alike, 0)
    some = alike < len(rows)
    out[rows[some]] = rows[order[pick[some]]]
    return out


def _as_found(
    model: Any, batch: Batch, task: str, calibration: Calibrator | None, empty: Floats, batch_size: int
) -> Floats:
    """``(2, N)`` loss and NLL of the rows as they are; without any input those of the constant answer."""
    nothing_asked = np.zeros((0, len(batch.modalities)), bool)
    swept = sweep(model, batch, subsets=nothing_asked, task=task, batch_size=batch_size)
    probs = predictions(swept, task, -1, calibration)
    out = empty.copy()
    ok = swept.scored & swept.present.any(axis=1)
    out[:, ok] = confidence_and_loss(task, probs[ok], swept.target[ok])[1], row_nll(task, probs[ok], swept.target[ok])
    return out
