"""What every fusion costs: multiply-adds, time and memory of a forward pass and of a training step.

    python benchmarks/fusions.py             # M = 2, 4, 8, a minute or two on one core
    python benchmarks/fusions.py --rounds 5  # a quick look

One process, one thread, 256 rows, embeddings of width 128 to 10 outputs: each fusion with its defaults and a linear
head (``late`` and ``product_of_experts`` decide themselves). Every round runs all arms in random order and gives one
ratio per arm to the pool of ``nn.MultiheadAttention``; the table shows the median ratio and the median time. A quarter
of the entries is absent. "nn.MultiheadAttention" and "aecf 0.1.0" (one query, 1 head) sit on the same projections and
norms as ``attention_pool``; the former knows no masks, the latter gets them as ``key_padding_mask``. Training is
forward and backward, without an optimizer. Multiply-adds count matrix products, in training those of the backward pass
too. MB is the most memory that tensors made on the way hold at one time, parameters and inputs not counted, gradients
of parameters counted.

Shapes: B batch, M modalities, D width.
"""

import argparse
import os
import random
import statistics
import time
import warnings

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from polyfuse.fusion import FUSIONS, AttentionPoolFusion

B, D, OUTPUTS, HOLES = 256, 128, 10, 0.25
BASELINE = "nn.MultiheadAttention"


class Arm(nn.Module):
    """A fusion and, unless it decides itself, a linear head."""

    def __init__(self, fusion: nn.Module) -> None:
        super().__init__()
        self.fusion = fusion
        self.head = nn.Identity() if getattr(fusion, "decision_level", False) else nn.Linear(D, OUTPUTS)

    def forward(self, embeddings: dict[str, Tensor], present: Tensor) -> Tensor:
        """Logits ``(B, 10)``."""
        return self.head(self.fusion(embeddings, present)[0])


class Pool(nn.Module):
    """The tokens of ``AttentionPoolFusion`` under somebody else's attention."""

    def __init__(self, names: tuple[str, ...], attention: nn.Module, *, masks: bool) -> None:
        super().__init__()
        self.tokens = AttentionPoolFusion(names, D)
        self.tokens.pool = nn.Identity()
        self.query = nn.Parameter(torch.randn(1, 1, D) * D**-0.5)
        self.attention = attention
        self.masks = masks

    def forward(self, embeddings: dict[str, Tensor], present: Tensor) -> tuple[Tensor]:
        """The pooled tokens ``(B, D)``."""
        tokens, here = self.tokens.tokens(embeddings, present)
        query = self.query.expand(len(tokens), -1, -1)
        if self.masks:
            return (self.attention(query, tokens, key_padding_mask=~here)[:, 0],)
        return (self.attention(query, tokens, tokens, need_weights=False)[0][:, 0],)


def build_arms(number: int) -> dict[str, Arm]:
    """The arms by name, baseline first."""
    torch.manual_seed(0)
    names = tuple(f"m{i}" for i in range(number))
    arms = {BASELINE: Arm(Pool(names, nn.MultiheadAttention(D, 1, batch_first=True), masks=False))}
    try:
        import aecf

        pool = aecf.MultimodalAttentionPool(D, 1, curriculum_masking=aecf.CurriculumMasking(0.33))
        arms["aecf 0.1.0"] = Arm(Pool(names, pool, masks=True))
    except ImportError:
        print("aecf 0.1.0 is not installed: no arm of it (pip install aecf==0.1.0)")
    for name, kind in FUSIONS.items():
        arms[name] = Arm(kind(names, D, OUTPUTS if kind.decision_level else D))
    return arms


def make_batch(number: int) -> tuple[dict[str, Tensor], Tensor]:
    """Embeddings and presence; no row is empty."""
    generator = torch.Generator().manual_seed(0)
    present = torch.rand(B, number, generator=generator) >= HOLES
    present[torch.arange(B), torch.randint(number, (B,), generator=generator)] = True
    return {f"m{i}": torch.randn(B, D, generator=generator) for i in range(number)}, present


def run(arm: Arm, batch: tuple[dict[str, Tensor], Tensor], train: bool) -> None:
    """One pass, backward included in training."""
    logits = arm(*batch)
    if train:
        logits.sum().backward()


def seconds(arm: Arm, batch: tuple[dict[str, Tensor], Tensor], train: bool) -> float:
    """CPU seconds of one pass; gradients are dropped before, outside the clock."""
    arm.train(train).zero_grad()
    with torch.set_grad_enabled(train):
        start = time.process_time()
        run(arm, batch, train)
        return time.process_time() - start


def multiply_adds(arm: Arm, batch: tuple[dict[str, Tensor], Tensor], train: bool) -> float:
    """Millions of multiply-adds of the matrix products of one pass."""
    arm.train(train).zero_grad()
    with FlopCounterMode(display=False) as counter:
        run(arm, batch, train)
    return counter.get_total_flops() / 2e6


def peak_megabytes(arm: Arm, batch: tuple[dict[str, Tensor], Tensor], train: bool) -> float:
    """The most that allocations of one pass add up to."""
    arm.train(train).zero_grad()
    with torch.set_grad_enabled(train), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run(arm, batch, train)
    held, most = 0, 0
    events = profiler.profiler.kineto_results.events()
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 2**20


def measure(
    arms: dict[str, Arm], number: int, train: bool, rounds: int
) -> dict[str, tuple[float, float, float, float]]:
    """``{arm: (multiply-adds in millions, median milliseconds, median ratio, peak megabytes)}``."""
    batch = make_batch(number)
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 2):
        for name in random.sample(list(arms), len(arms)):
            taken = seconds(arms[name], batch, train)
            if turn >= 2:  # two rounds to warm up
                times[name].append(taken)
    result = {}
    for name, arm in arms.items():
        ratio = statistics.median(a / b for a, b in zip(times[name], times[BASELINE], strict=True))
        milliseconds = statistics.median(times[name]) * 1e3
        result[name] = (multiply_adds(arm, batch, train), milliseconds, ratio, peak_megabytes(arm, batch, train))
    return result


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Cost of every fusion beside a pool of nn.MultiheadAttention.")
    parser.add_argument("--rounds", type=int, default=20, help="rounds per case (default 20)")
    options = parser.parse_args()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells every start and stop otherwise
    torch.set_num_threads(1)
    random.seed(0)
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, 1 thread, {options.rounds} rounds; B = {B}, D = {D}; x = to {BASELINE}\n")
    part = f"{'Mmul-add':>10}{'ms':>8}{'x':>7}{'MB':>7}"
    print(f"{'':<36}{'forward (eval)':>32}{'forward + backward':>34}")
    print(f"{'M':<3}{'fusion':<23}{'k params':>10}{part}{'  '}{part}")
    for number in (2, 4, 8):
        arms = build_arms(number)
        sides = [measure(arms, number, train, options.rounds) for train in (False, True)]
        for name, arm in arms.items():
            size = sum(p.numel() for p in arm.parameters()) / 1e3
            cells = "  ".join(f"{w:>10.1f}{ms:>8.2f}{x:>7.2f}{mb:>7.2f}" for w, ms, x, mb in (s[name] for s in sides))
            print(f"{number:<3}{name:<23}{size:>10.1f}{cells}", flush=True)


if __name__ == "__main__":
    main()
