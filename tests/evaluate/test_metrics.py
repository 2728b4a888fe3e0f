"""Every metric against scikit-learn, torchmetrics or plain loops."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn import metrics as sk
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
    multilabel_average_precision,
)
from torchmetrics.regression import ContinuousRankedProbabilityScore

from polyfuse.evaluate import metrics
from polyfuse.evaluate.reliability import calibration_error, reliability_bins

N, C, L = 211, 5, 3
Floats = NDArray[np.float64]


def classes(seed: int = 0, n: int = N) -> tuple[Floats, NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, C, n)
    logits = rng.normal(size=(n, C)) * 2 + 2.5 * np.eye(C)[target]
    return metrics.probabilities("classification", logits), target


def labels(seed: int = 0) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    target = (rng.random((N, L)) < (0.5, 0.2, 0.05)).astype(float)
    return metrics.probabilities("multilabel", rng.normal(size=(N, L)) * 2 + 2 * target - 1), target


def values(seed: int = 0) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    target = rng.normal(size=N)
    return np.stack([0.7 * target + 0.3, rng.normal(size=N) - 1], axis=1), target


def test_probabilities_survive_huge_logits() -> None:
    z = np.array([[1e4, -1e4, 0.0]])
    np.testing.assert_array_equal(metrics.probabilities("classification", z), [[1, 0, 0]])
    np.testing.assert_array_equal(metrics.probabilities("multilabel", z), [[1, 0, 0.5]])
    np.testing.assert_array_equal(metrics.probabilities("regression", z[:, :2]), [[1e4, -7]])  # as the head clamps
    torch.testing.assert_close(
        torch.from_numpy(metrics.probabilities("classification", np.float32([[1, 2, 3]]))),
        torch.tensor([[1.0, 2, 3]], dtype=torch.float64).softmax(-1),
    )


def test_classification_equals_sklearn() -> None:
    p, y = classes()
    guess = p.argmax(1)
    assert metrics.accuracy(p, y) == pytest.approx(sk.accuracy_score(y, guess))
    assert metrics.macro_f1(p, y) == pytest.approx(sk.f1_score(y, guess, average="macro"))
    assert metrics.nll(p, y) == pytest.approx(sk.log_loss(y, p))
    assert metrics.brier(p, y) == pytest.approx(((p - np.eye(C)[y]) ** 2).sum(1).mean())
    assert metrics.macro_ap(p, y) == pytest.approx(sk.average_precision_score(np.eye(C)[y], p, average="macro"))


def test_multilabel_equals_sklearn_and_torchmetrics() -> None:
    p, y = labels()
    p[:40] = p[:40].round(1)  # ties
    assert metrics.accuracy(p, y) == pytest.approx(1 - sk.hamming_loss(y, p >= 0.5))
    assert metrics.macro_f1(p, y) == pytest.approx(sk.f1_score(y, p >= 0.5, average="macro"))
    assert metrics.nll(p, y) == pytest.approx(np.mean([sk.log_loss(y[:, k], p[:, k]) for k in range(L)]))
    assert metrics.brier(p, y) == pytest.approx(np.mean([sk.brier_score_loss(y[:, k], p[:, k]) for k in range(L)]))
    assert metrics.macro_ap(p, y) == pytest.approx(sk.average_precision_score(y, p, average="macro"))
    theirs = multilabel_average_precision(torch.from_numpy(p), torch.from_numpy(y).long(), L)
    assert metrics.macro_ap(p, y) == pytest.approx(theirs.item(), rel=1e-5)


def test_macro_ap_skips_labels_without_a_positive() -> None:
    p, y = labels()
    y[:, 1] = 0
    want = np.mean([sk.average_precision_score(y[:, k], p[:, k]) for k in (0, 2)])
    assert metrics.macro_ap(p, y) == pytest.approx(want)
    assert math.isnan(metrics.macro_ap(p, np.zeros_like(y)))


def test_ece_equals_torchmetrics() -> None:
    p, y = classes()
    theirs = multiclass_calibration_error(torch.from_numpy(p), torch.from_numpy(y), C, n_bins=15, norm="l1")
    assert metrics.ece(p, y) == pytest.approx(theirs.item(), rel=1e-5)


def test_classwise_ece_equals_torchmetrics_per_column() -> None:
    p, y = labels()
    want = [
        binary_calibration_error(torch.from_numpy(p[:, k].copy()), torch.from_numpy(y[:, k]), n_bins=15).item()
        for k in range(L)
    ]
    assert metrics.ece(p, y) == pytest.approx(np.mean(want), rel=1e-5)
    p, t = classes()
    want = [
        binary_calibration_error(
            torch.from_numpy(p[:, k].copy()), torch.from_numpy((t == k).astype(int)), n_bins=15
        ).item()
        for k in range(C)
    ]
    assert metrics.ece_classwise(p, t) == pytest.approx(np.mean(want), rel=1e-5)


def equal_mass_by_hand(confidence: Floats, outcome: Floats, bins: int) -> float:
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, bins)
    return sum(len(i) / len(order) * abs(outcome[i].mean() - confidence[i].mean()) for i in parts if len(i))


def test_equal_mass_ece_equals_a_loop_over_split_rows() -> None:
    p, y = classes(n=210)  # 210 = 15 * 14: array_split and ours cut alike
    want = equal_mass_by_hand(p.max(1), (p.argmax(1) == y).astype(float), 15)
    assert metrics.ece_equal_mass(p, y) == pytest.approx(want)
    q, t = labels()
    q, t = q[:210], t[:210]
    want = float(np.mean([equal_mass_by_hand(q[:, k], t[:, k], 15) for k in range(L)]))
    assert metrics.ece_equal_mass(q, t) == pytest.approx(want)


def test_equal_mass_ece_does_not_depend_on_the_order_of_ties() -> None:
    confidence = np.full(31, 0.5)
    outcome = (np.arange(31) % 2).astype(float)
    want = abs(outcome.mean() - 0.5)
    for order in (np.arange(31), np.argsort(outcome)):
        assert calibration_error(confidence, outcome[order], equal_mass=True) == pytest.approx(want)


def test_certainty_falls_into_the_last_bin() -> None:
    # Two rows at 1.0, one wrong, one at 0.95: all in the last of 15 bins.
    assert calibration_error([1.0, 1.0, 0.95], [1, 0, 1]) == pytest.approx(abs(2.95 - 2) / 3)
    assert reliability_bins([1.0, 1.0, 0.95, 0.0], [1, 0, 1, 0]) == [
        {"confidence": 0.0, "accuracy": 0.0, "count": 1},
        {"confidence": pytest.approx(2.95 / 3), "accuracy": pytest.approx(2 / 3), "count": 3},
    ]


def test_reliability_bins_give_the_ece_back() -> None:
    p, y = classes()
    bins = reliability_bins(p.max(1), p.argmax(1) == y)
    assert sum(b["count"] for b in bins) == N
    back = sum(b["count"] / N * abs(b["confidence"] - b["accuracy"]) for b in bins)
    assert back == pytest.approx(metrics.ece(p, y))


def test_regression_equals_sklearn() -> None:
    p, y = values()
    assert metrics.r2(p, y) == pytest.approx(sk.r2_score(y, p[:, 0]))
    assert metrics.rmse(p, y) == pytest.approx(sk.root_mean_squared_error(y, p[:, 0]))
    assert metrics.mae(p, y) == pytest.approx(sk.mean_absolute_error(y, p[:, 0]))
    normal = torch.distributions.Normal(torch.from_numpy(p[:, 0]), torch.from_numpy(p[:, 1] / 2).exp())
    assert metrics.gaussian_nll(p, y) == pytest.approx(-normal.log_prob(torch.from_numpy(y)).mean().item())
    assert math.isnan(metrics.r2(p, np.ones(N)))


def test_crps_equals_the_ensemble_score_of_many_draws() -> None:
    p, y = values()
    p, y = p[:7], y[:7]
    quantiles = torch.special.ndtri((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000).numpy()
    draws = p[:, :1] + np.exp(p[:, 1:] / 2) * quantiles
    theirs = ContinuousRankedProbabilityScore()(torch.from_numpy(draws), torch.from_numpy(y))
    assert metrics.crps(p, y) == pytest.approx(theirs.item(), rel=2e-3)


def test_crps_equals_the_integral() -> None:
    x = np.linspace(-20, 20, 400_001)
    cdf = metrics.normal_cdf((x - 0.3) / 2.0)
    want = np.trapezoid((cdf - (x >= 1.1)) ** 2, x)
    assert metrics.crps([[0.3, 2 * math.log(2.0)]], [1.1]) == pytest.approx(want, abs=1e-4)


def test_quantile_calibration_error_is_small_for_the_true_spread_and_large_for_a_wrong_one() -> None:
    y = np.random.default_rng(3).normal(size=20_000)
    zero = np.zeros_like(y)
    right, wide = np.stack([zero, zero], 1), np.stack([zero, zero + 2 * math.log(3)], 1)
    assert metrics.quantile_calibration_error(right, y) < 0.01
    levels = np.arange(1, 20) / 20
    half = torch.special.ndtri(torch.from_numpy((1 + levels) / 2)).numpy()
    want = np.abs(2 * metrics.normal_cdf(3 * half) - 1 - levels).mean()
    assert metrics.quantile_calibration_error(wide, y) == pytest.approx(want, abs=0.01)


DECOMPOSABLE_SETS = {"classification": classes, "multilabel": labels, "regression": values}


@pytest.mark.parametrize("task", metrics.TASKS)
def test_weights_equal_repeated_rows(task: str) -> None:
    p, y = DECOMPOSABLE_SETS[task](5)  # type: ignore[operator]
    times = np.random.default_rng(1).integers(0, 4, N)
    weighted = metrics.score(task, p, y, weight=times)
    repeated = metrics.score(task, np.repeat(p, times, 0), np.repeat(y, times, 0))
    assert weighted.keys() == repeated.keys()
    for name in weighted:
        # Bins of equal mass and right-hand sums cut inside a repeated row: the difference is of order 1/n.
        loose = name in {"ece_equal_mass", "aurc", "eaurc", "risk_at_coverage_80"} and task != "regression"
        tolerance = 0.02 if loose else 1e-9
        if task == "regression" and name in {"aurc", "eaurc", "risk_at_coverage_80"}:
            tolerance = 0.02
        assert weighted[name] == pytest.approx(repeated[name], abs=tolerance), name


@pytest.mark.parametrize("task", metrics.TASKS)
def test_scores_hold_the_primary_metric_and_survive_no_rows(task: str) -> None:
    p, y = DECOMPOSABLE_SETS[task](7)  # type: ignore[operator]
    scores = metrics.score(task, p, y)
    assert metrics.PRIMARY[task] in scores
    assert all(isinstance(v, float) and math.isfinite(v) for v in scores.values())
    empty = metrics.score(task, p[:0], y[:0])
    assert empty.keys() == scores.keys()
    assert all(math.isnan(v) for v in empty.values())


def test_scale_undoes_standardisation() -> None:
    p, y = values()
    s = 7.0
    outer = metrics.score("regression", np.stack([p[:, 0] * s, p[:, 1] + 2 * math.log(s)], 1), y * s)
    inner = metrics.score("regression", p, y, scale=s)
    for name in outer:
        assert inner[name] == pytest.approx(outer[name]), name


def test_bins_are_passed_on() -> None:
    p, y = classes()
    assert metrics.score("classification", p, y, bins=3)["ece"] == metrics.ece(p, y, bins=3) != metrics.ece(p, y)


def test_row_scores_average_to_the_metric() -> None:
    for task in metrics.TASKS:
        p, y = DECOMPOSABLE_SETS[task](11)  # type: ignore[operator]
        assert metrics.row_nll(task, p, y).mean() == pytest.approx(metrics.score(task, p, y)["nll"])
        sure, loss = metrics.confidence_and_loss(task, p, y)
        np.testing.assert_allclose(sure, metrics.confidence(task, np.stack([p, p]))[1])
        want = {"regression": metrics.rmse(p, y) ** 2 if task == "regression" else 0}.get(task)
        assert loss.mean() == pytest.approx(want if want is not None else 1 - metrics.accuracy(p, y))


def test_scorable_rows() -> None:
    assert metrics.scorable("classification", [0, -1, 2]).tolist() == [True, False, True]
    assert metrics.scorable("regression", [0.0, np.nan]).tolist() == [True, False]
    assert metrics.scorable("multilabel", [[0, 1], [np.nan, 1]]).tolist() == [True, False]


def test_mistakes_are_named() -> None:
    p, y = classes()
    with pytest.raises(ValueError, match="got 'ranking'"):
        metrics.probabilities("ranking", p)
    with pytest.raises(ValueError, match=r"got \(211, 5\) and \(210,\)"):
        metrics.accuracy(p, y[:-1])
    with pytest.raises(ValueError, match=r"0 \.\. 4, got 5 \.\. 5"):
        metrics.nll(p, np.full(N, 5))
    with pytest.raises(ValueError, match="must have 2 axes"):
        metrics.score("multilabel", p, y)
    with pytest.raises(ValueError, match=r"\(N, 2\) mean and log-variance"):
        metrics.r2(p, np.zeros(N))
    with pytest.raises(ValueError, match=r"weight must be \(N,\) = \(211,\), got \(3,\)"):
        metrics.accuracy(p, y, [1, 1, 1])
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 0\.5 to 1\.5"):
        calibration_error([0.5, 1.5], [1, 1])
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        calibration_error([0.5], [1], bins=0)
    with pytest.raises(ValueError, match=r"got \(2,\) and \(1,\)"):
        calibration_error([0.5, 0.5], [1])
    with pytest.raises(ValueError, match=r"weight must be \(N,\) = \(1,\)"):
        calibration_error([0.5], [1], weight=[1, 1])
