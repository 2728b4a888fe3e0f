"""Subsets and their probabilities against enumeration and Monte Carlo."""

import itertools

import numpy as np
import pytest
import torch

from polyfuse.data.missing import Bernoulli
from polyfuse.evaluate import subsets


def test_all_subsets_are_all_and_ordered_by_size() -> None:
    for m in range(1, 7):
        masks = subsets.all_subsets(m)
        want = {c for c in itertools.product([False, True], repeat=m) if any(c)}
        assert set(map(tuple, masks.tolist())) == want
        assert len(masks) == len(want)
        assert (np.diff(masks.sum(axis=1)) >= 0).all()
        assert masks[-1].all()


def test_sampled_subsets_are_distinct_keyed_and_hold_the_important_ones() -> None:
    m = 11
    masks = subsets.all_subsets(m, seed=3)
    codes = subsets.mask_codes(masks)
    assert len(np.unique(codes)) == len(codes) == subsets.SAMPLED
    assert set(subsets.mask_codes(np.concatenate([np.eye(m, dtype=bool), ~np.eye(m, dtype=bool)]))) <= set(codes)
    assert masks[-1].all()
    assert set(masks.sum(axis=1)) == set(range(1, m + 1))
    np.testing.assert_array_equal(masks, subsets.all_subsets(m, seed=3))
    assert not np.array_equal(masks, subsets.all_subsets(m, seed=4))
    assert len(subsets.all_subsets(7, sampled=500)) == 127  # no more than there are
    assert len(subsets.all_subsets(8, exhaustive=8)) == 255
    assert len(subsets.subsets_of(np.ones((3, 5), bool), exhaustive=4, sampled=20)) == 20


def test_frequent_patterns_join_the_sampled_list() -> None:
    m = 9
    rng = np.random.default_rng(0)
    often, seldom = rng.random(m) < 0.5, np.zeros(m, bool)
    often[:4], seldom[1:5] = [True, False, True, True], True
    listed = set(subsets.mask_codes(subsets.all_subsets(m)))
    assert int(subsets.mask_codes(often)) not in listed
    assert int(subsets.mask_codes(seldom)) not in listed
    present = np.concatenate([np.tile(often, (30, 1)), np.tile(seldom, (3, 1)), np.zeros((40, m), bool)])
    masks = subsets.subsets_of(present)
    assert set(subsets.mask_codes(masks)) == listed | {int(subsets.mask_codes(often))}
    assert masks.any(axis=1).all()
    assert len(subsets.subsets_of(np.ones((5, 3), bool))) == 7


def test_names_codes_and_containment() -> None:
    assert subsets.subset_name([False, False], ("a", "b")) == "none"
    assert subsets.mask_codes([[True, False, True], [False, False, False]]).tolist() == [5, 0]
    masks = subsets.all_subsets(3)
    present = np.array([[1, 1, 0], [0, 0, 0], [1, 1, 1]], bool)
    want = np.array([[not (s & ~p).any() for p in present] for s in masks])
    np.testing.assert_array_equal(subsets.contained(masks, present), want)


def law(held: np.ndarray, rate: float) -> dict[tuple[bool, ...], float]:
    """The conditional law by enumeration of all drops."""
    probability: dict[tuple[bool, ...], float] = {}
    for drop in itertools.product([False, True], repeat=len(held)):
        left = tuple(bool(h and not d) for h, d in zip(held, drop, strict=True))
        if any(left):
            chance = np.prod([(rate if d else 1 - rate) for h, d in zip(held, drop, strict=True) if h])
            # absent inputs are dropped in both ways; count one of them
            probability[left] = max(probability.get(left, 0.0), float(chance))
    total = sum(probability.values())
    return {s: p / total for s, p in probability.items()}


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_weights_equal_the_enumerated_law_on_rows_with_holes(rate: float) -> None:
    masks = subsets.all_subsets(3)
    present = np.array(list(itertools.product([False, True], repeat=3)))
    weights = subsets.row_drop_weights(masks, present, rate)
    for n, held in enumerate(present):
        if not held.any():
            assert not weights[:, n].any()
            continue
        want = law(held, rate)
        for s, mask in enumerate(masks):
            assert weights[s, n] == pytest.approx(want.get(tuple(mask.tolist()), 0.0)), (held, mask)


def test_weights_equal_monte_carlo_of_the_training_drop() -> None:
    rows, rate = 40_000, 0.3
    present = torch.ones(rows, 3, dtype=torch.bool)
    draws = torch.rand(rows, 3, generator=torch.Generator().manual_seed(0))
    left = (present & ~Bernoulli(rate).drop(present, draws)).numpy()
    masks = subsets.all_subsets(3)
    seen = np.array([(left == mask).all(axis=1).mean() for mask in masks])
    np.testing.assert_allclose(subsets.drop_weights(masks, rate), seen, atol=4 * np.sqrt(0.25 / rows))


def test_limits_of_the_rate() -> None:
    masks = subsets.all_subsets(4)
    np.testing.assert_allclose(subsets.drop_weights(masks, 0.0), masks.all(axis=1))
    np.testing.assert_allclose(subsets.drop_weights(masks, 1.0), (masks.sum(axis=1) == 1) / 4)
    np.testing.assert_allclose(subsets.drop_weights(masks, 0.5), 1 / 15)
    with pytest.raises(ValueError, match=r"\[0, 1\], got 1.5"):
        subsets.drop_weights(masks, 1.5)


def test_sampled_subsets_stand_for_their_size() -> None:
    m, rate = 8, 0.4
    few, every = subsets.all_subsets(m), subsets.all_subsets(m, sampled=10_000)
    assert len(every) == 255
    assert len(few) < 255
    a, b = subsets.drop_weights(few, rate), subsets.drop_weights(every, rate)
    for k in range(1, m + 1):
        assert a[few.sum(axis=1) == k].sum() == pytest.approx(b[every.sum(axis=1) == k].sum())


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        subsets.all_subsets(0)
    with pytest.raises(ValueError, match="at most 62 modalities have a code, got 63"):
        subsets.mask_codes(np.ones((1, 63)))
