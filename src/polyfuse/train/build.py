"""Config to model: the one place that turns settings into the plain arguments of encoders, fusion and head."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from polyfuse.data.batch import map_tensors
from polyfuse.data.keyed import seed_of
from polyfuse.data.schema import nearest
from polyfuse.data.spec import ModalitySpec, TargetSpec, empty_input
from polyfuse.encoders import DEFAULTS, ENCODERS, build_encoder
from polyfuse.errors import UserError
from polyfuse.fusion import FUSIONS
from polyfuse.heads import ClassificationHead, MultilabelHead, RegressionHead
from polyfuse.models.fusion_model import FusionModel

if TYPE_CHECKING:
    from polyfuse.config import ModelConfig


def build_model(
    specs: Mapping[str, ModalitySpec],
    target: TargetSpec,
    model: "ModelConfig",
    *,
    seed: int = 0,
    encoders: Mapping[str, nn.Module] | None = None,
    fusion: Callable[..., Any] | None = None,
) -> FusionModel:
    """A ``FusionModel`` with fresh weights; the global random state is left as it was.

    Args:
        specs: One per modality; their order is the column order of ``present``.
        target: Decides the head.
        model: The settings.
        seed: Of the weights. Every encoder, the fusion and the head draw from a seed of their own, so two fusions with
            the same seed start from the same encoders.
        encoders: Modules to use instead of new ones, by modality: trained before, or ``nn.Identity()`` for features
            cached in a ``vector`` modality.
        fusion: A fusion class to use instead of ``model.fusion``, with the arguments in ``model.fusion_args``.

    Raises:
        UserError: If a name or an argument in ``model`` does not exist or does not fit.
    """
    made = dict(encoders or {})
    widths: dict[str, int] = {}
    for name, spec in specs.items():
        if name not in made:
            made[name] = build_encoder_of(spec, model, seed=seed)
        widths[name] = encoder_width(made[name], spec)
    outputs = 2 if target.task == "regression" else target.outputs
    with seeded(seed, "fusion"):
        fusion_class = FUSIONS[model.fusion] if fusion is None else fusion
        out_dim = outputs if getattr(fusion_class, "decision_level", False) else model.embed_dim
        name = model.fusion if fusion is None else fusion.__name__
        fused = _construct(
            fusion_class, (tuple(specs), widths, out_dim), dict(model.fusion_args), "model.fusion_args", name
        )
    with seeded(seed, "head"):
        head = None if fused.decision_level else build_head(target, fused.out_dim, model.hidden, model.dropout)
    return FusionModel(made, fused, head)


def build_head(target: TargetSpec, in_dim: int, hidden: int | None = None, dropout: float = 0.0) -> nn.Module:
    """The head of a task."""
    if target.task == "regression":
        return RegressionHead(in_dim, hidden=hidden, dropout=dropout)
    if target.outputs < 1:
        raise UserError(f"a {target.task} target needs classes, got none")
    head = ClassificationHead if target.task == "classification" else MultilabelHead
    return head(in_dim, target.outputs, hidden=hidden, dropout=dropout)


@torch.no_grad()
def encoder_width(encoder: nn.Module, spec: ModalitySpec) -> int:
    """Width of an encoder's embedding, seen on one empty row.

    Raises:
        ValueError: If it is not ``(B, D)``.
    """
    training, device = encoder.training, next((p.device for p in encoder.parameters()), torch.device("cpu"))
    row = map_tensors({spec.name: empty_input(spec, 1)}, lambda tensor: tensor.to(device))
    embedding = encoder.eval()(row[spec.name])
    encoder.train(training)
    if embedding.ndim != 2:
        raise ValueError(f"the encoder of '{spec.name}' must give (B, D), got {tuple(embedding.shape)} for one row")
    return int(embedding.shape[1])


def parameter_count(model: nn.Module, *, trainable: bool = False) -> int:
    """Number of parameters, all or those that train."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def build_encoder_of(spec: ModalitySpec, model: "ModelConfig", *, seed: int = 0) -> nn.Module:
    """The encoder that ``model`` wants for one modality, with the weights ``build_model`` would give it.

    Raises:
        UserError: If its name or an argument does not exist or does not fit.
    """
    where = f"model.encoders.{spec.name}"
    options = model.encoders.get(spec.name)
    embed_dim = (options.embed_dim if options is not None else None) or model.embed_dim
    name = options.name if options is not None else None
    if name is not None and name not in ENCODERS:
        raise UserError(
            f"'{where}.name': unknown encoder '{name}'{nearest(name, ENCODERS) or ';'} known: {', '.join(ENCODERS)}"
        )
    args = dict(options.args) if options is not None else {}
    kind = ENCODERS[name or DEFAULTS[spec.type]]
    _check_arguments(kind, args, f"{where}.args", name or DEFAULTS[spec.type], fixed=tuple(spec.options))
    try:
        with seeded(seed, f"encoder {spec.name}"):
            encoder = build_encoder(spec, embed_dim, name, **args)
    except (TypeError, ValueError) as error:
        raise UserError(f"'{where}': {error}") from None
    return freeze(encoder) if options is not None and options.frozen else encoder


def freeze(module: nn.Module) -> nn.Module:
    """The module in eval mode, none of its parameters trainable."""
    return module.eval().requires_grad_(False)


def _construct(kind: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], key: str, name: str) -> Any:
    _check_arguments(kind, kwargs, key, name)
    try:
        return kind(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(f"'{key}' of {name}: {error}") from None


def _check_arguments(
    kind: Callable[..., Any], kwargs: Mapping[str, Any], key: str, name: str, fixed: tuple[str, ...] = ()
) -> None:
    """Refuse unknown arguments, and those in ``fixed``, which the data decide."""
    parameters = inspect.signature(kind).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("device", "dtype", *fixed)]
    for argument in kwargs:
        if argument not in known:
            hint = nearest(argument, known) or ";"
            raise UserError(
                f"unknown key '{key}.{argument}'{hint} {name} takes: {', '.join(known) or 'no further arguments'}"
            )


@contextlib.contextmanager
def seeded(seed: int, part: str) -> Iterator[None]:
    """Run a block with the global generator seeded for one part, and put its state back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, "weights", part))
        yield
