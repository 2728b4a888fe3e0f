"""Time the attention pool against a bare ``nn.MultiheadAttention`` and against the PyPI package aecf 0.1.0.

    python benchmarks/pool.py             # all cases, a few minutes on one core
    python benchmarks/pool.py --rounds 5  # a quick look

One process, one thread. Every round runs all arms in random order and gives one ratio per arm to
``nn.MultiheadAttention(need_weights=False)``; the table shows the median of these ratios. All arms use the same
parameters; features carry no gradient. The baseline knows no masks. The arms of polyfuse really apply them: rows have
holes (a quarter of the entries absent, their content zeroed), and in training a third of what is present is dropped
from the weights that make the output. Multiply-adds count the matrix products of one forward pass. aecf gets the holes
as ``key_padding_mask``; its curriculum mask changes nothing in its output.

Shapes: B batch, T queries, M modalities, D width.
"""

import argparse
import random
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from polyfuse.layers import CurriculumMasking, MultimodalAttentionPool

# (B, T, M, D, heads), the targets for forward + backward and for eval. T = 0: one query that serves all rows.
CASES = [
    ((64, 0, 3, 512, 8), 0.80, 0.60),
    ((512, 0, 2, 512, 1), 0.55, 0.45),
    ((64, 0, 8, 768, 8), 0.55, 0.45),
    ((1024, 0, 4, 512, 8), 0.55, 0.45),
    ((64, 4, 3, 512, 8), 1.03, 1.03),
    ((64, 8, 8, 768, 8), 1.03, 1.03),
]
HOLES, DROP_RATE = 0.25, 0.33

Arm = Callable[[], Tensor]


def build_arms(shape: tuple[int, int, int, int, int], train: bool) -> tuple[dict[str, Arm], list[Tensor]]:
    """The arms by name, baseline first, and every parameter they use."""
    batch, queries, keys, width, heads = shape
    torch.manual_seed(0)
    pools = {}
    for policy in ("uniform", "inverse_entropy"):
        masking = CurriculumMasking(policy=policy, target_rate=DROP_RATE)
        pools[policy] = MultimodalAttentionPool(width, heads, curriculum_masking=masking).train(train)
    uniform, entropic = pools.values()
    plain = uniform.attention = entropic.attention  # one set of parameters: no arm finds colder caches
    query = nn.Parameter(torch.randn(1 if queries == 0 else batch, max(queries, 1), width))
    features = torch.randn(batch, keys, width)
    present = torch.rand(batch, keys) >= HOLES
    present[torch.arange(batch), torch.randint(keys, (batch,))] = True

    def expanded() -> Tensor:
        return query.expand(batch, -1, -1) if queries == 0 else query

    arms: dict[str, Arm] = {
        "nn.MultiheadAttention": lambda: plain(expanded(), features, features, need_weights=False)[0],
        "polyfuse": lambda: uniform(expanded(), features, present=present),
        "polyfuse, inverse_entropy": lambda: entropic(expanded(), features, present=present),
        "  the same, return_info": lambda: entropic(expanded(), features, present=present, return_info=True)[0],
    }
    parameters: list[Tensor] = [query, *plain.parameters()]
    try:
        import aecf
    except ImportError:
        print("aecf 0.1.0 is not installed: no third arm (pip install aecf==0.1.0)")
        return arms, parameters
    theirs = aecf.MultimodalAttentionPool(width, heads, curriculum_masking=aecf.CurriculumMasking(DROP_RATE))
    theirs.train(train).attention = plain
    arms["aecf 0.1.0"] = lambda: theirs(expanded(), features, key_padding_mask=~present)
    return arms, parameters


def seconds(arm: Arm, train: bool, parameters: list[Tensor]) -> float:
    """CPU seconds of one pass; gradients are dropped before, outside the clock."""
    for parameter in parameters:
        parameter.grad = None
    with torch.set_grad_enabled(train):
        start = time.process_time()
        output = arm()
        if train:
            output.sum().backward()
        return time.process_time() - start


def multiply_adds(arm: Arm) -> int:
    """Multiply-adds of the matrix products of one forward pass."""
    with FlopCounterMode(display=False) as counter:
        arm()
    return int(counter.get_total_flops()) // 2


def run_case(shape: tuple[int, int, int, int, int], train: bool, rounds: int) -> dict[str, tuple[float, float, int]]:
    """``{arm: (median ratio, median seconds, multiply-adds)}``."""
    arms, parameters = build_arms(shape, train)
    baseline = next(iter(arms))
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 2):
        for name in random.sample(list(arms), len(arms)):
            taken = seconds(arms[name], train, parameters)
            if turn >= 2:  # two rounds to warm up
                times[name].append(taken)
    result = {}
    for name, taken_by_round in times.items():
        ratios = [a / b for a, b in zip(taken_by_round, times[baseline], strict=True)]
        result[name] = (statistics.median(ratios), statistics.median(taken_by_round), multiply_adds(arms[name]))
    return result


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Time the attention pool against nn.MultiheadAttention.")
    parser.add_argument("--rounds", type=int, default=40, help="rounds per case (default 40)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, 1 thread, {options.rounds} rounds; ratios to the first arm\n")
    head = (
        f"{'(B, T, M, D), heads':<26}{'mode':<9}{'arm':<27}{'ratio':>6}{'target':>8}{'ms':>9}{'Mmul-add':>10}{'x':>6}"
    )
    print(head)
    for shape, train_target, eval_target in CASES:
        batch, queries, keys, width, heads = shape
        label = f"({batch}, {queries or 'shared'}, {keys}, {width}), {heads}"
        for train, target in ((True, train_target), (False, eval_target)):
            result = run_case(shape, train, options.rounds)
            base_work = next(iter(result.values()))[2]
            for name, (ratio, median, work) in result.items():
                goal = f"{target:.2f}" if name.startswith("polyfuse") else ""
                mode = "fwd+bwd" if train else "eval"
                print(
                    f"{label:<26}{mode:<9}{name:<27}{ratio:>6.2f}{goal:>8}{median * 1e3:>9.2f}"
                    f"{work / 1e6:>10.1f}{work / base_work:>6.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
