"""`polyfuse predict`: stream a table through a run; every row of the table has one row in the answer, in order."""

import contextlib
import csv
import itertools
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from polyfuse.data.problems import Problems
from polyfuse.data.table import Chunk, read_chunks, read_header
from polyfuse.errors import UserError
from polyfuse.evaluate.subsets import mask_codes
from polyfuse.report.abstention import always_flagged
from polyfuse.run.answers import answers
from polyfuse.run.folder import Run, load
from polyfuse.run.source import Say, check_inputs, delimiter_of, quiet

ROWS = 1024
"""Rows in memory at a time."""

Columns = dict[str, list[Any]]


@dataclass
class Predicted:
    """What a table came to.

    Attributes:
        output: Where the answers are; None = they went to stdout.
        rows: Rows of the table, each predicted or named.
        predicted: Rows that have a prediction.
        abstained: Of these, how many are flagged as too unsure (``abstain`` is true), or have no input to judge by.
        unreadable: Rows that could not be read; they stand in the output with their reason.
        patterns: Predicted rows by the inputs they had.
        always_flagged: Which of these combinations are flagged however sure the model is, and why; empty if none is.
        problems: What was broken, counted and named.
        seconds: Wall time.
    """

    output: Path | None
    rows: int = 0
    predicted: int = 0
    abstained: int = 0
    unreadable: int = 0
    patterns: Counter[str] = field(default_factory=Counter)
    always_flagged: str = ""
    problems: Problems = field(default_factory=Problems)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "output": None if self.output is None else str(self.output),
            "rows": self.rows,
            "predicted": self.predicted,
            "abstained": self.abstained,
            "unreadable": self.unreadable,
            "patterns": dict(self.patterns.most_common()),
            "always_flagged": self.always_flagged,
            "problems": self.problems.to_dict(),
            "seconds": round(self.seconds, 3),
        }

    def text(self) -> str:
        """A few lines for a reader."""
        rate = self.rows / max(self.seconds, 1e-9)
        head = f"{self.rows:,} rows in {self.seconds:.1f} s ({rate:,.0f}/s): {self.predicted:,} predicted, "
        lines = [head + f"of which {self.abstained:,} flagged as too unsure (abstain); {self.unreadable:,} unreadable"]
        for pattern, count in self.patterns.most_common(8):
            lines.append(f"  {count:>9,}  {pattern or '(no input: the class prior, flagged)'}")
        if len(self.patterns) > 8:
            lines.append(f"  and {len(self.patterns) - 8} more combinations of inputs")
        lines += [self.always_flagged] * bool(self.always_flagged)
        lines += [f"  {line}" for line in self.problems.lines()]
        if self.output is not None:
            lines.append(f"predictions: {self.output}")
        return "\n".join(lines)


def predict_table(
    run: Run | Path | str,
    table: Path | str,
    *,
    output: Path | None = None,
    allow_outside: bool = False,
    say: Say = quiet,
) -> Predicted:
    """Answer every row of a table, larger than memory if need be.

    The output has, per row of the table and in its order: ``row`` (from 1), ``id``, ``prediction``, ``confidence``
    (regression: ``std``), ``set`` (regression: ``low``, ``high``), ``abstain``, ``present``, one ``p:<class>`` per
    class and ``note``: what was broken in the row, or why it could not be read (then there is no prediction).

    Args:
        run: A run, or its folder.
        table: CSV, Parquet or JSON Lines; columns it lacks are missing inputs, columns it has beyond are ignored.
        output: ``.csv`` or ``.parquet``; None = CSV on stdout. Written whole or not at all.
        allow_outside: Accept file paths that lead out of the table's folder.
        say: Told what is missing.

    Raises:
        UserError: If the table cannot be read or has none of the run's columns, or the output has another ending or
            is the table.
    """
    started = time.perf_counter()
    run = run if isinstance(run, Run) else load(run)
    table, encoder = Path(table), run.encoder
    delimiter = delimiter_of(encoder, table)
    check_inputs(encoder, table, read_header(table, delimiter=delimiter), say)
    if allow_outside:
        encoder = replace(encoder, config=encoder.config.model_copy(update={"allow_outside": True}))
    found, codes = Predicted(output), set[int]()
    if output is not None and output.exists() and output.samefile(table):
        raise UserError(f"'{output}' is the table itself, which predictions would replace; choose another -o")
    with _writer(output, run.encoder.target.task) as writer:
        columns = [*encoder.config.input_columns, *([encoder.config.id] if encoder.config.id else [])]
        chunks = read_chunks(table, columns=columns, rows_per_chunk=ROWS, delimiter=delimiter)
        nothing = Chunk({name: [] for name in columns}, 0)  # a table without a row still has an answer: the header
        for chunk in itertools.chain([next(chunks, nothing)], chunks):
            writer.write(_answer_chunk(replace(run, encoder=encoder), chunk, found, codes))
    if run.calibration is not None and run.calibration.abstention is not None:
        found.always_flagged = always_flagged(run.calibration.abstention, run.calibration.modalities, codes)
    found.seconds = time.perf_counter() - started
    return found


def _answer_chunk(run: Run, chunk: Chunk, found: Predicted, codes: set[int]) -> Columns:
    """The output's columns for the slots of a chunk; adds the mask codes of its rows to ``codes``."""
    encoded = run.encoder.encode(chunk, workers=2)
    total, first = len(chunk), chunk.first_row
    columns: Columns = {"row": list(range(first + 1, first + total + 1)), "id": [None] * total}
    place = [row - first for row in encoded.rows]
    answered = answers(run.model, encoded.batch, run.encoder.target, run.calibration, run.prior)
    for name, values in {"id": encoded.ids, **answered.columns()}.items():
        column = columns.setdefault(name, [None] * total)
        for slot, value in zip(place, values, strict=True):
            column[slot] = value
    notes: list[Any] = [None] * total
    for row, note in encoded.notes.items():
        notes[row - first] = note
    for row, reason in encoded.unreadable:
        notes[row - first] = f"unreadable: {reason}"
    columns["note"] = notes
    found.rows += total
    found.predicted += len(answered)
    codes.update(mask_codes(answered.present).tolist())
    found.abstained += int(answered.abstain.sum())
    found.unreadable += len(encoded.unreadable)
    found.patterns.update(v for v in columns["present"] if v is not None)
    found.problems.update(encoded.problems)
    return columns


class Writer(Protocol):
    """Takes the answers chunk by chunk."""

    def write(self, columns: Columns) -> None:
        """Append rows given by column."""


@contextlib.contextmanager
def _writer(output: Path | None, task: str) -> Iterator[Writer]:
    """A writer whose file appears under its name when it is whole."""
    if output is None:
        yield _Csv(sys.stdout)
        return
    kind = output.suffix.lower()
    if kind not in (".csv", ".parquet"):
        raise UserError(f"predictions are written as .csv or .parquet, got '{output.name}'")
    if output.is_dir():
        raise UserError(f"'{output}' is a folder; name a file in it with -o")
    if not output.parent.is_dir():
        raise UserError(f"the folder of '{output}' does not exist; make it or choose another -o")
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        if kind == ".csv":
            with temporary.open("w", encoding="utf-8", newline="") as stream:
                yield _Csv(stream)
        else:
            with contextlib.closing(_Parquet(temporary, task)) as writer:
                yield writer
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


class _Csv:
    """Comma-separated, a header first; lists as JSON, booleans as true and false."""

    def __init__(self, stream: Any) -> None:
        self._rows = csv.writer(stream, lineterminator="\n")
        self._header: Sequence[str] = ()

    def write(self, columns: Columns) -> None:
        if not self._header:
            self._header = list(columns)
            self._rows.writerow(self._header)
        self._rows.writerows(zip(*(map(_text, values) for values in columns.values()), strict=True))


def _text(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.6g}" if isinstance(value, float) else value


class _Parquet:
    """Typed columns; the conformal set and the labels of multilabel as lists of strings."""

    def __init__(self, path: Path, task: str) -> None:
        self._path, self._task = path, task
        self._file: Any = None

    def write(self, columns: Columns) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        arrays = {name: pa.array(*_typed(name, values, self._task, pa)) for name, values in columns.items()}
        table = pa.table(arrays)
        if self._file is None:
            self._file = pq.ParquetWriter(self._path, table.schema)
        self._file.write_table(table)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _typed(name: str, values: list[Any], task: str, pa: Any) -> tuple[list[Any], Any]:
    """Values and Arrow type of an output column; the same for every chunk, whatever it holds."""
    if name == "row":
        return values, pa.int64()
    if name == "abstain":
        return values, pa.bool_()
    if name == "set" or (name == "prediction" and task == "multilabel"):
        return [None if v is None else json.loads(v) for v in values], pa.list_(pa.string())
    if name in ("id", "present", "note") or (name == "prediction" and task == "classification"):
        return values, pa.string()
    return values, pa.float64()
