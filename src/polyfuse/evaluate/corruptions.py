"""Inputs that are there and wrong: one modality at a time is broken and nobody tells the model.

The patterns are those of ``data/corrupt.py``: noise of 1 and 3 standard deviations, permuted across rows, stuck, scaled
by 0 and 4. "stuck" and "scaled" are held out of the training augmentation. With ``flagged`` the model is told, and must
answer exactly as if the input were missing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyfuse.data.batch import Batch
from polyfuse.data.corrupt import TEST_CORRUPTIONS, InputScale, corrupt_modality
from polyfuse.evaluate.metrics import confidence
from polyfuse.evaluate.records import Record, plain, scores
from polyfuse.evaluate.selective import auroc
from polyfuse.evaluate.sweep import sweep
from polyfuse.evaluate.table import Calibrator, predictions


def corruption_records(
    model: Any,
    batch: Batch,
    task: str,
    calibration: Calibrator | None = None,
    *,
    corruptions: Sequence[tuple[str, float | None]] = TEST_CORRUPTIONS,
    scales: Mapping[str, InputScale] | None = None,
    flagged: bool = False,
    seed: int = 0,
    scale: float = 1.0,
    batch_size: int = 1024,
) -> list[Record]:
    """Scores with one input broken, per corruption and modality, over the rows that have that modality.

    Args:
        model: A fusion model or a baseline.
        batch: Test rows; each keeps its own holes.
        task: classification, multilabel or regression.
        calibration: Adds calibrated scores, coverage, abstention (names in ``records``).
        corruptions: ``(name, value)`` pairs of ``data/corrupt.py``.
        scales: ``fit_scales`` of the training rows, the unit of noise; None = measured on ``batch``.
        flagged: Also mark the input absent.
        seed: Of the keyed draws.
        scale: Standard deviation that undoes the target's standardisation (regression).
        batch_size: Rows per encoder call.

    Returns:
        Dicts with ``corruption`` ("noise 3"), ``modality``, ``flagged``, ``n``, the scores of ``records``, and
        ``detection_auroc``: how well a lower confidence tells a broken row from its intact self (0.5 = not at all).
        A modality that no row has gives no record.
    """
    out = []
    as_found = np.zeros((0, len(batch.modalities)), bool)
    for m, modality in enumerate(batch.modalities):
        rows = batch.rows(batch.present[:, m].nonzero()[:, 0])
        if not len(rows):
            continue
        clean = sweep(model, rows, subsets=as_found, task=task, batch_size=batch_size)
        sure = confidence(task, predictions(clean, task, -1, calibration))
        for name, value in corruptions:
            broken = corrupt_modality(rows, modality, name, value, seed=seed, flagged=flagged, scales=scales)
            swept = sweep(model, broken, subsets=as_found, task=task, batch_size=batch_size)
            known = clean.scored
            record: Record = {
                "corruption": name if value is None else f"{name} {value:g}",
                "modality": modality,
                "flagged": flagged,
                "n": int(known.sum()),
            }
            record |= scores(
                task, swept.own[known], swept.present[known], swept.target[known], calibration, scale=scale
            )
            now = confidence(task, predictions(swept, task, -1, calibration))
            record["detection_auroc"] = auroc(sure[known], now[known])
            out.append(plain(record))
    return out
