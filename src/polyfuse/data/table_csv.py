"""CSV blocks that end between records, so that pyarrow parses each on its own and every row keeps its number.

A small scan of the quotes finds the record ends and refuses a quote that is never closed: it would swallow good rows.
A quoted cell may hold line breaks. A blank line is no row, except in a table of one column, where it is an empty cell.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from polyfuse.errors import UserError

BLOCK_BYTES = 1 << 20
LONGEST_RECORD = 64 << 20
_DELIMITERS = ",;\t|"
_BOM = b"\xef\xbb\xbf"


class BadText(str):
    """A cell that is not valid UTF-8, with U+FFFD where bytes could not be read: broken, so it reads as absent."""

    __slots__ = ()


@dataclass(frozen=True)
class Header:
    """The first record of a CSV file.

    Attributes:
        names: Column names.
        delimiter: What separates cells.
        newline: The byte that ends a line.
        start: Bytes before the first data row (decompressed).
        lines: Physical lines before the first data row.
    """

    names: list[str]
    delimiter: str
    newline: bytes
    start: int
    lines: int


def open_input(path: Path) -> Any:
    """A byte stream; ``.gz`` is unpacked on the way."""
    return pa.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else None)


def csv_header(path: Path, delimiter: str | None = None) -> Header:
    """Read the first record.

    Raises:
        UserError: If the file is not UTF-8 text or its header cannot be parsed, or ``delimiter`` is no single sign.
    """
    if delimiter is not None and (len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\r\n'):
        raise UserError(f"the delimiter must be one ASCII character, no quote and no line break, got {delimiter!r}")
    with open_input(path) as stream:
        data, at_eof = b"", False
        while b"\n" not in data[len(_BOM) :].lstrip(b"\r\n") and len(data) < LONGEST_RECORD and not at_eof:
            more = stream.read(BLOCK_BYTES)
            data, at_eof = data + more, not more
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"table '{path.name}' is UTF-16; save it as UTF-8")
    if data[:4] == b"PAR1":
        raise UserError(f"table '{path.name}' is Parquet; rename it to end in .parquet")
    bom = len(_BOM) if data.startswith(_BOM) else 0
    skip = len(data) - len(data[bom:].lstrip(b"\r\n"))  # a BOM, blank lines
    body = data[skip:]
    newline = b"\r" if b"\n" not in body and b"\r" in body else b"\n"
    first_line = body.split(newline, 1)[0]
    if not first_line.strip():
        raise UserError(f"table '{path.name}' has no header line")
    if b"\0" in first_line:
        raise UserError(f"table '{path.name}' is not text: its first line holds zero bytes")
    sign = delimiter or ("\t" if path.suffix in (".tsv", ".tab") else _guess_delimiter(first_line))
    line = data[:skip].count(newline) + 1
    _, spans = scan_quotes(body, sign, newline, at_eof=at_eof, table=path.name, line=line)
    end = body.find(newline)
    while end >= 0 and any(low < end < high for low, high in spans):
        end = body.find(newline, end + 1)
    end = len(body) if end < 0 else end + 1
    record = body[:end].rstrip(b"\r\n") + newline
    names = [column[0] for column in _parse(record, _width(record, sign), sign, [])[0]]
    if any(isinstance(name, BadText) for name in names):
        raise UserError(f"table '{path.name}': its header is not UTF-8; save it as UTF-8")
    return Header(names, sign, newline, skip + end, data[: skip + end].count(newline))


def _guess_delimiter(line: bytes) -> str:
    """The commonest of ``, ; tab |`` outside quotes; a comma where there is none."""
    outside = b"".join(line.split(b'"')[::2])
    return max(_DELIMITERS, key=lambda sign: outside.count(sign.encode()))


def scan_quotes(
    data: bytes, delimiter: str, newline: bytes, *, at_eof: bool, table: str, line: int
) -> tuple[int, list[tuple[int, int]]]:
    """Where the last complete record of ``data`` ends, and the quoted cells before that.

    A quote opens a cell only at the cell's start (elsewhere it is text, as in ``12" screen``); doubled it is a quote.

    Args:
        data: Bytes that start with a record.
        delimiter: What separates cells.
        newline: The byte that ends a line.
        at_eof: Nothing follows ``data``.
        table: The file's name, for the message.
        line: The number of the first line of ``data``.

    Raises:
        UserError: If a quote is never closed, or closes in the middle of a later row.
    """
    quotes = np.flatnonzero(np.frombuffer(data, np.uint8) == 34).tolist()
    sign = delimiter.encode()
    starts = {sign[0], 10, 13}
    spans: list[tuple[int, int]] = []
    at, count, size = 0, len(quotes), len(data)
    while at < count:
        opened = quotes[at]
        at += 1
        if opened and data[opened - 1] not in starts:
            continue
        while at < count and quotes[at] + 1 < size and data[quotes[at] + 1] == 34:
            at += 2  # a doubled quote
        if at >= count or (quotes[at] + 1 == size and not at_eof):
            if at_eof or size - opened > LONGEST_RECORD:
                where = line + data.count(newline, 0, opened)
                raise UserError(f"table '{table}': the quote opened on line {where} is never closed; close it")
            return _last_break(data, newline, spans, opened), spans
        closed = quotes[at]
        at += 1
        if closed + 1 < size and data[closed + 1] not in starts and data.find(newline, opened, closed) >= 0:
            where = line + data.count(newline, 0, opened)
            raise UserError(
                f"table '{table}': the quote opened on line {where} closes inside a later row; close or remove it"
            )
        spans.append((opened, closed))
    return (size if at_eof else _last_break(data, newline, spans, size)), spans


def _last_break(data: bytes, newline: bytes, spans: Sequence[tuple[int, int]], stop: int) -> int:
    """One past the last line break before ``stop`` that is in no quoted cell; 0 if there is none."""
    for opened, closed in reversed(spans):
        found = data.rfind(newline, closed, stop)
        if found >= 0:
            return found + 1
        stop = opened
    return data.rfind(newline, 0, stop) + 1


def _width(record: bytes, delimiter: str) -> int:
    """How many cells one record has."""
    table = pacsv.read_csv(
        pa.BufferReader(record),
        read_options=pacsv.ReadOptions(use_threads=False, block_size=len(record) + 1, autogenerate_column_names=True),
        parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pacsv.ConvertOptions(check_utf8=False),
    )
    return int(table.num_columns)


def _parse(
    data: bytes, width: int, delimiter: str, bad: list[tuple[int, str]], keep: Sequence[int] | None = None
) -> tuple[list[list[Any]], int]:
    """Parse whole records with pyarrow: cells of the kept columns as bytes, and how many records were good.

    ``bad`` receives ``(index of the record in data, reason)`` of those with another number of cells.
    """

    def ragged(row: Any) -> str:
        bad.append((row.number - 1, f"expected {row.expected_columns} cells, got {row.actual_columns}"))
        return "skip"

    names = [str(i) for i in range(width)]
    table = pacsv.read_csv(
        pa.BufferReader(data),
        read_options=pacsv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=names),
        parse_options=pacsv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, invalid_row_handler=ragged, ignore_empty_lines=width != 1
        ),
        convert_options=pacsv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.binary()),
            include_columns=names if keep is None else [names[i] for i in keep],
            strings_can_be_null=False,
        ),
    )
    return [_text(column) for column in table.columns], int(table.num_rows)


def _text(column: pa.ChunkedArray) -> list[Any]:
    """Bytes to strings; cells that are not UTF-8 to ``BadText``."""
    try:
        return column.cast(pa.string()).to_pylist()
    except pa.ArrowInvalid:
        cells: list[Any] = []
        for cell in column.to_pylist():
            try:
                cells.append(cell.decode())
            except UnicodeDecodeError:
                cells.append(BadText(cell.decode(errors="replace")))
        return cells


def csv_blocks(
    path: Path, names: Sequence[str], delimiter: str | None = None
) -> Iterator[tuple[dict[str, list[Any]], int, list[tuple[int, str]]]]:
    """Yield ``(columns, rows, bad rows)`` block by block; unreadable rows hold None and keep their place.

    Raises:
        UserError: For a quote that is never closed, with the line on which it was opened.
    """
    header = csv_header(path, delimiter)
    keep = [header.names.index(name) for name in names]
    width = len(header.names)
    first, line = 0, header.lines + 1
    with open_input(path) as stream:
        held = _drop(stream, header.start)
        at_eof = False
        while not at_eof:
            more = stream.read(BLOCK_BYTES)
            at_eof = not more
            data = held + more
            end, spans = scan_quotes(data, header.delimiter, header.newline, at_eof=at_eof, table=path.name, line=line)
            if not at_eof and end == 0 and len(data) > LONGEST_RECORD:
                raise UserError(f"table '{path.name}': line {line} is longer than 64 MiB; is this a CSV file?")
            if width == 1:  # a blank line is a row, but not at the end of the file: wait for what follows
                end = len(data[:end].rstrip(b"\r\n"))
                end += 0 if at_eof or not end else 2 if data[end : end + 2] == b"\r\n" else 1
            block, held = data[:end], data[end:]
            if block.strip(b"\r\n") or (width == 1 and block):
                columns, rows, bad = _block(block, width, header, keep, names, spans, line)
                yield columns, rows, [(first + index, reason) for index, reason in bad]
                first += rows
            line += data.count(header.newline, 0, end)


def _drop(stream: Any, count: int) -> bytes:
    """Read past the first ``count`` bytes; return what was read beyond them."""
    while count > BLOCK_BYTES:
        count -= len(stream.read(BLOCK_BYTES))
    data: bytes = stream.read(BLOCK_BYTES)
    return data[count:]


def _block(
    data: bytes,
    width: int,
    header: Header,
    keep: Sequence[int],
    names: Sequence[str],
    spans: Sequence[tuple[int, int]],
    line: int,
) -> tuple[dict[str, list[Any]], int, list[tuple[int, str]]]:
    bad: list[tuple[int, str]] = []
    cells, good = _parse(data, width, header.delimiter, bad, keep or [0])
    columns = dict(zip(names, cells, strict=False))
    if bad:
        lines = _record_lines(data, header.newline, spans, width)
        bad = [(i, f"{why} (line {line + lines[i] if i < len(lines) else '?'})") for i, why in bad]
        skipped = {index for index, _ in bad}
        for name, column in columns.items():
            values = iter(column)
            columns[name] = [None if i in skipped else next(values) for i in range(good + len(bad))]
    return columns, good + len(bad), bad


def _record_lines(data: bytes, newline: bytes, spans: Sequence[tuple[int, int]], width: int) -> list[int]:
    """For each record, how many line breaks stand before it."""
    breaks = np.flatnonzero(np.frombuffer(data, np.uint8) == newline[0])
    inside = np.zeros(len(breaks), dtype=bool)
    if spans:
        low, high = np.array(spans).T
        at = np.searchsorted(low, breaks) - 1
        inside = (at >= 0) & (breaks < high[np.maximum(at, 0)])
    starts = [0, *(int(b) + 1 for b in breaks[~inside])]
    before = np.searchsorted(breaks, starts)  # a record starts after the break at index before - 1
    return [
        int(n)
        for n, start in zip(before, starts, strict=True)
        if start < len(data) and (width == 1 or data[start] not in b"\r\n")
    ]
