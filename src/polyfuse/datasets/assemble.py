"""From plain arrays to a data set: split by keyed hash, standardised by training rows, zeros where absent.

Shapes: N rows, M modalities, D inputs of a modality.
"""

import csv
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from polyfuse.data.batch import Batch
from polyfuse.data.keyed import key_of
from polyfuse.data.spec import ModalitySpec, TargetSpec
from polyfuse.data.split import NAMES, split_by_ratio
from polyfuse.datasets.base import DataSet
from polyfuse.errors import UserError

RATIOS = (0.6, 0.2, 0.2)


def split_rows(
    ids: Sequence[str],
    strata: Sequence[Hashable],
    split: int,
    *,
    groups: Sequence[str] | None = None,
    ratios: tuple[float, float, float] = RATIOS,
) -> np.ndarray:
    """Part of every row, ``(N,)`` int8: 0 train, 1 validation, 2 test; a function of the ids, not of their order.

    Args:
        ids: One stable, distinct string per row.
        strata: What is spread evenly: the class.
        split: Number of the split.
        groups: Rows of a group stay together.
        ratios: Shares of the parts.
    """
    return split_by_ratio(ids, ratios=ratios, seed=split, strata=strata, groups=groups)


def assemble(
    name: str,
    *,
    ids: Sequence[str],
    labels: np.ndarray,
    classes: Sequence[str],
    features: Mapping[str, np.ndarray],
    part: np.ndarray,
    present: np.ndarray | None = None,
    groups: Sequence[str] | None = None,
    broken: Mapping[tuple[str, str], np.ndarray] | None = None,
    notes: tuple[str, ...] = (),
) -> DataSet:
    """A classification data set of vector modalities.

    Args:
        name: Its registry key.
        ids: As given to ``split_rows``; the rows' keys are made of them.
        labels: ``(N,)`` class numbers.
        classes: Their names.
        features: Per modality ``(N, D)``; NaN is replaced by the training mean.
        part: ``(N,)`` of ``split_rows``.
        present: ``(N, M)`` bool; None = all present.
        groups: One per row.
        broken: Per (modality, corruption) ``(N, D)`` features of inputs broken before; test rows of them are kept.
        notes: See ``DataSet``.
    """
    modalities = tuple(features)
    here = np.ones((len(ids), len(modalities)), dtype=bool) if present is None else present
    scaled = {}
    scaled_broken = {}
    for m, modality in enumerate(modalities):
        scale = Scale(features[modality][(part == 0) & here[:, m]])
        scaled[modality] = scale(features[modality]) * here[:, m, None]
        for (broken_modality, corruption), values in (broken or {}).items():
            if broken_modality == modality:
                rows = part == 2
                shown = scale(values[rows]) * here[rows, m, None]
                scaled_broken[modality, corruption] = torch.from_numpy(shown.astype(np.float32))
    keys = key_of(ids)
    batches: dict[str, Batch] = {}
    for code, split_name in enumerate(NAMES):
        rows = np.flatnonzero(part == code)
        batches[split_name] = Batch(
            modalities=modalities,
            inputs={m: torch.from_numpy(values[rows].astype(np.float32)) for m, values in scaled.items()},
            present=torch.from_numpy(here[rows]),
            target=torch.from_numpy(labels[rows].astype(np.int64)),
            keys=keys[torch.from_numpy(rows)],
            ids=[ids[row] for row in rows.tolist()],
        )
    return DataSet(
        name=name,
        train=batches["train"],
        validation=batches["validation"],
        test=batches["test"],
        specs={m: ModalitySpec(m, "vector", {"width": values.shape[1]}) for m, values in scaled.items()},
        target=TargetSpec("classification", tuple(classes)),
        groups=None
        if groups is None
        else {s: [groups[row] for row in np.flatnonzero(part == code).tolist()] for code, s in enumerate(NAMES)},
        broken=scaled_broken,
        notes=notes,
    )


class Scale:
    """Centre and scale by the mean and standard deviation of the rows it is made from; NaN and constant columns give 0.

    Args:
        rows: ``(n, D)``, NaN where unknown.

    Example:
        >>> scale = Scale(np.array([[1.0, 5.0], [3.0, 5.0], [np.nan, 5.0]]))
        >>> scale(np.array([[4.0, 7.0], [np.nan, 5.0]])).tolist()
        [[2.0, 0.0], [0.0, 0.0]]
    """

    def __init__(self, rows: np.ndarray) -> None:
        values = np.ma.masked_invalid(np.asarray(rows, dtype=np.float64))
        self.mean = np.ma.filled(values.mean(axis=0), 0.0)
        std = np.ma.filled(values.std(axis=0), 0.0)
        known = std > 1e-9 * (1.0 + np.abs(self.mean))
        self.factor = np.where(known, 1.0 / np.where(known, std, 1.0), 0.0)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """``(N, D)`` float64."""
        return np.nan_to_num((rows - self.mean) * self.factor, nan=0.0)


def principal(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean ``(D,)``, principal directions ``(D, min(n, D))`` in columns, and the variance along each, largest first.

    Signs are fixed (the largest weight is positive), so that features are the same on every machine.
    """
    mean = rows.mean(axis=0)
    centred = rows - mean
    if len(rows) < rows.shape[1]:
        _, spread, directions = np.linalg.svd(centred, full_matrices=False)
        variance, directions = spread**2 / len(rows), directions.T
    else:
        variance, directions = np.linalg.eigh(centred.T @ centred / len(rows))
        variance, directions = variance[::-1], directions[:, ::-1]
    largest = np.abs(directions).argmax(axis=0)
    return mean, directions * np.sign(directions[largest, np.arange(len(variance))]), variance


def read_csv(path: Path, *, columns: int) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a fetched CSV.

    Raises:
        UserError: If it cannot be read, or a row does not have ``columns`` cells.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            header, *rows = csv.reader(stream)
    except (OSError, ValueError, csv.Error) as error:
        raise damaged(path, str(error)) from None
    for number, row in enumerate([header, *rows], start=1):
        if len(row) != columns:
            raise damaged(path, f"line {number} must have {columns} cells, got {len(row)}")
    return header, rows


def numbers(path: Path, rows: Sequence[Sequence[str]]) -> np.ndarray:
    """Cells as float64 ``(rows, cells)``.

    Raises:
        UserError: If a cell is not a finite number.
    """
    try:
        values = np.array(rows, dtype=np.float64)
    except ValueError as error:
        raise damaged(path, str(error)) from None
    if not np.isfinite(values).all():
        raise damaged(path, "a cell is not a finite number")
    return values


def damaged(path: Path, why: str) -> UserError:
    """The error of a fetched file that is not what it should be."""
    return UserError(f"'{path}' cannot be read ({why}); delete its folder and fetch the data set again")
