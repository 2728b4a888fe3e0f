"""The loss of writing: each next word of a caption.

Shapes: B rows, T words, V vocabulary. Masks: True = present.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.functional import at_least_float32
from polyfuse.losses.reduce import check_mask, reduce


def captioning_loss(
    logits: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    label_smoothing: float = 0.0,
    shift: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of the words of captions, in nats per word.

    Source: "Show and Tell", https://arxiv.org/abs/1411.4555, equation 8; label smoothing:
    https://arxiv.org/abs/1512.00567, section 7 (``label_smoothing`` of the target is spread over all V words).

    Args:
        logits: ``(B, T, V)``.
        target: ``(B, T)`` int64.
        mask: ``(B, T)`` bool, the words to predict: neither padding nor captions that are absent.
        label_smoothing: In [0, 1).
        shift: False = logits t predict word t of the target; True = logits t predict word t + 1, of one sequence.
        reduction: "mean" over the words, "sum", or "none": one value per word.

    Returns:
        A scalar; 0 with a zero gradient where there is no word.

    Raises:
        ValueError: If a shape is wrong, or the smoothing is not in [0, 1).

    Example:
        >>> captioning_loss(torch.zeros(1, 2, 4), torch.tensor([[1, 0]]), torch.tensor([[True, False]]))
        tensor(1.3863)
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    check_mask(mask, tuple(logits.shape[:2]), "mask")
    if target.shape != mask.shape:
        raise ValueError(f"target must have shape {tuple(mask.shape)}, got {tuple(target.shape)}")
    if shift:
        logits, target, mask = logits[:, :-1], target[:, 1:], mask[:, 1:]
    kept = at_least_float32(logits[mask])
    return reduce(F.cross_entropy(kept, target[mask], reduction="none", label_smoothing=label_smoothing), reduction)


class CaptioningLoss(nn.Module):
    """``captioning_loss`` as a module.

    Args:
        label_smoothing: In [0, 1).
        shift: True = logits t predict word t + 1.
        reduction: "mean", "sum" or "none".
    """

    def __init__(self, label_smoothing: float = 0.1, shift: bool = False, reduction: str = "mean") -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        reduce(torch.zeros(0), reduction)
        self.label_smoothing, self.shift, self.reduction = label_smoothing, shift, reduction

    def forward(self, logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Cross-entropy of ``(B, T, V)`` logits at the words of ``(B, T)`` the mask names."""
        return captioning_loss(
            logits,
            target,
            mask,
            label_smoothing=self.label_smoothing,
            shift=self.shift,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """The arguments."""
        return f"label_smoothing={self.label_smoothing}, shift={self.shift}, reduction={self.reduction}"
