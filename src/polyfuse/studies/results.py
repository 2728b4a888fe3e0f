"""Records of a study: one long Parquet file from which every table and figure is drawn, and the shards it is made of.

One row is one number; ``values`` and ``keys`` hold what belongs to test rows. A shard is what one job wrote, whole or
not at all, with the fingerprint of everything that decided it, so that a later run knows what it need not do again.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

VERSION = 1
"""Raised when the meaning of the records changes: shards of another version are made again."""

SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("variant", pa.string()),
        ("split", pa.int32()),
        ("arm", pa.string()),
        ("seed", pa.int32()),
        ("kind", pa.string()),
        ("subset", pa.string()),
        ("corruption", pa.string()),
        ("modality", pa.string()),
        ("stage", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("n", pa.int32()),
        ("values", pa.list_(pa.float32())),
        ("keys", pa.list_(pa.int64())),
    ]
)
KINDS = {
    "data": "rows of the splits, facts about the data; `groups`: number of the cluster of every test row",
    "try": "validation loss of settings that were tried; `stage` is the settings",
    "setting": "what was chosen on validation rows; `metric` is the key, `stage` the value",
    "job": "costs",
    "subset": "scores with exactly these inputs; `stage` is the calibration",
    "found": "scores of the rows as they are, with their own holes",
    "curve": "scores when inputs are lost at random; `corruption` is the rate",
    "broken": "scores with one input broken and nobody told",
    "flagged": "largest change of a logit when an absent input is broken too",
    "seed": "numbers of one model that belong to no subset",
    "row": "loss of every test row",
    "oracle": "a model trained for one subset alone",
    "failed": "a job that failed; `stage` is the message",
}
_ROW_GROUP = 1 << 18


class Records:
    """Rows of one job.

    Args:
        dataset: Registry key.
        variant: What was changed about it; empty = nothing.
        split: Number of the split.
        arm: Name of the plan.
        seed: Of the training.
    """

    def __init__(self, dataset: str, variant: str, split: int, arm: str, seed: int) -> None:
        self.head = {"dataset": dataset, "variant": variant, "split": split, "arm": arm, "seed": seed}
        self.rows: list[dict[str, Any]] = []

    def add(
        self,
        kind: str,
        metric: str,
        value: float | None,
        n: int = 0,
        *,
        subset: str = "",
        corruption: str = "",
        modality: str = "",
        stage: str = "",
        values: ArrayLike | None = None,
        keys: ArrayLike | None = None,
    ) -> None:
        """One row. What could not be computed is left out, unless it has a text or values."""
        number = math.nan if value is None else float(value)
        if not math.isfinite(number) and values is None and kind not in ("failed", "setting", "data", "try"):
            return
        self.rows.append(
            {
                **self.head,
                "kind": kind,
                "subset": subset,
                "corruption": corruption,
                "modality": modality,
                "stage": stage,
                "metric": metric,
                "value": number,
                "n": n,
                "values": None if values is None else np.asarray(values, np.float32),
                "keys": None if keys is None else np.asarray(keys, np.int64),
            }
        )

    def scores(self, kind: str, scores: Mapping[str, Any], n: int, **where: str) -> None:
        """One row per number in ``scores``."""
        for metric, value in scores.items():
            self.add(kind, metric, value, n, **where)

    def table(self) -> pa.Table:
        """The rows, in ``SCHEMA``."""
        return pa.table({name: [row[name] for row in self.rows] for name in SCHEMA.names}, schema=SCHEMA)


def write_shard(path: Path, table: pa.Table, meta: Mapping[str, Any]) -> None:
    """Write one job's rows, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = json.dumps({"version": VERSION, **meta}, allow_nan=True)
    pq.write_table(table.replace_schema_metadata({"job": text}), temporary, compression="zstd")
    temporary.replace(path)


def shard_meta(path: Path) -> dict[str, Any]:
    """What ``write_shard`` was told; empty for a file that is missing, damaged or of another version."""
    try:
        meta = json.loads((pq.read_schema(path).metadata or {})[b"job"])
    except (OSError, KeyError, ValueError, pa.ArrowInvalid):
        return {}
    return dict(meta) if meta.get("version") == VERSION else {}


def merge(shards: Iterable[Path], out: Path) -> int:
    """Write the rows of shards, in order, into one Parquet file; returns how many."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    waiting: list[pa.Table] = []
    count = held = 0
    with pq.ParquetWriter(temporary, SCHEMA, compression="zstd", compression_level=6) as writer:
        for path in shards:
            table = pq.read_table(path, schema=SCHEMA)
            waiting.append(table)
            held += len(table)
            if held >= _ROW_GROUP:
                writer.write_table(pa.concat_tables(waiting), row_group_size=_ROW_GROUP)
                count, held, waiting = count + held, 0, []
        if waiting:
            writer.write_table(pa.concat_tables(waiting), row_group_size=_ROW_GROUP)
    temporary.replace(out)
    return count + held


@dataclass(frozen=True)
class StudyResult:
    """What a run of a study came to.

    Attributes:
        study: Its name.
        scale: smoke, small or full.
        folder: With ``records.parquet`` and ``jobs/``.
        done: Jobs done now.
        skipped: Jobs that an earlier run had done.
        failed: ``(job, message)``.
        seconds: Wall time.
        lines: What to print below the counts: the main tables, where the page is.
    """

    study: str
    scale: str
    folder: Path
    done: int
    skipped: int
    failed: Sequence[tuple[str, str]] = ()
    seconds: float = 0.0
    lines: Sequence[str] = field(default_factory=tuple)

    @property
    def records(self) -> Path:
        """The Parquet file."""
        return self.folder / "records.parquet"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "study": self.study,
            "scale": self.scale,
            "records": str(self.records),
            "done": self.done,
            "skipped": self.skipped,
            "failed": [{"job": job, "message": message} for job, message in self.failed],
            "seconds": self.seconds,
        }

    def text(self) -> str:
        """Tables, failures, where the records are."""
        counts = f"{self.done} jobs done, {self.skipped} were there ({self.seconds:.0f} s): {self.records}"
        return "\n".join([*self.lines, *(f"failed: {job}: {message}" for job, message in self.failed), counts])
