"""Rows of another table that a run has met already: judged on them, a model looks better than it is."""

from collections.abc import Collection, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

from polyfuse.data.codecs import clean
from polyfuse.data.encode import content_of
from polyfuse.data.schema import DataConfig
from polyfuse.data.table import read_chunks, read_header


def rows_met(config: DataConfig, met: Collection[int], table: Path, *, delimiter: str | None = None) -> list[int]:
    """Numbers of the rows of ``table`` whose inputs and target stand in one of the rows ``met`` of the run's own table.

    Cells are compared as they are written, so a file under another name is another input.

    Args:
        config: Schema of the run; its own table is read again.
        met: Row numbers in that table, from 0.
        table: Another table. Only inputs and targets that both tables have are compared.
        delimiter: Of ``table``, if it is a CSV; None looks at the header.
    """
    own = Path(config.table)
    heads = read_header(own, delimiter=config.delimiter), read_header(table, delimiter=delimiter)
    columns = [name for name in (*config.input_columns, *config.target_columns) if all(name in head for head in heads)]
    wanted, known = frozenset(met), set()
    for row, digest in _digests(own, columns, config.nulls, config.delimiter):
        if row in wanted:
            known.add(digest)
    return [row for row, digest in _digests(table, columns, config.nulls, delimiter) if digest in known]


def _digests(
    table: Path, columns: Sequence[str], nulls: frozenset[str], delimiter: str | None
) -> Iterator[tuple[int, bytes]]:
    for chunk in read_chunks(table, columns=columns, delimiter=delimiter):
        bad = {row for row, _ in chunk.bad_rows}
        cells = zip(*(clean(chunk.columns[name], nulls) for name in columns), strict=True)
        for row, here in enumerate(cells, start=chunk.first_row):
            if row not in bad:
                content = "\x1f".join(map(content_of, here))
                yield row, blake2b(content.encode(errors="replace"), digest_size=16).digest()
