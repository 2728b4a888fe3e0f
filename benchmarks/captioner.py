"""Time captioning with a KV cache against the loop that reads all tokens again at every step.

    python benchmarks/captioner.py             # all cases, some minutes on one core
    python benchmarks/captioner.py --rounds 3  # a quick look

One process, one thread. Every round runs all arms of a case in random order and gives one ratio per arm to the first;
the table shows the median of these ratios, and the median of CPU milliseconds. The decoder is 256 wide with 4 heads, a
vocabulary of 4,000, and reads 49 context tokens; every row says 64 tokens, but for the last table, where rows end
anywhere between 1 and 64. Both loops put the last position alone through the output matrix, and say the same words.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polyfuse.models.captioner import Captioner
from polyfuse.models.captioner_step import DecoderStep
from polyfuse.models.generation import greedy

DIM, TOKENS, CONTEXT, VOCABULARY, EOS = 256, 64, 49, 4000, 2
# (layers, batch, beams), the target: how many times faster than without a cache.
CASES = [((4, 1, 1), 2.0), ((4, 16, 1), 5.0), ((6, 1, 1), 2.0), ((6, 16, 1), 5.0), ((4, 1, 5), None), ((4, 4, 5), None)]

Arm = Callable[[], Tensor]


class EndsWhenTold:
    """A decoding step whose rows end at given lengths."""

    def __init__(self, step: DecoderStep, lengths: Tensor) -> None:
        self.step, self.lengths = step, lengths

    def __call__(self, ids: Tensor) -> Tensor:
        """Logits that name EOS where a row's time has come, and never before."""
        logits = self.step(ids)
        ends = self.lengths <= ids.shape[1]
        logits[:, EOS] = torch.where(ends, torch.inf, -torch.inf).nan_to_num()
        return logits

    def reorder(self, rows: Tensor, groups: Tensor | None) -> None:
        """Go on with these rows."""
        self.lengths = self.lengths[rows]
        self.step.reorder(rows, groups)


def built(layers: int) -> Captioner:
    """The decoder of a case."""
    torch.manual_seed(0)
    return Captioner(
        vocab_size=VOCABULARY, dim=DIM, num_layers=layers, num_heads=4, context_dim=DIM, max_length=TOKENS
    ).eval()


def measured(arms: dict[str, Arm], rounds: int) -> dict[str, tuple[float, float]]:
    """``{arm: (median ratio of the first arm's time to it, median milliseconds)}``."""
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name in random.sample(list(arms), len(arms)):
            start = time.process_time()
            arms[name]()
            if turn:  # one round to warm up
                taken[name].append(time.process_time() - start)
    first = next(iter(taken.values()))
    return {
        name: (statistics.median(a / b for a, b in zip(first, times, strict=True)), 1e3 * statistics.median(times))
        for name, times in taken.items()
    }


def cache_arms(layers: int, batch: int, beams: int) -> dict[str, Arm]:
    """Without and with the cache; both must say the same."""
    model, context = built(layers), torch.randn(batch, CONTEXT, DIM)
    options: dict[str, Any] = {"max_length": TOKENS, "min_length": TOKENS}
    options |= {"method": "beam", "num_beams": beams} if beams > 1 else {"method": "greedy"}

    def arm(cached: bool) -> Arm:
        return lambda: model.generate(context, use_cache=cached, **options).ids

    arms = {"all tokens again": arm(False), "KV cache": arm(True)}
    first, second = (one() for one in arms.values())
    assert torch.equal(first, second), "the two loops do not say the same"
    return arms


def leaving_arms(batch: int) -> dict[str, Arm]:
    """Rows of every length: ended rows stay, or leave the batch."""
    model, context = built(4), torch.randn(batch, CONTEXT, DIM)
    lengths = torch.randint(1, TOKENS + 1, (batch,), generator=torch.Generator().manual_seed(1))
    prompt = torch.ones(batch, 1, dtype=torch.long)

    def arm(leave: bool) -> Arm:
        @torch.no_grad()
        def run() -> Tensor:
            step = EndsWhenTold(DecoderStep(model, *model.read_context(context, None, None, batch), TOKENS), lengths)
            reorder = step.reorder if leave else None
            return greedy(step, prompt, max_length=TOKENS, eos_id=EOS, reorder=reorder).ids

        return run

    return {"ended rows stay": arm(False), "ended rows leave": arm(True)}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Time captioning with a KV cache against the loop without.")
    parser.add_argument("--rounds", type=int, default=11, help="rounds per case (default 11)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    print(f"torch {torch.__version__}, 1 thread, {options.rounds} rounds, {DIM} wide, {TOKENS} tokens\n")
    print(f"{'layers':>6}{'batch':>6}{'beams':>6}  {'arm':<18}{'ms':>9}{'faster':>8}{'goal':>6}")
    for (layers, batch, beams), goal in CASES:
        for name, (ratio, took) in measured(cache_arms(layers, batch, beams), options.rounds).items():
            aim = f"{goal:.1f}" if goal and name == "KV cache" else ""
            print(f"{layers:>6}{batch:>6}{beams:>6}  {name:<18}{took:>9.1f}{ratio:>8.2f}{aim:>6}", flush=True)
    for batch in (2, 4, 16):
        for name, (ratio, took) in measured(leaving_arms(batch), options.rounds).items():
            print(f"{4:>6}{batch:>6}{1:>6}  {name:<18}{took:>9.1f}{ratio:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
