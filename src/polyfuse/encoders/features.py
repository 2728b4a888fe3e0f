"""Features of a frozen network, computed once per content and kept on disk.

A cache folder belongs to one network, its weights and its preprocessing; inside it an item is found by the digest of
its content, wherever it came from. Blocks of rows are written whole and renamed into place, under a name that depends
on their content: processes may share a folder, and a killed one leaves no half-written block.

Shapes: N items, D feature width.
"""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from polyfuse.cache import cache_dir

_LAYOUT = "1"  # change it when preprocessing or the block format changes
_KEY_BYTES = 16
_SMALLEST_BLOCK = 16  # a few rows are sooner computed again than looked up in a folder full of tiny files
_LARGEST_BLOCK = 1024


class FrozenNetwork(Protocol):
    """A pretrained network without a cache."""

    name: str
    width: int
    size: int | None
    weights_digest: str

    def compute(self, items: Sequence[Any]) -> np.ndarray:
        """``(N, D)`` float32 of decoded images (uint8, height x width x 3) or strings."""
        ...


class FrozenFeatures:
    """A frozen network with its cache on disk: items in, features out.

    Args:
        network: What computes the features.
        cache: Whether to read and write the cache.
        folder: Where the caches lie; None = ``features`` in the cache folder.

    Attributes:
        name: The network's name.
        width: Feature width D.
        size: Side in pixels that images should have; None for texts.
        weights_digest: SHA-256 of the weights.
        computed: Items that went through the network so far.
    """

    def __init__(self, network: FrozenNetwork, *, cache: bool = True, folder: Path | None = None) -> None:
        self.network = network
        self.name = network.name
        self.width = network.width
        self.size = network.size
        self.weights_digest = network.weights_digest
        self.computed = 0
        word = "".join(c if c.isalnum() else "-" for c in Path(network.name).name)
        mark = hashlib.sha256(f"{word}\n{network.weights_digest}\n{_LAYOUT}".encode()).hexdigest()[:16]
        self.folder = (folder or cache_dir() / "features") / f"{word}-{mark}" if cache else None
        self._places: dict[bytes, tuple[Path, int]] = {}
        self._seen: set[str] = set()

    def __call__(self, items: Sequence[Any]) -> np.ndarray:
        """Features ``(N, D)`` float32 of images (uint8, height x width x 3) or strings, in the order of ``items``.

        Raises:
            TypeError: If an item is neither.
        """
        out = np.zeros((len(items), self.width), dtype=np.float32)
        rows: dict[bytes, list[int]] = {}
        for row, item in enumerate(items):
            rows.setdefault(content_key(item), []).append(row)
        todo = self._read(rows, out)
        for start in range(0, len(todo), _LARGEST_BLOCK):
            keys = todo[start : start + _LARGEST_BLOCK]
            features = np.asarray(self.network.compute([items[rows[key][0]] for key in keys]), dtype=np.float32)
            self.computed += len(keys)
            for key, feature in zip(keys, features, strict=True):
                out[rows[key]] = feature
            self._write(keys, features)
        return out

    def _read(self, rows: dict[bytes, list[int]], out: np.ndarray) -> list[bytes]:
        """Fill in what the cache knows; return the keys it does not know."""
        if self.folder is None:
            return list(rows)
        if any(key not in self._places for key in rows):
            self._scan(self.folder)
        wanted: dict[Path, list[bytes]] = {}
        for key in rows:
            if key in self._places:
                wanted.setdefault(self._places[key][0], []).append(key)
        found = set()
        for path, keys in wanted.items():
            features = _load(path, "features")
            if features is None or features.shape[1] != self.width:
                continue  # gone or damaged since: computed again
            for key in keys:
                out[rows[key]] = features[self._places[key][1]]
                found.add(key)
        return [key for key in rows if key not in found]

    def _scan(self, folder: Path) -> None:
        """Learn which items the blocks hold that other processes, or earlier ones, have written."""
        for path in sorted(folder.glob("*.safetensors")):
            if path.name in self._seen:
                continue
            self._seen.add(path.name)
            keys = _load(path, "keys")
            if keys is not None:
                self._places.update({key.tobytes(): (path, row) for row, key in enumerate(keys)})

    def _write(self, keys: Sequence[bytes], features: np.ndarray) -> None:
        if self.folder is None or len(keys) < _SMALLEST_BLOCK:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        table = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, _KEY_BYTES)
        name = hashlib.sha256(b"".join(keys)).hexdigest()[:24] + ".safetensors"
        handle, scratch = tempfile.mkstemp(dir=self.folder, suffix=".part")
        os.close(handle)
        try:
            save_file({"keys": table, "features": np.ascontiguousarray(features)}, scratch)
            os.replace(scratch, self.folder / name)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise
        self._seen.add(name)
        self._places.update({key: (self.folder / name, row) for row, key in enumerate(keys)})


def content_key(item: Any) -> bytes:
    """A 128-bit digest of an item's content: an image's shape and pixels, or a text's characters.

    Raises:
        TypeError: If it is neither a string nor a uint8 array of height x width x 3.
    """
    if isinstance(item, str):
        return hashlib.blake2b(item.encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES, person=b"text").digest()
    if isinstance(item, np.ndarray) and item.dtype == np.uint8 and item.ndim == 3 and item.shape[2] == 3:
        digest = hashlib.blake2b(repr(item.shape).encode(), digest_size=_KEY_BYTES, person=b"image")
        digest.update(np.ascontiguousarray(item).data)
        return digest.digest()
    shape = f"{item.dtype} {item.shape}" if isinstance(item, np.ndarray) else type(item).__name__
    raise TypeError(f"an item must be a string or a uint8 array of (height, width, 3), got {shape}")


def digest_of(files: Sequence[Path]) -> str:
    """SHA-256 over the names and contents of files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda p: p.name):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _load(path: Path, tensor: str) -> np.ndarray | None:
    """One array of a block; None if the block is gone or damaged."""
    try:
        with safe_open(path, framework="np") as block:
            array: np.ndarray = block.get_tensor(tensor)
            return array
    except (OSError, SafetensorError, KeyError):
        return None
