"""Tabular columns: standardised numbers with a mask, and categories with 0 for missing or unknown.

A column is numeric if at least 90 % of its filled training cells are finite numbers, else categorical; the schema's
``numeric`` and ``categorical`` decide otherwise. A row is absent only if all its cells are empty.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from polyfuse.data.codecs import Cells, Codec, Encoding, Reading, numbers, show
from polyfuse.data.schema import ModalityConfig
from polyfuse.data.spec import ModalitySpec
from polyfuse.data.table_csv import BadText

NUMERIC_SHARE = 0.9
CLIP = 10.0


class Moments:
    """Mean and spread of a stream, per column, NaN ignored (Chan, Golub and LeVeque 1983)."""

    def __init__(self, width: int) -> None:
        self.count = np.zeros(width)
        self.mean = np.zeros(width)
        self.square = np.zeros(width)

    def add(self, values: np.ndarray) -> None:
        """``(n, width)`` float64 with NaN for missing."""
        here = ~np.isnan(values)
        count = here.sum(0)
        mean = np.where(here, values, 0.0).sum(0) / np.maximum(count, 1)
        square = (np.where(here, values - mean, 0.0) ** 2).sum(0)
        total = np.maximum(self.count + count, 1)
        shift = np.where(count > 0, mean - self.mean, 0.0)
        self.square += square + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count += count

    @property
    def std(self) -> np.ndarray:
        """Standard deviation; 1 where the column is constant."""
        std = np.sqrt(self.square / np.maximum(self.count, 1))
        return np.where(std > 1e-12 * np.maximum(np.abs(self.mean), 1e-300), std, 1.0)


@dataclass
class TabularCodec(Codec):
    """Cells to ``{"numeric", "numeric_mask", "categorical"}``."""

    numeric: list[str] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    categorical: dict[str, list[str]] = field(default_factory=dict)
    type: ClassVar[str] = "tabular"

    def __post_init__(self) -> None:
        self._levels = {
            name: {level: code for code, level in enumerate(levels, start=1)}
            for name, levels in self.categorical.items()
        }

    @property
    def spec(self) -> ModalitySpec:
        """Counts of numbers and of levels per category, 0 included."""
        cardinalities = [len(levels) + 1 for levels in self.categorical.values()]
        return ModalitySpec(self.name, "tabular", {"numeric": len(self.numeric), "cardinalities": cardinalities})

    @classmethod
    def fit(
        cls, name: str, config: ModalityConfig, train: Callable[[], Iterator[Cells]], reading: Reading
    ) -> "TabularCodec | None":
        """Which columns are numbers, their mean and spread, and the levels of the others."""
        columns = config.all_columns
        moments = Moments(len(columns))
        filled = np.zeros(len(columns), int)
        for cells in train():
            moments.add(np.stack([numbers(column)[0] for column in cells], axis=1))
            filled += [sum(_is_text(cell) for cell in column) for column in cells]
        numeric = moments.count
        codec = cls(name, columns)
        for c, column_name in enumerate(columns):
            as_number = column_name in config.numeric or (
                column_name not in config.categorical and numeric[c] >= NUMERIC_SHARE * filled[c]
            )
            if not filled[c] or (as_number and not numeric[c]):
                what = "has no number" if filled[c] else "is empty"
                codec.notes.append(f"{name}: column '{column_name}' {what} in the training rows and is left out")
            elif as_number:
                codec.numeric.append(column_name)
                codec.mean.append(float(moments.mean[c]))
                codec.std.append(float(moments.std[c]))
            else:
                codec.categorical[column_name] = []
        if not codec.numeric and not codec.categorical:
            return None
        codec._fit_levels(train, config.max_categories)
        codec.__post_init__()
        return codec

    def _fit_levels(self, train: Callable[[], Iterator[Cells]], most: int) -> None:
        """Give the most frequent levels a code, in a stable order."""
        counts: dict[str, Counter[str]] = {column: Counter() for column in self.categorical}
        for cells in train() if counts else ():
            for column, values in zip(self.columns, cells, strict=True):
                if column in counts:
                    counts[column].update(str(cell) for cell in values if _is_text(cell))
        for column, levels in counts.items():
            ordered = sorted(levels, key=lambda level: (-levels[level], level))
            if len(ordered) > most:
                self.notes.append(
                    f"{self.name}: column '{column}' has {len(ordered)} categories; the {most} most frequent are kept, "
                    "see max_categories"
                )
            self.categorical[column] = sorted(ordered[:most])

    def encode(self, cells: Cells, reading: Reading) -> Encoding:
        """Encode column by column."""
        rows = len(cells[0])
        by_name = dict(zip(self.columns, cells, strict=True))
        out = self.zeros(rows)
        problems: list[tuple[int, str, str]] = []
        present = np.zeros(rows, dtype=bool)
        for f, name in enumerate(self.numeric):
            values, bad = numbers(by_name[name])
            here = ~np.isnan(values)
            out["numeric"][:, f] = np.where(here, ((values - self.mean[f]) / self.std[f]).clip(-CLIP, CLIP), 0.0)
            out["numeric_mask"][:, f] = here
            present |= here
            problems += [(i, kind, f"{name}={show(by_name[name][i])}") for i, kind in bad]
        for c, (name, codes) in enumerate(self._levels.items()):
            column = by_name[name]
            out["categorical"][:, c] = [0 if cell is None else codes.get(str(cell), 0) for cell in column]
            present |= np.array([_is_text(cell) for cell in column], dtype=bool)
            for i in np.flatnonzero(out["categorical"][:, c] == 0).tolist():
                if column[i] is not None:
                    kind = "unknown category" if _is_text(column[i]) else "bad UTF-8"
                    problems.append((i, kind, f"{name}={show(column[i])}"))
        return Encoding(out, present, problems)

    def state(self) -> dict[str, Any]:
        """Columns by kind, moments, levels."""
        return {"numeric": self.numeric, "mean": self.mean, "std": self.std, "categorical": self.categorical}


def _is_text(cell: Any) -> bool:
    """Filled and readable."""
    return cell is not None and type(cell) is not BadText
