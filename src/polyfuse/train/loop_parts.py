"""What the loop counts, gives back, and must find again when a run is taken up."""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from polyfuse.data.batch import Batch
from polyfuse.train.stream import Masking

if TYPE_CHECKING:
    from polyfuse.config import TrainConfig

_NOT_DECISIVE = {"threads", "device", "checkpoint_seconds", "checkpoint_steps"}


@dataclass(frozen=True)
class FitResult:
    """What a training run came to. The best weights are in the model.

    Attributes:
        best_metric: Lowest validation loss, mean over subsets; NaN without validation rows.
        best_epoch: Epoch, counted from 1, in which it was reached.
        best_step: Step after which it was reached.
        steps: Optimiser steps done.
        seconds: Time in the loop, interrupted runs added up.
        history: The records of ``metrics.jsonl``.
        realised_drop_rate: Share of the present inputs hidden in training, by the loop and by the fusion's own policy.
        stopped_early: Training ended before the last step.
    """

    best_metric: float
    best_epoch: int
    best_step: int
    steps: int
    seconds: float
    history: list[dict[str, Any]]
    realised_drop_rate: float
    stopped_early: bool


@dataclass
class State:
    """The counters of a run: everything that is not a weight or a moment. ``rows`` counts since the last evaluation."""

    step: int = 0
    best: float = math.inf
    best_step: int = 0
    stale: int = 0
    rows: int = 0
    seconds: float = 0.0
    finished: bool = False


def fingerprint(config: "TrainConfig", masking: Masking, task: str, train: Batch, world_size: int) -> dict[str, Any]:
    """Everything that must agree for a run to be taken up again, by name."""
    settings = {f"train.{k}": v for k, v in config.model_dump(mode="json").items() if k not in _NOT_DECISIVE}
    masks = {f"masking.{k}": list(v) if isinstance(v, tuple) else v for k, v in asdict(masking).items()}
    data = {
        "task": task,
        "modalities": list(train.modalities),
        "training rows": len(train),
        "checksum of row keys": int(train.keys.sum()),
        "present inputs": int(train.present.sum()),
        "processes": world_size,
    }
    return settings | masks | data
