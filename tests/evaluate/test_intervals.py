"""Bootstrap intervals: known coverage, clusters count, seeds count."""

import numpy as np
import pytest

from polyfuse.evaluate.intervals import holm, mean_intervals, p_value, paired_difference, paired_statistic
from polyfuse.evaluate.metrics import r2


def test_interval_equals_the_normal_one_for_many_rows() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.3, 1, 4001), rng.normal(0, 1, 4001)
    mean, low, high, _ = paired_difference(a, b)
    half = 1.96 * (a - b).std() / np.sqrt(4001)
    assert mean == pytest.approx((a - b).mean())
    assert low == pytest.approx(mean - half, abs=0.1 * half)
    assert high == pytest.approx(mean + half, abs=0.1 * half)
    assert paired_difference(a, b)[:3] == (mean, low, high)  # the same again
    assert paired_difference(a, b, seed=1)[:3] != (mean, low, high)


def test_rows_of_one_cluster_are_one_observation() -> None:
    rng = np.random.default_rng(1)
    effect = rng.normal(0, 1, 101)
    a = np.repeat(effect, 7)
    groups = np.repeat([f"g{i}" for i in range(101)], 7)
    width = {k: np.ptp(paired_difference(a, 0 * a, g)[1:3]) for k, g in {"rows": None, "groups": groups}.items()}
    assert width["groups"] / width["rows"] == pytest.approx(np.sqrt(7), rel=0.15)


def test_seeds_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    rows, seeds = rng.normal(0, 0.1, 997), np.array([[-1.0], [0.0], [1.0], [0.5], [-0.5]])
    a = rows + seeds
    mean, low, high, _ = paired_difference(a, np.zeros_like(a))
    assert mean == pytest.approx(rows.mean(), abs=1e-9)
    assert high - low > 0.8
    _, low1, high1, _ = paired_difference(a[1], np.zeros(997))
    assert high1 - low1 < 0.02


def test_rows_without_a_value_are_left_out() -> None:
    a, b = np.array([1.0, np.nan, 0.0, 1.0]), np.array([0.0, 0.0, 0.0, np.nan])
    assert paired_difference(a, b, ["x", "y", "x", "z"])[:3] == (0.5, 0.5, 0.5)
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
    mean, low, high, _ = paired_statistic(lambda w: r2(good, y, w), lambda w: r2(bad, y, w), np.arange(61))
    assert low < mean < high
    assert low > 0.8
    with pytest.raises(ValueError, match="not finite in any of 7"):
        paired_statistic(lambda w: np.nan, lambda w: 0.0, [0, 1], draws=7)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        paired_difference([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match=r"\(N,\) = \(2,\), got \(3,\)"):
        paired_difference([1, 2], [1, 2], [0, 0, 1])


def test_p_value_is_uniform_without_a_difference_and_small_with_one() -> None:
    rng = np.random.default_rng(5)
    null = [paired_difference(rng.normal(size=41), np.zeros(41), draws=199).p for _ in range(300)]
    assert 0.03 < np.mean(np.array(null) <= 0.1) < 0.18
    assert paired_difference(np.ones(41), np.zeros(41), draws=199).p == 0.01  # 2 (1 + 0) / (1 + 199)
    assert paired_difference(np.ones(41), np.ones(41)).p == 1.0
    assert p_value([-1.0, *[1.0] * 98]) == 0.04


def test_holm_equals_the_definition_in_loops() -> None:
    rng = np.random.default_rng(6)
    for k in (1, 2, 7):
        p = rng.uniform(0, 0.4, k)
        wanted = [min(1.0, max((k - i) * np.sort(p)[i] for i in range(k) if np.sort(p)[i] <= mine)) for mine in p]
        np.testing.assert_allclose(holm(p), wanted)
    np.testing.assert_allclose(holm([0.02, np.nan, 0.03]), [0.04, np.nan, 0.04])
    assert holm([]).shape == (0,)
    with pytest.raises(ValueError, match=r"1\.2"):
        holm([0.1, 1.2])


def test_many_means_agree_with_one_at_a_time() -> None:
    rng = np.random.default_rng(7)
    x, groups = rng.normal(0.1, 1, (3, 307)), np.arange(307) // 3
    x[1, ::2] = np.nan
    many = mean_intervals([*x, np.full(307, np.nan)], groups, draws=4000)
    for row, found in zip(x, many[:3], strict=True):
        one = paired_difference(row, np.zeros(307), groups, draws=4000)
        assert found.mean == pytest.approx(one.mean)
        np.testing.assert_allclose(found, one, atol=0.02)
    assert np.isnan(many[3]).all()
    with pytest.raises(ValueError, match=r"\(K, N\), got \(3,\)"):
        mean_intervals([1, 2, 3])
