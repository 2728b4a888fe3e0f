"""The bundle: fitted on a sweep with holes, better than nothing, honest about what it does not know."""

import json
import math

import numpy as np
import pytest

from polyfuse.calibrate import Calibration, halves, prior_logits
from polyfuse.errors import UserError
from polyfuse.evaluate.metrics import TASKS, probabilities
from polyfuse.evaluate.records import own_record, records, reliability_records
from polyfuse.evaluate.subsets import all_subsets, contained
from polyfuse.evaluate.sweep import Sweep
from polyfuse.evaluate.table import drop_curve, violation_rate

NAMES, C = ("image", "text", "sound"), 4
SUBSETS = all_subsets(3)


def make_sweep(task: str, n: int, seed: int, holes: float = 0.2, subsets: np.ndarray = SUBSETS) -> Sweep:
    """Overconfident answers, more so where more is missing."""
    rng = np.random.default_rng(seed)
    present = rng.random((n, 3)) >= holes
    wrong = np.exp(0.3 + 0.4 * (~subsets).sum(axis=1))[:, None, None]
    worth = subsets.sum(axis=1)[:, None, None] ** 0.5
    if task == "classification":
        y = rng.integers(0, C, n)
        z = wrong * worth * (worth * np.eye(C)[y] + rng.normal(size=(len(subsets), n, C)))
    elif task == "multilabel":
        y = (rng.random((n, C)) < 0.4).astype(float)
        z = wrong * 2 * worth * (worth * (y - 0.5) + 0.7 * rng.normal(size=(len(subsets), n, C)))
    else:
        y = rng.normal(size=n)
        noise = rng.normal(size=(len(subsets), n)) / worth[..., 0]
        z = np.stack([y + noise, np.zeros_like(noise) - 2 * np.log(worth[..., 0] * wrong[..., 0])], axis=-1)
    valid = contained(subsets, present)
    z = np.where(valid[..., None], z, np.nan).astype(np.float32)
    own = np.zeros((n, z.shape[2]), np.float32)
    for s, mask in enumerate(subsets):
        rows = (present == mask).all(axis=1)
        own[rows] = z[s, rows]
    return Sweep(NAMES, subsets, z, valid, own, np.ones(n, bool), present, y, np.arange(n) * 5 + seed)


@pytest.mark.parametrize("task", TASKS)
def test_calibration_helps_and_covers_on_new_rows(task: str) -> None:
    calibration = Calibration.fit(make_sweep(task, 3001, 1), task)
    test = make_sweep(task, 4001, 2)
    out = records(test, task, calibration)
    json.dumps(out, allow_nan=False)
    for r in out:
        assert r["nll_calibrated"] < r["nll"], r["subset"]
        assert r["ece_calibrated"] < 0.8 * r["ece"], r["subset"]
        assert r["coverage"] == pytest.approx(0.9, abs=0.04), r["subset"]
        if r["risk_accepted"] is not None and task != "regression":
            assert r["risk_accepted"] < 0.12, r["subset"]
        assert 0 <= r["abstained"] <= 1
    by_size = [np.mean([r["set_size"] for r in out if r["size"] == k]) for k in (1, 2, 3)]
    assert by_size[0] > by_size[1] > by_size[2]
    if task != "regression":
        key = "accuracy"
        assert own_record(test, task, calibration)[key] == own_record(test, task)[key]
    assert {d["stage"] for d in reliability_records(test, task, calibration)} == {"raw", "calibrated"}
    raw, fixed = (drop_curve(test, task, [0.0, 0.5], calibration=c) for c in (None, calibration))
    assert all(b["nll"] < a["nll"] for a, b in zip(raw, fixed, strict=True))
    assert violation_rate(test, task, calibration) != violation_rate(test, task)


def test_temperature_and_thresholds_use_disjoint_rows() -> None:
    """Spoiling the targets of one half changes only what is fitted on it."""
    swept = make_sweep("classification", 801, 1)
    first, second = halves(swept.keys)
    clean = Calibration.fit(swept, "classification")
    for part, same, other in ((first, "conformal", "temperature"), (second, "temperature", "conformal")):
        y = np.where(part, (swept.target + 1) % C, swept.target)
        spoiled = Calibration.fit(Sweep(**{**swept.__dict__, "target": y}), "classification")
        assert getattr(spoiled, other) != getattr(clean, other)
        if same == "temperature":
            assert spoiled.temperature == clean.temperature
        else:
            assert spoiled.conformal.rows == clean.conformal.rows


def test_abstention_uses_the_rows_of_both_halves() -> None:
    swept = make_sweep("classification", 61, 3, holes=0.0)
    calibration = Calibration.fit(swept, "classification", risk=0.2)
    assert calibration.abstention is not None
    assert set(calibration.abstention.rows.values()) == {61}
    assert set(calibration.conformal.rows.values()) == {int(halves(swept.keys)[1].sum())}


def test_groups_stay_on_one_side() -> None:
    swept = make_sweep("classification", 400, 1)
    groups = np.arange(400) // 4
    calibration = Calibration.fit(swept, "classification", groups=groups)
    sides = halves(groups)[0].reshape(-1, 4)
    assert (sides.all(axis=1) | ~sides.any(axis=1)).all()
    assert calibration.conformal.rows[7] == int((swept.valid[-1] & halves(groups)[1]).sum())


@pytest.mark.parametrize("task", TASKS)
def test_empty_rows_get_the_prior_the_full_set_and_silence(task: str) -> None:
    swept = make_sweep(task, 600, 1)
    calibration = Calibration.fit(swept, task, risk=None)
    z = np.nan_to_num(swept.logits[-1][:5])
    present = np.ones((5, 3), bool)
    present[2] = False
    z[2] = np.nan  # what a model says about nothing is not even read
    out = calibration.apply(z, present)
    assert out.empty.tolist() == [False, False, True, False, False]
    assert out.abstain.tolist() == out.empty.tolist()
    np.testing.assert_allclose(out.probs[2], probabilities(task, np.array(calibration.prior)))
    if task == "regression":
        assert out.intervals is not None
        assert np.isinf(out.intervals[2]).all()
        assert np.isfinite(out.intervals[[0, 1, 3, 4]]).all()
        assert out.sets is None
    else:
        assert out.sets is not None
        assert out.sets[2].all()
        assert out.intervals is None
    assert np.isfinite(out.confidence).all()


def test_unseen_masks_get_the_formula_the_full_set_and_silence() -> None:
    listed = SUBSETS[SUBSETS.sum(axis=1) != 2]
    calibration = Calibration.fit(make_sweep("classification", 2001, 1, subsets=listed), "classification")
    z = np.eye(C) * 9
    out = calibration.apply(z, np.tile([True, True, False], (C, 1)))
    assert out.sets is not None
    assert out.sets.all()
    assert out.abstain.all()
    log_t = calibration.temperature.scale[0] + calibration.temperature.modality[2]
    np.testing.assert_allclose(out.probs, probabilities("classification", z * math.exp(-log_t)))
    assert log_t == pytest.approx(0.7, abs=0.15)


def test_prior_is_the_given_one_or_that_of_the_rows() -> None:
    swept = make_sweep("classification", 300, 1)
    own = probabilities("classification", np.array(Calibration.fit(swept, "classification").prior))
    np.testing.assert_allclose(own, (np.bincount(swept.target) + 0.25) / 301)
    given = np.log([0.7, 0.1, 0.1, 0.1])
    np.testing.assert_allclose(Calibration.fit(swept, "classification", prior=given).prior, given)
    labels = np.array([[1.0, 0.0], [1.0, 1.0], [np.nan, 1.0]])
    np.testing.assert_allclose(probabilities("multilabel", prior_logits("multilabel", labels, 2)), [2.5 / 3, 1.5 / 3])
    np.testing.assert_allclose(prior_logits("regression", [1.0, 3.0], 2), [2.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(prior_logits("regression", [], 2), [0.0, 0.0])


@pytest.mark.parametrize("task", TASKS)
def test_round_trip_through_json(task: str) -> None:
    swept = make_sweep(task, 400, 1)
    calibration = Calibration.fit(swept, task)
    text = json.dumps(calibration.to_dict(), allow_nan=False)
    again = Calibration.from_dict(json.loads(text), NAMES)
    assert again == calibration
    z, present = np.nan_to_num(swept.own), swept.present
    np.testing.assert_array_equal(again.apply(z, present).probs, calibration.apply(z, present).probs)
    none = Calibration.fit(swept, task, risk=None)
    assert Calibration.from_dict(none.to_dict()) == none


def test_mistakes_are_named() -> None:
    calibration = Calibration.fit(make_sweep("classification", 200, 1), "classification")
    with pytest.raises(ValueError, match=r"\(N, 4\), got \(3, 5\)"):
        calibration.apply(np.zeros((3, 5)), np.ones((3, 3), bool))
    with pytest.raises(UserError, match="format 99"):
        Calibration.from_dict({**calibration.to_dict(), "format": 99})
    with pytest.raises(UserError, match=r"got \('text', 'image', 'sound'\): calibrate again"):
        Calibration.from_dict(calibration.to_dict(), ("text", "image", "sound"))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_hardly_any_rows_give_a_calibration_that_promises_nothing(task: str, rows: int) -> None:
    some = make_sweep(task, 50, 1, holes=0)
    part = {"logits": some.logits[:, :rows], "valid": some.valid[:, :rows]}
    part |= {name: getattr(some, name)[:rows] for name in ("own", "scored", "present", "target", "keys")}
    calibration = Calibration.fit(Sweep(**{**some.__dict__, **part}), task)
    out = calibration.apply(np.zeros((2, some.logits.shape[2])), np.array([[True] * 3, [False] * 3]))
    assert np.isfinite(out.probs).all()
    assert out.abstain.all()
    if task == "regression":
        assert out.intervals is not None
        assert np.isinf(out.intervals).all()
    else:
        assert out.sets is not None
        assert out.sets.all()
    json.dumps(calibration.to_dict(), allow_nan=False)
