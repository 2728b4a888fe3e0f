"""Times of a row's streams on the row's clock: offsets from a schema, series with time stamps on a regular grid."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from polyfuse.data.codecs import Cells, numbers
from polyfuse.data.problems import Broken
from polyfuse.data.stream_rows import resample_rows, window_rows

_AT_ONCE = 1 << 22  # numbers of padded rows


def offsets_of(cells: Cells, columns: Sequence[str], offset: float | str | None) -> np.ndarray:
    """``(n,)`` seconds to add to each row's times; NaN where the offset's cell is empty or no number.

    Example:
        >>> offsets_of([["a.wav", "b.wav"], ["1.5", None]], ("clip", "late"), "late").tolist()
        [1.5, nan]
    """
    if not isinstance(offset, str):
        return np.full(len(cells[0]), float(offset or 0.0))
    return numbers([None if cell is None else str(cell) for cell in cells[columns.index(offset)]])[0]


def check_times(times: np.ndarray | None, steps: int) -> np.ndarray:
    """A cell's array as ``(steps,)`` float64 seconds, NaN where a step's time is not known.

    Raises:
        Broken: ``no time`` for an empty cell, ``wrong shape`` for another number of times than steps, ``not finite``.
    """
    if times is None:
        raise Broken("no time", "its column of times is empty")
    if times.ndim != 1 or len(times) != steps:
        raise Broken("wrong shape", f"{steps} steps and {times.shape} times")
    times = np.asarray(times, dtype=np.float64)
    if np.isinf(times).any():
        raise Broken("not finite", "holds an infinite time")
    return times


def on_grid(
    rows: Sequence[tuple[np.ndarray, np.ndarray]], length: int, rate: float, method: str, max_gap: float
) -> np.ndarray:
    """Series ``(T_i, C)`` with times ``(T_i,)`` at 0, 1 / rate, ...: ``(n, length, C)``, NaN = missing."""
    channels = rows[0][0].shape[1]
    out = np.full((len(rows), length, channels), np.nan)
    grid = torch.arange(length, dtype=torch.float64) / rate
    longest = max(max((len(times) for _, times in rows), default=1), 1)
    step = max(1, _AT_ONCE // (longest * channels))
    for first in range(0, len(rows), step):
        part = rows[first : first + step]
        values, times = np.full((len(part), longest, channels), np.nan), np.full((len(part), longest), np.nan)
        for i, (v, t) in enumerate(part):
            values[i, : len(v)], times[i, : len(t)] = v, t
        args = (
            torch.from_numpy(values),
            torch.from_numpy(times).nan_to_num(),
            torch.from_numpy(~np.isnan(times)),
            grid,
        )
        if method == "mean":
            found, mask = window_rows(*args, 1 / rate)
        else:
            found, mask = resample_rows(*args, method=method, max_gap=max_gap)  # type: ignore[arg-type]
        out[first : first + step] = found.masked_fill(~mask[..., None], math.nan).numpy()
    return out
