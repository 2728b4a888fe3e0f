"""Where encoded rows are collected: arrays in memory, or files mapped into it above a size."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from polyfuse.data.batch import Batch
from polyfuse.data.codecs import zeros
from polyfuse.data.keyed import key_of
from polyfuse.data.spec import ModalitySpec
from polyfuse.data.split import NAMES
from polyfuse.data.table_encoder import as_inputs


class Store:
    """Three growing batches (train, validation, test) of known largest size.

    Args:
        specs: The modalities.
        values: Targets of some rows: their dtype and width are what matters.
        count: Most rows per split.
        folder: Where mapped files go.
        max_memory_gb: Above this the inputs are mapped files in ``folder/encoded``.

    Attributes:
        encoded: Rows offered so far, those left out included.
        numbers: Row numbers per split.
    """

    def __init__(
        self,
        specs: Mapping[str, ModalitySpec],
        values: np.ndarray,
        count: Sequence[int],
        folder: Path,
        max_memory_gb: float,
    ) -> None:
        self.modalities = tuple(specs)
        row = {name: zeros(spec, 1) for name, spec in specs.items()}
        size = sum(array.nbytes for part in row.values() for array in part.values()) * sum(count)
        home = folder / "encoded" if size > max_memory_gb * 1e9 else None
        if home is not None:
            home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self._inputs = [
            {
                name: {key: self._array(array, count[s], f"{split}-{m}-{key}") for key, array in part.items()}
                for m, (name, part) in enumerate(row.items())
            }
            for s, split in enumerate(NAMES)
        ]
        self._present = [np.zeros((n, len(specs)), dtype=bool) for n in count]
        self._target = [np.zeros((n, *values.shape[1:]), dtype=values.dtype) for n in count]
        self._numbers = [np.zeros(n, dtype=np.int64) for n in count]
        self._used = [0, 0, 0]
        self.encoded = 0

    def _array(self, like: np.ndarray, rows: int, name: str) -> np.ndarray:
        shape = (rows, *like.shape[1:])
        if self.home is None or 0 in shape:
            return np.zeros(shape, like.dtype)
        return np.lib.format.open_memmap(self.home / f"{name}.npy", mode="w+", dtype=like.dtype, shape=shape)

    def add(
        self,
        parts: Mapping[str, Mapping[str, np.ndarray]],
        present: np.ndarray,
        target: np.ndarray,
        numbers: np.ndarray,
        split: np.ndarray,
    ) -> None:
        """Append rows to their split (-1: left out), in order."""
        self.encoded += len(numbers)
        for s in range(3):
            chosen = np.flatnonzero(split == s)
            here = slice(self._used[s], self._used[s] + len(chosen))
            for name, part in parts.items():
                for key, array in part.items():
                    self._inputs[s][name][key][here] = array[chosen]
            self._present[s][here] = present[chosen]
            self._target[s][here] = target[chosen]
            self._numbers[s][here] = numbers[chosen]
            self._used[s] += len(chosen)

    @property
    def numbers(self) -> list[np.ndarray]:
        """Row numbers per split."""
        return [array[:used] for array, used in zip(self._numbers, self._used, strict=True)]

    def batch(self, split: int, keys: Sequence[str], ids: Sequence[str]) -> Batch:
        """One split; ``keys`` and ``ids`` hold one string per row of the table."""
        used = self._used[split]
        rows = self.numbers[split].tolist()
        inputs = {
            name: {key: array[:used] for key, array in part.items()} for name, part in self._inputs[split].items()
        }
        return Batch(
            modalities=self.modalities,
            inputs=as_inputs(inputs),
            present=torch.from_numpy(self._present[split][:used]),
            target=torch.from_numpy(self._target[split][:used]),
            keys=key_of([keys[row] for row in rows]),
            ids=[ids[row] for row in rows],
        )
