"""Point sets to a bounded number of points, centred and scaled as the training rows say."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, ClassVar

import numpy as np

from polyfuse.data.codecs import Cells, Codec, Encoding, Reading, decode_cells, find_file, source_of
from polyfuse.data.codecs_array import parse_array
from polyfuse.data.codecs_tabular import CLIP, Moments
from polyfuse.data.points import ENDINGS, clean_points, read_points, subsample
from polyfuse.data.problems import Broken
from polyfuse.data.schema import ModalityConfig
from polyfuse.data.spec import ModalitySpec


def as_points(cell: Any, reading: Reading) -> np.ndarray | None:
    """``(N, 3 + F)`` float64 of a cell: a list, a JSON list or a file; None if it holds no point.

    Raises:
        Broken: If it cannot be used.
    """
    name = cell.get("path") if isinstance(cell, Mapping) else cell
    ending = PurePosixPath(name).suffix.lower() if isinstance(name, str) and not name.startswith("[") else ""
    if ending in ENDINGS and ending != ".npy":
        source = source_of(cell, reading)
        points = read_points(source, ending)
    else:
        if ending and ending != ".npy":
            find_file(str(name), reading)
            raise Broken("wrong type", f"expected a list of points or a file of {', '.join(ENDINGS)}")
        points = clean_points(np.asarray(parse_array(cell, reading)))
    return points if len(points) else None


@dataclass
class PointsCodec(Codec):
    """Point sets to ``{"points": float32 (B, N, C), "mask": bool (B, N)}``.

    Coordinates lose the training points' centre and are divided by their root mean square distance from it, all three
    axes alike, so that shapes stay; every further value is standardised by itself.
    """

    count: int = 1024
    mean: list[float] = field(default_factory=list)
    scale: list[float] = field(default_factory=list)
    type: ClassVar[str] = "points"

    @property
    def spec(self) -> ModalitySpec:
        """Points and channels."""
        return ModalitySpec(self.name, "points", {"count": self.count, "channels": len(self.mean)})

    @classmethod
    def fit(
        cls, name: str, config: ModalityConfig, train: Callable[[], Iterator[Cells]], reading: Reading
    ) -> "PointsCodec | None":
        """The commonest number of channels, centre, radius and the moments of further values."""
        moments: dict[int, Moments] = {}
        sets: Counter[int] = Counter()
        for cells in train():
            found, _ = decode_cells(cells[0], lambda cell: as_points(cell, reading), reading.pool)
            for points in found:
                if points is not None:
                    width = points.shape[1]
                    moments.setdefault(width, Moments(width)).add(subsample(points, config.count))
                    sets[width] += 1
        if not sets:
            return None
        width = max(sets, key=lambda w: (sets[w], -w))
        measured = moments[width]
        spread = measured.square[:3] / np.maximum(measured.count[:3], 1)
        radius = float(np.sqrt(spread.sum())) or 1.0
        scale = [radius] * 3 + measured.std[3:].tolist()
        return cls(name, config.all_columns, count=config.count, mean=measured.mean.tolist(), scale=scale)

    def encode(self, cells: Cells, reading: Reading) -> Encoding:
        """Subsample, centre, scale and pad."""
        width = len(self.mean)

        def decode(cell: Any) -> np.ndarray | None:
            points = as_points(cell, reading)
            if points is None:
                return None
            if points.shape[1] != width:
                raise Broken("wrong shape", f"expected {width} values a point, got {points.shape[1]}")
            scaled = (subsample(points, self.count) - np.array(self.mean)) / np.array(self.scale)
            return np.nan_to_num(scaled.clip(-CLIP, CLIP))  # a further value that is missing is the mean

        sets, problems = decode_cells(cells[0], decode, reading.pool)
        out = self.zeros(len(sets))
        for i, points in enumerate(sets):
            if points is not None:
                out["points"][i, : len(points)] = points
                out["mask"][i, : len(points)] = True
        return Encoding(out, np.array([points is not None for points in sets], dtype=bool), problems)

    def state(self) -> dict[str, Any]:
        """Count, centre and scale."""
        return {"count": self.count, "mean": self.mean, "scale": self.scale}
