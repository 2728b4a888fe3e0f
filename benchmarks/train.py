"""Throughput of the training loop, beside a bare PyTorch loop over the same module and rows.

    OMP_NUM_THREADS=1 python benchmarks/train.py

The module is a fusion head on cached features (three modalities of width 64, nine classes), the smallest case and so
the one in which a loop costs most. Every round runs all arms in random order; printed is the median of the per-round
ratios of steps per second to a bare loop that does the same work: the model's forward and backward pass, once, for the
first arms; for the default recipe three fusion passes and the divergences between them, written out. The strict bare
loops have what ours has, fused AdamW; all clip.
"""

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from polyfuse.config import ModelConfig, RecipeConfig, TrainConfig
from polyfuse.data.batch import Batch, Inputs
from polyfuse.data.spec import ModalitySpec, TargetSpec
from polyfuse.models.fusion_model import FusionModel
from polyfuse.train.build import build_model
from polyfuse.train.loop import fit

NAMES, WIDTH, CLASSES, BATCH = ("image", "text", "audio"), 64, 9, 64


Arm = Callable[[nn.Module, Batch, int], float]


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


def bare(model: nn.Module, table: Batch, steps: int, *, fused: bool, sandwich: bool = False) -> float:
    """Seconds of the loop everybody writes."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True if fused else None)
    model.train()
    assert table.target is not None
    done, began = 0, time.perf_counter()
    while done < steps:
        for index in torch.randperm(len(table)).split(BATCH):
            inputs = {name: value[index] for name, value in table.inputs.items()}
            loss = losses_of(model, inputs, table.present[index], table.target[index], sandwich)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            done += 1
            if done == steps:
                break
    return time.perf_counter() - began


def losses_of(model: nn.Module, inputs: dict[str, Tensor], present: Tensor, target: Tensor, sandwich: bool) -> Tensor:
    """One pass, or the default recipe as one would write it: as given, with all, with one input; distilled."""
    if not sandwich:
        return nn.functional.cross_entropy(model(inputs, present).logits, target)
    keep = torch.rand_like(present, dtype=torch.float32)
    single = present & (keep == keep.masked_fill(~present, -1.0).amax(dim=1, keepdim=True))
    masks = torch.cat([present & (keep > 0.5), present, single])
    logits = model({name: value.repeat(3, 1) for name, value in inputs.items()}, masks).logits
    loss = nn.functional.cross_entropy(logits, target.repeat(3))
    first, full, last = logits.log_softmax(dim=1).chunk(3)
    teacher = full.detach()
    entropy = -(teacher.exp() * teacher).sum(dim=1) / math.log(CLASSES)
    for student in (first, last):
        rows = nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)
        loss = loss + 0.5 * (entropy * rows).mean()
    return loss


def ours(model: nn.Module, table: Batch, steps: int, *, sandwich: bool, masked: bool, validate: bool) -> float:
    """Seconds of ``fit``, from call to return."""
    recipe = RecipeConfig() if sandwich else RecipeConfig(passes="one", distill=0.0)
    config = TrainConfig(steps=steps, batch_size=BATCH, patience=None, recipe=recipe)
    masking = ModelConfig().masking() if masked else None
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
    # Each arm, and the bare loops (as AdamW comes, and strict) that do its work.
    arms: dict[str, tuple[Arm, str, str]] = {}
    for title, sandwich in (("bare", False), ("bare, recipe", True)):
        for fused in (False, True):
            name = f"{title}, fused AdamW" if fused else title
            arms[name] = (partial(bare, fused=fused, sandwich=sandwich), title, f"{title}, fused AdamW")
    for name, (sandwich, masked, validate) in {
        "fit": (False, False, False),
        "fit, validation": (False, False, True),
        "fit, dropout + corruption": (False, True, False),
        "fit, recipe + both": (True, True, False),
        "fit, recipe + both, validation": (True, True, True),
    }.items():
        title = "bare, recipe" if sandwich else "bare"
        fitting = partial(ours, sandwich=sandwich, masked=masked, validate=validate)
        arms[name] = (fitting, title, f"{title}, fused AdamW")
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    order = random.Random(0)
    for round_number in range(options.rounds + 1):
        for name in order.sample(sorted(arms), len(arms)):
            spent = arms[name][0](make_model(options.fusion), table, options.steps)
            if round_number:  # the first round warms up
                seconds[name].append(spent)
    print(f"{options.fusion}, {options.steps} steps of {BATCH} rows, median of {options.rounds} rounds, one thread")
    print(f"{'':34s}  ms/step   x as-it-comes   x strict")
    for name, taken in seconds.items():
        ratios = [
            statistics.median(base / mine for base, mine in zip(seconds[other], taken, strict=True))
            for other in arms[name][1:]
        ]
        print(f"{name:34s} {statistics.median(taken) / options.steps * 1e3:8.3f} {ratios[0]:15.2f} {ratios[1]:10.2f}")


if __name__ == "__main__":
    main()
