"""Judge one trained model on test rows: everything that a report shows about one arm and seed.

Used by a plain training run (one arm, one seed) and by every comparison (many), so that both say the same things.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.calibrate import Calibration, prior_logits
from polyfuse.data.batch import Batch
from polyfuse.data.corrupt import InputScale
from polyfuse.data.keyed import key_of
from polyfuse.evaluate.corruptions import corruption_records
from polyfuse.evaluate.metrics import probabilities
from polyfuse.evaluate.records import Record, own_record, records, reliability_records
from polyfuse.evaluate.subsets import subsets_of
from polyfuse.evaluate.sweep import sweep
from polyfuse.evaluate.table import Calibrator, all_predictions, primary_curve, row_losses, violation_rate
from polyfuse.evaluate.unplug import unplug
from polyfuse.report.content import ReportData
from polyfuse.report.records import (
    Bin,
    CorruptionRecord,
    CurvePoint,
    InputRecord,
    Reliability,
    SeedRecord,
    SubsetRecord,
    Weights,
    ordered_subset,
)

if TYPE_CHECKING:
    from polyfuse.config import CalibrateConfig, EvaluateConfig


@dataclass(frozen=True)
class Judgement:
    """What one arm and seed did on the test rows: plain values, cheap to send between processes.

    Attributes:
        records: One flat record per subset.
        own: The rows as found, with their own holes.
        seed_metrics: Numbers that belong to no subset.
        curve: ``(rate, primary metric)``.
        corruption: One flat record per corruption and modality.
        reliability: Diagrams per subset and stage.
        subsets: ``(S, M)`` bool, the order of ``losses``.
        losses: ``(S, N)`` loss of every row on every subset (error, Hamming or squared error); NaN where it lacks one.
        nll: ``(S, N)`` the same of the negative log-likelihood, after calibration where there is one.
        inputs: Whether it uses each input, and what adding it is worth (``evaluate/unplug.py``).
    """

    records: list[Record]
    own: Record
    seed_metrics: dict[str, float]
    curve: list[tuple[float, float]]
    corruption: list[Record]
    reliability: list[Record]
    subsets: NDArray[np.bool_]
    losses: NDArray[np.float32]
    nll: NDArray[np.float32]
    inputs: list[Record] = field(default_factory=list)

    def add_to(self, report: ReportData, arm: str, seed: int, *, reliability: bool = True) -> None:
        """Append everything to a report under ``arm`` and ``seed``."""
        names = report.modalities
        report.subset_records += [
            SubsetRecord.from_metrics(arm, seed, {**r, "subset": ordered_subset(r["modalities"], names)})
            for r in self.records
        ]
        report.seed_records.append(SeedRecord(arm, seed, self.seed_metrics))
        report.curves += [CurvePoint(arm, seed, rate, value) for rate, value in self.curve]
        report.corruption += [CorruptionRecord.from_metrics(arm, seed, r) for r in self.corruption]
        if not any(r.arm == arm for r in report.inputs):  # of the first seed
            report.inputs += [InputRecord.from_metrics(arm, seed, r) for r in self.inputs]
        report.weights += [
            Weights(arm, ordered_subset(r["modalities"], names), r["weights"], seed)
            for r in self.records
            if r.get("weights")
        ]
        if reliability:
            report.reliability += [
                Reliability(
                    arm, ordered_subset(r["modalities"], names), r["stage"], tuple(Bin(**_bin(b)) for b in r["bins"])
                )
                for r in self.reliability
            ]


def _bin(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"confidence": record["confidence"], "accuracy": record["accuracy"], "count": int(record["count"])}


def judge(
    model: Any,
    test: Batch,
    task: str,
    calibration: Calibrator | None = None,
    *,
    evaluate: "EvaluateConfig",
    scale: float = 1.0,
    scales: Mapping[str, InputScale] | None = None,
    subsets: NDArray[np.bool_] | None = None,
    corruptions: bool | None = None,
    groups: Sequence[str] | None = None,
    permutations: int = 1,
) -> Judgement:
    """Sweep a model over every combination of inputs and score it.

    Args:
        model: A ``FusionModel`` or a baseline with ``predict_logits``.
        test: Rows with targets.
        task: classification, multilabel or regression.
        calibration: Fitted on validation rows; None = raw scores only.
        evaluate: Batch size, subsets, rates, corruptions.
        scale: Standard deviation of the target in training (regression).
        scales: ``fit_scales`` of the training inputs, the unit of test noise.
        subsets: ``(S, M)`` to ask about; None = all up to ``evaluate.all_subsets_up_to`` modalities.
        corruptions: Overrides ``evaluate.corruptions``.
        groups: What each test row belongs to, for the intervals of ``inputs``.
        permutations: Shuffles of each input that are averaged there.
    """
    masks = asked_subsets(test, evaluate) if subsets is None else subsets
    swept = sweep(model, test, subsets=masks, task=task, batch_size=evaluate.batch_size)
    predicted = all_predictions(swept, task, calibration)
    broken: list[Record] = []
    if evaluate.corruptions if corruptions is None else corruptions:
        broken = corruption_records(
            model, test, task, calibration, scales=scales, scale=scale, batch_size=evaluate.batch_size
        )
    losses = row_losses(swept, task).astype(np.float32)
    nll = row_losses(swept, task, "nll", predicted=predicted).astype(np.float32)
    return Judgement(
        records=records(swept, task, calibration, scale=scale, bins=evaluate.bins),
        own=own_record(swept, task, calibration, scale=scale, bins=evaluate.bins),
        seed_metrics=_finite(violation_rate(swept, task, predicted=predicted)),
        curve=primary_curve(swept, task, evaluate.drop_rates, predicted=predicted),
        corruption=broken,
        reliability=reliability_records(swept, task, calibration, bins=evaluate.bins, predicted=predicted),
        subsets=masks,
        losses=losses,
        nll=nll,
        inputs=_inputs(model, test, task, masks, losses, nll, calibration, evaluate, groups, permutations),
    )


def _inputs(
    model: Any,
    test: Batch,
    task: str,
    subsets: NDArray[np.bool_],
    losses: NDArray[np.float32],
    nll: NDArray[np.float32],
    calibration: Calibrator | None,
    evaluate: "EvaluateConfig",
    groups: Sequence[str] | None,
    permutations: int,
) -> list[Record]:
    """``unplug``; the constant answer is the prior of the training rows, or without calibration that of these rows."""
    if len(test.modalities) < 2 or not len(test) or test.target is None:
        return []
    outputs = 2 if task == "regression" else test.target.shape[1] if task == "multilabel" else 0
    constant = getattr(calibration, "prior", None)
    if constant is None:
        classes = max(outputs, int(test.target.max()) + 1 if task == "classification" else 0)
        constant = prior_logits(task, test.target.numpy(), classes)
    return unplug(
        model,
        test,
        task,
        subsets,
        losses,
        nll,
        probabilities(task, constant),
        calibration,
        groups=None if groups is None else list(groups),
        permutations=permutations,
        draws=min(evaluate.bootstrap, 1000 if permutations > 1 else 400),
        batch_size=evaluate.batch_size,
    )


def asked_subsets(batch: Batch, evaluate: "EvaluateConfig") -> NDArray[np.bool_]:
    """``(S, M)`` the combinations that are calibrated and judged: all, or above a number of modalities a sample."""
    present = batch.present.cpu().numpy()
    return subsets_of(present, sampled=evaluate.sampled_subsets, exhaustive=evaluate.all_subsets_up_to)


def fit_calibration(
    model: Any,
    train: Batch,
    validation: Batch,
    task: str,
    config: "CalibrateConfig",
    evaluate: "EvaluateConfig",
    groups: Sequence[str] | None = None,
) -> Calibration | None:
    """Calibrate a model on validation rows; None where it is switched off or there are none.

    Args:
        model: A ``FusionModel`` or a baseline.
        train: Gives the prior of rows without any input.
        validation: Rows the model was not trained on.
        task: classification, multilabel or regression.
        config: Levels.
        evaluate: Batch size and subsets.
        groups: What each validation row belongs to, kept on one side of the split in halves.
    """
    if not config.enabled or not len(validation):
        return None
    masks = asked_subsets(validation, evaluate)
    swept = sweep(model, validation, subsets=masks, task=task, batch_size=evaluate.batch_size)
    return Calibration.fit(
        swept,
        task,
        alpha=config.alpha,
        risk=config.risk,
        ordered=config.ordered,
        prior=None if train.target is None else prior_logits(task, train.target.numpy(), swept.logits.shape[2]),
        groups=None if groups is None else key_of(list(groups)).numpy(),
    )


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items() if np.isfinite(value)}
