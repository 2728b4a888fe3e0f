"""Series and recordings with times: on one clock, gaps masked, offsets kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from polyfuse.data.codecs import Reading, codec_from_dict
from polyfuse.data.codecs_array import SeriesCodec
from polyfuse.data.codecs_audio import AudioCodec
from polyfuse.data.schema import ModalityConfig
from polyfuse.data.spec import input_layout
from polyfuse.encoders import build_encoder


def fit(columns: list[list[Any]], **options: Any) -> Any:
    config = ModalityConfig(type="series", column="v", **options)
    codec = SeriesCodec.fit("m", config, lambda: iter([columns]), Reading())
    assert codec is not None
    assert codec_from_dict(codec.to_dict()).to_dict() == codec.to_dict()
    return codec, codec.encode(columns, Reading())


def raw(codec: Any, out: Any) -> np.ndarray:
    return out.parts["values"] * np.array(codec.std) + np.array(codec.mean)


def test_series_of_several_rates_come_to_one_grid_with_gaps() -> None:
    fast, slow = np.arange(0, 4.01, 0.1), np.arange(0, 4.01, 0.2)
    gappy = np.concatenate([slow[slow < 1.1], slow[slow > 2.9]])
    rows = [fast, slow, slow[::-1], gappy]
    columns = [[np.stack((2 * t, -t), axis=1).tolist() for t in rows], [(t + 100.0).tolist() for t in rows]]
    codec, out = fit(columns, times="t", max_gap=0.3)
    assert_allclose(codec.rate, 5.0)
    assert codec.length == 21
    grid = np.arange(21) / 5
    for row in (0, 1, 2):
        assert out.parts["mask"][row].all()
        assert_allclose(raw(codec, out)[row], np.stack((2 * grid, -grid), axis=1), atol=1e-4)
    gone = (grid > 1.35) & (grid < 2.65)
    assert out.parts["mask"][3].tolist() == (~gone).tolist()
    assert not out.parts["values"][3][gone].any()
    _, wide = fit(columns, times="t", max_gap=0.3, resample="mean", grid_rate=1.0)
    assert wide.parts["mask"].tolist() == [[True] * 5] * 3 + [[True, True, False, True, True]]
    inside = (fast >= 0.5) & (fast < 1.5 - 1e-9)
    assert abs(raw(_, wide)[0, 1, 0] - 2 * fast[inside].mean()) < 0.11


def test_offsets_place_rows_on_one_clock() -> None:
    t = np.arange(0, 2.0, 0.1)
    columns = [[t.tolist()] * 4, [t.tolist()] * 4, ["1.0", "-0.5", None, "99"]]
    codec, out = fit(columns, times="t", offset="o", grid_rate=10.0, length=30)
    grid = np.arange(codec.length) / 10
    assert codec.length == 30
    assert out.present.tolist() == [True, True, False, False]
    assert [(i, kind) for i, kind, _ in out.problems] == [(2, "no time"), (3, "outside the window")]
    for row, offset in ((0, 1.0), (1, -0.5)):
        here = (grid >= offset - 0.21) & (grid <= offset + 1.9 + 0.21)
        assert out.parts["mask"][row].tolist() == here.tolist()
        inside = (grid >= offset) & (grid <= offset + 1.9 + 1e-9)
        assert_allclose(raw(codec, out)[row, inside, 0], (grid - offset)[inside], atol=1e-5)
    plain, moved = fit([[t.tolist()]], offset=0.5, grid_rate=10.0)
    assert moved.parts["mask"][0].tolist() == [False] * 3 + [True] * (plain.length - 3)


def test_what_is_wrong_with_times_is_named() -> None:
    good, times = [1.0, 2.0, 3.0], [0.0, 0.1, 0.2]
    columns = [
        [good, good, good, good, [1.0, None, 3.0], good, None, "[1, 2"],
        [times, None, [0.0, 0.1], [0.0, 0.1, float("inf")], times, "[0.0, NaN, 0.2]", times, times],
    ]
    _, out = fit(columns, times="t", max_gap=0.05)
    assert out.present.tolist() == [True, False, False, False, True, True, False, False]
    assert [(i, kind) for i, kind, _ in out.problems] == [
        (1, "no time"), (2, "wrong shape"), (3, "not finite"), (7, "undecodable"),
    ]  # fmt: skip
    assert "[1.0, 2.0, 3.0]" in out.problems[1][2]
    assert out.parts["mask"][[0, 4, 5]].tolist() == [[True] * 3, [True, False, True], [True, False, True]]
    with pytest.raises(ValueError, match="needs 'grid_rate', its steps per second"):
        ModalityConfig(type="series", column="v", offset=1.0)
    with pytest.raises(ValueError, match="'times' is not an option of type vector"):
        ModalityConfig(type="vector", column="v", times="t")


def test_recordings_keep_their_offset(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    wave = np.linspace(0.1, 0.9, 1000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 1000, subtype="FLOAT")
    config = ModalityConfig(type="audio", column="c", rate=1000, offset="o")
    columns = [["a.wav"] * 5, ["0", "0.5", "-0.25", None, "-7"]]
    codec = AudioCodec.fit("m", config, lambda: iter([columns]), Reading(tmp_path))
    assert codec is not None
    assert codec_from_dict(codec.to_dict()) == codec
    assert 1400 < codec.samples <= 1500
    out = codec.encode(columns, Reading(tmp_path))
    assert out.present.tolist() == [True, True, True, False, False]
    assert [(i, kind) for i, kind, _ in out.problems] == [(3, "no time"), (4, "outside the window")]
    assert set(out.parts) == set(input_layout(codec.spec))
    assert out.parts["start"].tolist() == [0, 500, 0, 0, 0]
    assert out.parts["length"].tolist() == [1000, min(1500, codec.samples), 750, 0, 0]
    end = int(out.parts["length"][1])
    assert_allclose(out.parts["wave"][1, 500:end], np.rint(wave[: end - 500] * 32767), atol=1)
    assert_allclose(out.parts["wave"][2, :750], np.rint(wave[250:] * 32767), atol=1)
    assert not out.parts["wave"][1, :500].any()
    torch.manual_seed(0)
    encoder = build_encoder(codec.spec, 5, num_mels=7).eval()
    inputs = {key: torch.from_numpy(part) for key, part in out.parts.items()}
    noisy = {**inputs, "wave": inputs["wave"].clone()}
    noisy["wave"][1, :475] = 9999  # frames that begin before the recording does are ignored
    torch.testing.assert_close(encoder(noisy), encoder(inputs))
