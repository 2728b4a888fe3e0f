"""Files of region features, as detectors for vision and language models leave them; read picture by picture.

``read_tsv``: a line per picture, arrays as base64 of float32, boxes in pixels: the format of bottom-up attention
(Anderson et al. 2018, https://arxiv.org/abs/1707.07998; its repository's ``tools/generate_tsv.py``) and, with other
columns, of LXMERT (``src/utils.py`` of airsplay/lxmert). ``read_npz``: a file per picture, as UNITER's detector writes
it (``features``, ``norm_bb``, ``conf``, ``soft_labels``; ``scripts/convert_imgdir.py`` of ChenRocks/UNITER, which packs
them into the LMDB that is given out: that is not read) and the PyTorch conversions of bottom-up attention have it
(``x``, ``bbox``, ``image_w``, ``image_h``; MILVLG/bottom-up-attention.pytorch, OpenVQA). Pickled parts are never read.

Regions are in the file's order. That is by confidence in files of exactly 36 regions, and in UNITER's; in those of 10
to 100 it is only where a picture has one of these two numbers.

Shapes: R regions, F features, C classes.
"""

import base64
import binascii
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polyfuse.data.problems import Broken, Problems
from polyfuse.errors import UserError

BOTTOM_UP = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LXMERT = (
    "img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes",
    "features",
)  # fmt: skip
#: COCO's names of 2014 and 2017, and what UNITER puts before them.
_COCO = re.compile(r"(?:(?:\w+_)?coco_[a-z0-9]+_)?(\d{12})(?:\.jpg)?", re.IGNORECASE)
MAX_REGIONS = 1024
MAX_LINE = 64 << 20
MAX_ARRAY_BYTES = 64 << 20


@dataclass(frozen=True)
class PictureRegions:
    """What a detector found in one picture.

    Attributes:
        image_id: The picture's name in the file; for npz the file's own name without ending. A COCO picture is named
            by its number as in COCO's annotations: 9 for ``COCO_train2014_000000000009``, which LXMERT, UNITER and
            OpenVQA have.
        features: ``(R, F)`` float32.
        boxes: ``(R, 4)`` float32: x0, y0, x1, y1 as shares of width and height.
        classes: ``(R, C)`` float32 probabilities; None = there are none.
    """

    image_id: str
    features: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray | None = None


def read_tsv(path: Path, problems: Problems, *, columns: Sequence[str] | None = None) -> Iterator[PictureRegions]:
    """Pictures of a TSV file, a line at a time.

    Args:
        path: The file; it has no header.
        problems: Lines that cannot be used are counted under ``regions``, and left out.
        columns: Names of the columns; None = ``BOTTOM_UP`` or ``LXMERT``, by their number.

    Raises:
        UserError: If the file cannot be read, or its first line has another number of columns.
    """
    width: int | None = None
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE), b"")):
                cells = line.rstrip(b"\r\n").split(b"\t")
                if columns is None:
                    columns = next((c for c in (BOTTOM_UP, LXMERT) if len(c) == len(cells)), None)
                    if columns is None:
                        raise UserError(
                            f"'{path}' must have {len(BOTTOM_UP)} (bottom-up) or {len(LXMERT)} (LXMERT) columns "
                            f"between tabs, its first line has {len(cells)}"
                        )
                try:
                    found = _line(cells, columns, width)
                except Broken as broken:
                    problems.add("regions", broken.kind, number, broken.detail)
                    continue
                width = found.features.shape[1]
                yield found
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from None


def _line(cells: list[bytes], columns: Sequence[str], width: int | None) -> PictureRegions:
    if len(cells) != len(columns):
        raise Broken("truncated", f"{len(cells)} columns, expected {len(columns)}")
    row = dict(zip(columns, cells, strict=True))
    try:
        name = row["img_id" if "img_id" in row else "image_id"].decode()
        image_w, image_h = (float(row[f"image_{s}" if f"image_{s}" in row else f"img_{s}"]) for s in "wh")
        count = int(row["num_boxes"])
    except (ValueError, KeyError) as error:
        raise Broken("wrong type", str(error)[:60]) from None
    if not 0 <= count <= MAX_REGIONS:
        raise Broken("wrong shape", f"{name}: {count} regions, at most {MAX_REGIONS}")
    boxes, features = _floats(row, "boxes", count, name), _floats(row, "features", count, name)
    classes = _floats(row, "cls_prob", count, name) if "cls_prob" in row else None
    return _checked(name, features, _shares(boxes, image_w, image_h, name), classes, width)


def _floats(row: Mapping[str, bytes], column: str, count: int, name: str) -> np.ndarray:
    try:
        raw = base64.b64decode(row[column], validate=True)
    except (binascii.Error, ValueError):
        raise Broken("undecodable", f"{name}: '{column}' is no base64") from None
    if len(raw) % (4 * max(count, 1)) or (count == 0 and raw):
        raise Broken("truncated", f"{name}: '{column}' has {len(raw)} bytes for {count} regions")
    return np.frombuffer(raw, dtype="<f4").reshape(count, -1 if count else 0).astype(np.float32)


def _shares(boxes: np.ndarray, width: float, height: float, name: str) -> np.ndarray:
    if not (math.isfinite(width) and math.isfinite(height) and width > 0 and height > 0):
        raise Broken("wrong shape", f"{name}: the picture has size {width} x {height}")
    if boxes.size and boxes.shape[1:] != (4,):
        raise Broken("wrong shape", f"{name}: boxes of shape {boxes.shape}")
    scale = np.array([width, height, width, height], dtype=np.float32)
    return boxes.reshape(-1, 4) / scale


def _checked(
    name: str, features: np.ndarray, boxes: np.ndarray, classes: np.ndarray | None, width: int | None
) -> PictureRegions:
    if features.ndim != 2 or len(features) != len(boxes) or (classes is not None and len(classes) != len(boxes)):
        raise Broken("wrong shape", f"{name}: features {features.shape}, boxes {boxes.shape}")
    if not len(features):
        raise Broken("wrong shape", f"{name}: no region")
    if width is not None and features.shape[1] != width:
        raise Broken("wrong shape", f"{name}: {features.shape[1]} features, before {width}")
    arrays = [features, boxes] if classes is None else [features, boxes, classes]
    if not all(np.isfinite(array).all() for array in arrays):
        raise Broken("not finite", name)
    if boxes.min() < -0.01 or boxes.max() > 1.01:  # detectors round; a box in pixels is far outside
        raise Broken("wrong shape", f"{name}: boxes from {boxes.min():.3g} to {boxes.max():.3g} of the picture's side")
    number = _COCO.fullmatch(name)
    return PictureRegions(str(int(number[1])) if number else name, features, boxes.clip(0, 1), classes)


def read_npz(folder: Path, problems: Problems) -> Iterator[PictureRegions]:
    """Pictures of a folder with an ``.npz`` file each, in the order of their names.

    Args:
        folder: Of the files.
        problems: Files that cannot be used are counted under ``regions``, and left out.

    Raises:
        UserError: If there is no such file.
    """
    names = sorted(path.name for path in folder.glob("*.npz"))
    if not names:
        raise UserError(f"'{folder}' must hold .npz files of region features, found none")
    width: int | None = None
    for number, name in enumerate(names):
        try:
            found = _npz(folder / name, width)
        except Broken as broken:
            problems.add("regions", broken.kind, number, broken.detail or name)
            continue
        width = found.features.shape[1]
        yield found


def _npz(path: Path, width: int | None) -> PictureRegions:
    name = path.stem
    try:
        with zipfile.ZipFile(path) as bundle:
            held = set(bundle.namelist())

            def array(key: str) -> np.ndarray:
                return _member(bundle, f"{key}.npy", path.name)

            if {"features.npy", "norm_bb.npy"} <= held:
                features, boxes = array("features"), array("norm_bb")[:, :4]
                classes = array("soft_labels") if "soft_labels.npy" in held else None
            elif {"x.npy", "bbox.npy", "image_w.npy", "image_h.npy"} <= held:
                features, corners, classes = array("x"), array("bbox"), None
                if features.ndim == 2 and len(features) != len(corners) and features.shape[1] == len(corners):
                    features = features.T  # OpenVQA's files lie on their side
                boxes = _shares(corners, array("image_w").item(), array("image_h").item(), name)
            else:
                raise Broken("wrong type", f"{path.name}: holds {', '.join(sorted(held)[:6])}")
    except Broken:
        raise
    except (
        OSError,
        ValueError,
        IndexError,
        TypeError,
        EOFError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise Broken("undecodable", f"{path.name}: {str(error)[:60]}") from None
    return _checked(name, features, boxes, classes, width)


def _member(bundle: zipfile.ZipFile, key: str, name: str) -> np.ndarray:
    """An array of plain numbers; its size is checked before it is made."""
    with bundle.open(key) as stream:
        read_header: Callable = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(np.lib.format.read_magic(stream), _unknown)
        shape, fortran, dtype = read_header(stream)
        if dtype.kind not in "fiu":
            raise Broken("wrong type", f"{name}: '{key}' holds {dtype}")
        size = math.prod(shape) * dtype.itemsize
        if size > MAX_ARRAY_BYTES:
            raise Broken("wrong shape", f"{name}: '{key}' has {size} bytes, at most {MAX_ARRAY_BYTES}")
        raw = stream.read(size)
    if len(raw) != size:
        raise Broken("truncated", f"{name}: '{key}'")
    return np.frombuffer(raw, dtype=dtype).reshape(shape, order="F" if fortran else "C").astype(np.float32)


def _unknown(stream: object) -> None:
    raise ValueError("an .npy of another version")
