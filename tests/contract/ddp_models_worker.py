"""One of two gloo processes: run every token-level model under DistributedDataParallel and write what was seen.

Usage: python ddp_models_worker.py RANK FOLDER; started by test_models_ddp.py, one pair for all strategies.
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
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from polyfuse.models.multimodal_transformer import STRATEGIES, MultimodalTransformer

if __package__:  # collected by pytest
    from . import ddp_named_models as named
else:  # run as a script
    import ddp_named_models as named  # type: ignore[import-not-found,no-redef]

WIDTHS = {"text": 7, "audio": 3, "image": 5}
LENGTHS = {"text": 5, "audio": 3, "image": 2}
ROWS = 6  # per rank


def build(name: str) -> MultimodalTransformer:
    torch.manual_seed(0)
    return MultimodalTransformer(
        tuple(WIDTHS), WIDTHS, fusion=name, dim=8, num_heads=2, num_layers=4, num_classes=4, dtype=torch.float64
    )


def global_batch() -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    present = torch.rand(2 * ROWS, len(WIDTHS), generator=generator) < 0.6
    present[ROWS:, 1] = False  # audio is in no row of the second process: its tower must run all the same
    present[ROWS] = False  # and one row has nothing at all
    size = {name: (2 * ROWS, LENGTHS[name]) for name in WIDTHS}
    tokens = {n: torch.randn(*size[n], WIDTHS[n], generator=generator, dtype=torch.float64) for n in WIDTHS}
    return tokens, {n: torch.rand(size[n], generator=generator) < 0.7 for n in WIDTHS}, present


def check(name: str, rank: int) -> dict[str, float]:
    """Largest difference of logits and gradients between two processes and one, and of training steps between ranks."""
    tokens, mask, present = global_batch()
    mine = slice(rank * ROWS, (rank + 1) * ROWS)
    part = ({n: x[mine] for n, x in tokens.items()}, {n: x[mine] for n, x in mask.items()}, present[mine])
    model = build(name)
    alone = copy.deepcopy(model).eval()
    wrapped = DistributedDataParallel(model)
    # Training: two steps, so that a parameter left out of the first backward is reported by the second forward.
    model.train()
    for _ in range(2):
        torch.manual_seed(rank)
        wrapped(*part).logits.square().mean().backward()
    totals = torch.stack([p.grad.sum() for p in model.parameters() if p.grad is not None])
    other = totals.clone()
    dist.broadcast(other, src=0)
    # Eval: deterministic, so two half batches equal the whole one.
    model.eval()
    model.zero_grad()
    out = wrapped(*part).logits
    out.square().mean().backward()
    expected = alone(tokens, mask, present).logits
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


def check_named(name: str, rank: int) -> dict[str, float]:
    """The same for a model with every head: rows meet in no output that counts here (CLIP's pairs are left out)."""
    torch.manual_seed(0)
    model, call = named.named()[name]()
    wrapped = DistributedDataParallel(model)
    mine = [slice(half * named.ROWS, (half + 1) * named.ROWS) for half in range(2)]
    model.train()
    for _ in range(2):
        torch.manual_seed(rank)
        named.loss(named.outputs(call(wrapped, mine[rank]))).backward()
    totals = torch.stack([p.grad.sum() for p in model.parameters() if p.grad is not None])
    other = totals.clone()
    dist.broadcast(other, src=0)
    model.eval()
    model.zero_grad()
    named.loss(named.outputs(call(wrapped, mine[rank]))).backward()
    alone = copy.deepcopy(model)  # now with the first process's batch statistics
    alone.zero_grad()
    (sum(named.loss(named.outputs(call(alone, rows))) for rows in mine) / 2).backward()  # type: ignore[union-attr]
    pairs = [(a, b) for a, b in zip(model.parameters(), alone.parameters(), strict=True) if a.requires_grad]
    largest = max(float(b.grad.abs().max()) for _, b in pairs if b.grad is not None)
    apart = max(float((a.grad - b.grad).abs().max()) for a, b in pairs if a.grad is not None and b.grad is not None)
    return {
        "gradients": float(len(totals)),
        "parameters": float(len(pairs)),
        "between_ranks": float((totals - other).abs().max()),
        "logits": 0.0,
        "gradient": apart / largest,
    }


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    seen: dict[str, dict[str, float] | str] = {}
    for name in (*sorted(STRATEGIES), *named.named()):
        try:
            seen[name] = check(name, rank) if name in STRATEGIES else check_named(name, rank)
        except Exception:
            seen[name] = traceback.format_exc()
            break  # the other process waits in a collective of this case: later ones would be out of step
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
