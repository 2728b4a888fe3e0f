"""Streams of different rates and offsets on one clock: resampled to a grid, or averaged in windows; gaps stay gaps.

A stream is samples with times in seconds. What is missing (mask False, NaN) is no sample: a grid point that has none
near is masked, never filled in. Batches of padded rows: ``data/stream_rows.py``.

Shapes: T samples, G grid points, K samples of one window, ``...`` the shape of one sample. Masks: True = present.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from polyfuse.data.stream_rows import SLACK, Method, positive, resample_rows, window_rows


@dataclass(frozen=True)
class Stream:
    """Samples in time. Lists are taken too; the mask may be left out.

    Attributes:
        values: ``(T, ...)``; NaN in a float sample is a missing value, a sample of nothing else is missing.
        times: ``(T,)`` seconds, in any order; float64.
        mask: ``(T,)`` bool; None = all are here.

    Raises:
        ValueError: If lengths differ, or a sample that is here has an infinite value or no finite time.

    Example:
        >>> Stream([1.0, 2.0, 4.0], [0.0, 0.5, 1.0]).shifted(2.0).times.tolist()
        [2.0, 2.5, 3.0]
    """

    values: np.ndarray
    times: np.ndarray
    mask: np.ndarray = None  # type: ignore[assignment]  # filled in below

    def __post_init__(self) -> None:
        values, times = np.asarray(self.values), np.asarray(self.times, dtype=np.float64)
        if times.ndim != 1 or values.ndim < 1 or len(values) != len(times):
            raise ValueError(f"values must be (T, ...) and times (T,), got {values.shape} and {times.shape}")
        mask = np.ones(len(times), dtype=bool) if self.mask is None else np.asarray(self.mask)
        if mask.shape != times.shape or mask.dtype != bool:
            raise ValueError(f"mask must be bool of shape (T,) = {times.shape}, got {mask.dtype} {mask.shape}")
        if values.dtype.kind == "f" and np.isinf(values[mask]).any():
            raise ValueError("values must be finite where the mask is True, or NaN = missing; got an infinite one")
        if not np.isfinite(times[mask]).all():
            raise ValueError("times must be finite where the mask is True; mask samples whose time is unknown")
        for name, part in (("values", values), ("times", times), ("mask", mask)):
            object.__setattr__(self, name, part)

    @classmethod
    def regular(cls, values: ArrayLike, rate: float, start: float = 0.0) -> "Stream":
        """Samples ``1 / rate`` apart, the first at ``start``.

        Example:
            >>> Stream.regular([5, 6, 7], rate=2.0, start=10.0).times.tolist()
            [10.0, 10.5, 11.0]
        """
        held = np.asarray(values)
        return cls(held, start + np.arange(len(held)) / positive("rate", rate))

    def shifted(self, seconds: float) -> "Stream":
        """The same samples, later by ``seconds`` (earlier where negative): a clock's offset, or a broken synchrony."""
        return replace(self, times=self.times + seconds)

    def span(self) -> tuple[float, float]:
        """Times of the first and the last sample that is here; NaN if none is."""
        here = self.times[self.mask & ~_nothing(self.values)]
        return (float(here.min()), float(here.max())) if len(here) else (math.nan, math.nan)


class Aligned(NamedTuple):
    """Several streams on one grid.

    Attributes:
        times: ``(G,)`` seconds.
        values: ``{name: (G, ...)}``.
        mask: ``{name: (G,)}`` bool.
    """

    times: np.ndarray
    values: dict[str, np.ndarray]
    mask: dict[str, np.ndarray]


def grid_over(start: float, end: float, rate: float) -> np.ndarray:
    """``start, start + 1 / rate, ...`` up to ``end``, which is included where the grid meets it.

    Example:
        >>> grid_over(0.0, 1.0, 4.0).tolist()
        [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    return start + np.arange(math.floor((end - start) * positive("rate", rate) * (1 + SLACK) + SLACK) + 1) / rate


def resample(
    stream: Stream,
    grid: ArrayLike | None = None,
    *,
    rate: float | None = None,
    method: Method = "linear",
    max_gap: float = math.inf,
) -> Stream:
    """A stream at other times.

    Args:
        stream: Any number of samples.
        grid: ``(G,)`` seconds.
        rate: Instead of ``grid``: points per second from the stream's first sample to its last.
        method: See ``resample_rows``.
        max_gap: A point farther than this from every sample is missing, seconds.

    Raises:
        ValueError: Unless exactly one of ``grid`` and ``rate`` is given.

    Example:
        >>> gappy = Stream([0.0, 1.0, 5.0], [0.0, 1.0, 5.0])
        >>> out = resample(gappy, rate=1.0, max_gap=1.0)
        >>> out.values.tolist(), out.mask.tolist()
        ([0.0, 1.0, 1.0, 0.0, 5.0, 5.0], [True, True, True, False, True, True])
    """
    if (grid is None) == (rate is None):
        raise ValueError(f"give exactly one of grid and rate, got {'neither' if rate is None else 'both'}")
    if grid is None:
        first, last = stream.span()
        grid = grid_over(first, last, float(rate or 0.0)) if first == first else np.zeros(0)
    points = np.asarray(grid, dtype=np.float64)
    values, mask = resample_rows(*_row(stream), torch.from_numpy(points), method=method, max_gap=max_gap)
    return Stream(values[0].numpy(), points, mask[0].numpy())


def window(stream: Stream, centres: ArrayLike, width: float, *, stack: int | None = None) -> Stream:
    """Tokens of the samples within half a width of each centre: their mean, or the first ``stack`` of them.

    Args:
        stream: Any number of samples.
        centres: ``(G,)`` seconds.
        width: Seconds; a window is ``centre - width / 2 <= t < centre + width / 2``.
        stack: None = mean ``(G, ...)``; a number K = ``(G, K, ...)``, NaN (0 where integers) behind a window's last.

    Returns:
        A stream at the centres; a window without a sample is missing.

    Example:
        >>> window(Stream.regular([1.0, 3.0, 5.0, 7.0], rate=1.0), [0.5, 2.5, 9.0], width=2.0).values.tolist()
        [2.0, 6.0, 0.0]
    """
    points = np.asarray(centres, dtype=np.float64)
    values, mask = window_rows(*_row(stream), torch.from_numpy(points), width, stack=stack)
    here = mask
    if stack is not None:
        here = mask.any(dim=2)
        if values.is_floating_point():
            hidden = (~mask & here[..., None]).view(*mask.shape, *[1] * (values.ndim - 3))
            values = values.masked_fill(hidden, math.nan)
    return Stream(values[0].numpy(), points, here[0].numpy())


def align(
    streams: Mapping[str, Stream],
    rate: float,
    *,
    offsets: Mapping[str, float] | None = None,
    method: Method | Mapping[str, Method] = "linear",
    max_gap: float | Mapping[str, float] = math.inf,
    over: Literal["union", "intersection"] = "union",
) -> Aligned:
    """Streams of any rates on one grid.

    Args:
        streams: By name.
        rate: Grid points per second.
        offsets: Seconds to add to a stream's times, where its clock starts elsewhere; 0 for names left out.
        method: Of ``resample_rows``, for all or by name ("linear" for names left out).
        max_gap: Seconds, for all or by name (unlimited for names left out).
        over: The grid spans all streams, or only what they share (empty if they share nothing).

    Raises:
        ValueError: If ``offsets``, ``method`` or ``max_gap`` names an unknown stream.

    Example:
        >>> fast, slow = Stream.regular([0.0, 1.0, 2.0, 3.0], rate=2.0), Stream([10.0, 20.0], [0.0, 1.0])
        >>> both = align({"fast": fast, "slow": slow}, rate=2.0, max_gap=0.5)
        >>> both.values["slow"].tolist(), both.mask["slow"].tolist()
        ([10.0, 15.0, 20.0, 20.0], [True, True, True, True])
    """
    for what, given in (("offsets", offsets), ("method", method), ("max_gap", max_gap)):
        unknown = sorted(set(given) - set(streams)) if isinstance(given, Mapping) else []
        if unknown:
            raise ValueError(f"{what} names unknown streams {unknown}; known: {sorted(streams)}")
    moved = {name: stream.shifted((offsets or {}).get(name, 0.0)) for name, stream in streams.items()}
    spans = [span for span in (stream.span() for stream in moved.values()) if span[0] == span[0]]
    times = np.zeros(0)
    if spans and (over == "union" or len(spans) == len(moved)):
        starts, ends = zip(*spans, strict=True)
        start, end = (min(starts), max(ends)) if over == "union" else (max(starts), min(ends))
        times = grid_over(start, end, rate) if end >= start else times
    found = {
        name: resample(
            stream,
            times,
            method=method.get(name, "linear") if isinstance(method, Mapping) else method,
            max_gap=max_gap.get(name, math.inf) if isinstance(max_gap, Mapping) else max_gap,
        )
        for name, stream in moved.items()
    }
    return Aligned(times, {n: s.values for n, s in found.items()}, {n: s.mask for n, s in found.items()})


def _row(stream: Stream) -> tuple[Tensor, Tensor, Tensor]:
    values = np.ascontiguousarray(stream.values)
    parts = (values, stream.times, stream.mask)
    return tuple(torch.from_numpy(part.copy())[None] for part in parts)  # type: ignore[return-value]


def _nothing(values: np.ndarray) -> np.ndarray:
    """``(T,)``: samples in which everything is NaN."""
    if values.dtype.kind != "f":
        return np.zeros(len(values), dtype=bool)
    return (
        np.asarray(np.isnan(values.reshape(len(values), -1)).all(axis=1))
        if values.size
        else np.zeros(len(values), bool)
    )
