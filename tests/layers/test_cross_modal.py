"""Equation (8.1) against plain loops, with masks, and where it is not defined."""

import math

import pytest
import torch
from torch import Tensor

from polyfuse.layers import CrossModalAttention, capture_attention

B, T, K, D = 3, 5, 7, 11


def plain(query: Tensor, key: Tensor, value: Tensor, asks: Tensor, answers: Tensor) -> Tensor:
    """softmax(Q K' / sqrt(d)) V of one sample, ``(Q, d)``; zeros where nobody asks."""
    out = torch.zeros(query.shape[0], value.shape[1], dtype=query.dtype)
    for i in range(query.shape[0]):
        if not asks[i] or not answers.any():
            continue
        weights = [
            math.exp(float(query[i] @ k) / math.sqrt(query.shape[1])) if ok else 0.0
            for k, ok in zip(key, answers, strict=True)
        ]
        out[i] = sum(w / sum(weights) * v for w, v in zip(weights, value, strict=True))  # type: ignore[assignment]
    return out


def expected(layer: CrossModalAttention, text: Tensor, image: Tensor, masks: tuple[Tensor, Tensor]) -> list[Tensor]:
    """A_TI and A_IT, ``(B, T, d)`` and ``(B, K, d)``."""
    with torch.no_grad():
        k_t, v_t = layer.text_key_value(text).chunk(2, dim=-1)
        k_i, v_i = layer.image_key_value(image).chunk(2, dim=-1)
        q_t, q_i = layer.text_query(text), layer.image_query(image)
    a_ti = [plain(q_t[b], k_i[b], v_i[b], masks[0][b], masks[1][b]) for b in range(B)]
    a_it = [plain(q_i[b], k_t[b], v_t[b], masks[1][b], masks[0][b]) for b in range(B)]
    return [torch.stack(a_ti), torch.stack(a_it)]


def data(tokens: int, masked: bool) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    text, image = torch.randn(B, T, D, dtype=torch.float64), torch.randn(B, tokens, 13, dtype=torch.float64)
    counts = ([5, 2, 0], [1, tokens, 3]) if masked else ([T] * B, [tokens] * B)
    masks = [torch.arange(n) < torch.tensor(c)[:, None] for n, c in zip((T, tokens), counts, strict=True)]
    return text, image, (masks[0], masks[1])


@pytest.mark.parametrize("masked", [False, True])
def test_equal_lengths(masked: bool) -> None:
    text, image, masks = data(T, masked)
    layer = CrossModalAttention(D, 13, 17, dtype=torch.float64)
    a_ti, a_it = expected(layer, text, image, masks)
    out = layer(text, image, *(masks if masked else ()))
    torch.testing.assert_close(out, a_ti + a_it)
    torch.testing.assert_close(layer.text_over_image(text, image, *masks), a_ti)


@pytest.mark.parametrize("masked", [False, True])
def test_pooled_at_any_lengths(masked: bool) -> None:
    text, image, masks = data(K, masked)
    layer = CrossModalAttention(D, 13, 17, pool=True, dtype=torch.float64)
    means = [
        torch.stack([part[b][mask[b]].mean(dim=0) if mask[b].any() else torch.zeros(17) for b in range(B)])
        for part, mask in zip(expected(layer, text, image, masks), masks, strict=True)
    ]
    out = layer(text, image, *(masks if masked else ()))
    assert out.shape == (B, 17)
    torch.testing.assert_close(out, means[0] + means[1])


def test_heads_are_the_equation_on_slices() -> None:
    text, image, masks = data(K, masked=True)
    layer = CrossModalAttention(D, 13, 18, num_heads=3, dtype=torch.float64)
    out = layer.text_over_image(text, image, *masks)
    query, (key, value) = layer.text_query(text), layer.image_key_value(image).chunk(2, dim=-1)
    for head in range(3):
        part = slice(6 * head, 6 * head + 6)
        for b in range(B):
            found = plain(
                query[b, :, part].detach(),
                key[b, :, part].detach(),
                value[b, :, part].detach(),
                masks[0][b],
                masks[1][b],
            )
            torch.testing.assert_close(out[b, :, part], found)


@pytest.mark.parametrize("pool", [False, True])
def test_what_is_absent_reaches_nothing(pool: bool) -> None:
    text, image, masks = data(T, masked=True)
    layer = CrossModalAttention(D, 13, 17, pool=pool, dtype=torch.float64)
    broken = [
        x.masked_fill(~m[..., None], math.nan).requires_grad_() for x, m in zip((text, image), masks, strict=True)
    ]
    out = layer(*broken, *masks)
    torch.testing.assert_close(out, layer(text, image, *masks))
    out.square().sum().backward()
    for x, mask in zip(broken, masks, strict=True):
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert not x.grad[~mask].any()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in layer.parameters())


def test_maps_and_compilation() -> None:
    text, image, masks = data(K, masked=True)
    layer = CrossModalAttention(D, 13, 17, pool=True, dtype=torch.float64)
    with capture_attention(layer) as maps:
        out = layer(text, image, *masks)
    assert {name: tuple(found.shape) for name, found in maps.items()} == {"text": (B, 1, T, K), "image": (B, 1, K, T)}
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(text, image, *masks), out)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="5 text and 7 image tokens; use equal lengths, or pool=True"):
        CrossModalAttention(D)(torch.zeros(B, T, D), torch.zeros(B, K, D))
    with pytest.raises(ValueError, match="num_heads must divide the width 11, got 2"):
        CrossModalAttention(D, num_heads=2)
