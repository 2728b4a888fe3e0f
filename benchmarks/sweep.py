"""Cost of asking a model about every subset of its inputs, beside one ordinary evaluation with encoders.

    OMP_NUM_THREADS=1 python benchmarks/sweep.py

One ordinary evaluation is the model on the rows as they are, once. The sweep adds every subset (all up to six
modalities, above 63 and more of them, as in a report). The loop, for comparison, does it without sharing anything but
the encoders, one call per subset. Every round times all three; printed are medians, and the median of the ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from polyfuse.config import ModelConfig
from polyfuse.data.batch import Batch, Inputs
from polyfuse.data.spec import ModalitySpec, TargetSpec
from polyfuse.evaluate.subsets import all_subsets
from polyfuse.evaluate.sweep import sweep
from polyfuse.models.fusion_model import FusionModel
from polyfuse.train.build import build_model

CLASSES, FEATURES, SIDE = 10, 512, 32


def make_table(kind: str, modalities: int, rows: int) -> Batch:
    """Random inputs, complete."""
    generator = torch.Generator().manual_seed(0)
    names = tuple(f"input{m}" for m in range(modalities))
    shape = (rows, FEATURES) if kind == "vector" else (rows, 3, SIDE, SIDE)
    inputs: Inputs = {name: torch.randn(shape, generator=generator) for name in names}
    target = torch.randint(0, CLASSES, (rows,), generator=generator)
    return Batch(names, inputs, torch.ones(rows, modalities, dtype=torch.bool), target, torch.arange(rows))


def make_model(kind: str, table: Batch, fusion: str) -> FusionModel:
    """The encoders that a run gets: ``vector_mlp`` on 512 features, or ``image_cnn`` on 32 x 32 pixels."""
    params: dict[str, Any] = {"width": FEATURES} if kind == "vector" else {"size": SIDE}
    specs = {name: ModalitySpec(name, kind, params) for name in table.modalities}
    target = TargetSpec("classification", tuple("abcdefghij"))
    return build_model(specs, target, ModelConfig(fusion=fusion)).eval()


def loop(model: FusionModel, table: Batch, subsets: np.ndarray) -> None:
    """Encoders once, one fusion call per subset, written out."""
    with torch.inference_mode():
        embeddings = model.encode(table.inputs, table.present)
        model.fuse(embeddings, table.present)
        for mask in subsets:
            model.fuse(embeddings, torch.from_numpy(mask).expand(len(table), -1))


def milliseconds(function: Callable[[], Any]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    function()
    return 1000.0 * (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--fusion", nargs="*", default=["concat"])
    parser.add_argument("--modalities", type=int, nargs="*", default=[2, 3, 4, 5, 6, 7, 8])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{options.rows} rows, median of {options.rounds} rounds, one thread, ms; x = times one evaluation")
    print(
        f"{'encoders':9s}{'fusion':16s}{'M':>2s}{'subsets':>8s}{'one':>8s}{'sweep':>8s}{'x':>6s}{'loop':>8s}{'x':>6s}"
    )
    for kind in ("vector", "image"):
        for fusion in options.fusion:
            for modalities in options.modalities:
                table = make_table(kind, modalities, options.rows)
                model, subsets = make_model(kind, table, fusion), all_subsets(modalities)
                nothing = np.zeros((0, modalities), bool)
                taken = []
                for number in range(options.rounds + 1):
                    now = [
                        milliseconds(partial(sweep, model, table, subsets=nothing)),
                        milliseconds(partial(sweep, model, table, subsets=subsets)),
                        milliseconds(partial(loop, model, table, subsets)),
                    ]
                    taken += [now] if number else []  # the first round warms up
                one, swept, looped = (statistics.median(x) for x in zip(*taken, strict=True))
                ratios = [statistics.median(t[i] / t[0] for t in taken) for i in (1, 2)]
                print(
                    f"{kind:9s}{fusion:16s}{modalities:2d}{len(subsets):8d}{one:8.1f}{swept:8.1f}{ratios[0]:6.2f}"
                    f"{looped:8.1f}{ratios[1]:6.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
