"""Inputs that are there and wrong: one modality at a time is broken and nobody tells the model.

The patterns are those of ``data/corrupt.py``: noise of 1 and 3 standard deviations, permuted across rows, stuck, scaled
by 0 and 4. "stuck" and "scaled" are held out of the training augmentation. With ``flagged`` the model is told, and must
answer exactly as if the input were missing.
"""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyfuse.data.batch import Batch, Inputs, map_tensors
from polyfuse.data.corrupt import TEST_CORRUPTIONS, InputScale, Value, corrupt_modality
from polyfuse.evaluate.metrics import confidence, confidence_and_loss
from polyfuse.evaluate.records import Record, plain, scores
from polyfuse.evaluate.selective import auroc
from polyfuse.evaluate.sweep import embed, sweep
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
    given: Mapping[tuple[str, str], Value] | None = None,
    losses: bool = False,
    made: MutableMapping[tuple[str, str], Value] | None = None,
    classwise: bool = True,
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
        given: Inputs broken before they were encoded, ``{(modality, corruption): input}``, rows as in ``batch``.
        losses: Also ``losses``: an array over the rows of ``batch``, NaN where the modality is absent.
        made: Takes the corrupted inputs, ``{(modality, "noise 3"): input}`` of the rows that have the modality, for the
            next call with the same rows, scales and seed.
        classwise: Also ``ece_classwise``.

    Returns:
        Dicts with ``corruption`` ("noise 3"), ``modality``, ``flagged``, ``n``, the scores of ``records``, and
        ``detection_auroc``: how well a lower confidence tells a broken row from its intact self (0.5 = not at all).
        A modality that no row has gives no record.
    """
    out = []
    as_found = np.zeros((0, len(batch.modalities)), bool)
    reusable = isinstance(model, torch.nn.Module) and hasattr(model, "encoders")
    clean_inputs: Inputs = {**embed(model, batch, batch_size=batch_size)} if reusable else batch.inputs
    for m, modality in enumerate(batch.modalities):
        here = batch.present[:, m].nonzero()[:, 0]
        if not len(here):
            continue
        rows, known_inputs = batch.rows(here), replace(batch, inputs=clean_inputs).rows(here)
        clean = sweep(
            Reusing(model) if reusable else model, known_inputs, subsets=as_found, task=task, batch_size=batch_size
        )
        sure = confidence(task, predictions(clean, task, -1, calibration))
        listed = {name if value is None else f"{name} {value:g}": (name, value) for name, value in corruptions}
        found = {name: value for (of, name), value in (given or {}).items() if of == modality}
        for title in (*listed, *found):
            if made is not None and (modality, title) in made and title in listed:
                broken = _replaced(rows, modality, made[modality, title], None, flagged)
            elif title in listed:
                broken = corrupt_modality(rows, modality, *listed[title], seed=seed, flagged=flagged, scales=scales)
                if made is not None:
                    made[modality, title] = broken.inputs[modality]
            else:
                broken = _replaced(rows, modality, found[title], here, flagged)
            now = replace(broken, inputs={**known_inputs.inputs, modality: broken.inputs[modality]})
            asked = Reusing(model, modality) if reusable else model
            swept = sweep(asked, now, subsets=as_found, task=task, batch_size=batch_size)
            ok = clean.scored
            record: Record = {
                "corruption": title,
                "modality": modality,
                "flagged": flagged,
                "n": int(ok.sum()),
            }
            record |= scores(
                task, swept.own[ok], swept.present[ok], swept.target[ok], calibration, scale=scale, classwise=classwise
            )
            after = confidence(task, predictions(swept, task, -1, calibration))
            record["detection_auroc"] = auroc(sure[ok], after[ok])
            out.append(plain(record))
            if losses:
                after_rows = predictions(swept, task, -1)
                lost = np.full(len(batch), np.nan, np.float32)
                lost[here.numpy()[ok]] = confidence_and_loss(task, after_rows[ok], swept.target[ok])[1]
                out[-1]["losses"] = lost
    return out


def flagged_difference(
    model: Any,
    batch: Batch,
    *,
    corruption: tuple[str, float | None] = ("noise", 3.0),
    scales: Mapping[str, InputScale] | None = None,
    batch_size: int = 1024,
) -> dict[str, float]:
    """By modality, the largest change of a logit when an input marked absent is broken too: 0 if nothing leaks.

    Args:
        model: A fusion model or a baseline.
        batch: Rows with a target.
        corruption: What is done to the absent input.
        scales: As in ``corruption_records``.
        batch_size: Rows per encoder call.
    """
    out = {}
    as_found = np.zeros((0, len(batch.modalities)), bool)
    for m, modality in enumerate(batch.modalities):
        here = batch.present[:, m].nonzero()[:, 0]
        if not len(here):
            continue
        rows = batch.rows(here)
        broken = corrupt_modality(rows, modality, *corruption, flagged=True, scales=scales)
        removed = rows.with_present(broken.present)
        one, other = (sweep(model, b, subsets=as_found, batch_size=batch_size).own for b in (removed, broken))
        out[modality] = float(np.abs(one - other).max())
    return out


def _replaced(rows: Batch, modality: str, value: Value, here: Tensor | None, flagged: bool) -> Batch:
    """``rows`` with another input: ``value``, or what it says of the rows ``here``."""
    taken = {modality: value} if here is None else map_tensors({modality: value}, lambda tensor: tensor[here])
    inputs = {**rows.inputs, **taken}
    present = rows.present.clone()
    if flagged:
        present[:, rows.modalities.index(modality)] = False
    return replace(rows, inputs=inputs, present=present)


class Reusing(torch.nn.Module):
    """The model on inputs that are embeddings already, but for one modality: the others are not encoded again."""

    def __init__(self, model: Any, raw: str | None = None) -> None:
        super().__init__()
        self.model, self.raw, self.modalities = model, raw, model.modalities

    def encode(self, inputs: Mapping[str, Any], present: Tensor) -> dict[str, Any]:
        """The embeddings given; ``raw`` is encoded."""
        if self.raw is None:
            return dict(inputs)
        # Every row asked has this input, or is flagged and the fusion does not look: nothing needs to be zeroed here.
        return {**inputs, self.raw: self.model.encoders[self.raw](inputs[self.raw])}

    def fuse(self, embeddings: Mapping[str, Tensor], present: Tensor) -> Any:
        """As the model does."""
        return self.model.fuse(embeddings, present)
