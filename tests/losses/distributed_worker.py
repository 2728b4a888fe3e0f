"""One of two gloo processes: every form of the contrastive losses under DistributedDataParallel against one process.

Called as ``python distributed_worker.py RANK FOLDER``; writes ``FOLDER/rankRANK.json``.
"""

import itertools
import json
import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from polyfuse.losses import InfoNCELoss, SigLIPLoss

ROWS = {"even": (5, 5), "uneven": (7, 3), "one_empty": (10, 0)}
WIDTH, EMBED = 7, 3


class Towers(nn.Module):
    """Two linear towers and a loss; the loss is in the module so that its temperature is averaged too."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.loss = nn.Linear(WIDTH, EMBED), nn.Linear(WIDTH, EMBED), loss

    def forward(self, x: Tensor, y: Tensor, ids: Tensor | None, present: Tensor | None) -> Tensor:
        """The loss."""
        return self.loss(F.normalize(self.first(x), dim=-1), F.normalize(self.second(y), dim=-1), ids, present)


def make(kind: str, form: str, smoothing: float) -> Towers:
    torch.manual_seed(0)
    loss = InfoNCELoss(label_smoothing=smoothing, form=form, chunk=2) if kind == "info_nce" else SigLIPLoss(form=form)
    return Towers(loss).double()


def check(kind: str, form: str, rows: str, masks: bool, rank: int) -> dict[str, float]:
    smoothing = 0.1 if masks else 0.0
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(10, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
    ids = torch.tensor([0, 1, 2, 0, 3, 4, 1, 5, 0, 6]) if masks else None
    present = torch.tensor([1, 1, 0, 1, 1, 1, 1, 0, 1, 1]).bool() if masks else None
    alone = make(kind, "dense", smoothing)
    expected = alone(x, y, ids, present)
    expected.backward()
    if present is not None:
        x[~present] = 1e6  # must not matter in any form
    start = ROWS[rows][0] * rank
    mine = slice(start, start + ROWS[rows][rank])
    together = DistributedDataParallel(make(kind, form, smoothing))
    parts = (None if t is None else t[mine] for t in (ids, present))
    loss = together(x[mine], y[mine], *parts)
    loss.backward()
    got, wanted = (
        torch.cat([p.grad.flatten() for p in model.parameters()])  # type: ignore[union-attr]
        for model in (together.module, alone)
    )
    return {
        "loss": abs(loss.item() - expected.item()),
        "gradient": float((got - wanted).abs().max()),
        "ratio": float(got.norm() / wanted.norm()),
    }


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    seen: dict[str, dict[str, float] | str] = {}
    for case in itertools.product(("info_nce", "siglip"), ("gather", "ring"), ROWS, (False, True)):
        try:
            seen["-".join(map(str, case))] = check(*case, rank)
        except Exception:
            seen["-".join(map(str, case))] = traceback.format_exc()
            break  # the other process waits in a collective of this case: later ones would be out of step
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
