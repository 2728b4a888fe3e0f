"""Captioning: cross-entropy of the words that are there, smoothing, shifting, nothing to say."""

import math

import pytest
import torch
from torch.nn import functional as F

from polyfuse.losses import CaptioningLoss, captioning_loss

B, T, V = 3, 5, 7
LOGITS = torch.randn(B, T, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGET = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shift", [False, True])
def test_equals_plain_loops(smoothing: float, shift: bool) -> None:
    values = []
    for row, place in MASK.nonzero().tolist():
        if shift and place == 0:
            continue
        log_share = LOGITS[row, place - shift].log_softmax(0)
        values.append(-(1 - smoothing) * log_share[TARGET[row, place]] - smoothing * log_share.mean())
    ours = captioning_loss(LOGITS, TARGET, MASK, label_smoothing=smoothing, shift=shift)
    torch.testing.assert_close(ours, torch.stack(values).mean())
    module = CaptioningLoss(smoothing, shift, "sum")
    torch.testing.assert_close(module(LOGITS, TARGET, MASK), torch.stack(values).sum())


def test_padding_leaves_no_trace_and_nothing_to_say_is_zero() -> None:
    broken, words = LOGITS.clone(), TARGET.clone()
    broken[~MASK] = math.nan
    words[~MASK] = -1
    broken.requires_grad_()
    ours = captioning_loss(broken, words, MASK, label_smoothing=0.1)
    torch.testing.assert_close(ours, captioning_loss(LOGITS, TARGET, MASK, label_smoothing=0.1))
    gradient = torch.autograd.grad(ours, broken)[0]
    assert gradient.isfinite().all()
    assert not gradient[~MASK].any()
    nothing = captioning_loss(broken, words, torch.zeros_like(MASK), shift=True)
    assert nothing.item() == 0.0
    assert torch.autograd.grad(nothing, broken)[0].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits = LOGITS.to(dtype)
    ours = captioning_loss(logits, TARGET, MASK)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, F.cross_entropy(logits.float()[MASK], TARGET[MASK]))


def test_refusals_and_repr() -> None:
    for make in (lambda: CaptioningLoss(1.0), lambda: captioning_loss(LOGITS, TARGET, MASK, label_smoothing=1.0)):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\), got 1.0"):
            make()
    with pytest.raises(ValueError, match=r"mask must be bool of shape \(3, 5\)"):
        captioning_loss(LOGITS, TARGET, MASK.long())
    with pytest.raises(ValueError, match=r"target must have shape \(3, 5\), got \(3, 4\)"):
        captioning_loss(LOGITS, TARGET[:, 1:], MASK)
    assert repr(CaptioningLoss()) == "CaptioningLoss(label_smoothing=0.1, shift=False, reduction=mean)"
