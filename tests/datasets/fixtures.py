"""Small files of the formats the data sets are read from, laid where ``fetch`` would have put them."""

import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyfuse.data.fetch as fetching
from polyfuse.data.packages import FETCHABLE


def lay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, write: Callable[[Path], None]) -> Path:
    """A complete cache folder of ``name`` under ``tmp_path``, filled by ``write``; nothing is downloaded."""
    monkeypatch.setenv("POLYFUSE_CACHE", str(tmp_path / "cache"))
    folder = fetching._folder(name, FETCHABLE[name])
    folder.mkdir(parents=True)
    write(folder)
    (folder / fetching.RECORD).write_text(json.dumps({"packages": [{"files": {}}]}))
    return folder


def write_htad(folder: Path) -> None:
    rng = np.random.default_rng(1)
    header = ["class", *(f"v1_mfcc{i}" for i in range(36)), *(f"v2_a{i}" for i in range(16))]
    lines = [",".join(header)]
    for row in range(70):
        values = rng.normal(size=52) + row % 7
        lines.append(",".join([f"act{row % 7}", *(f"{v:.5f}" for v in values)]))
    (folder / "htad.csv").write_text("\n".join(lines) + "\n")


def write_mfeat(folder: Path) -> None:
    rng = np.random.default_rng(2)
    for view, width in {"fac": 216, "fou": 76, "kar": 64, "mor": 6, "pix": 240, "zer": 47}.items():
        lines = [",".join([*(str(c) for c in range(width)), "0"])]
        lines += [",".join([*(f"{v:.4f}" for v in rng.normal(size=width) + r % 10), str(r % 10)]) for r in range(100)]
        (folder / f"mfeat-{view}.csv").write_text("\n".join(lines) + "\n")


def write_av_digits(folder: Path) -> None:
    rng = np.random.default_rng(3)
    (folder / "mnist").mkdir()
    (folder / "fsdd").mkdir()
    pixels = rng.integers(0, 255, size=(200, 784)) * (rng.random(784) < 0.3)
    with gzip.open(folder / "mnist" / "mnist_5k.csv.gz", "wt") as stream:
        for row, image in enumerate(pixels):
            stream.write(",".join(map(str, [*image, row % 10])) + "\n")
    lengths = rng.integers(1, 9, size=100)
    np.savez(
        folder / "fsdd" / "digits.npz",
        X=rng.normal(size=(lengths.sum(), 13)).astype(np.float32),
        lengths=lengths,
        y=np.arange(100) % 10,
    )


def watch_recordings() -> dict[str, Any]:
    rng = np.random.default_rng(4)
    subjects = np.repeat(np.arange(1, 11), 7)
    return {
        "X": [rng.normal(size=(300 + 10 * r % 70, 6)) for r in range(70)],
        "y": np.tile(np.arange(7), 10),
        "side": np.ones(70),
        "subject": subjects,
        "y_labels": list("ABCDEFG"),
        "X_labels": ["ax", "ay", "az", "wx", "wy", "wz"],
    }


def write_npy(path: Path, thing: Any, protocol: int = 2) -> None:
    """What ``numpy.save`` writes for one pickled object."""
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": ()})
        boxed = np.empty((), dtype=object)
        boxed[()] = thing
        pickle.dump(boxed, stream, protocol=protocol)


def write_watch(folder: Path) -> None:
    write_npy(folder / "watch_dataset.npy", watch_recordings())
