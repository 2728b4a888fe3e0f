"""One pass over a table that answers for every subset of its inputs.

Encoders run once per row; the fusion then answers for all subsets together (``FusionModel.fuse_subsets``). A subset
counts only for rows that have all of it, so that natural holes are never mistaken for tested ones; where few have, the
fusion is asked about those pairs alone.

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
from polyfuse.fusion.subsets import DENSE

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
        model: A ``FusionModel`` (anything with ``encode`` and ``fuse``), or a ``Predictor``
            such as a baseline. It is put into eval mode and back.
        batch: Rows with a target; holes are welcome.
        subsets: ``(S, M)`` bool in the model's column order; None = ``subsets_of(batch.present)``; with S = 0 only the
            rows as they are.
        task: Decides which targets cannot be scored; None = classes by dtype, otherwise finite values.
        batch_size: Rows per encoder call; a fusion call answers for up to four times as many pairs.
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
    """All subsets of a block of rows: encoders once, then all subsets together or, where few rows have them, pairs."""
    n = len(batch)
    if not n:
        raise ValueError("a sweep needs at least one row, got an empty batch")
    device, asked = device_of(model), _Asked(masks, n)
    own: list[Tensor] = []
    encode_times, fuse_times = [], []
    together = getattr(model, "shares_subsets", False)
    for start in range(0, n, batch_size):
        rows = batch if n <= batch_size else batch.rows(torch.arange(start, min(start + batch_size, n)))
        rows = rows.to(device)
        began = time.perf_counter()
        embeddings = model.encode(rows.inputs, rows.present)
        encoded = time.perf_counter()
        own.append(model.fuse(embeddings, rows.present).logits.float().cpu())
        encode_times.append((encoded - began) / len(rows))
        fuse_times.append((time.perf_counter() - encoded) / len(rows))
        held_here = torch.from_numpy(held[:, start : start + batch_size])
        if together and DENSE * int(held_here.sum()) > held_here.numel():
            asked.all_pairs(model, embeddings, held_here, start, max(1, 4 * batch_size // len(masks)))
        else:
            asked.pairs(model, embeddings, held_here, start, 4 * batch_size)
    logits = asked.open(own[0].shape[1]).numpy()
    means = None
    if asked.weight_sums is not None:
        means = asked.weight_sums.numpy() / np.maximum(held.sum(axis=1), 1)[:, None]
    seconds = float(np.median(encode_times) + np.median(fuse_times))
    return logits, torch.cat(own).numpy(), means, seconds


class _Asked:
    """Answers about subsets as they come in.

    Attributes:
        logits: ``(S, N, C)``, NaN where nothing was asked; None before ``open``.
        weight_sums: ``(S, M)`` float64, None where there are none.
    """

    def __init__(self, masks: Masks, n: int) -> None:
        self.n, self.table = n, torch.from_numpy(masks)
        self.logits: Tensor | None = None
        self.weight_sums: Tensor | None = None

    def all_pairs(self, model: Any, embeddings: dict[str, Tensor], held: Tensor, start: int, rows: int) -> None:
        """Every subset of ``rows`` rows at a time; answers of rows that lack the subset are thrown away."""
        subsets = self.table.to(next(iter(embeddings.values())).device)
        for first in range(0, held.shape[1], rows):
            here = held[:, first : first + rows]
            out = model.fuse_subsets({name: x[first : first + rows] for name, x in embeddings.items()}, subsets)
            answer = out.logits.float().cpu().unflatten(0, here.shape)
            at = slice(start + first, start + first + here.shape[1])
            self.open(answer.shape[2])[:, at] = answer.masked_fill(~here[..., None], torch.nan)
            if out.weights is not None:
                shares = out.weights.double().cpu().unflatten(0, here.shape)
                self._weigh().add_(shares.masked_fill(~here[..., None], 0.0).sum(dim=1))

    def pairs(self, model: Any, embeddings: dict[str, Tensor], held: Tensor, start: int, size: int) -> None:
        """The pairs of a block that are to be asked, ``size`` in a call."""
        s, n = held.nonzero(as_tuple=True)
        for part_s, part_n in zip(s.split(size), n.split(size), strict=True):
            if not len(part_s):
                continue
            device = next(iter(embeddings.values())).device
            there_n, here = part_n.to(device), self.table[part_s].to(device)
            out = model.fuse({name: x.index_select(0, there_n) for name, x in embeddings.items()}, here)
            answer = out.logits.float().cpu()
            self.open(answer.shape[1])[part_s, part_n + start] = answer
            if out.weights is not None:
                self._weigh().index_add_(0, part_s, out.weights.double().cpu())

    def open(self, outputs: int) -> Tensor:
        """``logits``, made on first sight of their width."""
        if self.logits is None:
            self.logits = torch.full((len(self.table), self.n, outputs), torch.nan)
        return self.logits

    def _weigh(self) -> Tensor:
        if self.weight_sums is None:
            self.weight_sums = torch.zeros(self.table.shape, dtype=torch.float64)
        return self.weight_sums


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
