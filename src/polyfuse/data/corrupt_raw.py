"""Corruption of raw inputs, for tests only: pictures, recordings and words are broken before anything encodes them.

The family is that of ImageNet-C (Hendrycks and Dietterich 2019, https://arxiv.org/abs/1903.12261): a kind and a level.
Differs: the formulas are ours, in three levels instead of five, and every length is a share of the picture's side, so
that 32 and 224 pixels suffer alike. Every draw is keyed by the row (``data/keyed.py``); a higher level breaks the same
places and more. Rows where ``present`` is False are returned as they came.

Shapes: B rows, S pixels, N samples. Masks: True = present.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from polyfuse.data.keyed import uniform
from polyfuse.errors import require

IMAGE_KINDS = ("blur", "fog", "rain", "compression", "occlusion")
AUDIO_KINDS = ("noise", "clipping", "gaps")
LEVELS = (1, 2, 3)

BLUR_SIDES = (0.01, 0.02, 0.04)  # standard deviation of the Gaussian
FOG_SHARES = (0.35, 0.6, 0.8)  # of the light that comes from the fog
RAIN_DROPS = (0.01, 0.025, 0.06)  # drops per pixel
RAIN_SIDE, RAIN_SHARE, RAIN_GREY = 0.12, 0.8, 150.0  # a streak's length, how much it covers, its brightness
JPEG_QUALITIES = (30, 15, 7)
SQUARE_SIDES = (0.3, 0.5, 0.7)
NOISE_DECIBELS = (15.0, 5.0, -5.0)  # the recording's power over the noise's
CLIP_PEAKS = (0.3, 0.1, 0.03)  # of the recording's own peak
GAP_SHARES = (0.15, 0.35, 0.6)
GAP_BLOCKS = 20  # in a recording
TYPO_WORDS = (0.3, 0.6, 1.0)
_GREY = 127


@dataclass(frozen=True)
class _Draw:
    """Keyed uniform draws of one corruption."""

    seed: int
    kind: str
    keys: Tensor

    def __call__(self, n: int, what: str = "") -> Tensor:
        return uniform(self.seed, f"raw/{self.kind}/{what}", 0, self.keys, n)


def corrupt_images(
    pixels: Tensor, kind: str, level: int, keys: Tensor, *, seed: int = 0, present: Tensor | None = None
) -> Tensor:
    """Break pictures.

    "blur" is Gaussian; "fog" mixes in a bright cloud that is smooth over a quarter of the side; "rain" lays grey
    diagonal streaks over; "compression" is a JPEG file and back (Pillow); "occlusion" hides a grey square.

    Args:
        pixels: ``(B, 3, S, S)`` uint8.
        kind: One of ``IMAGE_KINDS``.
        level: 1, 2 or 3.
        keys: ``(B,)`` int64 row keys.
        seed: Another seed gives other clouds, streaks and places.
        present: ``(B,)`` bool; None = all.

    Raises:
        ValueError: If a shape, a type, the kind or the level is wrong.
        UserError: If "compression" lacks Pillow.

    Example:
        >>> grey = torch.full((2, 3, 10, 10), 255, dtype=torch.uint8)
        >>> (corrupt_images(grey, "occlusion", 2, torch.arange(2)) == 127).float().mean().item()
        0.25
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] != pixels.shape[3]:
        raise ValueError(f"pixels must be uint8 (B, 3, S, S), got {pixels.dtype} {tuple(pixels.shape)}")
    _check(kind, IMAGE_KINDS, level, keys, len(pixels), present)
    function = {"blur": _blur, "fog": _fog, "rain": _rain, "compression": _jpeg, "occlusion": _square}[kind]
    broken = function(pixels, level - 1, _Draw(seed, kind, keys))
    return broken if present is None else torch.where(present[:, None, None, None], broken, pixels)


def corrupt_audio(
    clips: Mapping[str, Tensor],
    kind: str,
    level: int,
    keys: Tensor,
    *,
    seed: int = 0,
    present: Tensor | None = None,
    noise: Mapping[str, Tensor] | None = None,
    noise_keys: Tensor | None = None,
) -> dict[str, Tensor]:
    """Break recordings; lengths stay.

    "noise" adds another real recording, repeated to the clip's length, at 15, 5 or -5 dB; "clipping" cuts the wave off
    at a share of its peak; "gaps" silences some of the clip's 20 equal blocks.

    Args:
        clips: ``wave (B, N)`` int16, ``length (B,)`` samples of each clip.
        kind: One of ``AUDIO_KINDS``.
        level: 1, 2 or 3.
        keys: ``(B,)`` int64 row keys.
        seed: Another seed gives other partners and gaps.
        present: ``(B,)`` bool; None = all.
        noise: Recordings in the form of ``clips`` to draw the noise from, never the clip's own; None = ``clips``.
        noise_keys: Their row keys.

    Raises:
        ValueError: If a shape, a type, the kind or the level is wrong, ``noise`` comes without keys, or no other
            recording than the clip itself can be had.

    Example:
        >>> clips = {"wave": torch.full((1, 40), 9000, dtype=torch.int16), "length": torch.tensor([40])}
        >>> corrupt_audio(clips, "clipping", 1, torch.arange(1))["wave"].unique().tolist()
        [2700]
    """
    wave, length = clips["wave"], clips["length"]
    if wave.dtype != torch.int16 or wave.ndim != 2 or length.shape != wave.shape[:1]:
        raise ValueError(
            f"clips must hold wave int16 (B, N) and length (B,), got {wave.dtype} {tuple(wave.shape)} and "
            f"{tuple(length.shape)}"
        )
    _check(kind, AUDIO_KINDS, level, keys, len(wave), present)
    if (noise is None) != (noise_keys is None):
        raise ValueError("noise and noise_keys must be given together, got one of them")
    inside = torch.arange(wave.shape[1], device=wave.device) < length[:, None]
    x = wave.float().masked_fill(~inside, 0.0)
    draw = _Draw(seed, kind, keys)
    if kind == "noise":
        bank = (clips, keys) if noise is None or noise_keys is None else (noise, noise_keys)
        x = x + _babble(x, length, *bank, draw) * 10.0 ** (-NOISE_DECIBELS[level - 1] / 20.0)
    elif kind == "clipping":
        limit = x.abs().amax(dim=1, keepdim=True) * CLIP_PEAKS[level - 1]
        x = torch.minimum(torch.maximum(x, -limit), limit)
    else:
        block = torch.arange(wave.shape[1], device=wave.device) * GAP_BLOCKS // length[:, None].clamp(min=1)
        silent = draw(GAP_BLOCKS) < GAP_SHARES[level - 1]
        x = x.masked_fill(silent.gather(1, block.clamp(max=GAP_BLOCKS - 1)), 0.0)
    broken = x.round().clamp(-32768, 32767).to(torch.int16)
    touched = inside if present is None else inside & present[:, None]
    return {"wave": torch.where(touched, broken, wave), "length": length}


def corrupt_texts(texts: Sequence[str], level: int, keys: Tensor, *, seed: int = 0) -> list[str]:
    """Typing errors: in a share of the words two neighbouring, different letters change places.

    Args:
        texts: B strings; an empty one stays.
        level: 1, 2 or 3: 30 %, 60 % or all of the words.
        keys: ``(B,)`` int64 row keys.
        seed: Another seed gives other errors.

    Raises:
        ValueError: If the level is wrong, or there is not one key per text.

    Example:
        >>> corrupt_texts(["red ox"], 3, torch.tensor([5]))
        ['rde xo']
    """
    _check("typos", ("typos",), level, keys, len(texts), None)
    words = [text.split(" ") for text in texts]
    longest = max(map(len, words), default=0)
    draw = _Draw(seed, "typos", keys)
    hit, place = draw(longest, "hit") < TYPO_WORDS[level - 1], draw(longest, "place").tolist()
    return [
        " ".join(_swapped(word, place[row][i]) if hit[row, i] else word for i, word in enumerate(found))
        for row, found in enumerate(words)
    ]


def _swapped(word: str, draw: float) -> str:
    places = [i for i in range(len(word) - 1) if word[i] != word[i + 1] and word[i : i + 2].isalpha()]
    if not places:
        return word
    i = places[int(draw * len(places))]
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def _check(kind: str, kinds: Sequence[str], level: int, keys: Tensor, rows: int, present: Tensor | None) -> None:
    if kind not in kinds:
        raise ValueError(f"kind must be one of {', '.join(kinds)}, got '{kind}'")
    if level not in LEVELS:
        raise ValueError(f"level must be 1, 2 or 3, got {level}")
    if keys.shape != (rows,):
        raise ValueError(f"keys must be (B,) = ({rows},), got {tuple(keys.shape)}")
    if present is not None and (present.dtype != torch.bool or present.shape != (rows,)):
        raise ValueError(f"present must be bool (B,) = ({rows},), got {present.dtype} {tuple(present.shape)}")


def _pixels(x: Tensor) -> Tensor:
    return x.round().clamp(0, 255).to(torch.uint8)


def _blur(pixels: Tensor, level: int, draw: _Draw) -> Tensor:
    sigma = BLUR_SIDES[level] * pixels.shape[2]
    reach = min(max(1, round(3 * sigma)), pixels.shape[2] - 1)
    taps = torch.exp(-(torch.arange(-reach, reach + 1, device=pixels.device) ** 2) / (2 * sigma * sigma))
    taps = (taps / taps.sum()).expand(3, 1, 1, -1)
    x = F.pad(pixels.float(), (reach, reach, reach, reach), mode="replicate")
    return _pixels(F.conv2d(F.conv2d(x, taps, groups=3), taps.transpose(2, 3), groups=3))


def _fog(pixels: Tensor, level: int, draw: _Draw) -> Tensor:
    """Light ``(1 - share) * x + share * cloud``; the cloud lies between 160 and 255."""
    size = pixels.shape[2:]
    cloud = F.interpolate(draw(25).view(-1, 1, 5, 5), size, mode="bilinear", align_corners=True) * 0.7
    cloud = cloud + F.interpolate(draw(81, "fine").view(-1, 1, 9, 9), size, mode="bilinear", align_corners=True) * 0.3
    share = FOG_SHARES[level]
    return _pixels(pixels.float() * (1 - share) + share * (160.0 + 95.0 * cloud))


def _rain(pixels: Tensor, level: int, draw: _Draw) -> Tensor:
    """A drop is a pixel whose draw is below the level's rate; it leaves a streak down and to the left."""
    rows, side = len(pixels), pixels.shape[2]
    drops = (draw(side * side).view(rows, 1, side, side) < RAIN_DROPS[level]).float()
    streak = drops
    for step in range(1, max(2, round(RAIN_SIDE * side))):
        left = step // 2
        moved = F.pad(drops, (0, left, step, 0))[:, :, :side, left : left + side]
        streak = torch.maximum(streak, moved)
    return _pixels(pixels.float() + RAIN_SHARE * streak * (RAIN_GREY - pixels.float()))


def _jpeg(pixels: Tensor, level: int, draw: _Draw) -> Tensor:
    image: Any = require("PIL.Image", extra="workbench")
    out = torch.empty_like(pixels)
    for row, picture in enumerate(pixels.permute(0, 2, 3, 1).cpu().numpy()):
        stream = io.BytesIO()
        image.fromarray(picture).save(stream, "JPEG", quality=JPEG_QUALITIES[level])
        decoded = bytearray(image.open(stream).convert("RGB").tobytes())
        out[row] = torch.frombuffer(decoded, dtype=torch.uint8).view(picture.shape).permute(2, 0, 1)
    return out


def _square(pixels: Tensor, level: int, draw: _Draw) -> Tensor:
    side = pixels.shape[2]
    square = max(1, round(SQUARE_SIDES[level] * side))
    corner = (draw(2) * (side - square + 1)).long()  # a larger square covers the smaller one, but for rounding
    line = torch.arange(side, device=pixels.device)
    inside = (line >= corner[..., None]) & (line < corner[..., None] + square)  # (B, 2, S)
    return pixels.masked_fill((inside[:, 0, :, None] & inside[:, 1, None, :])[:, None], _GREY)


def _babble(x: Tensor, length: Tensor, bank: Mapping[str, Tensor], bank_keys: Tensor, draw: _Draw) -> Tensor:
    """Another recording for every row, with the power of the row's own over its length: ``(B, N)``."""
    order = bank_keys.argsort()
    order = order[bank["length"][order] > 0]
    found = torch.zeros_like(x)
    for row, start in enumerate(draw(1)[:, 0].tolist()):
        size = int(length[row])
        if not size:
            continue
        others = order[bank_keys[order] != draw.keys[row]]
        if not len(others):
            raise ValueError("noise must hold a recording of another row, got none")
        other = others[int(start * len(others))]
        wave = bank["wave"][other, : int(bank["length"][other])].float()
        wave = wave.repeat(-(-size // len(wave)))[:size]
        loud, own = wave.square().mean().sqrt(), x[row, :size].square().mean().sqrt()
        found[row, :size] = wave * (own / loud) if loud > 0 else 0.0
    return found
