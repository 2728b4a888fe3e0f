"""Unplugging: no drop for an input that is ignored, the known drop for one that is relied on, honest donors."""

import itertools
import math

import numpy as np
import pytest
import torch

from polyfuse.data.batch import Batch
from polyfuse.evaluate.subsets import all_subsets
from polyfuse.evaluate.sweep import sweep
from polyfuse.evaluate.table import row_losses
from polyfuse.evaluate.unplug import WAYS, donors, unplug, worth

NAMES, C, N = ("eye", "ear", "nose"), 3, 401


class Toy:
    """Says what the first input that it reads and has shows; without one, evens."""

    def __init__(self, reads: tuple[str, ...]) -> None:
        self.reads = reads

    def predict_logits(self, batch: Batch) -> np.ndarray:
        out = np.zeros((len(batch), C), np.float32)
        done = np.zeros(len(batch), bool)
        for name in self.reads:
            here = batch.present[:, batch.modalities.index(name)].numpy() & ~done
            out[here] = 3 * batch.inputs[name].numpy()[here]
            done |= here
        return out


def rows(seed: int = 0, holes: float = 0.0) -> Batch:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, C, N)
    inputs = {n: torch.from_numpy(np.eye(C, dtype=np.float32)[y]) for n in NAMES}
    present = torch.from_numpy(rng.random((N, 3)) >= holes)
    return Batch(NAMES, inputs, present, torch.from_numpy(y), torch.arange(N))


def ask(model: Toy, batch: Batch, **more: object) -> dict[tuple[str, str], dict]:
    subsets = all_subsets(3)
    swept = sweep(model, batch, subsets=subsets)
    losses, nll = (row_losses(swept, "classification", kind) for kind in ("loss", "nll"))
    found = unplug(model, batch, "classification", subsets, losses, nll, [0.5, 0.25, 0.25], **more)
    return {(r["modality"], r["way"]): r for r in found}


def test_an_ignored_input_gains_nothing_and_the_one_relied_on_everything() -> None:
    batch = rows()
    found = ask(Toy(("eye",)), batch)
    majority = float((batch.target == 0).float().mean())
    for way in ("removed", "permuted", "other row"):
        for name in ("ear", "nose"):
            r = found[name, way]
            assert r["gain"] == 0 == r["nll"], (name, way)
            assert r["gain_low"] <= 0 <= r["gain_high"], (name, way)
            assert (r["gain_p"], r["share"]) == (1, 0), (name, way)
        assert found["eye", way]["gain_low"] > 0.5, way
    assert found["eye", "removed"]["gain"] == pytest.approx(1 - majority)  # evens, without a calibration: the first
    assert found["eye", "permuted"]["gain"] == pytest.approx(2 / 3, abs=0.06)  # a third of donors agree by chance
    assert found["eye", "permuted"]["gain"] == pytest.approx(found["eye", "removed"]["gain"], abs=0.06)
    assert found["eye", "other row"]["gain"] == 1.0  # none of these does
    assert found["eye", "other row"]["share"] == pytest.approx(1 / (1 - majority))
    assert found["eye", "added"]["share"] == pytest.approx(1.0)


def test_two_inputs_that_say_the_same_are_worth_having_once() -> None:
    """The first is relied on, the second its stand-in: no loss when removed, but worth something on average."""
    found = ask(Toy(("eye", "ear")), rows())
    assert found["eye", "removed"]["gain"] == found["ear", "removed"]["gain"] == 0
    assert found["eye", "permuted"]["gain"] > 0.5 > found["ear", "permuted"]["gain"] == 0
    assert found["ear", "added"]["gain"] == pytest.approx(found["eye", "added"]["gain"])
    assert found["ear", "added"]["gain"] > 0.2
    assert found["nose", "added"]["gain"] == pytest.approx(0, abs=0.1)


def test_a_comparison_of_two_permuted_sides_would_be_seen() -> None:
    """The bug of the perceptual-score demo: both sides altered, a difference of about zero."""
    batch = rows()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    broken = Batch(NAMES, {**batch.inputs, "eye": batch.inputs["eye"][order]}, batch.present, batch.target, batch.keys)
    assert abs(ask(Toy(("eye",)), broken)["eye", "permuted"]["gain"]) < 0.1  # what it would say
    assert ask(Toy(("eye",)), batch)["eye", "permuted"]["gain"] > 0.5


def test_rows_with_holes_count_where_they_have_the_input_and_groups_widen() -> None:
    batch = rows(1, holes=0.3)
    batch.target[:7] = -1
    groups = np.arange(N) // 20
    found = ask(Toy(("eye",)), batch, permutations=2)
    assert found["eye", "removed"]["n"] == int((batch.present[:, 0] & (batch.target >= 0)).sum())
    assert {way for _, way in found} == set(WAYS)
    noisy = batch.target.clone()
    noisy[groups % 2 == 0] = (noisy[groups % 2 == 0] + 1) % C  # whole groups are answered wrongly
    noisy[:7] = -1
    wrong = Batch(NAMES, batch.inputs, batch.present, noisy, batch.keys)
    one, many = ask(Toy(("eye",)), wrong), ask(Toy(("eye",)), wrong, groups=groups)
    width = [r["eye", "removed"]["gain_high"] - r["eye", "removed"]["gain_low"] for r in (one, many)]
    assert width[1] > 1.7 * width[0]
    assert one["eye", "removed"]["gain"] == many["eye", "removed"]["gain"]


def test_worth_is_the_shapley_value_by_the_definition() -> None:
    rng = np.random.default_rng(2)
    subsets = all_subsets(3)
    present = np.array([[True, True, True], [True, False, True], [False, True, True], [True, False, False]])
    valid = (~subsets[:, None] | present[None]).all(axis=2)
    table = np.where(valid, rng.random((1, 7, 4)), np.nan)
    empty = rng.random((1, 4))
    codes = {tuple(mask): s for s, mask in enumerate(subsets.tolist())}
    for m in range(3):
        average, last = worth(table, subsets, present, empty, m)
        for n, row in enumerate(present):
            has = np.flatnonzero(row).tolist()
            if m not in has:
                assert np.isnan([average[0, n], last[0, n]]).all()
                continue

            def loss(members: tuple[int, ...], n: int = n) -> float:
                return table[0, codes[tuple(j in members for j in range(3))], n] if members else empty[0, n]

            orders = list(itertools.permutations(has))
            gains = [loss(o[: o.index(m)]) - loss(o[: o.index(m) + 1]) for o in orders]
            assert average[0, n] == pytest.approx(np.mean(gains))
            assert last[0, n] == pytest.approx(loss(tuple(j for j in has if j != m)) - loss(tuple(has)))


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_donors_are_others_with_another_label(task: str) -> None:
    rng = np.random.default_rng(3)
    here = rng.random(211) < 0.8
    y = {"classification": rng.integers(0, 4, 211), "multilabel": rng.integers(0, 2, (211, 3))}.get(task)
    y = rng.normal(size=211) if y is None else y
    found = np.stack([donors(task, y, here, torch.arange(211), stream=f"{k}") for k in range(60)])
    assert (found[:, ~here] == -1).all()
    assert here[found[:, here]].all()
    gap = np.abs(y[found] - y)[:, here]
    different = gap.any(axis=-1) if task == "multilabel" else gap > (y[here].std() if task == "regression" else 0)
    assert different.all()
    if task == "classification":  # all of them, evenly
        picked = np.bincount(found[:, here][:, y[here] == 0].ravel(), minlength=211)
        fair = picked[here & (y != 0)]
        assert fair.min() > 0
        assert fair.std() / fair.mean() < 3 / math.sqrt(fair.mean())
    assert (donors("classification", np.zeros(211, int), here, torch.arange(211)) == -1).all()
