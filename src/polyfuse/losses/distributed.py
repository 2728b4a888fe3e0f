"""Contrastive losses over the rows of several processes, with the value and the gradient of one process.

``gather``: every process collects all embeddings, with a gradient, and scores its own rows against them. ``ring``: the
second side goes round, a process holds its own rows and one visitor's, in tiles. In either every process returns the
loss over all rows, and the *average* of the processes' parameter gradients, which data parallel training takes, is that
loss's gradient: nothing is to be rescaled. (Embeddings gathered without a gradient give 1 / processes of it while the
loss looks right.) Processes may hold different numbers of rows.

Without a process group, or with one of size 1, both are the loss of one process.

Shapes: n rows of this process, N of all, E width. Masks: True = present.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from polyfuse.functional import at_least_float32
from polyfuse.losses.chunked import CHUNK, Plan, Ring, same_id_counts, streamed
from polyfuse.losses.reduce import all_there, full_precision

MODES = ("gather", "ring")


class ProcessRing(Ring):
    """The processes of a group in the order of their ranks."""

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.size, rank = dist.get_world_size(group), dist.get_rank(group)
        ranks = dist.get_process_group_ranks(group if group is not None else dist.group.WORLD)
        self.next, self.before = ranks[(rank + 1) % self.size], ranks[(rank - 1) % self.size]

    def pass_on(self, parts: list[Tensor]) -> list[Tensor]:
        """What the process before passes on, in exchange for ``parts``."""
        if self.size == 1:
            return parts
        sent = [_bytes(part.detach().contiguous()) for part in parts]
        got = [torch.empty_like(part) for part in sent]
        pairs = zip(sent, got, strict=True)
        calls = [
            call
            for mine, theirs in pairs
            for call in (
                dist.P2POp(dist.isend, mine, self.next, self.group),
                dist.P2POp(dist.irecv, theirs, self.before, self.group),
            )
        ]
        for work in dist.batch_isend_irecv(calls):
            work.wait()
        return [theirs.view(part.dtype) for theirs, part in zip(got, parts, strict=True)]

    def total(self, value: Tensor) -> Tensor:
        """The sum over processes."""
        value = value.clone()
        dist.all_reduce(value, group=self.group)
        return value


def _bytes(x: Tensor) -> Tensor:
    """Back ends do not all send booleans."""
    return x.view(torch.uint8) if x.dtype == torch.bool else x


def _gathered(x: Tensor, group: Any) -> Tensor:
    """``(n, ...)`` of all processes, in the order of ranks: ``(N, ...)``; no gradient."""
    parts = [torch.empty_like(_bytes(x)) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, _bytes(x.detach().contiguous()), group=group)
    return torch.cat(parts).view(x.dtype)


class GatherWithGradient(torch.autograd.Function):
    """``(n, ...)`` of all processes; the gradient of a row is the sum of what all processes say about it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        """Collect."""
        ctx.group, ctx.count = group, len(x)
        return _gathered(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Sum over processes, and keep the own rows."""
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient, group=ctx.group)
        start = dist.get_rank(ctx.group) * ctx.count
        return gradient[start : start + ctx.count], None


class _Rows(NamedTuple):
    """This process's rows, padded to the number that every process has, and what is known of all processes' rows."""

    first: Tensor
    second: Tensor
    here: Tensor
    ids: Tensor
    all_here: Tensor
    all_ids: Tensor
    present: Tensor
    ring: Ring


def _rows(first: Tensor, second: Tensor, ids: Tensor | None, present: Tensor | None, group: Any, mode: str) -> _Rows:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got '{mode}'")
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"both sides must be (B, E), got {tuple(first.shape)} and {tuple(second.shape)}")
    count = len(first)
    here = all_there(present, (count,), first, "present")
    if ids is not None and ids.shape != (count,):
        raise ValueError(f"ids must have shape {(count,)}, got {tuple(ids.shape)}")
    ring = ProcessRing(group) if dist.is_available() and dist.is_initialized() else Ring()
    most = count
    if ring.size > 1:
        most = int(_gathered(torch.tensor([count], device=first.device), group).max())
    missing = most - count
    here = F.pad(here, (0, missing))
    if ids is None:
        start = dist.get_rank(group) * most if ring.size > 1 else 0
        ids = torch.arange(start, start + most, device=first.device)
    else:
        ids = F.pad(ids.long(), (0, missing))
    if missing:
        first, second = (F.pad(x, (0, 0, 0, missing)) for x in (first, second))
    all_here, all_ids = (_gathered(x, group) if ring.size > 1 else x for x in (here, ids))
    total = all_here.sum().clamp(min=1).to(at_least_float32(first[:0]).dtype)
    return _Rows(first, second, here, ids, all_here, all_ids, total, ring)


def distributed_info_nce(
    first: Tensor,
    second: Tensor,
    scale: Tensor | float,
    *,
    ids: Tensor | None = None,
    present: Tensor | None = None,
    label_smoothing: float = 0.0,
    mode: str = "gather",
    chunk: int = CHUNK,
    group: Any = None,
) -> Tensor:
    """``info_nce`` over the rows of all processes.

    Source: open_clip's loss with gathered features, https://github.com/mlfoundations/open_clip, and its flags
    ``local_loss`` with ``gather_with_grad``. Differs: ids, presence, the ring, and the value is that of all rows.

    Args:
        first: ``(n, E)`` of this process.
        second: ``(n, E)``.
        scale: What inner products are multiplied by, the same in every process.
        ids: ``(n,)`` integers that mean the same in every process; None = all differ.
        present: ``(n,)`` bool; None = all.
        label_smoothing: Share of the target that is spread over all present columns.
        mode: "gather" or "ring".
        chunk: Rows of a tile (ring).
        group: Process group; None = all processes.

    Returns:
        The same scalar in every process.

    Raises:
        ValueError: If the mode is unknown or a shape is wrong.

    Example:
        >>> distributed_info_nce(torch.eye(3), torch.eye(3), 100.0, mode="ring").abs()
        tensor(0.)
    """
    rows = _rows(first, second, ids, present, group, mode)
    if mode == "ring" or rows.ring.size == 1:
        counts = same_id_counts(rows.ids, rows.all_ids, rows.all_here, rows.present.dtype)
        plan = Plan(rows.ids, rows.here, counts, rows.present, label_smoothing, chunk=chunk, ring=rows.ring)
        return streamed(rows.first, rows.second, scale, 0.0, plan)
    (own_first, own_second), (all_first, all_second) = _both_sides(rows, group)
    both = rows.here[:, None] & rows.all_here[None, :]
    target = ((rows.ids[:, None] == rows.all_ids[None, :]) & both).to(all_first.dtype)
    target = target / target.sum(dim=1, keepdim=True).clamp(min=1)
    if label_smoothing:
        target = target * (1 - label_smoothing) + both * (label_smoothing / rows.present)
    lowest = torch.finfo(all_first.dtype).min
    total = all_first.new_zeros(())
    with full_precision(first):
        for own, everyone in ((own_first, all_second), (own_second, all_first)):
            logits = (scale * own @ everyone.t()).masked_fill(~rows.all_here[None, :], lowest)
            total = total - (logits.log_softmax(dim=1).masked_fill(~both, 0.0) * target).sum()
    return _shared(total / (2.0 * rows.present), rows.ring)


def distributed_siglip(
    first: Tensor,
    second: Tensor,
    scale: Tensor | float = 10.0,
    bias: Tensor | float = -10.0,
    *,
    ids: Tensor | None = None,
    present: Tensor | None = None,
    mode: str = "ring",
    chunk: int = CHUNK,
    group: Any = None,
) -> Tensor:
    """``siglip_loss`` over the rows of all processes.

    Source: SigLIP, https://arxiv.org/abs/2303.15343, section 3.2 and figure 1 (the ring). Differs: ids and presence,
    and the value is that of all rows.

    Args:
        first: ``(n, E)`` of this process.
        second: ``(n, E)``.
        scale: What inner products are multiplied by, the same in every process.
        bias: What is added, the same in every process.
        ids: ``(n,)`` integers that mean the same in every process; None = all differ.
        present: ``(n,)`` bool; None = all.
        mode: "gather" or "ring".
        chunk: Rows of a tile (ring).
        group: Process group; None = all processes.

    Returns:
        The same scalar in every process.

    Example:
        >>> distributed_siglip(torch.eye(3), torch.eye(3))
        tensor(0.6932)
    """
    rows = _rows(first, second, ids, present, group, mode)
    if mode == "ring" or rows.ring.size == 1:
        plan = Plan(rows.ids, rows.here, None, rows.present, sigmoid=True, chunk=chunk, ring=rows.ring)
        return streamed(rows.first, rows.second, scale, bias, plan)
    (own, _), (_, everyone) = _both_sides(rows, group)
    both = rows.here[:, None] & rows.all_here[None, :]
    together = (rows.ids[:, None] == rows.all_ids[None, :]) & both
    with full_precision(first):
        logits = scale * own @ everyone.t() + bias
    each = F.logsigmoid(torch.where(together, logits, -logits)).masked_fill(~both, 0.0)
    return _shared(-each.sum() / rows.present, rows.ring)


def _both_sides(rows: _Rows, group: Any) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Own and all rows of both sides, zeros where absent: one message for both sides."""
    own = torch.cat([at_least_float32(rows.first), at_least_float32(rows.second)], dim=1)
    own = own.masked_fill(~rows.here[:, None], 0.0)
    everyone = GatherWithGradient.apply(own, group)
    width = rows.first.shape[1]
    return (own[:, :width], own[:, width:]), (everyone[:, :width], everyone[:, width:])


def _shared(own: Tensor, ring: Ring) -> Tensor:
    """The value of all processes, with the gradient of this one's share times their number."""
    scaled = own * ring.size
    return scaled + (ring.total(own.detach()) - scaled.detach())
