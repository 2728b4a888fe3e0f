"""What every way of generating checks: its limits, and which tokens may come next.

Shapes: N rows, T tokens so far, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Limits(NamedTuple):
    """When a row ends, and what may not come."""

    max_length: int
    eos_id: int | None
    pad_id: int
    min_length: int
    no_repeat_ngram: int


def allowed_log_probabilities(logits_NV: Tensor, ids_NT: Tensor, index: int, limits: Limits) -> Tensor:
    """In float32, -inf where a token may not come. What is left is not renormalised."""
    if index == 0:
        check_vocabulary(logits_NV, ids_NT, limits)
    log_p_NV = logits_NV.log_softmax(dim=-1, dtype=torch.float32)
    if limits.eos_id is not None and index < limits.min_length:
        log_p_NV[:, limits.eos_id] = -torch.inf
    if limits.no_repeat_ngram:
        log_p_NV = log_p_NV.masked_fill(repeats(ids_NT, limits.no_repeat_ngram, log_p_NV.shape[-1]), -torch.inf)
    return log_p_NV


def repeats(ids_NT: Tensor, size: int, vocabulary: int) -> Tensor:
    """``(N, V)`` bool: tokens that would complete an n-gram that is there already."""
    banned = torch.zeros(ids_NT.shape[0], vocabulary + 1, dtype=torch.bool, device=ids_NT.device)
    if ids_NT.shape[1] >= size:
        grams = ids_NT.unfold(1, size, 1)  # (N, T - n + 1, n)
        tail = ids_NT[:, ids_NT.shape[1] - size + 1 :]
        same = (grams[..., :-1] == tail[:, None]).all(dim=-1)
        banned.scatter_(1, grams[..., -1].masked_fill(~same, vocabulary), True)
    return banned[:, :vocabulary]


def check_interval(check_every: int | None, prompt: Tensor) -> int:
    """Steps between looks at whether rows have ended."""
    if check_every is None:
        return 1 if prompt.device.type == "cpu" else 8
    if check_every < 1:
        raise ValueError(f"check_every must be at least 1, got {check_every}")
    return check_every


def checked_limits(
    prompt: Tensor, max_length: int, eos_id: int | None, pad_id: int, min_length: int, no_repeat_ngram: int
) -> Limits:
    """Refuse what no way of generating can do."""
    if prompt.ndim != 2 or prompt.shape[0] == 0 or prompt.shape[1] == 0 or prompt.is_floating_point():
        raise ValueError(
            f"prompt must be integer ids of shape (B, P), one token at least, got {prompt.dtype} {tuple(prompt.shape)}"
        )
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}")
    if not 0 <= min_length <= max_length:
        raise ValueError(f"min_length must be between 0 and max_length = {max_length}, got {min_length}")
    if no_repeat_ngram < 0:
        raise ValueError(f"no_repeat_ngram must be 0 or more, got {no_repeat_ngram}")
    return Limits(max_length, eos_id, pad_id, min_length, no_repeat_ngram)


def check_vocabulary(logits_NV: Tensor, ids_NT: Tensor, limits: Limits) -> None:
    """Refuse logits of another shape, and ids outside of the vocabulary."""
    if logits_NV.ndim != 2 or logits_NV.shape[0] != ids_NT.shape[0]:
        raise ValueError(f"step must return logits (N, V) with N = {ids_NT.shape[0]}, got {tuple(logits_NV.shape)}")
    for name, value in (("eos_id", limits.eos_id), ("pad_id", limits.pad_id)):
        if value is not None and not 0 <= value < logits_NV.shape[1]:
            raise ValueError(f"{name} must be in the vocabulary, 0 to {logits_NV.shape[1] - 1}, got {value}")


def check_beams(num_beams: int, length_penalty: float, early_stopping: object, num_return: int | None) -> None:
    """Refuse what beam search cannot do."""
    if num_beams < 1:
        raise ValueError(f"num_beams must be at least 1, got {num_beams}")
    if not abs(length_penalty) < float("inf"):
        raise ValueError(f"length_penalty must be finite, got {length_penalty}")
    if not (isinstance(early_stopping, bool) or early_stopping == "never"):
        raise ValueError(f"early_stopping must be True, False or 'never', got {early_stopping!r}")
    if num_return is not None and not 1 <= num_return <= num_beams:
        raise ValueError(f"num_return must be between 1 and num_beams = {num_beams}, got {num_return}")
