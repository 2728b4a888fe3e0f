"""Arrays come out of a pickle equal to numpy's own reading; whatever else a pickle asks for is refused and not run."""

import collections
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyfuse.data.pickled import read_pickled_npy
from polyfuse.errors import UserError

from ..datasets.fixtures import watch_recordings, write_npy


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_equals_numpys_own_reading(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "a.npy"
    thing = watch_recordings()
    thing["fortran"] = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    thing["big endian"] = np.arange(4, dtype=">i4")
    write_npy(path, thing, protocol)
    read, own = read_pickled_npy(path), np.load(path, allow_pickle=True).item()
    assert read.keys() == own.keys()
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(read["X"], own["X"], strict=True))
    for key in ("y", "side", "subject", "fortran", "big endian"):
        assert read[key].dtype == own[key].dtype
        assert np.array_equal(read[key], own[key])
    assert (read["y_labels"], read["X_labels"]) == (own["y_labels"], own["X_labels"])


class Runs:
    """Unpickles by calling a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("made", "named"),
    [
        (lambda path: Runs(os.system, f"touch {path}"), "system"),
        (lambda path: Runs(eval, f"open({str(path)!r}, 'w')"), "eval"),
        (lambda path: Runs(getattr, path, "touch"), "getattr|Path"),
        (lambda path: Runs(np.load, str(path)), "load"),
        (lambda path: Runs(np.memmap, str(path), "u1", "w+", 0, (3,)), "memmap"),
        (lambda path: collections.OrderedDict(a=1), "OrderedDict"),
        (lambda path: np.ma.masked_array([1.0]), "numpy.ma"),
    ],
)
def test_anything_but_plain_arrays_is_refused_and_not_run(tmp_path: Path, made: Any, named: str, protocol: int) -> None:
    mark = tmp_path / "ran"
    write_npy(tmp_path / "evil.npy", {"X": made(mark)}, protocol)
    with pytest.raises(UserError, match=rf"evil.npy.*asks for .*({named}).* refused"):
        read_pickled_npy(tmp_path / "evil.npy")
    assert not mark.exists()


@pytest.mark.parametrize("value", [np.array(["text"]), np.array([(1, 2.0)], dtype="i4,f8"), np.array([1], "M8[s]")])
def test_structured_and_text_arrays_are_refused(tmp_path: Path, value: np.ndarray) -> None:
    write_npy(tmp_path / "a.npy", {"X": value})
    with pytest.raises(UserError, match=r"a.npy.*cannot be read"):
        read_pickled_npy(tmp_path / "a.npy")


def test_other_bytes_than_latin1_and_outside_objects_are_refused(tmp_path: Path) -> None:
    import codecs

    write_npy(tmp_path / "a.npy", {"X": Runs(codecs.encode, "a", "rot13")})
    with pytest.raises(UserError, match="latin1, got 'rot13'"):
        read_pickled_npy(tmp_path / "a.npy")
    header = (tmp_path / "a.npy").read_bytes()[:128]
    (tmp_path / "b.npy").write_bytes(header + b"Pname\n.")  # PERSID
    with pytest.raises(UserError, match="outside"):
        read_pickled_npy(tmp_path / "b.npy")


def test_damage_and_other_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    write_npy(path, watch_recordings())
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"a.npy.*damaged"):
        read_pickled_npy(path)
    np.save(path, np.arange(3))
    with pytest.raises(UserError, match="must hold one object, got int64"):
        read_pickled_npy(path)
    path.write_bytes(pickle.dumps({"X": 1}))
    with pytest.raises(UserError, match=r"a.npy"):
        read_pickled_npy(path)
