"""Throughput of the training loop, beside a bare PyTorch loop over the same module and rows.

    OMP_NUM_THREADS=1 python benchmarks/train.py

The module is a fusion head on cached features (three modalities of width 64, nine classes), the smallest case and so
the one in which a loop costs most. Every round runs all arms in random order; printed is the median of the per-round
ratios of steps per second to the bare loop. The strict bare loop has what ours has: fused AdamW and clipping.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from polyfuse.config import ModelConfig, TrainConfig
from polyfuse.data.batch import Batch, Inputs
from polyfuse.data.spec import ModalitySpec, TargetSpec
from polyfuse.models.fusion_model import FusionModel
from polyfuse.train.build import build_model
from polyfuse.train.loop import fit

NAMES, WIDTH, CLASSES, BATCH = ("image", "text", "audio"), 64, 9, 64


def make_table(rows: int) -> Batch:
    """Random features, a fifth of them absent."""
    generator = torch.Generator().manual_seed(0)
    present = torch.rand(rows, len(NAMES), generator=generator) > 0.2
    inputs: Inputs = {
        n: torch.randn(rows, WIDTH, generator=generator) * present[:, m, None] for m, n in enumerate(NAMES)
    }
    target = torch.randint(0, CLASSES, (rows,), generator=generator)
    return Batch(NAMES, inputs, present, target, torch.arange(rows))


def make_model(fusion: str) -> FusionModel:
    """A head on cached features."""
    specs = {name: ModalitySpec(name, "vector", {"width": WIDTH}) for name in NAMES}
    target = TargetSpec("classification", tuple("abcdefghi"))
    return build_model(specs, target, ModelConfig(fusion=fusion), encoders={name: nn.Identity() for name in NAMES})


def bare(model: nn.Module, table: Batch, steps: int, *, fused: bool) -> float:
    """Seconds of the loop everybody writes."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True if fused else None)
    model.train()
    assert table.target is not None
    done, began = 0, time.perf_counter()
    while done < steps:
        for index in torch.randperm(len(table)).split(BATCH):
            inputs = {name: value[index] for name, value in table.inputs.items()}
            logits = model(inputs, table.present[index]).logits
            loss = nn.functional.cross_entropy(logits, table.target[index])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            done += 1
            if done == steps:
                break
    return time.perf_counter() - began


def ours(model: nn.Module, table: Batch, steps: int, *, recipe: bool, validate: bool) -> float:
    """Seconds of ``fit``, from call to return."""
    config = TrainConfig(steps=steps, batch_size=BATCH, patience=None)
    masking = ModelConfig().masking() if recipe else None
    validation = table.rows(torch.arange(200)) if validate else None
    began = time.perf_counter()
    fit(model, table, validation, config, task="classification", masking=masking)
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--fusion", default="concat")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = make_table(options.rows)
    arms: dict[str, Callable[[nn.Module], float]] = {
        "bare, AdamW as it comes": lambda model: bare(model, table, options.steps, fused=False),
        "bare, fused AdamW (strict)": lambda model: bare(model, table, options.steps, fused=True),
        "fit": lambda model: ours(model, table, options.steps, recipe=False, validate=False),
        "fit, validation": lambda model: ours(model, table, options.steps, recipe=False, validate=True),
        "fit, dropout + corruption": lambda model: ours(model, table, options.steps, recipe=True, validate=False),
        "fit, all that and validation": lambda model: ours(model, table, options.steps, recipe=True, validate=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    order = random.Random(0)
    for round_number in range(options.rounds + 1):
        for name in order.sample(sorted(arms), len(arms)):
            spent = arms[name](make_model(options.fusion))
            if round_number:  # the first round warms up
                seconds[name].append(spent)
    print(f"{options.fusion}, {options.steps} steps of {BATCH} rows, median of {options.rounds} rounds, one thread")
    print(f"{'':34s}  ms/step   x as-it-comes   x strict")
    for name, taken in seconds.items():
        ratios = [
            statistics.median(base / mine for base, mine in zip(seconds[other], taken, strict=True))
            for other in ("bare, AdamW as it comes", "bare, fused AdamW (strict)")
        ]
        print(f"{name:34s} {statistics.median(taken) / options.steps * 1e3:8.3f} {ratios[0]:15.2f} {ratios[1]:10.2f}")


if __name__ == "__main__":
    main()
