"""Conformal sets: equal to crepes, covering within beta-binomial bounds per mask, full where nothing is known."""

import json
import math

import numpy as np
import pytest
from crepes import ConformalClassifier, ConformalRegressor
from crepes.extras import hinge
from scipy.stats import betabinom

from polyfuse.calibrate.conformal import ConformalSets, conformal_quantile
from polyfuse.evaluate.metrics import probabilities
from polyfuse.evaluate.subsets import all_subsets

M, C = 2, 5
SUBSETS = all_subsets(M)


def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of three subsets of unequal worth, and classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, C, n)
    worth = np.array([0.7, 1.5, 2.5])[:, None, None]
    z = worth * np.eye(C)[y] + rng.normal(size=(3, n, C))
    return probabilities("classification", worth * z), y


def test_quantile_by_hand() -> None:
    assert conformal_quantile([3, 1, 2], 0.5) == 2  # ceil(4 * 0.5) = 2nd
    assert conformal_quantile([3, 1, 2], 0.25) == 3  # ceil(4 * 0.75) = 3rd
    assert conformal_quantile([3, 1, 2], 0.2) == math.inf  # ceil(3.2) = 4th of three
    assert conformal_quantile([], 0.1) == math.inf
    for n in range(1, 400):  # the rank is exact whatever the last bit of (n + 1)(1 - alpha)
        for percent in (1, 5, 10, 18, 19, 20):
            rank = -((-(n + 1) * (100 - percent)) // 100)
            want = rank if rank <= n else math.inf
            assert conformal_quantile(np.arange(1, n + 1), percent / 100) == want


# Not where (n + 1) * alpha is whole: crepes then keeps the class whose p-value equals alpha, one rank more than needed.
@pytest.mark.parametrize("alpha", [0.1, 0.2])
def test_sets_equal_crepes_with_mondrian_categories(alpha: float) -> None:
    p, y = draw(151, 0)
    q, t = draw(97, 1)
    fitted = ConformalSets.fit(p, y, SUBSETS, np.ones((3, 151), bool), alpha)
    theirs = ConformalClassifier()
    stacked, labels = p.reshape(-1, C), np.tile(y, 3)
    theirs.fit(hinge(stacked, np.arange(C), labels), bins=np.repeat(np.arange(3), 151))
    new = q.reshape(-1, C)
    want = theirs.predict_set(hinge(new), bins=np.repeat(np.arange(3), 97), confidence=1 - alpha, smoothing=False)
    ours = fitted.sets(new, np.repeat(SUBSETS, 97, axis=0))
    np.testing.assert_array_equal(ours, np.asarray(want, bool))
    assert ours.any(axis=1).mean() < 1 or ours.all(axis=1).mean() < 1  # not trivial
    assert len(t) == 97


def test_intervals_equal_crepes() -> None:
    rng = np.random.default_rng(0)
    n, alpha = 113, 0.1
    y = rng.normal(size=n)
    params = np.stack([y + rng.normal(size=(3, n)) * np.array([[1.0], [0.5], [0.2]]), rng.normal(size=(3, n))], axis=-1)
    fitted = ConformalSets.fit(params, y, SUBSETS, np.ones((3, n), bool), alpha, task="regression")
    theirs = ConformalRegressor()
    sigma = np.exp(params[..., 1] / 2).ravel()
    bins = np.repeat(np.arange(3), n)
    theirs.fit((np.tile(y, 3) - params[..., 0].ravel()), sigmas=sigma, bins=bins)
    want = theirs.predict_int(params[..., 0].ravel(), sigmas=sigma, bins=bins, confidence=1 - alpha)
    ours = fitted.intervals(params.reshape(-1, 2), np.repeat(SUBSETS, n, axis=0))
    np.testing.assert_allclose(ours, want, rtol=1e-9)


def test_coverage_is_within_beta_binomial_bounds_for_every_mask() -> None:
    """With n calibration rows and rank k, the covered of t test rows follow BetaBinomial(t, k, n + 1 - k) exactly."""
    alpha, tests = 0.1, 4001
    p, y = draw(307, 2)
    q, t = draw(tests, 3)
    valid = np.ones((3, 307), bool)
    valid[1, 150:] = False  # other masks have other numbers of rows
    fitted = ConformalSets.fit(p, y, SUBSETS, valid, alpha)
    for s, mask in enumerate(SUBSETS):
        n = int(valid[s].sum())
        k = math.ceil((n + 1) * (1 - alpha) - 1e-9)
        covered = fitted.sets(q[s], np.broadcast_to(mask, (tests, M)))[np.arange(tests), t].sum()
        law = betabinom(tests, k, n + 1 - k)
        assert law.ppf(1e-4) <= covered <= law.ppf(1 - 1e-4), (mask, covered / tests)


def test_coverage_over_many_splits_has_the_promised_mean() -> None:
    alpha, n, repeats = 0.1, 37, 400
    hits = []
    for r in range(repeats):
        p, y = draw(n + 1, 100 + r)
        fitted = ConformalSets.fit(p[:, :n], y[:n], SUBSETS, np.ones((3, n), bool), alpha)
        sets = fitted.sets(p[:, n], SUBSETS)
        hits.append(sets[:, y[n]])
    rank = math.ceil((n + 1) * (1 - alpha) - 1e-9)
    want = rank / (n + 1)
    np.testing.assert_allclose(np.mean(hits, axis=0), want, atol=4 * math.sqrt(want * (1 - want) / repeats))


def test_thresholds_of_complete_rows_would_not_cover_the_subsets() -> None:
    """The reason for one threshold per mask: the coverage test above fails without it."""
    p, y = draw(307, 2)
    q, t = draw(4001, 3)
    complete = ConformalSets.fit(p[2:], y, SUBSETS[2:], np.ones((1, 307), bool))
    full = np.ones((4001, M), bool)
    assert complete.sets(q[2], full)[np.arange(4001), t].mean() > 0.87
    assert complete.sets(q[0], full)[np.arange(4001), t].mean() < 0.7


def test_too_few_rows_and_unseen_masks_get_the_full_set() -> None:
    p, y = draw(30, 0)
    valid = np.ones((2, 30), bool)
    valid[0, 8:] = False  # eight rows do not suffice for one miss in ten
    fitted = ConformalSets.fit(p[:2], y, SUBSETS[:2], valid, 0.1)
    for mask in (SUBSETS[0], SUBSETS[2], np.zeros(M, bool)):
        assert fitted.sets(p[0], np.broadcast_to(mask, (30, M))).all()
    assert not fitted.sets(p[1], np.broadcast_to(SUBSETS[1], (30, M))).all()
    assert fitted.rows == {1: 8, 2: 30}
    params = np.zeros((1, 8, 2))
    few = ConformalSets.fit(params, np.zeros(8), SUBSETS[:1], np.ones((1, 8), bool), task="regression")
    assert np.isinf(few.intervals(params[0], np.broadcast_to(SUBSETS[0], (8, M)))).all()


def label_rows(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = (rng.random((n, C)) < (0.6, 0.4, 0.3, 0.2, 0.1)).astype(float)
    return probabilities("multilabel", rng.normal(size=(n, C)) * 1.5 + 2 * y - 1), y


def false_negative_rate(sets: np.ndarray, y: np.ndarray) -> np.ndarray:
    some = y.sum(axis=1) > 0
    return 1 - (sets & (y > 0))[some].sum(axis=1) / y[some].sum(axis=1)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_label_sets_equal_a_search_over_thresholds(alpha: float) -> None:
    p, y = label_rows(101, 0)
    fitted = ConformalSets.fit(p[None], y, SUBSETS[2:], np.ones((1, 101), bool), alpha, task="multilabel")
    allowed = []
    n = int((y.sum(axis=1) > 0).sum())
    for threshold in sorted({0.0, *(1 - p).ravel()}):
        if (false_negative_rate(1 - p <= threshold, y).sum() + 1) / (n + 1) <= alpha + 1e-12:
            allowed.append(threshold)
    np.testing.assert_allclose(fitted.thresholds[3], min(allowed), rtol=1e-12)


def test_label_sets_control_the_false_negative_rate_on_average() -> None:
    alpha, rates = 0.2, []
    for r in range(200):
        p, y = label_rows(41, r)
        q, t = label_rows(101, 1000 + r)
        fitted = ConformalSets.fit(p[None], y, SUBSETS[2:], np.ones((1, 41), bool), alpha, task="multilabel")
        rates.append(false_negative_rate(fitted.sets(q, np.ones((101, M), bool)), t).mean())
    error = np.std(rates) / math.sqrt(len(rates))
    assert np.mean(rates) <= alpha + 3 * error
    assert np.mean(rates) > alpha - 2 / 30  # and is not idle: the bound is tight to about one row in n


def test_label_sets_with_too_few_or_no_positive_rows_are_full() -> None:
    p, y = label_rows(8, 0)
    y[:, 0] = 1
    for target in (y, np.zeros_like(y)):
        fitted = ConformalSets.fit(p[None], target, SUBSETS[2:], np.ones((1, 8), bool), 0.1, task="multilabel")
        assert fitted.sets(p, np.ones((8, M), bool)).all()


def test_tied_labels_are_lost_together() -> None:
    p = np.full((19, 1), 0.3)
    p[:3] = 0.1
    y = np.ones((19, 1))
    fitted = ConformalSets.fit(p[None], y, SUBSETS[2:], np.ones((1, 19), bool), 0.15, task="multilabel")
    # (lost + 1) / 20 <= 0.15 allows two; the three tied at 0.1 go together or not at all.
    assert fitted.thresholds[3] == pytest.approx(0.9)


def test_round_trip_through_json() -> None:
    p, y = draw(30, 0)
    valid = np.ones((3, 30), bool)
    valid[0, 5:] = False
    fitted = ConformalSets.fit(p, y, SUBSETS, valid)
    assert math.isinf(fitted.thresholds[1])
    again = ConformalSets.from_dict(json.loads(json.dumps(fitted.to_dict(), allow_nan=False)))
    assert again == fitted


def test_mistakes_are_named() -> None:
    p, y = draw(11, 0)
    ok = np.ones((3, 11), bool)
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\), got 1.0"):
        ConformalSets.fit(p, y, SUBSETS, ok, 1.0)
    with pytest.raises(ValueError, match=r"got \(3, 11, 5\), \(2, 11\), 3"):
        ConformalSets.fit(p, y, SUBSETS, ok[:2])
    fitted = ConformalSets.fit(p, y, SUBSETS, ok)
    with pytest.raises(ValueError, match=r"call sets\(\)"):
        fitted.intervals(p[0], np.ones((11, M), bool))
    widths = ConformalSets.fit(p[..., :2], y.astype(float), SUBSETS, ok, task="regression")
    with pytest.raises(ValueError, match=r"call intervals\(\)"):
        widths.sets(p[0], np.ones((11, M), bool))
