"""Maps on request: true weights, by name, and nothing at all when nobody asks."""

import pytest
import torch
from torch import Tensor, nn

from polyfuse.layers import Attention, CoAttention, TransformerLayer, attention_maps, capture_attention
from polyfuse.layers.attention import split_qkv

B, T, K, D, H = 3, 5, 7, 22, 2
MASK = torch.arange(T) < torch.tensor([5, 3, 0])[:, None]


def stack(**options: object) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(TransformerLayer(D, H, 13, **options) for _ in range(2))).double().eval()  # type: ignore[arg-type]


def run(model: nn.Sequential, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    for layer in model:
        x = layer(x, mask, causal=causal)
    return x


@pytest.mark.parametrize("causal", [False, True])
def test_maps_are_the_weights(causal: bool) -> None:
    """Rows sum to 1 (0 where nothing may be seen), masked keys are exactly 0, and maps times values give the output."""
    model, x = stack(), torch.randn(B, T, D, dtype=torch.float64)
    with capture_attention(model) as maps:
        watched = run(model, x, MASK, causal)
    assert list(maps) == ["0.attention", "1.attention"]
    torch.testing.assert_close(watched, run(model, x, MASK, causal))
    for weights in maps.values():
        assert weights.shape == (B, H, T, T)
        assert not weights.requires_grad
        wanted = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)[:, None, None].expand(B, H, T)
        torch.testing.assert_close(weights.sum(dim=-1), wanted)
        assert not weights[1, :, :, 3:].any()
        assert not (weights.triu(1).any() if causal else False)
        assert weights[0, :, -1].all()
    layer = model[0]
    _, _, value = split_qkv(layer.attention.qkv(layer.attention_norm(x)), 3, H)
    read = layer.attention.out((maps["0.attention"] @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(read, layer.attention(layer.attention_norm(x), mask=MASK, causal=causal))


def test_nothing_is_recorded_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = stack(), torch.randn(B, T, D, dtype=torch.float64)
    with capture_attention(model) as maps:
        pass
    monkeypatch.setattr("polyfuse.layers.attention.attention_weights", None)  # weights would have to be computed here
    run(model, x)
    assert maps == {}
    assert attention_maps.recorder() is None


def test_a_failure_inside_ends_the_recording() -> None:
    model = stack()
    with pytest.raises(ZeroDivisionError), capture_attention(model):
        raise ZeroDivisionError
    assert attention_maps.recorder() is None
    with capture_attention(model), pytest.raises(RuntimeError, match="cannot be nested"), capture_attention(model):
        pass


@pytest.mark.parametrize("causal", [False, True])
def test_differentiable_maps_make_the_same_output_and_have_gradients(causal: bool) -> None:
    model, x = stack(), torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    plain = run(model, x, MASK, causal)
    with capture_attention(model, differentiable=True) as maps:
        out = run(model, x, MASK, causal)
    torch.testing.assert_close(out, plain)
    upstream = torch.randn_like(out)
    first, last, through = torch.autograd.grad((out * upstream).sum(), [*maps.values(), x], retain_graph=True)
    torch.testing.assert_close(through, torch.autograd.grad((plain * upstream).sum(), x)[0])
    assert first[0].any()
    assert last[0].any()
    # A map's gradient is the change of the output when the weight changes: d out / d weight_ij = out_proj(v_j).
    layer = model[1]
    inside = layer.attention_norm(run(model[:1], x, MASK, causal))
    _, _, value = split_qkv(layer.attention.qkv(inside), 3, H)
    after = run(model[:1], x, MASK, causal)
    summed = after + layer.attention(inside, mask=MASK, causal=causal)
    arrived = torch.autograd.grad(
        ((summed + layer.mlp(layer.mlp_norm(summed))) * upstream).sum(), summed, retain_graph=True
    )[0]
    back = (arrived @ layer.attention.out.weight).unflatten(-1, (H, -1)).transpose(1, 2)
    torch.testing.assert_close(last, back @ value.transpose(-1, -2))


def test_parts_and_layers_outside_the_model() -> None:
    torch.manual_seed(0)
    co, other = CoAttention((D, 26), H), Attention(D, H)
    first, second = torch.randn(B, T, D), torch.randn(B, K, 26)
    with capture_attention(co) as maps:
        co(first, second, second_mask=torch.arange(K) < torch.tensor([7, 1, 2])[:, None])
        other(first)
    assert {name: tuple(found.shape) for name, found in maps.items()} == {
        "first": (B, H, T, K),
        "second": (B, H, K, T),
    }
    assert not maps["first"][1, :, :, 1:].any()


def test_of_two_calls_the_last_stays_and_moves_to_the_end() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": Attention(D, H), "b": Attention(D, H)})
    x = torch.randn(B, T, D)
    with capture_attention(model) as maps:
        model["a"](x)
        model["b"](x)
        model["a"](2 * x)
    assert list(maps) == ["b", "a"]
    with capture_attention(model) as single:
        model["a"](2 * x)
    assert torch.equal(maps["a"], single["a"])


def test_a_layer_used_under_two_names_is_recorded_once() -> None:
    layer = Attention(D, H)
    model = nn.ModuleDict({"a": layer, "b": layer})
    with capture_attention(model) as maps:
        layer(torch.zeros(B, T, D))
    assert list(maps) == ["a"]


def test_compiled_models_are_refused() -> None:
    layer = Attention(D, H)
    with pytest.raises(Exception, match="needs the eager model"), capture_attention(layer):
        torch.compile(layer, fullgraph=True, backend="eager")(torch.zeros(B, T, D))
    torch.compiler.reset()
