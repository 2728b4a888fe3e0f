"""Clips of moving objects with a sound track, subtitles with times, tags and captions, all of them true.

Each object moves along one axis at constant speed and turns round at the wall. A later object appears during the clip.
A bounce is heard as a short tone, an appearance as a tone with its octave; the shape sets the pitch. Times are exact:
the sound begins at the first sample at or after the event, frames show the instant they carry.

Clip i is a function of (configuration, seed, split, i), as scenes are (:mod:`polyfuse.data.scenes`).

Shapes: N clips, F frames, S pixels of a side, K objects at most.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from polyfuse.data.scenes_config import COLOURS, SIZES, SPLITS, SceneConfig, held_out_table
from polyfuse.data.scenes_draws import pick, uniform
from polyfuse.data.scenes_layout import Layout
from polyfuse.data.scenes_render import backgrounds, draw
from polyfuse.data.scenes_sounds import HIGHEST, PITCH

DIRECTIONS = ("left", "right", "up", "down")
SPEEDS = {"slowly": 0.12, "quickly": 0.42}  # sides per second
TAGS = (*(f"moves {d}" for d in DIRECTIONS), *(f"moves {s}" for s in SPEEDS), "bounces", "appears")
BURST = 0.08  # seconds of a tone


@dataclass(frozen=True)
class ClipConfig:
    """What clips are made of.

    Args:
        side: Pixels of a side.
        frames: Frames of a clip.
        seconds: Length of a clip; frame f shows the time ``f * seconds / frames``.
        rate: Samples of sound per second.
        most: Most objects of a clip; the second and later ones appear while it runs.
        shapes: Of ``scenes_config.SHAPES``.
        colours: Of ``scenes_config.COLOURS``.
        held_out: (colour, shape) combinations that only the split ``novel`` contains, as in ``SceneConfig``.

    Raises:
        ValueError: If a name is unknown or a number out of range.
    """

    side: int = 32
    frames: int = 12
    seconds: float = 3.0
    rate: int = 4000
    most: int = 2
    shapes: tuple[str, ...] = ("circle", "square", "triangle", "cross", "star", "ring")
    colours: tuple[str, ...] = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
    held_out: float | tuple[tuple[str, str], ...] = 0.125

    def __post_init__(self) -> None:
        scene = self.scene()
        for name in ("shapes", "colours", "held_out"):
            object.__setattr__(self, name, getattr(scene, name))
        if self.frames < 1 or self.seconds <= 0 or self.rate < 2 * HIGHEST:
            raise ValueError(
                f"a clip needs frames, seconds and a rate of at least {2 * HIGHEST:.0f} Hz, "
                f"got {self.frames}, {self.seconds} and {self.rate}"
            )
        if not 1 <= self.most <= 3:
            raise ValueError(f"most must lie between 1 and 3, got {self.most}")

    def scene(self) -> SceneConfig:
        """The scenes that the frames are."""
        return SceneConfig(
            side=self.side, least=1, most=self.most, shapes=self.shapes, colours=self.colours, sizes=("large",),
            materials=("plain",), held_out=self.held_out, overlap=0.6,
        )  # fmt: skip


class Event(NamedTuple):
    """Something heard at a time, in seconds."""

    time: float
    what: str  # "bounces" or "appears"
    thing: int


@dataclass(frozen=True)
class Clips:
    """N clips."""

    frames: np.ndarray  # (N, F, S, S, 3) uint8
    frame_times: np.ndarray  # (F,) float64, seconds
    sound: np.ndarray  # (N, samples) float32 within -1 and 1
    rate: int
    subtitles: list[list[tuple[float, float, str]]]  # start, end, text; by start
    tags: np.ndarray  # (N, len(TAGS)) bool
    tag_names: tuple[str, ...]
    captions: list[str]
    events: list[list[Event]]  # by time
    shape: np.ndarray  # (N, K) int64, -1 = no object
    colour: np.ndarray  # (N, K) int64
    centres: np.ndarray  # (N, F, K, 2) float64, shares of the side; NaN before an object appears
    boxes: np.ndarray  # (N, F, K, 4) float32, of what is to be seen
    config: ClipConfig

    def __len__(self) -> int:
        return len(self.frames)


class _Motion(NamedTuple):
    """How objects move, each ``(N, K)``: along ``axis``, from ``begin``, ``speed`` sides per second, between walls."""

    axis: np.ndarray
    begin: np.ndarray
    across: np.ndarray  # the coordinate that stays
    forward: np.ndarray  # bool: towards right or down
    speed: np.ndarray
    fast: np.ndarray
    appears: np.ndarray  # seconds
    wall: float  # the least coordinate of a centre; the largest is 1 - wall


def _drawn(config: ClipConfig, seed: int, split: str, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, _Motion]:
    """Shapes and colours ``(N, K)``, no two objects of a clip alike, and motions."""
    held, width, rows = held_out_table(config.scene()), config.most, len(index)
    draws = uniform(seed, f"{split}/clip", index, 8 * width).reshape(rows, 8, width)
    count = 1 + (uniform(seed, f"{split}/clip/count", index, 1)[:, 0] * width).astype(np.int64)
    free = np.repeat(~held.reshape(1, -1), rows, axis=0).astype(np.float64)
    shape, colour = np.full((rows, width), -1), np.full((rows, width), -1)
    for k in range(width):
        allowed = np.repeat(held.reshape(1, -1), rows, axis=0) if split == "novel" and k == 0 else free
        pair = pick(allowed, draws[:, 0, k])
        free[np.arange(rows), pair] = 0
        here = k < count
        colour[here, k], shape[here, k] = pair[here] // held.shape[1], pair[here] % held.shape[1]
    names = tuple(SPEEDS.values())
    fast = draws[:, 1] < 0.5
    speed = np.where(fast, names[1], names[0]) * (0.9 + 0.2 * draws[:, 2])
    wall = SIZES["large"] * 1.1
    inside = wall + (1 - 2 * wall) * draws[:, 3:5]
    appears = np.where(np.arange(width) == 0, 0.0, config.seconds * (0.15 + 0.5 * draws[:, 5]))
    axis = (draws[:, 6] < 0.5).astype(np.int64)
    return shape, colour, _Motion(axis, inside[:, 0], inside[:, 1], draws[:, 7] < 0.5, speed, fast, appears, wall)


def _position(motion: _Motion, times: np.ndarray) -> np.ndarray:
    """Centres ``(N, F, K, 2)``: a straight path folded at the walls."""
    room = 1 - 2 * motion.wall
    gone = np.maximum(times[None, :, None] - motion.appears[:, None], 0) * motion.speed[:, None]
    start = np.where(motion.forward, motion.begin - motion.wall, 2 * room - (motion.begin - motion.wall))
    phase = (start[:, None] + gone) % (2 * room)
    along = motion.wall + np.minimum(phase, 2 * room - phase)
    still = np.broadcast_to(motion.across[:, None], along.shape)
    horizontal = motion.axis[:, None] == 0
    places = np.stack([np.where(horizontal, along, still), np.where(horizontal, still, along)], axis=3)
    places[np.broadcast_to(times[None, :, None] < motion.appears[:, None], along.shape)] = np.nan
    return places


def _bounces(motion: _Motion, clip: int, thing: int, seconds: float) -> list[float]:
    """The times at which an object touches a wall."""
    m, room = motion, 1 - 2 * motion.wall
    gone = m.begin[clip, thing] - m.wall
    first = (room - gone if m.forward[clip, thing] else gone) / m.speed[clip, thing]
    period, begins = room / m.speed[clip, thing], m.appears[clip, thing]
    return [
        float(begins + first + n * period)
        for n in range(int(seconds / period) + 2)
        if begins + first + n * period < seconds
    ]


@lru_cache(maxsize=256)
def burst(shape: str, what: str, rate: int) -> np.ndarray:
    """The tone of an event, float32: a bounce is a pure tone, an appearance has the octave too."""
    time = np.arange(round(BURST * rate)) / rate
    wave = np.cos(2 * np.pi * PITCH[shape] * time)
    if what == "appears":
        wave = 0.5 * wave + 0.5 * np.cos(4 * np.pi * PITCH[shape] * time)
    return (0.3 * wave * (1 - time / BURST)).astype(np.float32)


def _told(config: ClipConfig, name: str, legs: list[str], fast: bool, appears: bool) -> str:
    speed = tuple(SPEEDS)[int(fast)]
    text = f"a {name} appears and moves" if appears else f"a {name} moves"
    text = text.replace("a orange", "an orange") + f" {legs[0]} {speed}"
    return text + (" and bounces" if len(legs) > 1 else "")


def make_clips(
    count: int, *, seed: int = 0, split: str = "train", config: ClipConfig | None = None, start: int = 0
) -> Clips:
    """Make clips ``start`` to ``start + count``.

    Args:
        count: How many.
        seed: Another seed gives other clips.
        split: As of :func:`polyfuse.data.scenes.make_scenes`; every ``novel`` clip shows a held-out combination.
        config: What clips are made of; None is ``ClipConfig()``.
        start: The number of the first.

    Raises:
        ValueError: If the split is unknown, a number is negative, or ``novel`` is asked for with nothing held out.

    Example:
        >>> clips = make_clips(2)
        >>> clips.frames.shape, clips.sound.shape
        ((2, 12, 32, 32, 3), (2, 12000))
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if count < 0 or start < 0:
        raise ValueError(f"count and start must not be negative, got {count} and {start}")
    config = ClipConfig() if config is None else config
    scene = config.scene()
    if split == "novel" and not held_out_table(scene).any():
        raise ValueError("split 'novel' needs held-out combinations: set held_out in ClipConfig")
    index = np.arange(start, start + count)
    shape, colour, motion = _drawn(config, seed, split, index)
    times = np.arange(config.frames) * (config.seconds / config.frames)
    centres = _position(motion, times)
    centres[np.broadcast_to((shape < 0)[:, None], centres.shape[:3])] = np.nan
    frames, boxes = _film(config, scene, seed, split, index, shape, colour, centres)
    sound = np.zeros((count, round(config.rate * config.seconds)), dtype=np.float32)
    tags = np.zeros((count, len(TAGS)), dtype=bool)
    subtitles, captions, events = [], [], []
    for n in range(count):
        lines: list[tuple[float, float, str]] = []
        heard: list[Event] = []
        told: list[tuple[float, str]] = []
        for k in np.flatnonzero(shape[n] >= 0).tolist():
            name = f"{config.colours[colour[n, k]]} {config.shapes[shape[n, k]]}"
            hits, begins = _bounces(motion, n, k, config.seconds), float(motion.appears[n, k])
            edges = [begins, *hits, config.seconds]
            legs = [
                DIRECTIONS[2 * int(motion.axis[n, k]) + int(bool(motion.forward[n, k]) ^ bool(leg % 2))]
                for leg in range(len(edges) - 1)
            ]
            lines += ((a, b, f"the {name} moves {d}") for a, b, d in zip(edges, edges[1:], legs, strict=False))
            heard += [Event(begins, "appears", k)] if k else []
            heard += [Event(time, "bounces", k) for time in hits]
            told.append((begins, _told(config, name, legs, bool(motion.fast[n, k]), k > 0)))
            said = {f"moves {d}" for d in legs} | {f"moves {tuple(SPEEDS)[int(motion.fast[n, k])]}"}
            said |= {"bounces"} if hits else set()
            said |= {"appears"} if k else set()
            tags[n] |= [tag in said for tag in TAGS]
        events.append(sorted(heard))
        for event in heard:
            first = int(np.ceil(round(event.time * config.rate, 6)))
            tone = burst(config.shapes[shape[n, event.thing]], event.what, config.rate)[: len(sound[n]) - first]
            sound[n, first : first + len(tone)] += tone
        subtitles.append(sorted(lines))
        captions.append(", then ".join(text for _, text in sorted(told)) + ".")
    return Clips(
        frames, times, np.clip(sound, -1, 1), config.rate, subtitles, tags, TAGS, captions, events, shape, colour,
        centres, boxes, config,
    )  # fmt: skip


def _film(
    config: ClipConfig,
    scene: SceneConfig,
    seed: int,
    split: str,
    index: np.ndarray,
    shape: np.ndarray,
    colour: np.ndarray,
    centres: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Frames ``(N, F, S, S, 3)`` and boxes ``(N, F, K, 4)``: every frame is a scene; the later object lies on top."""
    count, width, length = len(index), config.most, config.frames
    here = np.isfinite(centres[..., 0]).reshape(-1, width)
    repeat = np.repeat(np.arange(count), length)
    shapes = np.where(here, shape[repeat], -1)
    still = np.where(here, 0, -1)
    radii = np.where(here, SIZES["large"], np.nan)
    layout = Layout(
        here.sum(axis=1), shapes, np.where(here, colour[repeat], -1), still, still, centres.reshape(-1, width, 2), radii
    )
    draws = uniform(seed, f"{split}/clip/look", index, 3 * width).reshape(count, width, 3)
    named = np.array([COLOURS[name] for name in config.colours], dtype=np.float64)
    rgb = np.clip(named[colour] + 24 * (draws - 0.5), 0, 255)[repeat]
    canvas = np.repeat(backgrounds(scene, seed, f"{split}/clip", index), length, axis=0)
    frames, boxes = draw(scene, layout, canvas, rgb, np.zeros(here.shape))
    side = config.side
    return frames.reshape(count, length, side, side, 3), boxes.reshape(count, length, width, 4)
