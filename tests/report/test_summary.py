"""The numbers of the table of arms, against hand computations."""

import math
import statistics
from collections.abc import Mapping

import pytest

from polyfuse.report.content import ReportData
from polyfuse.report.format import format_difference, format_value
from polyfuse.report.records import Arm, Metric, Oracle, Paired, SubsetRecord
from polyfuse.report.summary import gap_of, is_tie, subset_label, summarise, t_interval

AB, A, B = ("a", "b"), ("a",), ("b",)


def report(values: Mapping[str, Mapping[tuple[int, tuple[str, ...]], float]], **fields: object) -> ReportData:
    """A report from {arm: {(seed, subset): accuracy}}."""
    data = ReportData("t", "classification", ("a", "b"), **fields)  # type: ignore[arg-type]
    for name, table in values.items():
        seeds = tuple(sorted({seed for seed, _ in table}))
        kind = "reference" if name == "ref" else "unimodal" if name == "alone" else "arm"
        data.arms.append(Arm(name, kind=kind, seeds=seeds))
        for (seed, subset), value in table.items():
            data.subset_records.append(SubsetRecord(name, seed, subset, 11, {data.primary.name: value}))
    return data


X = {(0, AB): 0.9, (0, A): 0.5, (0, B): 0.7, (1, AB): 0.8, (1, A): 0.6, (1, B): 0.4}


def test_complete_mean_worst_by_hand() -> None:
    row = summarise(report({"x": X})).of("x")
    assert row.mean("complete") == pytest.approx(0.85)
    assert row.mean("mean") == pytest.approx((2.1 / 3 + 1.8 / 3) / 2)
    # The worst subset is taken within each seed: a in seed 0, b in seed 1.
    assert row.mean("worst") == pytest.approx((0.5 + 0.4) / 2)
    worst = row.values["worst"]
    assert worst is not None
    assert worst.sd == pytest.approx(statistics.stdev([0.5, 0.4]))
    assert row.worst_subset == A  # mean over seeds: a 0.55 (tied with b 0.55), the first in order


def test_lower_is_better_turns_worst_best_and_regret() -> None:
    metric = Metric("mae", "error", higher_is_better=False, percent=False)
    y = {k: v + 0.1 for k, v in X.items()}
    data = report({"x": X, "y": y}, metric=metric)
    data.oracles = [Oracle(s, seed, X[seed, s] - 0.05 * (s == A)) for seed in (0, 1) for s in (AB, A, B)]
    s = summarise(data)
    assert s.of("x").mean("worst") == pytest.approx((0.9 + 0.8) / 2)
    best = s.best()
    assert best is not None
    assert best.arm.name == "x"
    assert s.of("x").mean("regret") == pytest.approx(0.05)
    assert s.of("x").mean("mean_regret") == pytest.approx(0.05 / 3)
    assert s.of("y").mean("regret") == pytest.approx(0.15)


def test_one_seed_has_no_spread() -> None:
    row = summarise(report({"x": {k: v for k, v in X.items() if k[0] == 0}})).of("x")
    value = row.values["mean"]
    assert value is not None
    assert math.isnan(value.sd)


def test_arm_without_all_subsets_has_no_mean() -> None:
    s = summarise(report({"x": X, "y": {(0, AB): 0.9, (0, A): 0.8}, "alone": {(0, A): 0.99}}))
    assert s.subsets == (AB, A, B)
    assert s.of("y").values["mean"] is None
    assert s.of("y").mean("complete") == 0.9
    assert [r.arm.name for r in s.ranked] == ["x", "y"]
    assert [r.arm.name for r in s.unimodal] == ["alone"]


def test_shared_subsets_when_nobody_has_all() -> None:
    s = summarise(report({"x": {(0, AB): 0.9, (0, A): 0.8}, "y": {(0, AB): 0.7, (0, B): 0.1}}))
    assert s.subsets == (AB,)
    assert s.of("y").mean("mean") == 0.7


def test_undefined_scores_are_not_zero() -> None:
    s = summarise(report({"x": {(0, AB): 0.9, (0, A): math.nan}}))
    assert s.subsets == (AB,)
    assert s.of("x").mean("worst") == 0.9


def test_oracle_of_other_seeds_is_pooled() -> None:
    data = report({"x": {(0, AB): 0.8, (0, A): 0.5, (0, B): 0.4}})
    data.oracles = [Oracle(AB, 7, 0.8), Oracle(AB, 8, 1.0), Oracle(A, 7, 0.5)]
    row = summarise(data).of("x")
    assert row.mean("regret") == pytest.approx(0.1)  # complete: 0.9 - 0.8; nothing is known about b
    assert row.mean("mean_regret") == pytest.approx(0.05)


def test_marks_best_and_ties_by_seeds() -> None:
    low = {k: v - 0.2 for k, v in X.items()}
    near = {(seed, s): v - (0.001 if seed else -0.0005) for (seed, s), v in X.items()}
    s = summarise(report({"x": X, "near": near, "low": low}))
    assert s.of("x").marks["mean"] == "best"
    assert s.of("near").marks["mean"] == "tie"
    assert "mean" not in s.of("low").marks


def test_recorded_interval_beats_the_one_over_seeds() -> None:
    low = {k: v - 0.2 for k, v in X.items()}
    data = report({"x": X, "ref": low})
    assert not is_tie(data, summarise(data).of("ref"), summarise(data).of("x"), "mean")
    data.paired = [Paired("x", "ref", "accuracy", 0.2, -0.1, 0.5)]
    s = summarise(data)
    assert is_tie(data, s.of("ref"), s.of("x"), "mean")
    gap = gap_of(data, s.of("ref"), s.of("x"), "mean")
    assert gap is not None
    assert (gap.mean, gap.low, gap.high, gap.over_seeds) == (-0.2, -0.5, 0.1, False)
    assert not is_tie(data, s.of("ref"), s.of("x"), "complete")  # recorded over the mean only
    data.paired = [Paired("x", "ref", "accuracy", 0.2, math.nan, math.nan)]
    assert not is_tie(data, s.of("ref"), s.of("x"), "mean")


def test_calibration_is_not_won_by_a_baseline() -> None:
    data = report({"x": X, "y": X})
    data.arms[1] = Arm("y", kind="baseline", seeds=(0, 1))
    data.arms.append(Arm("z", seeds=(0, 1)))
    for name, ece in (("x", 0.05), ("y", 0.01), ("z", 0.09)):
        for seed, subset in X:
            data.subset_records.append(
                SubsetRecord(name, seed, subset, 3, {"ece_calibrated": ece, "accuracy": X[seed, subset]})
            )
    s = summarise(data)
    assert s.of("x").marks["ece_calibrated"] == "best"
    assert "ece_calibrated" not in s.of("y").marks


def test_t_interval_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for n in (2, 5, 31, 40):
        values = [math.sin(3 * i) for i in range(n)]
        half = stats.t.ppf(0.975, n - 1) * statistics.stdev(values) / math.sqrt(n)
        low, high = t_interval(values)
        tolerance = 1e-3 if n <= 31 else 0.05  # beyond 30 degrees of freedom the normal quantile stands in
        assert high - low == pytest.approx(2 * half, rel=tolerance)


def test_labels_and_formats() -> None:
    assert subset_label(AB, AB) == "complete"
    assert subset_label(("a",), ("a",)) == "a"
    share, error = Metric("accuracy", "accuracy"), Metric("mae", "error", False, percent=False, unit="EUR")
    assert format_value(share, -0.05) == "−5.0"
    assert format_value(share, math.nan) == "–"
    assert format_difference(share, 0.0004) == "0.0 points"
    assert format_difference(error, 12.0) == "+12.0 EUR"
    assert format_value(error, 0.5, like=20.0) == "0.5"
