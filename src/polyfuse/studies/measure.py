"""Everything that a study writes down about one trained model, and about one data set.

Shapes: S subsets, N rows, M modalities, C outputs.
"""

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from polyfuse.calibrate import MaskTemperature, prior_logits
from polyfuse.calibrate.stages import Stages, fit_stages, stage_records
from polyfuse.config import CalibrateConfig, EvaluateConfig
from polyfuse.data.batch import Batch, map_tensors
from polyfuse.data.corrupt import TEST_CORRUPTIONS, fit_scales
from polyfuse.data.keyed import key_of
from polyfuse.datasets import DataSet
from polyfuse.evaluate.baselines import presence_only
from polyfuse.evaluate.bayes import bayes_records, posterior_sweep
from polyfuse.evaluate.corruptions import corruption_records, flagged_difference
from polyfuse.evaluate.metrics import PRIMARY, primary, probabilities, score
from polyfuse.evaluate.selective import Floats
from polyfuse.evaluate.subsets import mask_codes, subset_name
from polyfuse.evaluate.sweep import Sweep, sweep
from polyfuse.evaluate.table import all_predictions, drop_curve, row_losses, shapley, violation_rate
from polyfuse.models.fusion_model import FusionModel
from polyfuse.studies.arms import Plan, Task, only
from polyfuse.studies.compare import mean_over_subsets
from polyfuse.studies.judge import asked_subsets, fit_calibration
from polyfuse.studies.results import Records

SCORES = (
    "accuracy",
    "macro_ap",
    "r2",
    "macro_f1",
    "rmse",
    "nll",
    "brier",
    "crps",
    "ece",
    "ece_equal_mass",
    "aurc",
    "augrc",
)
"""Of ``metrics.score``, in this order; ``ece_equal_mass`` is written as ``ace``."""


_MOST_BROKEN = 64 << 20  # bytes


class Loaded:
    """A data set in a worker, and what many jobs need of it."""

    def __init__(self, data: DataSet, evaluate: EvaluateConfig, calibrate: CalibrateConfig, encode: bool) -> None:
        self.data = data
        self._answers: dict[bytes, Tensor] = {}
        self.broken: dict[tuple[str, str], Any] = {}  # test inputs that the first job has corrupted
        self.task = Task(
            data.train, data.validation, data.test, data.specs, data.target, data.groups, evaluate, calibrate, encode
        )

    @cached_property
    def scales(self) -> dict[str, Any]:
        """Units of the noise."""
        return fit_scales(self.data.train)

    @cached_property
    def keeps_broken(self) -> bool:
        """Whether all corrupted test inputs together are small enough to be kept between jobs."""
        sizes: list[int] = []
        map_tensors(self.data.test.inputs, lambda tensor: sizes.append(tensor.numel() * tensor.element_size()))
        return len(TEST_CORRUPTIONS) * sum(sizes) <= _MOST_BROKEN

    @cached_property
    def subsets(self) -> NDArray[np.bool_]:
        """``(S, M)`` what is asked of the test rows."""
        return asked_subsets(self.data.test, self.task.evaluate)

    def posterior(self, batch: Batch, present: Tensor) -> Tensor:
        """The exact posterior of the test rows; every pattern is asked for once."""
        assert self.data.posterior is not None  # noqa: S101 - asked by the caller
        key = present.contiguous().numpy().tobytes()
        if key not in self._answers:
            self._answers[key] = self.data.posterior(batch, present)
        return self._answers[key]

    @cached_property
    def nothing(self) -> float:
        """The primary metric of the best constant answer, on the test rows."""
        kind, train, test = self.data.target.task, self.data.train.target, self.data.test.target
        assert train is not None  # noqa: S101 - data sets have targets
        assert test is not None  # noqa: S101
        outputs = 2 if kind == "regression" else self.data.target.outputs
        constant = probabilities(kind, prior_logits(kind, train.numpy(), outputs))
        answers = np.broadcast_to(constant, (len(test), len(constant)))
        return score(kind, answers, test.numpy(), scale=self.data.target.std)[PRIMARY[kind]]


def bayes_scores(loaded: Loaded, out: Records) -> None:
    """The reference no model can beat in the mean: the exact posterior, judged like an arm."""
    data, kind = loaded.data, loaded.data.target.task
    out.head["arm"] = "bayes"
    nobody = presence_only(data.train, kind, outputs=data.target.outputs)
    asked = sweep(nobody, data.test, subsets=loaded.subsets, task=kind)
    exact = posterior_sweep(asked, loaded.posterior, data.test)
    predicted = all_predictions(exact, kind)
    _subset_scores(exact, predicted, loaded, out)
    _seed_scores(exact, predicted, loaded, out)
    _row_scores(exact, predicted, loaded, out)


# ---- judging -----------------------------------------------------------------------------------------------------


def judge_model(model: Any, task: Task, plan: Plan, loaded: Loaded, out: Records) -> None:
    """All patterns of the protocol.

    Args:
        model: A ``FusionModel`` or a baseline.
        task: The rows that it was trained and is judged on.
        plan: The arm.
        loaded: The data set.
        out: Takes the records.
    """
    kind, test = task.target.task, task.test
    subsets = loaded.subsets if not plan.uses else asked_subsets(test, task.evaluate)
    swept = sweep(model, test, subsets=subsets, task=kind, batch_size=task.evaluate.batch_size)
    out.add("job", "ms_per_row", swept.ms_per_row)
    predicted = all_predictions(swept, kind)
    _subset_scores(swept, predicted, loaded, out)
    _seed_scores(swept, predicted, loaded, out)
    if loaded.data.posterior is not None and not plan.uses:
        for r in bayes_records(swept, loaded.posterior, test):
            if r["subset"]:  # the rest is in the records of the posterior itself
                out.add("subset", r["metric"], r["value"], r["n"], subset=r["subset"], stage="raw")
    how: dict[str, Any] = {"scale": task.target.std, "bins": task.evaluate.bins, "predicted": predicted}
    for point in drop_curve(swept, kind, task.evaluate.drop_rates, **how, classwise=False):
        out.scores("curve", _kept(point), int(point["n"]), corruption=f"{point['rate']:g}", stage="raw")
    _row_scores(swept, predicted, loaded, out, plan.uses, _calibrated_scores(model, swept, task, plan, out))
    if plan.baseline == "presence_only" or not task.evaluate.corruptions:
        return
    scales = fit_scales(task.train) if plan.uses else loaded.scales
    _broken_scores(model, task, plan, scales, loaded, out)


def _kept(scores: Mapping[str, Any]) -> dict[str, float]:
    return {_NAMES.get(key, key): scores[key] for key in SCORES if key in scores}


_NAMES = {"ece_equal_mass": "ace"}


def _subset_scores(swept: Sweep, predicted: Floats, loaded: Loaded, out: Records) -> None:
    """P0 to P3: every subset, and the rows as they are."""
    kind = loaded.data.target.task
    how: dict[str, Any] = {"scale": loaded.data.target.std, "bins": loaded.task.evaluate.bins, "classwise": False}
    for s, mask in enumerate(swept.subsets):
        rows = swept.valid[s]
        if rows.any():
            found = score(kind, predicted[s, rows], swept.target[rows], **how)
            out.scores("subset", _kept(found), int(rows.sum()), subset=subset_name(mask, swept.modalities), stage="raw")
    rows = swept.scored
    found = score(kind, predicted[-1, rows], swept.target[rows], **how)
    out.scores("found", _kept(found), int(rows.sum()), stage="raw")


class _Tempered:
    """A temperature per mask as what ``all_predictions`` takes for a calibration."""

    def __init__(self, task: str, temperature: MaskTemperature) -> None:
        self.task, self.temperature = task, temperature

    def apply(self, logits: ArrayLike, present: ArrayLike) -> Any:
        z = self.temperature.apply(logits, present)
        return SimpleNamespace(probs=z if self.task == "regression" else probabilities(self.task, z))


def _calibrated_scores(model: Any, swept: Sweep, task: Task, plan: Plan, out: Records) -> Floats | None:
    """Every stage of calibration, fitted on validation rows; returns the predictions of the one per mask."""
    kind, config = task.target.task, task.calibrate
    if not config.enabled or not len(task.validation):
        return None
    names = task.groups["validation"] if task.groups is not None and not plan.uses else None
    groups = None if names is None else key_of(list(names)).numpy()
    masks = asked_subsets(task.validation, task.evaluate)
    held = sweep(model, task.validation, subsets=masks, task=kind, batch_size=task.evaluate.batch_size)
    stages = fit_stages(held, kind, config.alpha, groups, risk=config.risk)
    for r in stage_records(stages, swept, scale=task.target.std, bins=task.evaluate.bins):
        if r["stage"] != "raw":  # these are there, with more of them
            out.add("subset", r["metric"], r["value"], r["n"], subset=r["subset"], stage=r["stage"])
    _calibration_rows(stages, swept, out)
    if kind == "multilabel":
        _label_sets(model, swept, task, names, out)
    tempered = all_predictions(swept, kind, _Tempered(kind, stages.temperatures["mask"]))
    out.scores("seed", violation_rate(swept, kind, predicted=tempered), 0, stage="mask")
    return tempered


def _calibration_rows(stages: Stages, swept: Sweep, out: Records) -> None:
    stage = "residual mask" if stages.task == "regression" else "lac mask"
    for mask, code in zip(swept.subsets, mask_codes(swept.subsets), strict=True):
        rows = stages.rows.get(int(code), 0)
        out.add("subset", "calibration_rows", rows, subset=subset_name(mask, swept.modalities), stage=stage)


def _label_sets(model: Any, swept: Sweep, task: Task, groups: Sequence[str] | None, out: Records) -> None:
    """Sets of labels per mask, which stages do not make."""
    fitted = fit_calibration(
        model, task.train, task.validation, task.target.task, task.calibrate, task.evaluate, groups
    )
    if fitted is None:
        return
    for s, mask in enumerate(swept.subsets):
        rows = swept.valid[s]
        n = int(rows.sum())
        if not n:
            continue
        sets = fitted.apply(swept.logits[s, rows], np.broadcast_to(mask, (n, len(mask)))).sets
        assert sets is not None  # noqa: S101 - only regression has none
        true = swept.target[rows] > 0.5
        some = true.any(axis=1)
        where = {"subset": subset_name(mask, swept.modalities), "stage": "labels mask"}
        if some.any():
            share = (sets & true).sum(axis=1)[some] / true.sum(axis=1)[some]
            out.add("subset", "coverage", share.mean(), int(some.sum()), **where)
        out.add("subset", "set_size", sets.sum(axis=1).mean(), n, **where)


def _seed_scores(swept: Sweep, predicted: Floats, loaded: Loaded, out: Records) -> None:
    """Coherence, and what each input is worth to this model."""
    kind, names = loaded.data.target.task, swept.modalities
    out.scores("seed", violation_rate(swept, kind, predicted=predicted), 0, stage="raw")
    if len(swept.subsets) != 2 ** len(names) - 1 or len(names) < 2:
        return
    values = {}
    for s, mask in enumerate(swept.subsets):
        rows = swept.valid[s]
        if not rows.any():
            return
        values[subset_name(mask, names)] = primary(kind, predicted[s, rows], swept.target[rows])
    shares = shapley(values, names, loaded.nothing)
    for name, value in shares.items():
        out.add("seed", "shapley", value, modality=name)
    total = sum(abs(value) for value in shares.values())
    if total > 0:
        out.add("seed", "shapley_balance", 1.0 - (max(shares.values()) - min(shares.values())) / total)


def _row_scores(
    swept: Sweep,
    predicted: Floats,
    loaded: Loaded,
    out: Records,
    uses: Sequence[str] = (),
    tempered: Floats | None = None,
) -> None:
    """Losses of every test row, by subset, and mean NLL over subsets; a unimodal arm has none without its input."""
    kind, test = loaded.data.target.task, loaded.data.test
    places = only(test, uses)[1] if uses else np.arange(len(test))

    def spread(values: NDArray[Any]) -> NDArray[np.float32]:
        whole = np.full(len(test), np.nan, np.float32)
        whole[places] = values
        return whole

    losses, keys = row_losses(swept, kind, predicted=predicted), test.keys.numpy()
    for s, mask in enumerate(swept.subsets):
        rows = swept.valid[s]
        if rows.any():
            out.add(
                "row",
                "loss",
                losses[s, rows].mean(),
                int(rows.sum()),
                subset=subset_name(mask, swept.modalities),
                values=spread(losses[s]),
                keys=keys,
            )
    for stage, probs in (("raw", predicted), ("mask", tempered)):
        if probs is not None:
            nll = mean_over_subsets(row_losses(swept, kind, "nll", predicted=probs)[None])[0]
            n = int(np.isfinite(nll).sum())
            out.add("row", "nll", np.nanmean(nll) if n else None, n, stage=stage, values=spread(nll), keys=keys)


def _broken_scores(model: Any, task: Task, plan: Plan, scales: Mapping[str, Any], loaded: Loaded, out: Records) -> None:
    """P5 and P6: inputs that are there and wrong; inputs that are wrong and marked absent."""
    test, kind = task.test, task.target.task
    places = torch.from_numpy(only(loaded.data.test, plan.uses)[1]) if plan.uses else None
    whole = test is loaded.data.test and scales is loaded.scales
    given: dict[tuple[str, str], Any] = {}
    for (modality, name), value in loaded.data.broken.items():
        if modality in test.modalities:
            given[modality, name] = value if places is None else _rows(value, places)
    found = corruption_records(
        model,
        test,
        kind,
        scales=scales,
        scale=task.target.std,
        batch_size=task.evaluate.batch_size,
        given=given,
        losses=not plan.uses,
        made=loaded.broken if whole and loaded.keeps_broken else None,
        classwise=False,
    )
    keys = test.keys.numpy()
    for record in found:
        where = {"corruption": record["corruption"], "modality": record["modality"]}
        detection = {"detection_auroc": record["detection_auroc"]}
        out.scores("broken", {**_kept(record), **detection}, record["n"], stage="raw", **where)
        if "losses" in record:
            lost = record["losses"]
            mean = float(np.nanmean(lost)) if np.isfinite(lost).any() else None
            out.add("row", "loss", mean, record["n"], values=lost, keys=keys, **where)
    if isinstance(model, FusionModel):
        for modality, difference in flagged_difference(model, test, scales=scales).items():
            out.add("flagged", "difference", difference, len(test), modality=modality)


def _rows(value: Any, index: Tensor) -> Any:
    return {key: part[index] for key, part in value.items()} if isinstance(value, Mapping) else value[index]


# ---- costs -------------------------------------------------------------------------------------------------------


def multiply_adds(model: FusionModel, batch: Batch) -> float:
    """Of fusion and head, per row: matrix products only."""
    rows = batch.rows(torch.arange(min(32, len(batch))))
    model.eval()
    with torch.no_grad():
        embeddings = model.encode(rows.inputs, rows.present)
        with FlopCounterMode(display=False) as counter:
            model.fuse(embeddings, rows.present)
    return counter.get_total_flops() / 2 / len(rows)


_WARM = False


@contextmanager
def peak_memory() -> Iterator[Callable[[], float | None]]:
    """How far the resident memory of this process rises above where it stood, in MB.

    What the allocator had kept from earlier jobs is given back first. None for the first job of a process, which also
    loads libraries, and where the system does not tell (it takes Linux and glibc).
    """
    global _WARM
    ready, _WARM = _WARM, True
    try:
        ctypes.CDLL(None).malloc_trim(0)
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts anew
    except (OSError, AttributeError, TypeError):
        ready, before = False, None

    def grown() -> float | None:
        peak = _status("VmHWM")
        return None if before is None or peak is None or not ready else max(peak - before, 0.0)

    yield grown


def _status(key: str) -> float | None:
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith(f"{key}:")), None)
