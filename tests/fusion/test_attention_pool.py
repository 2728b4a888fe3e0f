import pytest
import torch
from torch import Tensor

from polyfuse.fusion.attention_pool import AttentionPoolFusion

NAMES, D, B = ("b", "a", "c"), 6, 5


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(B, D, generator=generator) for name in NAMES}


def test_equals_multihead_attention_over_the_bare_embeddings() -> None:
    torch.manual_seed(0)
    fusion = AttentionPoolFusion(NAMES, D, num_heads=2, project=False, norm=False)
    embeddings = batch()
    present = torch.tensor([[True, False, True]] * B)
    out = fusion(embeddings, present)
    stacked = torch.stack([embeddings[name] for name in NAMES], 1)
    attention = fusion.pool.pool.attention
    query = fusion.pool.query.expand(B, -1, -1)
    fused, weights = attention(query, stacked, stacked, key_padding_mask=~present)
    torch.testing.assert_close(out.fused, fused.squeeze(1))
    torch.testing.assert_close(out.weights, weights.squeeze(1))


def test_projects_unequal_widths_and_empty_rows_give_the_null_token() -> None:
    torch.manual_seed(0)
    widths = {"b": 4, "a": 6, "c": 3}
    fusion = AttentionPoolFusion(NAMES, widths, num_heads=3)
    assert fusion.out_dim == 6
    embeddings = {name: torch.randn(B, width) for name, width in widths.items()}
    present = torch.tensor([[True, True, False]] * (B - 1) + [[False] * 3])
    out = fusion(embeddings, present)
    assert torch.equal(out.fused[-1], fusion.pool.null)
    assert out.info["empty"].tolist() == [False] * (B - 1) + [True]
    assert out.weights is not None
    assert not out.weights[-1].any()
    for name, linear in fusion.project.items():  # type: ignore[union-attr]
        assert linear.in_features == widths[name]


def test_a_single_modality_ignores_the_query() -> None:
    fusion = AttentionPoolFusion(("a",), D)
    out = fusion({"a": torch.randn(B, D)})
    torch.testing.assert_close(out.weights, torch.ones(B, 1))
    out.fused.sum().backward()
    assert fusion.pool.query.grad is not None


def test_project_false_refuses_unequal_widths() -> None:
    with pytest.raises(ValueError, match=r"width out_dim = 6, got \{'a': 4\}"):
        AttentionPoolFusion(("a", "b"), {"a": 4, "b": 6}, project=False)
