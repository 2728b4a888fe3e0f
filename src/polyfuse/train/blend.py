"""Gradient-Blend's trial: how well the joint loss and every input's own loss generalise, measured before training."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from polyfuse.config import PLAIN
from polyfuse.data.batch import Batch
from polyfuse.errors import UserError
from polyfuse.train.balance import blend_weights
from polyfuse.train.loop import fit
from polyfuse.train.stream import Masking

if TYPE_CHECKING:
    from polyfuse.config import TrainConfig


def blend_trial(
    model: nn.Module,
    train: Batch,
    validation: Batch | None,
    config: "TrainConfig",
    task: str,
    masking: Masking,
    classes: Sequence[str],
) -> dict[str, float]:
    """Weights of Gradient-Blend: copies of the model are trained on all inputs, and on each alone, and measured.

    Every trial has a third of the steps. The joint loss has the name ""; weights are 1 on average.

    Raises:
        UserError: If there are no validation rows.
    """
    if validation is None or not len(validation):
        raise UserError("train.recipe.balance=g_blend measures on validation rows, got none")
    steps = config.steps or config.epochs * -(-len(train) // config.batch_size)
    quiet = {"recipe": PLAIN, "patience": None, "evaluations": 6, "steps": max(steps // 3, 2)}
    plain = config.model_copy(update=quiet)
    curves: dict[str, list[dict[str, Any]]] = {}
    for name in ("", *train.modalities):
        rows, held = (batch if not name else _alone(batch, name) for batch in (train, validation))
        if len(rows) and len(held):
            own = masking if not name else replace(masking, modality_dropout=0.0)
            result = fit(copy.deepcopy(model), rows, held, plain, task=task, masking=own, classes=classes)
            curves[name] = result.history
    falls = {
        key: {name: (history[0][key], history[-1][key]) for name, history in curves.items()}
        for key in ("train_loss", "validation_loss")
    }
    weights = blend_weights(falls["train_loss"], falls["validation_loss"])
    return {name: weight * len(weights) for name, weight in weights.items()}


def _alone(batch: Batch, name: str) -> Batch:
    """The rows that have one modality, everything else absent."""
    column = batch.modalities.index(name)
    present = torch.zeros_like(batch.present)
    present[:, column] = batch.present[:, column]
    return batch.with_present(present).rows(present.any(dim=1).nonzero()[:, 0])
