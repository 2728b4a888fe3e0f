"""Masked modelling: what is hidden, and the losses of hidden words, regions and patches."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from polyfuse.data import keyed
from polyfuse.losses import (
    MaskedLanguageLoss,
    MaskedPatches,
    MaskedRegionClass,
    MaskedRegionKL,
    MaskedRegionRegression,
    choose,
    choose_patches,
    mask_regions,
    mask_tokens,
    masked_language_loss,
    masked_patches,
    masked_region_class,
    masked_region_kl,
    masked_region_regression,
    patches,
)

B, T, V, F_ = 3, 5, 7, 11
MASK, SPECIALS = 2, (0, 1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chosen_places() -> Tensor:
    chosen = torch.zeros(B, T, dtype=torch.bool)
    chosen[0, 1] = chosen[2, 0] = chosen[2, 4] = True
    return chosen


def test_rule_of_thumb_holds_over_many_words() -> None:
    rows, length, vocabulary = 997, 101, 53
    tokens = torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
    draws = keyed.uniform(0, "mlm", 0, torch.arange(rows), length)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    result = mask_tokens(tokens, mask, draws, mask_id=MASK, vocabulary=vocabulary, specials=SPECIALS)
    count = int(result.chosen.sum())
    assert count / tokens.numel() == pytest.approx(0.15, abs=0.005)
    read = result.tokens[result.chosen]
    assert (read == MASK).double().mean().item() == pytest.approx(0.8, abs=0.015)
    swapped = read[(read != MASK) & (read != tokens[result.chosen])]
    assert len(swapped) / count == pytest.approx(0.1 * (1 - 1 / 50), abs=0.01)  # 1 in 50 hits the word itself
    shares = torch.bincount(swapped, minlength=vocabulary)[3:] / len(swapped)
    assert (shares - 1 / 50).abs().max() < 0.015  # every ordinary word, evenly
    assert not torch.isin(swapped, torch.tensor([MASK, *SPECIALS])).any()
    assert torch.equal(result.tokens[~result.chosen], tokens[~result.chosen])
    assert torch.equal(result.target, tokens)


def test_specials_and_absent_words_are_never_chosen_and_something_always_is() -> None:
    tokens = torch.tensor([[1, 5, 6, 0, 0], [1, MASK, 0, 0, 0], [1, 4, 5, 6, 3]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    for seed in range(50):
        draws = torch.rand(B, T, generator=torch.Generator().manual_seed(seed))
        result = mask_tokens(tokens, mask, draws, mask_id=MASK, vocabulary=V, specials=SPECIALS)
        assert not result.chosen[:, 0].any()
        assert not result.chosen[~mask].any()
        assert result.chosen.any(dim=1).tolist() == [True, False, True]  # the second row has nothing to hide
    missed = mask_tokens(tokens, mask, torch.full((B, T), 0.99), mask_id=MASK, vocabulary=V, specials=SPECIALS)
    assert (missed.tokens[missed.chosen] == MASK).all()  # the one that must be: hidden


def test_rows_do_not_depend_on_their_batch() -> None:
    tokens = torch.randint(3, V, (B, T), generator=torch.Generator().manual_seed(1))
    keys, mask = torch.tensor([41, 7, 13]), torch.ones(B, T, dtype=torch.bool)
    for rows in (slice(0, 3), slice(1, 3)):
        draws = keyed.uniform(0, "mlm", 3, keys[rows], T)
        part = mask_tokens(tokens[rows], mask[rows], draws, mask_id=MASK, vocabulary=V, specials=SPECIALS)
        whole = mask_tokens(
            tokens, mask, keyed.uniform(0, "mlm", 3, keys, T), mask_id=MASK, vocabulary=V, specials=SPECIALS
        )
        assert torch.equal(part.tokens, whole.tokens[rows])
    generator = torch.Generator().manual_seed(2)
    assert choose(mask, generator).any(dim=1).all()


def test_rate_is_a_rate() -> None:
    here = torch.ones(1, T, dtype=torch.bool)
    assert choose(here, torch.rand(1, T), rate=1.0).all()
    assert not choose(here[:, :0], torch.rand(1, 0)).any()
    for rate in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"got {rate}"):
            choose(here, torch.rand(1, T), rate=rate)
        with pytest.raises(ValueError, match=f"got {rate}"):
            choose_patches(here, torch.rand(1, T), rate=rate)
    with pytest.raises(ValueError, match=r"draws must have shape \(1, 5\), got \(1, 4\)"):
        choose(here, torch.rand(1, 4))
    with pytest.raises(ValueError, match="each of the 2 ids is special"):
        mask_tokens(torch.zeros(1, T).long(), here, torch.rand(1, T), mask_id=0, vocabulary=2, specials=[1])


def test_hidden_regions_are_zero_and_absent_ones_leave_no_trace() -> None:
    features = normal(B, T, F_)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    features[~mask] = math.nan
    result = mask_regions(features, mask, torch.rand(B, T, generator=torch.Generator().manual_seed(0)))
    assert result.chosen.any(dim=1).tolist() == [True, True, False]
    assert not result.features[result.chosen | ~mask].any()
    assert torch.equal(result.features[mask & ~result.chosen], features[mask & ~result.chosen])
    assert torch.equal(result.target[result.chosen], features[result.chosen])


def test_patches_are_those_of_unfold_and_a_fixed_number_is_chosen() -> None:
    images = normal(2, 3, 6, 10)
    unfolded = F.unfold(images, 2, stride=2).transpose(1, 2)  # in a patch: colour, row, column
    ours = patches(images, 2).view(2, 15, 2, 2, 3).permute(0, 1, 4, 2, 3).reshape(2, 15, 12)
    assert torch.equal(ours, unfolded)
    here = torch.tensor([[True] * 5, [True, False, True, False, True], [False] * 5])
    chosen = choose_patches(here, torch.rand(3, 5, generator=torch.Generator().manual_seed(0)), 0.5)
    assert chosen.sum(dim=1).tolist() == [3, 2, 0]
    assert not (chosen & ~here).any()
    with pytest.raises(ValueError, match="patch size 4, got 6 x 10"):
        patches(images, 4)


def cases() -> dict[str, tuple[Callable[..., Tensor], Tensor, Tensor, int]]:
    """Loss, prediction, target, number of axes that the target has in common."""
    words = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(3))
    shares = normal(B, T, V, seed=4).softmax(-1)
    return {
        "words": (masked_language_loss, normal(B, T, V), words),
        "regression": (masked_region_regression, normal(B, T, F_), normal(B, T, F_, seed=5)),
        "class": (masked_region_class, normal(B, T, V), shares),
        "kl": (masked_region_kl, normal(B, T, V), shares),
        "patches": (masked_patches, normal(B, T, F_), normal(B, T, F_, seed=6)),
    }


def by_hand(name: str, prediction: Tensor, target: Tensor, chosen: Tensor) -> Tensor:
    """In plain loops."""
    values = []
    for row, place in chosen.nonzero().tolist():
        x, y = prediction[row, place], target[row, place]
        if name in ("words", "class", "kl"):
            log_share = x - x.exp().sum().log()
        if name == "words":
            values.append(-log_share[y])
        elif name == "class":
            values.append(-log_share[y.argmax()])
        elif name == "kl":
            values.append(sum(y[i] * (y[i].log() - log_share[i]) for i in range(V)))
        else:
            values.append(sum((x[i] - y[i]) ** 2 for i in range(len(x))) / len(x))
    return sum(values) / len(values)


@pytest.mark.parametrize("name", cases())
def test_equals_plain_loops(name: str) -> None:
    loss, prediction, target = cases()[name]
    prediction.requires_grad_()
    ours = loss(prediction, target, chosen_places())
    expected = by_hand(name, prediction, target, chosen_places())
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(ours, prediction)[0], torch.autograd.grad(expected, prediction)[0])
    each = loss(prediction, target, chosen_places(), reduction="none")
    assert each.shape == (3,)
    torch.testing.assert_close(each.sum(), loss(prediction, target, chosen_places(), reduction="sum"))


@pytest.mark.parametrize("name", cases())
def test_nothing_chosen_is_zero_with_a_zero_gradient(name: str) -> None:
    loss, prediction, target = cases()[name]
    prediction.requires_grad_()
    ours = loss(prediction, target, torch.zeros(B, T, dtype=torch.bool))
    assert ours.item() == 0.0
    assert torch.autograd.grad(ours, prediction)[0].eq(0).all()


@pytest.mark.parametrize("name", cases())
def test_what_is_not_chosen_leaves_no_trace(name: str) -> None:
    loss, prediction, target = cases()[name]
    chosen = chosen_places()
    broken, noise = prediction.clone(), target.clone()
    broken[~chosen] = math.nan
    noise[~chosen] = math.nan if noise.is_floating_point() else -9
    broken.requires_grad_()
    ours = loss(broken, noise, chosen)
    torch.testing.assert_close(ours, loss(prediction, target, chosen))
    gradient = torch.autograd.grad(ours, broken)[0]
    assert gradient.isfinite().all()
    assert not gradient[~chosen].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", cases())
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    loss, prediction, target = cases()[name]
    prediction = (300 * prediction).to(dtype)  # squares of it overflow in float16
    target = target.to(dtype) if target.is_floating_point() else target
    ours = loss(prediction, target, chosen_places())
    assert ours.dtype == torch.float32
    wide = target.float() if target.is_floating_point() else target
    torch.testing.assert_close(ours, loss(prediction.float(), wide, chosen_places()))


def test_background_is_never_the_class() -> None:
    classes = torch.tensor([[[0.7, 0.1, 0.2]]])
    logits, chosen = normal(1, 1, 3), torch.ones(1, 1, dtype=torch.bool)
    torch.testing.assert_close(
        masked_region_class(logits, classes, chosen, background=0), F.cross_entropy(logits[0], torch.tensor([2]))
    )
    torch.testing.assert_close(
        masked_region_class(logits, classes, chosen), F.cross_entropy(logits[0], torch.tensor([0]))
    )
    assert classes[0, 0, 0] == pytest.approx(0.7)  # the caller's tensor is as it was


def test_kl_of_certain_detectors_is_finite() -> None:
    logits = normal(1, 1, 3).requires_grad_()
    loss = masked_region_kl(logits, torch.tensor([[[0.0, 1.0, 0.0]]]), torch.ones(1, 1, dtype=torch.bool))
    torch.testing.assert_close(loss, F.cross_entropy(logits[0], torch.tensor([1])))
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_normalised_patches() -> None:
    prediction, target, chosen = normal(B, T, F_), normal(B, T, F_, seed=6), chosen_places()
    picked = target[chosen]
    wanted = torch.stack([(p - p.mean()) / (p.std() ** 2 + 1e-6) ** 0.5 for p in picked])
    ours = masked_patches(prediction, target, chosen, normalise=True)
    torch.testing.assert_close(ours, F.mse_loss(prediction[chosen], wanted))
    assert masked_patches(prediction, torch.ones_like(target), chosen, normalise=True).isfinite()


def test_modules_equal_functions() -> None:
    chosen = chosen_places()
    table = cases()
    pairs = {
        "words": MaskedLanguageLoss(),
        "regression": MaskedRegionRegression(),
        "kl": MaskedRegionKL(),
        "class": MaskedRegionClass(),
        "patches": MaskedPatches(),
    }
    for name, module in pairs.items():
        loss, prediction, target = table[name]
        assert torch.equal(module(prediction, target, chosen), loss(prediction, target, chosen))
    _, prediction, target = table["patches"]
    assert torch.equal(
        MaskedPatches(normalise=True)(prediction, target, chosen),
        masked_patches(prediction, target, chosen, normalise=True),
    )
    _, prediction, target = table["class"]
    assert torch.equal(
        MaskedRegionClass(background=1, reduction="sum")(prediction, target, chosen),
        masked_region_class(prediction, target, chosen, background=1, reduction="sum"),
    )


def test_refusals() -> None:
    logits, words, chosen = normal(B, T, V), torch.zeros(B, T).long(), chosen_places()
    with pytest.raises(ValueError, match=r"chosen must be bool of shape \(3, 5\), got torch.bool of \(3, 4\)"):
        masked_language_loss(logits, words, chosen[:, 1:])
    with pytest.raises(ValueError, match=r"target must have shape \(3, 5\), got \(3, 4\)"):
        masked_language_loss(logits, words[:, 1:], chosen)
    with pytest.raises(ValueError, match="got 'most'"):
        MaskedLanguageLoss("most")
