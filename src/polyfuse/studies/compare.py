"""Train many arms on the same rows, masks and steps, and judge them alike.

Arms and seeds run in parallel processes of one thread each. Settings are chosen on validation rows, with the same
number of tries for every arm; test rows are looked at once, at the end.
"""

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
from polyfuse.data.keyed import key_of, uniform
from polyfuse.data.spec import ModalitySpec, TargetSpec
from polyfuse.evaluate.baselines import gradient_boosting, presence_only
from polyfuse.evaluate.intervals import paired_difference, paired_statistic
from polyfuse.evaluate.subsets import all_subsets
from polyfuse.report.records import Arm, Metric, Oracle, Paired, ReportData, ordered_subset
from polyfuse.studies.judge import Judgement, fit_calibration, judge
from polyfuse.train.build import build_model, parameter_count
from polyfuse.train.features import embed, feature_specs, fit_encoder, fit_encoders
from polyfuse.train.loop import fit

Say = Callable[[str], None]


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
    """

    train: Batch
    validation: Batch
    test: Batch
    specs: Mapping[str, ModalitySpec]
    target: TargetSpec
    groups: Mapping[str, Sequence[str]] | None = None
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)

    @property
    def cached(self) -> bool:
        """Whether the inputs are features, which a fusion takes as they are."""
        return all(spec.type == "vector" for spec in self.specs.values())


@dataclass(frozen=True)
class Plan:
    """One arm.

    Attributes:
        name: Key of its records.
        label: What a reader sees.
        kind: As in ``report.records.Arm``.
        model: Its settings.
        train: Its loop; the seed is set per run.
        tries: Settings tried on validation with the first seed, such as ``{"model.modality_dropout": 0.5}``; the best
            by validation loss runs with every seed.
        uses: The one modality of a unimodal arm; empty = all.
        baseline: ``presence_only`` or ``gradient_boosting`` instead of a model.
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
    note: str = ""

    def trying(self, settings: Mapping[str, Any], seed: int) -> "Plan":
        """The arm with one try's settings and a seed, and nothing left to try."""
        changes: dict[str, dict[str, Any]] = {"model": {}, "train": {"seed": seed}}
        for key, value in settings.items():
            part, _, name = key.partition(".")
            changes[part][name] = value
        model = ModelConfig.model_validate({**self.model.model_dump(), **changes["model"]})
        train = TrainConfig.model_validate({**self.train.model_dump(), **changes["train"]})
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


def compare_arms(
    report: ReportData,
    task: Task,
    plans: Sequence[Plan],
    *,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    oracles: Plan | None = None,
    workers: int = 2,
    say: Say = lambda line: None,
) -> dict[str, list[Outcome]]:
    """Train and judge every arm with every seed, and write all records into ``report``.

    Args:
        report: Its title, data and protocol are the caller's; arms and records are added here.
        task: The rows.
        plans: The arms; the one of kind ``reference`` is what differences are taken to.
        seeds: Of weights, masks and batches; the same for every arm. Baselines run once.
        oracles: Settings of one model per subset, trained on it alone (``oracle_settings``); None = none.
        workers: Processes of one thread each; the result does not depend on it.
        say: Told the progress, line by line.

    Returns:
        Outcomes by arm, one per seed.
    """
    with _pool(task, workers) as run:
        chosen = _choose(plans, seeds[0], run, say)
        jobs: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
            (_train_and_judge, (plan.trying(chosen[plan.name], seed), chosen[plan.name]))
            for plan in plans
            for seed in (seeds[:1] if plan.baseline else seeds)
        ]
        subsets = all_subsets(len(task.train.modalities)) if oracles is not None else np.zeros((0, 1), bool)
        if oracles is not None:
            jobs += [
                (_train_oracle, (oracles.trying({}, seed), tuple(mask.tolist()))) for mask in subsets for seed in seeds
            ]
        outcomes: dict[str, list[Outcome]] = {plan.name: [] for plan in plans}
        started = time.perf_counter()
        for done, result in enumerate(run(jobs), start=1):
            if isinstance(result, Outcome):
                outcomes[result.name].append(result)
            elif result is not None:
                report.oracles.append(result)
            if done % max(len(jobs) // 5, 1) == 0:
                say(f"  {done} of {len(jobs)} trainings, {time.perf_counter() - started:.0f} s")
    _fill(report, task, plans, outcomes)
    return outcomes


def train_oracles(task: Task, plan: Plan, seeds: Sequence[int] = (0,), workers: int = 2) -> list[Oracle]:
    """One model per subset of inputs, trained on it alone: what is possible there."""
    with _pool(task, workers) as run:
        masks = [tuple(mask.tolist()) for mask in all_subsets(len(task.train.modalities))]
        jobs = [(_train_oracle, (plan.trying({}, seed), mask)) for mask in masks for seed in seeds]
        return [oracle for oracle in run(jobs) if oracle is not None]


def oracle_plan(model: ModelConfig, train: TrainConfig) -> Plan:
    """The plan of the oracles that belong to an arm: its settings, nothing hidden and nothing corrupted."""
    alone = model.model_copy(update={"modality_dropout": 0.0, "corruption": 0.0})
    return Plan("oracle", model=alone, train=train)


def cache_features(
    train: Batch,
    validation: Batch,
    test: Batch,
    specs: Mapping[str, ModalitySpec],
    target: TargetSpec,
    model: ModelConfig,
    config: TrainConfig,
    *,
    folds: int = 1,
    groups: Sequence[str] | None = None,
    workers: int = 2,
    say: Say = lambda line: None,
) -> tuple[dict[str, nn.Module], list[Batch], dict[str, ModalitySpec]]:
    """Train every encoder alone, freeze it, and turn the rows into features, once for all arms.

    A small encoder remembers its training rows: their features then look far better than those of new rows, and every
    fusion learns to trust what it should not. With ``folds`` above 1 the features of a training row come from an
    encoder that has not seen it (stacked generalization, Wolpert 1992, https://doi.org/10.1016/S0893-6080(05)80023-1).
    Encoders and heads of all folds start from the same weights, so their features share their axes.

    Args:
        train: Training rows.
        validation: Rows for early stopping.
        test: Rows to judge on.
        specs: One per modality.
        target: What is predicted.
        model: Encoders.
        config: Their loop.
        folds: Parts of the training rows, each embedded by encoders trained on the others; 1 = by the final encoders.
        groups: Per training row, what it belongs to, kept in one fold; None = every row on its own.
        workers: Processes of one thread.
        say: Told the progress.

    Returns:
        The encoders trained on all training rows, frozen; the three batches of features; their specs.
    """
    task = Task(train, validation, test, specs, target)
    keys = train.keys if groups is None else key_of(list(groups))
    fold = (uniform(config.seed, "folds", 0, keys, 1)[:, 0] * folds).long()
    parts = [torch.nonzero(fold != k)[:, 0] for k in range(folds)] if folds > 1 else []
    made: dict[int | None, dict[str, nn.Module]] = {}
    with _pool(task, workers) as run:
        jobs: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
            (_train_encoder, (name, model, config)) for name in specs
        ]
        jobs += [(_train_encoder, (name, model, config, k, rows)) for k, rows in enumerate(parts) for name in specs]
        for name, number, encoder, steps, seconds in run(jobs):
            made.setdefault(number, {})[name] = encoder
            if number is None:
                say(f"  {name}: {parameter_count(encoder):,} parameters, {steps} steps, {seconds:.0f} s")
    if parts:
        say(f"  and {len(parts)} times more without a part of the rows, for the features of that part")
    encoders = made[None]
    features = [embed(encoders, batch) for batch in (train, validation, test)]
    for k in range(len(parts)):
        rows = torch.nonzero(fold == k)[:, 0]
        for name, value in embed(made[k], train.rows(rows)).inputs.items():
            whole = features[0].inputs[name]
            assert isinstance(whole, Tensor)  # noqa: S101 - features are tensors
            assert isinstance(value, Tensor)  # noqa: S101
            whole[rows] = value
    return encoders, features, feature_specs(features[0])


def only(batch: Batch, names: Sequence[str]) -> tuple[Batch, NDArray[np.int64]]:
    """The rows that have all of ``names``, with these inputs alone, and their places in ``batch``."""
    columns = [batch.modalities.index(name) for name in names]
    rows = batch.present[:, columns].all(dim=1).nonzero()[:, 0]
    kept = batch.rows(rows)
    inputs = {name: kept.inputs[name] for name in names}
    return replace(kept, modalities=tuple(names), inputs=inputs, present=kept.present[:, columns]), rows.numpy()


# ---- in the worker processes -------------------------------------------------------------------------------------

_TASK: list[Task] = []


def _open_worker(task: Task) -> None:
    torch.set_num_threads(1)
    _TASK[:] = [task]


def _call(job: tuple[Callable[..., Any], tuple[Any, ...]]) -> Any:
    function, arguments = job
    return function(_TASK[0], *arguments)


def _train_encoder(
    task: Task, name: str, model: ModelConfig, config: TrainConfig, fold: int | None = None, rows: Tensor | None = None
) -> tuple[str, int | None, nn.Module, int, float]:
    train = task.train if rows is None else task.train.rows(rows)
    encoder, result = fit_encoder(task.specs[name], train, task.validation, task.target, model, config)
    return name, fold, encoder, result.steps, result.seconds


def _train_and_judge(task: Task, plan: Plan, settings: Mapping[str, Any], judged: bool = True) -> Outcome:
    """One arm, one seed."""
    if plan.baseline:
        return _baseline(task, plan)
    train, validation, test, specs = _rows(task, plan.uses)
    model = _model(plan, specs, task)
    result = fit(
        model,
        train,
        validation,
        plan.train,
        task=task.target.task,
        masking=plan.model.masking(),
        classes=task.target.classes,
    )
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
        )
        if len(test) < len(task.test):
            judgement = replace(judgement, losses=_spread_out(judgement.losses, task.test, plan.uses))
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


def _rows(task: Task, uses: tuple[str, ...]) -> tuple[Batch, Batch, Batch, dict[str, ModalitySpec]]:
    if not uses:
        return task.train, task.validation, task.test, dict(task.specs)
    train, validation, test = (only(batch, uses)[0] for batch in (task.train, task.validation, task.test))
    return train, validation, test, {name: task.specs[name] for name in uses}


def _spread_out(losses: NDArray[np.float32], test: Batch, uses: tuple[str, ...]) -> NDArray[np.float32]:
    out = np.full((len(losses), len(test)), np.nan, np.float32)
    out[:, only(test, uses)[1]] = losses
    return out


def _model(plan: Plan, specs: Mapping[str, ModalitySpec], task: Task) -> nn.Module:
    encoders = {name: nn.Identity() for name in specs} if task.cached else None
    return build_model(specs, task.target, plan.model, seed=plan.train.seed, encoders=encoders)


def _calibrate(model: Any, task: Task, uses: Sequence[str] = ()) -> Calibration | None:
    groups = task.groups["validation"] if task.groups is not None and not uses else None
    return fit_calibration(model, task.train, task.validation, task.target.task, task.calibrate, task.evaluate, groups)


def _baseline(task: Task, plan: Plan) -> Outcome:
    """A predictor that is no fusion, judged like one."""
    started = time.perf_counter()
    kind, outputs = task.target.task, task.target.outputs
    if plan.baseline == "gradient_boosting" and not task.cached:
        encoders = fit_encoders(task.specs, task.train, task.validation, task.target, plan.model, plan.train)
        batches = [embed(encoders, batch) for batch in (task.train, task.validation, task.test)]
        task = replace(task, train=batches[0], validation=batches[1], test=batches[2], specs=feature_specs(batches[0]))
    fitted: Any = (
        presence_only(task.train, kind, outputs=outputs, drop_rate=0.5)
        if plan.baseline == "presence_only"
        else gradient_boosting(task.train, kind, outputs=outputs, seed=plan.train.seed)
    )
    seconds = time.perf_counter() - started
    judgement = judge(
        fitted,
        task.test,
        kind,
        _calibrate(fitted, task),
        evaluate=task.evaluate,
        scale=task.target.std,
        scales=fit_scales(task.train),
        corruptions=False if plan.baseline == "presence_only" else None,
    )
    return Outcome(plan.name, plan.train.seed, {}, float("nan"), seconds, None, 0.0, judgement)


def _train_oracle(task: Task, plan: Plan, mask: tuple[bool, ...]) -> Oracle | None:
    """The primary metric of a model trained for one subset; None where no test row has it."""
    names = tuple(name for name, here in zip(task.train.modalities, mask, strict=True) if here)
    train, validation, test, specs = _rows(task, names)
    if not len(test) or not len(train):
        return None
    model = _model(plan, specs, task)
    fit(
        model,
        train,
        validation,
        plan.train,
        task=task.target.task,
        masking=plan.model.masking(),
        classes=task.target.classes,
    )
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


# ---- in the first process ----------------------------------------------------------------------------------------

Run = Callable[[Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]], Iterator[Any]]


@contextmanager
def _pool(task: Task, workers: int) -> Iterator[Run]:
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
        with ProcessPoolExecutor(workers, context, initializer=_open_worker, initargs=(task,)) as pool:
            try:
                yield lambda jobs: pool.map(_call, jobs)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _choose(plans: Sequence[Plan], seed: int, run: Run, say: Say) -> dict[str, Mapping[str, Any]]:
    """Per arm the settings with the lowest validation loss, mean over subsets, with the first seed."""
    trying = [(plan, settings) for plan in plans if len(plan.tries) > 1 for settings in plan.tries]
    chosen: dict[str, Mapping[str, Any]] = {plan.name: plan.tries[0] for plan in plans}
    if not trying:
        return chosen
    say(f"  choosing settings on validation rows: {len(trying)} trainings")
    best: dict[str, float] = {}
    jobs = [(_train_and_judge, (plan.trying(settings, seed), settings, False)) for plan, settings in trying]
    for outcome in run(jobs):
        if outcome.validation_loss < best.get(outcome.name, float("inf")):
            best[outcome.name], chosen[outcome.name] = outcome.validation_loss, outcome.settings
    return chosen


def _fill(report: ReportData, task: Task, plans: Sequence[Plan], outcomes: Mapping[str, list[Outcome]]) -> None:
    """Arms, records and paired differences."""
    for plan in plans:
        found = outcomes[plan.name]
        report.arms.append(_arm(plan, found))
        for outcome in found:
            if outcome.judgement is not None:
                outcome.judgement.add_to(report, plan.name, outcome.seed)
    reference = next((plan.name for plan in plans if plan.kind == "reference"), None)
    if reference is not None:
        for plan in plans:
            if plan.kind in ("arm", "baseline") and not plan.uses:
                report.paired += paired(plan.name, outcomes[plan.name], reference, outcomes[reference], task)
    report.nominal_coverage = 1.0 - task.calibrate.alpha if task.calibrate.enabled else None


def _arm(plan: Plan, found: Sequence[Outcome]) -> Arm:
    settings = ", ".join(_shown(key.partition(".")[2], value) for key, value in found[0].settings.items())
    note = f"{plan.note} Chosen on validation: {settings}." if settings else plan.note
    judged = [outcome.judgement for outcome in found if outcome.judgement is not None]
    return Arm(
        name=plan.name,
        label=plan.label,
        kind=plan.kind,
        seeds=tuple(outcome.seed for outcome in found),
        parameters=found[0].parameters,
        train_seconds=tuple(outcome.seconds for outcome in found),
        ms_per_row=float(np.median([judgement.records[0]["ms_per_row"] for judgement in judged])),
        drop_rate=float(np.mean([o.drop_rate for o in found])) if any(o.drop_rate for o in found) else None,
        uses=plan.uses,
        note=note.strip(),
    )


def _shown(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(_shown(*item) for item in value.items())
    return f"{key.replace('_', ' ')} {str(value).replace('_', ' ')}"


def paired(name: str, ours: Sequence[Outcome], reference: str, theirs: Sequence[Outcome], task: Task) -> list[Paired]:
    """Differences to the reference arm over the same rows and seeds, with intervals by group of rows.

    Classification compares accuracies, multilabel the share of labels that are right, regression R² on the test rows.
    """
    a, b = _losses(ours), _losses(theirs)
    if len(a) < len(b):  # a baseline has one seed: it stands beside every seed of the reference
        a = np.repeat(a[:1], len(b), axis=0)
    groups = None if task.groups is None else list(task.groups["test"])
    unit, metric = 1.0, Metric.of_task(task.target.task).name
    if task.target.task == "regression" and task.test.target is not None:
        unit = 1.0 / max(float(task.test.target.var(correction=0)), 1e-12)
    elif task.target.task == "multilabel":
        metric = "accuracy"
    subsets = theirs[0].judgement.subsets if theirs[0].judgement is not None else np.zeros((0, 1), bool)
    out = []
    for over in ("complete", "mean"):
        pick = subsets.all(axis=1) if over == "complete" else np.ones(len(subsets), bool)
        x, y = (_mean_over_subsets(losses[:, pick]) for losses in (a, b))
        if np.isnan(x - y).all():
            continue
        found = paired_difference(-unit * x, -unit * y, groups, draws=task.evaluate.bootstrap)
        out.append(Paired(name, reference, metric, found.mean, found.low, found.high, over))
    if task.target.task == "classification" and len(subsets) > 1:
        clusters = np.arange(a.shape[-1]) if groups is None else np.asarray(groups)
        found = paired_statistic(_worst(a), _worst(b), clusters, draws=min(task.evaluate.bootstrap, 500))
        out.append(Paired(name, reference, metric, found.mean, found.low, found.high, "worst"))
    return out


def _worst(losses: NDArray[np.float64]) -> Callable[[NDArray[np.float64]], float]:
    """Accuracy on the worst subset, mean over seeds, as a function of row weights."""
    known = ~np.isnan(losses)
    right = np.where(known, 1.0 - losses, 0.0)

    def statistic(weight: NDArray[np.float64]) -> float:
        return float(((right @ weight) / np.maximum(known @ weight, 1e-12)).min(axis=1).mean())

    return statistic


def _losses(outcomes: Sequence[Outcome]) -> NDArray[np.float64]:
    """``(R, S, N)`` over seeds."""
    return np.stack([o.judgement.losses for o in outcomes if o.judgement is not None]).astype(np.float64)


def _mean_over_subsets(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(R, N)`` mean over the subsets a row has; NaN without any."""
    known = ~np.isnan(losses)
    total = np.where(known, losses, 0.0).sum(axis=1)
    count = known.sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
