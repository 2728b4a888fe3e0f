"""Video files to frames with their times and a sound track, or the reason why not.

Containers (MP4, MOV, WebM, Matroska, AVI, Ogg) are decoded by PyAV, the extra ``video``; ``frames.py`` reads what needs
no extra. A file that ends early is absent as a whole.

Untrusted: the format is told by a file's first bytes and forced, so that no playlist can name other files or addresses;
frame size, frame count and duration are bounded before anything is decoded.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyfuse.data.codecs_image import square
from polyfuse.data.frames import MOST_FRAMES, Frames, choose, frames_of_animation, frames_of_npz, head_of, opened
from polyfuse.data.problems import Broken
from polyfuse.errors import UserError, require

MOST_SECONDS = 3600.0
_EBML = b"\x1a\x45\xdf\xa3"


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
    head = head_of(source)
    if head.startswith(b"PK"):
        return frames_of_npz(source, count, size, fit, seconds, max_pixels)
    if container_of(head) is not None:
        return _from_container(source, count, size, fit, seconds, max_pixels)
    return frames_of_animation(source, count, size, fit, seconds, max_pixels)


@contextmanager
def _opened(source: str | bytes) -> Iterator[Any]:
    """A container, whatever goes wrong inside told as ``Broken``."""
    try:
        av = require("av", extra="video")
    except UserError as error:
        raise Broken("undecodable", str(error)) from None
    kind = container_of(head_of(source))
    with opened(source) as raw:
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
        if container_of(head_of(source)) == "mp4" and len(stamps) < stream.frames:
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
                kept[frame.pts] = square(frame.to_image(), size, fit)
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
    if container_of(head_of(source)) is None:
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
