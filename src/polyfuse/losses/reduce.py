"""What the losses share: the mean over what is to be predicted, random draws, and the check of masks."""

import torch
from torch import Tensor

REDUCTIONS = ("mean", "sum", "none")


def reduce(values: Tensor, reduction: str = "mean") -> Tensor:
    """Mean, sum, or all of ``values``; the mean of nothing is 0, attached to the graph, and its gradient is zero.

    Shape:
        ``(N,)`` to a scalar, or ``(N,)`` where reduction is "none".

    Raises:
        ValueError: If the reduction is unknown.

    Example:
        >>> reduce(torch.tensor([]))
        tensor(0.)
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got '{reduction}'")
    if reduction == "none":
        return values
    return values.sum() if reduction == "sum" else values.sum() / max(len(values), 1)


def uniform_draws(draws: Tensor | torch.Generator, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Draws in [0, 1): those given, or fresh ones of a generator, on the device of ``like``.

    Raises:
        ValueError: If the draws given are not of ``shape``.
    """
    if isinstance(draws, torch.Generator):
        return torch.rand(shape, generator=draws, device=draws.device).to(like.device)
    if draws.shape != shape:
        raise ValueError(f"draws must have shape {shape}, got {tuple(draws.shape)}")
    return draws.to(like.device)


def check_mask(mask: Tensor, shape: tuple[int, ...], name: str) -> None:
    """Refuse a mask that is not bool of ``shape``.

    Raises:
        ValueError: With its name, and the shape and type it has.
    """
    if mask.dtype != torch.bool or mask.shape != shape:
        raise ValueError(f"{name} must be bool of shape {tuple(shape)}, got {mask.dtype} of {tuple(mask.shape)}")


def all_there(mask: Tensor | None, shape: tuple[int, ...], like: Tensor, name: str) -> Tensor:
    """``mask``, checked, or all True."""
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=like.device)
    check_mask(mask, shape, name)
    return mask


def full_precision(like: Tensor) -> torch.autocast:
    """A region without autocast, which would multiply float32 matrices in half precision."""
    return torch.autocast(like.device.type, enabled=False)
