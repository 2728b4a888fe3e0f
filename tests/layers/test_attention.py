"""Attention: torch.nn.MultiheadAttention and plain loops as oracles, masks, precisions, compilation."""

import math

import pytest
import torch
from torch import Tensor, nn

from polyfuse.layers import Attention, CoAttention
from polyfuse.layers.attention import attend
from polyfuse.layers.key_value_cache import KeyValueCache

B, Q, K, H, D, C = 3, 5, 7, 2, 22, 26  # sizes without a common factor where the layer allows it


def twin(layer: Attention, dim: int, context_dim: int | None = None) -> nn.MultiheadAttention:
    """torch's layer with our weights."""
    theirs = nn.MultiheadAttention(
        dim, layer.num_heads, batch_first=True, kdim=context_dim, vdim=context_dim, dtype=torch.float64
    )
    with torch.no_grad():
        if context_dim is None:
            theirs.in_proj_weight.copy_(layer.qkv.weight)
            theirs.in_proj_bias.copy_(layer.qkv.bias)
        else:
            key, value = layer.key_value.weight.chunk(2)
            theirs.q_proj_weight.copy_(layer.query.weight)
            theirs.k_proj_weight.copy_(key)
            theirs.v_proj_weight.copy_(value)
            theirs.in_proj_bias.copy_(torch.cat((layer.query.bias, layer.key_value.bias)))
        theirs.out_proj.load_state_dict(layer.out.state_dict())
    return theirs


def streams(*shapes: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def lengths(*counts: int, most: int) -> Tensor:
    return torch.arange(most) < torch.tensor(counts)[:, None]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_self_attention_equals_torch(masked: bool, causal: bool) -> None:
    x, upstream = streams((B, K, D), (B, K, D))
    mask = lengths(7, 3, 1, most=K) if masked else None
    layer = Attention(D, H, dtype=torch.float64)
    theirs = twin(layer, D)
    out = layer(x, mask=mask, causal=causal)
    expected, weights = theirs(
        x,
        x,
        x,
        key_padding_mask=None if mask is None else ~mask,  # theirs: True = ignore
        attn_mask=torch.ones(K, K, dtype=torch.bool).triu(1) if causal else None,
        average_attn_weights=False,
    )
    torch.testing.assert_close(out, expected)
    grads = torch.autograd.grad((out * upstream).sum(), [x, *layer.parameters()])
    wanted = torch.autograd.grad((expected * upstream).sum(), [x, *theirs.parameters()])
    for mine, other in zip(grads, wanted, strict=True):
        torch.testing.assert_close(mine, other)
    from polyfuse.layers import capture_attention

    with capture_attention(layer) as maps:
        layer(x, mask=mask, causal=causal)
    torch.testing.assert_close(maps[""], weights.detach())


@pytest.mark.parametrize("masked", [False, True])
def test_attention_to_a_context_equals_torch(masked: bool) -> None:
    x, context, upstream = streams((B, Q, D), (B, K, C), (B, Q, D))
    mask = lengths(7, 3, 1, most=K) if masked else None
    layer = Attention(D, H, context_dim=C, dtype=torch.float64)
    theirs = twin(layer, D, C)
    out = layer(x, context, mask=mask)
    expected, _ = theirs(x, context, context, key_padding_mask=None if mask is None else ~mask)
    torch.testing.assert_close(out, expected)
    grads = torch.autograd.grad((out * upstream).sum(), [x, context])
    wanted = torch.autograd.grad((expected * upstream).sum(), [x, context])
    for mine, other in zip(grads, wanted, strict=True):
        torch.testing.assert_close(mine, other)


def plain(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    """softmax(q k / sqrt(d)) v, one number at a time: ``(H, Q, d)``, ``allowed (Q, K)``."""
    out = torch.zeros(*query.shape[:2], value.shape[-1], dtype=query.dtype)
    for h in range(query.shape[0]):
        for i in range(query.shape[1]):
            keys = [j for j in range(key.shape[1]) if allowed[i, j]]
            scores = [float(query[h, i].detach() @ key[h, j].detach()) / math.sqrt(query.shape[-1]) for j in keys]
            total = sum(math.exp(s - max(scores)) for s in scores)
            for j, s in zip(keys, scores, strict=True):
                out[h, i] += math.exp(s - max(scores)) / total * value[h, j]
    return out


@pytest.mark.parametrize("causal", [False, True])
def test_attend_with_a_mask_per_query_equals_plain_loops(causal: bool) -> None:
    torch.manual_seed(1)
    query, key, value = (torch.randn(B, H, n, d, dtype=torch.float64) for n, d in ((Q, 11), (K, 11), (K, 13)))
    mask = torch.rand(B, Q, K) < 0.6
    out = attend(nn.Identity(), query, key, value, mask_BK=mask, causal=causal)
    assert out.shape == (B, Q, H * 13)
    for b in range(B):
        allowed = mask[b] & (torch.ones(Q, K, dtype=torch.bool).tril(K - Q) if causal else True)
        expected = plain(query[b], key[b], value[b], allowed)
        torch.testing.assert_close(out[b].unflatten(-1, (H, 13)).transpose(0, 1), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_row_that_may_see_nothing_reads_zeros_and_gives_no_gradient(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = Attention(D, H, context_dim=C, dtype=dtype)
    x = torch.randn(2, Q, D, dtype=dtype, requires_grad=True)
    context = torch.randn(2, K, C, dtype=dtype, requires_grad=True)
    out = layer(x, context, mask=lengths(0, 3, most=K))
    torch.testing.assert_close(out[0], layer.out.bias.expand(Q, D))
    assert out.isfinite().all()
    out.float().square().sum().backward()
    for grad in (x.grad, context.grad):
        assert grad is not None
        assert grad.isfinite().all()
        assert not grad[0].any()
        assert grad[1].any()
    assert not context.grad[1, 3:].any()  # type: ignore[index]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_half_precision_is_near(dtype: torch.dtype, tolerance: float) -> None:
    (x,) = streams((B, K, D))
    layer = Attention(D, H, dtype=torch.float64)
    mask = lengths(7, 3, 1, most=K)
    expected = layer(x, mask=mask)
    out = layer.to(dtype)(x.to(dtype), mask=mask)
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("shared", [False, True])
def test_co_attention_equals_plain_loops(shared: bool) -> None:
    dims = (D, D) if shared else (D, C)
    first, second = streams((B, Q, dims[0]), (B, K, dims[1]))
    masks = (lengths(5, 2, 4, most=Q), lengths(7, 3, 1, most=K))
    layer = CoAttention(dims, H, inner_dim=14, shared=shared, dtype=torch.float64)
    out = layer(first, second, first_mask=masks[0], second_mask=masks[1])
    for reader, (x, context) in enumerate(((first, second), (second, first))):
        read, answer, out_layer = (
            (layer.qkv[0], layer.qkv[0], layer.out[0])
            if shared
            else (layer.qkv[reader], layer.qkv[1 - reader], layer.out[reader])
        )
        query = read(x)[..., :14].unflatten(-1, (H, 7)).transpose(1, 2)
        key, value = (part.unflatten(-1, (H, 7)).transpose(1, 2) for part in answer(context)[..., 14:].chunk(2, -1))
        for b in range(B):
            allowed = masks[1 - reader][b].expand(x.shape[1], -1)
            expected = out_layer(plain(query[b], key[b], value[b], allowed).transpose(0, 1).flatten(1))
            torch.testing.assert_close(out[reader][b], expected)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_cached_equals_uncached(causal: bool, masked: bool) -> None:
    """Token by token, in two chunks, or all at once."""
    (x,) = streams((B, K, D))
    layer = Attention(D, H, dtype=torch.float64)
    mask = lengths(7, 3, 1, most=K) if masked else None
    whole = layer(x, mask=mask, causal=True)
    cache = KeyValueCache(K)
    steps = [
        layer(x[:, t : t + 1], mask=None if mask is None else mask[:, : t + 1], causal=causal, cache=cache)
        for t in range(K)
    ]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)
    cache = KeyValueCache(K)
    parts = [
        layer(x[:, a:b], mask=None if mask is None else mask[:, :b], causal=True, cache=cache)
        for a, b in ((0, 4), (4, K))
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_a_context_is_projected_once() -> None:
    x, context = streams((B, Q, D), (B, K, C))
    layer = Attention(D, H, context_dim=C, dtype=torch.float64)
    whole = layer(x, context)
    cache = KeyValueCache()
    first = layer(x[:, :1], context, cache=cache)
    rest = [layer(x[:, t : t + 1], cache=cache) for t in range(1, Q)]
    torch.testing.assert_close(torch.cat([first, *rest], dim=1), whole)
    assert cache.length == K


class _Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own = Attention(D, H, dropout=0.1)
        self.read = Attention(D, H, context_dim=C)
        self.co = CoAttention((D, C), H)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.own(x, causal=True)
        return self.co(self.read(x, context, mask=mask), context, second_mask=mask)


@pytest.mark.parametrize("training", [False, True])
def test_compiles_whole(training: bool) -> None:
    torch.manual_seed(0)
    model = _Both().train(training)
    model.own.dropout = 0.0
    x, context, mask = torch.randn(B, Q, D), torch.randn(B, K, C), lengths(7, 3, 0, most=K)
    out = torch.compile(model, fullgraph=True, backend="aot_eager")(x, context, mask)
    for mine, expected in zip(out, model(x, context, mask), strict=True):
        torch.testing.assert_close(mine, expected)


def test_exports_with_any_batch() -> None:
    torch.manual_seed(0)
    model = _Both().eval()
    sizes = {0: torch.export.Dim("batch", min=2, max=16)}
    arguments = (torch.randn(B, Q, D), torch.randn(B, K, C), lengths(7, 3, 0, most=K))
    program = torch.export.export(model, arguments, dynamic_shapes=(sizes, sizes, sizes)).module()
    other = (torch.randn(2, Q, D), torch.randn(2, K, C), lengths(1, 6, most=K))
    for mine, expected in zip(program(*other), model(*other), strict=True):
        torch.testing.assert_close(mine, expected)


def test_dropout_falls_on_the_weights_in_training_only() -> None:
    torch.manual_seed(0)
    layer, x = Attention(D, H, dropout=0.5), torch.randn(B, K, D)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_refusals() -> None:
    x, context = torch.zeros(B, Q, D), torch.zeros(B, K, C)
    with pytest.raises(ValueError, match="num_heads must divide the width 22, got 5"):
        Attention(D, 5)
    with pytest.raises(ValueError, match="self-attention takes no context"):
        Attention(D, H)(x, context)
    with pytest.raises(ValueError, match="context_dim = 26 needs a context, got None"):
        Attention(D, H, context_dim=C)(x)
    with pytest.raises(ValueError, match="streams of one width, got 22 and 26"):
        CoAttention((D, C), H, shared=True)
