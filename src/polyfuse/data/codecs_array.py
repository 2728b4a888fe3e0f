"""Series and vectors: a list cell, a JSON list or an .npy path to standardised numbers.

A null or NaN inside is a missing value (0 after standardising; a step without any value is masked); an infinite one
breaks the cell. `.npy` files are opened with ``allow_pickle=False`` and mapped, so that only what is kept is read.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, ClassVar

import numpy as np

from polyfuse.data.codecs import Cells, Codec, Encoding, Reading, decode_cells, find_file, source_of
from polyfuse.data.codecs_tabular import CLIP, Moments
from polyfuse.data.problems import Broken
from polyfuse.data.schema import ModalityConfig
from polyfuse.data.spec import ModalitySpec
from polyfuse.data.table_csv import BadText

_LONGEST = 1024
_WIDEST = 1 << 20


def parse_array(cell: Any, reading: Reading) -> np.ndarray:
    """A cell as a numeric array of any shape, not yet checked for NaN.

    Raises:
        Broken: If it is no list of numbers, no numeric .npy file, or ragged.
    """
    if isinstance(cell, Mapping):
        cell = source_of(cell, reading)
    if isinstance(cell, BadText):
        raise Broken("undecodable", "not UTF-8")
    if isinstance(cell, str) and cell.startswith("["):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            raise Broken("undecodable", "not a JSON list") from None
    if isinstance(cell, str | bytes):
        return _load(cell, reading)
    if isinstance(cell, list):
        try:
            cell = np.array(cell, dtype=np.float64)
        except (TypeError, ValueError, OverflowError, RecursionError):
            ragged = any(isinstance(part, list) for part in cell) and len({_length(part) for part in cell}) > 1
            raise Broken("wrong shape" if ragged else "undecodable", "not a list of numbers") from None
    if not isinstance(cell, np.ndarray) or cell.dtype.kind not in "fiub":
        raise Broken("wrong type", "expected a list of numbers or an .npy file")
    return cell


def _length(part: Any) -> int:
    return len(part) if isinstance(part, list) else -1


def _load(cell: str | bytes, reading: Reading) -> np.ndarray:
    if isinstance(cell, str) and not cell.lower().endswith(".npy"):
        raise Broken("wrong type", "expected a JSON list or an .npy file")
    real = find_file(cell, reading) if isinstance(cell, str) else ""
    try:
        if isinstance(cell, bytes):
            array = np.load(BytesIO(cell), allow_pickle=False)
        else:
            array = np.load(real, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy's header parser raises whatever it likes on a broken file
        text = (str(error).splitlines() or [""])[0][:80]
        early = isinstance(error, EOFError) or text.startswith("EOF:") or "mmap length" in text
        raise Broken("truncated" if early else "undecodable", text) from None
    if not isinstance(array, np.ndarray):
        raise Broken("wrong type", "an archive, expected one array")
    return array


def as_series(cell: Any, reading: Reading, longest: int) -> np.ndarray | None:
    """``(T, C)`` float64 of the first ``longest`` steps; None if it holds no value."""
    array = parse_array(cell, reading)
    if array.ndim not in (1, 2):
        raise Broken("wrong shape", f"expected (steps,) or (steps, channels), got {array.shape}")
    if array.dtype.kind not in "fiub":
        raise Broken("wrong type", f"an array of {array.dtype}")
    return _finite(array[:longest].reshape(min(len(array), longest), -1 if len(array) else 1))


def as_vector(cell: Any, reading: Reading, width: int | None = None) -> np.ndarray | None:
    """``(D,)`` float64; None if it holds no value."""
    array = parse_array(cell, reading)
    if array.dtype.kind not in "fiub":
        raise Broken("wrong type", f"an array of {array.dtype}")
    if (
        array.size != max(array.shape, default=0)
        or array.size > _WIDEST
        or (width is not None and array.size not in (0, width))
    ):
        raise Broken("wrong shape", f"expected {width or 'one axis'}, got {array.shape}")
    return _finite(array.reshape(-1))


def _finite(array: np.ndarray) -> np.ndarray | None:
    values = np.asarray(array, dtype=np.float64)
    if np.isinf(values).any():
        raise Broken("not finite", "holds an infinite value")
    return None if np.isnan(values).all() else values


@dataclass
class SeriesCodec(Codec):
    """Series to ``{"values": (B, T, C), "mask": (B, T)}``."""

    length: int = 1
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    type: ClassVar[str] = "series"

    @property
    def spec(self) -> ModalitySpec:
        """Channels and steps."""
        return ModalitySpec(self.name, "series", {"channels": len(self.mean), "length": self.length})

    @classmethod
    def fit(
        cls, name: str, config: ModalityConfig, train: Callable[[], Iterator[Cells]], reading: Reading
    ) -> "SeriesCodec | None":
        """The commonest number of channels, the longest length, the moments per channel."""
        moments: dict[int, Moments] = {}
        count: Counter[int] = Counter()
        longest: Counter[int] = Counter()
        limit = config.length or _LONGEST
        for cells in train():
            arrays, _ = decode_cells(cells[0], lambda cell: as_series(cell, reading, limit + 1), None)
            for array in arrays:
                if array is not None:
                    channels = array.shape[1]
                    moments.setdefault(channels, Moments(channels)).add(array[:limit])
                    count[channels] += 1
                    longest[channels] = max(longest[channels], len(array))
        if not count:
            return None
        channels = max(count, key=lambda c: (count[c], -c))
        found, length = moments[channels], min(longest[channels], limit)
        codec = cls(name, config.all_columns, length=length, mean=found.mean.tolist(), std=found.std.tolist())
        if longest[channels] > limit:
            codec.notes.append(f"{name}: series longer than {limit} steps are cut there; see length")
        return codec

    def encode(self, cells: Cells, reading: Reading) -> Encoding:
        """Standardise, cut and pad."""
        channels = len(self.mean)

        def decode(cell: Any) -> np.ndarray | None:
            array = as_series(cell, reading, self.length)
            if array is not None and array.shape[1] != channels:
                raise Broken("wrong shape", f"expected {channels} channels, got {array.shape[1]}")
            return array

        arrays, problems = decode_cells(cells[0], decode, None)
        out = self.zeros(len(arrays))
        mean, std = np.array(self.mean), np.array(self.std)
        for i, array in enumerate(arrays):
            if array is not None:
                here = ~np.isnan(array)
                out["values"][i, : len(array)] = np.where(here, ((array - mean) / std).clip(-CLIP, CLIP), 0.0)
                out["mask"][i, : len(array)] = here.any(1)
        return Encoding(out, np.array([array is not None for array in arrays], dtype=bool), problems)

    def state(self) -> dict[str, Any]:
        """Length and moments."""
        return {"length": self.length, "mean": self.mean, "std": self.std}


@dataclass
class VectorCodec(Codec):
    """Vectors to ``(B, D)``."""

    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    type: ClassVar[str] = "vector"

    @property
    def spec(self) -> ModalitySpec:
        """The width."""
        return ModalitySpec(self.name, "vector", {"width": len(self.mean)})

    @classmethod
    def fit(
        cls, name: str, config: ModalityConfig, train: Callable[[], Iterator[Cells]], reading: Reading
    ) -> "VectorCodec | None":
        """The commonest width and the moments per entry."""
        moments: dict[int, Moments] = {}
        count: Counter[int] = Counter()
        for cells in train():
            arrays, _ = decode_cells(cells[0], lambda cell: as_vector(cell, reading), None)
            for width in {len(array) for array in arrays if array is not None}:
                rows = np.stack([array for array in arrays if array is not None and len(array) == width])
                moments.setdefault(width, Moments(width)).add(rows)
                count[width] += len(rows)
        if not count:
            return None
        found = moments[max(count, key=lambda w: (count[w], -w))]
        return cls(name, config.all_columns, mean=found.mean.tolist(), std=found.std.tolist())

    def encode(self, cells: Cells, reading: Reading) -> Encoding:
        """Standardise."""
        width = len(self.mean)
        arrays, problems = decode_cells(cells[0], lambda cell: as_vector(cell, reading, width), None)
        present = np.array([array is not None for array in arrays], dtype=bool)
        out = self.zeros(len(arrays))
        if present.any():
            values = np.stack([array for array in arrays if array is not None])
            scaled = ((values - np.array(self.mean)) / np.array(self.std)).clip(-CLIP, CLIP)
            out[""][present] = np.where(np.isnan(values), 0.0, scaled)
        return Encoding(out, present, problems)

    def state(self) -> dict[str, Any]:
        """Moments."""
        return {"mean": self.mean, "std": self.std}
