"""Data sets whose files are the user's own: found in a folder of the cache, read without pickles, standardised.

Shapes: N rows, D inputs of a modality, L labels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from polyfuse.cache import cache_dir
from polyfuse.data.batch import Batch
from polyfuse.data.keyed import key_of
from polyfuse.data.spec import ModalitySpec, TargetSpec
from polyfuse.data.split import NAMES
from polyfuse.datasets.base import DataSet
from polyfuse.errors import UserError

_ROWS_AT_ONCE = 4096


def folder_of(name: str) -> Path:
    """Where a user lays the files: ``own/<name>`` in the cache folder."""
    return cache_dir() / "own" / name


def read_array(name: str, file: str, help_text: str) -> np.ndarray:
    """An ``.npy`` of the user's, mapped and not read into memory, no pickles.

    Raises:
        UserError: If it is absent (with where to get it) or no array of numbers.
    """
    path = folder_of(name) / file
    if not path.is_file():
        raise UserError(
            f"data set '{name}' must have the file '{file}' in '{folder_of(name)}', found none; {help_text}"
        )
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' must be an .npy array without pickles, got an error: {error}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise UserError(f"'{path}' must hold numbers, got {getattr(array, 'dtype', type(array).__name__)}")
    return array


def checked(name: str, file: str, array: np.ndarray, shape: tuple[int | None, ...]) -> np.ndarray:
    """The array, if its shape fits; None in ``shape`` allows any size.

    Raises:
        UserError: If not.
    """
    fits = array.ndim == len(shape) and all(w is None or w == s for w, s in zip(shape, array.shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise UserError(f"data set '{name}': '{file}' must have shape ({wanted}), got {array.shape}")
    return array


def from_parts(
    name: str,
    inputs: Mapping[str, Mapping[str, np.ndarray]],
    targets: Mapping[str, np.ndarray],
    target: TargetSpec,
    notes: Sequence[str],
) -> DataSet:
    """A data set with a published split: float32 throughout, standardised by the training rows, nothing missing.

    Args:
        name: Its registry key.
        inputs: By part (train, validation, test) and modality, ``(N, D)``.
        targets: By part, ``(N,)`` classes or ``(N, L)`` labels.
        target: What they mean.
        notes: See ``DataSet``.

    Raises:
        UserError: If an input holds NaN or infinity.
    """
    modalities = tuple(inputs["train"])
    moments = {modality: _moments(name, modality, inputs["train"][modality]) for modality in modalities}
    batches = {}
    for part in NAMES:
        rows = len(targets[part])
        scaled = {}
        for modality, (mean, factor) in moments.items():
            values = np.asarray(inputs[part][modality], dtype=np.float32)
            if not np.isfinite(values).all():
                raise UserError(f"data set '{name}': {part} inputs of '{modality}' must be finite numbers")
            scaled[modality] = torch.from_numpy((values - mean) * factor)
        ids = [f"{name}/{part}/{row}" for row in range(rows)]
        kind = np.int64 if target.task == "classification" else np.float32
        batches[part] = Batch(
            modalities=modalities,
            inputs=dict(scaled),
            present=torch.ones(rows, len(modalities), dtype=torch.bool),
            target=torch.from_numpy(np.array(targets[part], dtype=kind)),
            keys=key_of(ids),
            ids=ids,
        )
    return DataSet(
        name=name,
        train=batches["train"],
        validation=batches["validation"],
        test=batches["test"],
        specs={m: ModalitySpec(m, "vector", {"width": inputs["train"][m].shape[1]}) for m in modalities},
        target=target,
        notes=tuple(notes),
    )


def _moments(name: str, modality: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and one over the deviation (0 for constant columns), a block at a time in float64."""
    total, square = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        block = np.asarray(rows[start : start + _ROWS_AT_ONCE], dtype=np.float64)
        total, square = total + block.sum(axis=0), square + (block * block).sum(axis=0)
    mean = total / max(len(rows), 1)
    std = np.sqrt(np.maximum(square / max(len(rows), 1) - mean * mean, 0.0))
    known = std > 1e-6 * (1.0 + np.abs(mean))
    return mean.astype(np.float32), np.where(known, 1.0 / np.where(known, std, 1.0), 0.0).astype(np.float32)
