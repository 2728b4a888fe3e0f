"""The baselines: counts by hand, boosting that uses its missing values, both judged like any model."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from polyfuse.calibrate import Calibration
from polyfuse.data.batch import Batch
from polyfuse.evaluate.baselines import (
    embedding_batch,
    feature_table,
    gradient_boosting,
    presence_only,
)
from polyfuse.evaluate.metrics import probabilities
from polyfuse.evaluate.records import evaluate_model
from polyfuse.evaluate.sweep import sweep

NAMES = ("cells", "vector")


def table_batch(task: str = "classification", n: int = 401, seed: int = 0) -> Batch:
    """A tabular input with a number, a category and holes; a vector; each informative on its own."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (n,), generator=g)
    numeric_mask = torch.rand(n, 2, generator=g) > 0.2
    numeric = (torch.stack([y - 1.0, -y + 1.0], 1) * 1.5 + torch.randn(n, 2, generator=g)) * numeric_mask
    categorical = torch.where(torch.rand(n, 1, generator=g) < 0.7, y[:, None] + 1, 0)
    inputs: dict[str, torch.Tensor | dict[str, torch.Tensor]] = {
        "cells": {"numeric": numeric.float(), "numeric_mask": numeric_mask, "categorical": categorical},
        "vector": torch.eye(3)[y] * 2 + torch.randn(n, 3, generator=g),
    }
    target: torch.Tensor = y
    if task == "multilabel":
        target = torch.stack([y == 0, y > 0, torch.zeros(n, dtype=torch.bool)], 1).float()
    elif task == "regression":
        target = y - 1.0 + 0.1 * torch.randn(n, generator=g)
    return Batch(NAMES, inputs, torch.rand(n, 2, generator=g) > 0.25, target, torch.arange(n) + 1000 * seed)


def patterns(task: str) -> Batch:
    present = torch.tensor([[True, True]] * 3 + [[True, False]] * 2 + [[False, True]])
    target = {
        "classification": torch.tensor([0, 0, 1, 1, 1, 2]),
        "multilabel": torch.tensor([[1.0, 0], [1, 0], [0, 0], [0, 1], [0, 1], [1, 1]]),
        "regression": torch.tensor([1.0, 2, 3, 5, 7, 9]),
    }[task]
    return Batch(NAMES, {n: torch.zeros(6, 1) for n in NAMES}, present, target, torch.arange(6))


def test_presence_only_counts_classes_per_pattern() -> None:
    train = patterns("classification")
    p = presence_only(train, "classification", strength=2.0).predict_proba(train)
    overall = np.array([2, 3, 1]) / 6
    np.testing.assert_allclose(p[0], (np.array([2, 1, 0]) + 2 * overall) / 5)
    np.testing.assert_allclose(p[3], (np.array([0, 2, 0]) + 2 * overall) / 4)
    np.testing.assert_allclose(p[5], (np.array([0, 0, 1]) + 2 * overall) / 3)
    unseen = train.with_present(torch.zeros(6, 2, dtype=torch.bool))
    np.testing.assert_allclose(presence_only(train, "classification").predict_proba(unseen)[0], overall)
    wide = presence_only(train, "classification", outputs=5).predict_proba(train)
    assert wide.shape == (6, 5)
    assert (wide > 0).all()
    assert presence_only(train, "classification").predict_logits(train.rows(torch.arange(0))).shape == (0, 3)


def test_presence_only_multilabel_and_regression() -> None:
    train = patterns("multilabel")
    p = presence_only(train, "multilabel", strength=2.0).predict_proba(train)
    np.testing.assert_allclose(p[0], (np.array([2, 0]) + 2 * np.array([0.5, 0.5])) / 5)
    train = patterns("regression")
    p = presence_only(train, "regression", strength=2.0).predict_proba(train)
    y = np.array([1.0, 2, 3, 5, 7, 9])
    mean, square = (np.array([6, 14]) + 2 * np.array([y.mean(), (y**2).mean()])) / 5
    np.testing.assert_allclose(p[0], [mean, math.log(square - mean**2)])


def test_presence_only_reads_nothing_else() -> None:
    train = table_batch()
    baseline = presence_only(train, "classification")
    blank = Batch(NAMES, {n: torch.full((len(train), 1), math.nan) for n in NAMES}, train.present, None, train.keys)
    np.testing.assert_array_equal(baseline.predict_logits(train), baseline.predict_logits(blank))
    more = presence_only(train, "classification", drop_rate=0.5)
    assert not np.array_equal(more.predict_logits(train), baseline.predict_logits(train))


def test_feature_table_has_nan_where_something_is_absent() -> None:
    batch = table_batch()
    x, categorical = feature_table(batch, NAMES)
    assert x.shape == (401, 2 + 1 + 3)
    assert categorical.tolist() == [False, False, True, False, False, False]
    present = batch.present.numpy()
    assert np.isnan(x[~present[:, 0], :3]).all()
    assert np.isnan(x[~present[:, 1], 3:]).all()
    assert not np.isnan(x[present[:, 1], 3:]).any()
    cells = batch.inputs["cells"]
    assert isinstance(cells, dict)
    np.testing.assert_array_equal(np.isnan(x[present[:, 0], :2]), ~cells["numeric_mask"].numpy()[present[:, 0]])
    np.testing.assert_array_equal(np.isnan(x[present[:, 0], 2]), cells["categorical"].numpy()[present[:, 0], 0] == 0)
    series = {"values": torch.ones(401, 2, 3), "mask": torch.tensor([[True, False]] * 401)}
    y, _ = feature_table(Batch(("s",), {"s": series}, torch.ones(401, 1, dtype=torch.bool), None, batch.keys), ("s",))
    assert np.isnan(y[:, 3:]).all()
    assert (y[:, :3] == 1).all()


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_boosting_learns_and_is_judged_like_a_model(task: str) -> None:
    model = gradient_boosting(table_batch(task), task, max_iter=30)
    floor = presence_only(table_batch(task), task)
    validation, test = table_batch(task, seed=1), table_batch(task, seed=2)
    calibration = Calibration.fit(sweep(model, validation, task=task), task)
    ours = evaluate_model(model, test, task, calibration)
    theirs = evaluate_model(floor, test, task)
    json.dumps(ours + theirs, allow_nan=False)
    key = {"classification": "accuracy", "multilabel": "macro_ap", "regression": "r2"}[task]
    assert [r["subset"] for r in ours] == ["cells", "vector", "cells+vector"]
    assert ours[0].keys() >= theirs[0].keys()
    for a, b in zip(ours, theirs, strict=True):
        assert a[key] > b[key] + 0.2, a["subset"]
        assert a["nll_calibrated"] < b["nll"]
        assert 0.8 < a["coverage"] <= 1
    assert ours[2][key] > max(ours[0][key], ours[1][key])


def test_boosting_is_deterministic_and_ignores_absent_content() -> None:
    train, test = table_batch(), table_batch(seed=1)
    a, b = (gradient_boosting(train, "classification", max_iter=5) for _ in range(2))
    np.testing.assert_array_equal(a.predict_logits(test), b.predict_logits(test))
    vector = test.inputs["vector"]
    assert isinstance(vector, torch.Tensor)
    broken = Batch(
        NAMES,
        {**test.inputs, "vector": vector.masked_fill(~test.present[:, 1:], 1e9)},
        test.present,
        test.target,
        test.keys,
    )
    np.testing.assert_array_equal(a.predict_logits(test), a.predict_logits(broken))
    p = a.predict_proba(test)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_allclose(probabilities("classification", a.predict_logits(test)), p)
    assert a.predict_proba(test.rows(torch.arange(0))).shape == (0, 3)


def two_vectors(seed: int) -> Batch:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (401,), generator=g)
    inputs = {name: torch.eye(3)[y] * 2 + torch.randn(401, 3, generator=g) for name in ("a", "b")}
    return Batch(("a", "b"), {**inputs}, torch.ones(401, 2, dtype=torch.bool), y, torch.arange(401))


def test_dropped_copies_teach_the_subsets() -> None:
    """Trained on complete rows alone, trees never saw a missing value and send it anywhere."""
    train, test = two_vectors(0), two_vectors(1)
    with_, without = (gradient_boosting(train, "classification", copies=c, max_iter=30) for c in (1, 0))
    a, b = evaluate_model(with_, test, "classification"), evaluate_model(without, test, "classification")
    for k in (0, 1):
        assert a[k]["nll"] < b[k]["nll"] - 0.05


def test_boosting_survives_few_rows_one_class_and_constant_labels() -> None:
    few = table_batch(n=3)
    assert gradient_boosting(few, "classification", outputs=7, max_iter=2).predict_proba(few).shape == (3, 7)
    assert np.isfinite(
        gradient_boosting(table_batch("regression", n=3), "regression", max_iter=2).predict_logits(few)
    ).all()
    one = Batch(NAMES, few.inputs, few.present, torch.ones(3, dtype=torch.int64), few.keys)
    p = gradient_boosting(one, "classification", outputs=3).predict_proba(one)
    assert (p.argmax(axis=1) == 1).all()
    labels = table_batch("multilabel")  # its last label never occurs
    assert gradient_boosting(labels, "multilabel", max_iter=2).predict_proba(labels)[:, 2].max() < 1e-5


def test_large_alphabets_become_numbers() -> None:
    batch = table_batch()
    cells = batch.inputs["cells"]
    assert isinstance(cells, dict)
    wide = {**cells, "categorical": cells["categorical"] * 400}
    model = gradient_boosting(
        Batch(NAMES, {**batch.inputs, "cells": wide}, batch.present, batch.target, batch.keys),
        "classification",
        max_iter=2,
    )
    assert np.isfinite(model.predict_logits(batch)).all()


class Embedder(nn.Module):
    modalities = ("photo", "vector")

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def encode(self, inputs: dict[str, torch.Tensor], present: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"photo": inputs["photo"].float().mean(dim=(2, 3)) * self.scale, "vector": inputs["vector"]}


def test_raw_inputs_are_embedded_and_cells_kept() -> None:
    photo = torch.randint(0, 255, (7, 3, 4, 4), dtype=torch.uint8)
    vector = torch.randn(7, 2)
    batch = Batch(
        ("photo", "vector"),
        {"photo": photo, "vector": vector},
        torch.ones(7, 2, dtype=torch.bool),
        torch.arange(7) % 2,
        torch.arange(7),
    )
    out = embedding_batch(Embedder(), batch, batch_size=3)
    torch.testing.assert_close(out.inputs["photo"], photo.float().mean(dim=(2, 3)) * 2)
    assert out.inputs["vector"] is vector
    assert embedding_batch(Embedder(), out) is out
    with pytest.raises(ValueError, match=r"got none among \('photo',\); embed the others first"):
        gradient_boosting(
            Batch(("photo",), {"photo": photo}, batch.present[:, :1], batch.target, batch.keys), "classification"
        )
    with pytest.raises(ValueError, match="modality 'photo' is in a raw form"):
        feature_table(batch, ("photo",))


def test_a_target_is_needed() -> None:
    batch = table_batch(n=5)
    for target in (None, torch.full((5,), -1)):
        nothing = Batch(NAMES, batch.inputs, batch.present, target, batch.keys)
        with pytest.raises(ValueError, match="none can be scored"):
            presence_only(nothing, "classification")
