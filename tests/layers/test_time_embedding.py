"""Times as rotations, what is absent stays out, and attention over streams of different rates finds the equal time."""

import math

import pytest
import torch

from polyfuse.layers.time_embedding import TimedStreams, TimedTokens, TimeEmbedding, time_features
from polyfuse.models.multimodal_transformer import MultimodalTransformer

B, T, D, P = 3, 7, 5, 11


def test_a_shift_is_one_linear_map_for_all_times() -> None:
    g = torch.Generator().manual_seed(0)
    times = torch.rand(41, generator=g, dtype=torch.float64) * 100
    before = time_features(times, 0.3, 500.0, P)
    after = time_features(times + 0.77, 0.3, 500.0, P)
    fitted = torch.linalg.lstsq(before[:29], after[:29]).solution  # from some times
    torch.testing.assert_close(before[29:] @ fitted, after[29:], atol=1e-8, rtol=0)  # holds for the others
    rates = 2 * math.pi / torch.logspace(math.log10(0.3), math.log10(500.0), P, dtype=torch.float64)
    turn = torch.block_diag(*(torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]]).double()
                              for a in (rates * 0.77).tolist()))  # fmt: skip
    pairs = torch.stack((before[:, :P], before[:, P:]), dim=-1).flatten(1)
    expected = torch.stack((after[:, :P], after[:, P:]), dim=-1).flatten(1)
    torch.testing.assert_close(pairs @ turn.T, expected, atol=1e-5, rtol=0)


def test_absent_times_reach_nothing() -> None:
    torch.manual_seed(0)
    layer = TimeEmbedding(D)
    times = torch.rand(B, T) * 9
    tokens = torch.randn(B, T, D, requires_grad=True)
    mask = torch.arange(T) < torch.tensor([[4], [0], [7]])
    broken = times.masked_fill(~mask, math.nan)
    odd = TimedTokens(tokens.masked_fill(~mask[..., None], math.nan), broken, mask)
    out = layer.add_to(odd)
    out.square().sum().backward()
    torch.testing.assert_close(out[mask], (tokens + layer(times))[mask])
    assert not out[~mask].any()
    assert tokens.grad is not None
    assert tokens.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in layer.parameters())
    assert not dict(layer.named_buffers())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_phases_keep_their_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = TimeEmbedding(D)
    times = torch.tensor([[0.0, 0.04, 555.51]])
    expected = layer(times)
    loose = {torch.float16: 0.01, torch.bfloat16: 0.1, torch.float64: 1e-3}[dtype]
    torch.testing.assert_close(layer.to(dtype)(times).float(), expected, atol=loose, rtol=loose)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"0 < shortest < longest, got 2\.0 and 1\.0 seconds"):
        TimeEmbedding(D, shortest=2.0, longest=1.0)
    with pytest.raises(ValueError, match="num_periods must be at least 2, got 1"):
        TimeEmbedding(D, num_periods=1)
    with pytest.raises(ValueError, match=r"mask must be bool of shape \(1, 3\), got torch.bool \(1, 2\)"):
        TimeEmbedding(D)(torch.zeros(1, 3), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"streams must be \['a'\], got \['b'\]"):
        TimedStreams({"a": 3}, D)({"b": TimedTokens(torch.zeros(1, 2, 3), torch.zeros(1, 2), torch.ones(1, 2) > 0)})


def test_attention_by_time_reads_a_stream_of_another_rate() -> None:
    """Dot products of time features peak at equal times: attention is resampling, whatever rates and offsets."""
    g = torch.Generator().manual_seed(0)
    fast = torch.arange(0.0, 4.0, 1 / 31.0)
    slow = torch.arange(0.013, 4.0, 1 / 7.0) + 0.02 * torch.rand(28, generator=g)
    keys, queries = (time_features(t, 0.4, 40.0, 16) for t in (fast, slow))
    here = torch.rand(len(fast), generator=g) < 0.9
    values = (2 * math.pi * 0.3 * fast).sin()

    def read(asked: torch.Tensor) -> torch.Tensor:
        scores = (12 * asked @ keys.T).masked_fill(~here, -math.inf)
        return scores.softmax(dim=-1) @ values

    expected = (2 * math.pi * 0.3 * slow).sin()
    torch.testing.assert_close(read(queries), expected, atol=0.1, rtol=0)
    assert (read(time_features(slow + 0.8, 0.4, 40.0, 16)) - expected).abs().max() > 0.7


def test_tokens_of_two_rates_through_the_transformer() -> None:
    torch.manual_seed(0)
    embed = TimedStreams({"picture": 2, "sound": 3}, 8)
    model = MultimodalTransformer(
        ("picture", "sound"), 8, fusion="early", dim=8, num_layers=1, num_heads=2, num_classes=2
    ).eval()
    picture = TimedTokens(torch.randn(B, T, 2), torch.rand(B, T).sort(dim=1)[0] * 2, torch.rand(B, T) < 0.8)
    sound = TimedTokens(torch.randn(B, 11, 3), torch.rand(B, 11).sort(dim=1)[0] * 2, torch.rand(B, 11) < 0.8)

    def logits(a: TimedTokens, b: TimedTokens) -> torch.Tensor:
        tokens, masks = embed({"picture": a, "sound": b})
        return model(tokens, masks).logits

    out = logits(picture, sound)
    torch.testing.assert_close(logits(picture, TimedTokens(*(x.flip(1) for x in sound))), out)  # order is not time
    assert not torch.allclose(logits(picture, sound._replace(times=sound.times + 0.3)), out, atol=1e-4)
    broken = sound._replace(
        tokens=sound.tokens.masked_fill(~sound.mask[..., None], math.nan),
        times=sound.times.masked_fill(~sound.mask, math.nan),
    )
    torch.testing.assert_close(logits(picture, broken), out)
