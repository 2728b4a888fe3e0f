"""Run by test_task_resume.py: kills the same tiny run of the task loop in many places, resumes it, compares the bits.

One interpreter forks a child per attempt, so that PyTorch is imported once. Prints one JSON object per case.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from task_toy import toy_tasks

from polyfuse.tasks.model import TaskModel
from polyfuse.train import task_loop
from polyfuse.train.checkpoint import BEST, LAST, METRICS, read_checkpoint, read_metrics
from polyfuse.train.task_loop import LoopSettings, fit_tasks

# Everything that could keep a state: dropout, draws, sums between evaluations, frozen parts, the best weights.
SETTINGS = LoopSettings(
    steps=13, batch_size=5, lr=0.01, evaluations=3, checkpoint_steps=2, seed=5, layer_decay=0.8, weight_decay=0.1
)
WEIGHTS = {"masked_words": 1.0, "contrast": 0.5, "answer": 2.0, "caption": 1.0}


def train_run(run_dir: Path, mixing: str) -> None:
    """Start or resume."""
    model, tasks = toy_tasks(WEIGHTS, dropout=0.3)
    held_out = tasks["answer"].collate([0, 4, 8])

    def validate(model: TaskModel) -> dict[str, float]:
        return {"loss": tasks["answer"].objective.loss(model, held_out, {})[0].item()}

    def before_step(step: int) -> None:
        for parameter in model.stem.parameters():
            parameter.requires_grad_(step >= 6)

    torch.manual_seed(os.getpid())  # whatever the global state is, it must not matter
    settings = LoopSettings(**{**SETTINGS.__dict__, "mixing": mixing})
    fit_tasks(model, tasks, settings, validate=validate, before_step=before_step, run_dir=run_dir, resume=True)


def in_child(action: Callable[[], Any]) -> int:
    """Fork, run, and return the exit code, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        except KeyboardInterrupt:
            code = 130
        except SystemExit as error:
            code = error.code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def at_step(number: int, name: signal.Signals) -> Callable[[], None]:
    """A signal in the middle of a step: after the backward passes, before the optimiser."""

    def plan() -> None:
        original = task_loop.Alone.clip
        seen = [0]

        def clip(device: Any, *args: Any) -> None:
            original(device, *args)
            if seen[0] == number:
                os.kill(os.getpid(), name)
            seen[0] += 1

        task_loop.Alone.clip = clip

    return plan


def at_write(count: int, name: str, *, before: bool) -> Callable[[], None]:
    """Die at the ``count``-th rename of a checkpoint, before or after it."""

    def plan() -> None:
        original = Path.replace
        seen = [0]

        def replace(self: Path, target: Any) -> Path:
            ours = Path(target).name == name
            seen[0] += ours
            if before and ours and seen[0] == count:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(self, target)
            if ours and seen[0] == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        Path.replace = replace

    return plan


def outcome(run_dir: Path) -> dict[str, Any]:
    """Everything a finished run leaves, without the times."""
    last, best = read_checkpoint(run_dir / LAST), read_checkpoint(run_dir / BEST)
    metrics = [{k: v for k, v in r.items() if k != "seconds"} for r in read_metrics(run_dir / METRICS)]
    counters = {k: v for k, v in last.state["counters"].items() if k != "seconds"}
    return {"last": last.tensors, "best": best.tensors, "metrics": metrics, "counters": counters}


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names of what differs in any bit."""
    found = [part for part in ("metrics", "counters") if a[part] != b[part]]
    for part in ("last", "best"):
        found += [f"{part} {k}" for k in a[part].keys() ^ b[part].keys()]
        found += [f"{part} {k}" for k in a[part].keys() & b[part].keys() if not torch.equal(a[part][k], b[part][k])]
    return found


CASES: dict[str, Callable[[], None]] = {
    **{f"killed in step {step}": at_step(step, signal.SIGKILL) for step in range(13)},
    "while the third checkpoint is written": at_write(3, "last.safetensors", before=True),
    "right after a checkpoint": at_write(4, "last.safetensors", before=False),
    "between the best weights and the checkpoint": at_write(1, "best.safetensors", before=False),
    "Ctrl-C": at_step(6, signal.SIGINT),
    "SIGTERM": at_step(8, signal.SIGTERM),
}
SAMPLED = (0, 5, 10, 14)


def main(folder: Path) -> None:
    """All cases, with either mixing."""
    torch.set_num_threads(1)
    os.fsync = lambda _: None  # what a killed process wrote is in the kernel; only a power cut needs the disk
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # the first optimiser of a process imports for seconds
    for mixing in ("sum", "sample"):
        whole_dir = folder / f"{mixing} whole"
        assert in_child(lambda run=whole_dir, mix=mixing: train_run(run, mix)) == 0
        whole = outcome(whole_dir)
        for number, (case, plan) in enumerate(CASES.items()):
            if mixing == "sample" and number not in SAMPLED:
                continue
            run = folder / f"{mixing} {number}"

            def interrupted(plan: Callable[[], None] = plan, run: Path = run, mixing: str = mixing) -> None:
                plan()
                train_run(run, mixing)

            died = in_child(interrupted)
            saved = read_checkpoint(run / LAST).state["counters"]["step"] if (run / LAST).exists() else None
            resumed = in_child(lambda run=run, mix=mixing: train_run(run, mix))
            litter = [p.name for p in (run / "checkpoints").iterdir() if p.name.startswith(".")]
            found = differences(whole, outcome(run)) if resumed == 0 else ["not resumed"]
            record = {"died": died, "saved": saved, "resumed": resumed, "differs": found, "litter": litter}
            print(json.dumps({"case": f"{mixing}: {case}", **record}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
