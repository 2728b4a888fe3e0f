"""Methods against modality imbalance that change gradients: OGM-GE and MMPareto.

Both look at what one input alone can say: a linear head on every encoder. They act on the gradients of the encoders,
after the backward pass and before clipping, so they need the whole batch in one pass of one process.

Shapes: b rows, C classes.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from polyfuse.losses.task import task_loss

Gradients = dict[str, list[Tensor]]


def right_probability(task: str, logits: Tensor, target: Tensor) -> Tensor:
    """Mean probability of the truth, exp(-loss) of a row, as a scalar in (0, 1]."""
    return (-task_loss(task, logits, target, reduction="none")).exp().mean()


def ogm_coefficients(scores: Mapping[str, float], alpha: float) -> dict[str, float]:
    """How much of its gradient each encoder keeps.

    rho_m = s_m / mean of the others' s; k_m = 1 - tanh(alpha rho_m) where rho_m > 1, else 1. Source: OGM-GE,
    https://arxiv.org/abs/2203.15332, equations 6 and 7. Differs: with more than two modalities the others are averaged.

    Args:
        scores: Probability of the truth by modality.
        alpha: Strength.

    Example:
        >>> {k: round(v, 2) for k, v in ogm_coefficients({"audio": 0.8, "video": 0.2}, alpha=0.5).items()}
        {'audio': 0.04, 'video': 1.0}
    """
    if len(scores) < 2:
        return dict.fromkeys(scores, 1.0)
    total = sum(scores.values())
    ratio = {name: s * (len(scores) - 1) / max(total - s, 1e-8) for name, s in scores.items()}
    return {name: 1.0 - math.tanh(alpha * rho) if rho > 1.0 else 1.0 for name, rho in ratio.items()}


def modulate(encoders: Mapping[str, nn.Module], coefficients: Mapping[str, float], *, noise: bool = True) -> None:
    """Scale every encoder's gradients, in place, and add noise of their own standard deviation (the "GE" of OGM-GE).

    Equation 9 of the paper gives the noise the covariance of the gradient; like the released code we take the standard
    deviation of each parameter's gradient, drawn from the default generator. Encoders with coefficient 1, or none (a
    batch may lack a modality), stay as they are.
    """
    for name, encoder in encoders.items():
        coefficient = coefficients.get(name, 1.0)
        if coefficient == 1.0:
            continue
        for parameter in encoder.parameters():
            if parameter.grad is None:
                continue
            parameter.grad.mul_(coefficient)
            if noise and parameter.grad.numel() > 1:
                parameter.grad.add_(torch.randn_like(parameter.grad) * parameter.grad.std())


def pareto_weights(joint: Sequence[Tensor], alone: Sequence[Tensor]) -> tuple[float, float]:
    """Weights of the joint and the unimodal gradient of one encoder, summing to 1.

    Halves where they agree (positive cosine); where they conflict the weights of the least norm of a g_1 + (1 - a) g_2,
    a = (g_2 - g_1) g_2 / |g_1 - g_2|^2 clipped to [0, 1]. Source: MMPareto, https://arxiv.org/abs/2405.17730, section
    3.3 and equation 5.

    Example:
        >>> pareto_weights([torch.tensor([1.0, 0.0])], [torch.tensor([0.0, 1.0])])
        (0.5, 0.5)
        >>> pareto_weights([torch.tensor([3.0, 0.0])], [torch.tensor([-1.0, 0.0])])
        (0.25, 0.75)
    """
    cross, first, second = _dots(joint, alone)
    if cross > 0:
        return 0.5, 0.5
    a = (second - cross) / max(first + second - 2 * cross, 1e-12)
    a = min(max(a, 0.0), 1.0)
    return a, 1.0 - a


def combine(joint: Sequence[Tensor], alone: Sequence[Tensor]) -> list[Tensor]:
    """The gradient an encoder takes: 2 (a g_1 + (1 - a) g_2), stretched to the norm of g_1 + g_2 where it is shorter.

    Differs: the released code multiplies by 1.5 besides, a change of the learning rate in disguise that we leave out.
    """
    a, b = pareto_weights(joint, alone)
    mixed = [2 * (a * x + b * y) for x, y in zip(joint, alone, strict=True)]
    cross, first, second = _dots(joint, alone)
    plain = math.sqrt(max(first + second + 2 * cross, 0.0))
    norm = math.sqrt(sum(float(x.square().sum()) for x in mixed))
    return [x * (plain / norm) for x in mixed] if 0 < norm < plain else mixed


def gradients_of(encoders: Mapping[str, nn.Module]) -> Gradients:
    """Copies of the gradients of every encoder's trainable parameters; zeros where there is none."""
    return {
        name: [
            torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
            for p in encoder.parameters()
            if p.requires_grad
        ]
        for name, encoder in encoders.items()
    }


def put_gradients(encoder: nn.Module, gradients: Sequence[Tensor]) -> None:
    """Put ``gradients`` in place of the encoder's own."""
    trainable = [p for p in encoder.parameters() if p.requires_grad]
    for parameter, gradient in zip(trainable, gradients, strict=True):
        parameter.grad = gradient


def blend_weights(
    train: Mapping[str, tuple[float, float]], validation: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    """Weights of the losses of Gradient-Blend, summing to 1.

    w_k proportional to G_k / O_k^2, with G = fall of the validation loss and O = growth of the gap between validation
    and training loss, over a stretch of training. Source: https://arxiv.org/abs/1905.12681, proposition 1. A head
    whose validation loss did not fall weighs nothing.

    Args:
        train: Mean training loss at the start and the end of the stretch, by head.
        validation: The same on validation rows.

    Example:
        >>> weights = blend_weights({"a": (2.0, 1.0), "b": (2.0, 1.0)}, {"a": (2.0, 1.5), "b": (2.0, 1.75)})
        >>> {name: round(weight, 3) for name, weight in weights.items()}
        {'a': 0.818, 'b': 0.182}
    """
    raw = {}
    for name, (train_start, train_end) in train.items():
        start, end = validation[name]
        overfitting = (end - train_end) - (start - train_start)
        raw[name] = max(start - end, 0.0) / max(overfitting, 0.01) ** 2  # a gap under 0.01 nats is noise
    total = sum(raw.values())
    if total == 0.0:
        return dict.fromkeys(raw, 1.0 / len(raw))
    return {name: value / total for name, value in raw.items()}


def _dots(x: Sequence[Tensor], y: Sequence[Tensor]) -> tuple[float, float, float]:
    """The products x y, x x and y y over lists of tensors."""
    cross = sum(float((a * b).sum()) for a, b in zip(x, y, strict=True))
    return cross, sum(float(a.square().sum()) for a in x), sum(float(b.square().sum()) for b in y)
