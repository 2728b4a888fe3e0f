"""One of two gloo processes: run every fusion under DistributedDataParallel and write what was seen.

Usage: python ddp_worker.py RANK FOLDER; started by test_contract_ddp.py, one pair for all cases.
"""

import copy
import json
import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from polyfuse.fusion import FUSIONS
from polyfuse.heads import ClassificationHead
from polyfuse.models import FusionModel

WIDTHS = {"text": 7, "audio": 3, "image": 5}
ROWS = 6  # per rank


def build(name: str) -> FusionModel:
    torch.manual_seed(0)
    fusion = FUSIONS[name](tuple(WIDTHS), WIDTHS, 8)
    encoders = {modality: nn.Linear(2, width) for modality, width in WIDTHS.items()}
    return FusionModel(encoders, fusion, None if fusion.decision_level else ClassificationHead(8, 4)).double()


def global_batch() -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    present = torch.rand(2 * ROWS, len(WIDTHS), generator=generator) < 0.6
    present[ROWS:, 1] = False  # audio is in no row of the second process: its encoder must run all the same
    present[ROWS] = False  # and one row has nothing at all
    return {n: torch.randn(2 * ROWS, 2, generator=generator, dtype=torch.float64) for n in WIDTHS}, present


def check(name: str, rank: int) -> dict[str, float]:
    """Largest difference of logits and gradients between two processes and one, and of training steps between ranks."""
    inputs, present = global_batch()
    mine = slice(rank * ROWS, (rank + 1) * ROWS)
    model = build(name)
    alone = copy.deepcopy(model).eval()
    wrapped = DistributedDataParallel(model)
    # Training: two steps, so that a parameter left out of the first backward is reported by the second forward.
    model.train()
    for _ in range(2):
        torch.manual_seed(rank)
        wrapped({n: x[mine] for n, x in inputs.items()}, present[mine]).logits.square().mean().backward()
    totals = torch.stack([p.grad.sum() for p in model.parameters() if p.grad is not None])
    other = totals.clone()
    dist.broadcast(other, src=0)
    # Eval: deterministic, so two half batches equal the whole one.
    model.eval()
    model.zero_grad()
    out = wrapped({n: x[mine] for n, x in inputs.items()}, present[mine]).logits
    out.square().mean().backward()
    expected = alone(inputs, present).logits
    expected.square().mean().backward()
    pairs = zip(model.parameters(), alone.parameters(), strict=True)
    gradient = max(float((a.grad - b.grad).abs().max()) for a, b in pairs if a.grad is not None and b.grad is not None)
    return {
        "gradients": float(len(totals)),
        "parameters": float(len(list(model.parameters()))),
        "between_ranks": float((totals - other).abs().max()),
        "logits": float((out - expected[mine]).abs().max()),
        "gradient": gradient,
    }


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    seen: dict[str, dict[str, float] | str] = {}
    for name in sorted(FUSIONS):
        try:
            seen[name] = check(name, rank)
        except Exception:
            seen[name] = traceback.format_exc()
            break  # the other process waits in a collective of this case: later ones would be out of step
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
