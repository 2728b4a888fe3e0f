"""Two baselines that stand in every comparison: what knowing only *which* inputs are there is worth, and boosted trees.

Both answer batches with ``predict_logits`` and so go through ``sweep``, calibration and ``records`` like any model.

Shapes: N rows, M modalities, C classes, L labels, F features.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from polyfuse.data.batch import Batch
from polyfuse.data.keyed import seed_of, uniform
from polyfuse.data.missing import Bernoulli
from polyfuse.errors import require
from polyfuse.evaluate.metrics import check_task, probabilities, scorable
from polyfuse.evaluate.selective import Floats
from polyfuse.evaluate.subsets import mask_codes
from polyfuse.evaluate.sweep import embed

STRENGTH = 10.0
"""Rows of the overall frequencies that are added to every pattern."""

MOST_CATEGORIES = 254
"""Categorical codes beyond this are treated as numbers: the library's limit."""

SURE = 1e-6
"""Probabilities are kept this far from 0 and 1: trees say 0 where they saw nothing."""


@dataclass(frozen=True, eq=False)
class PresenceOnly:
    """Class (label) frequencies, or mean and variance, of the training rows with the same pattern of present inputs.

    A model that does not beat it has learnt from *what is missing*, not from what is there. Every pattern is smoothed
    towards all rows; one that training never saw gets the overall answer.

    Attributes:
        task: classification, multilabel or regression.
        modalities: Names, in column order.
        overall: ``(C,)`` logits of all rows; regression: mean and log-variance.
        by_pattern: ``{mask code: (C,) logits}``.
    """

    task: str
    modalities: tuple[str, ...]
    overall: Floats
    by_pattern: dict[int, Floats]

    def predict_logits(self, batch: Batch) -> Floats:
        """``(N, C)`` logits; regression: mean and log-variance."""
        codes, place = np.unique(mask_codes(batch.present.cpu().numpy()), return_inverse=True)
        if not len(codes):
            return np.zeros((0, len(self.overall)))
        return np.stack([self.by_pattern.get(int(c), self.overall) for c in codes])[place]

    def predict_proba(self, batch: Batch) -> Floats:
        """``(N, C)`` probabilities; regression: mean and log-variance."""
        return probabilities(self.task, self.predict_logits(batch))


def presence_only(
    train: Batch, task: str, *, outputs: int | None = None, strength: float = STRENGTH, drop_rate: float = 0.0
) -> PresenceOnly:
    """Count answers per pattern of present inputs.

    Args:
        train: Training rows.
        task: classification, multilabel or regression.
        outputs: Number of classes; None = as many as the target shows.
        strength: Rows of the overall frequencies added to each pattern.
        drop_rate: Also count every row once more after dropping inputs at this rate, as arms with modality dropout see
            them; 0 = patterns as found.

    Raises:
        ValueError: If ``train`` has no target that can be scored.
    """
    y, rows = _targets(train, task)
    present = train.present[rows]
    if drop_rate > 0:
        present, y = torch.cat([present, _dropped(train.rows(rows), drop_rate, 0)]), np.concatenate([y, y])
    codes = mask_codes(present.cpu().numpy())
    if check_task(task) == "classification":
        width = int(y.max()) + 1 if outputs is None else outputs
        table = np.eye(width)[y.astype(np.int64)]
        floor = 1.0 / (len(y) + 1) / width
        to_logits: Callable[[Floats], Floats] = lambda share: np.log(np.maximum(share, floor))  # noqa: E731
    elif task == "multilabel":
        table, edge = y.astype(np.float64), 0.5 / (len(y) + 1)

        def to_logits(share: Floats) -> Floats:
            p = np.clip(share, edge, 1 - edge)
            return np.asarray(np.log(p) - np.log1p(-p))
    else:
        table = np.stack([y, y**2], axis=1).astype(np.float64)

        def to_logits(share: Floats) -> Floats:
            return np.array([share[0], math.log(max(share[1] - share[0] ** 2, 1e-6))])

    overall = table.mean(axis=0)
    known, place = np.unique(codes, return_inverse=True)
    sums = np.stack([np.bincount(place, column) for column in table.T], axis=1)
    shares = (sums + strength * overall) / (np.bincount(place)[:, None] + strength)
    return PresenceOnly(
        task=task,
        modalities=train.modalities,
        overall=to_logits(overall),
        by_pattern={int(c): to_logits(share) for c, share in zip(known, shares, strict=True)},
    )


@dataclass(frozen=True, eq=False)
class GradientBoosting:
    """Histogram gradient boosting on cells and embeddings, NaN where something is absent.

    Attributes:
        task: classification, multilabel or regression.
        modalities: Names, in column order.
        features: The modalities it reads: those in a tabular, vector or (flattened) series form.
        estimators: One scikit-learn estimator; one per label in multilabel, a float where the label never varied.
        classes: Class number of each of the estimator's columns.
        outputs: C.
        log_variance: Regression: log of the error variance on rows held out, by number of inputs present ``(M + 1,)``.
    """

    task: str
    modalities: tuple[str, ...]
    features: tuple[str, ...]
    estimators: tuple[Any, ...]
    classes: tuple[int, ...]
    outputs: int
    log_variance: tuple[float, ...] = ()

    def predict_logits(self, batch: Batch) -> Floats:
        """``(N, C)`` logits; regression: mean and log-variance."""
        p = self.predict_proba(batch)
        if self.task == "regression":
            return p
        return np.asarray(np.log(p) - (np.log1p(-p) if self.task == "multilabel" else 0.0))

    def predict_proba(self, batch: Batch) -> Floats:
        """``(N, C)`` probabilities; regression: mean and log-variance."""
        x, _ = feature_table(batch, self.features)
        if self.task == "regression":
            size = batch.present.sum(dim=1).cpu().numpy()
            mean = self.estimators[0].predict(x) if len(x) else np.zeros(0)
            return np.stack([mean, np.asarray(self.log_variance)[size]], axis=1)
        p = np.zeros((len(x), self.outputs))
        if not len(x):
            return p
        if self.task == "classification":
            p[:, list(self.classes)] = self.estimators[0].predict_proba(x)
            p = np.maximum(p, SURE)
            return p / p.sum(axis=1, keepdims=True)
        for k, estimator in enumerate(self.estimators):
            p[:, k] = estimator if isinstance(estimator, float) else estimator.predict_proba(x)[:, 1]
        return p.clip(SURE, 1 - SURE)


def gradient_boosting(
    train: Batch,
    task: str,
    *,
    outputs: int | None = None,
    copies: int = 1,
    drop_rate: float = 0.5,
    max_iter: int = 100,
    learning_rate: float = 0.2,
    max_leaf_nodes: int = 8,
    max_features: float | None = None,
    seed: int = 0,
) -> GradientBoosting:
    """Fit scikit-learn's ``HistGradientBoosting``, which routes a missing value to the better side of each split.

    A split sees missing values only where training rows have them, so every row is given again ``copies`` times with
    inputs dropped at ``drop_rate``: the same modality dropout that the neural arms train with.

    Args:
        train: Training rows; modalities in a raw form (images, text, audio) are not read: see ``embedding_batch``.
        task: classification, multilabel or regression.
        outputs: Number of classes; None = as many as the target shows.
        copies: Copies of every row with inputs dropped.
        drop_rate: Probability that a present input is dropped in a copy; one always survives.
        max_iter: Trees (per class).
        learning_rate: Shrinkage.
        max_leaf_nodes: Leaves of a tree.
        max_features: Share of the features that a split may choose from; None = 16 of them, which is quicker on wide
            embeddings and no worse.
        seed: Of copies and trees.

    Raises:
        ValueError: If no modality can be read or no target can be scored.
    """
    y, rows = _targets(train, task)
    batch = train.rows(rows)
    names = tuple(n for n in train.modalities if _is_readable(train.inputs[n]))
    if not names:
        raise ValueError(
            f"gradient boosting reads tabular, series and vector inputs, got none among {train.modalities}; "
            "embed the others first: embedding_batch(model, batch)"
        )
    blocks = [batch.present] + [_dropped(batch, drop_rate, seed + copy) for copy in range(copies)]
    tables = [feature_table(batch.with_present(present), names) for present in blocks]
    x, categorical = np.concatenate([t for t, _ in tables]), tables[0][1]
    again = np.concatenate([y] * len(blocks))
    chosen, spread = _held_out(batch, task, seed)
    chosen = np.tile(chosen, len(blocks))
    options = {
        "max_iter": max_iter,
        "learning_rate": learning_rate,
        "max_leaf_nodes": max_leaf_nodes,
        "max_features": min(1.0, 16 / x.shape[1]) if max_features is None else max_features,
        "min_samples_leaf": max(1, min(20, int(chosen.sum()) // 10)),
        "categorical_features": categorical if categorical.any() else None,
        "early_stopping": False,
        "random_state": seed_of(seed, "boosting") % (1 << 31),
    }
    estimators, classes = _fit(task, x[chosen], again[chosen], options)
    width = y.shape[1] if y.ndim == 2 else 2 if task == "regression" else max(classes) + 1
    model = GradientBoosting(
        task=task,
        modalities=train.modalities,
        features=names,
        estimators=estimators,
        classes=classes,
        outputs=width if outputs is None or task == "regression" else outputs,
        log_variance=(0.0,) * (len(train.modalities) + 1),
    )
    if task == "regression":
        spread = np.tile(spread, len(blocks))
        sizes = np.concatenate([present.sum(dim=1).cpu().numpy() for present in blocks])[spread]
        error = (again[spread] - estimators[0].predict(x[spread])) ** 2
        model = replace(model, log_variance=_spread_by_size(error, sizes, len(train.modalities)))
    return model


def feature_table(batch: Batch, names: Sequence[str]) -> tuple[Floats, NDArray[np.bool_]]:
    """``(N, F)`` cells and embeddings side by side, NaN where absent, and which columns hold categories.

    Raises:
        ValueError: If a modality is in a raw form.
    """
    columns: list[Floats] = []
    categorical: list[bool] = []
    for name in names:
        value = batch.inputs[name]
        absent = ~batch.present[:, batch.modalities.index(name)].cpu().numpy()
        if not _is_readable(value):
            raise ValueError(f"modality '{name}' is in a raw form; embed it first: embedding_batch(model, batch)")
        if isinstance(value, Tensor):
            part, codes = value.detach().double().cpu().numpy().copy(), 0
        elif "values" in value:
            part = value["values"].double().masked_fill(~value["mask"][..., None], math.nan).flatten(1).cpu().numpy()
            codes = 0
        else:
            numbers = value["numeric"].double().masked_fill(~value["numeric_mask"], math.nan)
            ids = value["categorical"]
            part = torch.cat([numbers, ids.double().masked_fill(ids == 0, math.nan)], dim=1).cpu().numpy()
            codes = ids.shape[1]
        part[absent] = np.nan
        columns.append(part)
        categorical += [False] * (part.shape[1] - codes) + [True] * codes
    return np.concatenate(columns, axis=1), np.array(categorical, bool)


def embedding_batch(model: Any, batch: Batch, *, batch_size: int = 1024) -> Batch:
    """The batch with every raw input (image, text, audio) replaced by the embedding of the model's encoder.

    Tabular, series and vector inputs stay as they are. The boosting baseline is then given what the fusion is given.
    """
    raw = [name for name in batch.modalities if not _is_readable(batch.inputs[name])]
    if not raw:
        return batch
    embedded = embed(model, batch, batch_size=batch_size)
    return replace(batch, inputs={**batch.inputs, **{name: embedded[name].flatten(1).float() for name in raw}})


def _is_readable(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "numeric" in value or "values" in value
    return bool(value.is_floating_point() and value.ndim == 2)


def _targets(train: Batch, task: str) -> tuple[NDArray[Any], Tensor]:
    """Targets that can be scored and the numbers of their rows."""
    y = np.zeros(0) if train.target is None else train.target.cpu().numpy()
    known = np.flatnonzero(scorable(check_task(task), y)) if len(y) else np.zeros(0, np.int64)
    if not len(known):
        raise ValueError(f"a baseline needs rows with a target, got {len(y)} targets of which none can be scored")
    return y[known], torch.from_numpy(known)


def _held_out(batch: Batch, task: str, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Rows to fit on and rows to measure the error variance on: disjoint in regression, unless rows are few."""
    everything = np.ones(len(batch), bool)
    if task != "regression":
        return everything, ~everything
    aside = uniform(seed, "boosting held out", 0, batch.keys.cpu(), 1)[:, 0].numpy() < 0.15
    return (~aside, aside) if aside.sum() >= 20 else (everything, everything)


def _dropped(batch: Batch, rate: float, seed: int) -> Tensor:
    law = Bernoulli(rate)
    present = batch.present.cpu()
    draws = uniform(seed, "baseline dropout", 0, batch.keys.cpu(), law.draws(present.shape[1]))
    return present & ~law.drop(present, draws)


def _fit(task: str, x: Floats, y: NDArray[Any], options: dict[str, Any]) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    ensemble = require("sklearn.ensemble", extra="workbench")
    categorical = options["categorical_features"]
    if categorical is not None:  # codes must stay below the library's limit; larger alphabets become numbers
        largest = np.nanmax(np.where(np.isnan(x), 0.0, x), axis=0, initial=0.0)
        options = {**options, "categorical_features": categorical & (largest <= MOST_CATEGORIES)}
    if task == "regression":
        return (ensemble.HistGradientBoostingRegressor(**options).fit(x, y),), ()
    if task == "classification":
        found = np.unique(y)
        if len(found) == 1:
            return (_Constant(),), (int(found[0]),)
        return (ensemble.HistGradientBoostingClassifier(**options).fit(x, y),), tuple(int(c) for c in found)
    labels = (y > 0.5).astype(np.int64)
    estimators = [
        float(column[0])
        if column.min() == column.max()
        else ensemble.HistGradientBoostingClassifier(**options).fit(x, column)
        for column in labels.T
    ]
    return tuple(estimators), tuple(range(labels.shape[1]))


class _Constant:
    """The classifier of a training set with one class."""

    def predict_proba(self, x: ArrayLike) -> Floats:
        return np.ones((len(np.asarray(x)), 1))


def _spread_by_size(error: Floats, sizes: NDArray[Any], modalities: int) -> tuple[float, ...]:
    """Log of the mean squared error per number of present inputs, each with ten rows of the overall mean added."""
    sums = np.bincount(sizes, error, minlength=modalities + 1)
    counts = np.bincount(sizes, minlength=modalities + 1)
    mean = (sums + STRENGTH * error.mean()) / (counts + STRENGTH)
    return tuple(np.log(np.maximum(mean, 1e-6)).tolist())
