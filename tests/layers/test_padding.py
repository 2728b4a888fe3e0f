"""Skipping padding changes nothing but the time: outputs and gradients equal those of the padded run."""

import pytest
import torch
from torch import Tensor, nn

from polyfuse.layers import Attention, TransformerLayer, capture_attention
from polyfuse.layers.key_value_cache import KeyValueCache
from polyfuse.layers.padding import Packing, pack, run_layers, unpack

B, L, D, H = 7, 11, 22, 2
COUNTS = torch.tensor([3, 11, 1, 3, 0, 6, 3])
PREFIX = torch.arange(L) < COUNTS[:, None]
torch.manual_seed(0)
MASKS = {"prefix": PREFIX, "holes": torch.rand(B, L) < 0.5, "left": PREFIX.flip(1), "full": torch.ones_like(PREFIX)}


def stack(**options: object) -> nn.ModuleList:
    torch.manual_seed(1)
    return nn.ModuleList(TransformerLayer(D, H, 13, **options) for _ in range(3)).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_packed_equals_padded(name: str, norm_first: bool, training: bool) -> None:
    layers, mask = stack(norm_first=norm_first).train(training), MASKS[name]
    torch.manual_seed(2)
    x, upstream = (torch.randn(B, L, D, dtype=torch.float64) for _ in range(2))
    kept = mask[..., None].double()
    found = []
    for skip in (False, True):
        start = x.clone().requires_grad_()
        out = run_layers(layers, start, mask, skip_padding=skip) * kept
        grads = torch.autograd.grad((out * upstream).sum(), [start, *layers.parameters()])
        found.append((out, *grads))
    for padded, packed in zip(*found, strict=True):
        assert padded.any()
        torch.testing.assert_close(packed, padded, atol=1e-12, rtol=1e-10)


def test_absent_tokens_come_out_as_zeros_and_are_not_read() -> None:
    layers = stack()
    x = torch.randn(B, L, D, dtype=torch.float64)
    broken = x.masked_fill(~PREFIX[..., None], torch.nan).requires_grad_()
    out = run_layers(layers, broken, PREFIX, skip_padding=True)
    assert not out[~PREFIX].any()
    torch.testing.assert_close(out[PREFIX], run_layers(layers, x, PREFIX)[PREFIX])
    out.square().sum().backward()
    assert broken.grad is not None
    assert broken.grad.isfinite().all()
    assert not broken.grad[~PREFIX].any()


def test_layers_run_on_present_tokens_only() -> None:
    """The point of it: N rows where the padded run has B times L, and no row sees another."""
    seen: list[tuple[int, ...]] = []

    class Watched(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | Packing) -> Tensor:
            assert isinstance(mask, Packing)
            assert mask.groups == ((1, 1), (3, 3), (1, 6), (1, 11))
            assert mask.sizes == [1, 9, 6, 11]
            seen.append(tuple(x.shape))
            return x

    x = torch.randn(B, L, D)
    out = run_layers([Watched(), Watched()], x, PREFIX, skip_padding=True)
    assert seen == [(1, 27, D)] * 2
    assert torch.equal(out, x * PREFIX[..., None])


def test_causal_attention_packed() -> None:
    torch.manual_seed(0)
    layer, x = Attention(D, H, dtype=torch.float64), torch.randn(B, L, D, dtype=torch.float64)
    tokens, packing = pack(x, PREFIX)
    out = unpack(layer(tokens, mask=packing, causal=True), packing)
    torch.testing.assert_close(out[PREFIX], layer(x, mask=PREFIX, causal=True)[PREFIX])


@pytest.mark.parametrize("mask", [None, torch.ones(B, L, dtype=torch.bool), torch.zeros(B, L, dtype=torch.bool)])
def test_nothing_to_skip(mask: Tensor | None) -> None:
    layers, x = stack(), torch.randn(B, L, D, dtype=torch.float64)
    assert torch.equal(run_layers(layers, x, mask, skip_padding=True), run_layers(layers, x, mask))


def test_ignored_where_it_cannot_be() -> None:
    """A compiled model runs padded, whole; capture_attention gets whole maps."""
    layers, x = stack(), torch.randn(B, L, D, dtype=torch.float64)

    def run(x: Tensor) -> Tensor:
        return run_layers(layers, x, PREFIX, skip_padding=True)

    torch.testing.assert_close(
        torch.compile(run, fullgraph=True, backend="aot_eager")(x)[PREFIX], run_layers(layers, x, PREFIX)[PREFIX]
    )
    with capture_attention(layers) as maps:
        run(x)
    assert maps["0.attention"].shape == (B, H, L, L)


def test_float32_is_within_a_millionth() -> None:
    """Of the largest state, which is about 4."""
    layers = stack(norm_first=False).float().eval().requires_grad_(False)
    x = torch.randn(B, L, D)
    kept = PREFIX[..., None]
    padded, packed = (run_layers(layers, x, PREFIX, skip_padding=skip) * kept for skip in (False, True))
    assert float((padded - packed).abs().max() / padded.abs().max()) < 1e-6


def test_refusals() -> None:
    x = torch.zeros(B, L, D)
    with pytest.raises(ValueError, match=r"bool of shape \(B, L\) = \(7, 11\), got torch.bool \(7, 10\)"):
        pack(x, PREFIX[:, 1:])
    with pytest.raises(ValueError, match=r"\(7, 11\), got torch.int64 \(7, 11\)"):
        pack(x, PREFIX.long())
    tokens, packing = pack(x, PREFIX)
    for layer, more in (
        (Attention(D, H, context_dim=D), {"context_BKD": x}),
        (Attention(D, H), {"cache": KeyValueCache(3)}),
    ):
        with pytest.raises(ValueError, match="packed tokens take self-attention alone"):
            layer(tokens, mask=packing, **more)  # type: ignore[arg-type]
