"""HybridFusion is the sum of its two terms."""

import torch

from polyfuse.fusion import HybridFusion


def test_is_early_plus_late() -> None:
    torch.manual_seed(0)
    fusion = HybridFusion(("b", "a"), {"a": 3, "b": 5}, 7, missing_tokens=False, reduction="sum").eval()
    x = {"a": torch.randn(4, 3), "b": torch.randn(4, 5)}
    present = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    expected = fusion.early(x, present).fused + fusion.late(x, present).fused
    torch.testing.assert_close(fusion(x, present).fused, expected)
    assert fusion.early.token is None
    assert fusion.late.reduction == "sum"
    torch.testing.assert_close(fusion(x, present).fused[3], fusion.early(x, present).fused[3])  # no late term left
