"""From logits to what a user reads: label, probabilities, conformal set or interval, abstain, the inputs there were."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polyfuse.calibrate import Calibration
from polyfuse.data.batch import Batch
from polyfuse.data.spec import TargetSpec
from polyfuse.evaluate.metrics import probabilities
from polyfuse.models.fusion_model import FusionModel


@dataclass(frozen=True)
class Answer:
    """The answer to one row.

    Attributes:
        label: The most probable class; the list of labels above one half; or the expected value.
        confidence: Its calibrated probability (multilabel: of the least sure decision; regression: the spread).
        probabilities: By class or label; empty in regression.
        set: Classes of the conformal set; regression: lower and upper end of the interval. None without calibration.
        abstain: The answer is too unsure for the wanted risk, or nothing was there to judge by.
        present: Names of the inputs that were there.
    """

    label: str | list[str] | float
    confidence: float
    probabilities: dict[str, float]
    set: list[str] | list[float] | None
    abstain: bool
    present: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; an endless interval has None for its ends."""
        plain = asdict(self)
        if plain["set"] is not None:
            plain["set"] = [v if isinstance(v, str) or math.isfinite(v) else None for v in plain["set"]]
        return plain


@dataclass(frozen=True)
class Answers:
    """The answers to many rows, by column.

    Attributes:
        target: Task and classes.
        modalities: Names, in the column order of ``present``.
        probs: ``(N, C)`` calibrated probabilities; regression ``(N, 2)`` mean and spread, in units of the target.
        sets: ``(N, C)`` bool, or ``(N, 2)`` interval ends in regression, or None.
        abstain: ``(N,)`` bool.
        present: ``(N, M)`` bool.
    """

    target: TargetSpec
    modalities: tuple[str, ...]
    probs: NDArray[np.float64]
    sets: NDArray[Any] | None
    abstain: NDArray[np.bool_]
    present: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.probs)

    def labels(self) -> list[str] | list[list[str]] | list[float]:
        """One label, list of labels or value per row."""
        if self.target.task == "regression":
            return [float(v) for v in self.probs[:, 0]]
        names = np.asarray(self.target.classes, object)
        if self.target.task == "multilabel":
            return [names[row].tolist() for row in self.probs >= 0.5]
        return names[self.probs.argmax(axis=1)].tolist() if len(self) else []

    def confidence(self) -> NDArray[np.float64]:
        """How sure each answer is, as in ``Answer``."""
        if self.target.task == "regression":
            return self.probs[:, 1]
        if self.target.task == "multilabel":
            return np.maximum(self.probs, 1.0 - self.probs).min(axis=1)
        return self.probs.max(axis=1)

    def set_members(self) -> list[list[str]] | list[list[float]] | None:
        """Names in each conformal set, or the interval's ends."""
        if self.sets is None:
            return None
        if self.target.task == "regression":
            return [[float(low), float(high)] for low, high in self.sets]
        names = np.asarray(self.target.classes, object)
        return [names[row].tolist() for row in self.sets]

    def present_names(self) -> list[list[str]]:
        """Names of the inputs that each row had."""
        names = np.asarray(self.modalities, object)
        return [names[row].tolist() for row in self.present]

    def rows(self) -> list[Answer]:
        """One ``Answer`` per row."""
        sets = self.set_members() or [None] * len(self)
        classes = self.target.classes
        return [
            Answer(
                label=label,
                confidence=float(sure),
                probabilities=dict(zip(classes, map(float, probs), strict=True)) if classes else {},
                set=members,
                abstain=bool(abstain),
                present=present,
            )
            for label, sure, probs, members, abstain, present in zip(
                self.labels(), self.confidence(), self.probs, sets, self.abstain, self.present_names(), strict=True
            )
        ]

    def columns(self) -> dict[str, list[Any]]:
        """Columns of the prediction table, in order: text cells are JSON where they hold a list."""
        out: dict[str, list[Any]] = {"prediction": [_cell(v) for v in self.labels()]}
        out["std" if self.target.task == "regression" else "confidence"] = self.confidence().tolist()
        members = self.set_members()
        if self.target.task == "regression":
            out["low"] = [None] * len(self) if members is None else [_finite(m[0]) for m in members]
            out["high"] = [None] * len(self) if members is None else [_finite(m[1]) for m in members]
        else:
            out["set"] = [None] * len(self) if members is None else [_cell(m) for m in members]
        out["abstain"] = self.abstain.tolist()
        out["present"] = ["+".join(names) for names in self.present_names()]
        for c, name in enumerate(self.target.classes):
            out[f"p:{name}"] = self.probs[:, c].tolist()
        return out


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


@torch.inference_mode()
def answers(
    model: FusionModel,
    batch: Batch,
    target: TargetSpec,
    calibration: Calibration | None,
    prior: Sequence[float] | None = None,
) -> Answers:
    """Run a model on encoded rows and calibrate what it says; ``prior`` are the logits of an empty row without one."""
    if len(batch):
        logits = model(batch.inputs, batch.present).logits.float().clone().numpy()
    else:
        logits = np.zeros((0, 2 if target.task == "regression" else len(target.classes)), np.float32)
    present = batch.present.numpy()
    empty = ~present.any(axis=1)
    sets: NDArray[Any] | None
    if calibration is None:
        if prior is not None:
            logits[empty] = np.asarray(prior, np.float32)
        probs, sets, abstain = probabilities(target.task, logits), None, empty
    else:
        found = calibration.apply(logits, present)
        probs, abstain = found.probs, np.asarray(found.abstain, bool) | empty
        sets = found.sets if found.intervals is None else found.intervals * target.std + target.mean
    if target.task == "regression":
        mean = probs[:, 0] * target.std + target.mean
        probs = np.stack([mean, np.exp(0.5 * probs[:, 1]) * target.std], axis=1)
    probs = np.asarray(probs, np.float64)
    return Answers(target, batch.modalities, probs, sets, np.asarray(abstain, np.bool_), present)


def answer_batch(
    model: FusionModel,
    batch: Batch,
    target: TargetSpec,
    calibration: Calibration | None,
    prior: Sequence[float] | None = None,
) -> list[Answer]:
    """``answers``, one object per row."""
    return answers(model, batch, target, calibration, prior).rows()
