"""Bootstrap intervals: known coverage, clusters count, seeds count."""

import numpy as np
import pytest

from polyfuse.evaluate.intervals import paired_difference, paired_statistic
from polyfuse.evaluate.metrics import r2


def test_interval_equals_the_normal_one_for_many_rows() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.3, 1, 4001), rng.normal(0, 1, 4001)
    mean, low, high = paired_difference(a, b)
    half = 1.96 * (a - b).std() / np.sqrt(4001)
    assert mean == pytest.approx((a - b).mean())
    assert low == pytest.approx(mean - half, abs=0.1 * half)
    assert high == pytest.approx(mean + half, abs=0.1 * half)
    assert paired_difference(a, b) == (mean, low, high)  # the same again
    assert paired_difference(a, b, seed=1) != (mean, low, high)


def test_rows_of_one_cluster_are_one_observation() -> None:
    rng = np.random.default_rng(1)
    effect = rng.normal(0, 1, 101)
    a = np.repeat(effect, 7)
    groups = np.repeat([f"g{i}" for i in range(101)], 7)
    width = {k: np.ptp(paired_difference(a, 0 * a, g)[1:]) for k, g in {"rows": None, "groups": groups}.items()}
    assert width["groups"] / width["rows"] == pytest.approx(np.sqrt(7), rel=0.15)


def test_seeds_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    rows, seeds = rng.normal(0, 0.1, 997), np.array([[-1.0], [0.0], [1.0], [0.5], [-0.5]])
    a = rows + seeds
    mean, low, high = paired_difference(a, np.zeros_like(a))
    assert mean == pytest.approx(rows.mean(), abs=1e-9)
    assert high - low > 0.8
    _, low1, high1 = paired_difference(a[1], np.zeros(997))
    assert high1 - low1 < 0.02


def test_rows_without_a_value_are_left_out() -> None:
    a, b = np.array([1.0, np.nan, 0.0, 1.0]), np.array([0.0, 0.0, 0.0, np.nan])
    assert paired_difference(a, b, ["x", "y", "x", "z"]) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="no row has a value"):
        paired_difference([np.nan], [1.0])


def test_statistic_interval_covers_a_mean_like_the_other_function() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.2, 1, 503), rng.normal(0, 1, 503)
    groups = np.arange(503) // 3
    one = paired_difference(a, b, groups, draws=1000)
    two = paired_statistic(
        lambda w: float(np.average(a, weights=w)), lambda w: float(np.average(b, weights=w)), groups, draws=1000
    )
    np.testing.assert_allclose(one, two, atol=1e-9)  # the same clusters are drawn


def test_statistic_takes_metrics_with_weights_and_skips_what_is_not_finite() -> None:
    rng = np.random.default_rng(4)
    y = rng.normal(size=61)
    good, bad = np.stack([y + 0.1, 0 * y], 1), np.stack([0 * y, 0 * y], 1)
    mean, low, high = paired_statistic(lambda w: r2(good, y, w), lambda w: r2(bad, y, w), np.arange(61))
    assert low < mean < high
    assert low > 0.8
    with pytest.raises(ValueError, match="not finite in any of 7"):
        paired_statistic(lambda w: np.nan, lambda w: 0.0, [0, 1], draws=7)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        paired_difference([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match=r"\(N,\) = \(2,\), got \(3,\)"):
        paired_difference([1, 2], [1, 2], [0, 0, 1])
