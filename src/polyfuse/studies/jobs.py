"""One job of a study: train one arm with one seed and write down everything that its table and figures need.

Shapes: S subsets, N rows, M modalities, C outputs.
"""

import hashlib
import json
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel
from torch import Tensor

from polyfuse.config import CalibrateConfig, EvaluateConfig
from polyfuse.data.keyed import key_of
from polyfuse.datasets import DataSet
from polyfuse.evaluate.metrics import PRIMARY, probabilities, score
from polyfuse.evaluate.sweep import sweep
from polyfuse.studies.arms import Plan, fit_baseline, rows_of, train_plan
from polyfuse.studies.measure import Loaded, bayes_scores, judge_model, multiply_adds, peak_memory
from polyfuse.studies.results import VERSION, Records, write_shard
from polyfuse.train.build import parameter_count
from polyfuse.train.recipe import passes_per_step

Load = Callable[[str, int], DataSet]

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
            meta |= _BODIES[self.what](self, self._loaded(), out)
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
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
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
        bayes_scores(loaded, out)
    return {}


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
    with peak_memory() as memory:
        loss = _train_and_judge(job, loaded, out)
    out.add("job", "peak_mb", memory())
    return {"loss": loss}


def _train_and_judge(job: StudyJob, loaded: Loaded, out: Records) -> float:
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
        out.add("job", "passes", passes_per_step(plan.train.recipe))
        out.add("job", "steps", result.steps)
        out.add("job", "drop_rate", result.realised_drop_rate)
        out.add("job", "validation_loss", loss)
        if job.costs:
            out.add("job", "multiply_adds", multiply_adds(model, test))
    began = time.perf_counter()
    judge_model(model, replace(task, train=train, validation=validation, test=test), plan, loaded, out)
    out.add("job", "judge_seconds", time.perf_counter() - began)
    return loss


_BODIES: dict[str, Callable[[StudyJob, Loaded, Records], dict[str, Any]]] = {
    "data": _data,
    "try": _try,
    "oracle": _oracle,
    "arm": _arm,
}
