"""Frames with their times from what needs no extra: animated GIF, WebP and PNG, ``.npz`` archives, folders of pictures.

Frames are chosen by time, evenly over the clip; only those are kept. Their number and size are bounded before anything
is decoded.
"""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from polyfuse.data.codecs_image import FORMATS, decode_image, square, strict_pil, to_rgb
from polyfuse.data.npz import read_npz
from polyfuse.data.problems import Broken

MOST_FRAMES = 200_000


@dataclass(frozen=True)
class Frames:
    """Chosen frames.

    Attributes:
        frames: ``(F, S, S, 3)`` uint8.
        times: ``(F,)`` float64 seconds, ascending, on the file's clock.
    """

    frames: np.ndarray
    times: np.ndarray


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


def head_of(source: str | bytes) -> bytes:
    """The first 12 bytes."""
    if isinstance(source, bytes):
        return source[:12]
    with open(source, "rb") as file:
        return file.read(12)


def opened(source: str | bytes) -> BinaryIO:
    """A path, or what a file holds, as a file."""
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def frames_of_pictures(paths: Sequence[str], times: np.ndarray, size: int, fit: str, max_pixels: int) -> Frames:
    """A folder's chosen pictures as frames.

    Raises:
        Broken: As ``codecs_image.decode_image``, with the picture's name.
    """
    frames = []
    with strict_pil():
        for path in paths:
            try:
                frames.append(decode_image(path, size, fit, max_pixels))
            except Broken as broken:
                raise Broken(broken.kind, f"{os.path.basename(path)}: {broken.detail}") from None
    return Frames(np.stack(frames), np.asarray(times, dtype=np.float64))


def frames_of_animation(
    source: str | bytes, count: int, size: int, fit: str, seconds: float | None, max_pixels: int
) -> Frames:
    """GIF, WebP, APNG; a still picture is a clip of one frame."""
    head = head_of(source)
    known = head.startswith((b"GIF8", b"\x89PNG", b"\xff\xd8\xff", b"BM")) or head[8:12] == b"WEBP"
    try:
        if head.startswith(b"GIF8"):
            with opened(source) as raw:
                _check_gif(raw.read())
        with strict_pil(), opened(source) as raw, Image.open(raw, formats=FORMATS) as image:
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
                kept.append(np.asarray(square(to_rgb(image.copy()), size, fit)))
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


def frames_of_npz(
    source: str | bytes, count: int, size: int, fit: str, seconds: float | None, max_pixels: int
) -> Frames:
    """``frames (F, H, W, 3)`` uint8 and, where there are, ``times (F,)`` seconds of an archive."""
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
    return Frames(np.stack([square(Image.fromarray(frames[i]), size, fit) for i in index]), times[index])
