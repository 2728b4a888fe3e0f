"""What scenes sound like: one tone per object, mixed.

The shape sets the pitch, the material the timbre (plain: pure; striped: eight beats a second; shiny: with its octave),
the size the loudness. Position and colour are not to be heard.
"""

from typing import TYPE_CHECKING

import numpy as np

from polyfuse.data.scenes_config import MATERIALS, SHAPES, SIZES
from polyfuse.data.scenes_draws import uniform

if TYPE_CHECKING:
    from polyfuse.data.scenes import Scenes

PITCH = {name: 220.0 * 2 ** (2 * n / (len(SHAPES) - 1)) for n, name in enumerate(SHAPES)}  # Hz, two octaves
HIGHEST = 2 * max(PITCH.values())  # with its octave
BEATS = 8.0  # Hz
_CHUNK = 256


def play(scenes: "Scenes", rate: int, seconds: float) -> np.ndarray:
    """``(N, round(rate * seconds))`` float32 within -1 and 1.

    Raises:
        ValueError: If ``rate`` is too low for the highest tone, or ``seconds`` gives no sample.
    """
    samples = round(rate * seconds)
    if rate < 2 * HIGHEST or samples < 1:
        raise ValueError(f"rate must be at least {2 * HIGHEST:.0f} Hz and seconds positive, got {rate} and {seconds}")
    config, here = scenes.config, scenes.shape >= 0
    pitch = np.array([PITCH[name] for name in config.shapes])[scenes.shape]
    loud = here * np.array([SIZES[name] for name in config.sizes])[scenes.size] / max(SIZES.values()) / config.most
    kind = np.array([MATERIALS.index(name) for name in config.materials])[scenes.material]
    phase = uniform(0, f"{scenes.seed}/{scenes.split}/phase", scenes.index, config.most)
    time, sound = np.arange(samples) / rate, np.zeros((len(scenes), samples), dtype=np.float32)
    for start in range(0, len(scenes), _CHUNK):
        part = slice(start, start + _CHUNK)
        for thing in range(config.most):
            turns = pitch[part, thing, None] * time + phase[part, thing, None]
            wave = np.sin(2 * np.pi * turns)
            which = kind[part, thing, None]
            wave = np.where(which == 1, wave * (0.5 + 0.5 * np.cos(2 * np.pi * BEATS * time)), wave)
            wave = np.where(which == 2, 0.6 * wave + 0.4 * np.sin(4 * np.pi * turns), wave)
            sound[part] += (loud[part, thing, None] * wave).astype(np.float32)
    return sound
