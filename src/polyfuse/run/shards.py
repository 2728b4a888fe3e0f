"""`polyfuse data shards`: a table, or a prepared data set, as WebDataset shards."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyfuse.data.problems import Problems
from polyfuse.data.shards import INDEX, write_shards
from polyfuse.datasets.published import PUBLISHED, read_published
from polyfuse.datasets.row_shards import samples_of_rows, samples_of_table
from polyfuse.errors import UserError


@dataclass(frozen=True)
class ShardsWritten:
    """What was written.

    Attributes:
        folder: Where.
        shards: How many.
        samples: In all.
        problems: What was left out.
    """

    folder: Path
    shards: int
    samples: int
    problems: Problems

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "folder": str(self.folder),
            "shards": self.shards,
            "samples": self.samples,
            "problems": self.problems.to_dict(),
        }

    def text(self) -> str:
        """A few lines."""
        first = f"{self.folder}: {self.samples:,} samples in {self.shards:,} shard{'' if self.shards == 1 else 's'}"
        return "\n".join([first] + [f"problem: {line}" for line in self.problems.lines()])


def shards_of(
    source: str, out: Path, *, files: Sequence[str] = (), max_count: int = 1000, max_bytes: int = 256 << 20
) -> ShardsWritten:
    """Write shards.

    Args:
        source: A table (.csv, .parquet, .jsonl), or the name of a prepared data set.
        out: A folder, new or empty.
        files: Columns of the table that name files.
        max_count: Most samples in a shard.
        max_bytes: Most bytes in a shard.

    Raises:
        UserError: If the source cannot be read, has no rows, or ``out`` is not empty.
    """
    problems = Problems()
    if source in PUBLISHED:
        if files:
            raise UserError(f"--file is for tables; what the files of '{source}' are is known")
        rows = read_published(source)
        samples = samples_of_rows(rows, problems)
    else:
        samples = samples_of_table(Path(source), files, problems)
    try:
        paths = write_shards(samples, out, max_count=max_count, max_bytes=max_bytes)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"'{source}' cannot be written as shards: {error}") from None
    if source in PUBLISHED:
        problems.update(rows.problems)
    index = json.loads((out / INDEX).read_text(encoding="utf-8"))
    return ShardsWritten(out, len(paths), sum(entry["samples"] for entry in index["shards"]), problems)
