"""Modules by name, the order guard, and the masked softmax."""

import math

import pytest
import torch
from torch import nn

from polyfuse.fusion import SumFusion
from polyfuse.fusion.named import NamedFusion, NamedModules, masked_softmax, present_mean


def test_names_that_a_module_dict_refuses() -> None:
    names = ("values", "values_", "type", "keys", "training", "plain")
    modules = NamedModules({name: nn.Linear(2, width) for width, name in enumerate(names, start=3)})
    assert [modules[name].out_features for name in names] == [3, 4, 5, 6, 7, 8]
    assert modules.keys() == list(modules) == sorted(names)
    assert len(modules) == 6
    assert "type" in modules
    assert "other" not in modules
    assert [name for name, module in modules.items() if module is modules["keys"]] == ["keys"]
    assert "plain.weight" in modules.state_dict()


def test_state_keys_do_not_depend_on_the_order_of_the_mapping() -> None:
    forward = NamedModules({"type": nn.Linear(2, 3), "type_": nn.Linear(2, 5)})
    backward = NamedModules({"type_": nn.Linear(2, 5), "type": nn.Linear(2, 3)})
    shapes = {key: value.shape for key, value in forward.state_dict().items()}
    assert shapes == {key: value.shape for key, value in backward.state_dict().items()}


def test_masked_softmax_equals_softmax_over_the_present() -> None:
    torch.manual_seed(0)
    scores = torch.randn(5, 7, dtype=torch.float64)
    present = torch.rand(5, 7) < 0.5
    present[4] = False
    weights = masked_softmax(scores, present)
    for row in range(4):
        torch.testing.assert_close(weights[row, present[row]], scores[row, present[row]].softmax(dim=0))
    assert not weights[~present].any()


def test_masked_softmax_has_finite_gradients_in_empty_rows() -> None:
    scores = torch.tensor([[-math.inf, 1.0], [2.0, 3.0]], requires_grad=True)
    masked_softmax(scores, torch.tensor([[False, False], [True, False]])).sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_masked_softmax_works_in_fp32_at_least() -> None:
    present = torch.ones(1, 2, dtype=torch.bool)
    assert masked_softmax(torch.zeros(1, 2, dtype=torch.float16), present).dtype == torch.float32
    assert masked_softmax(torch.zeros(1, 2, dtype=torch.float64), present).dtype == torch.float64


def test_present_mean_divides_by_the_number_present() -> None:
    x = torch.tensor([[[2.0], [4.0], [0.0]], [[0.0], [0.0], [0.0]]])
    present = torch.tensor([[True, True, False], [False, False, False]])
    assert present_mean(x, present).tolist() == [[3.0], [0.0]]


def test_canonical_order_is_sorted_and_weights_come_back_in_the_callers_order() -> None:
    fusion = NamedFusion(("b", "c", "a"), {"a": 1, "b": 2, "c": 3})
    x = {"a": torch.zeros(2, 1), "b": torch.zeros(2, 2), "c": torch.zeros(2, 3)}
    present = torch.tensor([[True, False, False], [False, True, True]])  # columns b, c, a
    inputs, columns, empty = fusion.canonical_inputs(x, present)
    assert [v.shape[1] for v in inputs] == [1, 2, 3]
    assert columns.tolist() == [[False, True, False], [True, False, True]]
    assert not empty.any()
    assert torch.equal(fusion.user_order(columns), present)
    assert fusion.out_dim == 3  # the largest width


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="out_dim must be positive, got 0"):
        SumFusion(("a",), 3, 0)
    with pytest.raises(ValueError, match=r"lacks \['b'\]"):
        SumFusion(("a", "b"), {"a": 3})
    with pytest.raises(ValueError, match="'b' must be positive, got -1"):
        SumFusion(("a", "b"), {"a": 3, "b": -1})
    with pytest.raises(ValueError, match=r"'a' must be \(B, 3\), got \(2, 5\)"):
        SumFusion(("a",), 3)({"a": torch.zeros(2, 5)})
