"""The loss of each task: cross-entropy, binary cross-entropy per label, Gaussian negative log-likelihood.

Shapes: B batch, C classes, L labels.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.heads import gaussian_parameters

TASKS = ("classification", "multilabel", "regression")


def task_loss(
    task: str, logits: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """Negative log-likelihood of the target, per row or reduced over rows.

    Computed in at least fp32. ``"mean"`` divides by the number of rows even with class weights (``F.cross_entropy``
    divides by the sum of weights): the mean over a batch is then the row-weighted mean over any split of it, which data
    parallel training needs. Scale class weights to average 1.

    Args:
        task: "classification", "multilabel" or "regression".
        logits: ``(B, C)``, ``(B, L)`` or ``(B, 2)`` (mean, log-variance; clamped here as in ``RegressionHead``).
        target: ``(B,)`` int64 classes, ``(B, L)`` labels in [0, 1], or ``(B,)`` values.
        weight: ``(C,)`` weight per class, or ``(L,)`` weight of each label's positives; None for regression.
        reduction: "none" for ``(B,)`` (labels are averaged within a row), "sum" or "mean" over rows.

    Returns:
        Loss in nats: ``(B,)`` or a scalar.

    Raises:
        ValueError: If task or reduction is unknown, shapes disagree, or regression is given a weight.

    Example:
        >>> task_loss("classification", torch.zeros(2, 4), torch.tensor([0, 3]), reduction="none")
        tensor([1.3863, 1.3863])
    """
    if task not in TASKS:
        raise ValueError(f"unknown task '{task}'; known: {', '.join(TASKS)}")
    expected = logits.shape if task == "multilabel" else logits.shape[:1]
    if logits.ndim != 2 or target.shape != expected:
        raise ValueError(f"{task} target must be {tuple(expected)} for (B, n) logits, got {tuple(target.shape)}")
    logits = logits if logits.dtype == torch.float64 else logits.float()
    weight = None if weight is None else weight.to(logits.dtype)
    if task == "classification":
        loss_B = F.cross_entropy(logits, target, weight=weight, reduction="none")
    elif task == "multilabel":
        loss_B = F.binary_cross_entropy_with_logits(
            logits, target.to(logits.dtype), pos_weight=weight, reduction="none"
        ).mean(dim=1)
    else:
        if weight is not None:
            raise ValueError("regression takes no weight, got one; leave weight=None")
        mean_B, log_variance_B = gaussian_parameters(logits)
        square_B = (target.to(logits.dtype) - mean_B).square()
        loss_B = 0.5 * (log_variance_B + square_B * (-log_variance_B).exp() + math.log(2 * math.pi))
    if reduction == "none":
        return loss_B
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'none', 'sum' or 'mean', got {reduction!r}")
    return loss_B.sum() if reduction == "sum" else loss_B.mean()


class TaskLoss(nn.Module):
    """``task_loss`` as a module.

    Args:
        task: "classification", "multilabel" or "regression".
        weight: As in ``task_loss``; moves with the module, is not in its state dict.
        reduction: As in ``task_loss``.

    Example:
        >>> TaskLoss("multilabel")(torch.zeros(2, 3), torch.ones(2, 3))
        tensor(0.6931)
    """

    weight: Tensor | None

    def __init__(self, task: str, weight: Tensor | None = None, reduction: str = "mean") -> None:
        super().__init__()
        self.task, self.reduction = task, reduction
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of ``logits (B, n)`` against ``target``; a scalar, or ``(B,)`` with reduction "none"."""
        return task_loss(self.task, logits, target, self.weight, self.reduction)
