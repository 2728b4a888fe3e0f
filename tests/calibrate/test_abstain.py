"""Abstention: thresholds by hand, the wanted risk held on new rows, per mask."""

import json
import math

import numpy as np
import pytest

from polyfuse.calibrate.abstain import Abstention, risk_threshold, rows_needed
from polyfuse.evaluate.metrics import confidence_and_loss, probabilities
from polyfuse.evaluate.subsets import all_subsets

SUBSETS = all_subsets(2)


def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, n)
    worth = np.array([1.0, 1.7, 2.5])[:, None, None]
    return probabilities("classification", worth * (worth * np.eye(4)[y] + rng.normal(size=(3, n, 4)))), y


def test_threshold_by_hand() -> None:
    """Wilson's bound at z = 1.2816 for no mistake in n is z² / (n + z²): 0.0987 for 15 rows, 0.105 for 14."""
    sure = np.linspace(0.9, 0.5, 15)
    assert risk_threshold(sure, np.zeros(15), 0.1) == 0.5
    assert risk_threshold(sure[:14], np.zeros(14), 0.1) == math.inf
    assert risk_threshold([], [], 0.5) == math.inf
    # Rows of equal confidence come together: the good ones at 0.5 cannot be had without the bad ones.
    sure, loss = np.r_[np.full(15, 0.9), np.full(9, 0.5)], np.r_[np.zeros(19), np.ones(5)]
    assert risk_threshold(sure, loss, 0.1) == 0.9
    # n = 24, 5 mistakes: (0.2083 + 0.0342 + 1.2816 * sqrt(0.2083 * 0.7917 / 24 + 0.000713)) / 1.0684 = 0.3312
    assert risk_threshold(sure, loss, 0.332) == 0.5
    assert risk_threshold(sure, loss, 0.331) == 0.9


def test_threshold_of_unbounded_losses_by_hand() -> None:
    loss = np.r_[np.zeros(30), np.full(10, 3.0)]
    sure = -np.arange(40.0)
    # All 40: mean 0.75, standard error sqrt(9 / 4 - 0.5625) / sqrt(39) = 0.2080, bound 1.0166.
    assert risk_threshold(sure, loss, 1.02) == -39
    assert risk_threshold(sure, loss, 1.01) == -38
    assert risk_threshold(sure[:19], loss[-19:], 9.0) == math.inf  # too few to believe


def test_a_row_that_comes_several_times_is_not_as_many_rows() -> None:
    sure = np.repeat(np.linspace(0.9, 0.5, 15), 3)
    rows = np.repeat(np.arange(15), 3)
    assert risk_threshold(sure, np.zeros(45), 0.1, rows) == 0.5
    assert risk_threshold(sure[:42], np.zeros(42), 0.1, rows[:42]) == math.inf  # 14 rows
    assert risk_threshold(sure[:42], np.zeros(42), 0.1) < math.inf  # 42 of them
    # 14 rows once and one 4 times: 18² / (14 + 16) = 10.8 effective rows.
    uneven = np.r_[np.arange(14), [14] * 4]
    assert risk_threshold(np.full(18, 0.9), np.zeros(18), 0.1, uneven) == math.inf
    assert risk_threshold(np.full(18, 0.9), np.zeros(18), 0.13, uneven) == math.inf  # z² / (10.8 + z²) = 0.132
    assert risk_threshold(np.full(18, 0.9), np.zeros(18), 0.133, uneven) == 0.9


@pytest.mark.parametrize("bounded", [True, False])
def test_as_many_rows_as_are_needed_suffice(bounded: bool) -> None:
    sure = np.linspace(0.9, 0.5, 23)
    loss = np.r_[np.zeros(10), 1, np.zeros(5), np.ones(7)] if bounded else np.r_[0.2 + np.arange(16) / 8, np.full(7, 9)]
    risk = 0.1 if bounded else 1.0
    needed = rows_needed(sure, loss, risk)
    assert needed is not None
    assert risk_threshold(sure, loss, risk) == math.inf
    times = math.ceil(needed / 23)
    assert times > 1
    assert risk_threshold(np.repeat(sure, times), np.repeat(loss, times), risk) < math.inf
    assert risk_threshold(np.repeat(sure, times - 1), np.repeat(loss, times - 1), risk) == math.inf
    assert rows_needed(sure, np.full(23, risk), risk) is None  # nowhere better than wanted


def test_a_mask_with_too_few_rows_borrows_from_the_masks_inside_it() -> None:
    subsets = np.array([[True, False], [False, True], [True, True]])
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 53)
    p = np.eye(2)[y][None] * 0.6 + 0.2 + 0.1 * rng.random((3, 53, 1)) * (2 * np.eye(2)[y] - 1)  # always right
    valid = np.ones((3, 53), bool)
    valid[1, 7:] = False  # few rows have the second input, so few have both
    valid[2, 7:] = False
    fitted = Abstention.fit(p, y, subsets, valid)
    assert (fitted.rows, fitted.borrowed) == ({1: 53, 2: 7, 3: 7}, (3,))
    assert (fitted.thresholds[1], fitted.thresholds[3]) == (p[0].max(axis=1).min(), p.max(axis=2)[valid].min())
    assert fitted.thresholds[2] == math.inf  # {second} holds no other mask: the rows of {first} say nothing about it
    assert fitted.needed == {2: 15}
    wrong = np.where(valid[0] & (np.arange(53) >= 7), 1 - y, y)  # the mask inside is bad: nothing to borrow
    assert Abstention.fit(p, wrong, subsets, valid).borrowed == ()
    valid[2, :17] = True  # enough rows of its own, one of them wrong: its own evidence decides
    y[9] = 1 - y[9]
    assert Abstention.fit(np.r_[p[:2], p[2:].round()], y, subsets, valid).thresholds[3] == math.inf


def test_borrowed_thresholds_hold_the_risk_on_new_rows() -> None:
    q, t = draw(20_011, 1)
    held = []
    for seed in range(80):
        p, y = draw(61, 500 + seed)
        valid = np.ones((3, 61), bool)
        valid[2, 13:] = False
        fitted = Abstention.fit(p, y, SUBSETS, valid)
        if fitted.borrowed:
            loss = confidence_and_loss("classification", q[2], t)[1]
            flags = fitted.flag(q[2], np.ones((20_011, 2), bool))
            held.append(flags.all() or loss[~flags].mean() <= 0.1)
    assert len(held) > 40
    assert np.mean(held) > 0.9


def test_wanted_risk_is_held_on_new_rows_of_every_mask() -> None:
    wanted, held, answered = 0.08, [], []
    q, t = draw(20_011, 1)
    loss = [confidence_and_loss("classification", p, t)[1] for p in q]
    for seed in range(60):
        p, y = draw(503, 100 + seed)
        fitted = Abstention.fit(p, y, SUBSETS, np.ones((3, 503), bool), wanted)
        flags = [fitted.flag(q[s], np.broadcast_to(mask, (20_011, 2))) for s, mask in enumerate(SUBSETS)]
        held.append([loss[s][~f].mean() <= wanted + 1e-9 if not f.all() else True for s, f in enumerate(flags)])
        answered.append([(~f).mean() for f in flags])
    assert np.mean(loss, axis=1).min() > wanted  # without abstention no mask holds it
    assert np.mean(held) > 0.8
    shares = np.mean(answered, axis=0)
    assert shares[0] < shares[1] < shares[2]  # the poorer the inputs, the more silence
    assert shares[2] > 0.3


def test_unseen_masks_and_few_rows_abstain() -> None:
    p, y = draw(8, 0)
    fitted = Abstention.fit(p[:2], y, SUBSETS[:2], np.ones((2, 8), bool), 0.1)
    for mask in ([True, False], [True, True], [False, False]):
        assert fitted.flag(p[0], np.tile(mask, (8, 1))).all()


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_other_tasks(task: str) -> None:
    rng = np.random.default_rng(0)
    n = 2003
    if task == "multilabel":
        y = (rng.random((n, 3)) < 0.4).astype(float)
        sharp = rng.uniform(0.2, 4, (n, 1))
        p = probabilities("multilabel", sharp * (sharp * (2 * y - 1) + 2 * rng.normal(size=(n, 3))))
        wanted = 0.1
    else:
        spread = np.exp(rng.normal(size=n))
        y = rng.normal(size=n)
        p = np.stack([y + spread * rng.normal(size=n), 2 * np.log(spread)], axis=1)
        wanted = 0.5
    ok = np.ones((1, n // 2), bool)
    fitted = Abstention.fit(p[None, : n // 2], y[: n // 2], SUBSETS[2:], ok, wanted, task=task)
    flags = fitted.flag(p[n // 2 :], np.ones((n - n // 2, 2), bool))
    loss = confidence_and_loss(task, p[n // 2 :], y[n // 2 :])[1]
    assert 0.05 < (~flags).mean() < 0.95
    assert loss.mean() > wanted > loss[~flags].mean() - 0.1 * wanted


def test_round_trip_and_mistakes() -> None:
    fitted = Abstention("classification", 0.1, {1: 0.5, 2: 0.7, 3: math.inf}, {1: 40, 2: 7, 3: 11}, {3: None}, (2,))
    assert Abstention.from_dict(json.loads(json.dumps(fitted.to_dict(), allow_nan=False))) == fitted
    old = {"task": "classification", "risk": 0.1, "thresholds": {"1": 0.5, "3": None}}  # of a run trained before
    assert Abstention.from_dict(old) == Abstention("classification", 0.1, {1: 0.5, 3: math.inf})
    p, y = draw(5, 0)
    with pytest.raises(ValueError, match="risk must be positive, got 0"):
        Abstention.fit(p, y, SUBSETS, np.ones((3, 5), bool), 0)
    with pytest.raises(ValueError, match="share S and N"):
        Abstention.fit(p, y, SUBSETS[:2], np.ones((3, 5), bool))
