"""Mask-conditional temperature: recovers what made the data, equals a plain search, never invents anything."""

import itertools
import math

import numpy as np
import pytest
import torch

from polyfuse.calibrate import temperature as module
from polyfuse.calibrate.temperature import MaskTemperature, halves
from polyfuse.evaluate.metrics import probabilities, score
from polyfuse.evaluate.subsets import all_subsets

M, C = 3, 5
SUBSETS = all_subsets(M)


def overconfident(
    task: str, n: int, a: float, b: tuple[float, ...], seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits that are right after division by T(m) = exp(a + Σ b_j (1 - m_j))."""
    rng = np.random.default_rng(seed)
    log_t = a + (~SUBSETS) @ np.array(b)
    if task == "classification":
        y = rng.integers(0, C, n)
        # z = log p(x|y) of unit Gaussians at distance d: an exact posterior for every subset.
        x = rng.normal(size=(len(SUBSETS), n, C)) + 1.5 * np.eye(C)[y]
        z = 1.5 * x
    elif task == "multilabel":
        y = (rng.random((n, C)) < 0.5).astype(float)
        x = rng.normal(size=(len(SUBSETS), n, C)) + (2 * y - 1)
        z = 2 * x
    else:
        y = rng.normal(size=n)
        spread = np.exp(rng.normal(size=(len(SUBSETS), n)) * 0.3)
        z = np.stack([y + spread * rng.normal(size=spread.shape), 2 * np.log(spread)], axis=-1)
        z[..., 1] -= 2 * log_t[:, None]
        return z, y, np.ones((len(SUBSETS), n), bool)
    return z * np.exp(log_t)[:, None, None], y, np.ones((len(SUBSETS), n), bool)


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_fit_recovers_the_temperatures_that_made_the_data(task: str) -> None:
    a, b = 0.4, (0.5, -0.2, 0.1)
    z, y, valid = overconfident(task, 3001, a, b)
    fitted = MaskTemperature.fit(task, z, y, SUBSETS, valid)
    np.testing.assert_allclose(fitted.scale, a, atol=0.06)
    np.testing.assert_allclose(fitted.modality, b, atol=0.06)
    for s, mask in enumerate(SUBSETS):
        present = np.broadcast_to(mask, (len(y), M))
        before = score(task, probabilities(task, z[s]), y)
        after_logits = fitted.apply(z[s], present)
        after_probs = after_logits if task == "regression" else probabilities(task, after_logits)
        after = score(task, after_probs, y)
        assert after["nll"] <= before["nll"] + 1e-3
        assert after["ece"] < 0.03
        if task != "regression":
            assert after["accuracy"] == before["accuracy"]  # a temperature never changes the answer


def test_fit_is_the_minimum_of_the_objective_written_in_loops() -> None:
    z, y, valid = overconfident("classification", 23, 0.3, (0.6, 0.0, -0.3))
    valid[2, 5:] = False
    z[~valid] = np.nan
    fitted = MaskTemperature.fit("classification", z, y, SUBSETS, valid)

    def objective(a: float, b: np.ndarray) -> float:
        total, weights = 0.0, 0.0
        for s, mask in enumerate(SUBSETS):
            t = math.exp(a + sum(b[j] for j in range(M) if not mask[j]))
            p = probabilities("classification", z[s, valid[s]] / t)
            losses = [-math.log(p[i, k]) for i, k in enumerate(y[valid[s]])]
            weight = len(losses) / (len(losses) + 50)
            total += weight * float(np.mean(losses))
            weights += weight
        return total / weights + 0.5 * (a**2 / 1.0**2 + (b**2).sum() / 0.5**2) / 23

    a, b = fitted.scale[0], np.array(fitted.modality)
    best = objective(a, b)
    for step in itertools.product([-0.01, 0.0, 0.01], repeat=4):
        if any(step):
            assert objective(a + step[0], b + np.array(step[1:])) > best


def test_multilabel_has_one_scale_per_label() -> None:
    z, y, valid = overconfident("multilabel", 2003, 0.0, (0.3, 0.3, 0.3))
    factors = np.array([0.5, 1.0, 2.0, 3.0, 1.0])
    fitted = MaskTemperature.fit("multilabel", z * factors, y, SUBSETS, valid)
    np.testing.assert_allclose(fitted.scale, np.log(factors), atol=0.1)


def test_ordered_temperatures_never_fall_when_an_input_is_lost() -> None:
    z, y, valid = overconfident("classification", 997, 0.2, (0.5, -0.4, 0.0))
    free = MaskTemperature.fit("classification", z, y, SUBSETS, valid)
    ordered = MaskTemperature.fit("classification", z, y, SUBSETS, valid, ordered=True)
    assert min(free.modality) < -0.3  # off by default
    assert min(ordered.modality) >= 0
    assert ordered.modality[0] > 0.2
    assert ordered.modality[1] < 1e-4
    log_t = ordered.log_temperature(SUBSETS)[:, 0]
    for s, t in itertools.permutations(range(len(SUBSETS)), 2):
        if not (SUBSETS[s] & ~SUBSETS[t]).any():
            assert log_t[s] >= log_t[t]


def test_no_subset_dominates() -> None:
    """A hundred times more rows of one pattern hardly move the factor of the other modality."""
    z, y, valid = overconfident("classification", 4001, 0.0, (0.8, 0.0, 0.0))
    few = valid.copy()
    few[:, 300:] = False
    many = few.copy()
    many[0] = True  # singleton {0}: plenty of rows
    a = MaskTemperature.fit("classification", z, y, SUBSETS, few)
    b = MaskTemperature.fit("classification", z, y, SUBSETS, many)
    np.testing.assert_allclose(a.modality, b.modality, atol=0.1)


def test_few_rows_stay_near_no_temperature() -> None:
    z, y, valid = overconfident("classification", 3, 0.0, (0.0, 0.0, 0.0))
    fitted = MaskTemperature.fit("classification", 30 * z, y, SUBSETS, valid)
    assert all(abs(b) < 1.5 for b in fitted.modality)  # a perfect or hopeless handful does not run away
    assert abs(fitted.scale[0]) < 4
    nothing = MaskTemperature.fit("classification", z * np.nan, y, SUBSETS, np.zeros_like(valid))
    assert nothing.scale == (0.0,)
    assert nothing.modality == (0.0,) * M
    np.testing.assert_array_equal(nothing.apply(z[0], np.ones((3, M), bool)), z[0])


def test_a_mask_that_was_not_fitted_gets_the_formula() -> None:
    z, y, valid = overconfident("classification", 1501, 0.3, (0.5, 0.2, 0.1))
    kept = [s for s in range(len(SUBSETS)) if s != 3]
    fitted = MaskTemperature.fit("classification", z[kept], y, SUBSETS[kept], valid[kept])
    np.testing.assert_allclose(fitted.log_temperature(SUBSETS[3]), 0.4, atol=0.1)  # {0, 1}: a + b_2


def test_large_tables_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    z, y, valid = overconfident("classification", 2003, 0.4, (0.3, 0.0, 0.0))
    whole = MaskTemperature.fit("classification", z, y, SUBSETS, valid)
    monkeypatch.setattr(module, "MOST_NUMBERS", z.size // 4)
    part = MaskTemperature.fit("classification", z, y, SUBSETS, valid)
    assert whole != part
    np.testing.assert_allclose(whole.modality, part.modality, atol=0.1)


def test_fit_works_inside_inference_mode() -> None:
    z, y, valid = overconfident("regression", 101, 0.4, (0.3, 0.0, 0.0))
    with torch.no_grad():
        assert MaskTemperature.fit("regression", z, y, SUBSETS, valid).scale[0] > 0.1


def test_round_trip_and_mistakes() -> None:
    fitted = MaskTemperature("multilabel", (0.1, 0.2), (0.3, -0.4))
    assert MaskTemperature.from_dict(fitted.to_dict()) == fitted
    with pytest.raises(ValueError, match=r"\(N, M\) = \(4, 2\), got \(4, 3\)"):
        fitted.apply(np.zeros((4, 2)), np.ones((4, 3), bool))
    with pytest.raises(ValueError, match="share S and N"):
        MaskTemperature.fit("multilabel", np.zeros((2, 3, 4)), np.zeros((3, 4)), SUBSETS, np.ones((2, 3)))


def test_halves_are_disjoint_keyed_and_even() -> None:
    keys = np.arange(10_007) * 3
    first, second = halves(keys)
    assert (first ^ second).all()
    assert abs(first.mean() - 0.5) < 0.03
    order = np.random.default_rng(0).permutation(len(keys))
    np.testing.assert_array_equal(halves(keys[order])[0], first[order])
    assert not np.array_equal(halves(keys, seed=1)[0], first)
