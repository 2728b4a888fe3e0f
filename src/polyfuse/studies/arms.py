"""One arm, one seed: what a worker process trains and judges, and the pool of such processes."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polyfuse.calibrate import Calibration
from polyfuse.config import CalibrateConfig, EvaluateConfig, ModelConfig, TrainConfig
from polyfuse.data.batch import Batch
from polyfuse.data.corrupt import fit_scales
from polyfuse.data.spec import ModalitySpec, TargetSpec
from polyfuse.evaluate.baselines import gradient_boosting, presence_only
from polyfuse.models.fusion_model import FusionModel
from polyfuse.report.records import Metric, Oracle, ordered_subset
from polyfuse.studies.judge import Judgement, fit_calibration, judge
from polyfuse.train.build import build_model, parameter_count
from polyfuse.train.features import embed, feature_specs, fit_encoder, fit_encoders
from polyfuse.train.loop import FitResult, fit


@dataclass(frozen=True)
class Task:
    """Rows and what is asked of them.

    Attributes:
        train: Training rows: raw inputs, or cached features.
        validation: Rows for early stopping, choices and calibration.
        test: Rows to judge on.
        specs: One per modality; ``vector`` for cached features.
        target: What is predicted.
        groups: Per validation and test row, what it belongs to (a concept, a patient); None = every row on its own.
        evaluate: Subsets, rates, corruptions.
        calibrate: Levels.
        encode: Train an encoder per modality even where all inputs are vectors; otherwise such inputs are features, and
            the fusion takes them as they are.
    """

    train: Batch
    validation: Batch
    test: Batch
    specs: Mapping[str, ModalitySpec]
    target: TargetSpec
    groups: Mapping[str, Sequence[str]] | None = None
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    encode: bool = False

    @property
    def vectors(self) -> bool:
        """Whether all inputs are vectors, which trees can read."""
        return all(spec.type == "vector" for spec in self.specs.values())

    @property
    def cached(self) -> bool:
        """Whether the inputs are features, which a fusion takes as they are."""
        return self.vectors and not self.encode


@dataclass(frozen=True)
class Plan:
    """One arm.

    Attributes:
        name: Key of its records.
        label: What a reader sees.
        kind: As in ``report.records.Arm``.
        model: Its settings.
        train: Its loop; the seed is set per run.
        tries: Settings tried on validation with the first seed, such as ``{"train.recipe.distill": 0.5}``; the best
            by validation loss runs with every seed.
        uses: The one modality of a unimodal arm; empty = all.
        baseline: ``presence_only`` or ``gradient_boosting`` instead of a model.
        fusion: A fusion class to use instead of ``model.fusion``: a control that is not in ``FUSIONS``.
        note: One sentence for the report.
    """

    name: str
    label: str = ""
    kind: str = "arm"
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tries: tuple[Mapping[str, Any], ...] = ({},)
    uses: tuple[str, ...] = ()
    baseline: str = ""
    fusion: type[nn.Module] | None = None
    note: str = ""

    def trying(self, settings: Mapping[str, Any], seed: int) -> "Plan":
        """The arm with one try's settings and a seed, and nothing left to try."""
        parts: dict[str, dict[str, Any]] = {"model": self.model.model_dump(), "train": self.train.model_dump()}
        for key, value in {"train.seed": seed, **settings}.items():
            *above, name = key.split(".")
            place: dict[str, Any] = parts
            for part in above:
                place = place[part]
            place[name] = value
        model, train = ModelConfig.model_validate(parts["model"]), TrainConfig.model_validate(parts["train"])
        return replace(self, model=model, train=train, tries=(settings,))


@dataclass(frozen=True)
class Outcome:
    """What one arm came to with one seed; ``judgement`` is None while settings are being tried."""

    name: str
    seed: int
    settings: Mapping[str, Any]
    validation_loss: float
    seconds: float
    parameters: int | None
    drop_rate: float
    judgement: Judgement | None


def only(batch: Batch, names: Sequence[str]) -> tuple[Batch, NDArray[np.int64]]:
    """The rows that have all of ``names``, with these inputs alone, and their places in ``batch``."""
    columns = [batch.modalities.index(name) for name in names]
    rows = batch.present[:, columns].all(dim=1).nonzero()[:, 0]
    kept = batch.rows(rows)
    inputs = {name: kept.inputs[name] for name in names}
    return replace(kept, modalities=tuple(names), inputs=inputs, present=kept.present[:, columns]), rows.numpy()


_TASK: list[Task] = []


def _open_worker(task: Task) -> None:
    torch.set_num_threads(1)
    _TASK[:] = [task]


def _call(job: tuple[Callable[..., Any], tuple[Any, ...]]) -> Any:
    function, arguments = job
    return function(_TASK[0], *arguments)


def train_encoder(
    task: Task, name: str, model: ModelConfig, config: TrainConfig, fold: int | None = None, rows: Tensor | None = None
) -> tuple[str, int | None, nn.Module, int, float]:
    """One encoder alone, frozen, on all training rows or on ``rows`` of them: (name, fold, encoder, steps, seconds)."""
    train = task.train if rows is None else task.train.rows(rows)
    encoder, result = fit_encoder(task.specs[name], train, task.validation, task.target, model, config)
    return name, fold, encoder, result.steps, result.seconds


def train_and_judge(task: Task, plan: Plan, settings: Mapping[str, Any], judged: bool = True) -> Outcome:
    """One arm, one seed."""
    if plan.baseline:
        return _baseline(task, plan)
    train, validation, test, specs = rows_of(task, plan.uses)
    model, result = train_plan(task, plan, train, validation, specs)
    judgement = None
    if judged:
        calibration = _calibrate(model, replace(task, train=train, validation=validation), plan.uses)
        judgement = judge(
            model,
            test,
            task.target.task,
            calibration,
            evaluate=task.evaluate,
            scale=task.target.std,
            scales=fit_scales(train),
            groups=None if task.groups is None or plan.uses else task.groups["test"],
        )
        if len(test) < len(task.test):
            judgement = replace(
                judgement,
                losses=_spread_out(judgement.losses, task.test, plan.uses),
                nll=_spread_out(judgement.nll, task.test, plan.uses),
            )
    return Outcome(
        name=plan.name,
        seed=plan.train.seed,
        settings=settings,
        validation_loss=result.best_metric,
        seconds=result.seconds,
        parameters=parameter_count(model, trainable=True),
        drop_rate=result.realised_drop_rate,
        judgement=judgement,
    )


def train_plan(
    task: Task, plan: Plan, train: Batch, validation: Batch, specs: Mapping[str, ModalitySpec]
) -> tuple[FusionModel, FitResult]:
    """The model of a plan, trained on rows from ``rows_of``."""
    encoders = {name: nn.Identity() for name in specs} if task.cached else None
    model = build_model(specs, task.target, plan.model, seed=plan.train.seed, encoders=encoders, fusion=plan.fusion)
    result = fit(
        model,
        train,
        validation,
        plan.train,
        task=task.target.task,
        masking=plan.model.masking(),
        classes=task.target.classes,
    )
    return model, result


def rows_of(task: Task, uses: tuple[str, ...]) -> tuple[Batch, Batch, Batch, dict[str, ModalitySpec]]:
    """Training, validation and test rows that have all of ``uses``, with these inputs alone; empty = all."""
    if not uses:
        return task.train, task.validation, task.test, dict(task.specs)
    train, validation, test = (only(batch, uses)[0] for batch in (task.train, task.validation, task.test))
    return train, validation, test, {name: task.specs[name] for name in uses}


def _spread_out(losses: NDArray[np.float32], test: Batch, uses: tuple[str, ...]) -> NDArray[np.float32]:
    out = np.full((len(losses), len(test)), np.nan, np.float32)
    out[:, only(test, uses)[1]] = losses
    return out


def _calibrate(model: Any, task: Task, uses: Sequence[str] = ()) -> Calibration | None:
    groups = task.groups["validation"] if task.groups is not None and not uses else None
    return fit_calibration(model, task.train, task.validation, task.target.task, task.calibrate, task.evaluate, groups)


def _baseline(task: Task, plan: Plan) -> Outcome:
    started = time.perf_counter()
    fitted, task = fit_baseline(task, plan)
    seconds = time.perf_counter() - started
    judgement = judge(
        fitted,
        task.test,
        task.target.task,
        _calibrate(fitted, task),
        evaluate=task.evaluate,
        scale=task.target.std,
        scales=fit_scales(task.train),
        corruptions=False if plan.baseline == "presence_only" else None,
    )
    return Outcome(plan.name, plan.train.seed, {}, float("nan"), seconds, None, 0.0, judgement)


def fit_baseline(task: Task, plan: Plan) -> tuple[Any, Task]:
    """A predictor that is no fusion, and the task as it reads it: trees see images and texts as features."""
    kind, outputs = task.target.task, task.target.outputs
    if plan.baseline == "gradient_boosting" and not task.vectors:
        encoders = fit_encoders(task.specs, task.train, task.validation, task.target, plan.model, plan.train)
        batches = [embed(encoders, batch) for batch in (task.train, task.validation, task.test)]
        task = replace(task, train=batches[0], validation=batches[1], test=batches[2], specs=feature_specs(batches[0]))
    fitted: Any = (
        presence_only(task.train, kind, outputs=outputs, drop_rate=0.5)
        if plan.baseline == "presence_only"
        else gradient_boosting(task.train, kind, outputs=outputs, seed=plan.train.seed)
    )
    return fitted, task


def train_oracle(task: Task, plan: Plan, mask: tuple[bool, ...]) -> Oracle | None:
    """The primary metric of a model trained for one subset; None where no test row has it."""
    names = tuple(name for name, here in zip(task.train.modalities, mask, strict=True) if here)
    train, validation, test, specs = rows_of(task, names)
    if not len(test) or not len(train):
        return None
    model, _ = train_plan(task, plan, train, validation, specs)
    full = np.ones((1, len(names)), bool)
    judged = judge(
        model,
        test,
        task.target.task,
        evaluate=task.evaluate,
        scale=task.target.std,
        subsets=full,
        corruptions=False,
    )
    value = judged.records[0][Metric.of_task(task.target.task).name]
    return Oracle(ordered_subset(names, task.train.modalities), plan.train.seed, float(value))


Run = Callable[[Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]], Iterator[Any]]


@contextmanager
def workers_for(task: Task, workers: int) -> Iterator[Run]:
    """A function that runs jobs, in ``workers`` processes of one thread, or here if that is one; order is kept."""
    if workers <= 1:
        threads = torch.get_num_threads()
        _open_worker(task)
        try:
            yield lambda jobs: map(_call, jobs)
        finally:
            _TASK.clear()
            torch.set_num_threads(threads)
        return
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")}
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")  # read when a worker loads PyTorch
    try:
        context = multiprocessing.get_context("spawn")
        others = set(multiprocessing.active_children())
        with ProcessPoolExecutor(workers, context, initializer=_open_worker, initargs=(task,)) as pool:
            try:
                yield lambda jobs: pool.map(_call, jobs)
            except BaseException:
                for process in set(multiprocessing.active_children()) - others:
                    process.terminate()  # or the trainings that have begun would be waited for; the pool joins them
                raise
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
