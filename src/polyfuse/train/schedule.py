"""Learning rate, moments of evaluation, parameter groups, optimiser."""

import math
from collections.abc import Iterable

import torch
from torch import nn

_UNDECAYED_WORDS = ("token", "query", "position")


def learning_rate(step: int, total: int, peak: float, warmup: float = 0.1, floor: float = 0.0) -> float:
    """Linear warm-up, then half a cosine down to ``floor``.

    Source: SGDR's cosine without restarts, https://arxiv.org/abs/1608.03983, equation 5 with one period.
    Differs: the last step still learns (the cosine would reach the floor one step after it).

    Args:
        step: Optimiser steps already done, 0 to ``total - 1``.
        total: Optimiser steps in all.
        peak: Rate at the end of the warm-up.
        warmup: Share of the steps that warm up, in [0, 1).
        floor: Rate that the cosine tends to.

    Example:
        >>> [round(learning_rate(step, 5, peak=1.0, warmup=0.4), 3) for step in range(5)]
        [0.5, 1.0, 1.0, 0.75, 0.25]
    """
    rising = math.floor(warmup * total)
    if step < rising:
        return peak * (step + 1) / rising
    progress = (step - rising) / max(total - rising, 1)
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def evaluation_steps(total: int, times: int | None) -> frozenset[int]:
    """The counts of done steps after which to evaluate: ``times`` of them evenly spread, the last step always one.

    Without ``times`` there are 20, or in a short run as many as leaves 20 steps between them.

    Example:
        >>> sorted(evaluation_steps(10, 4))
        [2, 5, 8, 10]
    """
    times = min(20, total // 20) if times is None else times
    times = max(min(times, total), 1)
    return frozenset(
        -(-total * i // times) if i == times else round(total * i / times) for i in range(1, times + 1)
    ) - {0}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Trainable parameters in two groups: matrices decay; norms, biases, tokens, queries and positions do not."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            path = f"{prefix}.{name}"
            learned_input = isinstance(module, nn.Embedding) or any(word in path for word in _UNDECAYED_WORDS)
            (plain if parameter.ndim < 2 or learned_input else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(
    model: nn.Module, lr: float, weight_decay: float, *, fused: bool = True
) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    """AdamW over ``parameter_groups``, and the flat list of what it trains.

    Args:
        model: Frozen parameters are left out.
        lr: First learning rate.
        weight_decay: Of the matrices.
        fused: One kernel for all parameters; not with a gradient scaler that must be unscaled before clipping.

    Raises:
        ValueError: If nothing in ``model`` is trainable.
    """
    groups = parameter_groups(model, weight_decay)
    parameters = [parameter for group in groups for parameter in _parameters(group)]
    if not parameters:
        raise ValueError(f"{type(model).__name__} has no trainable parameter; unfreeze the head at least")
    fused = fused and all(parameter.is_floating_point() for parameter in parameters)
    return torch.optim.AdamW(groups, lr=lr, fused=fused), parameters


def _parameters(group: dict[str, object]) -> Iterable[nn.Parameter]:
    params = group["params"]
    assert isinstance(params, list)  # noqa: S101 - narrows the type
    return params


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the rate ``lr``, or the share of it that the group names as ``lr_share``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_share", 1.0)
