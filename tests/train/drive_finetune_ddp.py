"""Run by test_finetune_parallel.py under ``torchrun --nproc-per-node=2``: fine-tuning alone against two processes.

Prints, on the first process, one JSON object per case.
"""

import json
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

warnings.simplefilter("ignore")
sys.modules["torchmetrics"] = None  # Fabric imports it for seconds where it is installed, and does not need it
sys.path.insert(0, str(Path(__file__).parent))

from drive_tasks_ddp import recorded  # noqa: E402
from task_toy import toy_data, toy_model, toy_words  # noqa: E402

from polyfuse.layers.lora import add_lora  # noqa: E402
from polyfuse.run.finetune import finetune_run  # noqa: E402
from polyfuse.task_config import LoopConfig  # noqa: E402
from polyfuse.tasks.model import TaskModel  # noqa: E402
from polyfuse.train import finetune, task_loop  # noqa: E402
from polyfuse.train.checkpoint import BEST, LAST, read_checkpoint  # noqa: E402
from polyfuse.train.finetune import FineTune, FineTuned, fine_tune  # noqa: E402
from polyfuse.train.task_augment import TaskAugmentation  # noqa: E402
from polyfuse.train.task_devices import task_fabric  # noqa: E402
from polyfuse.train.task_loop import LoopSettings  # noqa: E402
from polyfuse.yaml_text import dump_yaml  # noqa: E402

STILL = LoopSettings(steps=6, batch_size=7, lr=1e-12, clip=1e9, evaluations=6, seed=3)  # gradients compare
PLAIN = {"dropout": 0.0}
# 17 rows in steps of 7: shares of four and three rows; the third step begins to see rows again.
CASES: dict[str, dict[str, Any]] = {
    "vqa": {},
    "dropped and augmented": {"drop": {"image": 0.2, "text": 0.2}, "augmented": True},
    "gradual": {"unfreeze": {0: ("heads",), 2: ("backbone",), 4: ("stem",)}},
    "layer decay": {"loop": {"layer_decay": 0.5}},
    "adapters": {"adapted": True},
    "frozen stem": {"freeze": ("stem",)},
    "frozen stem and backbone": {"freeze": ("stem", "backbone")},
    "grounding": {"task": "grounding", "head": {}},
    "grounding, frozen stem, two passes": {
        "task": "grounding",
        "head": {},
        "freeze": ("stem",),
        "loop": {"accumulate": 2},
    },
    "captioning": {"task": "captioning", "head": {**PLAIN, "num_layers": 1, "num_heads": 2}},
    "retrieval": {"task": "retrieval", "head": {}},
    "siglip, frozen stem and backbone": {
        "task": "retrieval",
        "head": {},
        "objective": "siglip",
        "freeze": ("stem", "backbone"),
    },
    "regression": {"task": "regression"},
}
SHARDED = ("vqa", "layer decay", "adapters", "frozen stem", "frozen stem and backbone", "grounding")


def train(fabric: Any, case: dict[str, Any], **settings: Any) -> tuple[FineTuned, list[Any], list[str], TaskModel]:
    """One run, recorded."""
    given = dict(case)
    loop = replace(STILL, **{**given.pop("loop", {}), **settings})
    augmented, adapted = given.pop("augmented", False), given.pop("adapted", False)
    words, said = toy_words(), []
    model = toy_model(words)

    def adapt(model: TaskModel) -> None:
        torch.manual_seed(5)
        add_lora(model, ("backbone.*",), rank=3, train=("heads",))

    options = FineTune(**{"task": "vqa", "head": PLAIN, **given}, loop=loop)
    with recorded() as gradients:
        result = fine_tune(
            model,
            toy_data(),
            words,
            options,
            augment=TaskAugmentation(None, 0.3, 0.0, 3) if augmented else None,
            adapt=adapt if adapted else None,
            parts=("validation",),
            fabric=fabric,
            say=said.append,
        )
    return result, gradients, said, model


def compare(name: str, label: str, fabric: Any, lead: bool) -> None:
    """Alone against together."""
    sharded = type(fabric.strategy).__name__ == "ModelParallelStrategy"
    alone, own, said, first = train(None, CASES[name])
    together, shared, _, second = train(fabric, CASES[name], shard_parameters=sharded)
    if not lead:
        return
    losses = [0.0]
    for a, b in zip(alone.fit.history, together.fit.history, strict=True):
        losses += [abs(a["train_loss"] - b["train_loss"])]
        losses += [abs(value - a["validation"][key]) for key, value in b["validation"].items()]
        for task, found in b["objectives"].items():
            losses += [abs(value - a["objectives"][task][key]) for key, value in found.items()]
    differ = [
        (a[key] - b[key]).abs().max().item() if key in b else a[key].abs().max().item()
        for a, b in zip(own, shared, strict=True)
        for key in a
    ]
    sizes = [max((g.abs().max().item() for g in step.values()), default=0.0) for step in own]
    weights = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    record = {
        "losses": max(losses),
        "gradients": max(differ),
        "size": max(sizes),
        "trained": [len(step) for step in own],
        "as many": all(a.keys() == b.keys() for a, b in zip(own, shared, strict=True)),
        "judged": [found.judgements["validation"].figures for found in (alone, together)],
        "names": all(a[0] == b[0] and type(b[1]) is type(a[1]) for a, b in weights),
        "said": said,
        "answers": alone.answers == together.answers and alone.shift == together.shift,
    }
    print(json.dumps({"case": f"{label}{name}", **record}), flush=True)


def stop_early(fabric: Any, lead: bool) -> None:
    """The second process sees validation get better and better; what the first sees decides."""
    original = finetune._validation

    def other(*arguments: Any) -> Any:
        validate = original(*arguments)
        seen: list[int] = []

        def figures(model: TaskModel) -> dict[str, float]:
            seen.append(0)
            found = dict(validate(model))
            return found if fabric.global_rank == 0 else {**found, "accuracy": 2.0 + len(seen)}

        return figures

    finetune._validation = other
    result, *_ = train(fabric, {}, steps=20, evaluations=20, patience=3)
    finetune._validation = original
    mine = torch.tensor([result.fit.steps, result.fit.best_step, int(result.fit.stopped_early)])
    everyone = fabric.all_gather(mine)
    if lead:
        print(json.dumps({"case": "early stopping", "found": everyone.tolist()}), flush=True)


def folders(folder: Path, lead: bool, fabric: Any) -> None:
    """The command itself: one process, two, and two that were interrupted and resumed."""
    folder.mkdir(exist_ok=True)
    scenes = {"train": 19, "validation": 7, "test": 5, "novel": 3, "side": 32}
    values = {
        "task": "vqa",
        "data": {"source": "scene_questions", "args": scenes},
        "model": {"dim": 8, "max_length": 40, "backbone_options": {"num_layers": 2, "num_heads": 2, "dropout": 0.0}},
        "head": PLAIN,
        "train": {"steps": 7, "evaluations": 2, "batch_size": 11, "checkpoint_steps": 2},
    }
    config = folder / f"vqa-{int(lead)}.yaml"
    config.write_text(dump_yaml(values), encoding="utf-8")
    two = finetune_run("none", config, out=folder / "two", progress=False)
    dropping = ["head.dropout=0.3", "unfreeze={3: [backbone]}"]
    finetune_run("none", config, overrides=dropping, out=folder / "whole", progress=False)
    original = task_loop._Loop._train

    def stop(self: Any, number: int) -> None:
        if number == 5:
            raise KeyboardInterrupt
        original(self, number)

    task_loop._Loop._train = stop
    stopped = False
    try:
        finetune_run("none", config, overrides=dropping, out=folder / "cut", progress=False)
    except KeyboardInterrupt:
        stopped = True
    task_loop._Loop._train = original
    fabric.barrier()
    resumed = finetune_run(str(folder / "cut"), resume=True, progress=False)
    if not lead:
        assert two is None
        assert resumed is None
        return
    differs = []
    for file in (LAST, BEST):
        a, b = (read_checkpoint(folder / name / file).tensors for name in ("whole", "cut"))
        differs += [name for name in a if not torch.equal(a[name], b[name])]
    world = os.environ.pop("WORLD_SIZE")
    one = finetune_run("none", config, out=folder / "one", progress=False)
    os.environ["WORLD_SIZE"] = world
    assert one is not None
    assert two is not None
    record = {
        "stopped": stopped,
        "tensors": len(a),
        "differs": differs,
        "files": [sorted(path.name for path in (folder / name).iterdir()) for name in ("one", "two", "cut")],
        "lines": [len((folder / name / "metrics.jsonl").read_text().splitlines()) for name in ("one", "two", "cut")],
        "figures": [json.loads((folder / name / "metrics.json").read_text()) for name in ("one", "two")],
        "losses": [[r["validation"]["loss"] for r in run.result.fit.history] for run in (one, two)],
    }
    print(json.dumps({"case": "folders", **record}), flush=True)


def main(folder: Path) -> None:
    """All cases."""
    torch.set_num_threads(1)
    fabric = task_fabric(LoopConfig())
    lead = fabric.global_rank == 0
    assert fabric.world_size == 2
    for name in CASES:
        compare(name, "", fabric, lead)
    stop_early(fabric, lead)
    folders(folder, lead, fabric)
    fabric = task_fabric(LoopConfig(shard_parameters=True))
    for name in SHARDED:
        compare(name, "sharded: ", fabric, lead)
    fabric.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
