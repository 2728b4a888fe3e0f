"""Generators: the posterior is the law's, by calibration, martingale, densities and known references."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from polyfuse.data.batch import concatenate
from polyfuse.datasets import laws
from polyfuse.datasets.base import DataSet
from polyfuse.datasets.generators import NAMES, SOURCES, WIDTH, ExactPosterior, generate
from polyfuse.evaluate.subsets import all_subsets

LOADED: dict[str, DataSet] = {}


def load(name: str) -> DataSet:
    if name not in LOADED:
        LOADED[name] = SOURCES[name].load(0)
    return LOADED[name]


def posterior(data: DataSet, mask: Any) -> Tensor:
    assert data.posterior is not None
    return data.posterior(data.test, torch.as_tensor(mask).expand(len(data.test), -1))


def confidence(data: DataSet, probs: Tensor) -> Tensor:
    return torch.maximum(probs, 1 - probs).mean(1) if data.target.task == "multilabel" else probs.amax(1)


def accuracy(data: DataSet, probs: Tensor) -> float:
    return float((probs.argmax(1) == data.test.target).double().mean())


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_shapes_keys_and_determinism(name: str) -> None:
    data, again, other = load(name), SOURCES[name].load(0), SOURCES[name].load(1)
    assert not SOURCES[name].real
    assert [len(b) for b in (data.train, data.validation, data.test)] == [2000, 1000, 2000]
    keys = torch.cat([data.train.keys, data.validation.keys, data.test.keys, other.train.keys])
    assert len(keys.unique()) == len(keys)
    for m, modality in enumerate(data.train.modalities):
        assert modality == NAMES[m] == tuple(data.specs)[m]
        x = data.train.inputs[modality]
        assert isinstance(x, Tensor)
        assert x.dtype == torch.float32
        assert x.shape == (2000, WIDTH)
        torch.testing.assert_close(x.mean(0), torch.zeros(WIDTH), atol=1e-5, rtol=0)
        torch.testing.assert_close(x.std(0, correction=0), torch.ones(WIDTH))
        assert torch.equal(x, again.train.inputs[modality])
        assert not torch.equal(x, other.train.inputs[modality])
    y = data.test.target
    assert y is not None
    if data.target.task == "classification":
        assert y.unique().tolist() == list(range(data.target.outputs))
    else:
        assert y.shape == (2000, data.target.outputs)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_posterior_is_a_distribution_and_does_not_read_what_is_absent(name: str) -> None:
    data = load(name)
    rows = data.test.rows(torch.arange(31))
    present = torch.rand(31, len(rows.modalities), generator=torch.Generator().manual_seed(1)) < 0.5
    assert data.posterior is not None
    p = data.posterior(rows, present)
    assert p.shape == (31, data.target.outputs)
    assert ((p >= 0) & (p <= 1)).all()
    if data.target.task == "classification":
        torch.testing.assert_close(p.sum(1), torch.ones(31, dtype=torch.float64))
    broken = replace(
        rows,
        inputs={
            name: torch.where(present[:, m, None], rows.inputs[name], torch.nan)
            for m, name in enumerate(rows.modalities)
        },
    )
    assert torch.equal(data.posterior(broken, present), p)


def calibration_z(data: DataSet, law: laws.Law | None = None) -> float:
    """Largest |z| over subsets and ten bins of P(class) of (observed - predicted) counts; about normal if exact."""
    assert isinstance(data.posterior, ExactPosterior)
    exact = data.posterior if law is None else replace(data.posterior, law=law)
    rows = concatenate([data.train, data.validation, data.test])
    y = rows.target
    assert y is not None
    hot = y.double() if y.ndim == 2 else torch.nn.functional.one_hot(y, data.target.outputs).double()
    worst = 0.0
    for mask in all_subsets(len(data.test.modalities))[-6:]:
        p = exact(rows, torch.from_numpy(mask).expand(len(y), -1))
        place = (p * 10).long().clamp(max=9)
        for b in range(10):
            inside = place == b
            variance = float((p * (1 - p))[inside].sum())
            if variance > 10:
                worst = max(worst, abs(float((hot - p)[inside].sum())) / math.sqrt(variance))
    return worst


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_posterior_is_calibrated_and_another_noise_is_not(name: str) -> None:
    data = load(name)
    assert isinstance(data.posterior, ExactPosterior)
    law: Any = data.posterior.law
    louder = replace(law, strength=tuple(tuple(1.4 * s for s in row) for row in law.strength))
    assert calibration_z(data) < 4.5  # up to 60 bins: P(max |z| > 4.5) is below 0.001
    assert calibration_z(data, louder) > 5.5


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_posteriors_of_nested_subsets_are_a_martingale(name: str) -> None:
    """E[p_S] = E[p_T] class by class, and mean confidence never falls when an input is added."""
    data = load(name)
    masks = all_subsets(len(data.test.modalities), exhaustive=8)[:25]
    found = {tuple(mask): posterior(data, mask) for mask in masks}
    checked = 0
    for mask, p in found.items():
        for m in range(len(mask)):
            smaller = (*mask[:m], False, *mask[m + 1 :])
            if mask[m] and smaller in found:
                q = found[smaller]
                z = (p - q).mean(0) / ((p - q).std(0) / math.sqrt(len(p)))
                assert float(z.abs().max()) < 5.0
                gain = confidence(data, p) - confidence(data, q)
                assert float(gain.mean()) > -3 * float(gain.std()) / math.sqrt(len(p))
                checked += 1
    assert checked >= 9


def test_no_single_modality_beats_chance_in_synergy_and_none_is_needed_in_redundancy() -> None:
    synergy, redundant = load("synergy"), load("redundancy")
    complete = accuracy(redundant, posterior(redundant, [True] * 3))
    for mask in torch.eye(3, dtype=torch.bool):
        p = posterior(synergy, mask)
        torch.testing.assert_close(p, torch.full_like(p, 0.25))
        assert complete - 0.16 < accuracy(redundant, posterior(redundant, mask)) < complete
    assert accuracy(synergy, posterior(synergy, [True] * 3)) > 0.8


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"longtail"}))
def test_bayes_accuracy_is_off_floor_and_ceiling(name: str) -> None:
    data = load(name)
    modalities, chance = len(data.test.modalities), 1 / data.target.outputs
    assert 0.7 < accuracy(data, posterior(data, [True] * modalities)) < 0.92
    alone = [accuracy(data, posterior(data, mask)) for mask in torch.eye(modalities, dtype=torch.bool)]
    assert max(alone) < 0.8
    if name != "synergy":
        assert min(alone) > 1.7 * chance
    if name == "collapsed":
        assert alone[0] > max(alone[1:]) + 0.2


def test_long_tail_has_the_stated_frequencies() -> None:
    y = load("longtail").train.target
    assert y is not None
    share = y.mean(0)
    wanted = torch.tensor([0.5 * 0.04 ** (k / 11) for k in range(12)])
    assert float(((share - wanted).abs() / (wanted * (1 - wanted) / 2000).sqrt()).max()) < 4.0
    assert wanted[0] == 0.5
    assert abs(float(wanted[-1]) - 0.02) < 1e-6


def violations(law: laws.Law) -> float:
    data = generate("violations", law, "")
    masks = {tuple(m): posterior(data, m).amax(1) for m in all_subsets(len(law.seen))}
    hits = []
    for mask, sure in masks.items():
        for m in range(len(mask)):
            smaller = (*mask[:m], False, *mask[m + 1 :])
            if mask[m] and any(smaller):
                hits.append((masks[smaller] > sure + 1e-9).double())
    return float(torch.stack(hits).mean())


def test_an_exact_posterior_violates_monotone_confidence_where_modalities_can_disagree() -> None:
    """The reference of 10 to 30 % holds for inputs that speak about the same thing; unique ones never disagree."""
    for law in (laws.redundancy(2, 0.8, 0.0), laws.redundancy(3, 1.0, 0.0), laws.redundancy(4, 0.7, 0.0)):
        assert 0.1 < violations(law) < 0.3
    binary = laws.ParityLaw(((0,), (0,)), ((1.0,), (1.0,)), ((0,),))
    assert abs(violations(binary) - 0.2) < 0.1
    assert violations(laws.unique(3, 1.5, 0.0)) == 0.0


def brute_force(law: laws.ParityLaw, signals: list[Tensor], present: list[bool]) -> Tensor:
    """p(class | signals) from normal densities, state by state, in plain loops."""
    rows = len(signals[0])
    total = torch.zeros(rows, law.outputs, dtype=torch.float64)
    for state in itertools.product((0, 1), repeat=law.bits):
        log_p = torch.zeros(rows, dtype=torch.float64)
        for m, bits in enumerate(law.seen):
            for column, bit in enumerate(bits):
                if present[m]:
                    mean = law.strength[m][column] * (2 * state[bit] - 1)
                    log_p += torch.distributions.Normal(mean, 1.0).log_prob(signals[m][:, column])
        digits = [sum(state[bit] for bit in digit) % 2 for digit in law.digits]
        total[:, sum(digit << place for place, digit in enumerate(digits))] += log_p.exp()
    clean = total / total.sum(1, keepdim=True)
    return (1 - law.label_noise) * clean + law.label_noise * (1 - clean) / (law.outputs - 1)


@pytest.mark.parametrize("modalities", [2, 3, 5, 8])
@pytest.mark.parametrize("kind", ["redundancy", "unique", "synergy", "mixed"])
def test_the_inputs_give_the_posterior_of_the_densities(kind: str, modalities: int) -> None:
    args = {"mixed": (0.8, 1.1, 1.7, 0.6, 0.1)}.get(kind, (1.2, 0.1))
    law = getattr(laws, kind)(modalities, *args)
    data = generate("brute", law, "")
    rows = data.test.rows(torch.arange(29))
    assert isinstance(data.posterior, ExactPosterior)
    signals = [
        lift.invert(x)
        for lift, x in zip(data.posterior.lifts, (rows.inputs[name] for name in rows.modalities), strict=True)
        if isinstance(x, Tensor)
    ]
    for mask in all_subsets(modalities)[[0, -2, -1]]:
        p = data.posterior(rows, torch.from_numpy(mask).expand(29, -1))
        torch.testing.assert_close(p, brute_force(law, signals, mask.tolist()), atol=1e-9, rtol=1e-6)


def test_label_posterior_equals_the_sum_over_all_states() -> None:
    law = laws.TopicLaw(((0, 1), (1, 2)), ((1.0, 0.7), (1.2, 0.9)), ((0,), (1, 2)), ((0.2, 0.6), (0.7, 0.1)))
    evidence = torch.randn(23, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    joint = torch.zeros(23, 2, 2, dtype=torch.float64)
    for topic, bits in itertools.product(range(2), itertools.product((0, 1), repeat=3)):
        labels = (bits[0], bits[1] ^ bits[2])
        prior = 0.5 * 0.5  # topic, fair first bit of the parity
        for label, on in enumerate(labels):
            prior *= law.rates[topic][label] if on else 1 - law.rates[topic][label]
        joint[:, labels[0], labels[1]] += prior * (evidence @ (2.0 * torch.tensor(bits).double() - 1)).exp()
    joint /= joint.sum((1, 2), keepdim=True)
    wanted = torch.stack([joint[:, 1].sum(1), joint[:, :, 1].sum(1)], dim=1)
    torch.testing.assert_close(law.posterior(evidence), wanted)


def test_a_dict_is_no_generated_input() -> None:
    data = load("unique")
    rows = replace(data.test, inputs={**data.test.inputs, "a": {"ids": data.test.keys}})
    assert data.posterior is not None
    with pytest.raises(ValueError, match="modality 'a' must be a"):
        data.posterior(rows, rows.present)
