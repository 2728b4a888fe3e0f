"""Absent content reaches nothing, order changes nothing, samples do not mix, everything trains: over every fusion."""

import math
from typing import Any

import pytest
import torch
from torch import nn

# `case` (conftest.py) builds one registry entry: NAMES = text, audio, image of widths 7, 3, 5.


def loss_of(out: Any) -> torch.Tensor:
    """A scalar that every number of `fused` enters with another weight."""
    return (out.fused * torch.linspace(-1, 2, out.fused.numel()).view_as(out.fused)).sum() + out.fused.square().sum()


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
def test_content_of_absent_slots_reaches_nothing(case: Any, mode: bool, poison: float) -> None:
    fusion, present = case.build().train(mode), case.masks()
    clean = {n: x.requires_grad_() for n, x in case.embeddings(len(present)).items()}
    broken = {
        n: x.detach().masked_fill(~present[:, m, None], poison).requires_grad_()
        for m, (n, x) in enumerate(clean.items())
    }
    outputs, gradients = [], []
    for x in (clean, broken):
        fusion.zero_grad()
        out = case.run(fusion, x, present)
        loss_of(out).backward()
        outputs.append(out)
        gradients.append([p.grad for p in fusion.parameters()])
    assert torch.equal(outputs[0].fused, outputs[1].fused)
    assert outputs[0].fused.isfinite().all()  # the row in which nothing is present included
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()
    for m, name in enumerate(clean):
        assert not clean[name].grad[~present[:, m]].any()
        assert torch.equal(clean[name].grad, broken[name].grad)


def test_encoder_of_an_absent_modality_gets_exactly_zero_gradient(case: Any, mode: bool) -> None:
    model = case.model().train(mode)
    present = case.masks()
    present[:, 1] = False  # audio, in no row
    inputs = {n: torch.randn(len(present), 2) for n in model.modalities}
    inputs["audio"].fill_(math.nan)
    case.run(model, inputs, present).logits.square().sum().backward()
    for name, encoder in model.encoders.items():
        for parameter in encoder.parameters():
            assert parameter.grad is not None, "data parallel training needs a gradient, zeros included"
            assert bool(parameter.grad.any()) == (name != "audio")


def test_weights_are_a_distribution_over_what_is_present(case: Any, mode: bool) -> None:
    present = case.masks()
    out = case.run(case.build().train(mode), case.embeddings(len(present)), present)
    if out.weights is None:
        pytest.skip("this fusion has no weights")
    assert out.weights.shape == present.shape
    assert not out.weights[~present].any()  # exactly zero, not merely small
    torch.testing.assert_close(out.weights.sum(dim=1), present.any(dim=1).float())


def test_a_row_with_nothing_present_is_flagged(case: Any) -> None:
    present = case.masks()
    out = case.run(case.build().eval(), case.embeddings(len(present)), present)
    assert torch.equal(out.info["empty"], ~present.any(dim=1))
    assert all(isinstance(value, torch.Tensor) for value in out.info.values())


def test_mask_is_really_used(case: Any, mode: bool) -> None:
    fusion, x = case.build().train(mode), case.embeddings(5)
    full = case.run(fusion, x).fused
    for m in range(3):
        present = torch.ones(5, 3, dtype=torch.bool)
        present[:, m] = False
        assert not torch.equal(case.run(fusion, x, present).fused, full)


def test_no_mask_equals_all_present_bit_for_bit(case: Any, mode: bool) -> None:
    fusion, x = case.build().train(mode), case.embeddings(5)
    assert torch.equal(case.run(fusion, x).fused, case.run(fusion, x, torch.ones(5, 3, dtype=torch.bool)).fused)


def test_order_of_dict_keys_is_irrelevant_bit_for_bit(case: Any, mode: bool) -> None:
    fusion, present = case.build().train(mode), case.masks()
    x = case.embeddings(len(present))
    out = case.run(fusion, x, present)
    turned = case.run(fusion, dict(reversed(x.items())), present)
    assert torch.equal(out.fused, turned.fused)
    assert out.weights is None or torch.equal(out.weights, turned.weights)


def test_order_of_widths_does_not_change_the_initial_weights_names(case: Any) -> None:
    widths = {"image": 5, "text": 7, "audio": 3}
    shapes = {k: v.shape for k, v in case.build().state_dict().items()}
    assert {k: v.shape for k, v in case.build(embed_dim=widths).state_dict().items()} == shapes


def test_permuting_the_named_modalities_changes_nothing(case: Any) -> None:
    """The same weights under another `modalities` order, with the columns of `present` in that order."""
    fusion, present = case.build().eval(), case.masks()
    order = [2, 0, 1]
    other = case.build([fusion.modalities[m] for m in order], seed=9).eval()
    own = {key: value for key, value in other.state_dict().items() if key.endswith("_extra_state")}
    other.load_state_dict({**fusion.state_dict(), **own})
    x = case.embeddings(len(present))
    out, turned = fusion(x, present), other(x, present[:, order])
    torch.testing.assert_close(turned.fused, out.fused)
    assert out.weights is None or torch.allclose(turned.weights, out.weights[:, order], atol=1e-6)


def test_samples_do_not_mix(case: Any, mode: bool) -> None:
    fusion, present = case.build().train(mode), case.masks()
    x = case.embeddings(len(present))
    out = case.run(fusion, x, present)
    spoilt = {n: v.clone() for n, v in x.items()}
    for v in spoilt.values():
        v[0] = math.nan  # a broken value that is *present* must show, in its own row only
    broken = case.run(fusion, spoilt, present)
    assert torch.equal(broken.fused[1:], out.fused[1:])
    assert broken.fused[0].isnan().any()


def test_batch_of_one_equals_its_row(case: Any) -> None:
    fusion, present = case.build().eval(), case.masks()
    x = case.embeddings(len(present))
    out = fusion(x, present)
    for i in range(len(present)):
        alone = fusion({n: v[i : i + 1] for n, v in x.items()}, present[i : i + 1])
        torch.testing.assert_close(alone.fused, out.fused[i : i + 1])
    assert case.run(fusion.train(), case.embeddings(1)).fused.shape == out.fused[:1].shape


def test_every_parameter_trains(case: Any) -> None:
    fusion = case.build().train()
    present = case.masks().repeat(3, 1)
    loss_of(case.run(fusion, case.embeddings(len(present)), present)).backward()
    idle = [n for n, p in fusion.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle
    fusion.zero_grad()
    loss_of(case.run(fusion, case.embeddings(3))).backward()  # nothing absent: zeros, not None
    assert not [n for n, p in fusion.named_parameters() if p.grad is None]


def test_no_leaf_hides_from_parameters(case: Any) -> None:
    """A factor kept in a Python list would never train: every leaf that requires grad must be registered."""
    fusion = case.build()
    seen, todo, known = [], [case.run(fusion, case.embeddings(3)).fused.grad_fn], {id(p) for p in fusion.parameters()}
    visited = set()
    while todo:
        node = todo.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if hasattr(node, "variable"):
            seen.append(node.variable)
        todo += [parent for parent, _ in node.next_functions]
    assert seen
    assert {id(leaf) for leaf in seen} <= known


def test_eval_is_deterministic(case: Any) -> None:
    fusion, x = case.build().eval(), case.embeddings(5)
    torch.manual_seed(0)
    first = fusion(x).fused
    torch.manual_seed(1)
    assert torch.equal(fusion(x).fused, first)


def test_training_draws_follow_the_global_seed(case: Any) -> None:
    fusion, x = case.build().train(), case.embeddings(5)
    assert torch.equal(case.run(fusion, x).fused, case.run(fusion, x).fused)


@pytest.mark.parametrize("number", [1, 8])
def test_one_and_eight_modalities(case: Any, mode: bool, number: int) -> None:
    names = tuple(f"m{i}" for i in range(number))
    fusion = case.build(names, 6).train(mode)
    present = case.masks(number)
    out = case.run(fusion, case.embeddings(len(present), **dict.fromkeys(names, 6)), present)
    assert out.fused.shape == (len(present), fusion.out_dim)
    assert out.fused.isfinite().all()
    loss_of(out).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fusion.parameters())


@pytest.mark.parametrize("names", [("values", "type", "training"), ("a b", "über/2", "items")])
def test_any_modality_name_works(case: Any, names: tuple[str, ...]) -> None:
    fusion = case.build(names, 6)
    clone = case.build(names, 6, seed=9)
    clone.load_state_dict(fusion.state_dict())
    x = case.embeddings(3, **dict.fromkeys(names, 6))
    assert torch.equal(clone.eval()(x).fused, fusion.eval()(x).fused)


def test_width_of_one_keeps_its_content(case: Any) -> None:
    """A LayerNorm over a width of one would erase it."""
    fusion = case.build(("a", "b"), {"a": 1, "b": 5}).eval()
    x = case.embeddings(7, a=1, b=5)
    assert not torch.allclose(fusion({**x, "a": x["a"] + 1.0}).fused, fusion(x).fused, atol=1e-3)


def test_wrong_input_is_refused(case: Any) -> None:
    fusion, x = case.build(), case.embeddings(5)
    with pytest.raises(ValueError, match="'audio'"):
        fusion({n: v for n, v in x.items() if n != "audio"})
    with pytest.raises(ValueError, match=r"\(5, 3\).*\(5, 2\)"):
        fusion(x, torch.ones(5, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="float32"):
        fusion(x, torch.ones(5, 3))
    with pytest.raises(ValueError, match=r"'image'.*\(4, 5\)"):
        fusion({**x, "image": x["image"][:4]})
    with pytest.raises(ValueError, match=r"'image'.*\(5, 4\)"):
        fusion({**x, "image": x["image"][:, :4]})
    with pytest.raises(ValueError, match="distinct"):
        case.build(("a", "a"), 4)


def test_modules_own_no_batch_statistics(case: Any) -> None:
    assert not [m for m in case.build().modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
