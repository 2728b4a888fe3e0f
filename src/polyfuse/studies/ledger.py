"""The records of a study, indexed: ``(data set, kind, metric)`` to numbers by arm, run and subset.

A run is ``(split, seed)``. A data set with a variant is a data set of its own, named ``"htad, missing 0.7"``.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Run = tuple[int, int]
ByRun = dict[str, dict[Run, dict[str, float]]]
"""Numbers by arm, run and label (a subset, a modality, ...)."""

_TEXT = ("dataset", "variant", "arm", "kind", "subset", "corruption", "modality", "stage", "metric")
METRICS = ("accuracy", "macro_ap", "average_precision", "macro_f1", "r2")
"""What may rank the arms of a data set; ``accuracy`` comes last where another is recorded."""


class Entry(NamedTuple):
    """One row of the records, without its lists."""

    arm: str
    run: Run
    subset: str
    corruption: str
    modality: str
    stage: str
    value: float
    n: int
    place: int


def data_name(dataset: str, variant: str = "") -> str:
    """The name of a data set with a variant.

    Example:
        >>> data_name("htad", "missing 0.7")
        'htad, missing 0.7'
    """
    return f"{dataset}, {variant}" if variant else dataset


class Ledger:
    """Records by data set, kind and metric.

    Args:
        table: In the schema of ``studies.results.SCHEMA``.
    """

    def __init__(self, table: pa.Table) -> None:
        self._lists = {name: table[name] for name in ("keys", "values")}
        self._text = {name: _encoded(table[name]) for name in _TEXT}
        self._value = table["value"].to_numpy(zero_copy_only=False)
        self._n = table["n"].to_numpy(zero_copy_only=False)
        self._split = table["split"].to_numpy(zero_copy_only=False)
        self._seed = table["seed"].to_numpy(zero_copy_only=False)
        self._places: dict[tuple[str, str, str], NDArray[np.int64]] = {}
        names = ("dataset", "variant", "kind", "metric")
        codes = np.stack([self._text[name][0] for name in names]) if len(table) else np.zeros((4, 0), np.int64)
        kinds, inverse = np.unique(codes, axis=1, return_inverse=True)
        order = np.argsort(inverse.ravel(), kind="stable")
        ends = np.cumsum(np.bincount(inverse.ravel(), minlength=kinds.shape[1]))
        for column, rows in zip(kinds.T, np.split(order, ends[:-1]), strict=False):
            dataset, variant, kind, metric = (
                str(self._text[name][1][code]) for name, code in zip(names, column, strict=True)
            )
            self._places[data_name(dataset, variant), kind, metric] = rows
        # In the order of the records.
        first: dict[str, int] = {}
        for (data, _, _), rows in self._places.items():
            first[data] = min(first.get(data, len(table)), int(rows[0]))
        self.data = tuple(sorted(first, key=lambda name: first[name]))

    def entries(self, data: str, kind: str, metric: str) -> Iterator[Entry]:
        """The rows of one kind and metric, in the order of the records."""
        names = ("arm", "subset", "corruption", "modality", "stage")
        for i in self._places.get((data, kind, metric), ()):
            arm, subset, corruption, modality, stage = (str(self._text[k][1][self._text[k][0][i]]) for k in names)
            run = (int(self._split[i]), int(self._seed[i]))
            yield Entry(arm, run, subset, corruption, modality, stage, float(self._value[i]), int(self._n[i]), int(i))

    def metrics(self, data: str, kind: str) -> tuple[str, ...]:
        """The metrics that a kind has."""
        return tuple(metric for d, k, metric in self._places if d == data and k == kind)

    def by_run(
        self, data: str, kind: str, metric: str, keep: Callable[[Entry], bool] = lambda e: True, label: str = "subset"
    ) -> ByRun:
        """Finite numbers by arm, run and ``label`` (a field of ``Entry``)."""
        out: ByRun = {}
        for e in self.entries(data, kind, metric):
            if keep(e) and math.isfinite(e.value):
                out.setdefault(e.arm, {}).setdefault(e.run, {})[getattr(e, label)] = e.value
        return out

    def lists(self, entry: Entry) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Keys and values of the test rows of an entry.

        Raises:
            ValueError: If there is not one value per key.
        """
        keys, values = (self._lists[name][entry.place].values for name in ("keys", "values"))
        if keys is None or values is None or len(keys) != len(values):
            raise ValueError(f"a record of {entry.arm} must have one value per key")
        return keys.to_numpy(zero_copy_only=False), values.to_numpy(zero_copy_only=False).astype(np.float64)

    def metric(self, data: str) -> str:
        """The metric that ranks arms: accuracy, unless one is recorded that accuracy does not speak for."""
        have = [m for m in METRICS if m in self.metrics(data, "subset")]
        return next((m for m in have if m not in ("accuracy", "macro_f1")), have[0] if have else "accuracy")

    def scores(self, data: str, metric: str) -> ByRun:
        """A metric by subset, before any temperature; of another stage where there is no such row."""
        stages = {e.stage for e in self.entries(data, "subset", metric)}
        stage = next((s for s in ("raw", "", "mask", "pooled", "full") if s in stages), "raw")
        return self.by_run(data, "subset", metric, lambda e: e.stage == stage)

    def staged(self, data: str, metric: str, stage: str) -> ByRun:
        """A metric by subset at one stage of calibration."""
        return self.by_run(data, "subset", metric, lambda e: e.stage == stage)

    def job(self, data: str, metric: str) -> dict[str, dict[Run, float]]:
        """A cost by arm and run."""
        found = self.by_run(data, "job", metric)
        return {arm: {run: next(iter(v.values())) for run, v in runs.items()} for arm, runs in found.items()}

    def facts(self, data: str) -> dict[str, float]:
        """Numbers about the data set, of the first split."""
        out: dict[str, float] = {}
        for d, kind, metric in self._places:
            if d == data and kind == "data":
                for e in self.entries(data, kind, metric):
                    out.setdefault(metric, e.value)
        return out

    def clusters(self, data: str) -> dict[int, int]:
        """Row key to cluster: the smallest key of its group, so that it is the same in every split."""
        out: dict[int, int] = {}
        for e in self.entries(data, "data", "groups"):
            keys, numbers = self.lists(e)
            for number in np.unique(numbers):
                members = keys[numbers == number]
                out.update(dict.fromkeys(members.tolist(), int(members.min())))
        return out


def _encoded(column: Any) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Codes and the texts they stand for."""
    if not len(column):
        return np.zeros(0, np.int64), np.array([""])
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, np.array([text or "" for text in encoded.dictionary.to_pylist()], dtype=str)


def mean_by_label(runs: Mapping[Run, Mapping[str, float]]) -> dict[str, float]:
    """Mean over runs of every label."""
    found: dict[str, list[float]] = {}
    for values in runs.values():
        for label, value in values.items():
            found.setdefault(label, []).append(value)
    return {label: sum(v) / len(v) for label, v in found.items()}
