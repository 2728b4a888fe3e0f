"""Audio: any file libsndfile reads to mono int16 at one rate, or the reason why not.

A file that says it is longer than it is, is absent as a whole: half a recording is another recording.
"""

import io
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch

from polyfuse.data.codecs import Cells, Codec, Encoding, Reading, decode_cells, source_of
from polyfuse.data.problems import Broken
from polyfuse.data.schema import ModalityConfig
from polyfuse.data.spec import ModalitySpec
from polyfuse.data.stamps import offsets_of
from polyfuse.data.video import container_of, read_sound, sound_seconds
from polyfuse.errors import require

_LONGEST_SECONDS = 10.0
_MEASURED = 512
_BLOCK = 1 << 16
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)  # a recorder that wrote to a pipe


@lru_cache(maxsize=16)
def _kernel(old: int, new: int, width: int = 6, rolloff: float = 0.99) -> tuple[torch.Tensor, int]:
    """Hann-windowed sinc filters, one per output phase (J. O. Smith, Digital Audio Resampling; as in torchaudio)."""
    base = min(old, new) * rolloff
    half = math.ceil(width * old / base)
    taps = torch.arange(-half, half + old, dtype=torch.float64)[None, None] / old
    t = (torch.arange(0, -new, -1, dtype=torch.float64)[:, None, None] / new + taps) * base
    t = t.clamp(-width, width)
    window = torch.cos(t * math.pi / width / 2) ** 2
    return (torch.sinc(t) * window * (base / old)).float(), half


def resample(wave: np.ndarray, old: int, new: int) -> np.ndarray:
    """Change the sampling rate of a mono float32 wave, band-limited.

    Example:
        >>> len(resample(np.zeros(441, np.float32), 44100, 16000))
        160
    """
    if old == new or not len(wave):
        return wave
    divisor = math.gcd(old, new)
    old, new = old // divisor, new // divisor
    kernel, half = _kernel(old, new)
    padded = torch.nn.functional.pad(torch.from_numpy(wave)[None, None], (half, half + old))
    with torch.inference_mode():
        out = torch.nn.functional.conv1d(padded, kernel, stride=old)
    return out[0].T.reshape(-1)[: math.ceil(new * len(wave) / old)].numpy()


def _cut_short(head: bytes, tail: bytes, size: int) -> bool:
    """Whether a RIFF, AIFF or Ogg file ends before it says it does (libsndfile reads these without a word)."""
    if head[:4] in (b"RIFF", b"FORM"):
        said = int.from_bytes(head[4:8], "little" if head[:4] == b"RIFF" else "big")
        return said not in _UNKNOWN_SIZES and said + 8 > size + 1  # one byte of padding is often left out
    if head[:4] == b"OggS":
        page = tail[max(tail.rfind(b"OggS"), 0) :]
        if len(page) < 27 or not page[5] & 4:  # the last page carries the end-of-stream bit
            return True
        return len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])
    return False


def decode_audio(source: str | bytes, rate: int, samples: int) -> np.ndarray:
    """Decode to mono int16 at ``rate``, the first ``samples`` of it; the whole file is read to know that it is whole.

    Raises:
        Broken: ``truncated``, ``wrong type`` (no known audio), ``undecodable``, ``not finite``, ``zero bytes`` (no
            sample).
    """
    soundfile = require("soundfile", extra="audio")
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as raw:
            head, size = raw.read(12), raw.seek(0, os.SEEK_END)
            if container_of(head) not in (None, "ogg"):
                return _sound_track(source, rate, samples)
            raw.seek(max(size - (1 << 16), 0))
            short = _cut_short(head, raw.read(), size)
            raw.seek(0)
            if short:
                raise Broken("truncated", "ends before its header says")
            with soundfile.SoundFile(raw) as file:
                wave, frames = _read(file, math.ceil(samples * file.samplerate / rate) + 1)
                said, old = file.frames, file.samplerate
    except soundfile.LibsndfileError as error:
        unknown = "Format not recognised" in str(error) or "unknown" in str(error).lower()
        raise Broken("wrong type" if unknown else "undecodable", str(error).rpartition(": ")[2][:80]) from None
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        raise Broken("undecodable", str(error)[:80]) from None
    if frames < said:
        raise Broken("truncated", f"{frames} of {said} frames")
    if not frames:
        raise Broken("zero bytes", "no sample")
    if not np.isfinite(wave).all():
        raise Broken("not finite", "holds NaN or infinite samples")
    wave = resample(wave, old, rate)[:samples]
    return np.rint(wave.clip(-1, 1) * 32767).astype(np.int16)


def _sound_track(source: str | bytes, rate: int, samples: int) -> np.ndarray:
    """The sound of a video, from the file's time 0."""
    sound = read_sound(source, rate, samples / rate)
    wave = np.concatenate([np.zeros(max(round(sound.start * rate), 0), np.float32), sound.wave])[:samples]
    return np.rint(wave.clip(-1, 1) * 32767).astype(np.int16)


def _read(file: Any, keep: int) -> tuple[np.ndarray, int]:
    """The first ``keep`` frames as mono float32, and how many frames there are in all."""
    kept, frames = [], 0
    while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
        if frames < keep:
            kept.append(block[: keep - frames].mean(1))
        frames += len(block)
    return (np.concatenate(kept) if kept else np.zeros(0, np.float32)), frames


def seconds_of(source: str | bytes) -> float:
    """Length by the header.

    Raises:
        Broken: If there is no readable header.
    """
    soundfile = require("soundfile", extra="audio")
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as raw:
        if container_of(raw.read(12)) not in (None, "ogg"):
            return sound_seconds(source)
    try:
        info = soundfile.info(io.BytesIO(source) if isinstance(source, bytes) else source)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise Broken("undecodable", str(error)[:80]) from None
    return float(info.frames / info.samplerate)


@dataclass
class AudioCodec(Codec):
    """Paths or bytes to ``{"wave": int16 (B, N), "length": int64 (B,)}``; videos give their sound track.

    With an ``offset`` sample 0 is the start of the row's clock: ``start (B,)`` is the first sample that was recorded.
    """

    rate: int = 16_000
    samples: int = 16_000
    offset: float | str | None = None
    type: ClassVar[str] = "audio"

    @property
    def spec(self) -> ModalitySpec:
        """Rate and samples."""
        shifted = {} if self.offset is None else {"offset": 1}
        return ModalitySpec(self.name, "audio", {"rate": self.rate, "samples": self.samples, **shifted})

    @classmethod
    def fit(
        cls, name: str, config: ModalityConfig, train: Callable[[], Iterator[Cells]], reading: Reading
    ) -> "AudioCodec | None":
        """The length that 95 % of the first 512 readable training clips need."""
        require("soundfile", extra="audio")
        lengths: list[float] = []
        filled = False
        for cells in train():
            filled = filled or any(cell is not None for cell in cells[0])
            if config.seconds is None and len(lengths) < _MEASURED:
                found, _ = decode_cells(cells[0], lambda cell: seconds_of(source_of(cell, reading)), reading.pool)
                shifts = offsets_of(cells, config.all_columns, config.offset)
                ends = [length + shift for length, shift in zip(found, shifts, strict=True) if length]
                lengths += [end for end in ends if end > 0]
        if not filled:
            return None
        seconds = config.seconds
        if seconds is None:
            seconds = min(float(np.quantile(lengths[:_MEASURED], 0.95)), _LONGEST_SECONDS) if lengths else 1.0
        samples = max(math.ceil(seconds * config.rate), 1)
        return cls(name, config.all_columns, rate=config.rate, samples=samples, offset=config.offset)

    def encode(self, cells: Cells, reading: Reading) -> Encoding:
        """Decode every file."""
        shifts = offsets_of(cells, self.columns, self.offset)
        early = math.ceil(max(0.0, -float(np.nanmin(shifts, initial=0.0))) * self.rate)  # cut off later
        early = min(early, 3600 * self.rate)

        def decode(cell: Any) -> np.ndarray:
            return decode_audio(source_of(cell, reading), self.rate, self.samples + early)

        waves, problems = decode_cells(cells[0], decode, reading.pool)
        out = self.zeros(len(waves))
        for i, wave in enumerate(waves):
            if wave is None:
                continue
            if np.isnan(shifts[i]):
                waves[i] = None
                problems.append((i, "no time", "its offset is empty or no number"))
                continue
            shift = round(shifts[i] * self.rate)
            wave = wave[max(-shift, 0) :][: self.samples - max(shift, 0)] if shift < self.samples else wave[:0]
            if not len(wave):
                waves[i] = None
                problems.append((i, "outside the window", f"offset {shifts[i]:g} s"))
                continue
            start = max(shift, 0)
            out["wave"][i, start : start + len(wave)] = wave
            out["length"][i] = start + len(wave)
            if self.offset is not None:
                out["start"][i] = start
        return Encoding(out, np.array([wave is not None for wave in waves], dtype=bool), problems)

    def state(self) -> dict[str, Any]:
        """Rate, samples and offset."""
        shifted = {} if self.offset is None else {"offset": self.offset}
        return {"rate": self.rate, "samples": self.samples, **shifted}
