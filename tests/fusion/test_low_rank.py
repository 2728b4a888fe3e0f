"""LowRankFusion equals the full tensor it factorises."""

import pytest
import torch

from polyfuse.fusion import LowRankFusion

WIDTHS = {"a": 2, "b": 3, "c": 5}


def factors(fusion: LowRankFusion, name: str) -> torch.Tensor:
    """``(R, H, D + 1)``, the last column for the constant 1."""
    layer = fusion.factor[name]
    both = torch.cat([layer.weight, layer.bias[:, None]], dim=1)
    return both.unflatten(0, (fusion.out_dim, fusion.rank)).transpose(0, 1)


def test_equals_the_full_tensor() -> None:
    torch.manual_seed(0)
    fusion = LowRankFusion(("c", "a", "b"), WIDTHS, 7, rank=3, dtype=torch.float64)
    torch.nn.init.normal_(fusion.bias.weight)
    x = {name: torch.randn(4, width, dtype=torch.float64) for name, width in WIDTHS.items()}
    a, b, c = (factors(fusion, name) for name in "abc")
    tensor = torch.einsum("r,rhi,rhj,rhk->hijk", fusion.mix.weight[0], a, b, c)
    z = [torch.cat([x[name], torch.ones(4, 1, dtype=torch.float64)], dim=1) for name in "abc"]
    expected = torch.einsum("hijk,ni,nj,nk->nh", tensor, *z) + fusion.bias.weight[0]
    torch.testing.assert_close(fusion(x).fused, expected)


def test_absent_modality_is_the_factor_one() -> None:
    torch.manual_seed(0)
    fusion = LowRankFusion(("a", "b", "c"), WIDTHS, 7, rank=3)
    x = {name: torch.randn(2, width) for name, width in WIDTHS.items()}
    fused = fusion(x, torch.tensor([[True, False, True], [False, False, False]])).fused
    z = {name: torch.cat([x[name][0], torch.ones(1)]) for name in "ac"}
    product = torch.stack([factors(fusion, name) @ z[name] for name in "ac"]).prod(dim=0)  # (R, H)
    torch.testing.assert_close(fused[0], fusion.mix.weight[0] @ product)
    torch.testing.assert_close(fused[1], fusion.mix.weight.sum().expand(7))


def test_every_factor_is_registered() -> None:
    fusion = LowRankFusion(("a", "b", "c"), WIDTHS, 7, rank=3)
    assert sum(p.numel() for p in fusion.factor.parameters()) == 3 * 7 * (2 + 3 + 5 + 3)


def test_product_of_many_modalities_neither_vanishes_nor_explodes() -> None:
    torch.manual_seed(0)
    names = tuple(f"m{i}" for i in range(16))
    fusion = LowRankFusion(names, 32)
    torch.nn.init.constant_(fusion.mix.weight, 1 / fusion.rank)
    fused = fusion({name: torch.randn(64, 32) for name in names}).fused
    assert 0.3 < fused.std() < 30


def test_rank_must_be_positive() -> None:
    with pytest.raises(ValueError, match="rank must be positive, got 0"):
        LowRankFusion(("a",), 3, rank=0)
