"""The pool equals ``nn.MultiheadAttention`` with the same parameters: outputs, weights and all gradients."""

import pytest
import torch
from torch import Tensor, nn

from polyfuse.layers import MultimodalAttentionPool, pooling
from polyfuse.layers.masks import is_shared

B, D = 7, 30


def build(heads: int, dtype: torch.dtype, bias: bool = True) -> MultimodalAttentionPool:
    torch.manual_seed(heads)
    pool = MultimodalAttentionPool(D, heads, bias=bias, dtype=dtype)
    for name, parameter in pool.attention.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    return pool


def compare(pool: MultimodalAttentionPool, query: Tensor, features: Tensor, present: Tensor | None, tol: float) -> None:
    leaves = [query.requires_grad_(), features.requires_grad_(), *pool.attention.parameters()]
    padding = None if present is None else ~present
    expanded = query.expand(features.shape[0], -1, -1)
    expected, weights = pool.attention(expanded, features, features, key_padding_mask=padding)
    direction = torch.randn(expected.shape, dtype=expected.dtype, generator=torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad((expected * direction).sum(), leaves)
    for need in (False, True):
        result = pool(query, features, present=present, return_info=need)
        output = result[0] if need else result
        torch.testing.assert_close(output, expected, rtol=tol, atol=tol)
        if need:
            torch.testing.assert_close(result[1]["attention_weights"], weights, rtol=tol, atol=tol)
        found = torch.autograd.grad((output * direction).sum(), leaves)
        for a, b in zip(found, gradients, strict=True):
            # one reduction over the batch in another order: relative to the largest entry
            torch.testing.assert_close(a, b, rtol=tol, atol=tol * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("heads", [1, 5])
@pytest.mark.parametrize("queries", ["batch 1", "expanded", "per row", "four per row"])
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("keys", [1, 3, 8])
def test_outputs_and_gradients(
    dtype: torch.dtype, tol: float, heads: int, queries: str, holes: bool, keys: int
) -> None:
    generator = torch.Generator().manual_seed(keys)
    positions = 4 if queries == "four per row" else 1
    batch = 1 if queries in ("batch 1", "expanded") else B
    query = torch.randn(batch, positions, D, dtype=dtype, generator=generator)
    features = torch.randn(B, keys, D, dtype=dtype, generator=generator)
    present = torch.rand(B, keys, generator=generator) < 0.6
    present[torch.arange(B), torch.arange(B) % keys] = True
    pool = build(heads, dtype)
    if queries == "expanded":
        assert is_shared(query.expand(B, -1, -1), None, None)
        parameter = query.requires_grad_()
        output = pool(parameter.expand(B, -1, -1), features)
        torch.testing.assert_close(output, pool(parameter, features), rtol=0, atol=0)
    compare(pool, query, features, present if holes else None, tol)


@pytest.mark.parametrize("queries", [1, 4])
def test_without_biases(queries: int) -> None:
    pool = build(5, torch.float64, bias=False)
    query = torch.randn(1 if queries == 1 else B, queries, D, dtype=torch.float64)
    compare(pool, query, torch.randn(B, 3, D, dtype=torch.float64), None, 1e-10)


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_value_of_its_own(batch_first: bool) -> None:
    torch.manual_seed(0)
    pool = MultimodalAttentionPool(D, 5, batch_first=batch_first, dtype=torch.float64)
    query, key, value = (torch.randn(B, n, D, dtype=torch.float64) for n in (4, 3, 3))
    if not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    expected, weights = pool.attention(query, key, value)
    output, info = pool(query, key, value, return_info=True)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(info["attention_weights"], weights)
    torch.testing.assert_close(pool(query, key, value), expected)


def test_what_counts_as_a_shared_query() -> None:
    row = torch.zeros(1, 1, D)
    shared, no_mask = row.expand(B, -1, -1), None
    assert is_shared(row, None, no_mask)
    assert is_shared(shared, None, no_mask)
    assert not is_shared(shared.contiguous(), None, no_mask)
    assert not is_shared(row.expand(B, 2, -1), None, no_mask)  # two positions
    assert not is_shared(shared, torch.zeros(B, 3, D), no_mask)  # other values
    assert not is_shared(shared, None, torch.zeros(1, 3))  # an attention mask


def test_shared_and_general_path_agree() -> None:
    pool = build(5, torch.float64)
    query, features = torch.randn(1, 1, D, dtype=torch.float64), torch.randn(B, 3, D, dtype=torch.float64)
    present = torch.rand(B, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    present[[1, 4]] = False
    copied = query.expand(B, -1, -1).contiguous()
    for need in (False, True):
        one, two = (pool(q, features, present=present, return_info=need) for q in (query, copied))
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("tracked", [False, True])
def test_zeroing_absent_slots(dtype: torch.dtype, tracked: bool) -> None:
    present = torch.tensor([[True, False, True], [False, True, True]])
    x = torch.randn(2, D, 3).to(dtype).transpose(1, 2)  # not contiguous
    x[0, 1], x[1, 0], x[1, 2, 0] = float("nan"), float("-inf"), float("nan")
    expected = x.masked_fill(~present[..., None], 0.0)
    found = pooling.zero_absent(x.requires_grad_(tracked), present)
    assert found.requires_grad == tracked
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("holes", [False, True])
def test_blocks_of_rows_change_nothing(holes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = build(5, torch.float64)
    features = torch.randn(23, 3, D, dtype=torch.float64)
    present = torch.rand(23, 3, generator=torch.Generator().manual_seed(0)) < 0.5 if holes else None
    drop = torch.rand(23, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    query = torch.randn(1, 1, D, dtype=torch.float64)
    expected = [pool(query, features, present=present, drop=d) for d in (None, drop)]  # with gradients: in one block
    blocks = []
    inner = pooling.fold_query
    monkeypatch.setattr(pooling, "fold_query", lambda q, x, *rest: blocks.append(len(x)) or inner(q, x, *rest))
    monkeypatch.setattr(pooling, "_BLOCK", 7 * 5 * D)
    with torch.no_grad():
        found = [pool(query, features, present=present, drop=d) for d in (None, drop)]
    assert blocks == [7, 7, 7, 2] * 2
    torch.testing.assert_close(found, expected)


def test_second_derivatives_of_the_shared_path() -> None:
    pool = build(2, torch.float64)
    query = torch.randn(1, 1, D, dtype=torch.float64, requires_grad=True)
    features = torch.randn(2, 3, D, dtype=torch.float64, requires_grad=True)
    present = torch.tensor([[True, True, False], [True, False, True]])
    assert torch.autograd.gradcheck(lambda q, x: pool(q, x, present=present), (query, features), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda q, x: pool(q, x, present=present), (query, features), fast_mode=True)


@pytest.mark.parametrize("queries", [None, 4])
@pytest.mark.parametrize("heads", [1, 5])
def test_autocast_keeps_statistics_in_float32(queries: int | None, heads: int) -> None:
    pool = build(heads, torch.float32)
    query = torch.randn(1 if queries is None else B, queries or 1, D)
    features = torch.randn(B, 3, D, requires_grad=True)
    present = torch.rand(B, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    with torch.autocast("cpu", torch.bfloat16):
        output, info = pool(query, features, present=present, return_info=True)
        plain = pool(query, features, present=present)
    assert output.dtype == plain.dtype == torch.bfloat16
    assert info["attention_weights"].dtype == torch.float32
    torch.testing.assert_close(output, plain, rtol=3e-2, atol=3e-2)
    torch.testing.assert_close(output.float(), pool(query, features, present=present), rtol=5e-2, atol=5e-2)
    (output.float().square().sum() + plain.float().square().sum()).backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_large_products_stay_in_the_range_of_float16() -> None:
    """81 * 1024 is beyond float16; scaled by 1 / 32 it is not."""
    query = torch.full((1, 4, 1024), 9.0, dtype=torch.float16)
    scores = pooling.scores_of(pooling.project(query, query, None, pooling.PoolWeights(), 1))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.full((1, 1, 4, 4), 81.0 * 32))
