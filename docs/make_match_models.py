"""Train the two matchers that ship, from pinned public data, and write their folders.

Run: ``python docs/make_match_models.py`` (some twelve minutes on one core; fetches emoji, Open Clip Art,
EfficientNet-Lite0, MiniLM and WordLlama on the first run). They go to ``src/polyfuse/models/assets/NAME``.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from polyfuse.studies.dual_encoder import train_clipart, train_glyphs

ASSETS = Path(__file__).parents[1] / "src" / "polyfuse" / "models" / "assets"
TRAINERS: dict[str, Callable[[Path], dict[str, Any]]] = {"clipart": train_clipart, "glyphs": train_glyphs}


def main(names: list[str]) -> None:
    """Train those of the names, or both."""
    torch.set_num_threads(1)
    for name in names or list(TRAINERS):
        print(TRAINERS[name](ASSETS / name))


if __name__ == "__main__":
    main(sys.argv[1:])
