"""Run by test_resume.py: trains the same tiny run many times, kills it with SIGKILL, resumes it, compares the bits.

One interpreter forks a child per attempt, so that PyTorch is imported once. Prints one JSON object per case.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polyfuse.config import EncoderConfig, ModelConfig, TrainConfig
from polyfuse.data.batch import Batch
from polyfuse.data.spec import ModalitySpec, TargetSpec
from polyfuse.train import loop
from polyfuse.train.build import build_model
from polyfuse.train.checkpoint import BEST, LAST, read_checkpoint, read_metrics
from polyfuse.train.loop import FitResult, fit
from polyfuse.train.schedule import make_optimizer

SPECS = {
    "sensor": ModalitySpec("sensor", "vector", {"width": 7}),
    "cells": ModalitySpec("cells", "tabular", {"numeric": 3, "cardinalities": [5, 4]}),
    "other": ModalitySpec("other", "vector", {"width": 5}),
}
TARGET = TargetSpec("classification", ("a", "b", "c"))
SMALL = {"hidden_dim": 8, "dropout": 0.2}
ENCODERS = {name: EncoderConfig(args=SMALL) for name in SPECS}
# Everything that could keep a state: dropout layers, drawn masks, corruption, passes, patience, a fusion that draws.
MODEL = ModelConfig(
    fusion="aecf",
    fusion_args={"policy": "uniform", "target_rate": 0.3},
    embed_dim=5,
    hidden=8,
    dropout=0.3,
    encoders=ENCODERS,
    modality_dropout=0.3,
    corruption=0.3,
)
TRAIN = TrainConfig(
    epochs=3, batch_size=8, accumulate=2, lr=0.01, evaluations=4, checkpoint_steps=4, entropy_weight=0.1, ramp=0.5
)


def make_table(rows: int, seed: int) -> Batch:
    """Random rows with holes and a label that can be learned."""
    g = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 3, (rows,), generator=g)
    present = torch.rand(rows, 3, generator=g) > 0.25
    mask = torch.rand(rows, 3, generator=g) > 0.2
    inputs: dict[str, Any] = {
        "sensor": torch.randn(rows, 7, generator=g) + target[:, None],
        "cells": {
            "numeric": torch.randn(rows, 3, generator=g) * mask,
            "numeric_mask": mask,
            "categorical": torch.randint(0, 4, (rows, 2), generator=g),
        },
        "other": torch.randn(rows, 5, generator=g) - target[:, None],
    }
    return Batch(tuple(SPECS), inputs, present, target, torch.arange(rows) * 31 + 7)


def train_run(run_dir: Path) -> FitResult:
    """Start or resume."""
    model = build_model(SPECS, TARGET, MODEL)
    torch.manual_seed(os.getpid())  # whatever the global state is, it must not matter
    return fit(
        model,
        make_table(53, 0),
        make_table(29, 1),
        TRAIN,
        task="classification",
        masking=MODEL.masking(),
        run_dir=run_dir,
        resume=True,
    )


def in_child(action: Callable[[], Any]) -> int:
    """Fork, run, and return the pid at once."""
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
    return pid


def wait(pid: int) -> int:
    """Exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_self(*_: Any) -> None:
    """As the out-of-memory killer does it."""
    os.kill(os.getpid(), signal.SIGKILL)


def at_step(number: int, what: Callable[..., None]) -> Callable[[], None]:
    """Do ``what`` in the middle of a step: after the backward pass, before the optimiser."""

    def plan() -> None:
        original = loop._Loop._train

        def train(self: Any, step: Any) -> None:
            if self.state.step == number:
                clip = self.device.clip
                self.device.clip = lambda *args: (clip(*args), what())
            original(self, step)

        loop._Loop._train = train

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
                kill_self()
            result = original(self, target)
            if ours and seen[0] == count:
                kill_self()
            return result

        Path.replace = replace

    return plan


def half_a_line() -> None:
    """Die while the third line of metrics is written."""
    original = loop.append_metrics
    seen = [0]

    def append(path: Path, record: Any) -> None:
        seen[0] += 1
        if seen[0] == 3:
            with path.open("a") as file:
                file.write('{"step": 1')
            kill_self()
        original(path, record)

    loop.append_metrics = append


def interrupt_self(*_: Any) -> None:
    """Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


def outcome(run_dir: Path) -> dict[str, Any]:
    """Everything a finished run leaves, without the times."""
    last, best = read_checkpoint(run_dir / LAST), read_checkpoint(run_dir / BEST)
    metrics = [{k: v for k, v in r.items() if k != "seconds"} for r in read_metrics(run_dir / "metrics.jsonl")]
    counters = {k: v for k, v in last.state["counters"].items() if k != "seconds"}
    return {"last": last.tensors, "best": best.tensors, "metrics": metrics, "counters": counters}


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names of what differs in any bit."""
    found = [part for part in ("metrics", "counters") if a[part] != b[part]]
    for part in ("last", "best"):
        found += [f"{part} {k}" for k in a[part].keys() ^ b[part].keys()]
        found += [f"{part} {k}" for k in a[part].keys() & b[part].keys() if not torch.equal(a[part][k], b[part][k])]
    return found


def report(case: str, **values: Any) -> None:
    print(json.dumps({"case": case, **values}), flush=True)


def main(folder: Path) -> None:
    """All cases."""
    torch.set_num_threads(1)
    os.fsync = lambda _: None  # what a killed process wrote is in the kernel; only a power cut needs the disk
    make_optimizer(nn.Linear(2, 2), 0.1, 0.0)  # the first optimiser of a process imports for seconds
    began = time.perf_counter()
    assert wait(in_child(lambda: train_run(folder / "whole"))) == 0
    duration = time.perf_counter() - began
    whole = outcome(folder / "whole")
    steps = whole["counters"]["step"]
    report("whole", steps=steps, evaluations=len(whole["metrics"]), moved=_moved(whole["best"]))

    cases: dict[str, tuple[Callable[[], None], int]] = {
        "before the first checkpoint": (at_step(2, kill_self), -9),
        "right after a checkpoint": (at_step(4, kill_self), -9),
        "in the middle of an epoch": (at_step(17, kill_self), -9),
        "first step of an epoch": (at_step(14, kill_self), -9),
        "last step": (at_step(steps - 1, kill_self), -9),
        "while the first checkpoint is written": (at_write(1, "last.safetensors", before=True), -9),
        "while the fourth checkpoint is written": (at_write(4, "last.safetensors", before=True), -9),
        "while the best weights are written": (at_write(2, "best.safetensors", before=True), -9),
        "between the best weights and the checkpoint": (at_write(2, "best.safetensors", before=False), -9),
        "half a line of metrics": (half_a_line, -9),
        "Ctrl-C": (at_step(9, interrupt_self), 130),
        "SIGTERM": (at_step(15, lambda: os.kill(os.getpid(), signal.SIGTERM)), 143),
    }
    for number, (case, (plan, expected)) in enumerate(cases.items()):
        run_dir = folder / str(number)
        code = wait(in_child(lambda plan=plan, run_dir=run_dir: (plan(), train_run(run_dir))))
        path = run_dir / LAST
        saved = read_checkpoint(path).state["counters"]["step"] if path.exists() else None
        resumed = wait(in_child(lambda run_dir=run_dir: train_run(run_dir)))
        report(
            case,
            died=code == expected,
            saved=saved,
            resumed=resumed,
            differs=differences(whole, outcome(run_dir)),
            litter=sorted(p.name for p in (run_dir / LAST).parent.glob(".*")),
        )

    chance, kills, run_dir = random.Random(0), 0, folder / "chain"
    for attempt in range(60):  # killed from outside, at any instruction, until it gets through
        pid = in_child(lambda: train_run(run_dir))
        while attempt == 0 and not (run_dir / LAST).exists():  # one kill is certain, however the machine's speed drifts
            time.sleep(0.001)
        time.sleep((chance.uniform(0.2, 0.6) + 0.05 * attempt) * duration if attempt else 0.0)
        os.kill(pid, signal.SIGKILL)
        if wait(pid) == 0:
            break
        kills += 1
    finished = wait(in_child(lambda: train_run(run_dir)))
    report("killed again and again", kills=kills, resumed=finished, differs=differences(whole, outcome(run_dir)))


def _moved(tensors: dict[str, torch.Tensor]) -> bool:
    fresh: nn.Module = build_model(SPECS, TARGET, MODEL)
    return not any(torch.equal(p, tensors[f"model.{name}"]) for name, p in fresh.named_parameters() if p.numel() > 5)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
