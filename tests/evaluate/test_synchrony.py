"""The metric finds who notices a shift, is 0.5 for who cannot, and its area is scikit-learn's."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from polyfuse.data.streams import Stream, resample
from polyfuse.evaluate.synchrony import synchrony

ROWS, SHIFTS = 83, (-0.8, -0.2, 0.2, 0.8)


def pairs() -> list[tuple[Stream, Stream]]:
    """A movement and the sound it makes, at other rates, with noise and holes."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(ROWS):
        rate, phase = rng.uniform(0.2, 0.5), rng.uniform(0, 6)

        def wave(t: np.ndarray, rate: float = rate, phase: float = phase) -> np.ndarray:
            return np.sin(2 * np.pi * rate * t + phase)

        a, b = np.arange(0, 5, 1 / 11), np.arange(0, 5, 1 / 17)
        noise = rng.normal(size=len(a) + len(b)) * 0.4
        found.append(
            (Stream(wave(a) + noise[: len(a)], a, rng.random(len(a)) < 0.9), Stream(wave(b) + noise[len(a) :], b))
        )
    return found


def test_a_model_that_compares_times_notices_and_the_more_the_later() -> None:
    rows = pairs()

    def alike(seconds: float) -> np.ndarray:
        scores = []
        for a, b in rows:
            grid = np.arange(1.0, 4.0, 0.1)
            x, y = resample(a, grid), resample(b.shifted(seconds), grid)
            both = x.mask & y.mask
            scores.append(np.corrcoef(x.values[both], y.values[both])[0, 1])
        return np.array(scores)

    result = synchrony(alike, SHIFTS, draws=200)
    assert result.noticed
    areas = {s.seconds: s.auc.mean for s in result.shifts}
    assert areas[0.8] > areas[0.2] > 0.55
    assert areas[-0.8] > areas[-0.2] > 0.55
    assert all(s.drop.low > 0 and s.auc.low > 0.5 for s in result.shifts if abs(s.seconds) > 0.5)
    assert result.true_score.mean > result.shifts[-1].score.mean
    for s in result.shifts:
        truth = np.repeat([1, 0], ROWS)
        assert s.auc.mean == pytest.approx(roc_auc_score(truth, np.concatenate([alike(0.0), alike(s.seconds)])))
        assert s.auc.low < s.auc.mean < s.auc.high
        assert s.paired.mean == pytest.approx(np.mean(alike(0.0) > alike(s.seconds)))
    losses = synchrony(lambda d: -alike(d), SHIFTS, loss=True, draws=200)
    assert losses.auc == result.auc
    assert losses.shifts[0].drop == result.shifts[0].drop
    assert any("+0.80 s" in line for line in result.lines())


def test_a_model_that_cannot_see_time_is_at_one_half() -> None:
    rows = pairs()
    blind = synchrony(
        lambda d: np.array([a.values[a.mask].mean() * b.shifted(d).values.mean() for a, b in rows]), SHIFTS
    )
    assert blind.auc.mean == 0.5
    assert not blind.noticed
    assert all(s.auc.mean == s.paired.mean == 0.5 and s.drop.mean == 0.0 for s in blind.shifts)
    rng = np.random.default_rng(1)
    luck = synchrony(lambda d: rng.normal(size=ROWS), SHIFTS)
    assert not luck.noticed or luck.auc.low < 0.55
    assert luck.auc.low < 0.5 < luck.auc.high


def test_rows_that_cannot_be_scored_are_left_out_on_both_sides() -> None:
    base = np.random.default_rng(2).normal(size=ROWS)
    gone = np.arange(ROWS) < 40

    def score(seconds: float) -> np.ndarray:
        return np.where(gone & (seconds != 0), math.nan, base - 0.5 * abs(seconds))

    part = synchrony(score, [1.0])
    kept = synchrony(lambda d: (base - 0.5 * abs(d))[~gone], [1.0])
    assert part.auc.mean == kept.auc.mean
    assert part.shifts[0].drop.mean == pytest.approx(0.5)


def test_rows_of_one_recording_widen_the_interval() -> None:
    rng = np.random.default_rng(3)
    recording = np.repeat(np.arange(9), 9)
    shifted = rng.normal(size=9)[recording] + 0.01 * rng.normal(size=81)
    alone = synchrony(lambda d: shifted if d else 0 * shifted, [1.0])
    together = synchrony(lambda d: shifted if d else 0 * shifted, [1.0], groups=recording)
    assert alone.auc.mean == together.auc.mean
    assert together.auc.high - together.auc.low > 1.5 * (alone.auc.high - alone.auc.low)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"at least one shift, and none of 0, got \[0\.0\]"):
        synchrony(lambda d: np.zeros(3), [0.0])
    with pytest.raises(ValueError, match=r"scores at 1.0 s must be \(N,\) = \(3,\), got \(4,\)"):
        synchrony(lambda d: np.zeros(3 if d == 0 else 4), [1.0])
    with pytest.raises(ValueError, match=r"no row is scored both as it is and shifted by 1\.0 s"):
        synchrony(lambda d: np.full(3, math.nan if d else 1.0), [1.0])
    with pytest.raises(ValueError, match=r"groups must be \(N,\) = \(3,\), got \(2,\)"):
        synchrony(lambda d: np.zeros(3), [1.0], groups=[1, 2])
