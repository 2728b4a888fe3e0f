"""Train each encoder alone, freeze it, and keep its features: every fusion then trains in seconds on the same cache.

Shapes: N rows, D embedding width.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from polyfuse.config import PLAIN
from polyfuse.data.batch import Batch, map_tensors
from polyfuse.data.spec import ModalitySpec, TargetSpec
from polyfuse.errors import UserError
from polyfuse.fusion.base import FusionOutput, check_embeddings
from polyfuse.models.fusion_model import FusionModel
from polyfuse.train.build import build_encoder_of, build_head, encoder_width, freeze, seeded
from polyfuse.train.loop import FitResult, fit

if TYPE_CHECKING:
    from polyfuse.config import ModelConfig, TrainConfig


class SingleInput(nn.Module):
    """The fusion of one modality with nothing: its embedding as it is, zeros where it is absent.

    Args:
        modality: Its name.
        embed_dim: Width D of its embedding.

    Example:
        >>> SingleInput("image", 4)({"image": torch.ones(2, 4)}).fused.shape
        torch.Size([2, 4])
    """

    decision_level = False

    def __init__(self, modality: str, embed_dim: int) -> None:
        super().__init__()
        self.modalities = (modality,)
        self.out_dim = embed_dim

    def forward(self, embeddings: Mapping[str, Tensor], present: Tensor | None = None) -> FusionOutput:
        """``(B, D)`` as it came; weights: 1 where present."""
        ordered, present = check_embeddings(embeddings, self.modalities, present)
        return FusionOutput(ordered[0], present.to(ordered[0].dtype), {"empty": ~present[:, 0]})


def select(batch: Batch, modality: str) -> Batch:
    """The rows that have ``modality``, with that input alone."""
    column = batch.modalities.index(modality)
    alone = Batch(
        (modality,), {modality: batch.inputs[modality]}, batch.present[:, [column]], batch.target, batch.keys, batch.ids
    )
    return alone.rows(batch.present[:, column].nonzero()[:, 0])


def fit_encoder(
    spec: ModalitySpec,
    train: Batch,
    validation: Batch | None,
    target: TargetSpec,
    model: "ModelConfig",
    config: "TrainConfig",
    *,
    progress: bool = False,
    fabric: Any = None,
) -> tuple[nn.Module, FitResult]:
    """Train one encoder under a linear head, on the rows that have its modality; early-stopped on validation loss.

    Args:
        spec: The modality.
        train: Training rows, any modalities.
        validation: Validation rows.
        target: Decides the head and the loss.
        model: Its ``encoders`` entry and ``embed_dim`` are used; of the masking, only the corruption.
        config: The loop's settings.
        progress: Show progress on stderr.
        fabric: As in ``fit``.

    Returns:
        The encoder, frozen and in eval mode, and what its training came to.

    Raises:
        UserError: If no training row has the modality, or a setting does not fit.
    """
    own_train = select(train, spec.name)
    if len(own_train) == 0:
        raise UserError(f"modality '{spec.name}' is absent from every training row; remove it from data.modalities")
    own_validation = None if validation is None else select(validation, spec.name)
    encoder = build_encoder_of(spec, model, seed=config.seed)
    with seeded(config.seed, f"head of {spec.name}"):
        head = build_head(target, encoder_width(encoder, spec))
    alone = FusionModel({spec.name: encoder}, SingleInput(spec.name, encoder_width(encoder, spec)), head)
    masking = {**model.masking(), "modality_dropout": 0.0}
    result = fit(
        alone,
        own_train,
        own_validation,
        config.model_copy(update={"recipe": PLAIN}),  # one input has no subsets
        task=target.task,
        masking=masking,
        classes=target.classes,
        progress=progress,
        fabric=fabric,
    )
    return freeze(encoder), result


def fit_encoders(
    specs: Mapping[str, ModalitySpec],
    train: Batch,
    validation: Batch | None,
    target: TargetSpec,
    model: "ModelConfig",
    config: "TrainConfig",
    *,
    progress: bool = False,
    fabric: Any = None,
) -> dict[str, nn.Module]:
    """``fit_encoder`` for every modality: frozen encoders by name."""
    return {
        name: fit_encoder(spec, train, validation, target, model, config, progress=progress, fabric=fabric)[0]
        for name, spec in specs.items()
    }


@torch.no_grad()
def embed(encoders: FusionModel | Mapping[str, nn.Module], batch: Batch, *, batch_size: int = 1024) -> Batch:
    """The same rows with features for inputs: ``{name: (N, D)}`` float32 on the CPU, zeros where absent.

    Encoders run in eval mode, whatever mode they are in.

    Args:
        encoders: One per modality, or a model that has them.
        batch: Raw inputs.
        batch_size: Rows at a time.
    """
    modules = encoders.encoders if isinstance(encoders, FusionModel) else encoders
    features: dict[str, Any] = {}
    for column, name in enumerate(batch.modalities):
        module = modules[name]
        training, device = module.training, next((p.device for p in module.parameters()), torch.device("cpu"))
        module.eval()
        parts = []
        for rows in torch.arange(len(batch)).split(batch_size):
            part = _column(batch, column).rows(rows).to(device)
            there_b = part.present[:, 0]
            clean = map_tensors(part.inputs, lambda t, there_b=there_b: zero_rows(t, ~there_b))
            parts.append(zero_rows(module(clean[name]).float(), ~there_b).cpu())
        module.train(training)
        features[name] = torch.cat(parts)
    return replace(batch, inputs=features)


def feature_specs(batch: Batch) -> dict[str, ModalitySpec]:
    """The specs of a batch of features: every modality a ``vector`` of its width."""
    return {name: ModalitySpec(name, "vector", {"width": _width(batch, name)}) for name in batch.modalities}


def zero_rows(value: Tensor, rows_B: Tensor) -> Tensor:
    """A copy that is zero (or False) in the marked rows."""
    return value.masked_fill(rows_B.view(-1, *(1,) * (value.ndim - 1)), 0)


def _width(batch: Batch, name: str) -> int:
    value = batch.inputs[name]
    if not isinstance(value, Tensor) or value.ndim != 2:
        raise ValueError(f"features of '{name}' must be (N, D), got {type(value).__name__}; call embed first")
    return value.shape[1]


def _column(batch: Batch, column: int) -> Batch:
    name = batch.modalities[column]
    return Batch((name,), {name: batch.inputs[name]}, batch.present[:, [column]], None, batch.keys)
