"""Train many arms on the same rows, masks and steps, and judge them alike.

Arms and seeds run in parallel processes of one thread each. Settings are chosen on validation rows, with the same
number of tries for every arm; test rows are looked at once, at the end.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polyfuse.config import PLAIN, ModelConfig, TrainConfig
from polyfuse.data.batch import Batch
from polyfuse.data.keyed import key_of, uniform
from polyfuse.data.spec import ModalitySpec, TargetSpec
from polyfuse.evaluate.intervals import paired_difference, paired_statistic
from polyfuse.evaluate.subsets import all_subsets
from polyfuse.report.content import ReportData
from polyfuse.report.records import Arm, Metric, Paired
from polyfuse.studies.arms import (
    Outcome,
    Plan,
    Run,
    Task,
    train_and_judge,
    train_encoder,
    train_oracle,
    workers_for,
)
from polyfuse.train.build import parameter_count
from polyfuse.train.features import embed, feature_specs

Say = Callable[[str], None]


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
    with workers_for(task, workers) as run:
        chosen = _choose(plans, seeds[0], run, say)
        jobs: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
            (train_and_judge, (plan.trying(chosen[plan.name], seed), chosen[plan.name]))
            for plan in plans
            for seed in (seeds[:1] if plan.baseline else seeds)
        ]
        subsets = all_subsets(len(task.train.modalities)) if oracles is not None else np.zeros((0, 1), bool)
        if oracles is not None:
            jobs += [
                (train_oracle, (oracles.trying({}, seed), tuple(mask.tolist()))) for mask in subsets for seed in seeds
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


def oracle_plan(model: ModelConfig, train: TrainConfig) -> Plan:
    """The plan of the oracles that belong to an arm: its settings, nothing hidden and nothing corrupted."""
    alone = model.model_copy(update={"modality_dropout": 0.0, "corruption": 0.0})
    return Plan("oracle", model=alone, train=train.model_copy(update={"recipe": PLAIN}))


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
    with workers_for(task, workers) as run:
        jobs: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
            (train_encoder, (name, model, config)) for name in specs
        ]
        jobs += [(train_encoder, (name, model, config, k, rows)) for k, rows in enumerate(parts) for name in specs]
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


def _choose(plans: Sequence[Plan], seed: int, run: Run, say: Say) -> dict[str, Mapping[str, Any]]:
    """Per arm the settings with the lowest validation loss, mean over subsets, with the first seed."""
    trying = [(plan, settings) for plan in plans if len(plan.tries) > 1 for settings in plan.tries]
    chosen: dict[str, Mapping[str, Any]] = {plan.name: plan.tries[0] for plan in plans}
    if not trying:
        return chosen
    say(f"  choosing settings on validation rows: {len(trying)} trainings")
    best: dict[str, float] = {}
    jobs = [(train_and_judge, (plan.trying(settings, seed), settings, False)) for plan, settings in trying]
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
        x, y = (mean_over_subsets(losses[:, pick]) for losses in (a, b))
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


def mean_over_subsets(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(R, N)`` what each row adds to the mean over subsets; NaN for a row without any.

    A loss counts by one over the rows that have its subset, so that the mean over rows is the mean over subsets of the
    table, whatever the holes; of complete rows it is each row's own mean.
    """
    known = ~np.isnan(losses)
    share = known.sum(axis=2, keepdims=True)
    asked = (share > 0).sum(axis=1)
    total = (np.where(known, losses, 0.0) / np.maximum(share, 1)).sum(axis=1)
    any_known = known.any(axis=1)
    return np.where(any_known, total * any_known.sum(axis=1, keepdims=True) / np.maximum(asked, 1), np.nan)
