"""What the task loop takes and gives: settings, tasks, the outcome, counters, and what must agree on resuming."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from polyfuse.tasks.batch import Collator, TaskBatch
from polyfuse.tasks.eyes import Eye
from polyfuse.tasks.model import TaskModel
from polyfuse.tasks.objectives import Objective
from polyfuse.tasks.stem import GridStem, cell_boxes

_NOT_DECISIVE = {"threads", "checkpoint_seconds", "checkpoint_steps", "activation_checkpointing"}


@dataclass(frozen=True)
class LoopSettings:
    """The loop's settings, plain values.

    Attributes:
        steps: Optimiser steps.
        batch_size: Rows of a step and task, over all processes and passes.
        lr: Peak learning rate of AdamW.
        weight_decay: Of matrices.
        warmup: Share of the steps that warm up, before the cosine.
        clip: Largest norm of the gradient; None = no clipping.
        precision: "32-true", "bf16-mixed" or "16-mixed".
        seed: Of every draw.
        evaluations: Evenly spread over the run.
        mixing: "sum": every step trains every objective, weighted. "sample": one of them, drawn by weight.
        layer_decay: Factor of the learning rate per layer away from the heads; 1 = none.
        patience: Evaluations without a better figure before training stops; None = never.
        checkpoint_seconds: Longest time between two checkpoints.
        checkpoint_steps: Also a checkpoint every so many steps.
        accumulate: Passes a step is cut into, to save memory.
        activation_checkpointing: Layers compute again in the backward pass what they would have kept.
        shard_parameters: Every process holds a part of the parameters.
        threads: Of PyTorch; None = as it finds them.
    """

    steps: int
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float | None = 1.0
    precision: str = "32-true"
    seed: int = 0
    evaluations: int = 5
    mixing: Literal["sum", "sample"] = "sum"
    layer_decay: float = 1.0
    patience: int | None = None
    checkpoint_seconds: float = 20.0
    checkpoint_steps: int | None = None
    accumulate: int = 1
    activation_checkpointing: bool = False
    shard_parameters: bool = False
    threads: int | None = 1


@dataclass(frozen=True)
class Task:
    """One objective on one set of rows.

    Attributes:
        objective: Its heads are in the model.
        collate: Makes batches of the rows; tasks that share it and their rows share their batches.
        rows: ``(N,)`` numbers of the rows to train on.
        weight: Factor of its loss, or with "sample" how often it is drawn.
    """

    objective: Objective
    collate: Collator
    rows: np.ndarray
    weight: float = 1.0


@dataclass(frozen=True)
class TaskFit:
    """What a training run came to. The best weights are in the model.

    Attributes:
        best_metric: Best of the figure that decides; NaN without ``validate``.
        best_step: Step after which it was reached; without ``validate`` the last.
        steps: Optimiser steps done.
        seconds: Time in the loop, interrupted runs added up.
        history: The records of ``metrics.jsonl``: ``step``, ``learning_rate``, ``train_loss``, ``objectives`` (mean
            ``loss`` and figures of each since the last record, its ``steps`` and ``epochs``), ``validation``.
        stopped_early: Training ended before the last step.
    """

    best_metric: float
    best_step: int
    steps: int
    seconds: float
    history: list[dict[str, Any]]
    stopped_early: bool


@dataclass
class State:
    """The counters of a run: everything that is not a weight, a moment or a running sum."""

    step: int = 0
    best: float = math.inf
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0
    finished: bool = False


def visual_tokens(model: TaskModel, batch: TaskBatch) -> int:
    """How many patches or regions of a row the model may not see: what objectives draw for."""
    if isinstance(model.stem, (GridStem, Eye)):
        return model.stem.grid**2
    return 0 if batch.regions is None else batch.regions.shape[1]


def visual_places(model: TaskModel, batch: TaskBatch) -> tuple[Tensor, Tensor]:
    """Boxes ``(B, P, 4)`` and mask ``(B, P)`` of the stem's tokens, without running it."""
    if isinstance(model.stem, (GridStem, Eye)):
        frame = torch.tensor([0.0, 0.0, 1.0, 1.0], device=batch.ids.device).expand(getattr(model.stem, "whole", 0), 4)
        grid = model.stem.grid
        boxes = torch.cat([cell_boxes(grid, batch.ids.device), frame]) if grid else frame
        return boxes.expand(len(batch), -1, -1), batch.present[:, :1].expand(-1, len(boxes))
    if batch.region_boxes is None or batch.region_mask is None:
        raise ValueError("this model reads regions, got a batch without any")
    mask = batch.region_mask & batch.present[:, :1]
    return batch.region_boxes.masked_fill(~mask[..., None], 0.0), mask


def fingerprint(settings: LoopSettings, tasks: Mapping[str, Task], world_size: int) -> dict[str, Any]:
    """Everything that must agree for a run to be taken up again, by name."""
    found: dict[str, Any] = {f"train.{k}": v for k, v in asdict(settings).items() if k not in _NOT_DECISIVE}
    for name, task in tasks.items():
        rows = torch.from_numpy(np.asarray(task.rows))
        found[f"objective {name}"] = type(task.objective).__name__
        found[f"weight of {name}"] = task.weight
        found[f"rows of {name}"] = len(rows)
        found[f"checksum of the rows of {name}"] = int(task.collate.keys[rows].sum())
    return found | {"processes": world_size}
