"""Selective prediction against plain loops, the AUROC identity and scikit-learn."""

import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from polyfuse.evaluate import selective

N = 97


def rows(ties: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    confidence = rng.random(N)
    loss = (rng.random(N) > confidence).astype(float)
    return (confidence.round(1) if ties else confidence), loss


def test_aurc_equals_a_loop() -> None:
    confidence, loss = rows(ties=False)
    order = sorted(range(N), key=lambda i: -confidence[i])
    want = sum(sum(loss[j] for j in order[: i + 1]) / (i + 1) for i in range(N)) / N
    assert selective.area_under_risk_coverage(confidence, loss) == pytest.approx(want)
    risk = loss.mean()
    best = risk + (1 - risk) * math.log(1 - risk)
    assert selective.excess_area(confidence, loss) == pytest.approx(want - best)


def test_tied_rows_give_the_mean_over_all_their_orders() -> None:
    confidence, loss = [0.9, 0.5, 0.5, 0.5, 0.1], [0, 1, 0, 0, 1]
    areas = []
    for order in itertools.permutations([1, 2, 3]):
        x = [loss[0], *(loss[i] for i in order), loss[4]]
        areas.append(np.mean(np.cumsum(x) / np.arange(1, 6)))
    assert selective.area_under_risk_coverage(confidence, loss) == pytest.approx(np.mean(areas))


@pytest.mark.parametrize("ties", [False, True])
def test_augrc_equals_its_auroc_identity(ties: bool) -> None:
    """Traub et al. 2024: AUGRC = (1 - AUROC) r (1 - r) + r^2 / 2, also with ties."""
    confidence, loss = rows(ties)
    r = loss.mean()
    want = (1 - roc_auc_score(1 - loss, confidence)) * r * (1 - r) + r**2 / 2
    assert selective.area_under_generalized_risk(confidence, loss) == pytest.approx(want)


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_equals_sklearn(ties: bool) -> None:
    confidence, loss = rows(ties)
    ours = selective.auroc(confidence[loss == 0], confidence[loss == 1])
    assert ours == pytest.approx(roc_auc_score(1 - loss, confidence))
    assert math.isnan(selective.auroc([], [1.0]))


def test_perfect_order_of_a_general_loss_has_no_excess() -> None:
    loss = np.random.default_rng(0).random(N)
    assert selective.excess_area(-loss, loss) == pytest.approx(0.0)
    assert selective.excess_area(loss, loss) > 0.1
    assert selective.excess_area(np.arange(5), np.ones(5)) == pytest.approx(0.0)  # all wrong: nothing to order


def test_risk_at_coverage_and_coverage_at_risk_by_hand() -> None:
    confidence, loss = [0.9, 0.8, 0.7, 0.6, 0.5], [0, 0, 1, 0, 1]
    assert selective.risk_at_coverage(confidence, loss, 0.6) == pytest.approx(1 / 3)
    assert selective.risk_at_coverage(confidence, loss, 0.61) == pytest.approx(1 / 4)  # rounded up to four rows
    assert selective.risk_at_coverage(confidence, loss, 1.0) == pytest.approx(2 / 5)
    assert selective.coverage_at_risk(confidence, loss, 0.25) == pytest.approx(0.8)
    assert selective.coverage_at_risk(confidence, loss, 0.0) == pytest.approx(0.4)
    assert selective.coverage_at_risk([0.9, 0.8], [1, 1], 0.5) == 0.0
    # One threshold cannot split ties: both rows at 0.8 or none.
    assert selective.coverage_at_risk([0.9, 0.8, 0.8], [0, 1, 1], 0.5) == pytest.approx(1 / 3)


def test_curve_has_one_point_per_threshold() -> None:
    assert selective.risk_coverage_curve([0.9, 0.5, 0.5], [0, 1, 0]) == [
        {"threshold": 0.9, "coverage": pytest.approx(1 / 3), "risk": 0.0},
        {"threshold": 0.5, "coverage": pytest.approx(1.0), "risk": pytest.approx(1 / 3)},
    ]


def test_no_rows_and_bad_arguments() -> None:
    for function in (
        selective.area_under_risk_coverage,
        selective.area_under_generalized_risk,
        selective.excess_area,
    ):
        assert math.isnan(function([], []))
    assert math.isnan(selective.risk_at_coverage([], [], 0.5))
    assert math.isnan(selective.coverage_at_risk([], [], 0.5))
    with pytest.raises(ValueError, match=r"\(0, 1\], got 0"):
        selective.risk_at_coverage([1.0], [0], 0)
    with pytest.raises(ValueError, match=r"got \(2,\), \(1,\), \(2,\)"):
        selective.accept([1, 2], [1])
