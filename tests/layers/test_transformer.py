"""Transformer layers: torch's encoder and decoder layers, transformers' LXMERT layer and plain formulas as oracles."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from polyfuse.layers import Attention, CoAttentionLayer, FeedForward, TransformerLayer
from polyfuse.layers.key_value_cache import KeyValueCache
from polyfuse.layers.transformer import ACTIVATIONS, LayerCache

B, T, K, H, D, F = 3, 5, 7, 2, 22, 13
T_MASK = torch.arange(T) < torch.tensor([5, 3, 1])[:, None]
K_MASK = torch.arange(K) < torch.tensor([2, 7, 4])[:, None]


def streams(*shapes: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def copy_attention(theirs: nn.MultiheadAttention, ours: Attention) -> None:
    with torch.no_grad():
        if ours.context_dim is None:
            theirs.in_proj_weight.copy_(ours.qkv.weight)
            theirs.in_proj_bias.copy_(ours.qkv.bias)
        else:  # one matrix, as long as the context is as wide as the stream
            theirs.in_proj_weight.copy_(torch.cat((ours.query.weight, ours.key_value.weight)))
            theirs.in_proj_bias.copy_(torch.cat((ours.query.bias, ours.key_value.bias)))
        theirs.out_proj.load_state_dict(ours.out.state_dict())


def randomised(module: nn.Module) -> nn.Module:
    """Norms that are not the identity, so that one in the wrong place shows."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return module


def assert_same_gradients(pairs: list[tuple[Tensor, Tensor]], x: list[Tensor]) -> None:
    torch.manual_seed(7)
    upstream = [torch.randn_like(mine) for mine, _ in pairs]
    found = []
    for side in (0, 1):
        total = sum((pair[side] * up).sum() for pair, up in zip(pairs, upstream, strict=True))
        assert isinstance(total, Tensor)
        found.append(torch.autograd.grad(total, x, retain_graph=True))
    for mine, theirs in zip(*found, strict=True):
        assert mine.any()
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("causal", [False, True])
def test_encoder_layer_equals_torch(norm_first: bool, activation: str, causal: bool) -> None:
    (x,) = streams((B, T, D))
    ours = TransformerLayer(D, H, F, norm_first=norm_first, activation=activation, eps=1e-3, dtype=torch.float64)
    randomised(ours)
    theirs = nn.TransformerEncoderLayer(
        D, H, F, 0.0, activation, 1e-3, batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    copy_attention(theirs.self_attn, ours.attention)  # type: ignore[arg-type]
    for mine, other in (
        ("attention_norm", "norm1"),
        ("mlp_norm", "norm2"),
        ("mlp.up", "linear1"),
        ("mlp.down", "linear2"),
    ):
        getattr(theirs, other).load_state_dict(ours.get_submodule(mine).state_dict())
    out = ours(x, T_MASK, causal=causal)
    earlier = torch.ones(T, T, dtype=torch.bool).triu(1) if causal else None
    expected = theirs(x, src_mask=earlier, src_key_padding_mask=~T_MASK)
    torch.testing.assert_close(out, expected)
    assert_same_gradients([(out, expected)], [x])


@pytest.mark.parametrize("norm_first", [False, True])
def test_decoder_layer_equals_torch(norm_first: bool) -> None:
    x, context = streams((B, T, D), (B, K, D))
    ours = TransformerLayer(D, H, F, context_dim=D, norm_first=norm_first, dtype=torch.float64)
    randomised(ours)
    theirs = nn.TransformerDecoderLayer(
        D, H, F, 0.0, "gelu", batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    copy_attention(theirs.self_attn, ours.attention)  # type: ignore[arg-type]
    copy_attention(theirs.multihead_attn, ours.context_attention)  # type: ignore[arg-type]
    names = {
        "attention_norm": "norm1",
        "context_norm": "norm2",
        "mlp_norm": "norm3",
        "mlp.up": "linear1",
        "mlp.down": "linear2",
    }
    for mine, other in names.items():
        getattr(theirs, other).load_state_dict(ours.get_submodule(mine).state_dict())
    out = ours(x, T_MASK, context=context, context_mask=K_MASK, causal=True)
    expected = theirs(
        x,
        context,
        tgt_mask=torch.ones(T, T, dtype=torch.bool).triu(1),
        tgt_key_padding_mask=~T_MASK,
        memory_key_padding_mask=~K_MASK,
    )
    torch.testing.assert_close(out, expected)
    assert_same_gradients([(out, expected)], [x, context])


def test_decoding_with_a_cache_equals_the_whole() -> None:
    x, context = streams((B, T, D), (B, K, D))
    layer = TransformerLayer(D, H, F, context_dim=D, dtype=torch.float64)
    whole = layer(x, context=context, context_mask=K_MASK, causal=True)
    cache = LayerCache(KeyValueCache(T), KeyValueCache())
    steps = [
        layer(x[:, t : t + 1], context=None if t else context, context_mask=K_MASK, causal=True, cache=cache)
        for t in range(T)
    ]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)


def test_a_layer_may_read_the_context_only() -> None:
    x, context = streams((B, T, D), (B, K, 26))
    layer = TransformerLayer(D, H, F, context_dim=26, self_attention=False, dtype=torch.float64)
    assert not any("attention.qkv" in name for name, _ in layer.named_parameters())
    out = layer(x, context=context, context_mask=K_MASK)
    alone = layer(x[:, 2:3], context=context, context_mask=K_MASK)  # tokens do not see each other
    torch.testing.assert_close(out[:, 2:3], alone)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_co_attention_layer_equals_the_formula(norm_first: bool, shared: bool) -> None:
    dims = (D, D) if shared else (D, 26)
    first, second = streams((B, T, dims[0]), (B, K, dims[1]))
    layer = CoAttentionLayer(dims, H, (F, 11), norm_first=norm_first, shared=shared, dtype=torch.float64)
    randomised(layer)
    out = layer(first, second, T_MASK, K_MASK)
    norm = (layer.co_norm[0], layer.co_norm[-1])
    x = (first, second)
    inside = [norm[i](x[i]) if norm_first else x[i] for i in (0, 1)]
    read = layer.co_attention(*inside, first_mask=T_MASK, second_mask=K_MASK)
    for i in (0, 1):
        mlp: Callable[[Tensor], Tensor] = layer.mlp[i]  # type: ignore[assignment]
        if norm_first:
            middle = x[i] + read[i]
            expected = middle + mlp(layer.mlp_norm[i](middle))
        else:
            middle = norm[i](x[i] + read[i])
            expected = layer.mlp_norm[i](middle + mlp(middle))
        torch.testing.assert_close(out[i], expected)


def lxmert_twin() -> tuple[CoAttentionLayer, nn.Module]:
    lxmert = pytest.importorskip("transformers.models.lxmert.modeling_lxmert")
    from transformers import LxmertConfig

    torch.manual_seed(3)
    config = LxmertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=48)
    theirs = randomised(lxmert.LxmertXLayer(config).double()).eval()
    ours = CoAttentionLayer((32, 32), 4, (48, 48), shared=True, self_attention=True, eps=1e-12, dtype=torch.float64)
    state = theirs.state_dict()

    def fill(layer: nn.Module, *names: str) -> None:
        for kind in ("weight", "bias"):
            getattr(layer, kind).data.copy_(torch.cat([state[f"{name}.{kind}"] for name in names]))

    def stacked(prefix: str) -> list[str]:
        return [f"{prefix}.{name}" for name in ("query", "key", "value")]

    fill(ours.co_attention.qkv[0], *stacked("visual_attention.att"))
    fill(ours.co_attention.out[0], "visual_attention.output.dense")
    fill(ours.co_norm[0], "visual_attention.output.LayerNorm")
    for stream, name in zip(ours.streams, ("lang", "visn"), strict=True):
        fill(stream.get_submodule("attention.qkv"), *stacked(f"{name}_self_att.self"))
        fill(stream.get_submodule("attention.out"), f"{name}_self_att.output.dense")
        fill(stream.get_submodule("attention_norm"), f"{name}_self_att.output.LayerNorm")
        fill(stream.get_submodule("mlp.up"), f"{name}_inter.dense")
        fill(stream.get_submodule("mlp.down"), f"{name}_output.dense")
        fill(stream.get_submodule("mlp_norm"), f"{name}_output.LayerNorm")
    return ours.eval(), theirs


def test_shared_co_attention_is_the_lxmert_layer() -> None:
    """One cross-attention for both directions: 4,288 parameters, its norm included."""
    ours, theirs = lxmert_twin()
    cross = [*ours.co_attention.parameters(), *ours.co_norm.parameters()]
    assert sum(parameter.numel() for parameter in cross) == 4288
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    text, image = streams((B, T, 32), (B, K, 32))
    lowest = torch.finfo(torch.float64).min
    added = [(~mask).double()[:, None, None] * lowest for mask in (T_MASK, K_MASK)]
    out, expected = ours(text, image, T_MASK, K_MASK), theirs(text, added[0], image, added[1])
    pairs = list(zip(out, expected, strict=True))
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, atol=1e-10, rtol=1e-10)
    assert_same_gradients(pairs, [text, image])
    shared = {
        "co_attention.qkv.0.weight": "visual_attention.att",
        "co_attention.out.0.weight": "visual_attention.output",
    }
    total = [sum((side * side).sum() for side in sides) for sides in (out, expected)]
    mine_by = dict(zip(shared, torch.autograd.grad(total[0], [ours.get_parameter(n) for n in shared]), strict=True))  # type: ignore[arg-type]
    names = [f"visual_attention.att.{n}.weight" for n in ("query", "key", "value")]
    names.append("visual_attention.output.dense.weight")
    theirs_by = torch.autograd.grad(total[1], [theirs.get_parameter(n) for n in names])  # type: ignore[arg-type]
    torch.testing.assert_close(mine_by["co_attention.qkv.0.weight"], torch.cat(theirs_by[:3]))
    torch.testing.assert_close(mine_by["co_attention.out.0.weight"], theirs_by[3])


def test_activations() -> None:
    x = torch.linspace(-3, 3, 11, dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS["gelu"](x), x * 0.5 * (1 + torch.erf(x / 2**0.5)))
    torch.testing.assert_close(ACTIVATIONS["quick_gelu"](x), x / (1 + torch.exp(-1.702 * x)))
    inner = (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)
    torch.testing.assert_close(ACTIVATIONS["gelu_tanh"](x), 0.5 * x * (1 + torch.tanh(inner)))
    torch.testing.assert_close(ACTIVATIONS["silu"](x), x / (1 + torch.exp(-x)))


@pytest.mark.parametrize("norm_first", [False, True])
def test_dropout_falls_on_what_every_part_adds(norm_first: bool) -> None:
    """Everything dropped: the stream passes as it is (normalised where norms come after)."""
    (x,) = streams((B, T, D))
    layer = TransformerLayer(D, H, F, norm_first=norm_first, dropout=1.0, dtype=torch.float64)
    kept = x if norm_first else layer.mlp_norm(layer.attention_norm(x))
    torch.testing.assert_close(layer(x), kept)
    assert not torch.equal(layer.eval()(x), kept)
    co = CoAttentionLayer((D, D), H, norm_first=norm_first, dropout=1.0, dtype=torch.float64)
    for out in co(x, x):
        torch.testing.assert_close(out, x if norm_first else co.mlp_norm[0](co.co_norm[0](x)))


def test_every_parameter_trains() -> None:
    torch.manual_seed(0)
    x, context = torch.randn(B, T, D), torch.randn(B, K, D)
    for shared in (False, True):
        for self_attention in (False, True):
            co = CoAttentionLayer((D, D), H, shared=shared, self_attention=self_attention)
            sum(out.square().sum() * (i + 1) for i, out in enumerate(co(x, context))).backward()  # type: ignore[union-attr]
            assert all(parameter.grad is not None for parameter in co.parameters())
    layer = TransformerLayer(D, H, context_dim=D)
    layer(x, context=context).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("training", [False, True])
def test_compiles_whole(training: bool) -> None:
    torch.manual_seed(0)
    layer = TransformerLayer(D, H, context_dim=D).train(training)
    co = CoAttentionLayer((D, D), H, shared=True, self_attention=True).train(training)

    def both(x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        return co(layer(x, T_MASK, context=context, context_mask=K_MASK), context, T_MASK, K_MASK)

    x, context = torch.randn(B, T, D), torch.randn(B, K, D)
    found = torch.compile(both, fullgraph=True, backend="aot_eager")(x, context)
    for mine, expected in zip(found, both(x, context), strict=True):
        torch.testing.assert_close(mine, expected)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="without self_attention needs a context_dim"):
        TransformerLayer(D, H, self_attention=False)
    with pytest.raises(ValueError, match=r"activation must be one of gelu, .*, got 'gelo'"):
        FeedForward(D, F, activation="gelo")
