"""A batch of padded streams at other times, without a loop over rows: the workhorse of ``data/streams.py``.

Shapes: B rows, T samples, G grid points, K samples of one window, C values of one sample. Masks: True = present.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Method = Literal["linear", "nearest", "hold"]
METHODS = ("linear", "nearest", "hold")
SLACK = 1e-9  # of a distance: 3 * 0.1 is not 0.3, and still at a gap's very end


def resample_rows(
    values: Tensor,
    times: Tensor,
    mask: Tensor,
    grid: Tensor,
    *,
    method: Method = "linear",
    max_gap: float = math.inf,
) -> tuple[Tensor, Tensor]:
    """Every row's stream at the times of a grid. Gradients reach ``values`` that are present and used.

    - "linear": between the two samples around a point, as ``numpy.interp``; outside them the nearest. Where they lie
      more than ``2 max_gap`` apart there is a gap, and no line is drawn across it: the nearest counts.
    - "nearest": the nearest sample, the earlier of two.
    - "hold": the last sample at or before the point.

    Samples with NaN in some values only count for the other values: each value of a sample is its own stream then.

    Shape:
        - values: ``(B, T, ...)``; times: ``(B, T)``; mask: ``(B, T)`` bool; grid: ``(G,)`` or ``(B, G)``.
        - returns ``(B, G, ...)`` and ``(B, G)`` bool. Zero where a point is missing, NaN for a value that is missing at
          a point that has others. Integers become float32 under "linear".

    Raises:
        ValueError: For an unknown method, a negative gap or shapes that do not fit.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got '{method}'")
    if not max_gap >= 0:
        raise ValueError(f"max_gap must be at least 0 seconds, got {max_gap}")
    grid = _grid(values, times, mask, grid)
    if method == "linear" and not values.is_floating_point():
        values = values.float()
    missing, mask, partly = _missing(values, mask)
    if not partly:
        return _resample(values, times, mask, grid, method, max_gap)
    rows, shape = len(values), values.shape[2:]
    single = _flat(values).transpose(1, 2).flatten(0, 1)[..., None]  # (B * C, T, 1): every value a stream
    here = (mask[..., None] & ~_flat(missing)).transpose(1, 2).flatten(0, 1)
    per_row = len(single) // rows
    out, found = _resample(
        single,
        times.repeat_interleave(per_row, 0),
        here,
        grid.repeat_interleave(per_row, 0),
        method,
        max_gap,
    )
    found = found.view(rows, per_row, -1).transpose(1, 2)
    out = out.view(rows, per_row, -1).transpose(1, 2)
    return _holes(out, found, shape)


def window_rows(
    values: Tensor, times: Tensor, mask: Tensor, centres: Tensor, width: float, *, stack: int | None = None
) -> tuple[Tensor, Tensor]:
    """Every row's samples by windows; see ``window``.

    Shape:
        - values: ``(B, T, ...)``; times: ``(B, T)``; mask: ``(B, T)`` bool; centres: ``(G,)`` or ``(B, G)``.
        - returns the means ``(B, G, ...)`` (integers become float32) and ``(B, G)`` bool; or with ``stack`` the samples
          ``(B, G, K, ...)`` and ``(B, G, K)`` bool. Holes as in ``resample_rows``.

    Raises:
        ValueError: If ``width`` or ``stack`` is not positive or shapes do not fit.
    """
    centres = _grid(values, times, mask, centres)
    half = positive("width", width) / 2
    if stack is not None and stack < 1:
        raise ValueError(f"stack must be at least 1 sample, got {stack}")
    missing, mask, _ = _missing(values, mask)
    key, order = _sorted(times, mask)
    low, high = (torch.searchsorted(key, centres + sign * half) for sign in (-1, 1))
    if stack is not None:
        place = low[..., None] + torch.arange(stack, device=low.device)
        here = place < high[..., None]
        if not values.shape[1]:
            return values.new_zeros(*place.shape, *values.shape[2:]), here
        index = order.gather(1, place.clamp(max=values.shape[1] - 1).flatten(1))
        picked = _pick(values, index).view(*place.shape, *values.shape[2:])
        return picked.masked_fill(~_like(here, picked), 0), here
    shape, dtype = values.shape[2:], values.dtype if values.is_floating_point() else torch.float32
    here = mask[..., None] & ~_flat(missing)
    flat = _flat(values).double().masked_fill(~here, 0.0)
    sums, counts = (_sums(_pick(part, order), low, high) for part in (flat, here.double()))
    return _holes((sums / counts.clamp(min=1)).to(dtype), counts > 0, shape)


def positive(name: str, value: float) -> float:
    """The value, if it is a positive number.

    Raises:
        ValueError: If it is not.
    """
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be a positive number, got {value}")
    return value


def _grid(values: Tensor, times: Tensor, mask: Tensor, grid: Tensor) -> Tensor:
    """The grid as ``(B, G)`` float64, after a look at all shapes."""
    if times.ndim != 2 or values.shape[:2] != times.shape or mask.shape != times.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"values must be (B, T, ...), times (B, T) and mask (B, T) bool, got {tuple(values.shape)}, "
            f"{tuple(times.shape)} and {mask.dtype} {tuple(mask.shape)}"
        )
    if grid.ndim not in (1, 2) or (grid.ndim == 2 and len(grid) != len(times)):
        raise ValueError(f"a grid must be (G,) or (B, G) with B = {len(times)}, got {tuple(grid.shape)}")
    return grid.to(times.device, torch.float64).expand(len(times), grid.shape[-1]).contiguous()


def _missing(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Which values are NaN, the mask without samples of nothing else, and whether some sample is partly missing."""
    if not values.is_floating_point():
        return torch.zeros((), dtype=torch.bool, device=values.device).expand(values.shape), mask, False
    missing = values.isnan()
    flat = _flat(missing)
    mask = mask & ~flat.all(dim=2)
    return missing, mask, bool((flat & mask[..., None]).any())


def _sorted(times: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Times in order, what is missing behind all others, and where each came from."""
    return times.double().masked_fill(~mask, math.inf).sort(dim=1, stable=True)


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """``values[b, index[b, g]]``."""
    return values[torch.arange(len(values), device=values.device)[:, None], index]


def _flat(values: Tensor) -> Tensor:
    """``(B, T, C)`` of ``(B, T, ...)``."""
    return values.reshape(*values.shape[:2], math.prod(values.shape[2:]))


def _like(mask: Tensor, values: Tensor) -> Tensor:
    return mask.view(*mask.shape, *[1] * (values.ndim - mask.ndim))


def _sums(x_BTC: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``(B, G, C)``: sums over ``low <= t < high``."""
    running = torch.nn.functional.pad(x_BTC.cumsum(dim=1), (0, 0, 1, 0))
    return _pick(running, high) - _pick(running, low)


def _holes(values: Tensor, found: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Values ``(B, G, C)`` and which of them are known, as the outcome of this file's functions."""
    mask = found.any(dim=2)
    values = values.masked_fill(~found & mask[..., None], math.nan).masked_fill(~mask[..., None], 0.0)
    return values.reshape(*mask.shape, *shape), mask


def _resample(
    values: Tensor, times: Tensor, mask: Tensor, grid: Tensor, method: str, max_gap: float
) -> tuple[Tensor, Tensor]:
    """Samples that are whole or missing."""
    if not values.shape[1]:
        empty = values.new_zeros(len(values), grid.shape[1], *values.shape[2:])
        return empty, torch.zeros_like(grid, dtype=torch.bool)
    key, order = _sorted(times, mask)
    count = mask.sum(dim=1, keepdim=True)
    until = torch.searchsorted(key, grid, right=True)  # samples at or before each point
    first, second = (until - 1).clamp(min=0), torch.minimum(until, (count - 1).clamp(min=0))
    has_first, has_second = until > 0, until < count
    t_first, t_second = key.gather(1, first), key.gather(1, second)
    back = (grid - t_first).masked_fill(~has_first, math.inf)
    ahead = (t_second - grid).masked_fill(~has_second, math.inf)
    reach = max_gap * (1 + SLACK) + SLACK
    late = ahead < back
    near, known = torch.minimum(back, ahead), has_first | has_second
    if method == "hold":
        near, known, late = back, has_first, torch.zeros_like(late)
    known = known & (near <= reach)
    values = values.masked_fill(~_like(mask, values), 0)  # 0 * nan is nan
    if method == "linear":
        between = has_first & has_second & (back + ahead <= 2 * reach) & (t_second > t_first)
        weight = torch.where(between, (grid - t_first) / (t_second - t_first), late.double())
        weight = _like(weight.to(values.dtype), values)
        out = _pick(values, order.gather(1, first)) * (1 - weight) + _pick(values, order.gather(1, second)) * weight
    else:
        out = _pick(values, order.gather(1, torch.where(late, second, first)))
    return out.masked_fill(~_like(known, out), 0), known
