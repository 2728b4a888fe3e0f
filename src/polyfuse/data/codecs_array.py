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

from polyfuse.data.codecs import Cells, Codec, Encoding, Reading, decode_cells, find_file, show, source_of
from polyfuse.data.codecs_tabular import CLIP, Moments
from polyfuse.data.problems import Broken
from polyfuse.data.schema import ModalityConfig
from polyfuse.data.spec import ModalitySpec
from polyfuse.data.stamps import check_times, offsets_of, on_grid
from polyfuse.data.table_csv import BadText

_LONGEST = 1024
_WIDEST = 1 << 20
_MOST_STAMPS = 1 << 20


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
    """Series to ``{"values": (B, T, C), "mask": (B, T)}``.

    With time stamps or an offset a row is brought to a regular grid of ``rate`` steps a second from 0 of the row's
    clock; where the stream has a gap, the steps are masked.
    """

    length: int = 1
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    times: str | None = None
    rate: float = 1.0
    resample: str = "linear"
    max_gap: float = 0.0
    offset: float | str | None = None
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
        if config.times is not None or config.offset is not None:
            return _fit_timed(cls(name, config.all_columns), config, train, reading)
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
        if self.times is not None or self.offset is not None:
            return self._encode_timed(cells, reading)

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

    def _encode_timed(self, cells: Cells, reading: Reading) -> Encoding:
        """Bring every row to the grid, then standardise."""
        rows, problems = self.timed_rows(cells, reading, len(self.mean))
        index = [i for i, row in enumerate(rows) if row is not None]
        out = self.zeros(len(rows))
        present = np.zeros(len(rows), dtype=bool)
        if index:
            found = [row for row in rows if row is not None]
            values = on_grid(found, self.length, self.rate, self.resample, self.max_gap)
            here = ~np.isnan(values)
            scaled = ((values - np.array(self.mean)) / np.array(self.std)).clip(-CLIP, CLIP)
            out["values"][index] = np.where(here, scaled, 0.0)
            out["mask"][index] = here.any(2)
            present[index] = here.any((1, 2))
        end = self.length / self.rate
        problems += [(i, "outside the window", f"no step in 0 to {end:g} s") for i in index if not present[i]]
        return Encoding(out, present, sorted(problems))

    def timed_rows(
        self, cells: Cells, reading: Reading, channels: int | None
    ) -> tuple[list[tuple[np.ndarray, np.ndarray] | None], list[tuple[int, str, str]]]:
        """Values ``(T, C)`` and times ``(T,)`` on the row's clock; None where there are none."""
        shifts = offsets_of(cells, self.columns, self.offset)
        stamps = None if self.times is None else cells[self.columns.index(self.times)]
        work = [None if cell is None else (i, cell) for i, cell in enumerate(cells[0])]

        def decode(item: tuple[int, Any]) -> tuple[np.ndarray, np.ndarray] | None:
            i, cell = item
            values = as_series(cell, reading, _MOST_STAMPS)
            if values is None:
                return None
            if channels is not None and values.shape[1] != channels:
                raise Broken("wrong shape", f"expected {channels} channels, got {values.shape[1]}")
            times = np.arange(len(values)) / self.rate
            if stamps is not None:
                given = None if stamps[i] is None else parse_array(stamps[i], reading)
                times = check_times(given, len(np.asarray(parse_array(cell, reading))))[: len(values)]
            if np.isnan(shifts[i]) or np.isnan(times).all():
                raise Broken("no time", "its offset or its times are empty")
            known = ~np.isnan(values).all(1) & ~np.isnan(times)
            first = times[known].min() if self.offset is None and known.any() else 0.0
            return values, times - first + shifts[i]

        rows, found = decode_cells(work, decode, None)
        return rows, [(i, kind, f"{show(cells[0][i])}, {detail.split(', ')[-1]}") for i, kind, detail in found]

    def state(self) -> dict[str, Any]:
        """Length, moments and times."""
        plain = {"length": self.length, "mean": self.mean, "std": self.std}
        if self.times is None and self.offset is None:
            return plain
        timed = ("times", "rate", "resample", "max_gap", "offset")
        return {**plain, **{key: getattr(self, key) for key in timed}}


def _fit_timed(
    codec: SeriesCodec, config: ModalityConfig, train: Callable[[], Iterator[Cells]], reading: Reading
) -> SeriesCodec | None:
    """The usual distance of two steps, the commonest number of channels, the longest row, the moments per channel."""
    codec.times, codec.offset, codec.resample = config.times, config.offset, config.resample
    codec.rate = config.grid_rate or 1.0
    moments: dict[int, Moments] = {}
    count: Counter[int] = Counter()
    ends: dict[int, float] = {}
    distances: list[float] = []
    for cells in train():
        for row in codec.timed_rows(cells, reading, None)[0]:
            if row is None:
                continue
            values, times = row
            channels, known = values.shape[1], ~np.isnan(times)
            moments.setdefault(channels, Moments(channels)).add(values)
            count[channels] += 1
            ends[channels] = max(ends.get(channels, 0.0), float(times[known].max()))
            apart = np.diff(np.sort(times[known]))
            if (apart > 0).any():
                distances.append(float(np.median(apart[apart > 0])))
    if not count:
        return None
    usual = float(np.median(distances)) if distances else 1.0 / codec.rate
    channels = max(count, key=lambda c: (count[c], -c))
    codec.rate = config.grid_rate or 1.0 / usual
    codec.max_gap = config.max_gap or 2.0 * max(usual, 0.5 / codec.rate)
    wanted = int(np.floor(max(ends[channels], 0.0) * codec.rate + 1e-6)) + 1
    codec.length = min(wanted, config.length or _LONGEST)
    if wanted > codec.length:
        codec.notes.append(f"{codec.name}: series longer than {codec.length} steps are cut there; see length")
    codec.mean, codec.std = moments[channels].mean.tolist(), moments[channels].std.tolist()
    return codec


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
