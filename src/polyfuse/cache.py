"""Where fetched data, weights and computed features are kept."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """The cache folder: ``POLYFUSE_CACHE`` if set, else ``~/.cache/polyfuse``. Not created."""
    return Path(os.environ.get("POLYFUSE_CACHE") or Path.home() / ".cache" / "polyfuse")
