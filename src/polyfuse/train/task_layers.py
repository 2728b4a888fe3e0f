"""The layers of a task model: which there are, what rate each learns at, and layers that compute again."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from polyfuse.tasks.model import TaskModel
from polyfuse.train.freeze import parameter_depths
from polyfuse.train.schedule import parameter_groups


def layers_of(model: TaskModel) -> dict[str, nn.Module]:
    """The backbone's layers by path: the entries of its lists of modules that have parts of their own.

    Example:
        >>> model = TaskModel(vocab_size=11, dim=8, backbone="uniter", backbone_options={"num_layers": 2})
        >>> list(layers_of(model))
        ['backbone.model.layers.0', 'backbone.model.layers.1']
    """
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if not path.startswith("backbone.") or not isinstance(module, nn.ModuleList):
            continue
        if any(path.startswith(f"{outer}.") for outer in found):
            continue
        found |= {f"{path}.{i}": layer for i, layer in enumerate(module) if any(True for _ in layer.children())}
    return found


def task_groups(model: TaskModel, weight_decay: float, layer_decay: float, *, frozen: bool) -> list[dict[str, Any]]:
    """Parameter groups with the share of the learning rate that each takes, as ``lr_share``.

    Source: layer-wise decay as in ELECTRA and BEiT: ``layer_decay ** depth`` (``parameter_depths``).

    Args:
        model: Heads attached.
        weight_decay: Of matrices.
        layer_decay: 1 = none.
        frozen: Include what requires no gradient now, because it may later.
    """
    still = [p for p in model.parameters() if not p.requires_grad] if frozen else []
    for parameter in still:
        parameter.requires_grad_(True)
    groups: list[dict[str, Any]] = parameter_groups(model, weight_decay)
    for parameter in still:
        parameter.requires_grad_(False)
    if layer_decay == 1.0:
        return [{**group, "lr_share": 1.0} for group in groups]
    by_name, names = parameter_depths(model), {parameter: name for name, parameter in model.named_parameters()}
    split: list[dict[str, Any]] = []
    for group in groups:
        parts: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            parts.setdefault(by_name[names[parameter]], []).append(parameter)
        split += [{**group, "params": parts[d], "lr_share": layer_decay**d} for d in sorted(parts)]
    return split


@contextlib.contextmanager
def checkpointed(model: TaskModel, enabled: bool = True) -> Iterator[None]:
    """Layers of the backbone keep their inputs only, and compute the rest again in the backward pass.

    Source: https://arxiv.org/abs/1604.06174, through ``torch.utils.checkpoint`` without re-entering; the random state
    is put back for the second computation, so dropout falls on the same places and gradients have the same bits.
    """
    layers = list(layers_of(model).values()) if enabled else []
    for layer in layers:
        layer.forward = _forgetful(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own again


def _forgetful(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
