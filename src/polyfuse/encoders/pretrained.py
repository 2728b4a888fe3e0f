"""Frozen pretrained networks by name: an input becomes a feature vector, computed once and cached.

In a run a pretrained modality is a ``vector`` input; ``polyfuse weights fetch NAME`` brings the weights.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from polyfuse.encoders.features import FrozenFeatures, FrozenNetwork, digest_of
from polyfuse.errors import UserError
from polyfuse.registry import Registry

if TYPE_CHECKING:
    from polyfuse.encoders.efficientnet_lite import EfficientNetLite0

_PICTURES_AT_ONCE = 16


class EfficientNetFeatures:
    """1,280 features of EfficientNet-Lite0, the mean over its last map.

    Args:
        folder: Holds the one ``.pth`` of the original package.

    Raises:
        UserError: If it does not.
    """

    name = "efficientnet_lite0"
    kind = "image"
    size: int | None = 224

    def __init__(self, folder: Path) -> None:
        self.network, self.weights_digest = _efficientnet(folder)
        self.width = self.network.width

    @torch.inference_mode()
    def compute(self, items: Sequence[np.ndarray]) -> np.ndarray:
        """``(N, 1280)`` float32; images of one size go through together."""
        out = np.zeros((len(items), self.width), dtype=np.float32)
        for rows, pixels in _by_size(self.name, items):
            out[rows] = self.network.features(pixels).numpy()
        return out


class EfficientNetCells:
    """Features of the cells of 16 pixels of EfficientNet-Lite0, row by row, for pictures of one side.

    Args:
        folder: Holds the one ``.pth`` of the original package.
        side: Pixels of the pictures, a multiple of 16.

    Raises:
        UserError: If the folder does not hold it, or the side is none.
    """

    kind = "image"
    size: int | None

    def __init__(self, folder: Path, side: int) -> None:
        from polyfuse.encoders.efficientnet_lite import CELL

        if side < CELL or side % CELL:
            raise UserError(f"side must be a multiple of {CELL} for features of cells, got {side}")
        self.network, self.weights_digest = _efficientnet(folder)
        self.name, self.size = f"efficientnet_lite0_cells_{side}", side
        self.width = (side // CELL) ** 2 * self.network.grid_width

    @torch.inference_mode()
    def compute(self, items: Sequence[np.ndarray]) -> np.ndarray:
        """``(N, cells * 272)`` float32, cell by cell."""
        out = np.zeros((len(items), self.width), dtype=np.float32)
        for rows, pixels in _by_size(self.name, items):
            out[rows] = self.network.grid(pixels).flatten(2).transpose(1, 2).flatten(1).numpy()
        return out


def _efficientnet(folder: Path) -> tuple["EfficientNetLite0", str]:
    from polyfuse.encoders.efficientnet_lite import EfficientNetLite0

    files = sorted(folder.glob("*.pth"))
    if len(files) != 1:
        raise UserError(f"{folder} must hold one .pth file, got {[f.name for f in files]}; fetch it again")
    network = EfficientNetLite0()
    network.load_original(torch.load(files[0], map_location="cpu", weights_only=True))
    return network, digest_of(files)


def _by_size(name: str, items: Sequence[np.ndarray]) -> Iterator[tuple[list[int], torch.Tensor]]:
    shapes: dict[tuple[int, ...], list[int]] = {}
    for row, item in enumerate(items):
        if isinstance(item, str):
            raise UserError(f"'{name}' is an image network: it cannot encode texts")
        shapes.setdefault(item.shape, []).append(row)
    for rows in shapes.values():
        for start in range(0, len(rows), _PICTURES_AT_ONCE):
            part = rows[start : start + _PICTURES_AT_ONCE]
            yield part, torch.from_numpy(np.stack([items[row] for row in part])).permute(0, 3, 1, 2)


def _wordllama(folder: Path) -> FrozenNetwork:
    from polyfuse.encoders.wordllama import WordLlama

    return WordLlama(folder)


def _minilm(folder: Path) -> FrozenNetwork:
    from polyfuse.encoders.transformer_features import TransformerFeatures

    return TransformerFeatures(folder, "minilm")


PRETRAINED: Registry = Registry(
    "pretrained network", {"efficientnet_lite0": EfficientNetFeatures, "minilm": _minilm, "wordllama": _wordllama}
)
_LOCAL = "hf:"


def load_pretrained(name: str, *, folder: Path | None = None, cache: bool = True) -> FrozenFeatures:
    """A frozen network by name, ready to turn items into features.

    Args:
        name: Entry of ``PRETRAINED``, or ``hf:<folder>`` for a transformers model in a local folder.
        folder: Where the weights lie; None = where ``polyfuse weights fetch`` put them.
        cache: Whether features are kept on disk.

    Raises:
        UserError: If the name is unknown, or its weights have not been fetched.
    """
    if name.startswith(_LOCAL):
        from polyfuse.encoders.transformer_features import TransformerFeatures

        return FrozenFeatures(TransformerFeatures(Path(name.removeprefix(_LOCAL)).expanduser()), cache=cache)
    try:
        build: Any = PRETRAINED[name]
    except KeyError as error:
        raise UserError(f"{error.args[0]}, or hf:<folder> for a local transformers model") from None
    if folder is None:
        from polyfuse.data.fetch import path_of

        folder = path_of(name)
        if folder is None:
            raise UserError(f"the weights of '{name}' are not in the cache; run: polyfuse weights fetch {name}")
    return FrozenFeatures(build(folder), cache=cache)


def extract_features(name: str, items: Sequence[Any], *, cache: bool = True) -> np.ndarray:
    """``load_pretrained(name)(items)``: ``(N, D)`` float32 of images (uint8, height x width x 3) or strings."""
    return load_pretrained(name, cache=cache)(items)
