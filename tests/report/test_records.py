"""Records go to JSON and back without loss, and refuse what points at nothing."""

import dataclasses
import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from polyfuse.errors import UserError
from polyfuse.report.content import ReportData
from polyfuse.report.records import (
    Arm,
    CorruptionRecord,
    Metric,
    Oracle,
    Paired,
    SubsetRecord,
    subset_records,
)

Build = Callable[..., ReportData]


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_json_round_trip_is_exact(make_data: Build, task: str) -> None:
    data = make_data(task, arms=3, seeds=2)
    assert ReportData.from_json(data.to_json(verdict=["one", "two"])) == data


def test_every_field_survives(make_data: Build) -> None:
    data = make_data(seeds=1)
    record = json.loads(data.to_json())
    assert set(record) == {"format", *(f.name for f in dataclasses.fields(ReportData))}
    empty = [k for k, v in record.items() if v in ([], {}, "")]
    assert not empty, f"the fixture leaves {empty} empty, so their round trip is not tested"


def test_numbers_that_are_not_finite_become_null_and_nan() -> None:
    metrics = {"accuracy": math.nan, "nll": math.inf, "brier": 0.25}
    data = ReportData("t", "classification", ("a",), arms=[Arm("x")])
    data.subset_records = [SubsetRecord("x", 0, ("a",), 3, metrics)]
    text = data.to_json()
    assert "NaN" not in text
    assert "Infinity" not in text
    back = ReportData.from_json(text).subset_records[0].metrics
    assert math.isnan(back["accuracy"])
    assert math.isnan(back["nll"])
    assert back["brier"] == 0.25


def test_flat_records_keep_numbers_only() -> None:
    flat = {"subset": "a+b", "size": 2, "n": np.int64(7), "accuracy": np.float32(0.5), "nll": None, "flagged": True}
    (record,) = subset_records("x", 3, [{**flat, "modalities": ["a", "b"], "weights": {"a": 1.0}}])
    assert record == SubsetRecord("x", 3, ("a", "b"), 7, {"accuracy": 0.5})
    assert SubsetRecord.from_metrics("x", 3, {**flat, "subset": ["a+b"]}).subset == ("a+b",)
    broken = CorruptionRecord.from_metrics("x", 0, {"corruption": "noise 3", "modality": "a", "n": 7, "accuracy": 0.25})
    assert broken == CorruptionRecord("x", 0, "noise 3", "a", {"accuracy": 0.25})


def test_newer_format_is_refused(make_data: Build) -> None:
    record = {**make_data(arms=2, seeds=1, parts=False).to_dict(), "format": 99}
    with pytest.raises(UserError, match="format 99"):
        ReportData.from_dict(record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": [{"name": "x", "sedes": [1]}]}, "no field sedes"),
        ({"arms": [{"label": "x"}]}, "missing"),
        ({"title": 5}, "expected str, got 5"),
    ],
)
def test_wrong_json_is_explained(make_data: Build, change: dict[str, object], message: str) -> None:
    record = {**make_data(arms=2, seeds=1, parts=False).to_dict(), **change}
    with pytest.raises(ValueError, match=message):
        ReportData.from_dict(record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": []}, "at least one arm"),
        ({"arms": [Arm("x"), Arm("x")]}, "must differ, got x, x"),
        ({"arms": [Arm("x", kind="winner")]}, "got 'winner'"),
        ({"default": "y"}, "unknown arms y"),
        ({"paired": [Paired("x", "z", "accuracy", 0, 0, 0)]}, "unknown arms z"),
        ({"subset_records": [SubsetRecord("x", 0, ("c",), 1, {})]}, "unknown modalities c"),
        ({"subset_records": [SubsetRecord("x", 0, (), 1, {})]}, "empty subset"),
        ({"oracles": [Oracle(("d",), 0, 0.5)]}, "unknown modalities d"),
    ],
)
def test_records_that_point_at_nothing_are_refused(change: dict[str, object], message: str) -> None:
    data = dataclasses.replace(ReportData("t", "classification", ("a", "b"), arms=[Arm("x")]), **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        data.check()


def test_metric_of_task() -> None:
    assert Metric.of_task("multilabel").name == "macro_ap"
    assert not Metric.of_task("regression").percent
    with pytest.raises(ValueError, match="got 'ranking'"):
        Metric.of_task("ranking")


def test_arm_lookup() -> None:
    data = ReportData("t", "classification", ("a",), arms=[Arm("x"), Arm("y", kind="reference")])
    assert data.reference_arm == "y"
    assert data.arm("x").title == "x"
    with pytest.raises(KeyError, match="known: x, y"):
        data.arm("z")
