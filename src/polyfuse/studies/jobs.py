"""One job of a study: train one arm with one seed and write down everything that its table and figures need.

Shapes: S subsets, N rows, M modalities, C outputs.
"""

import hashlib
import json
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from polyfuse.calibrate import prior_logits
from polyfuse.config import CalibrateConfig, EvaluateConfig
from polyfuse.data.batch import Batch
from polyfuse.data.corrupt import fit_scales
from polyfuse.data.keyed import key_of
from polyfuse.datasets import DataSet
from polyfuse.evaluate.corruptions import corruption_records, flagged_difference
from polyfuse.evaluate.metrics import PRIMARY, probabilities, score
from polyfuse.evaluate.subsets import subset_name
from polyfuse.evaluate.sweep import Sweep, sweep
from polyfuse.evaluate.table import drop_curve, row_losses, shapley, violation_rate
from polyfuse.models.fusion_model import FusionModel
from polyfuse.studies.arms import Plan, Task, fit_baseline, only, rows_of, train_plan
from polyfuse.studies.compare import mean_over_subsets
from polyfuse.studies.judge import asked_subsets, fit_calibration
from polyfuse.studies.results import VERSION, Records, write_shard
from polyfuse.train.build import parameter_count

Load = Callable[[str, int], DataSet]

SCORES = ("accuracy", "macro_ap", "r2", "macro_f1", "rmse", "nll", "brier", "crps", "ece", "ece_equal_mass")
SELECTIVE = ("aurc", "augrc")
_HELD = 3  # data sets a worker keeps


@dataclass(frozen=True)
class Place:
    """A data set of a study: ``mfeat | missing 0.7`` is ``Place("mfeat", "missing 0.7")``."""

    dataset: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> "Place":
        """From its text."""
        name, _, variant = text.partition("|")
        return cls(name.strip(), variant.strip())

    def __str__(self) -> str:
        return f"{self.dataset} | {self.variant}" if self.variant else self.dataset

    @property
    def folder(self) -> str:
        """A file name."""
        return "".join(c if c.isalnum() or c in "._-" else "-" for c in str(self).replace(" | ", "--"))

    def load(self, load: Load, split: int) -> DataSet:
        """The data set, changed."""
        data = load(self.dataset, split)
        if self.variant:
            from polyfuse.datasets.variants import apply

            data = apply(data, self.variant)
        return data


class Loaded:
    """A data set in a worker, and what many jobs need of it."""

    def __init__(self, data: DataSet, evaluate: EvaluateConfig, calibrate: CalibrateConfig, encode: bool) -> None:
        self.data = data
        self.task = Task(
            data.train, data.validation, data.test, data.specs, data.target, data.groups, evaluate, calibrate, encode
        )

    @cached_property
    def scales(self) -> dict[str, Any]:
        """Units of the noise."""
        return fit_scales(self.data.train)

    @cached_property
    def subsets(self) -> NDArray[np.bool_]:
        """``(S, M)`` what is asked of the test rows."""
        return asked_subsets(self.data.test, self.task.evaluate)

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


_LOADED: OrderedDict[Any, Loaded] = OrderedDict()


def clear_loaded() -> None:
    """Let go of the data sets that jobs in this process have loaded."""
    _LOADED.clear()


@dataclass(frozen=True)
class StudyJob:
    """One training, or the facts of a data set.

    Attributes:
        what: ``data``, ``try``, ``arm`` or ``oracle``.
        place: The data set.
        split: Number of its split.
        name: Of the arm in the records.
        seed: In the records; that of the training is in the plan.
        path: The shard.
        load: Loads a data set by name and split; pickled by reference.
        plan: With the seed and the settings of this job; None for ``data``.
        settings: Those that were chosen, or are tried.
        uses: The modalities of an oracle.
        evaluate: Subsets, rates.
        calibrate: Levels.
        encode: Train encoders of vectors.
        costs: Also count multiply-adds: once per arm.
        checksum: Of the data, for the fingerprint.
        order: Urgency: place, split, number.
        weight: How long it takes, in arbitrary units.
    """

    what: str
    place: Place
    split: int
    name: str
    seed: int
    path: Path
    load: Load
    plan: Plan | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    uses: tuple[str, ...] = ()
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    encode: bool = True
    costs: bool = False
    checksum: str = ""
    order: tuple[float, ...] = ()
    weight: float = 1.0

    @property
    def urgency(self) -> tuple[float, ...]:
        """Smaller comes first."""
        return self.order

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"{self.place}: {self.name}, seed {self.seed}" + (f", {'+'.join(self.uses)}" if self.uses else "")

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides the records."""
        plan = {} if self.plan is None else {k: _plain(v) for k, v in vars(self.plan).items() if k not in _WORDS}
        decisive = {
            "version": VERSION,
            "what": self.what,
            "place": str(self.place),
            "split": self.split,
            "seed": self.seed,
            "plan": plan,
            "settings": _plain(self.settings),
            "uses": self.uses,
            "evaluate": self.evaluate.model_dump(mode="json", exclude={"bootstrap"}),
            "calibrate": self.calibrate.model_dump(mode="json"),
            "encode": self.encode,
            "data": self.checksum,
        }
        return hashlib.blake2b(json.dumps(decisive, sort_keys=True).encode(), digest_size=12).hexdigest()

    def run(self) -> "Answer":
        """Do it and write the shard; a failure is written down too."""
        began = time.perf_counter()
        out = Records(self.place.dataset, self.place.variant, self.split, self.name, self.seed)
        meta: dict[str, Any] = {"fingerprint": self.fingerprint, "failed": ""}
        try:
            with _peak_memory() as memory:
                meta |= _BODIES[self.what](self, self._loaded(), out)
            if self.what == "arm":
                out.add("job", "peak_mb", memory())
        except Exception as error:
            return self._failed(f"{type(error).__name__}: {error}", traceback.format_exc(), began)
        write_shard(self.path, out.table(), meta)
        return Answer(time.perf_counter() - began)

    def died(self, status: int | None) -> "Answer":
        """For the pool: the worker ended."""
        return self._failed(f"the worker process ended with status {status}", "", time.perf_counter())

    def _failed(self, message: str, trace: str, began: float) -> "Answer":
        out = Records(self.place.dataset, self.place.variant, self.split, self.name, self.seed)
        out.add("failed", self.what, None, stage=message)
        write_shard(self.path, out.table(), {"fingerprint": self.fingerprint, "failed": message, "trace": trace})
        return Answer(time.perf_counter() - began, message)

    def _loaded(self) -> Loaded:
        key = (self.load, self.place, self.split, repr((self.evaluate, self.calibrate, self.encode)))
        if key not in _LOADED:
            while len(_LOADED) >= _HELD:
                _LOADED.popitem(last=False)
            data = self.place.load(self.load, self.split)
            _LOADED[key] = Loaded(data, self.evaluate, self.calibrate, self.encode)
        _LOADED.move_to_end(key)
        return _LOADED[key]


@dataclass(frozen=True)
class Answer:
    """How a job went: its records are in its shard."""

    seconds: float
    failed: str = ""


_WORDS = ("label", "kind", "note", "tries", "name")


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str)) or value is None else repr(value)


def checksum(data: DataSet) -> str:
    """A hash of rows, holes, targets and inputs."""
    digest = hashlib.blake2b(digest_size=12)
    for batch in (data.train, data.validation, data.test):
        for tensor in (batch.keys, batch.present, batch.target):
            digest.update(b"" if tensor is None else tensor.contiguous().numpy().tobytes())
        for name in batch.modalities:
            value = batch.inputs[name]
            parts = [value] if isinstance(value, Tensor) else [value[key] for key in sorted(value)]
            for part in parts:
                digest.update(part.contiguous().numpy().tobytes())
    for key in sorted(data.broken):
        digest.update("/".join(key).encode())
    return digest.hexdigest()


# ---- what the kinds of jobs do -----------------------------------------------------------------------------------


def _data(job: StudyJob, loaded: Loaded, out: Records) -> dict[str, Any]:
    """Facts of one split: sizes, holes, clusters of the test rows, what an exact Bayes predictor does."""
    data, kind = loaded.data, loaded.data.target.task
    batches = {"train": data.train, "validation": data.validation, "test": data.test}
    out.add("data", "task", None, stage=kind)
    out.add("data", "outputs", data.target.outputs)
    out.add("data", "nothing", loaded.nothing, stage=PRIMARY[kind])
    for split, batch in batches.items():
        out.add("data", f"{split}_rows", len(batch))
        for m, name in enumerate(batch.modalities):
            out.add("data", f"{split}_missing", 1.0 - float(batch.present[:, m].float().mean()), modality=name)
    for note in data.notes:
        out.add("data", "note", None, stage=note)
    keys = data.test.keys.numpy()
    names = keys if data.groups is None else key_of(list(data.groups["test"])).numpy()
    groups, number = np.unique(names, return_inverse=True)
    out.add("data", "groups", len(groups), values=number, keys=keys)
    if data.posterior is not None:
        _bayes(loaded, out)
    return {}


def _bayes(loaded: Loaded, out: Records) -> None:
    """The reference no model can beat in the mean: the exact posterior, judged like an arm."""
    data, kind = loaded.data, loaded.data.target.task
    assert data.posterior is not None  # noqa: S101 - asked by the caller
    out.head["arm"] = "bayes"
    swept = sweep(_Posterior(data), data.test, subsets=loaded.subsets, task=kind)
    _subset_scores(swept, loaded, out)
    _seed_scores(swept, loaded, out)
    _row_scores(swept, loaded, out)


class _Posterior:
    """Exact class probabilities as logits."""

    def __init__(self, data: DataSet) -> None:
        self.data = data

    def predict_logits(self, batch: Batch) -> NDArray[np.float32]:
        assert self.data.posterior is not None  # noqa: S101
        p = self.data.posterior(batch, batch.present).double().clamp(1e-12, 1 - 1e-12)
        logits = p.log() if self.data.target.task == "classification" else torch.logit(p)
        return logits.float().numpy()


def _try(job: StudyJob, loaded: Loaded, out: Records) -> dict[str, Any]:
    """Validation loss of some settings."""
    assert job.plan is not None  # noqa: S101
    train, validation, _, specs = rows_of(loaded.task, job.plan.uses)
    _, result = train_plan(loaded.task, job.plan, train, validation, specs)
    out.add("try", "validation_loss", result.best_metric, stage=json.dumps(_plain(job.settings), sort_keys=True))
    return {"loss": result.best_metric}


def _oracle(job: StudyJob, loaded: Loaded, out: Records) -> dict[str, Any]:
    """A model of one subset, trained and judged on it alone."""
    assert job.plan is not None  # noqa: S101
    train, validation, test, specs = rows_of(loaded.task, job.uses)
    if not len(train) or not len(test):
        return {}
    model, _ = train_plan(loaded.task, job.plan, train, validation, specs)
    target = loaded.data.target
    swept = sweep(model, test, subsets=np.ones((1, len(job.uses)), bool), task=target.task)
    found = score(target.task, probabilities(target.task, swept.logits[0]), swept.target, scale=target.std)
    subset = "+".join(job.uses)
    for metric in (PRIMARY[target.task], "nll"):
        out.add("oracle", metric, found[metric], len(test), subset=subset)
    return {}


def _arm(job: StudyJob, loaded: Loaded, out: Records) -> dict[str, Any]:
    """Train and judge."""
    plan, task = job.plan, loaded.task
    assert plan is not None  # noqa: S101
    for key, value in job.settings.items():
        out.add("setting", key, None, stage=value if isinstance(value, str) else json.dumps(_plain(value)))
    model: Any
    began = time.perf_counter()
    if plan.baseline:
        model, task = fit_baseline(task, plan)
        train, validation, test, loss = task.train, task.validation, task.test, float("nan")
        out.add("job", "train_seconds", time.perf_counter() - began)
    else:
        train, validation, test, specs = rows_of(task, plan.uses)
        model, result = train_plan(task, plan, train, validation, specs)
        loss = result.best_metric
        out.add("job", "train_seconds", result.seconds)
        out.add("job", "parameters", parameter_count(model, trainable=True))
        out.add("job", "passes", _passes(plan))
        out.add("job", "steps", result.steps)
        out.add("job", "drop_rate", result.realised_drop_rate)
        out.add("job", "validation_loss", loss)
        if job.costs:
            out.add("job", "multiply_adds", _multiply_adds(model, test))
    began = time.perf_counter()
    _judge(model, replace(task, train=train, validation=validation, test=test), plan, loaded, out)
    out.add("job", "judge_seconds", time.perf_counter() - began)
    return {"loss": loss}


_BODIES: dict[str, Callable[[StudyJob, Loaded, Records], dict[str, Any]]] = {
    "data": _data,
    "try": _try,
    "oracle": _oracle,
    "arm": _arm,
}


# ---- judging -----------------------------------------------------------------------------------------------------


def _judge(model: Any, task: Task, plan: Plan, loaded: Loaded, out: Records) -> None:
    kind, test = task.target.task, task.test
    subsets = loaded.subsets if not plan.uses else asked_subsets(test, task.evaluate)
    swept = sweep(model, test, subsets=subsets, task=kind, batch_size=task.evaluate.batch_size)
    out.add("job", "ms_per_row", swept.ms_per_row)
    _subset_scores(swept, loaded, out)
    _seed_scores(swept, loaded, out)
    for point in drop_curve(swept, kind, task.evaluate.drop_rates, scale=task.target.std, bins=task.evaluate.bins):
        out.scores("curve", _kept(point), int(point["n"]), corruption=f"{point['rate']:g}", stage="raw")
    groups = task.groups["validation"] if task.groups is not None and not plan.uses else None
    calibration = fit_calibration(model, task.train, task.validation, kind, task.calibrate, task.evaluate, groups)
    if calibration is not None:
        _calibrated_scores(swept, calibration, loaded, out)
    _row_scores(swept, loaded, out, plan.uses, calibration)
    if plan.baseline == "presence_only" or not task.evaluate.corruptions:
        return
    scales = fit_scales(task.train) if plan.uses else loaded.scales
    _broken_scores(model, task, plan, scales, loaded, out)


def _kept(scores: Mapping[str, Any]) -> dict[str, float]:
    return {_NAMES.get(key, key): scores[key] for key in (*SCORES, *SELECTIVE) if key in scores}


_NAMES = {"ece_equal_mass": "ace"}


def _subset_scores(swept: Sweep, loaded: Loaded, out: Records) -> None:
    """P0 to P3: every subset, and the rows as they are."""
    kind, scale, bins = loaded.data.target.task, loaded.data.target.std, loaded.task.evaluate.bins
    for s, mask in enumerate(swept.subsets):
        rows = swept.valid[s]
        if rows.any():
            found = score(kind, probabilities(kind, swept.logits[s, rows]), swept.target[rows], scale=scale, bins=bins)
            out.scores("subset", _kept(found), int(rows.sum()), subset=subset_name(mask, swept.modalities), stage="raw")
    rows = swept.scored
    found = score(kind, probabilities(kind, swept.own[rows]), swept.target[rows], scale=scale, bins=bins)
    out.scores("found", _kept(found), int(rows.sum()), stage="raw")


def _calibrated_scores(swept: Sweep, calibration: Any, loaded: Loaded, out: Records) -> None:
    """The same after calibration per set of inputs."""
    kind, scale, bins = loaded.data.target.task, loaded.data.target.std, loaded.task.evaluate.bins
    for s, mask in enumerate(swept.subsets):
        rows = swept.valid[s]
        if not rows.any():
            continue
        subset, n = subset_name(mask, swept.modalities), int(rows.sum())
        present = np.broadcast_to(mask, (n, len(mask)))
        calibrated = calibration.apply(swept.logits[s, rows], present)
        found = score(kind, calibrated.probs, swept.target[rows], scale=scale, bins=bins)
        out.scores("subset", _kept(found), n, subset=subset, stage="mask")
    out.scores("seed", violation_rate(swept, kind, calibration), 0, stage="mask")


def _seed_scores(swept: Sweep, loaded: Loaded, out: Records) -> None:
    """Coherence, and what each input is worth to this model."""
    kind, names = loaded.data.target.task, swept.modalities
    out.scores("seed", violation_rate(swept, kind), 0, stage="raw")
    if len(swept.subsets) != 2 ** len(names) - 1 or len(names) < 2:
        return
    values = {}
    for s, mask in enumerate(swept.subsets):
        rows = swept.valid[s]
        if not rows.any():
            return
        found = score(kind, probabilities(kind, swept.logits[s, rows]), swept.target[rows])
        values[subset_name(mask, names)] = found[PRIMARY[kind]]
    shares = shapley(values, names, loaded.nothing)
    for name, value in shares.items():
        out.add("seed", "shapley", value, modality=name)
    total = sum(abs(value) for value in shares.values())
    if total > 0:
        out.add("seed", "shapley_balance", 1.0 - (max(shares.values()) - min(shares.values())) / total)


def _row_scores(swept: Sweep, loaded: Loaded, out: Records, uses: Sequence[str] = (), calibration: Any = None) -> None:
    """Losses of every test row, by subset, and mean NLL over subsets; a unimodal arm has none without its input."""
    kind, test = loaded.data.target.task, loaded.data.test
    places = only(test, uses)[1] if uses else np.arange(len(test))

    def spread(values: NDArray[Any]) -> NDArray[np.float32]:
        whole = np.full(len(test), np.nan, np.float32)
        whole[places] = values
        return whole

    losses, keys = row_losses(swept, kind), test.keys.numpy()
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
    for stage, how in (("raw", None), ("mask", calibration)):
        if stage == "raw" or how is not None:
            nll = mean_over_subsets(row_losses(swept, kind, "nll", how)[None])[0]
            n = int(np.isfinite(nll).sum())
            out.add("row", "nll", np.nanmean(nll) if n else None, n, stage=stage, values=spread(nll), keys=keys)


def _broken_scores(model: Any, task: Task, plan: Plan, scales: Mapping[str, Any], loaded: Loaded, out: Records) -> None:
    """P5 and P6: inputs that are there and wrong; inputs that are wrong and marked absent."""
    test, kind = task.test, task.target.task
    places = torch.from_numpy(only(loaded.data.test, plan.uses)[1]) if plan.uses else None
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


def _passes(plan: Plan) -> int:
    recipe = getattr(plan.train, "recipe", None)
    if recipe is None:
        return 1
    from polyfuse.train.recipe import passes_per_step

    return passes_per_step(recipe)


def _multiply_adds(model: FusionModel, batch: Batch) -> float:
    """Of fusion and head, per row: matrix products only."""
    rows = batch.rows(torch.arange(min(32, len(batch))))
    model.eval()
    with torch.no_grad():
        embeddings = model.encode(rows.inputs, rows.present)
        with FlopCounterMode(display=False) as counter:
            model.fuse(embeddings, rows.present)
    return counter.get_total_flops() / 2 / len(rows)


@contextmanager
def _peak_memory() -> Iterator[Callable[[], float | None]]:
    """How far the resident memory of this process rises above where it stood, in MB.

    Memory that the allocator had kept from earlier jobs is not counted again. None where the system does not tell (it
    takes Linux).
    """
    before = _status("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts anew
    except OSError:
        before = None

    def grown() -> float | None:
        peak = _status("VmHWM")
        return None if before is None or peak is None else max(peak - before, 0.0)

    yield grown


def _status(key: str) -> float | None:
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith(f"{key}:")), None)
