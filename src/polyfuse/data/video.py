"""Video files to frames with their times, a sound track and subtitles, or the reason why not.

Containers (MP4, MOV, WebM, Matroska, AVI, Ogg) are decoded by PyAV, the extra ``video``. Animated GIF, WebP and PNG by
Pillow, ``.npz`` archives and folders of pictures need no extra. Frames are chosen by time, evenly over the clip; only
those are kept. A file that ends early is absent as a whole.

Untrusted: the format is told by a file's first bytes and forced, so that no playlist can name other files or addresses;
frame size, frame count and duration are bounded before anything is decoded.
"""

import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from polyfuse.data.codecs_image import FORMATS, _square, strict_pil, to_rgb
from polyfuse.data.problems import Broken
from polyfuse.errors import UserError, require

MOST_FRAMES = 200_000
MOST_SECONDS = 3600.0
_NPZ_BYTES = 1 << 31
_EBML = b"\x1a\x45\xdf\xa3"


@dataclass(frozen=True)
class Frames:
    """Chosen frames.

    Attributes:
        frames: ``(F, S, S, 3)`` uint8.
        times: ``(F,)`` float64 seconds, ascending, on the file's clock.
    """

    frames: np.ndarray
    times: np.ndarray


@dataclass(frozen=True)
class Sound:
    """A mono track.

    Attributes:
        wave: ``(N,)`` float32 in [-1, 1].
        rate: Samples per second.
        start: Time of the first sample on the file's clock, seconds.
    """

    wave: np.ndarray
    rate: int
    start: float


def container_of(head: bytes) -> str | None:
    r"""The FFmpeg demuxer that a file's first 12 bytes ask for; None if they name none of ours.

    Example:
        >>> container_of(b"\x00\x00\x00\x18ftypisom"), container_of(b"#EXTM3U\n")
        ('mp4', None)
    """
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mp4"
    if head.startswith(_EBML):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    return "ogg" if head.startswith(b"OggS") else None


def choose(times: Sequence[float] | np.ndarray, count: int, seconds: float | None = None) -> np.ndarray:
    """Indices of the frames shown at the middles of ``count`` equal parts of the clip, each once.

    Args:
        times: ``(F,)`` when each frame is first shown, ascending.
        count: Most frames.
        seconds: Only the clip's beginning.

    Example:
        >>> choose([0.0, 0.1, 0.2, 0.3, 0.4, 0.5], 3).tolist(), choose([0.0, 5.0], 4).tolist()
        ([1, 3, 5], [0, 1])
    """
    t = np.asarray(times, dtype=np.float64)
    t = t - t[0]
    usual = float(np.median(np.diff(t))) if len(t) > 1 else 0.0
    end = t[-1] + usual
    if seconds is not None and end > seconds:
        t, end = t[t < seconds], seconds
    if len(t) <= count:
        return np.arange(len(t))
    middles = (np.arange(count) + 0.5) / count * end
    return np.unique((np.searchsorted(t, middles + 1e-9, side="right") - 1).clip(0))


def read_frames(
    source: str | bytes,
    count: int,
    size: int,
    *,
    fit: str = "crop",
    seconds: float | None = None,
    max_pixels: int = 50_000_000,
) -> Frames:
    """Frames of a video, an animation or an ``.npz`` archive.

    An archive holds ``frames (F, H, W, 3)`` uint8, and may hold ``times (F,)`` seconds (else 25 frames a second).

    Args:
        source: A path, or what a file holds.
        count: Most frames.
        size: Side S in pixels.
        fit: "crop" or "pad", as images.
        seconds: Only the clip's beginning; None = all, at most an hour.
        max_pixels: Most pixels of a frame.

    Raises:
        Broken: ``truncated``, ``wrong type``, ``undecodable``, ``too many pixels``, ``too large``, or ``wrong shape``.
    """
    head = _head(source)
    if head.startswith(b"PK"):
        return _from_npz(source, count, size, fit, seconds, max_pixels)
    if container_of(head) is not None:
        return _from_container(source, count, size, fit, seconds, max_pixels)
    return _from_animation(source, count, size, fit, seconds, max_pixels)


def frames_of_pictures(paths: Sequence[str], times: np.ndarray, size: int, fit: str, max_pixels: int) -> Frames:
    """A folder's chosen pictures as frames.

    Raises:
        Broken: As ``codecs_image.decode_image``, with the picture's name.
    """
    from polyfuse.data.codecs_image import decode_image

    frames = []
    with strict_pil():
        for path in paths:
            try:
                frames.append(decode_image(path, size, fit, max_pixels))
            except Broken as broken:
                raise Broken(broken.kind, f"{os.path.basename(path)}: {broken.detail}") from None
    return Frames(np.stack(frames), np.asarray(times, dtype=np.float64))


def _head(source: str | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:12]
    with open(source, "rb") as file:
        return file.read(12)


def _read(source: str | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


# --- Pillow -----------------------------------------------------------------------------------------------------------


def _from_animation(
    source: str | bytes, count: int, size: int, fit: str, seconds: float | None, max_pixels: int
) -> Frames:
    """GIF, WebP, APNG; a still picture is a clip of one frame."""
    head = _head(source)
    known = head.startswith((b"GIF8", b"\x89PNG", b"\xff\xd8\xff", b"BM")) or head[8:12] == b"WEBP"
    try:
        if head.startswith(b"GIF8"):
            with _read(source) as raw:
                _check_gif(raw.read())
        with strict_pil(), _read(source) as raw, Image.open(raw, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise Broken("too many pixels", f"{width} x {height}, data.max_pixels is {max_pixels}")
            total = getattr(image, "n_frames", 1)
            if total > MOST_FRAMES // 20 or total * width * height > 200 * max_pixels:
                raise Broken("too large", f"{total} frames of {width} x {height}")
            times, kept = [0.0], []
            for k in range(total):  # frames build on each other: all are decoded, the chosen are kept
                image.seek(k)
                image.load()
                times.append(times[-1] + max(float(image.info.get("duration", 0) or 0), 0.0) / 1000.0)
                kept.append(np.asarray(_square(to_rgb(image.copy()), size, fit)))
            starts = np.array(times[:-1])
            if total > 1 and times[-1] == 0.0:
                starts = np.arange(total) / 10.0  # no durations: what browsers show
            index = choose(starts, count, seconds)
            return Frames(np.stack([kept[i] for i in index]), starts[index])
    except Broken:
        raise
    except MemoryError:
        raise Broken("too large", "out of memory") from None
    except UnidentifiedImageError:
        why = "starts like a picture and is none" if known else "no video, animation or archive of frames"
        raise Broken("undecodable" if known else "wrong type", why) from None
    except Exception as error:  # Pillow's decoders raise whatever they like on a broken file
        text = (str(error).splitlines() or [""])[0][:80] or type(error).__name__
        early = isinstance(error, EOFError) or any(w in text.lower() for w in ("truncated", "unexpected end"))
        raise Broken("truncated" if early else "undecodable", text) from None


def _check_gif(data: bytes) -> None:
    """Walk the blocks to the trailer: Pillow ends an animation at the file's end without a word.

    Raises:
        Broken: ``truncated`` if there is no trailer, ``undecodable`` for an unknown block.
    """
    at = 13 + (3 << ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 0x80 else 0)
    while at < len(data) and data[at] != 0x3B:
        if data[at] == 0x21:
            at += 2
        elif data[at] == 0x2C and at + 9 < len(data):
            at += 11 + (3 << ((data[at + 9] & 7) + 1) if data[at + 9] & 0x80 else 0)
        elif data[at] == 0x2C:
            break
        else:
            raise Broken("undecodable", "an unknown block in a GIF")
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    if at >= len(data) or data[at] != 0x3B:
        raise Broken("truncated", "a GIF without its end")


# --- archives of arrays -----------------------------------------------------------------------------------------------


def read_npz(source: str | bytes, names: Sequence[str], most_bytes: int = _NPZ_BYTES) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` that have one of the names; sizes are read off the headers first, nothing is unpickled.

    Raises:
        Broken: ``truncated``, ``undecodable`` or ``too large``.
    """
    try:
        with _read(source) as raw, zipfile.ZipFile(raw) as archive:
            found = {}
            for name in names:
                if f"{name}.npy" not in archive.namelist():
                    continue
                info = archive.getinfo(f"{name}.npy")
                if info.file_size > most_bytes:
                    raise Broken("too large", f"'{name}' has {info.file_size} bytes")
                with archive.open(info) as member:
                    data = member.read(most_bytes + 1)
                if len(data) != info.file_size:
                    raise Broken("truncated", f"'{name}' ends early")
                found[name] = _array(data)
            return found
    except Broken:
        raise
    except zipfile.BadZipFile as error:
        raise Broken("truncated", str(error)[:80]) from None
    except Exception as error:  # numpy's and zipfile's parsers raise whatever they like on a broken file
        raise Broken("undecodable", (str(error).splitlines() or [""])[0][:80]) from None


def _array(data: bytes) -> np.ndarray:
    """An .npy file whose header promises no more than there is."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(stream)
    if dtype.hasobject or dtype.kind not in "fiub":
        raise Broken("undecodable", f"an array of {dtype}")
    values = np.frombuffer(data, dtype=dtype, offset=stream.tell())
    return np.array(values.reshape(shape, order="F" if fortran else "C"))


def _from_npz(source: str | bytes, count: int, size: int, fit: str, seconds: float | None, max_pixels: int) -> Frames:
    found = read_npz(source, ("frames", "times"))
    frames = found.get("frames")
    if frames is None:
        raise Broken("wrong type", "an archive without 'frames'")
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise Broken("wrong shape", f"expected uint8 (F, H, W, 3), got {frames.dtype} {frames.shape}")
    if frames.shape[1] * frames.shape[2] > max_pixels or not frames.size:
        raise Broken("too many pixels", f"{frames.shape[2]} x {frames.shape[1]}, data.max_pixels is {max_pixels}")
    times = np.asarray(found.get("times", np.arange(len(frames)) / 25.0), dtype=np.float64)
    if times.shape != (len(frames),):
        raise Broken("wrong shape", f"{len(frames)} frames and {times.shape} times")
    if not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise Broken("not finite", "times must ascend")
    index = choose(times, count, seconds)
    return Frames(np.stack([_square(Image.fromarray(frames[i]), size, fit) for i in index]), times[index])


# --- PyAV -------------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(source: str | bytes) -> Iterator[Any]:
    """A container, whatever goes wrong inside told as ``Broken``."""
    try:
        av = require("av", extra="video")
    except UserError as error:
        raise Broken("undecodable", str(error)) from None
    kind = container_of(_head(source))
    with _read(source) as raw:
        _check_whole(raw, str(kind))
        try:
            with av.open(raw, format=kind, metadata_errors="replace") as container:
                yield container
        except Broken:
            raise
        except MemoryError:
            raise Broken("too large", "out of memory") from None
        except Exception as error:  # FFmpeg raises whatever it likes on a broken file
            early = isinstance(error, EOFError) or "end of file" in str(error).lower()
            raise Broken("truncated" if early else "undecodable", str(error)[:80]) from None


def _check_whole(raw: Any, kind: str) -> None:
    """Compare a file's length with what its outermost boxes say, which FFmpeg reads over.

    Raises:
        Broken: ``truncated``.
    """
    size = raw.seek(0, os.SEEK_END)
    raw.seek(0)
    short = False
    if kind == "mp4":
        at, seen = 0, set()
        while at + 8 <= size and not short:
            raw.seek(at)
            head = raw.read(16)
            length = int.from_bytes(head[:4], "big")
            length = int.from_bytes(head[8:16], "big") if length == 1 else size - at if length == 0 else length
            seen.add(head[4:8])
            short = length < 8 or at + length > size
            at += max(length, 8)
        short = short or b"moov" not in seen
    elif kind == "avi":
        said = int.from_bytes(raw.read(8)[4:], "little")
        short = said not in (0, 0xFFFFFFFF) and said + 8 > size + 1
    elif kind == "matroska":
        header = _ebml_end(raw, 0)
        short = header is None or header > size
        if header is not None and header < size:
            end = _ebml_end(raw, header)
            short = end is not None and end > size
    raw.seek(0)
    if short:
        raise Broken("truncated", "ends before its header says")


def _ebml_end(raw: Any, at: int) -> int | None:
    """Where the EBML element at ``at`` ends; None if it does not say (a live stream)."""
    raw.seek(at)
    data = raw.read(16)
    if len(data) < 3 or not data[0]:
        return None
    skip = 9 - data[0].bit_length()  # the id's own length
    if skip >= len(data) or not data[skip]:
        return None
    width = 9 - data[skip].bit_length()
    value = int.from_bytes(data[skip : skip + width], "big") & ((1 << (7 * width)) - 1)
    return None if value == (1 << (7 * width)) - 1 else at + skip + width + value


def _from_container(
    source: str | bytes, count: int, size: int, fit: str, seconds: float | None, max_pixels: int
) -> Frames:
    with _opened(source) as container:
        if not container.streams.video:
            raise Broken("wrong type", "no picture in it")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise Broken("undecodable", "its codec is not known")
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > max_pixels:
            raise Broken("too many pixels", f"{width} x {height}, data.max_pixels is {max_pixels}")
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        limit = min(seconds or MOST_SECONDS, MOST_SECONDS)
        stamps = sorted(p.pts for p in _packets(container, stream) if p.pts is not None and not p.is_discard)
        if not stamps:
            raise Broken("zero bytes", "no frame")
        if container_of(_head(source)) == "mp4" and len(stamps) < stream.frames:
            raise Broken("truncated", f"{len(stamps)} of {stream.frames} frames")
        base, zero = float(stream.time_base), (container.start_time or 0) / 1e6
        times = np.array(stamps) * base - zero
        wanted = {stamps[i]: times[i] for i in choose(times, count, limit)}
        last = max(wanted)
    kept: dict[int, np.ndarray] = {}
    with _opened(source) as container:  # from the start: not every file can be sought in
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        for frame in container.decode(stream):
            if frame.width * frame.height > max_pixels:
                raise Broken("too many pixels", f"{frame.width} x {frame.height}, data.max_pixels is {max_pixels}")
            if frame.pts in wanted:
                kept[frame.pts] = _square(frame.to_image(), size, fit)
            if frame.pts is not None and frame.pts >= last:
                break
    if len(kept) < len(wanted):
        raise Broken("undecodable", f"{len(wanted) - len(kept)} of {len(wanted)} frames could not be decoded")
    order = sorted(kept)
    return Frames(np.stack([kept[p] for p in order]), np.array([wanted[p] for p in order]))


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    for number, packet in enumerate(container.demux(stream)):
        if number > MOST_FRAMES:
            raise Broken("too large", f"more than {MOST_FRAMES} frames")
        if packet.is_corrupt:
            raise Broken("truncated", "a part of a frame is missing")
        if packet.size:
            yield packet


def read_sound(source: str | bytes, rate: int, seconds: float | None = None) -> Sound:
    """The first sound track of a video, mono.

    Args:
        source: A path, or what a file holds.
        rate: Samples per second wanted.
        seconds: Only the beginning; None = all, at most an hour.

    Raises:
        Broken: As ``read_frames``; ``zero bytes`` if it is silent film.
    """
    if container_of(_head(source)) is None:
        raise Broken("wrong type", "no video file")
    with _opened(source) as container:
        if not container.streams.audio:
            raise Broken("zero bytes", "no sound track")
        av = require("av", extra="video")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise Broken("undecodable", "its codec is not known")
        resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        most = int(min(seconds or MOST_SECONDS, MOST_SECONDS) * rate)
        parts: list[np.ndarray] = []
        held, start = 0, None
        for frame in container.decode(stream):
            if start is None:
                start = 0.0 if frame.time is None else frame.time - (container.start_time or 0) / 1e6
            for piece in resampler.resample(frame):
                parts.append(piece.to_ndarray().reshape(-1))
                held += len(parts[-1])
            if held >= most:
                break
        else:
            parts += [piece.to_ndarray().reshape(-1) for piece in resampler.resample(None)]
    wave = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if not len(wave):
        raise Broken("zero bytes", "no sample")
    if not np.isfinite(wave).all():
        raise Broken("not finite", "holds NaN or infinite samples")
    return Sound(wave[:most].astype(np.float32), rate, start or 0.0)


def sound_seconds(source: str | bytes) -> float:
    """Length of the first sound track, by the header.

    Raises:
        Broken: As ``read_sound``.
    """
    with _opened(source) as container:
        if not container.streams.audio:
            raise Broken("zero bytes", "no sound track")
        stream = container.streams.audio[0]
        if stream.duration is not None:
            return float(stream.duration * stream.time_base)
        return float(container.duration or 0) / 1e6


def write_video(
    path: str, frames: np.ndarray, rate: float, sound: np.ndarray | None = None, sound_rate: int = 16_000
) -> None:
    """Write frames ``(F, H, W, 3)`` uint8 and mono sound in [-1, 1], for examples and tests: MP4 (MPEG-4, AAC) or WebM.

    Raises:
        UserError: If PyAV is not installed.
    """
    av = require("av", extra="video")
    from fractions import Fraction

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
