"""A codec turns the cells of one modality into its input form; it is fitted on training rows only.

Every codec answers the same question for every cell: usable, empty, or broken and how. Empty and broken are both
absent (zeros, ``present`` False); broken is also counted. Nothing a cell holds can raise out of ``encode``.
"""

import json
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from polyfuse.data.problems import Broken
from polyfuse.data.schema import ModalityConfig
from polyfuse.data.spec import ModalitySpec, input_layout
from polyfuse.data.table_csv import BadText

_PER_TASK = 8  # cells that one thread decodes at a time
Cells = Sequence[Sequence[Any]]  # one list of cells per column of the modality, all of the same length
_NUMPY = {"torch.uint8": np.uint8, "torch.int32": np.int32, "torch.int64": np.int64, "torch.int16": np.int16,
          "torch.bool": np.bool_, "torch.float32": np.float32}  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Attributes:
        folder: Relative paths start here; None refuses paths.
        allow_outside: Whether a path may lead out of ``folder``. A symbolic link is judged by where it ends.
        max_pixels: Images with more are broken.
        pool: Decodes files; None decodes one after the other.
    """

    folder: Path | None = None
    allow_outside: bool = False
    max_pixels: int = 50_000_000
    pool: ThreadPoolExecutor | None = None

    @cached_property
    def root(self) -> str | None:
        """``folder`` with its own links resolved."""
        return None if self.folder is None else os.path.realpath(self.folder)


class Encoding(NamedTuple):
    """One modality of some rows.

    Attributes:
        parts: Arrays by the keys of ``input_layout``, one row each.
        present: ``(n,)`` bool.
        problems: ``(row index, kind, detail)``.
    """

    parts: dict[str, np.ndarray]
    present: np.ndarray
    problems: list[tuple[int, str, str]]


@dataclass
class Codec(ABC):
    """One modality's encoder of cells.

    Attributes:
        name: The modality.
        columns: The columns it reads.
        notes: What was decided in fitting that the user should know.
    """

    name: str
    columns: tuple[str, ...]
    notes: list[str] = field(default_factory=list)
    type: ClassVar[str] = ""

    @property
    @abstractmethod
    def spec(self) -> ModalitySpec:
        """The shape of what ``encode`` returns."""

    @classmethod
    @abstractmethod
    def fit(
        cls, name: str, config: ModalityConfig, train: Callable[[], Iterator[Cells]], reading: Reading
    ) -> "Codec | None":
        """Learn from training cells (``train`` starts over at each call); None if no training row has this modality."""

    @abstractmethod
    def encode(self, cells: Cells, reading: Reading) -> Encoding:
        """Encode rows."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What ``fit`` learned, JSON-able: the constructor's keywords beyond ``name`` and ``columns``."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"type": self.type, "name": self.name, "columns": list(self.columns), **self.state()}

    def zeros(self, rows: int) -> dict[str, np.ndarray]:
        """The input of absent rows."""
        return zeros(self.spec, rows)


def zeros(spec: ModalitySpec, rows: int) -> dict[str, np.ndarray]:
    """Zeros in the layout of a modality."""
    return {key: np.zeros((rows, *shape), _NUMPY[str(kind)]) for key, (shape, kind) in input_layout(spec).items()}


def clean(cells: Iterable[Any], nulls: frozenset[str]) -> list[Any]:
    """Outer spaces off, null words to None.

    Example:
        >>> clean([" a ", "NaN", "", None, [1]], frozenset({"", "NaN"}))
        ['a', None, None, None, [1]]
    """
    out = []
    for cell in cells:
        if type(cell) is str:
            cell = cell.strip()
            out.append(None if cell in nulls else cell)
        elif isinstance(cell, float) and cell != cell:
            out.append(None)
        else:
            out.append(cell)
    return out


def numbers(cells: Sequence[Any]) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Cells as float64, NaN where empty or unusable, and the unusable ones as ``(index, kind)``.

    Example:
        >>> numbers(["1.5", None, "abc", "inf"])
        (array([1.5, nan, nan, nan]), [(2, 'not a number'), (3, 'infinite number')])
    """
    values = np.full(len(cells), np.nan)
    bad: list[tuple[int, str]] = []
    for i, cell in enumerate(cells):
        if cell is None:
            continue
        try:
            value = float(cell) if "_" not in cell else np.nan
        except (TypeError, ValueError):
            value = np.nan
        if value - value == 0:
            values[i] = value
        else:
            bad.append((i, "infinite number" if value in (np.inf, -np.inf) else "not a number"))
    return values, bad


def find_file(cell: str, reading: Reading) -> str:
    """The real path of a file that a cell names.

    Raises:
        Broken: If it leads out of the folder (also through a symbolic link), does not exist, is no regular file or
            has no bytes.
    """
    if "://" in cell[:12]:
        raise Broken("web address", "files are read from the table's folder, never fetched")
    root = reading.root
    try:
        if root is None and not (reading.allow_outside and os.path.isabs(cell)):
            raise Broken("outside the folder", "no folder is open to read from")
        real = os.path.realpath(os.path.join(root or "/", cell))
        if not reading.allow_outside and not real.startswith(os.path.join(str(root), "")) and real != root:
            raise Broken("outside the folder", "data.allow_outside: true permits it")
        info = os.stat(real)
    except (FileNotFoundError, NotADirectoryError):
        raise Broken("missing file") from None
    except ValueError:  # a zero byte in the path
        raise Broken("missing file", "not a path") from None
    except OSError as error:
        raise Broken("missing file" if error.errno == 36 else "unreadable", error.strerror or "") from None
    if stat.S_ISDIR(info.st_mode):
        raise Broken("directory")
    if not stat.S_ISREG(info.st_mode):
        raise Broken("not a file")
    if info.st_size == 0:
        raise Broken("zero bytes")
    return real


def source_of(cell: Any, reading: Reading) -> str | bytes:
    """What to decode: the path a string names, or the bytes the table itself holds.

    Raises:
        Broken: As ``find_file``; also for a cell that is neither.
    """
    if isinstance(cell, Mapping):  # how Hugging Face's tables hold files
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        if not cell:
            raise Broken("zero bytes")
        return cell
    if isinstance(cell, BadText):
        raise Broken("missing file", "its name is not UTF-8")
    if not isinstance(cell, str):
        raise Broken("wrong type", f"expected a path, got {type(cell).__name__}")
    return find_file(cell, reading)


def decode_cells(
    cells: Sequence[Any], decode: Callable[[Any], Any], pool: ThreadPoolExecutor | None
) -> tuple[list[Any], list[tuple[int, str, str]]]:
    """Apply ``decode`` to every cell that is not None, order kept; broken ones become None and a problem."""
    results: Iterator[Any]

    def one(cell: Any) -> Any:
        try:
            return decode(cell)
        except Broken as broken:
            return broken

    full = [i for i, cell in enumerate(cells) if cell is not None]
    work = [cells[i] for i in full]
    if pool is None or len(work) < 2 * _PER_TASK:
        results = map(one, work)
    else:
        tasks = [work[start : start + _PER_TASK] for start in range(0, len(work), _PER_TASK)]
        results = chain.from_iterable(pool.map(lambda part: list(map(one, part)), tasks))
    values: list[Any] = [None] * len(cells)
    problems = []
    for i, result in zip(full, results, strict=True):
        if isinstance(result, Broken):
            problems.append((i, result.kind, ", ".join(part for part in (show(cells[i]), result.detail) if part)))
        else:
            values[i] = result
    return values, problems


def show(cell: Any) -> str:
    """A cell in a message, short."""
    if isinstance(cell, bytes):
        return f"{len(cell)} bytes"
    if isinstance(cell, Mapping):
        return f"file {cell.get('path') or ''}".strip()
    text = repr(cell) if isinstance(cell, str) else json.dumps(cell, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def codec_types() -> dict[str, type[Codec]]:
    """Every codec class by the name it is saved under."""
    from polyfuse.data.codecs_array import SeriesCodec, VectorCodec
    from polyfuse.data.codecs_audio import AudioCodec
    from polyfuse.data.codecs_frozen import FrozenCodec
    from polyfuse.data.codecs_image import ImageCodec
    from polyfuse.data.codecs_points import PointsCodec
    from polyfuse.data.codecs_tabular import TabularCodec
    from polyfuse.data.codecs_text import TextCodec
    from polyfuse.data.codecs_video import VideoCodec

    classes: tuple[type[Codec], ...] = (
        ImageCodec, TextCodec, AudioCodec, TabularCodec, SeriesCodec, VectorCodec, VideoCodec, PointsCodec,
        FrozenCodec,
    )  # fmt: skip
    return {cls.type: cls for cls in classes}


def codec_from_dict(value: Mapping[str, Any]) -> Codec:
    """The inverse of ``Codec.to_dict``."""
    state = {key: part for key, part in value.items() if key not in ("type", "columns")}
    return codec_types()[value["type"]](columns=tuple(value["columns"]), **state)


def restartable(source: Iterable[Cells]) -> Callable[[], Iterator[Cells]]:
    """A ``train`` argument from cells held in memory."""
    held = list(source)
    return lambda: iter(held)
