"""Heads: the fused vector to logits, or to the parameters of a prediction.

Shapes: B batch, D fused width, C classes, L labels.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

LOG_VARIANCE_LIMIT = 7.0  # variances of standardised targets stay within e^-7 .. e^7, about 0.001 .. 1100


def _mlp(in_dim: int, out_dim: int, hidden: int | None, dropout: float, factory: dict[str, Any]) -> nn.Sequential:
    """Dropout and a linear layer, with one GELU layer of width ``hidden`` before them if it is given."""
    layers: list[nn.Module] = []
    if hidden is not None:
        layers += [nn.Linear(in_dim, hidden, **factory), nn.GELU()]
    layers += [nn.Dropout(dropout), nn.Linear(in_dim if hidden is None else hidden, out_dim, **factory)]
    return nn.Sequential(*layers)


def gaussian_parameters(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and clamped log-variance of a raw ``(..., 2)`` regression output.

    Clamping twice changes nothing, so this reads the output of ``RegressionHead`` and of a decision-level fusion alike.

    Shape:
        raw: ``(..., 2)``; returns two ``(...)``.

    Raises:
        ValueError: If the last axis is not 2.

    Example:
        >>> gaussian_parameters(torch.tensor([[0.5, 99.0]]))
        (tensor([0.5000]), tensor([7.]))
    """
    if raw.shape[-1] != 2:
        raise ValueError(f"a regression output must be (..., 2): mean and log-variance, got {tuple(raw.shape)}")
    return raw[..., 0], raw[..., 1].clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)


class ClassificationHead(nn.Module):
    """Fused vector to one logit per class.

    Args:
        in_dim: Width D of the fused vector.
        num_classes: Number C of classes.
        hidden: Width of one hidden GELU layer; None = a linear head.
        dropout: Dropout before the last linear layer.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Shape:
        ``(B, D)`` to ``(B, C)``.

    Example:
        >>> ClassificationHead(4, num_classes=3)(torch.zeros(5, 4)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        hidden: int | None = None,
        dropout: float = 0.0,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.layers = _mlp(in_dim, num_classes, hidden, dropout, {"device": device, "dtype": dtype})

    def forward(self, fused: Tensor) -> Tensor:
        """Logits ``(B, C)`` of the softmax over classes."""
        return self.layers(fused)


class MultilabelHead(nn.Module):
    """Fused vector to one logit per label, each with its own sigmoid.

    Args:
        in_dim: Width D of the fused vector.
        num_labels: Number L of labels.
        hidden: Width of one hidden GELU layer; None = a linear head.
        dropout: Dropout before the last linear layer.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Shape:
        ``(B, D)`` to ``(B, L)``.

    Example:
        >>> MultilabelHead(4, num_labels=3, hidden=7)(torch.zeros(5, 4)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        in_dim: int,
        num_labels: int,
        hidden: int | None = None,
        dropout: float = 0.0,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.layers = _mlp(in_dim, num_labels, hidden, dropout, {"device": device, "dtype": dtype})

    def forward(self, fused: Tensor) -> Tensor:
        """Logits ``(B, L)``, one independent sigmoid each."""
        return self.layers(fused)


class RegressionHead(nn.Module):
    """Fused vector to a Gaussian: mean and log-variance of a standardised target.

    The log-variance is clamped to +-7, so that neither ``exp`` of it nor its inverse overflows.

    Args:
        in_dim: Width D of the fused vector.
        hidden: Width of one hidden GELU layer; None = a linear head.
        dropout: Dropout before the last linear layer.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Shape:
        ``(B, D)`` to ``(B, 2)``: mean, log-variance.

    Example:
        >>> RegressionHead(4)(torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        in_dim: int,
        hidden: int | None = None,
        dropout: float = 0.0,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.layers = _mlp(in_dim, 2, hidden, dropout, {"device": device, "dtype": dtype})

    def forward(self, fused: Tensor) -> Tensor:
        """Mean and clamped log-variance ``(B, 2)``."""
        return torch.stack(gaussian_parameters(self.layers(fused)), dim=-1)


def split_head(head: nn.Module) -> tuple[nn.Linear | None, Callable[[Tensor], Tensor]]:
    """The linear layer that a head of this module begins with, and what comes after it; (None, head) for any other.

    Two linear maps in a row are one: whoever computes what comes before the head can merge them.
    """
    if type(head) not in (ClassificationHead, MultilabelHead, RegressionHead):
        return None, head
    layers = list(head.get_submodule("layers").children())
    if isinstance(layers[0], nn.Dropout) and not layers[0].training:
        layers = layers[1:]
    first = layers[0]
    if not isinstance(first, nn.Linear):
        return None, head

    def after(x: Tensor) -> Tensor:
        for layer in layers[1:]:
            x = layer(x)
        return torch.stack(gaussian_parameters(x), dim=-1) if isinstance(head, RegressionHead) else x

    return first, after
