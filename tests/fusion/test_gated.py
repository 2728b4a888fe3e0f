"""GatedFusion against the GMU formula in plain loops."""

import pytest
import torch

from polyfuse.fusion import GatedFusion


@pytest.mark.parametrize("per_feature", [True, False])
def test_equals_the_formula(per_feature: bool) -> None:
    torch.manual_seed(0)
    names = ("c", "a", "b")
    fusion = GatedFusion(names, {"a": 2, "b": 3, "c": 5}, 7, per_feature=per_feature)
    x = {"a": torch.randn(4, 2), "b": torch.randn(4, 3), "c": torch.randn(4, 5)}
    present = torch.tensor([[True, True, True], [True, False, True], [False, False, True], [False, False, False]])
    out = fusion(x, present)
    for row in range(4):
        here = [name for m, name in enumerate(names) if present[row, m]]
        everything = torch.cat([x[name][row] if name in here else torch.zeros_like(x[name][row]) for name in "abc"])
        fused, weights = torch.zeros(7), torch.zeros(3)
        total = sum(fusion.gate[name](everything).exp() for name in here)
        for name in here:
            share = fusion.gate[name](everything).exp() / total
            fused += share * torch.tanh(fusion.project[name](x[name][row]))
            weights[names.index(name)] = share.mean()
        torch.testing.assert_close(out.fused[row], fused)
        torch.testing.assert_close(out.weights[row], weights)


def test_two_modalities_give_the_tied_gate_of_the_paper() -> None:
    torch.manual_seed(0)
    fusion = GatedFusion(("a", "b"), 3)
    x = {"a": torch.randn(4, 3), "b": torch.randn(4, 3)}
    both = torch.cat([x["a"], x["b"]], dim=1)
    z = torch.sigmoid(fusion.gate["a"](both) - fusion.gate["b"](both))
    expected = z * torch.tanh(fusion.project["a"](x["a"])) + (1 - z) * torch.tanh(fusion.project["b"](x["b"]))
    torch.testing.assert_close(fusion(x).fused, expected)
