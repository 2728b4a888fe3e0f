"""Run by test_parallel.py under ``torchrun --nproc-per-node=2``.

Trains the same cases alone (``PlainDevice``) and together (Fabric, gloo) and prints, on the first process, one JSON
object per case with the largest differences of losses and gradients.
"""

import json
import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

warnings.simplefilter("ignore")
sys.modules["torchmetrics"] = None  # Fabric imports it for seconds where it is installed, and does not need it

from polyfuse.config import EncoderConfig, ModelConfig, TrainConfig  # noqa: E402
from polyfuse.data.batch import Batch  # noqa: E402
from polyfuse.data.spec import ModalitySpec, TargetSpec  # noqa: E402
from polyfuse.train import loop  # noqa: E402
from polyfuse.train.build import build_model  # noqa: E402
from polyfuse.train.checkpoint import LAST, read_checkpoint  # noqa: E402
from polyfuse.train.devices import FabricDevice, PlainDevice, make_fabric  # noqa: E402
from polyfuse.train.loop import FitResult, fit  # noqa: E402
from polyfuse.train.stream import Masking  # noqa: E402

SPECS = {
    "sensor": ModalitySpec("sensor", "vector", {"width": 7}),
    "cells": ModalitySpec("cells", "tabular", {"numeric": 3, "cardinalities": [5]}),
}
TARGETS = {
    "classification": TargetSpec("classification", ("a", "b", "c")),
    "multilabel": TargetSpec("multilabel", ("a", "b", "c")),
    "regression": TargetSpec("regression"),
}
ENCODERS = {name: EncoderConfig(args={"hidden_dim": 8, "dropout": 0.0}) for name in SPECS}
MASKING = Masking(modality_dropout=0.4, corruption=0.3, kinds=("noise",))  # swap looks at other rows of the process
STILL = {
    "lr": 1e-9,
    "clip": 1e9,
    "batch_size": 6,
    "evaluations": 1000,
    "patience": None,
    "seed": 3,
}  # gradients compare


def make_table(task: str, rows: int, *, absent_shard: bool = False) -> Batch:
    """Random rows with holes."""
    g = torch.Generator().manual_seed(rows)
    present = torch.rand(rows, 2, generator=g) > 0.3
    mask = torch.rand(rows, 3, generator=g) > 0.2
    inputs: dict[str, Any] = {
        "sensor": torch.randn(rows, 7, generator=g),
        "cells": {
            "numeric": torch.randn(rows, 3, generator=g) * mask,
            "numeric_mask": mask,
            "categorical": torch.randint(0, 5, (rows, 1), generator=g),
        },
    }
    target = {
        "classification": torch.randint(0, 3, (rows,), generator=g),
        "multilabel": torch.randint(0, 2, (rows, 3), generator=g).float(),
        "regression": torch.randn(rows, generator=g),
    }[task]
    if absent_shard:
        present[:, 1] = False
        present[:, 0] = True
    return Batch(tuple(SPECS), inputs, present, target, torch.arange(rows) * 17 + 3)


class Recorder:
    """Keeps every gradient, just before the optimiser uses it."""

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []

    def __enter__(self) -> "Recorder":
        self.clips = PlainDevice.clip, FabricDevice.clip

        def clip(device: Any, module: Any, optimizer: Any, norm: float) -> None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            self.gradients.append(torch.cat([p.grad.flatten() for p in parameters]).clone())

        PlainDevice.clip = FabricDevice.clip = clip
        return self

    def __exit__(self, *_: object) -> None:
        PlainDevice.clip, FabricDevice.clip = self.clips


def train(fabric: Any, case: dict[str, Any], run_dir: Path | None = None) -> tuple[FitResult, list[torch.Tensor], Any]:
    """One run, recorded."""
    task = case.get("task", "classification")
    model_config = ModelConfig(
        fusion=case.get("fusion", "concat"), embed_dim=5, hidden=8, dropout=case.get("dropout", 0.0), encoders=ENCODERS
    )
    model = build_model(SPECS, TARGETS[task], model_config)
    config = TrainConfig(**{"epochs": 2, **STILL, **case.get("train", {})})
    with Recorder() as recorder:
        result = fit(
            model,
            make_table(task, case.get("rows", 13), absent_shard=case.get("absent", False)),
            make_table(task, 9),
            config,
            task=task,
            masking=MASKING,
            classes=TARGETS[task].classes,
            run_dir=run_dir,
            resume=run_dir is not None,
            fabric=fabric,
        )
    return result, recorder.gradients, model


# 13 rows in steps of 6: the last step has one row, so the second process has none.
CASES: dict[str, dict[str, Any]] = {
    "concat": {},
    "even": {"rows": 12},
    "gated": {"fusion": "gated"},
    "late": {"fusion": "late"},
    "attention_pool": {"fusion": "attention_pool"},
    "three and two rows": {"rows": 11},
    "a modality absent from every shard": {"absent": True},
    "a modality absent from one shard": {"train": {"batch_size": 2}},  # one row per process, a third without it
    "accumulated": {"train": {"accumulate": 2}, "rows": 15},
    "class weights": {"train": {"class_weights": "balanced"}},
    "multilabel": {"task": "multilabel"},
    "regression": {"task": "regression"},
}


def compare(case: str, fabric: Any, lead: bool) -> None:
    """Alone against together."""
    alone, own, _ = train(None, CASES[case])
    together, shared, _ = train(fabric, CASES[case])
    if not lead:
        return
    losses = [
        abs(a[key] - b[key])
        for a, b in zip(alone.history, together.history, strict=True)
        for key in ("train_loss", "validation_loss")
    ]
    size = max(g.abs().max().item() for g in own)
    gradients = [(a - b).abs().max().item() for a, b in zip(own, shared, strict=True)]
    rate = abs(alone.realised_drop_rate - together.realised_drop_rate)
    print(json.dumps({"case": case, "losses": max(losses), "gradients": max(gradients), "size": size, "rate": rate}))


def resume_together(folder: Path, fabric: Any, lead: bool) -> None:
    """Two processes interrupted in the middle of an epoch and resumed, dropout on: the same bits."""
    case = {"dropout": 0.3, "rows": 31, "train": {"lr": 0.01, "clip": 1.0, "evaluations": 3, "accumulate": 2}}
    train(fabric, case, folder / "whole")
    original = loop._Loop._train

    def stop(self: Any, step: Any) -> None:
        if self.state.step == 8:
            raise KeyboardInterrupt
        original(self, step)

    loop._Loop._train = stop
    stopped = False
    case["train"]["checkpoint_steps"] = 7
    try:
        train(fabric, case, folder / "cut")
    except KeyboardInterrupt:
        stopped = True
    loop._Loop._train = original
    fabric.barrier()
    train(fabric, case, folder / "cut")
    if lead:
        a, b = (read_checkpoint(folder / name / LAST).tensors for name in ("whole", "cut"))
        differs = [name for name in a if name != "loop.sums" and not torch.equal(a[name], b[name])]
        print(json.dumps({"case": "resume", "stopped": stopped, "differs": differs, "tensors": len(a)}))


def one_process() -> None:
    """Fabric with one process gives the bits of no Fabric; bfloat16 trains with either."""
    from lightning_fabric import Fabric

    case = {"dropout": 0.3, "train": {"lr": 0.01, "clip": 0.1, "precision": "32-true"}}
    plain, _, model = train(None, case)
    wrapped, _, other = train(Fabric(accelerator="cpu", devices=1), case)
    equal = all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    case["train"]["precision"] = "bf16-mixed"
    half, _, _ = train(None, case)
    half_fabric, _, _ = train(Fabric(accelerator="cpu", devices=1, precision="bf16-mixed"), case)
    losses = [r.history[-1]["train_loss"] for r in (plain, wrapped, half, half_fabric)]
    assert all(math.isfinite(loss) for loss in losses)
    print(json.dumps({"case": "one process", "equal": equal, "losses": losses}))


def main(folder: Path) -> None:
    """All cases."""
    torch.set_num_threads(1)
    fabric = make_fabric(TrainConfig())
    lead = fabric.global_rank == 0
    assert fabric.world_size == 2
    for case in CASES:
        compare(case, fabric, lead)
    resume_together(folder, fabric, lead)
    fabric.barrier()
    torch.distributed.destroy_process_group()
    if lead:
        for name in [n for n in os.environ if n.endswith(("RANK", "WORLD_SIZE")) or n.startswith("MASTER")]:
            del os.environ[name]
        one_process()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
