import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from polyfuse.data.codecs import Reading, codec_from_dict, restartable
from polyfuse.data.codecs_audio import AudioCodec, decode_audio, resample
from polyfuse.data.problems import Broken
from polyfuse.data.schema import ModalityConfig


def tone(seconds: float = 0.5, rate: int = 8000, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * math.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def encoded(wave: np.ndarray, rate: int = 8000, kind: str = "WAV", **options: object) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, wave, rate, format=kind, **options)
    return stream.getvalue()


def kind_of(data: bytes) -> str:
    try:
        decode_audio(data, 8000, 4000)
    except Broken as broken:
        return broken.kind
    return "ok"


def test_same_rate_is_exact_and_stereo_is_averaged() -> None:
    wave = tone()
    np.testing.assert_array_equal(decode_audio(encoded(wave, subtype="FLOAT"), 8000, 9000), np.rint(wave * 32767))
    stereo = np.stack([wave, np.zeros_like(wave)], 1)
    np.testing.assert_array_equal(decode_audio(encoded(stereo, subtype="FLOAT"), 8000, 9000), np.rint(wave / 2 * 32767))
    assert len(decode_audio(encoded(wave), 8000, 123)) == 123


@pytest.mark.parametrize(("old", "new"), [(44100, 16000), (8000, 16000), (48000, 16000), (22050, 8000)])
def test_resampling_equals_scipy_on_a_tone(old: int, new: int) -> None:
    wave = tone(0.5, old)
    ours = resample(wave, old, new)
    divisor = math.gcd(old, new)
    theirs = resample_poly(wave, new // divisor, old // divisor)
    assert len(ours) == len(theirs)
    middle = slice(200, -200)  # the ends differ by how silence is assumed around them
    np.testing.assert_allclose(ours[middle], theirs[middle], atol=5e-3)
    np.testing.assert_allclose(ours[middle], tone(0.5, new)[: len(ours)][middle], atol=5e-3)


def test_what_cannot_be_heard_at_the_new_rate_is_gone() -> None:
    high = tone(0.5, 44100, 15_000.0)
    assert np.abs(resample(high, 44100, 16000)[200:-200]).max() < 0.01


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "AIFF", "MP3"])
def test_a_truncated_file_is_absent_at_every_cut(kind: str) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000).astype(np.float32)
    data = encoded(noise, kind=kind)
    assert kind_of(data) == "ok"
    for share in (0.3, 0.6, 0.9):
        assert kind_of(data[: int(len(data) * share)]) in ("truncated", "undecodable"), (kind, share)


def test_other_broken_files() -> None:
    assert kind_of(b"hello, I am a text and no sound at all") == "wrong type"
    assert kind_of(b"\x89PNG\r\n\x1a\n" + b"\0" * 100) == "wrong type"
    assert kind_of(encoded(np.zeros(0, np.float32))) == "zero bytes"
    broken = tone()
    broken[7] = np.nan
    assert kind_of(encoded(broken, subtype="FLOAT")) == "not finite"


def test_a_recorder_that_wrote_to_a_pipe_knows_no_size() -> None:
    data = bytearray(encoded(tone()))
    data[4:8] = b"\xff\xff\xff\xff"
    at = data.index(b"data") + 4
    data[at : at + 4] = b"\xff\xff\xff\xff"
    assert kind_of(bytes(data)) == "ok"


def test_codec_pads_and_reports(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(0.25), 8000)
    (tmp_path / "cut.wav").write_bytes(encoded(tone())[:500])
    config = ModalityConfig(type="audio", column="c", rate=16_000)
    cells = ["a.wav", "cut.wav", None, "no.wav", encoded(tone(0.1))]
    codec = AudioCodec.fit("clip", config, restartable([[cells]]), Reading(tmp_path))
    assert codec is not None
    assert 0.2 * 16_000 < codec.samples <= 0.5 * 16_000
    out = codec.encode([cells], Reading(tmp_path))
    assert out.present.tolist() == [True, False, False, False, True]
    assert [(i, kind) for i, kind, _ in out.problems] == [(1, "truncated"), (3, "missing file")]
    assert out.parts["length"].tolist()[1:4] == [0, 0, 0]
    assert out.parts["length"][4] == 1600
    assert not out.parts["wave"][4, 1600:].any()
    assert not out.parts["wave"][1].any()
    assert out.parts["wave"].dtype == np.int16
    again = codec_from_dict(json.loads(json.dumps(codec.to_dict())))
    np.testing.assert_array_equal(again.encode([cells], Reading(tmp_path)).parts["wave"], out.parts["wave"])


def test_length_can_be_chosen_and_nothing_is_none() -> None:
    config = ModalityConfig(type="audio", column="c", rate=1000, seconds=0.05)
    codec = AudioCodec.fit("clip", config, restartable([[[b"x"]]]), Reading())
    assert codec is not None
    assert codec.spec.options == {"rate": 1000, "samples": 50}
    assert AudioCodec.fit("clip", config, restartable([[[None]]]), Reading()) is None
