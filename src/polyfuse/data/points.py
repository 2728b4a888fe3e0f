"""Point sets of LiDAR, radar and depth sensors: files to ``(N, 3 + F)`` numbers, or the reason why not.

Formats, told by the ending: ``.npy``; ``.npz`` (``points``); ``.csv`` and ``.txt`` (with or without a header); ``.bin``
(KITTI: float32 x, y, z, intensity); ``.pcd`` (ascii, binary); ``.ply`` (ascii). Compressed PCD and binary PLY are not
read. The first three columns are x, y, z; a point with NaN among them is no point (how sensors mark no return).
"""

import io
import os

import numpy as np

from polyfuse.data.npz import read_npz
from polyfuse.data.problems import Broken

ENDINGS = (".npy", ".npz", ".csv", ".txt", ".bin", ".pcd", ".ply")
MOST_BYTES = 1 << 28
_PCD_KINDS = {"F": "f", "I": "i", "U": "u"}


def read_points(source: str | bytes, ending: str) -> np.ndarray:
    """``(N, 3 + F)`` float64, NaN points left out; N may be 0.

    Args:
        source: A path, or what a file holds.
        ending: One of ``ENDINGS``.

    Raises:
        Broken: ``wrong type``, ``wrong shape``, ``truncated``, ``undecodable``, ``not finite`` or ``too large``.
    """
    size = len(source) if isinstance(source, bytes) else os.path.getsize(source)
    if size > MOST_BYTES:
        raise Broken("too large", f"{size} bytes")
    if ending == ".npz":
        found = read_npz(source, ("points",), MOST_BYTES)
        if "points" not in found:
            raise Broken("wrong type", "an archive without 'points'")
        return clean_points(found["points"])
    readers = {".bin": _kitti, ".pcd": _pcd, ".ply": _ply, ".csv": _csv, ".txt": _csv}
    if ending not in readers:
        raise Broken("wrong type", f"expected a list of points or a file of {', '.join(ENDINGS)}")
    if isinstance(source, str):
        with open(source, "rb") as file:
            source = file.read()
    try:
        return clean_points(readers[ending](source))
    except Broken:
        raise
    except Exception as error:  # numbers where words are, words where numbers are
        raise Broken("undecodable", (str(error).splitlines() or [""])[0][:80]) from None


def clean_points(array: np.ndarray) -> np.ndarray:
    """Checked and without the points that have no place.

    Example:
        >>> clean_points(np.array([[1.0, 2.0, 3.0, 0.5], [np.nan, 0.0, 0.0, 0.1]])).shape
        (1, 4)
    """
    if array.dtype.kind not in "fiub":
        raise Broken("wrong type", f"an array of {array.dtype}")
    if array.size == 0 or (array.dtype.kind == "f" and np.isnan(array).all()):
        return np.zeros((0, 3))
    if array.ndim != 2 or array.shape[1] < 3:
        raise Broken("wrong shape", f"expected (points, 3 or more), got {array.shape}")
    values = np.asarray(array, dtype=np.float64)
    if np.isinf(values).any():
        raise Broken("not finite", "holds an infinite value")
    return values[~np.isnan(values[:, :3]).any(axis=1)]


def subsample(points: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` of the points, in their order: which depends on how many there are and on nothing else."""
    if len(points) <= count:
        return points
    chosen = np.random.default_rng((0x706F696E, len(points))).permutation(len(points))[:count]
    return points[np.sort(chosen)]


def _kitti(data: bytes) -> np.ndarray:
    if len(data) % 16:
        raise Broken("truncated", f"{len(data)} bytes are no whole number of points of 16")
    return np.frombuffer(data, dtype="<f4").reshape(-1, 4)


def _csv(data: bytes) -> np.ndarray:
    lines = [line for line in data.decode("utf-8").splitlines() if line.strip()]
    if not lines:
        return np.zeros((0, 3))
    sign = next((sign for sign in ",;\t" if sign in lines[0]), None)
    try:
        [float(word or "nan") for word in lines[0].split(sign)]
    except ValueError:
        lines = lines[1:]  # a header
    rows = [[float(word.strip() or "nan") for word in line.split(sign)] for line in lines]
    if len({len(row) for row in rows}) > 1:
        raise Broken("wrong shape", "rows of several lengths")
    return np.array(rows) if rows else np.zeros((0, 3))


def _head_lines(data: bytes, last: str) -> tuple[dict[str, list[str]], list[list[str]], bytes]:
    """The header's words by their first and in order, up to the line that begins with ``last``, and what follows."""
    words: list[list[str]] = []
    stream = io.BytesIO(data)
    for _ in range(1000):
        line = stream.readline(4096)
        if not line:
            raise Broken("truncated", "ends in its header")
        if not line.startswith(b"#") and line.strip():
            words.append(line.decode("ascii").split())
            if words[-1][0] == last:
                return {word[0]: word[1:] for word in words}, words, stream.read()
    raise Broken("undecodable", "no end of the header")


def _xyz_first(names: list[str], values: np.ndarray) -> np.ndarray:
    """Columns x, y, z and then the others; packed colours are left out."""
    lower = [name.lower() for name in names]
    if not {"x", "y", "z"} <= set(lower):
        raise Broken("wrong shape", f"fields x, y, z are needed, got {names}")
    rest = [i for i, name in enumerate(lower) if name not in ("x", "y", "z", "rgb", "rgba", "_")]
    return values[:, [*(lower.index(axis) for axis in "xyz"), *rest]]


def _pcd(data: bytes) -> np.ndarray:
    if b"DATA" not in data[:8192] or b"FIELDS" not in data[:8192]:
        raise Broken("wrong type", "no PCD header")
    head, _, body = _head_lines(data, "DATA")
    names, count = head["FIELDS"], int(head["POINTS"][0] if "POINTS" in head else head["WIDTH"][0])
    sizes = [int(word) for word in head["SIZE"]]
    times = [int(word) for word in head.get("COUNT", ["1"] * len(names))]
    if not 0 <= count <= MOST_BYTES or not len(names) == len(sizes) == len(times) == len(head["TYPE"]):
        raise Broken("undecodable", "its header contradicts itself")
    wide = [f"{name}" if n == 1 else "_" for name, n in zip(names, times, strict=True) for _ in range(n)]
    if head["DATA"][0] == "ascii":
        return _xyz_first(wide, _table(body, count, len(wide)))
    if head["DATA"][0] != "binary":
        raise Broken("wrong type", f"PCD data '{head['DATA'][0]}' is not read; save it as ascii or binary")
    kinds = [f"<{_PCD_KINDS[kind]}{size}" for kind, size in zip(head["TYPE"], sizes, strict=True)]
    layout = np.dtype([(f"f{i}", kind, (n,)) for i, (kind, n) in enumerate(zip(kinds, times, strict=True))])
    if len(body) < count * layout.itemsize:
        raise Broken("truncated", f"{len(body)} of {count * layout.itemsize} bytes")
    rows = np.frombuffer(body, dtype=layout, count=count)
    return _xyz_first(wide, np.concatenate([rows[name].astype(np.float64) for name in layout.names or ()], axis=1))


def _ply(data: bytes) -> np.ndarray:
    if not data.startswith(b"ply"):
        raise Broken("wrong type", "no PLY header")
    head, words, body = _head_lines(data, "end_header")
    if head["format"][0] != "ascii":
        raise Broken("wrong type", f"PLY format '{head['format'][0]}' is not read; save it as ascii")
    elements = [i for i, word in enumerate(words) if word[0] == "element"]
    if not elements or words[elements[0]][1] != "vertex":
        raise Broken("wrong shape", "the first element must be the vertices")
    end = elements[1] if len(elements) > 1 else len(words)
    names = [word[-1] for word in words[elements[0] : end] if word[0] == "property"]
    return _xyz_first(names, _table(body, int(words[elements[0]][2]), len(names)))


def _table(body: bytes, count: int, width: int) -> np.ndarray:
    """The first ``count`` lines of numbers."""
    lines = [line for line in body.decode("ascii").splitlines() if line.strip()][: max(count, 0)]
    rows = [[float(word) for word in line.split()] for line in lines]
    if len(rows) < count or (rows and len(rows[-1]) < width):
        raise Broken("truncated", f"{len(rows)} of {count} points")
    if any(len(row) != width for row in rows):
        raise Broken("wrong shape", f"a point without its {width} numbers")
    return np.array(rows).reshape(-1, width)
