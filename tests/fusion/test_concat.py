"""ConcatFusion against its formula in plain loops."""

import pytest
import torch
from torch.nn import functional as F

from polyfuse.fusion import ConcatFusion

WIDTHS = {"a": 2, "b": 3, "c": 5}


@pytest.mark.parametrize("missing_tokens", [True, False])
@pytest.mark.parametrize("project", [True, False])
def test_equals_the_formula(missing_tokens: bool, project: bool) -> None:
    torch.manual_seed(0)
    names = ("c", "a", "b")
    fusion = ConcatFusion(names, WIDTHS, 7, missing_tokens=missing_tokens, project=project)
    x = {name: torch.randn(4, width) for name, width in WIDTHS.items()}
    present = torch.tensor([[True, True, True], [True, False, True], [False, False, True], [False, False, False]])
    fused = fusion(x, present).fused
    first, last = fusion.mlp[0], fusion.mlp[-1]
    for row in range(4):
        slots = []
        for name in "abc":
            width = 7 if project else WIDTHS[name]
            if present[row, names.index(name)]:
                value = fusion.project[name](x[name][row]) if project else x[name][row]
                value = (value - value.mean()) / (value.var(correction=0) + 1e-5).sqrt()
            elif missing_tokens:
                value = fusion.token[name].weight[0]
            else:
                value = torch.zeros(width)
            slots.append(value)
        hidden = F.gelu(first.weight @ torch.cat(slots) + first.bias)
        torch.testing.assert_close(fused[row], last.weight @ hidden + last.bias)


def test_sizes_and_dropout() -> None:
    fusion = ConcatFusion(("a", "b"), {"a": 2, "b": 3}, 5, hidden=11, dropout=0.5)
    assert [layer.out_features for layer in fusion.mlp if isinstance(layer, torch.nn.Linear)] == [11, 5]
    assert ConcatFusion(("a", "b"), 3).mlp[0].out_features == 6
    x = {"a": torch.randn(3, 2), "b": torch.randn(3, 3)}
    assert not torch.equal(fusion(x).fused, fusion(x).fused)
    assert torch.equal(fusion.eval()(x).fused, fusion(x).fused)


def test_scale_of_an_embedding_hardly_matters() -> None:
    torch.manual_seed(0)
    fusion = ConcatFusion(("a", "b"), 5).eval()
    for name in "ab":
        torch.nn.init.zeros_(fusion.project[name].bias)
    x = {"a": torch.randn(3, 5), "b": torch.randn(3, 5)}
    torch.testing.assert_close(fusion({**x, "a": 100 * x["a"]}).fused, fusion(x).fused, atol=1e-2, rtol=0)
