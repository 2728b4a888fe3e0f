"""Resampling, windows and alignment against numpy.interp, loops over samples, and gaps laid by hand."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from polyfuse.data.stream_rows import METHODS, resample_rows, window_rows
from polyfuse.data.streams import Stream, align, grid_over, resample, window

B, T, C, G = 5, 23, 3, 37


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of unordered times with absent samples; the last row has none."""
    g = torch.Generator().manual_seed(seed)
    times = torch.rand(B, T, generator=g, dtype=torch.float64) * 10
    values = torch.randn(B, T, C, generator=g, dtype=torch.float64)
    mask = torch.rand(B, T, generator=g) < 0.7
    mask[-1] = False
    values[~mask] = math.nan
    times[~mask] = math.nan
    return values, times, mask, torch.linspace(-2, 12, G, dtype=torch.float64)


def by_hand(v: np.ndarray, t: np.ndarray, point: float, method: str, gap: float) -> np.ndarray | None:
    """One row, one point, in words."""
    order = np.argsort(t)
    v, t = v[order], t[order]
    before, after = np.flatnonzero(t <= point), np.flatnonzero(t > point)
    back = point - t[before[-1]] if len(before) else math.inf
    ahead = t[after[0]] - point if len(after) else math.inf
    if method == "hold":
        return v[before[-1]] if len(before) and back <= gap else None
    if min(back, ahead) > gap or not len(t):
        return None
    if method == "linear" and back + ahead <= 2 * gap and len(before) and len(after):
        return np.array([np.interp(point, t, column) for column in v.T])
    return v[before[-1]] if back <= ahead else v[after[0]]


@pytest.mark.parametrize("gap", [0.11, 0.7, math.inf])
@pytest.mark.parametrize("method", METHODS)
def test_every_point_of_every_row_is_as_by_hand(method: str, gap: float) -> None:
    values, times, mask, grid = drawn()
    out, found = resample_rows(values, times, mask, grid, method=method, max_gap=gap)
    for b in range(B):
        v, t = values[b][mask[b]].numpy(), times[b][mask[b]].numpy()
        for g, point in enumerate(grid.tolist()):
            expected = by_hand(v, t, point, method, gap)
            assert found[b, g] == (expected is not None)
            assert_allclose(out[b, g], np.zeros(C) if expected is None else expected, atol=1e-12)
    assert not found[-1].any()
    assert 0 < found[:-1].double().mean() < 1 or (gap == math.inf and method != "hold")


def test_without_gaps_it_is_numpy_interp() -> None:
    rng = np.random.default_rng(1)
    times, values = np.sort(rng.uniform(0, 9, T)), rng.normal(size=T)
    grid = np.linspace(-1, 10, G)
    out = resample(Stream(values, times), grid)
    assert_allclose(out.values, np.interp(grid, times, values), atol=1e-12)
    assert out.mask.all()


def test_one_value_missing_leaves_the_others() -> None:
    values, times, mask, grid = drawn(2)
    rng = np.random.default_rng(2)
    holes = torch.from_numpy(rng.random((B, T, C)) < 0.3)
    values = values.masked_fill(holes, math.nan)
    out, found = resample_rows(values, times, mask, grid, max_gap=0.5)
    single = []
    for c in range(C):
        one, here = resample_rows(values[..., c], times, mask, grid, max_gap=0.5)
        single.append(here)
        torch.testing.assert_close(out[..., c].nan_to_num(), one)
        assert torch.equal(out[..., c].isnan(), ~here & found)
    assert torch.equal(found, torch.stack(single).any(dim=0))
    assert out.isnan().any()
    assert not out[~found].any()


def test_what_is_absent_reaches_no_gradient() -> None:
    values, times, mask, grid = drawn(3)
    values.requires_grad_()
    out, _ = resample_rows(values, times, mask, grid, max_gap=0.5)
    out.square().sum().backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()
    assert not values.grad[~mask].any()
    assert values.grad[mask].any()
    other = values.detach().masked_fill(~mask[..., None], 99.0)
    assert torch.equal(resample_rows(other, times.nan_to_num(5.0), mask, grid, max_gap=0.5)[0], out.detach())


def test_a_grid_per_row_and_rows_apart() -> None:
    values, times, mask, grid = drawn(4)
    grids = grid + torch.arange(B, dtype=torch.float64)[:, None]
    out, found = resample_rows(values, times, mask, grids, max_gap=0.5)
    for b in range(B):
        one, here = resample_rows(values[b : b + 1], times[b : b + 1], mask[b : b + 1], grids[b], max_gap=0.5)
        assert torch.equal(one[0], out[b])
        assert torch.equal(here[0], found[b])


def test_a_hand_made_gap() -> None:
    stream = Stream(np.arange(10.0), np.arange(10.0), np.array([1, 1, 1, 0, 0, 0, 0, 0, 1, 1], dtype=bool))
    out = resample(stream, np.arange(0, 9.5, 0.5), max_gap=1.0)
    assert_array_equal(out.times[~out.mask], [3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5])
    assert_allclose(out.values[out.times == 2.5], 2.0)  # no line across the gap, the nearest
    assert_allclose(out.values[out.times == 7.5], 8.0)
    assert_allclose(out.values[out.times == 1.5], 1.5)
    assert not out.values[~out.mask].any()
    tenths = resample(Stream([1.0], [0.1]), [0.1 + 0.2], max_gap=0.2)  # 0.30000000000000004
    assert tenths.mask.all()


def test_windows_are_means_by_hand() -> None:
    values, times, mask, grid = drawn(5)
    values[0, 2, 1] = math.nan
    out, found = window_rows(values, times, mask, grid, 1.3)
    stacked, here = window_rows(values, times, mask, grid, 1.3, stack=4)
    for b in range(B):
        for g, centre in enumerate(grid.tolist()):
            inside = mask[b] & (times[b] >= centre - 0.65) & (times[b] < centre + 0.65)
            rows = values[b][inside][times[b][inside].argsort()]
            assert found[b, g] == bool(len(rows))
            expected = rows.nanmean(dim=0) if len(rows) else torch.zeros(C, dtype=torch.float64)
            torch.testing.assert_close(out[b, g], expected, equal_nan=True)
            assert here[b, g].tolist() == [k < len(rows) for k in range(4)]
            torch.testing.assert_close(stacked[b, g][here[b, g]], rows[:4], equal_nan=True)
            assert not stacked[b, g][~here[b, g]].any()
    assert found.any()
    assert not found.all()


def test_windows_of_integers_and_of_frames() -> None:
    frames = np.arange(6 * 2 * 2, dtype=np.uint8).reshape(6, 2, 2)
    mean = window(Stream.regular(frames, rate=2.0), [0.5, 9.0], width=2.0)
    assert_allclose(mean.values[0], frames[:3].mean(axis=0))
    assert mean.values.dtype == np.float32
    assert mean.mask.tolist() == [True, False]
    pair = window(Stream.regular(frames, rate=2.0), [0.5, 2.5], width=1.0, stack=3)
    assert pair.values.dtype == np.uint8
    assert_array_equal(pair.values[0], [frames[0], frames[1], np.zeros((2, 2))])
    assert_array_equal(resample(Stream.regular(frames, rate=2.0), [1.1], method="nearest").values[0], frames[2])
    floats = window(Stream.regular(frames.astype(np.float64), rate=2.0), [0.5, 9.0], width=1.0, stack=3)
    assert np.isnan(floats.values[0, 2]).all()
    assert not floats.values[1].any()


def test_streams_of_different_rates_and_offsets_meet() -> None:
    """One wave, seen at three rates by clocks that started at other times, is one wave again."""

    def wave(t: np.ndarray) -> np.ndarray:
        return np.sin(2 * np.pi * 0.2 * t)

    streams, offsets = {}, {"slow": 3.0, "fast": -1.0}
    for name, rate, start in (("slow", 7.0, 0.0), ("fast", 31.0, 1.0), ("late", 13.0, 2.0)):
        stream = Stream.regular(np.zeros(int(6 * rate)), rate, start)
        true = stream.times
        streams[name] = Stream(wave(true), true - offsets.get(name, 0.0))
    both = align(streams, rate=5.0, offsets=offsets, max_gap=0.2, over="intersection")
    assert 2.0 <= both.times[0] < both.times[-1] <= 6.0
    for name in streams:
        assert both.mask[name].all()
        assert_allclose(both.values[name], wave(both.times), atol=0.01)
    whole = align(streams, rate=5.0, offsets=offsets, max_gap=0.2)
    assert whole.times[0] == 0.0
    assert not whole.mask["late"][whole.times < 1.7].any()
    assert whole.mask["late"][whole.times >= 2.0].all()
    wrong = align(streams, rate=5.0, offsets={"slow": 4.0, "fast": -1.0}, max_gap=0.2, over="intersection")
    assert np.abs(wrong.values["slow"] - wave(wrong.times)).max() > 0.5


def test_empty_streams() -> None:
    none = Stream(np.zeros((0, 2)), np.zeros(0))
    gone = Stream([math.nan, math.nan], [0.0, 1.0])
    for stream in (none, gone):
        assert math.isnan(stream.span()[0])
        assert len(resample(stream, rate=3.0).times) == 0
        assert not resample(stream, [1.0, 2.0]).mask.any()
        assert not window(stream, [1.0], 1.0).mask.any()
        assert not window(stream, [1.0], 1.0, stack=2).mask.any()
    both = align({"a": none, "b": Stream([1.0], [4.0])}, rate=1.0)
    assert both.times.tolist() == [4.0]
    assert len(align({"a": none, "b": Stream([1.0], [4.0])}, rate=1.0, over="intersection").times) == 0
    assert len(grid_over(0.0, 0.3, 10.0)) == 4


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"times \(T,\), got \(2,\) and \(3,\)"):
        Stream([1.0, 2.0], [0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="got an infinite one"):
        Stream([math.inf], [0.0])
    with pytest.raises(ValueError, match="mask samples whose time is unknown"):
        Stream([1.0], [math.nan])
    with pytest.raises(ValueError, match=r"mask must be bool of shape \(T,\) = \(1,\), got int64 \(1,\)"):
        Stream([1.0], [0.0], np.array([1]))
    one = Stream([1.0], [0.0])
    with pytest.raises(ValueError, match="exactly one of grid and rate, got neither"):
        resample(one)
    with pytest.raises(ValueError, match="rate must be a positive number, got -1"):
        resample(one, rate=-1.0)
    with pytest.raises(ValueError, match="method must be one of linear, nearest, hold, got 'cubic'"):
        resample(one, [0.0], method="cubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_gap must be at least 0 seconds, got -1"):
        resample(one, [0.0], max_gap=-1.0)
    with pytest.raises(ValueError, match="width must be a positive number, got 0"):
        window(one, [0.0], 0.0)
    with pytest.raises(ValueError, match="stack must be at least 1 sample, got 0"):
        window(one, [0.0], 1.0, stack=0)
    with pytest.raises(ValueError, match=r"offsets names unknown streams \['b'\]; known: \['a'\]"):
        align({"a": one}, 1.0, offsets={"b": 1.0})
    values, times, mask, _ = drawn()
    with pytest.raises(ValueError, match=r"a grid must be \(G,\) or \(B, G\) with B = 5, got \(2, 3\)"):
        resample_rows(values, times, mask, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"values must be \(B, T, ...\)"):
        resample_rows(values, times[:, 1:], mask, torch.zeros(3))
