"""What a pass minimises: the task's loss, class weights, and the fusion's own entropy loss if it is wanted.

Shapes: b rows of one pass, C classes or labels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.errors import UserError
from polyfuse.losses.task import task_loss

_LARGEST_BALANCED = 100.0


def class_weight(
    setting: str | Mapping[str, float] | None, task: str, target: Tensor, classes: Sequence[str], outputs: int
) -> Tensor | None:
    """``(C,)`` weights from ``train.class_weights``.

    Classification: ``balanced`` weighs a class by the inverse of its share; weights are scaled so that they average 1
    over the training rows, hence the learning rate means the same with and without them. Multilabel: the weight is that
    of a label's positives; ``balanced`` is negatives over positives, at most 100.

    Raises:
        UserError: If the task is regression, a name is unknown, or names are given and ``classes`` is empty.
    """
    if setting is None:
        return None
    if task == "regression":
        raise UserError("train.class_weights is for classification and multilabel, got task regression; set it to null")
    if isinstance(setting, str):
        if task == "multilabel":
            positive = target.double().sum(dim=0)
            ratio = (len(target) - positive) / positive.clamp(min=1)
            return ratio.clamp(1 / _LARGEST_BALANCED, _LARGEST_BALANCED).float()
        weight = 1.0 / torch.bincount(target, minlength=outputs).clamp(min=1).double()
    else:
        unknown = sorted(set(setting) - set(classes))
        if unknown:
            known = ", ".join(classes) or "none given"
            raise UserError(f"train.class_weights names '{unknown[0]}', which is no class; known: {known}")
        weight = torch.tensor([float(setting.get(name, 1.0)) for name in classes], dtype=torch.float64)
        if task == "multilabel":
            return weight.float()
    return (weight / weight[target].mean()).float()


class Objective:
    """Sum over the rows of one pass of everything that is minimised.

    Args:
        task: Of ``task_loss``.
        weight: ``(C,)`` class weights, or None.
        fusion: The model's fusion; its first part with an ``entropy_loss(entropy, target)`` is asked, on
            ``info["entropy"]`` and ``info["target_entropy"]``.
        entropy_weight: Weight of that; 0 = leave it out.

    Raises:
        UserError: If ``entropy_weight`` is set and the fusion has no entropy loss.
    """

    def __init__(self, task: str, weight: Tensor | None, fusion: nn.Module | None, entropy_weight: float = 0.0) -> None:
        self.task, self.weight, self.entropy_weight = task, weight, entropy_weight
        parts: list[Any] = [getattr(module, "entropy_loss", None) for module in fusion.modules()] if fusion else []
        self.entropy_loss: Any = next(filter(callable, parts), None)
        if entropy_weight > 0 and not callable(self.entropy_loss):
            raise UserError(
                f"train.entropy_weight needs a fusion with an entropy loss, such as aecf, got "
                f"{type(fusion).__name__}; set it to 0"
            )

    def __call__(self, output: Any, target: Tensor) -> tuple[Tensor, Tensor]:
        """The sum to minimise, and the sum of the task's loss alone (detached), over the rows of a pass."""
        task = task_loss(self.task, output.logits, target, self.weight, reduction="sum")
        if self.entropy_weight == 0:
            return task, task.detach()
        entropy = self.entropy_loss(output.info["entropy"], target=output.info.get("target_entropy"))
        return task + self.entropy_weight * len(target) * entropy, task.detach()
