"""SumFusion against its formula in plain loops."""

import pytest
import torch

from polyfuse.fusion import SumFusion


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_equals_the_formula(reduction: str) -> None:
    torch.manual_seed(0)
    fusion = SumFusion(("b", "a"), {"a": 3, "b": 5}, 7, reduction=reduction)
    x = {"a": torch.randn(4, 3), "b": torch.randn(4, 5)}
    present = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    fused = fusion(x, present).fused
    for row in range(4):
        terms = [fusion.project[n](x[n][row]) for m, n in enumerate(("b", "a")) if present[row, m]]
        expected = sum(terms, torch.zeros(7)) / (max(len(terms), 1) if reduction == "mean" else 1)
        torch.testing.assert_close(fused[row], expected)


def test_unknown_reduction() -> None:
    with pytest.raises(ValueError, match="'max'"):
        SumFusion(("a",), 3, reduction="max")
