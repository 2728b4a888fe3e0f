"""Everything a run needs to turn logits into an answer: temperature, sets, abstention, prior. One JSON file.

Shapes: S subsets, N rows, M modalities, C outputs. Masks: True = present.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyfuse.calibrate.abstain import Abstention
from polyfuse.calibrate.conformal import ConformalSets
from polyfuse.calibrate.temperature import MaskTemperature, halves
from polyfuse.errors import UserError
from polyfuse.evaluate.metrics import check_task, confidence, probabilities, scorable
from polyfuse.evaluate.selective import Floats
from polyfuse.evaluate.sweep import Sweep

FORMAT = 1
"""Version of calibration.json; a reader refuses a newer one."""


@dataclass(frozen=True)
class Calibrated:
    """Answers, row by row.

    Attributes:
        probs: ``(N, C)`` calibrated probabilities; regression: mean and log-variance ``(N, 2)``.
        sets: ``(N, C)`` bool conformal sets; None in regression.
        intervals: ``(N, 2)`` low and high; None unless regression.
        abstain: ``(N,)`` bool: too unsure for the wanted risk, or nothing present.
        confidence: ``(N,)`` top probability; multilabel: mean of max(p, 1 - p); regression: minus the predicted spread.
        empty: ``(N,)`` bool: nothing present; ``probs`` is the class prior.
    """

    probs: Floats
    sets: NDArray[np.bool_] | None
    intervals: Floats | None
    abstain: NDArray[np.bool_]
    confidence: Floats
    empty: NDArray[np.bool_]


def prior_logits(task: str, target: ArrayLike, outputs: int) -> Floats:
    """``(C,)`` logits of the constant prediction: class or label frequencies (one row added), mean and log-variance.

    Example:
        >>> probabilities("classification", prior_logits("classification", [0, 0, 1], 2)).round(4).tolist()
        [0.625, 0.375]
    """
    y = np.asarray(target)
    y = y[scorable(task, y)]
    if check_task(task) == "classification":
        return np.log((np.bincount(y.astype(np.int64), minlength=outputs) + 1 / outputs) / (len(y) + 1))
    if task == "multilabel":
        p = (y.reshape(-1, outputs).sum(axis=0) + 0.5) / (len(y) + 1)
        return np.asarray(np.log(p) - np.log1p(-p))
    return np.array([y.mean(), np.log(max(float(y.var()), 1e-6))]) if len(y) else np.zeros(2)


@dataclass(frozen=True)
class Calibration:
    """Calibration of one model, saved with its run.

    Attributes:
        task: classification, multilabel or regression.
        modalities: Names, in column order of ``present``.
        prior: ``(C,)`` logits for rows without any input.
        temperature: Fitted on one half of the rows.
        conformal: Fitted on the other half, after the temperature.
        abstention: On all rows, after the temperature; None = answer always (except where nothing is present).
    """

    task: str
    modalities: tuple[str, ...]
    prior: tuple[float, ...]
    temperature: MaskTemperature
    conformal: ConformalSets
    abstention: Abstention | None = None

    @classmethod
    def fit(
        cls,
        swept: Sweep,
        task: str,
        *,
        alpha: float = 0.1,
        risk: float | None = 0.1,
        ordered: bool = False,
        prior: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        seed: int = 0,
    ) -> "Calibration":
        """Calibrate on a sweep over rows that the model was not trained on.

        Sets are fitted on other rows than the temperature. Abstention is on both halves: it reads the order of the
        rows of one mask and their losses. No temperature of the mask changes either for two classes or in regression;
        for more classes or labels M + 1 numbers under a prior hardly do, and half of the rows would answer far less.

        Args:
            swept: Sweep over validation rows.
            task: classification, multilabel or regression.
            alpha: The sets miss at most this share.
            risk: Wanted risk of answered rows (``Abstention.risk``); None = never abstain where something is present.
            ordered: Temperatures that never fall when an input is lost.
            prior: ``(C,)`` ``prior_logits`` of the training target; None = of the sweep's.
            groups: ``(N,)`` int64 key of each row's group, kept on one side of the split; None = the row's own key.
            seed: Of the split in halves.
        """
        first, second = halves(swept.keys if groups is None else groups, seed=seed)
        temperature = MaskTemperature.fit(
            task, swept.logits, swept.target, swept.subsets, swept.valid & first, ordered=ordered
        )
        probs = np.full(swept.logits.shape, np.nan)
        for s, mask in enumerate(swept.subsets):
            ok = swept.valid[s]
            present = np.broadcast_to(mask, (int(ok.sum()), len(mask)))
            probs[s, ok] = _predictions(task, temperature.apply(swept.logits[s, ok], present))
        held = swept.valid & second
        outputs = swept.logits.shape[2]
        constant = prior_logits(task, swept.target, outputs) if prior is None else np.asarray(prior, np.float64)
        return cls(
            task=task,
            modalities=swept.modalities,
            prior=tuple(constant.tolist()),
            temperature=temperature,
            conformal=ConformalSets.fit(probs, swept.target, swept.subsets, held, alpha, task=task),
            abstention=None
            if risk is None
            else Abstention.fit(probs, swept.target, swept.subsets, swept.valid, risk, task=task),
        )

    def apply(self, logits: ArrayLike, present: ArrayLike) -> Calibrated:
        """Calibrated answers for ``logits (N, C)`` of rows with ``present (N, M)``.

        A row without any input gets the prior whatever its logits, the full set (an infinite interval), and abstains. A
        mask that was not calibrated gets its temperature from the formula, the full set, and abstains.

        Raises:
            ValueError: If shapes do not fit.
        """
        z, here = np.asarray(logits, np.float64), np.asarray(present, bool)
        if z.ndim != 2 or z.shape[1] != len(self.prior):
            raise ValueError(f"logits must be (N, C) = (N, {len(self.prior)}), got {z.shape}")
        empty: NDArray[np.bool_] = np.asarray(~here.any(axis=1))
        probs = _predictions(self.task, self.temperature.apply(z, here))
        probs[empty] = probabilities(self.task, np.array(self.prior))
        abstain = empty if self.abstention is None else self.abstention.flag(probs, here)
        regression = self.task == "regression"
        return Calibrated(
            probs=probs,
            sets=None if regression else self.conformal.sets(probs, here),
            intervals=self.conformal.intervals(probs, here) if regression else None,
            abstain=abstain,
            confidence=confidence(self.task, probs),
            empty=empty,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for calibration.json."""
        return {
            "format": FORMAT,
            "task": self.task,
            "modalities": list(self.modalities),
            "prior": list(self.prior),
            "temperature": self.temperature.to_dict(),
            "conformal": self.conformal.to_dict(),
            "abstention": None if self.abstention is None else self.abstention.to_dict(),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], modalities: Sequence[str] | None = None) -> "Calibration":
        """The inverse of ``to_dict``.

        Raises:
            UserError: If it was written by a newer polyfuse, or for modalities other than those given.
        """
        if int(record["format"]) > FORMAT:
            raise UserError(
                f"this calibration has format {record['format']}, this polyfuse reads {FORMAT}: upgrade polyfuse"
            )
        names = tuple(record["modalities"])
        if modalities is not None and names != tuple(modalities):
            raise UserError(f"this calibration is for modalities {names}, got {tuple(modalities)}: calibrate again")
        abstention = record["abstention"]
        return cls(
            task=record["task"],
            modalities=names,
            prior=tuple(float(v) for v in record["prior"]),
            temperature=MaskTemperature.from_dict(record["temperature"]),
            conformal=ConformalSets.from_dict(record["conformal"]),
            abstention=None if abstention is None else Abstention.from_dict(abstention),
        )


def _predictions(task: str, logits: Floats) -> Floats:
    """``probabilities`` without its clamp: a calibrated variance may leave the head's range."""
    return logits if task == "regression" else probabilities(task, logits)
