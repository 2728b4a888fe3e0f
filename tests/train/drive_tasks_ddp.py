"""Run by test_task_parallel.py under ``torchrun --nproc-per-node=2``: the task loop alone against two processes.

Prints, on the first process, one JSON object per case with the largest differences of losses and gradients.
"""

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

warnings.simplefilter("ignore")
sys.modules["torchmetrics"] = None  # Fabric imports it for seconds where it is installed, and does not need it
sys.path.insert(0, str(Path(__file__).parent))

from task_toy import toy_tasks  # noqa: E402

from polyfuse.task_config import LoopConfig  # noqa: E402
from polyfuse.tasks.model import TaskModel  # noqa: E402
from polyfuse.train import task_loop  # noqa: E402
from polyfuse.train.checkpoint import BEST, LAST, read_checkpoint  # noqa: E402
from polyfuse.train.task_devices import Alone, Replicas, Shards, full, task_fabric  # noqa: E402
from polyfuse.train.task_loop import LoopSettings, TaskFit, fit_tasks  # noqa: E402

STILL = LoopSettings(steps=5, batch_size=7, lr=1e-12, clip=1e9, evaluations=5, seed=3)  # gradients compare
MIX = {"masked_words": 1.0, "contrast": 0.5, "match": 0.7, "answer": 2.0, "grounding": 1.5}
# 17 rows in steps of 7: shares of four and three rows.
CASES: dict[str, dict[str, Any]] = {
    **{
        name: {"weights": {name: 1.0}}
        for name in (
            *("contrast", "siglip", "match", "hard_match", "masked_words", "masked_patches"),
            *("alignment", "caption", "answer", "value", "grounding"),
        )
    },
    "mixed": {"weights": MIX},
    "sampled": {"weights": MIX, "settings": {"mixing": "sample", "steps": 11}},
    "in two passes": {"weights": {**MIX, "siglip": 1.0}, "settings": {"accumulate": 2}},
    "sampled in two passes": {"weights": MIX, "settings": {"mixing": "sample", "steps": 11, "accumulate": 2}},
    "one stream after two": {"weights": MIX, "backbone": "multimodal"},
    "two streams": {"weights": MIX, "backbone": "vilbert"},
}
SHARDED = ("mixed", "sampled", "contrast", "hard_match", "two streams", "in two passes")


@contextmanager
def recorded() -> Iterator[list[dict[str, torch.Tensor]]]:
    """Every gradient, by name, just before the optimiser uses it."""
    found: list[dict[str, torch.Tensor]] = []
    own = Shards.__dict__["clip"]

    def clip(device: Any, module: TaskModel, optimizer: Any, norm: float) -> None:
        named = {name: p.grad for name, p in module.named_parameters()}
        found.append({name: full(g).clone() for name, g in named.items() if g is not None})

    Alone.clip = Replicas.clip = Shards.clip = clip
    try:
        yield found
    finally:
        del Alone.clip, Replicas.clip
        Shards.clip = own


def train(
    fabric: Any, case: dict[str, Any], run_dir: Path | None = None, **settings: Any
) -> tuple[TaskFit, list[dict[str, torch.Tensor]], TaskModel]:
    """One run, recorded."""
    model, tasks = toy_tasks(
        case["weights"], backbone=case.get("backbone", "uniter"), dropout=settings.pop("dropout", 0.0)
    )
    held_out = tasks["answer"].collate([0, 4, 8]) if "answer" in tasks else None

    def validate(model: TaskModel) -> dict[str, float]:
        if held_out is None:
            return {"loss": 0.0}
        return {"loss": tasks["answer"].objective.loss(model, held_out, {})[0].item()}

    chosen = replace(STILL, **{**case.get("settings", {}), **settings})
    with recorded() as gradients:
        result = fit_tasks(
            model, tasks, chosen, validate=validate, fabric=fabric, run_dir=run_dir, resume=run_dir is not None
        )
    return result, gradients, model


def compare(name: str, label: str, fabric: Any, lead: bool) -> None:
    """Alone against together."""
    sharded = type(fabric.strategy).__name__ == "ModelParallelStrategy"
    alone, own, _ = train(None, CASES[name])
    together, shared, model = train(fabric, CASES[name], shard_parameters=sharded)
    plain = all(type(p.data) is torch.Tensor for p in model.parameters())
    if not lead:
        return
    losses = [0.0]
    for a, b in zip(alone.history, together.history, strict=True):
        losses += [abs(a["train_loss"] - b["train_loss"]), abs(a["validation"]["loss"] - b["validation"]["loss"])]
        for task, found in b["objectives"].items():  # contrastive shares give no figures
            losses += [abs(value - a["objectives"][task][figure]) for figure, value in found.items()]
    trained = [sorted({task for r in run.history for task in r["objectives"]}) for run in (alone, together)]
    assert trained[0] == trained[1] == sorted(CASES[name]["weights"])
    same = all(a.keys() >= b.keys() for a, b in zip(own, shared, strict=True))
    differ = [
        (a[key] - b[key]).abs().max().item() if key in b else a[key].abs().max().item()
        for a, b in zip(own, shared, strict=True)
        for key in a
    ]
    size = max(g.abs().max().item() for step in own for g in step.values())
    record = {"losses": max(losses), "gradients": max(differ), "size": size, "same": same, "plain": plain}
    print(json.dumps({"case": f"{label}{name}", **record, "steps": len(own)}), flush=True)


def resume(label: str, folder: Path, fabric: Any, lead: bool) -> None:
    """Two processes interrupted between evaluations and resumed, dropout on: the same bits."""
    sharded = type(fabric.strategy).__name__ == "ModelParallelStrategy"
    case = {"weights": MIX}
    options: dict[str, Any] = {"lr": 0.01, "steps": 9, "evaluations": 2, "dropout": 0.3, "shard_parameters": sharded}
    options["clip"] = 1.0
    _, _, first = train(fabric, case, folder / "whole", **options)
    original = task_loop._Loop._train

    def stop(self: Any, number: int) -> None:
        if number == 7:
            raise KeyboardInterrupt
        original(self, number)

    task_loop._Loop._train = stop
    stopped = False
    try:
        train(fabric, case, folder / "cut", checkpoint_steps=2, **options)
    except KeyboardInterrupt:
        stopped = True
    task_loop._Loop._train = original
    fabric.barrier()
    _, _, second = train(fabric, case, folder / "cut", checkpoint_steps=2, **options)
    if not lead:
        return
    differs = []
    for file in (LAST, BEST):
        a, b = (read_checkpoint(folder / name / file).tensors for name in ("whole", "cut"))
        differs += [name for name in a if not torch.equal(a[name], b[name])]
    weights = zip(first.state_dict().items(), second.state_dict().values(), strict=True)
    differs += [name for (name, a), b in weights if not torch.equal(a, b)]
    print(json.dumps({"case": f"{label}resume", "stopped": stopped, "differs": differs, "tensors": len(a)}), flush=True)


def main(folder: Path) -> None:
    """All cases."""
    torch.set_num_threads(1)
    fabric = task_fabric(LoopConfig())
    lead = fabric.global_rank == 0
    assert fabric.world_size == 2
    for name in CASES:
        compare(name, "", fabric, lead)
    resume("", folder / "replicas", fabric, lead)
    fabric = task_fabric(LoopConfig(shard_parameters=True))
    for name in SHARDED:
        compare(name, "sharded: ", fabric, lead)
    resume("sharded: ", folder / "shards", fabric, lead)
    fabric.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
