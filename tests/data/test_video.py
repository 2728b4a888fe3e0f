"""Clips written here are read back: frames by time, sound, cut files; animations, archives, folders; subtitles."""

import io
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from polyfuse.data.codecs import Reading, codec_from_dict
from polyfuse.data.codecs_audio import AudioCodec
from polyfuse.data.codecs_text import TextCodec
from polyfuse.data.codecs_video import VideoCodec
from polyfuse.data.frames import choose
from polyfuse.data.npz import read_npz
from polyfuse.data.problems import Broken
from polyfuse.data.schema import ModalityConfig
from polyfuse.data.subtitles import parse_subtitles
from polyfuse.data.video import container_of, read_frames, read_sound

COUNT, RATE = 23, 10.0


def ramp(count: int = COUNT, height: int = 32, width: int = 48) -> np.ndarray:
    """Frame k is one grey, 10 k."""
    return np.broadcast_to(
        (10 * np.arange(count, dtype=np.uint8))[:, None, None, None], (count, height, width, 3)
    ).copy()


def write_video(
    path: str, frames: np.ndarray, rate: float, sound: np.ndarray | None = None, sound_rate: int = 16_000
) -> None:
    """Frames ``(F, H, W, 3)`` uint8 and mono sound in [-1, 1] as MP4, AVI (MPEG-4, AAC) or WebM."""
    import av

    webm = path.endswith(".webm")
    with av.open(path, "w") as container:
        stream = container.add_stream("libvpx" if webm else "mpeg4", rate=Fraction(rate).limit_denominator(1000))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.bit_rate = 4_000_000
        track = None
        if sound is not None:
            track = container.add_stream(
                "libopus" if webm else "aac", rate=48_000 if webm else sound_rate, layout="mono"
            )
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
        if track is not None and sound is not None:
            frame = av.AudioFrame.from_ndarray(sound.astype(np.float32)[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = sound_rate, 0
            resampler = av.AudioResampler(
                format="fltp", layout="mono", rate=track.rate, frame_size=track.frame_size or 0
            )
            for piece in (*resampler.resample(frame), *resampler.resample(None)):
                container.mux(track.encode(piece))
            container.mux(track.encode(None))


def fit(kind: str, cells: list[Any], folder: Path, extra: dict[str, list[Any]] | None = None, **options: Any) -> Any:
    cls = {"video": VideoCodec, "audio": AudioCodec, "text": TextCodec}[kind]
    config = ModalityConfig(type=kind, column="c", **options)  # type: ignore[arg-type]
    columns = [cells, *(extra or {}).values()]
    codec = cls.fit("m", config, lambda: iter([columns]), Reading(folder))
    assert codec is not None
    assert codec_from_dict(codec.to_dict()) == codec
    return codec, codec.encode(columns, Reading(folder))


@pytest.mark.parametrize("ending", ["mp4", "webm", "avi"])
def test_a_written_video_is_read_back(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("av")
    path = str(tmp_path / f"clip.{ending}")
    seconds = np.arange(int(2.3 * 16_000)) / 16_000
    tone = np.sin(2 * np.pi * 500 * seconds) * (seconds > 1.0) * 0.5
    write_video(path, ramp(), RATE, tone)
    found = read_frames(path, 5, 16)
    assert found.frames.shape == (5, 16, 16, 3)
    late = 0.11 if ending == "avi" else 0.01  # AVI has no presentation times, nor its AAC a note of its delay
    assert_allclose(found.times, choose(np.arange(COUNT) / RATE, 5) / RATE, atol=late)
    assert_allclose(found.frames.mean(axis=(1, 2, 3)), 100 * found.times, atol=4 + 100 * late)
    assert_array_equal(read_frames(Path(path).read_bytes(), 5, 16).frames, found.frames)
    first = read_frames(path, 50, 16, seconds=0.55)
    assert len(first.times) == (5 if ending == "avi" else 6)
    sound = read_sound(path, 8000)
    assert sound.wave.dtype == np.float32
    assert abs(len(sound.wave) / 8000 - 2.3) < 0.15
    loud = np.abs(sound.wave) > 0.1
    assert abs(np.flatnonzero(loud)[0] / 8000 + sound.start - 1.0) < 0.02 + late
    spectrum = np.abs(np.fft.rfft(sound.wave[9000:17000]))
    assert abs(int(spectrum.argmax()) - 500) <= 2
    with pytest.raises(Broken, match="too many pixels"):
        read_frames(path, 5, 16, max_pixels=1000)


@pytest.mark.parametrize("ending", ["mp4", "webm", "avi"])
def test_a_cut_or_damaged_video_is_absent_and_named(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("av")
    path = tmp_path / f"clip.{ending}"
    write_video(str(path), ramp(), RATE)
    data = path.read_bytes()
    for share in (0.3, 0.75, 0.98):
        with pytest.raises(Broken, match="truncated"):
            read_frames(data[: int(share * len(data))], 5, 16)
    rng = np.random.default_rng(0)
    for _ in range(60):  # whatever the damage: frames or a reason
        bad = bytearray(data)
        for place in rng.integers(0, len(bad), 30):
            bad[place] = int(rng.integers(0, 256))
        try:
            assert read_frames(bytes(bad), 5, 16).frames.shape[1:] == (16, 16, 3)
        except Broken:
            pass
    with pytest.raises(Broken, match="no sound track"):
        read_sound(str(path), 8000)
    (tmp_path / f"cut.{ending}").write_bytes(data[:-99])
    _, out = fit("video", [f"clip.{ending}", f"cut.{ending}", None], tmp_path, frames=3, size=8)
    assert out.present.tolist() == [True, False, False]
    assert [(i, kind) for i, kind, _ in out.problems] == [(1, "truncated")]
    assert not out.parts["frames"][1:].any()


def test_playlists_are_no_videos(tmp_path: Path) -> None:
    """FFmpeg would open what such a text names: other files, addresses."""
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile /etc/hostname\n")
    (tmp_path / "hls.mp4").write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n")
    _, out = fit("video", ["list.mp4", "hls.mp4"], tmp_path)
    assert [kind for _, kind, _ in out.problems] == ["wrong type"] * 2
    assert container_of(b"#EXTM3U\n") is None


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_animations_need_no_extra(tmp_path: Path, ending: str) -> None:
    pictures = [Image.fromarray(frame) for frame in ramp(11)]
    path = tmp_path / f"a.{ending}"
    options = {"lossless": True} if ending == "webp" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=200, **options)
    found = read_frames(str(path), 4, 8)
    assert_allclose(found.times, [0.2, 0.8, 1.2, 1.8])
    assert_allclose(found.frames.mean(axis=(1, 2, 3)), 50 * found.times, atol=1)
    data = path.read_bytes()
    for share in (0.3, 0.6, 0.95):
        with pytest.raises(Broken, match=r"truncated|undecodable"):
            read_frames(data[: int(share * len(data))], 4, 8)


def test_archives_and_folders_of_frames(tmp_path: Path) -> None:
    times = np.array([0.0, 0.1, 0.2, 3.0, 3.1])
    np.savez(tmp_path / "a.npz", frames=ramp(5, 8, 8), times=times)
    np.savez(tmp_path / "plain.npz", frames=ramp(5, 8, 8))
    np.savez(tmp_path / "pickle.npz", frames=np.array([{}], dtype=object))
    np.savez(tmp_path / "flat.npz", frames=np.zeros((5, 8, 8), np.uint8))
    np.savez(tmp_path / "back.npz", frames=ramp(5, 8, 8), times=times[::-1])
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-99])
    (tmp_path / "clip").mkdir()
    (tmp_path / "none").mkdir()
    (tmp_path / "odd").mkdir()
    for k, frame in enumerate(ramp(5, 8, 8)):
        Image.fromarray(frame).save(tmp_path / "clip" / f"{k}.png")
    Image.fromarray(frame).save(tmp_path / "odd" / "0.png")
    (tmp_path / "odd" / "times.txt").write_text("0.0\n1.0\n")
    (tmp_path / "clip" / "times.txt").write_text("\n".join(map(str, times)))
    cells = ["a.npz", "plain.npz", "clip", "pickle.npz", "flat.npz", "back.npz", "cut.npz", "none", "odd"]
    codec, out = fit("video", cells, tmp_path, frames=6, size=8)
    assert out.present.tolist() == [True] * 3 + [False] * 6
    kinds = [kind for _, kind, _ in out.problems]
    assert kinds == ["undecodable", "wrong shape", "not finite", "truncated", "directory", "wrong shape"]
    assert_allclose(out.parts["times"][0, :5], times, atol=1e-6)
    assert_allclose(out.parts["times"][1, :5], np.arange(5) / 25)
    assert_array_equal(out.parts["frames"][2], out.parts["frames"][0])
    assert out.parts["mask"][:3].tolist() == [[True] * 5 + [False]] * 3
    assert_array_equal(out.parts["frames"][0, :5, 0, 0, 0], 10 * np.arange(5))
    _, late = fit("video", cells[:3], tmp_path, {"o": ["2.5", None, "-1"]}, frames=6, size=8, offset="o")
    assert_allclose(late.parts["times"][0, :5], times + 2.5, atol=1e-6)
    assert [(i, kind) for i, kind, _ in late.problems] == [(1, "no time")]
    assert late.present.tolist() == [True, False, True]
    (tmp_path / "clip" / "link.png").symlink_to("/etc/hostname")
    _, out = fit("video", ["clip"], tmp_path, frames=9)
    assert [kind for _, kind, _ in out.problems] == ["wrong shape"]
    assert codec.spec.options == {"frames": 6, "size": 8}


def test_an_archive_that_lies_is_refused() -> None:
    stream = io.BytesIO()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 9, 9, 3)})
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("frames.npy", header.getvalue() + b"12345")
    with pytest.raises(Broken, match="undecodable"):
        read_npz(stream.getvalue(), ("frames",))
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("frames.npy", bytes(1 << 20))
    with pytest.raises(Broken, match="too large"):
        read_npz(bomb.getvalue(), ("frames",), most_bytes=1 << 16)


def test_a_video_gives_its_sound_to_an_audio_modality(tmp_path: Path) -> None:
    pytest.importorskip("av")
    pytest.importorskip("soundfile")
    seconds = np.arange(16_000) / 16_000
    write_video(str(tmp_path / "a.mp4"), ramp(10), RATE, 0.5 * np.sin(2 * np.pi * 500 * seconds))
    write_video(str(tmp_path / "mute.mp4"), ramp(10), RATE)
    codec, out = fit("audio", ["a.mp4", "mute.mp4"], tmp_path, rate=4000)
    assert out.present.tolist() == [True, False]
    assert [(i, kind) for i, kind, _ in out.problems] == [(1, "zero bytes")]
    assert abs(codec.samples - 4000) < 300
    assert np.abs(out.parts["wave"][0, :3900]).max() > 10_000


def test_frames_are_chosen_by_time_not_by_number() -> None:
    assert choose([0.0, 0.1, 0.2, 0.3, 5.0, 9.0], 3).tolist() == [3, 4]  # each shown third, once
    assert choose(np.arange(100) / 10, 4).tolist() == [12, 37, 62, 87]
    assert choose(np.arange(100) / 10, 4, seconds=2.0).tolist() == [2, 7, 12, 17]
    assert choose([3.0], 4).tolist() == [0]


SRT = """1
00:00:01,000 --> 00:00:02,500
{\\an8}<i>A red</i> ball &amp; a cube
moves.

2
00:00:0x,000 --> 00:00:04,000
lost

3
00:00:05,000 --> 00:00:04,000
backwards

4
00:00:06,000 --> 00:00:07,000

5
01:02:03,004 --> 01:02:04,000
late
"""


def test_subtitles_and_their_bad_cues() -> None:
    found = parse_subtitles(SRT.replace("\n", "\r\n").encode("utf-8-sig"))
    assert [tuple(cue) for cue in found.cues] == [
        (1.0, 2.5, "A red ball & a cube moves."),
        (3723.004, 3724.0, "late"),
    ]
    assert found.problems == [(7, "no time"), (11, "ends before it starts"), (15, "no text")]
    assert found.lines() == ["3 bad cues (line 7: no time; line 11: ends before it starts; line 15: no text)"]
    vtt = (
        "WEBVTT - made\n\nNOTE a note\nof two lines\n\nSTYLE\n::cue {}\n\nname\n00:01.5 --> 00:02.250 align:start\nHi\n"
    )
    assert parse_subtitles(vtt).cues == [(1.5, 2.25, "Hi")]
    assert parse_subtitles(vtt).problems == []
    assert parse_subtitles(b"").cues == []
    parse_subtitles(np.random.default_rng(0).bytes(5000))  # noise is no error


def test_a_text_modality_of_subtitle_files(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_text(SRT)
    (tmp_path / "b.vtt").write_text("WEBVTT\n\n00:01.0 --> 00:02.0\nA red cube moves\n")
    (tmp_path / "c.srt").write_text("nothing here")
    _, out = fit("text", ["a.srt", "b.vtt", "c.srt", "no.srt", None], tmp_path, subtitles=True)
    assert out.present.tolist() == [True, True, False, False, False]
    assert sorted((i, kind) for i, kind, _ in out.problems) == [
        (0, "bad cues"), (2, "undecodable"), (3, "missing file"),
    ]  # fmt: skip
