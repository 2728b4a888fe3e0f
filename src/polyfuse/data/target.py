"""The column to predict: which task it is, its classes, and its cells as training targets.

Labels are kept as written (outer spaces off): ``1`` and ``1.0`` and ``01`` are three classes.
"""

import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyfuse.data.codecs import numbers, show
from polyfuse.data.spec import TargetSpec
from polyfuse.data.table_csv import BadText
from polyfuse.errors import UserError

_YES = frozenset({"1", "1.0", "true", "yes", "t", "y"})
_NO = frozenset({"0", "0.0", "false", "no", "f", "n"})
_SEPARATORS = "|;,"
FEW = 20  # distinct whole numbers up to here are classes


def decide_task(columns: Sequence[Sequence[Any]], task: str = "auto", separator: str | None = None) -> str:
    """The rule of ``task: auto``, in this order.

    1. Several target columns, a separator, or cells that are all lists (JSON lists too): multilabel.
    2. Cells that are all finite numbers, one of them with a fraction or more than 20 different: regression.
    3. Anything else: classification.

    Example:
        >>> decide_task([["1", "2", "1"]]), decide_task([["0.5", "2", None]]), decide_task([['["a"]', "[]"]])
        ('classification', 'regression', 'multilabel')
    """
    if task != "auto":
        return task
    if len(columns) > 1 or separator is not None:
        return "multilabel"
    cells = [cell for cell in columns[0] if cell is not None]
    if cells and all(_as_list(cell) is not None for cell in cells):
        return "multilabel"
    values, bad = numbers(cells)
    if cells and not bad and (len(set(values.tolist())) > FEW or (values != np.round(values)).any()):
        return "regression"
    return "classification"


def _as_list(cell: Any) -> list[str] | None:
    """The labels of a list cell or a JSON list; None if it is neither."""
    if isinstance(cell, np.ndarray):
        cell = cell.tolist()
    if type(cell) is str and cell.startswith("["):
        try:
            cell = json.loads(cell, parse_int=str, parse_float=str)
        except (ValueError, RecursionError):
            return None
    if not isinstance(cell, list):
        return None
    return [str(part).strip() for part in cell if part is not None]


@dataclass(frozen=True)
class TargetCodec:
    """Turns target cells into numbers.

    Attributes:
        columns: The target's columns.
        spec: Task, classes, moments.
        separator: Multilabel in one cell: what joins the labels.
    """

    columns: tuple[str, ...]
    spec: TargetSpec
    separator: str | None = None

    def labels(self, cell: Any) -> list[str]:
        """The labels of one multilabel cell."""
        found = _as_list(cell)
        if found is not None:
            return found
        parts = str(cell).split(self.separator) if self.separator else [str(cell)]
        return [part.strip() for part in parts if part.strip()]

    def readable(self, columns: Sequence[Sequence[Any]]) -> tuple[np.ndarray, list[tuple[int, str, str]]]:
        """Which rows have a target that can be read, whatever its classes; the others as ``(index, kind, detail)``."""
        rows = len(columns[0])
        ok, problems = np.ones(rows, dtype=bool), []
        _, bad = numbers(columns[0]) if self.spec.task == "regression" else (None, [])
        for i, kind in bad:
            problems.append((i, kind, show(columns[0][i])))
        for column in columns:
            for i, cell in enumerate(column):
                if not ok[i]:
                    continue
                if cell is None:
                    problems.append((i, "empty cell", ""))
                elif type(cell) is BadText:
                    problems.append((i, "bad UTF-8", show(cell)))
                elif len(columns) > 1 and str(cell).lower() not in _YES | _NO:
                    problems.append((i, "neither 0 nor 1", show(cell)))
                elif self.spec.task == "classification" and not isinstance(cell, str):
                    problems.append((i, "not a label", show(cell)))
                else:
                    continue
                ok[i] = False
        for i, _ in bad:
            ok[i] = False
        return ok, problems

    def strata(self, columns: Sequence[Sequence[Any]]) -> list[Hashable] | None:
        """What a stratified split spreads evenly; None for regression."""
        if self.spec.task == "regression":
            return None
        if len(columns) > 1:
            return [tuple(str(cell).lower() in _YES for cell in row) for row in zip(*columns, strict=True)]
        if self.spec.task == "multilabel":
            return [tuple(sorted(set(self.labels(cell)))) for cell in columns[0]]
        return list(columns[0])

    def encode(self, columns: Sequence[Sequence[Any]]) -> tuple[np.ndarray, list[tuple[int, str, str]]]:
        """Targets of readable rows, and labels that no training row has as ``(index, "unseen label", label)``.

        A class that is unseen is -1 and its row is of no use; an unseen label of several is left out of its row.

        Returns:
            int64 ``(n,)``, float32 ``(n, L)`` or float32 ``(n,)``.
        """
        code = {label: i for i, label in enumerate(self.spec.classes)}
        unseen: list[tuple[int, str, str]] = []
        if self.spec.task == "regression":
            values = (numbers(columns[0])[0] - self.spec.mean) / self.spec.std
            return values.astype(np.float32), unseen
        if self.spec.task == "classification":
            codes = np.array([code.get(cell, -1) for cell in columns[0]], dtype=np.int64)
            unseen = [(i, "unseen label", show(columns[0][i])) for i in np.flatnonzero(codes < 0).tolist()]
            return codes, unseen
        if len(columns) > 1:
            yes = [[str(cell).lower() in _YES for cell in column] for column in columns]
            return np.array(yes, dtype=np.float32).T.copy(), unseen
        out = np.zeros((len(columns[0]), len(code)), dtype=np.float32)
        for i, cell in enumerate(columns[0]):
            for label in self.labels(cell):
                if label in code:
                    out[i, code[label]] = 1.0
                else:
                    unseen.append((i, "unseen label", show(label)))
        return out, unseen

    def fit(self, columns: Sequence[Sequence[Any]]) -> "TargetCodec":
        """The same with classes and moments from training rows.

        Raises:
            UserError: If the training rows hold fewer than two classes, no label, one value, or no repeated class.
        """
        name = ", ".join(self.columns)
        if self.spec.task == "regression":
            values = numbers(columns[0])[0]
            mean, std = float(values.mean()), float(values.std())
            if not std > 1e-12 * max(abs(mean), 1e-300):
                raise UserError(f"target '{name}' is {mean:g} in every training row; a regression needs two values")
            return TargetCodec(self.columns, TargetSpec("regression", (), mean, std), self.separator)
        if len(columns) > 1:
            classes: Sequence[str] = self.columns
        elif self.spec.task == "multilabel":
            classes = _sorted({label for cell in columns[0] for label in self.labels(cell)})
            if not classes:
                raise UserError(f"target '{name}' has no label in any training row; a multilabel task needs one")
        else:
            count = Counter(columns[0])
            classes = _sorted(count)
            if len(classes) < 2:
                raise UserError(f"target '{name}' is {classes[0]!r} in every training row; two classes are needed")
            if len(classes) > FEW and len(classes) > 0.5 * len(columns[0]):
                raise UserError(
                    f"target '{name}' has {len(classes)} classes in {len(columns[0])} training rows, e.g. "
                    f"{show(classes[0])}; choose another target, or data.task: regression or multilabel"
                )
        return TargetCodec(self.columns, TargetSpec(self.spec.task, tuple(classes)), self.separator)

    @classmethod
    def choose(
        cls, columns: Mapping[str, Sequence[Any]], task: str = "auto", separator: str | None = None
    ) -> "TargetCodec":
        """Decide the task and the separator from all cells; classes come with ``fit``.

        Raises:
            UserError: If several columns are given for another task than multilabel.
        """
        names, cells = tuple(columns), list(columns.values())
        task = decide_task(cells, task, separator)
        if len(names) > 1 and task != "multilabel":
            raise UserError(f"data.target names {len(names)} columns, which is multilabel; got data.task: {task}")
        if task == "multilabel" and separator is None and len(names) == 1:
            text = [cell for cell in cells[0] if type(cell) is str and not cell.startswith("[")]
            separator = next((sign for sign in _SEPARATORS if any(sign in cell for cell in text)), None)
        return cls(names, TargetSpec(task), separator)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"columns": list(self.columns), "spec": self.spec.to_dict(), "separator": self.separator}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "TargetCodec":
        """The inverse of ``to_dict``."""
        return cls(tuple(value["columns"]), TargetSpec.from_dict(value["spec"]), value["separator"])


def _sorted(labels: Any) -> list[str]:
    """Labels by value if all are numbers, else by letter."""
    ordered = sorted(labels)
    values, bad = numbers(ordered)
    return ordered if bad else [label for _, label in sorted(zip(values.tolist(), ordered, strict=True))]
