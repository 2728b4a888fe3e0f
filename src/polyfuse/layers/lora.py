"""Low-rank adapters: linear layers whose frozen weight learns a product of two thin matrices beside it.

Written here, because the ``peft`` package imports transformers and accelerate whatever one asks of it, wraps the model,
and renames its weights; ours keeps names, so that checkpoints of the model still load.

Shapes: r rank.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyfuse.errors import UserError
from polyfuse.registry import select_names

_NAMES = ("lora_down", "lora_up")


class LoRALinear(nn.Linear):
    """``x W' + b + scale * (x A') B'``, W and b frozen, A ``(r, in)`` random, B ``(out, r)`` zero at the start.

    Weight and bias are the given layer's own tensors, under the same names.

    Source: https://arxiv.org/abs/2106.09685, equation 3; scale is alpha / r.

    Args:
        linear: A plain ``nn.Linear``.
        rank: r.
        alpha: Numerator of the scale.
        dropout: On the adapter's input, in training.

    Raises:
        ValueError: If the rank is not positive.

    Example:
        >>> layer = nn.Linear(7, 5)
        >>> x = torch.randn(3, 7)
        >>> torch.equal(LoRALinear(layer, rank=2)(x), layer(x))
        True
    """

    def __init__(self, linear: nn.Linear, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0) -> None:
        if rank < 1:
            raise ValueError(f"rank must be 1 or more, got {rank}")
        super().__init__(1, 1, bias=False, device="meta")  # the sizes and tensors follow
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight.requires_grad_(False), linear.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.lora_down = nn.Parameter(linear.weight.new_empty(rank, self.in_features))
        self.lora_up = nn.Parameter(linear.weight.new_zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))
        self.train(linear.training)

    @property
    def scale(self) -> float:
        """Alpha / r."""
        return self.alpha / self.rank

    def forward(self, input: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        low = F.linear(F.dropout(input, self.dropout, self.training), self.lora_down)
        return F.linear(input, self.weight, self.bias) + self.scale * F.linear(low, self.lora_up)

    def merged(self) -> nn.Linear:
        """A plain layer that computes the same; the product is taken in float32 at least."""
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        product = self.lora_up.detach().to(dtype) @ self.lora_down.detach().to(dtype)
        plain.weight = nn.Parameter((self.weight.detach().to(dtype) + self.scale * product).to(self.weight.dtype))
        plain.bias = self.bias
        return plain.train(self.training).requires_grad_(True)

    def extra_repr(self) -> str:
        """Sizes, rank and scale."""
        return f"{super().extra_repr()}, rank={self.rank}, scale={self.scale:g}"


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


def add_lora(
    model: nn.Module,
    patterns: Sequence[str] = ("*",),
    *,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    train: Sequence[str] = (),
) -> list[str]:
    """Freeze a model and put adapters on its linear layers, in place; their names.

    Only plain ``nn.Linear`` layers take one; those inside ``torch.nn.MultiheadAttention`` are read without being
    called and do not. The output of the model does not change. Where a model reads a layer's ``weight`` instead of
    calling it (UNITER's paired-attention head; word vectors that are tied to an output), an adapter would not be seen:
    ``uses_adapters`` tells.

    Args:
        model: Changed in place.
        patterns: Which linear layers (``polyfuse.registry.select_names``), by module name.
        rank: Of every adapter.
        alpha: Of every adapter.
        dropout: Of every adapter.
        train: Patterns of parameters that train beside the adapters, a new head's say.

    Raises:
        UserError: If a pattern matches no linear layer, or no parameter.
        ValueError: If the model has adapters already.
    """
    if lora_layers(model):
        raise ValueError("the model has adapters; merge_lora them first")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    kept = select_names(train, list(parameters)) if train else []
    names = select_names(patterns, [name for name, module in model.named_modules() if type(module) is nn.Linear],
                         "linear layer")  # fmt: skip
    model.requires_grad_(False)
    for name in kept:
        parameters[name].requires_grad_(True)
    trained = {id(parameters[name]) for name in kept}
    names = [name for name in names if id(parameters[f"{name}.weight"]) not in trained]
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)  # noqa: S101 - chosen so
        _replace(model, name, LoRALinear(linear, rank, alpha, dropout))
    return names


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The layers that have adapters, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def uses_adapters(model: nn.Module) -> list[str]:
    """Names of adapted layers whose B has a gradient: call it after a backward pass to see which are really used.

    At the start only B has one (A's is zero while B is).
    """
    return [name for name, layer in lora_layers(model).items() if layer.lora_up.grad is not None]


def merge_lora(model: nn.Module) -> nn.Module:
    """Fold every adapter into its weight, in place, and make these layers trainable and plain again."""
    for name, layer in lora_layers(model).items():
        _replace(model, name, layer.merged())
    return model


def save_adapters(model: nn.Module, path: str | Path, *, beside: Sequence[str] = ()) -> Path:
    """Write the adapters alone as a safetensors file.

    Args:
        model: With adapters.
        path: File to write.
        beside: Patterns of further parameters to keep in it, a new head's say.

    Raises:
        ValueError: If the model has no adapters.
        UserError: If a pattern matches no parameter.
    """
    from safetensors.torch import save_file

    layers = lora_layers(model)
    if not layers:
        raise ValueError("the model has no adapters to save")
    tensors = {f"{name}.{part}": getattr(layer, part).detach().contiguous() for name, layer in layers.items()
               for part in _NAMES}  # fmt: skip
    parameters = dict(model.named_parameters())
    extra = select_names(beside, list(parameters)) if beside else []
    tensors |= {name: parameters[name].detach().contiguous() for name in extra}
    settings = {name: [layer.rank, layer.alpha, layer.dropout] for name, layer in layers.items()}
    save_file(tensors, path, metadata={"polyfuse_lora": json.dumps(settings)})
    return Path(path)


def load_adapters(model: nn.Module, path: str | Path) -> list[str]:
    """Put the adapters of a file on a model without any (or replace the values of the same ones); their names.

    The model is frozen but for them.

    Raises:
        UserError: If the file holds no adapters, or they do not fit the model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            settings = json.loads((file.metadata() or {}).get("polyfuse_lora", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a file of adapters: {error}") from None
    if not settings:
        raise UserError(f"{path} holds no adapters; write them with save_adapters")
    _check_fit(model, settings, tensors, path)
    if not lora_layers(model):
        model.requires_grad_(False)
        for name, (rank, alpha, dropout) in settings.items():
            linear = model.get_submodule(name)
            assert isinstance(linear, nn.Linear)  # noqa: S101 - checked
            _replace(model, name, LoRALinear(linear, rank, alpha, dropout))
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)
    return list(settings)


def _check_fit(
    model: nn.Module, settings: dict[str, list[float]], tensors: dict[str, Tensor], path: str | Path
) -> None:
    """Everything before anything is changed."""
    modules, present = dict(model.named_modules()), lora_layers(model)
    if present and {n: [x.rank, x.alpha, x.dropout] for n, x in present.items()} != settings:
        raise UserError(f"{path} has other adapters than the model has; merge_lora the model's first")
    parameters = dict(model.named_parameters())
    expected: dict[str, tuple[float, ...]] = {}
    for name, (rank, *_) in settings.items():
        layer = modules.get(name)
        if not isinstance(layer, nn.Linear):
            raise UserError(f"{path} adapts '{name}', which is no linear layer of {type(model).__name__}")
        expected[f"{name}.lora_down"] = (rank, layer.in_features)
        expected[f"{name}.lora_up"] = (layer.out_features, rank)
    for name, tensor in tensors.items():
        size = expected.pop(name, None) or (tuple(parameters[name].shape) if name in parameters else None)
        if size != tuple(tensor.shape):
            raise UserError(f"{path}: '{name}' has shape {tuple(tensor.shape)}, the model expects {size}")
    if expected:
        raise UserError(f"{path} lacks {', '.join(sorted(expected)[:3])}")
