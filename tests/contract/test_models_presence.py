"""Token-level models: absent content reaches nothing, order changes nothing, rows do not mix, everything trains."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from polyfuse.fusion import FUSIONS

# `token_case` (conftest.py) builds one model: text, audio, image of widths 7, 3, 5 and lengths 5, 3, 2.


def numbers(out: Any) -> dict[str, Tensor]:
    """Every floating tensor of an output."""
    found = {"logits": out.logits, **{k: v for k, v in out.info.items() if v.is_floating_point()}}
    return found if out.weights is None else {**found, "weights": out.weights}


def loss_of(out: Any) -> Tensor:
    """A scalar that every number of the output enters with another weight."""
    parts = [x.float() for name, x in sorted(numbers(out).items()) if name.endswith(("logits", "pooled", "_tokens"))]
    flat = torch.cat([part.flatten() for part in parts])
    return (flat * torch.linspace(-1, 2, flat.numel())).sum() + flat.square().sum()


def assert_same(one: Any, other: Any) -> None:
    for name, value in numbers(one).items():
        assert torch.equal(value, numbers(other)[name]), name
    assert torch.equal(one.info["empty"], other.info["empty"])


def inputs(case: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    present = case.masks()
    return case.tokens(len(present)), case.token_mask(len(present)), present


def holes(case: Any) -> dict[str, Tensor]:
    """``{name: (B, T)}``: what must not be read."""
    _, mask, present = inputs(case)
    return {name: ~mask[name] | ~present[:, m, None] for m, name in enumerate(mask)}


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
def test_content_of_absent_modalities_and_tokens_reaches_nothing(token_case: Any, mode: bool, poison: float) -> None:
    model = token_case.build().train(mode)
    x, mask, present = inputs(token_case)
    hidden, outputs, gradients, inputs_seen = holes(token_case), [], [], []
    for value in (None, poison):
        given = {n: v if value is None else v.masked_fill(hidden[n][..., None], value) for n, v in x.items()}
        given = {n: v.detach().clone().requires_grad_() for n, v in given.items()}
        model.zero_grad()
        out = token_case.run(model, given, mask, present)
        loss_of(out).backward()
        outputs.append(out)
        gradients.append([p.grad for p in model.parameters()])
        inputs_seen.append(given)
    assert_same(*outputs)
    assert all(value.isfinite().all() for value in numbers(outputs[0]).values())  # the empty row included
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()
    for name, clean in inputs_seen[0].items():
        assert clean.grad is not None
        assert not clean.grad[hidden[name]].any()
        assert clean.grad[~hidden[name]].any()
        assert torch.equal(clean.grad, inputs_seen[1][name].grad)
        assert not outputs[0].info[f"{name}_tokens"][hidden[name]].any()


def test_absent_modality_equals_its_tokens_all_masked(token_case: Any, mode: bool) -> None:
    model = token_case.build().train(mode)
    x, mask, present = inputs(token_case)
    masked = {name: value & present[:, m, None] for m, (name, value) in enumerate(mask.items())}
    assert_same(token_case.run(model, x, mask, present), token_case.run(model, x, masked))


def test_padding_at_the_end_changes_nothing(token_case: Any) -> None:
    model = token_case.build(dtype=torch.float64).eval()
    x, present = token_case.tokens(8, torch.float64), token_case.masks()
    longer = {n: torch.cat([v, torch.full_like(v[:, :2], math.nan)], dim=1) for n, v in x.items()}
    mask = {n: (torch.arange(v.shape[1]) < x[n].shape[1]).expand(8, -1) for n, v in longer.items()}
    short, long = model(x, present=present), model(longer, mask, present)
    torch.testing.assert_close(long.logits, short.logits)
    for name, value in x.items():
        torch.testing.assert_close(long[f"{name}_tokens"][:, : value.shape[1]], short[f"{name}_tokens"])


def test_no_mask_equals_all_present_bit_for_bit(token_case: Any, mode: bool) -> None:
    model, x = token_case.build().train(mode), token_case.tokens(5)
    full = {n: torch.ones(v.shape[:2], dtype=torch.bool) for n, v in x.items()}
    there = token_case.run(model, x, full, torch.ones(5, 3, dtype=torch.bool))
    assert_same(token_case.run(model, x), there)


def test_masks_are_really_used(token_case: Any, mode: bool) -> None:
    model, x = token_case.build().train(mode), token_case.tokens(5)
    full = token_case.run(model, x).pooled
    for m, (name, value) in enumerate(x.items()):
        present = torch.ones(5, 3, dtype=torch.bool)
        present[:, m] = False
        assert not torch.allclose(token_case.run(model, x, None, present).pooled, full)
        one = torch.ones(value.shape[:2], dtype=torch.bool)
        one[:, 0] = False
        assert not torch.allclose(token_case.run(model, x, {name: one}).pooled, full)


def test_row_with_one_modality_still_reads_it(token_case: Any) -> None:
    model, x = token_case.build().eval(), token_case.tokens(3)
    present = torch.eye(3, dtype=torch.bool)
    for m, name in enumerate(x):
        other = {**x, name: x[name] + torch.randn(x[name].shape, generator=torch.Generator().manual_seed(3))}
        changed = (model(other, present=present).pooled - model(x, present=present).pooled).abs().amax(dim=1)
        assert torch.equal(changed > 1e-4, present[m])


def test_row_with_nothing_is_flagged(token_case: Any) -> None:
    x, mask, present = inputs(token_case)
    out = token_case.build().eval()(x, mask, present)
    assert torch.equal(out.empty, ~present.any(dim=1))
    assert all(isinstance(value, Tensor) for value in out.info.values())


def test_weights_are_a_distribution_over_what_is_present(token_case: Any, mode: bool) -> None:
    x, mask, present = inputs(token_case)
    out = token_case.run(token_case.build().train(mode), x, mask, present)
    if out.weights is None:
        assert not token_case.name.endswith(("gated", "attention_pool", "adaptive"))
        return
    assert out.weights.shape == present.shape
    assert not out.weights[~present].any()  # exactly zero, not merely small
    torch.testing.assert_close(out.weights.sum(dim=1), present.any(dim=1).float())


def test_order_of_dicts_is_irrelevant_bit_for_bit(token_case: Any, mode: bool) -> None:
    model = token_case.build().train(mode)
    x, mask, present = inputs(token_case)
    turned = token_case.run(model, dict(reversed(x.items())), dict(reversed(mask.items())), present)
    assert_same(token_case.run(model, x, mask, present), turned)


def test_order_of_modalities_is_irrelevant_bit_for_bit(token_case: Any, mode: bool) -> None:
    """The same seed, or the same weights, under another order, with the columns of `present` in that order."""
    model, order = token_case.build().train(mode), [2, 0, 1]
    other = token_case.build([model.modalities[m] for m in order], seed=9).train(mode)
    own = {key: value for key, value in other.state_dict().items() if key.endswith("_extra_state")}
    other.load_state_dict({**model.state_dict(), **own})
    x, mask, present = inputs(token_case)
    out, turned = token_case.run(model, x, mask, present), token_case.run(other, x, mask, present[:, order])
    assert torch.equal(out.logits, turned.logits)
    for name in x:
        assert torch.equal(out[f"{name}_tokens"], turned[f"{name}_tokens"])
    assert out.weights is None or torch.equal(turned.weights, out.weights[:, order])
    for name in x:
        if f"{name}_gates" in out.info:
            assert torch.equal(turned[f"{name}_gates"], out[f"{name}_gates"][..., order])


def test_rows_do_not_mix(token_case: Any, mode: bool) -> None:
    model = token_case.build().train(mode)
    x, mask, present = inputs(token_case)
    out = token_case.run(model, x, mask, present)
    spoilt = {n: v.clone() for n, v in x.items()}
    for v in spoilt.values():
        v[0] = math.nan  # a broken value that is *present* must show, in its own row only
    broken = token_case.run(model, spoilt, mask, present)
    assert torch.equal(broken.pooled[1:], out.pooled[1:])
    assert broken.pooled[0].isnan().any()


def test_batch_of_one_equals_its_row(token_case: Any) -> None:
    model = token_case.build(dtype=torch.float64).eval()
    _, mask, present = inputs(token_case)
    x = token_case.tokens(len(present), torch.float64)
    out = model(x, mask, present)
    for i in range(len(present)):
        one = slice(i, i + 1)
        alone = model({n: v[one] for n, v in x.items()}, {n: v[one] for n, v in mask.items()}, present[one])
        torch.testing.assert_close(alone.logits, out.logits[one])


def test_every_parameter_trains(token_case: Any) -> None:
    model = token_case.build().train()
    present = token_case.masks().repeat(4, 1)  # enough rows that every query sees two keys somewhere
    x, mask = token_case.tokens(len(present)), token_case.token_mask(len(present))
    loss_of(token_case.run(model, x, mask, present)).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # Logits alone, nothing absent, and one modality in no row: zeros, not None.
    for here in (None, torch.tensor([[True, False, True]] * len(present))):
        model.zero_grad()
        token_case.run(model, x, mask, here).logits.square().sum().backward()
        assert not [n for n, p in model.named_parameters() if p.grad is None]


def test_eval_is_deterministic_and_training_follows_the_seed(token_case: Any) -> None:
    model, x = token_case.build(), token_case.tokens(5)
    assert_same(token_case.run(model.train(), x), token_case.run(model, x))
    torch.manual_seed(0)
    first = model.eval()(x)
    torch.manual_seed(1)
    assert_same(model(x), first)
    torch.manual_seed(1)
    assert not torch.equal(model.train()(x).logits, first.logits)


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_two_to_five_modalities(token_case: Any, number: int) -> None:
    if token_case.name in ("cross-directed", "graph-edges"):
        return  # their pairs name three
    names = ("b", "values", "über/2", "a b", "c+d")[:number]
    model = token_case.build(names).train()
    present = token_case.masks(number)
    x = token_case.tokens(len(present), names=names)
    out = token_case.run(model, x, token_case.token_mask(len(present), names), present)
    assert out.logits.shape == (len(present), 4)
    assert out.logits.isfinite().all()
    loss_of(out).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_attention_maps_are_distributions_over_present_keys(token_case: Any, mode: bool) -> None:
    model = token_case.build().train(mode)
    x, mask, present = inputs(token_case)
    plain, out = token_case.run(model, x, mask, present), token_case.run(model, x, mask, present, return_attention=True)
    assert_same(out, plain)
    assert plain.attentions is None
    assert len(out.attentions) >= 4
    for name, map_BHQK in out.attentions.items():
        total = map_BHQK.sum(dim=-1)
        assert torch.all((total - 1).abs().lt(1e-5) | (total == 0)), name
        assert (total[:-1] > 0).any(), name
        assert not total[-1].any() or "bottleneck" in token_case.name, name  # nothing is present there
    # In the row with everything present every query of every map has something to read.
    assert all((m[0].sum(dim=-1) > 0.99).all() for m in out.attentions.values())
    absent = [n for n, m in out.attentions.items() if m.shape[-1] == sum(v.shape[1] for v in x.values())]
    keys = torch.cat([~holes(token_case)[name] for name in sorted(x)], dim=1)
    for name in absent:  # joined sequences: exactly zero at every hole
        assert not (out.attentions[name] * ~keys[:, None, None]).any()


@pytest.mark.parametrize("fusion", ["late", "hybrid", "pairwise"])
@pytest.mark.parametrize("combine", sorted(FUSIONS))
def test_any_fusion_combines(fusion: str, combine: str) -> None:
    from polyfuse.models.multimodal_transformer import MultimodalTransformer

    torch.manual_seed(0)
    model = MultimodalTransformer(
        ("b", "c", "a"), 3, fusion=fusion, combine=combine, dim=8, num_heads=2, num_layers=2, num_classes=3
    ).eval()
    present = torch.cartesian_prod(*[torch.tensor([True, False])] * 3)
    x = {name: torch.randn(8, 2, 3) for name in "abc"}
    broken = {n: x[n].masked_fill(~present[:, m, None, None], math.nan) for m, n in enumerate(("b", "c", "a"))}
    out = model(x, present=present)
    assert torch.equal(model(broken, present=present).logits, out.logits)
    assert out.logits.isfinite().all()
    if out.weights is not None:
        assert not out.weights[~present].any()
        torch.testing.assert_close(out.weights[:-1].sum(dim=1), torch.ones(7))
