"""Read CSV, Parquet and JSON Lines as a stream of chunks in which no row can move.

Every row of the file has a slot in its chunk, also the rows that cannot be read (a ragged line, broken JSON): their
cells are None and ``bad_rows`` says why. Cells are strings first, whatever a column looks like: a type guessed from the
first block kills a stream later. A chunk is all that is in memory, so the table may be larger than memory.

Rows count from 0 without the header; messages count from 1.
"""

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polyfuse.data.schema import nearest
from polyfuse.data.table_csv import BadText, csv_blocks, csv_header, open_input
from polyfuse.errors import UserError

ROWS_PER_CHUNK = 4096
_LONGEST_LINE = 64 << 20
_FORMATS = {
    "csv": "csv", "tsv": "csv", "tab": "csv", "txt": "csv", "parquet": "parquet", "pq": "parquet", "jsonl": "jsonl",
    "ndjson": "jsonl", "json": "jsonl",
}  # fmt: skip


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a table.

    Attributes:
        columns: Column name to one cell per row: a string, None (empty), ``BadText`` (not UTF-8), or a list, an array
            or bytes where the file has them. A column the table lacks is not a key.
        first_row: Row number of slot 0.
        bad_rows: ``(row number, reason)`` of the rows that could not be read; their slots hold None everywhere.
        rows: How many slots.
        folder: Relative paths start here and may not leave it; None refuses every path.
    """

    columns: dict[str, list[Any]]
    first_row: int
    bad_rows: list[tuple[int, str]] = field(default_factory=list)
    rows: int = 0
    folder: Path | None = None

    def __len__(self) -> int:
        return self.rows

    @classmethod
    def from_records(
        cls, records: Sequence[Mapping[str, Any]], *, folder: Path | str | None = None, first_row: int = 0
    ) -> "Chunk":
        """A chunk from dicts, as a server gets them; numbers become strings, a missing key is an empty cell.

        Example:
            >>> Chunk.from_records([{"a": 1}, {"a": None, "b": "x"}]).columns
            {'a': ['1', None], 'b': [None, 'x']}
        """
        names = dict.fromkeys(name for record in records for name in record)
        columns = {name: [_plain(record.get(name)) for record in records] for name in names}
        return cls(columns, first_row, [], len(records), None if folder is None else Path(folder))


def _plain(value: Any) -> Any:
    """A cell as the readers give it: scalars as strings, NaN as None, containers as they are."""
    if value is None or isinstance(value, str | bytes | list | dict | np.ndarray):
        return value
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return list(value)
    text = str(value)
    return None if text == "nan" else text


def table_format(path: Path) -> str:
    """``csv``, ``parquet`` or ``jsonl``, by the file's name.

    Raises:
        UserError: If the file does not exist, is a folder, is empty, or has another ending or a name that is not UTF-8.
    """
    if not path.exists():
        near = nearest(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
        raise UserError(f"table '{path}' does not exist{near}")
    if path.is_dir():
        raise UserError(f"table '{path}' is a folder; name the .csv, .parquet or .jsonl file in it")
    if any("\ud800" <= sign <= "\udfff" for sign in str(path)):
        raise UserError(f"table '{path}' has a name or a folder that is not UTF-8; rename it")
    if path.stat().st_size == 0:
        raise UserError(f"table '{path}' is empty (0 bytes)")
    suffixes = [s.lstrip(".").lower() for s in path.suffixes]
    ending = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == "gz" else suffixes[-1] if suffixes else ""
    if ending not in _FORMATS:
        raise UserError(f"table '{path.name}' must end in {', '.join('.' + e for e in _FORMATS)}, got '.{ending}'")
    return _FORMATS[ending]


def read_header(path: Path | str, *, delimiter: str | None = None, wanted: Iterable[str] | None = None) -> list[str]:
    """The table's column names, in order.

    JSON Lines has no header: its names are those of all rows, or of the rows needed to find every ``wanted`` one.

    Raises:
        UserError: If the file cannot be read or a name occurs twice.
    """
    path = Path(path)
    kind = table_format(path)
    if kind == "csv":
        names = csv_header(path, delimiter).names
    elif kind == "parquet":
        names = list(_parquet(path).schema_arrow.names)
    else:
        seen: dict[str, None] = {}
        missing = None if wanted is None else set(wanted)
        for record in _json_records(path):
            if isinstance(record, dict):
                seen.update(dict.fromkeys(record))
                if missing is not None and not (missing := missing - record.keys()):
                    break
        names = list(seen)
    for name, times in Counter(names).items():
        if times > 1:
            raise UserError(f"table '{path.name}': column {name!r} occurs {times} times; rename all but one")
    return names


def check_columns(wanted: Iterable[str], known: Sequence[str], table: str) -> None:
    """Refuse a column the table does not have.

    Raises:
        UserError: Names the column, the nearest one, and what there is.
    """
    for name in wanted:
        if name not in known:
            some = ", ".join(map(repr, known[:20])) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
            raise UserError(f"table '{table}' has no column {name!r}{nearest(name, known) or ';'} its columns: {some}")


def read_chunks(
    path: Path | str,
    *,
    columns: Sequence[str] | None = None,
    rows_per_chunk: int = ROWS_PER_CHUNK,
    delimiter: str | None = None,
) -> Iterator[Chunk]:
    """Stream a table.

    Args:
        path: A ``.csv``, ``.tsv`` (also ``.gz``), ``.parquet`` or ``.jsonl`` file.
        columns: Columns to read; those the table lacks are left out of the chunks. None reads all.
        rows_per_chunk: Slots per chunk; only the last chunk may have fewer.
        delimiter: CSV: what separates cells; None looks at the header.

    Raises:
        UserError: If the file cannot be read at all, or a quote is never closed (with its line).
    """
    path = Path(path)
    kind = table_format(path)
    known = read_header(path, delimiter=delimiter, wanted=columns)
    names = known if columns is None else [name for name in dict.fromkeys(columns) if name in known]
    if kind == "csv":
        blocks = csv_blocks(path, names, delimiter)
    elif kind == "parquet":
        blocks = _parquet_blocks(path, names, rows_per_chunk)
    else:
        blocks = _json_blocks(path, names, rows_per_chunk)
    return _rechunk(blocks, names, rows_per_chunk, path.parent)


Block = tuple[dict[str, list[Any]], int, list[tuple[int, str]]]


def _rechunk(blocks: Iterator[Block], names: Sequence[str], size: int, folder: Path) -> Iterator[Chunk]:
    """Blocks of any number of rows to chunks of ``size`` rows."""
    held: dict[str, list[Any]] = {name: [] for name in names}
    bad: list[tuple[int, str]] = []
    first, count = 0, 0
    for columns, rows, bad_rows in blocks:
        for name in names:
            held[name] += columns[name]
        bad += bad_rows
        count += rows
        start = 0
        while count - start >= size:
            stop = start + size
            cut = [b for b in bad if b[0] < first + size]
            bad = bad[len(cut) :]
            yield Chunk({name: held[name][start:stop] for name in names}, first, cut, size, folder)
            first, start = first + size, stop
        if start:
            held = {name: held[name][start:] for name in names}
            count -= start
    if count:
        yield Chunk(held, first, bad, count, folder)


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"table '{path.name}' cannot be read as Parquet: {_short(error)}") from None


def _parquet_blocks(path: Path, names: Sequence[str], rows: int) -> Iterator[Block]:
    done = 0
    with _parquet(path) as file:
        if not names:
            yield {}, file.metadata.num_rows, []
            return
        try:
            for batch in file.iter_batches(batch_size=rows, columns=list(names), use_threads=False):
                yield {name: _cells(batch.column(name)) for name in names}, batch.num_rows, []
                done += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"table '{path.name}' is broken after row {done}: {_short(error)}") from None


def _cells(array: pa.Array) -> list[Any]:
    """An Arrow column as cells."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        array, kind = array.dictionary_decode(), kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return array.to_pylist()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        if pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type):
            return [cell.values.to_numpy(zero_copy_only=False) if cell.is_valid else None for cell in array]
        return array.to_pylist()
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return array.to_pylist()
    if pa.types.is_floating(kind):  # NaN in a float column is how pandas writes "missing"
        return [None if cell == "nan" else cell for cell in array.cast(pa.string()).to_pylist()]
    try:
        return array.cast(pa.string()).to_pylist()
    except pa.ArrowException:
        return [None if cell is None else str(cell) for cell in array.to_pylist()]


def _json_records(path: Path) -> Iterator[dict[str, Any] | str]:
    """Per non-blank line: its object, or the reason why it has none."""
    decoder = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
    with open_input(path) as raw:
        stream = io.BufferedReader(raw, 1 << 20)
        for number, line in enumerate(iter(lambda: stream.readline(_LONGEST_LINE), b""), start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
                if line.lstrip()[:1] == b"[":
                    raise UserError(f"table '{path.name}' is one JSON array; JSON Lines has one object per line")
            if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
                raise UserError(f"table '{path.name}': line {number} is longer than 64 MiB; is this JSON Lines?")
            if not line.strip():
                continue
            try:
                text, bad = line.decode(), False
            except UnicodeDecodeError:
                text, bad = line.decode(errors="replace"), True
            try:
                record = decoder.decode(text.strip())
            except (ValueError, RecursionError) as error:
                yield f"broken JSON (line {number}): {_short(error)}"
                continue
            if not isinstance(record, dict):
                yield f"not a JSON object (line {number}): {text.strip()[:40]!r}"
            else:
                yield (
                    {k: BadText(v) if isinstance(v, str) and "\ufffd" in v else v for k, v in record.items()}
                    if (bad)
                    else record
                )


def _json_blocks(path: Path, names: Sequence[str], rows: int) -> Iterator[Block]:
    columns: dict[str, list[Any]] = {name: [] for name in names}
    bad: list[tuple[int, str]] = []
    first = count = 0
    for record in _json_records(path):
        if isinstance(record, str):
            bad.append((first + count, record))
            record = {}
        for name in names:
            columns[name].append(_plain(record.get(name)))
        count += 1
        if count == rows:
            yield columns, count, bad
            columns, bad, first, count = {name: [] for name in names}, [], first + count, 0
    if count:
        yield columns, count, bad


def _short(error: BaseException) -> str:
    """The first line of an error, at most 160 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
