"""The laws of missingness, held against their formulas."""

import itertools
import math

import pytest
import torch

from polyfuse.data.missing import (
    Bernoulli,
    ByGroup,
    FixedSubset,
    Incomplete,
    SizeStratified,
    bernoulli_drop,
    mean_rate,
    sample_drop,
)

N = 60_000
Row = tuple[bool, ...]


def draws(n: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, columns, generator=torch.Generator().manual_seed(seed))


def frequencies(keep: torch.Tensor) -> dict[Row, float]:
    rows, counts = keep.unique(dim=0, return_counts=True)
    return {tuple(row.tolist()): int(c) / len(keep) for row, c in zip(rows, counts, strict=True)}


def conditional_law(rates: list[float], present: Row) -> dict[Row, float]:
    """Brute force: every outcome of independent losses, the empty one struck out, renormalised."""
    law = {}
    for keep in itertools.product((False, True), repeat=len(rates)):
        if not any(keep) or any(k and not p for k, p in zip(keep, present, strict=True)):
            continue
        law[keep] = math.prod((1 - r) if k else r for k, r, p in zip(keep, rates, present, strict=True) if p)
    total = sum(law.values())
    return {keep: weight / total for keep, weight in law.items() if weight}


def check_law(keep: torch.Tensor, law: dict[Row, float]) -> None:
    seen = frequencies(keep)
    assert set(seen) <= set(law)
    for pattern, probability in law.items():
        error = 5 * math.sqrt(probability * (1 - probability) / len(keep)) + 1e-12
        assert abs(seen.get(pattern, 0.0) - probability) <= error, (pattern, seen.get(pattern), probability)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
def test_bernoulli_has_the_exact_conditional_law(rate: float, modalities: int) -> None:
    present = torch.ones(N, modalities, dtype=torch.bool)
    drop = sample_drop(present, rate, draws(N, modalities))
    check_law(~drop, conditional_law([rate] * modalities, (True,) * modalities))


def test_half_is_uniform_over_non_empty_subsets_of_the_present() -> None:
    present = torch.tensor([True, False, True, True, False]).expand(N, -1)
    keep = present & ~sample_drop(present, 0.5, draws(N, 5))
    law = conditional_law([0.5] * 5, (True, False, True, True, False))
    assert len(law) == 7
    assert max(law.values()) == pytest.approx(min(law.values()))
    check_law(keep, law)


def test_rates_per_modality() -> None:
    rates = [0.2, 0.7, 0.95]
    keep = ~sample_drop(torch.ones(N, 3, dtype=torch.bool), Bernoulli(rates), draws(N, 3))
    check_law(keep, conditional_law(rates, (True,) * 3))


def test_rate_zero_and_one() -> None:
    present = torch.ones(N, 3, dtype=torch.bool)
    assert not sample_drop(present, 0.0, draws(N, 3)).any()
    law = {tuple(i == j for j in range(3)): 1 / 3 for i in range(3)}
    check_law(~sample_drop(present, 1.0, draws(N, 3)), law)


def test_a_certain_loss_beside_an_uncertain_one() -> None:
    keep = ~sample_drop(torch.ones(N, 3, dtype=torch.bool), Bernoulli([1.0, 0.4, 1.0]), draws(N, 3))
    check_law(keep, {(False, True, False): 1.0})


def test_survivor_even_for_the_largest_draws() -> None:
    u = torch.full((4, 3), 1 - 2**-24)
    present = torch.tensor([[True, True, True], [False, True, False], [True, False, True], [False, False, False]])
    keep = present & ~sample_drop(present, 0.999, u)
    assert keep.any(dim=1).tolist() == [True, True, True, False]


def test_size_stratified_law() -> None:
    present = torch.tensor([True, True, False, True]).expand(N, -1)
    keep = present & ~sample_drop(present, SizeStratified(), draws(N, 5))
    law = {}
    for kept in itertools.product((False, True), repeat=3):
        if any(kept):
            law[(kept[0], kept[1], False, kept[2])] = 1 / 3 / math.comb(3, sum(kept))
    check_law(keep, law)


def test_fixed_subset_leaves_rows_without_it_empty() -> None:
    present = torch.tensor([[True, True, True], [True, False, False], [False, True, True]])
    keep = present & ~sample_drop(present, FixedSubset((1, 2)), torch.empty(3, 0))
    assert keep.tolist() == [[False, True, True], [False, False, False], [False, True, True]]
    with pytest.raises(ValueError, match=r"0\.\.2, got \[3\]"):
        sample_drop(present, FixedSubset((3,)), torch.empty(3, 0))


@pytest.mark.parametrize("modalities", [2, 3])
def test_incomplete_protocol_shares(modalities: int) -> None:
    present = torch.ones(N, modalities, dtype=torch.bool)
    keep = ~sample_drop(present, Incomplete(0.7), draws(N, modalities + 1))
    parts = [p for p in itertools.product((False, True), repeat=modalities) if any(p) and not all(p)]
    check_law(keep, {p: 0.7 / len(parts) for p in parts} | {(True,) * modalities: 0.3})


def test_incomplete_among_the_present_only() -> None:
    present = torch.tensor([True, False, True, True]).expand(N, -1)
    keep = present & ~sample_drop(present, Incomplete(1.0), draws(N, 5))
    check_law(
        keep, {(a, False, b, c): 1 / 6 for a, b, c in itertools.product((False, True), repeat=3) if 0 < a + b + c < 3}
    )
    single = torch.tensor([[False, True]]).expand(50, -1)
    assert not sample_drop(single, Incomplete(1.0), draws(50, 3)).any()


def test_incomplete_one_sided() -> None:
    present = torch.ones(N, 2, dtype=torch.bool)
    check_law(~sample_drop(present, Incomplete(0.7, lose=(1,)), draws(N, 3)), {(True, True): 0.3, (True, False): 0.7})
    only = torch.tensor([[False, True]]).expand(50, -1)
    assert not sample_drop(only, Incomplete(1.0, lose=(1,)), draws(50, 3)).any()


def test_missing_not_at_random_follows_the_label() -> None:
    label = torch.arange(N) % 2
    rates = ((0.1, 0.3), 0.8)
    keep = ~sample_drop(torch.ones(N, 2, dtype=torch.bool), ByGroup(rates), draws(N, 2), group=label)
    check_law(keep[label == 0], conditional_law([0.1, 0.3], (True, True)))
    check_law(keep[label == 1], conditional_law([0.8, 0.8], (True, True)))


def test_missing_not_at_random_refuses_unknown_groups() -> None:
    present = torch.ones(3, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="got None"):
        sample_drop(present, ByGroup((0.5,)), draws(3, 2))
    with pytest.raises(ValueError, match=r"0\.\.0, got 0\.\.1"):
        sample_drop(present, ByGroup((0.5,)), draws(3, 2), group=torch.tensor([0, 1, 0]))


@pytest.mark.parametrize("policy", [0.5, SizeStratified(), Incomplete(0.7), Bernoulli([0.3, 0.5, 0.9, 0.2])])
def test_pure_per_row_and_only_among_the_present(policy: object) -> None:
    present = draws(97, 4, seed=1) < 0.6
    u = draws(97, 5, seed=2)
    drop = sample_drop(present, policy, u)
    assert not (drop & ~present).any()
    assert torch.equal((present & ~drop).any(1), present.any(1))
    parts = [sample_drop(present[i : i + 1], policy, u[i : i + 1]) for i in range(97)]
    assert torch.equal(torch.cat(parts), drop)  # no row looks at another


def test_realised_rate() -> None:
    drop = sample_drop(torch.ones(N, 3, dtype=torch.bool), 0.5, draws(N, 3))
    assert float(drop.float().mean()) == pytest.approx(mean_rate(0.5, 3), abs=0.005)
    assert mean_rate(1.0, 4) == pytest.approx(0.75)


def test_user_mistakes() -> None:
    present = torch.ones(3, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"got 1\.2"):
        sample_drop(present, 1.2, draws(3, 2))
    with pytest.raises(ValueError, match=r"\(3, >= 2\), got \(3, 1\)"):
        sample_drop(present, 0.5, draws(3, 1))
    with pytest.raises(ValueError, match=r"torch\.float32"):
        sample_drop(present.float(), 0.5, draws(3, 2))
    with pytest.raises(ValueError, match=r"\(B, M\) = \(3, 2\), got \(3,\)"):
        bernoulli_drop(present, torch.full((3,), 0.5), draws(3, 2))
