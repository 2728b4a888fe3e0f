"""One pass over a table that answers for every subset of its inputs.

Encoders run once per row; the fusion then answers for many (subset, row) pairs in one call. A subset is asked only of
rows that have all of it, so that natural holes are never mistaken for tested ones.

Shapes: S subsets, N rows, M modalities, C outputs. Masks: True = present.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from polyfuse.data.batch import Batch
from polyfuse.evaluate.metrics import scorable
from polyfuse.evaluate.selective import Floats
from polyfuse.evaluate.subsets import Masks, contained, subsets_of

Float32s = NDArray[np.float32]


class Predictor(Protocol):
    """Anything that answers a batch with logits, such as a baseline."""

    def predict_logits(self, batch: Batch) -> ArrayLike:
        """``(N, C)`` logits (regression: mean and log-variance)."""
        ...


@dataclass(frozen=True)
class Sweep:
    """What a model says to every row about every subset.

    Attributes:
        modalities: Names, in column order.
        subsets: ``(S, M)`` bool.
        logits: ``(S, N, C)`` float32; NaN where the row lacks part of the subset: use ``valid``.
        valid: ``(S, N)`` bool: the row has the subset, and a target that can be scored.
        own: ``(N, C)`` float32, the rows as they are.
        scored: ``(N,)`` bool: the target can be scored (a known class, no NaN).
        present: ``(N, M)`` bool.
        target: ``(N,)`` classes or values, ``(N, L)`` labels.
        keys: ``(N,)`` int64.
        weights: ``(S, M)`` mean modality weight over valid rows; None where the fusion has none.
        ms_per_row: Milliseconds to encode a row and fuse one subset of it, in batches.
    """

    modalities: tuple[str, ...]
    subsets: Masks
    logits: Float32s
    valid: Masks
    own: Float32s
    scored: Masks
    present: Masks
    target: NDArray[Any]
    keys: NDArray[np.int64]
    weights: Floats | None = None
    ms_per_row: float = 0.0


def sweep(
    model: Any,
    batch: Batch,
    *,
    subsets: ArrayLike | None = None,
    task: str | None = None,
    batch_size: int = 1024,
    empty: ArrayLike | None = None,
) -> Sweep:
    """Ask a model about every subset of every row.

    Args:
        model: A ``FusionModel`` (anything with ``encode`` and ``fuse``), or a ``Predictor`` such as a baseline. It is
            put into eval mode and back.
        batch: Rows with a target; holes are welcome.
        subsets: ``(S, M)`` bool in the model's column order; None = ``subsets_of(batch.present)``; with S = 0 only the
            rows as they are.
        task: Decides which targets cannot be scored; None = classes by dtype, otherwise finite values.
        batch_size: Rows per encoder call; a fusion call takes up to four times as many pairs.
        empty: ``(C,)`` logits for rows without any input, such as ``prior_logits``; None = what the model says.

    Raises:
        ValueError: If the batch has no target, its modalities are not the model's, or a subset is empty or misshapen.
    """
    masks = subsets_of(batch.present.cpu().numpy()) if subsets is None else np.asarray(subsets, bool)
    _check(model, batch, masks)
    target = batch.target.cpu().numpy() if batch.target is not None else np.zeros(0)
    present = batch.present.cpu().numpy()
    held = contained(masks, present)
    with evaluating(model):
        ask = _ask_fusion if hasattr(model, "fuse") else _ask_predictor
        logits, own, weights, seconds = ask(model, batch, masks, held, batch_size)
    if empty is not None:
        own[~present.any(axis=1)] = np.asarray(empty, np.float32)
    if task is None:
        task = "classification" if np.issubdtype(target.dtype, np.integer) else "regression"
    scored = scorable(task, target)
    return Sweep(
        modalities=batch.modalities,
        subsets=masks,
        logits=logits,
        valid=held & scored,
        own=own,
        scored=scored,
        present=present,
        target=target,
        keys=batch.keys.cpu().numpy(),
        weights=weights,
        ms_per_row=1000.0 * seconds,
    )


def embed(model: Any, batch: Batch, *, batch_size: int = 1024) -> dict[str, Tensor]:
    """``{name: (N, ...)}`` embeddings of every row, on the CPU; absent ones are encodings of zeros."""
    blocks: list[dict[str, Tensor]] = []
    with evaluating(model):
        for start in range(0, len(batch), batch_size):
            rows = batch.rows(torch.arange(start, min(start + batch_size, len(batch)))).to(device_of(model))
            blocks.append({name: x.cpu() for name, x in model.encode(rows.inputs, rows.present).items()})
    return {name: torch.cat([block[name] for block in blocks]) for name in (blocks[0] if blocks else ())}


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Eval mode and no gradients inside, the former mode after."""
    was_training = [m for m in model.modules() if m.training] if isinstance(model, torch.nn.Module) else []
    try:
        if was_training:
            model.eval()
        with torch.inference_mode():
            yield
    finally:
        for module in was_training:
            module.training = True


def device_of(model: Any) -> torch.device:
    """Where the model's parameters are; the CPU if it has none."""
    first = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    return torch.device("cpu") if first is None else first.device


def _check(model: Any, batch: Batch, masks: Masks) -> None:
    if batch.target is None:
        raise ValueError("a sweep needs a target, got a batch without one; call the model itself to predict")
    names = getattr(model, "modalities", batch.modalities)
    if tuple(names) != tuple(batch.modalities):
        raise ValueError(f"batch.modalities must be the model's {tuple(names)}, got {batch.modalities}")
    if masks.ndim != 2 or masks.shape[1] != len(batch.modalities):
        raise ValueError(f"subsets must have shape (S, M) = (S, {len(batch.modalities)}), got {masks.shape}")
    if not masks.any(axis=1).all():
        raise ValueError(f"subsets must not be empty, got an empty one at row {int(np.argmin(masks.any(axis=1)))}")


Answers = tuple[Float32s, Float32s, Floats | None, float]


def _ask_fusion(model: Any, batch: Batch, masks: Masks, held: Masks, batch_size: int) -> Answers:
    """All subsets of a block of rows: encoders once, then fusion calls over (subset, row) pairs."""
    device, n = device_of(model), len(batch)
    subsets = torch.from_numpy(np.pad(masks, ((0, 1), (0, 0)))).to(device)
    logits: Tensor | None = None
    own: Tensor | None = None
    weight_sums: Tensor | None = None
    encode_times, fuse_times = [], []
    for start in range(0, n, batch_size):
        rows = batch.rows(torch.arange(start, min(start + batch_size, n))).to(device)
        began = time.perf_counter()
        embeddings = model.encode(rows.inputs, rows.present)
        encode_times.append((time.perf_counter() - began) / len(rows))
        held_here = torch.from_numpy(held[:, start : start + batch_size]).to(device)
        pair_s, pair_n = _pairs(held_here)
        for part_s, part_n in zip(pair_s.split(4 * batch_size), pair_n.split(4 * batch_size), strict=True):
            is_own = part_s == len(masks)
            here = torch.where(is_own[:, None], rows.present[part_n], subsets[part_s])
            began = time.perf_counter()
            out = model.fuse({name: x.index_select(0, part_n) for name, x in embeddings.items()}, here)
            answer = out.logits.float().cpu()
            fuse_times.append((time.perf_counter() - began) / len(part_s))
            if logits is None or own is None:
                logits = torch.full((len(masks), n, answer.shape[1]), torch.nan)
                own = torch.empty(n, answer.shape[1])
            where_s, where_n, mine = part_s.cpu(), part_n.cpu() + start, is_own.cpu()
            logits[where_s[~mine], where_n[~mine]] = answer[~mine]
            own[where_n[mine]] = answer[mine]
            if out.weights is not None:
                if weight_sums is None:
                    weight_sums = torch.zeros(len(masks) + 1, masks.shape[1], dtype=torch.float64)
                weight_sums.index_add_(0, where_s, out.weights.double().cpu())
    if logits is None or own is None:
        raise ValueError("a sweep needs at least one row, got an empty batch")
    means = None if weight_sums is None else weight_sums[:-1].numpy() / np.maximum(held.sum(axis=1), 1)[:, None]
    return logits.numpy(), own.numpy(), means, float(np.median(encode_times) + np.median(fuse_times))


def _pairs(held: Tensor) -> tuple[Tensor, Tensor]:
    """Subset and row number of every pair to ask; subset number S stands for the row as it is."""
    asked = torch.cat([held, torch.ones(1, held.shape[1], dtype=torch.bool, device=held.device)])
    pair_s, pair_n = asked.nonzero(as_tuple=True)
    return pair_s, pair_n


def _ask_predictor(model: Predictor, batch: Batch, masks: Masks, held: Masks, batch_size: int) -> Answers:
    if not len(batch):
        raise ValueError("a sweep needs at least one row, got an empty batch")
    began = time.perf_counter()
    own = np.array(model.predict_logits(batch), np.float32)
    logits = np.full((len(masks), *own.shape), np.nan, np.float32)
    for s, mask in enumerate(masks):
        index = torch.from_numpy(np.flatnonzero(held[s]))
        if len(index):
            rows = batch.rows(index)
            reduced = rows.with_present(torch.from_numpy(mask).expand(len(index), -1))
            logits[s, held[s]] = model.predict_logits(reduced)
    return logits, own, None, (time.perf_counter() - began) / (len(batch) + int(held.sum()))
