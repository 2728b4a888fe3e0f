"""Chunks of a table to batches, with everything learned from the training rows.

A row keeps its number from the file to the batch; what cannot be used is absent, counted and named.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polyfuse.data.batch import Batch, Inputs
from polyfuse.data.codecs import Cells, Codec, Encoding, Reading, clean, codec_from_dict, codec_types
from polyfuse.data.keyed import key_of
from polyfuse.data.problems import Problems
from polyfuse.data.schema import DataConfig, ModalityConfig
from polyfuse.data.spec import ModalitySpec, TargetSpec
from polyfuse.data.table import Chunk
from polyfuse.data.table_csv import BadText
from polyfuse.data.target import TargetCodec
from polyfuse.errors import UserError


@dataclass(frozen=True)
class Encoded:
    """A chunk after encoding.

    Attributes:
        batch: The readable rows, in table order.
        ids: One id per row of ``batch``: the id column's cell, or the row number from 1.
        rows: One row number (from 0) per row of ``batch``.
        problems: Counts by kind.
        unreadable: ``(row number, reason)`` of the rows that are not in ``batch``.
        notes: Row number to what was broken in it, such as ``"photo: truncated"``.
    """

    batch: Batch
    ids: list[str]
    rows: list[int]
    problems: Problems
    unreadable: list[tuple[int, str]]
    notes: dict[int, str]


@dataclass
class TableEncoder:
    """Encodes chunks of any table with (some of) the training table's columns.

    Attributes:
        config: The schema it was fitted with.
        codecs: One fitted codec per modality, in the order of ``Batch.modalities``.
        target_codec: Reads target cells.
        notes: What was decided in fitting, in sentences.
    """

    config: DataConfig
    codecs: dict[str, Codec]
    target_codec: TargetCodec
    notes: list[str] = field(default_factory=list)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names, in the column order of ``present``."""
        return tuple(self.codecs)

    @property
    def specs(self) -> dict[str, ModalitySpec]:
        """What each modality's encoder takes."""
        return {name: codec.spec for name, codec in self.codecs.items()}

    @property
    def target(self) -> TargetSpec:
        """What is predicted."""
        return self.target_codec.spec

    def encode(self, chunk: Chunk, *, target: bool = False, workers: int = 1) -> Encoded:
        """Encode the readable rows of a chunk; a column it lacks is a missing modality.

        Args:
            chunk: From ``read_chunks``, or ``Chunk.from_records`` for single rows.
            target: Also encode the target; rows without a usable one are then left out and counted.
            workers: Threads that decode files.

        Raises:
            UserError: If ``target`` is wanted and the chunk lacks its column.
        """
        chunk = self.clean(chunk)
        unreadable = dict(chunk.bad_rows)
        rows = [i for i in range(len(chunk)) if chunk.first_row + i not in unreadable]
        problems = Problems()
        for row, reason in chunk.bad_rows:
            problems.add("row", "unreadable", row, reason)
        values: np.ndarray | None = None
        if target:
            rows, values = self._targets(chunk, rows, problems)
        pooled = workers > 1 and len(rows) >= 32
        with ThreadPoolExecutor(workers) if pooled else nullcontext() as pool:
            parts, present, notes = self.encode_rows(chunk, rows, problems, pool)
        ids = self.ids(chunk, rows)
        batch = Batch(
            modalities=self.modalities,
            inputs=as_inputs(parts),
            present=torch.from_numpy(present),
            target=None if values is None else torch.from_numpy(values),
            keys=key_of(ids),
            ids=ids,
        )
        return Encoded(batch, ids, [chunk.first_row + i for i in rows], problems, chunk.bad_rows, notes)

    def _targets(self, chunk: Chunk, rows: list[int], problems: Problems) -> tuple[list[int], np.ndarray]:
        """The rows whose target is usable, and their targets."""
        lacking = [name for name in self.target_codec.columns if name not in chunk.columns]
        if lacking:
            raise UserError(f"the table has no target column {lacking[0]!r}; add it, or use predict, which needs none")
        columns = [[chunk.columns[name][i] for i in rows] for name in self.target_codec.columns]
        ok, found = self.target_codec.readable(columns)
        _count(problems, "target", found, rows, chunk.first_row)
        rows = [row for row, good in zip(rows, ok, strict=True) if good]
        columns = [[cell for cell, good in zip(column, ok, strict=True) if good] for column in columns]
        values, unseen = self.target_codec.encode(columns)
        _count(problems, "target", unseen, rows, chunk.first_row)
        if self.target.task == "classification":
            rows, values = [row for row, code in zip(rows, values, strict=True) if code >= 0], values[values >= 0]
        return rows, values

    def clean(self, chunk: Chunk) -> Chunk:
        """The chunk with null words as None in the columns this encoder reads."""
        wanted, nulls = self.config.used_columns, self.config.nulls
        columns = {name: clean(chunk.columns[name], nulls) for name in wanted if name in chunk.columns}
        return replace(chunk, columns=columns)

    def ids(self, chunk: Chunk, rows: Sequence[int]) -> list[str]:
        """The id of each row: the id column's cell, or the row's number from 1 where there is none."""
        column = chunk.columns.get(self.config.id) if self.config.id is not None else None
        numbered = [str(chunk.first_row + i + 1) for i in rows]
        if column is None:
            return numbered
        return [number if column[i] is None else str(column[i]) for i, number in zip(rows, numbered, strict=True)]

    def reading(self, folder: Path | None, pool: ThreadPoolExecutor | None = None) -> Reading:
        """How files beside a table are read."""
        return Reading(folder, self.config.allow_outside, self.config.max_pixels, pool)

    def encode_rows(
        self, chunk: Chunk, rows: Sequence[int], problems: Problems, pool: ThreadPoolExecutor | None
    ) -> tuple[dict[str, dict[str, np.ndarray]], np.ndarray, dict[int, str]]:
        """Arrays per modality, ``present (n, M)`` and notes of the given slots of a cleaned chunk."""
        reading = self.reading(chunk.folder, pool)
        parts: dict[str, dict[str, np.ndarray]] = {}
        present = np.zeros((len(rows), len(self.codecs)), dtype=bool)
        notes: dict[int, list[str]] = {}
        for m, (name, codec) in enumerate(self.codecs.items()):
            cells = _cells(chunk, codec.columns, rows)
            lacking = [column for column in codec.columns if column not in chunk.columns]
            if lacking:
                problems.add(name, "no column", times=len(rows))
                problems.named[name, "no column"] = [f"column {column!r}" for column in lacking[:10]]
            if len(lacking) == len(codec.columns):
                parts[name] = codec.zeros(len(rows))
                continue
            encoding = codec.encode(cells, reading)
            parts[name], present[:, m] = encoding.parts, encoding.present
            _count(problems, name, encoding.problems, rows, chunk.first_row)
            for i, kind, _ in encoding.problems:
                notes.setdefault(chunk.first_row + rows[i], []).append(f"{name}: {kind}")
            _count_empty(problems, name, codec, cells, encoding)
        return parts, present, {row: "; ".join(dict.fromkeys(found)) for row, found in sorted(notes.items())}

    @classmethod
    def fit(
        cls,
        config: DataConfig,
        target: TargetCodec,
        chunks: Callable[[], Iterator[tuple[Chunk, list[int]]]],
        pool: ThreadPoolExecutor | None = None,
    ) -> "TableEncoder":
        """Fit one codec per modality.

        Args:
            config: The schema.
            target: Fitted.
            chunks: Starts over at each call: cleaned chunks with the slots of their training rows.
            pool: Decodes files.

        Raises:
            UserError: If no modality has a training row.
        """
        codecs: dict[str, Codec] = {}
        notes: list[str] = []
        for name, modality in config.modalities.items():

            def train(modality: ModalityConfig = modality) -> Iterator[Cells]:
                for chunk, rows in chunks():
                    if rows:
                        yield _cells(chunk, modality.all_columns, rows)

            folder = next((chunk.folder for chunk, _ in chunks()), None)
            reading = Reading(folder, config.allow_outside, config.max_pixels, pool)
            kind = "frozen" if modality.pretrained else modality.type
            codec = codec_types()[kind].fit(name, modality, train, reading)
            if codec is None:
                notes.append(f"{name}: no training row has it, so it is left out of the model")
            else:
                codecs[name] = codec
                notes += codec.notes
        if not codecs:
            names = ", ".join(config.modalities)
            bad = any(type(c) is BadText for chunk, _ in chunks() for cells in chunk.columns.values() for c in cells)
            why = "cells are not UTF-8, save the table as UTF-8" if bad else "check the columns' values"
            raise UserError(f"no training row has a usable input in any modality ({names}); {why}")
        return cls(config, codecs, target, notes)

    def to_dict(self) -> dict[str, Any]:
        """Everything fitted, JSON-able (tokenizers inline)."""
        return {
            "version": 1,
            "config": self.config.model_dump(mode="json"),
            "codecs": [codec.to_dict() for codec in self.codecs.values()],
            "target": self.target_codec.to_dict(),
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "TableEncoder":
        """The inverse of ``to_dict``."""
        codecs = [codec_from_dict(part) for part in value["codecs"]]
        return cls(
            DataConfig.model_validate(value["config"]),
            {codec.name: codec for codec in codecs},
            TargetCodec.from_dict(value["target"]),
            list(value["notes"]),
        )


def _cells(chunk: Chunk, columns: Sequence[str], rows: Sequence[int]) -> list[list[Any]]:
    """The cells of some columns and slots; None where the chunk lacks the column."""
    if len(rows) == len(chunk):
        return [chunk.columns.get(name) or [None] * len(rows) for name in columns]
    return [
        [column[i] for i in rows] if (column := chunk.columns.get(name)) is not None else [None] * len(rows)
        for name in columns
    ]


def _count(
    problems: Problems, where: str, found: Sequence[tuple[int, str, str]], rows: Sequence[int], first: int
) -> None:
    for i, kind, detail in found:
        problems.add(where, kind, first + rows[i], detail)


def _count_empty(problems: Problems, name: str, codec: Codec, cells: Cells, encoding: Encoding) -> None:
    """Absent rows without a problem are empty; empty cells of a present tabular row are counted apart."""
    told = {i for i, _, _ in encoding.problems}
    empty = [i for i in np.flatnonzero(~encoding.present).tolist() if i not in told]
    if empty:
        problems.add(name, "empty cell", times=len(empty))
    if len(cells) > 1:
        here = encoding.present.tolist()
        partly = sum(cell is None and there for column in cells for cell, there in zip(column, here, strict=True))
        if partly:
            problems.add(name, "empty cell in a present row", times=partly)


def as_inputs(parts: Mapping[str, dict[str, np.ndarray]]) -> Inputs:
    """Arrays as the ``inputs`` of a batch, sharing their memory."""
    tensors = {name: {key: torch.from_numpy(array) for key, array in part.items()} for name, part in parts.items()}
    return {name: part.get("", part) for name, part in tensors.items()}
