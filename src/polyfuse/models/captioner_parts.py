"""What stands around a ``Captioner``: encoders of any kind, the loss, checks.

Shapes: B batch, L text tokens, K context tokens, C context width, V vocabulary. Masks: True = present.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TokenEncoder(nn.Module):
    """Makes any model an encoder of a ``Captioner``: says how its token states are read.

    Args:
        model: Any module.
        read: ``read(model, *inputs) -> states (B, K, C)``, or ``(states, mask (B, K) bool)``.

    Example:
        >>> encoder = TokenEncoder(nn.Linear(6, 4), lambda model, pixels: (model(pixels), pixels[..., 0] > 0))
        >>> states, mask = encoder.encode(torch.ones(2, 3, 6))
        >>> states.shape, mask.shape
        (torch.Size([2, 3, 4]), torch.Size([2, 3]))
    """

    def __init__(self, model: nn.Module, read: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.read = model, read

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """What ``read`` makes of the model and the inputs."""
        return self.read(self.model, *args, **kwargs)


def caption_loss(
    logits: Tensor, input_ids: Tensor, text_mask: Tensor | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy of every present token after the first, given those before it.

    Args:
        logits: ``(B, L, V)`` of ``Captioner(input_ids, text_mask, ...)``.
        input_ids: ``(B, L)``, BOS first, EOS last.
        text_mask: ``(B, L)`` bool; a token counts where it and the one before it are present. None = all.
        label_smoothing: As in ``cross_entropy``.

    Raises:
        ValueError: If shapes do not fit.

    Example:
        >>> caption_loss(torch.zeros(2, 3, 8), torch.ones(2, 3, dtype=torch.long)).exp().round()
        tensor(8.)
    """
    if logits.ndim != 3 or logits.shape[:2] != input_ids.shape:
        raise ValueError(f"logits must be (B, L, V) with (B, L) = {tuple(input_ids.shape)}, got {tuple(logits.shape)}")
    target = input_ids[:, 1:]
    if checked_mask("text_mask", text_mask, input_ids.shape) is not None and text_mask is not None:
        target = target.masked_fill(~(text_mask[:, 1:] & text_mask[:, :-1]), -100)
    loss = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), target.flatten(), label_smoothing=label_smoothing, reduction="sum"
    )
    return loss / (target != -100).sum().clamp(min=1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every part gets its own mode back (a frozen encoder stays in evaluation mode)."""
    training = [part for part in model.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def checked_mask(name: str, mask: Tensor | None, shape: Sequence[int]) -> Tensor | None:
    """The mask, if it is bool and of this shape."""
    if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) != tuple(shape)):
        raise ValueError(f"{name} must be bool of shape {tuple(shape)}, got {described(mask)}")
    return mask


def described(value: Any) -> str:
    """Dtype and shape of what a user gave, for a message."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(described(part) for part in value)})"
    return type(value).__name__
