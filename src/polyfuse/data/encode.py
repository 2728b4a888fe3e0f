"""Read a training table once, split it, fit the encoder on its training rows and encode every split into one batch."""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from polyfuse.data.batch import Batch
from polyfuse.data.codecs import clean
from polyfuse.data.problems import Problems
from polyfuse.data.schema import DataConfig
from polyfuse.data.split import NAMES, split_by_column, split_by_ratio, strata_of
from polyfuse.data.store import Store
from polyfuse.data.table import Chunk, check_columns, read_chunks, read_header
from polyfuse.data.table_encoder import Encoded, TableEncoder
from polyfuse.data.target import TargetCodec
from polyfuse.errors import UserError

__all__ = ["Encoded", "Prepared", "TableEncoder", "prepare"]
_HELD_BYTES = 256 << 20  # the text of a table up to here is kept, a larger one is read again at each pass
_COPIES = 0.1  # rows without an id that repeat others: up to this share they are copies and stay in one split


@dataclass(frozen=True)
class Prepared:
    """A training table, encoded.

    Attributes:
        train: Training rows with a target and at least one usable input, in table order.
        validation: Likewise.
        test: Likewise; may be empty if the schema asks for no test rows.
        encoder: Fitted on ``train`` only.
        problems: What was wrong, by kind.
        summary: Plain values for a report: ``rows, unreadable, without_target, unseen_label, without_input, task,
            target, splits, modalities`` (type, columns, present per split), ``patterns`` (present set to rows),
            ``classes`` (rows per split), ``problems, notes``.
        rows: Row numbers (from 0) per split.
        groups: Group per row and split where the schema names a group column: the clusters of an interval.
    """

    train: Batch
    validation: Batch
    test: Batch
    encoder: TableEncoder
    problems: Problems
    summary: dict[str, Any]
    rows: dict[str, list[int]]
    groups: dict[str, list[str]] | None

    def lines(self) -> list[str]:
        """What a user should read before training, one line each."""
        sizes = ", ".join(f"{name} {count}" for name, count in self.summary["splits"].items())
        return [f"rows: {self.summary['rows']} ({sizes})", *self.summary["notes"], *self.problems.lines()]


class _Source:
    """The table's cleaned chunks, held in memory if they are small, else read again at each pass."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.path = Path(config.table)
        self.nulls = config.nulls
        scale = 8 if self.path.suffix == ".gz" else 1
        self.held: list[Chunk] | None = None
        self.small = self.path.stat().st_size * scale <= _HELD_BYTES

    def __iter__(self) -> Iterator[Chunk]:
        if self.held is not None:
            yield from self.held
            return
        held = []
        columns = self.config.used_columns
        for chunk in read_chunks(self.path, columns=columns, delimiter=self.config.delimiter):
            for name, cells in chunk.columns.items():
                chunk.columns[name] = clean(cells, self.nulls)
            if self.small:
                held.append(chunk)
            yield chunk
        if self.small:
            self.held = held


@dataclass
class _Overview:
    """What is known of every row after one pass: target, identity, split and group cells."""

    target: dict[str, list[Any]]
    ids: list[str] = field(default_factory=list)
    units: list[str] = field(default_factory=list)
    split: list[Any] = field(default_factory=list)
    group: list[Any] = field(default_factory=list)
    readable: list[bool] = field(default_factory=list)


def content_of(cell: Any) -> str:
    """A cell's content as a string that another content does not have."""
    if cell is None or isinstance(cell, str):
        return cell or ""
    raw = cell if isinstance(cell, bytes) else cell.tobytes() if isinstance(cell, np.ndarray) else repr(cell).encode()
    return _digest(raw)


def _digest(raw: bytes) -> str:
    return blake2b(raw, digest_size=16).hexdigest()


def _overview(source: _Source, config: DataConfig, problems: Problems) -> _Overview:
    seen: Counter[str] = Counter()
    copies: list[int] = []
    view = _Overview({name: [] for name in config.target_columns})
    for chunk in source:
        for row, reason in chunk.bad_rows:
            problems.add("row", "unreadable", row, reason)
        bad = {row - chunk.first_row for row, _ in chunk.bad_rows}
        rows = range(len(chunk))
        view.readable += [i not in bad for i in rows]
        for name in config.target_columns:
            view.target[name] += chunk.columns[name]
        if config.id is not None:
            cells = chunk.columns[config.id]
            names = [f"row {chunk.first_row + i + 1}" if cells[i] is None else str(cells[i]) for i in rows]
            for i in (i for i in rows if chunk.columns[config.id][i] is None and i not in bad):
                problems.add("row", "empty id", chunk.first_row + i)
        else:
            content = zip(*(map(content_of, chunk.columns[name]) for name in config.used_columns), strict=True)
            names = [_digest("\x1f".join(row).encode(errors="replace")) for row in content]
        view.units += names
        for i, name in enumerate(names):
            seen[name] += 1
            view.ids.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
            if seen[name] > 1 and i not in bad:
                if config.id is not None:
                    problems.add("row", "duplicate id", chunk.first_row + i, name)
                else:
                    copies.append(chunk.first_row + i)
        view.split += chunk.columns[config.split.column] if config.split.column else []
        view.group += chunk.columns[config.split.group] if config.split.group else []
    if len(copies) > _COPIES * len(view.ids):
        view.units = view.ids  # rows of so little content are equal by chance, not copies of each other
    else:
        for row in copies:
            problems.add("row", "copy of an earlier row", row)
    return view


def _split(
    view: _Overview, rows: Sequence[int], strata: list[Hashable] | None, config: DataConfig, problems: Problems
) -> np.ndarray:
    """``(len(rows),)`` int8: 0 train, 1 validation, 2 test, -1 none."""
    settings = config.split
    keys = [view.ids[row] for row in rows]
    groups: list[str | None] = [view.units[row] for row in rows]
    if settings.group is not None:
        groups = [None if view.group[row] is None else str(view.group[row]) for row in rows]
    strata = strata if settings.stratify else None
    if settings.column is None:
        return split_by_ratio(keys, ratios=settings.ratios, seed=settings.seed, strata=strata, groups=groups)
    code = split_by_column([view.split[row] for row in rows], settings.column)
    for i in np.flatnonzero(code < 0).tolist():
        problems.add("split", "empty cell", rows[i])
    if not (code == 1).any() and (code == 0).any():  # a table that only tells train from test
        part = np.flatnonzero(code == 0)
        share = settings.ratios[1] / (settings.ratios[0] + settings.ratios[1])
        code[part] = split_by_ratio(
            [keys[i] for i in part],
            ratios=(1 - share, share, 0.0),
            seed=settings.seed,
            strata=None if strata is None else [strata[i] for i in part],
            groups=[groups[i] for i in part],
        )
    return code


def prepare(config: DataConfig, *, folder: Path | str, workers: int = 2) -> Prepared:
    """From a schema to three batches.

    Args:
        config: The schema; ``config.table`` is opened as it stands.
        folder: Where an encoded table that is too large for memory is kept.
        workers: Threads that decode files; the result does not depend on it.

    Raises:
        UserError: For an unknown column, a table without usable rows, a target without two values, a split without
            training or validation rows, or more broken files in a modality than ``max_bad_fraction``.
    """
    table = Path(config.table)
    wanted = config.used_columns
    check_columns(wanted, read_header(table, delimiter=config.delimiter, wanted=wanted), table.name)
    problems = Problems()
    source = _Source(config)
    view = _overview(source, config, problems)
    target, usable = _usable_rows(view, config, problems)
    chosen = {name: [view.target[name][row] for row in usable] for name in view.target}
    columns = list(chosen.values())
    strata = target.strata(columns)
    if strata is not None and target.spec.task == "multilabel":
        strata = strata_of(strata)
    code = _split(view, usable, strata, config, problems)
    in_train = np.flatnonzero(code == 0).tolist()
    if not in_train:
        raise UserError(f"table '{table.name}' has no training row; check data.split")
    target = target.fit([[column[i] for i in in_train] for column in columns])
    values, unseen = target.encode(columns)
    for i, kind, label in unseen:
        if code[i] >= 0:
            problems.add("target", kind, usable[i], f"{label} ({NAMES[code[i]]})")
    if target.spec.task == "classification":
        code[values < 0] = -1
    split_of = np.full(len(view.ids), -1, dtype=np.int8)
    split_of[usable] = code
    at = np.zeros(len(view.ids), dtype=np.int64)
    at[usable] = np.arange(len(usable))

    def train_rows() -> Iterator[tuple[Chunk, list[int]]]:
        for chunk in source:
            yield chunk, np.flatnonzero(split_of[chunk.first_row : chunk.first_row + len(chunk)] == 0).tolist()

    with ThreadPoolExecutor(workers) if workers > 1 else nullcontext() as pool:
        encoder = TableEncoder.fit(config, target, train_rows, pool)
        count = [int((split_of == s).sum()) for s in range(3)]
        store = Store(encoder.specs, values, count, Path(folder), config.max_memory_gb)
        for chunk in source:
            here = split_of[chunk.first_row : chunk.first_row + len(chunk)]
            rows = np.flatnonzero(here >= 0).tolist()
            parts, present, _ = encoder.encode_rows(chunk, rows, problems, pool)
            full = present.any(1)
            for i in np.flatnonzero(~full).tolist():
                problems.add("row", "no usable input", chunk.first_row + rows[i])
            number = chunk.first_row + np.array(rows, dtype=np.int64)
            store.add(parts, present, values[at[number]], number, np.where(full, here[rows], -1))
    _check_broken(encoder, problems, store.encoded)
    ids = view.ids if config.id is not None else [str(row + 1) for row in range(len(view.ids))]
    batches = [store.batch(s, view.ids, ids) for s in range(3)]
    for name, batch in zip(NAMES[:2], batches, strict=False):
        if not len(batch):
            raise UserError(f"table '{table.name}' has no usable {name} row out of {len(view.ids)}; check data.split")
    rows_of = {name: store.numbers[s].tolist() for s, name in enumerate(NAMES)}
    groups = None
    if config.split.group is not None:
        groups = {name: [_group(view, row) for row in rows] for name, rows in rows_of.items()}
    summary = _summary(encoder, problems, batches, len(view.ids))
    return Prepared(batches[0], batches[1], batches[2], encoder, problems, summary, rows_of, groups)


def _group(view: _Overview, row: int) -> str:
    return f"row {row + 1}" if view.group[row] is None else str(view.group[row])


def _usable_rows(view: _Overview, config: DataConfig, problems: Problems) -> tuple[TargetCodec, list[int]]:
    """How the target is read, and the readable rows that have one."""
    readable = [row for row, good in enumerate(view.readable) if good]
    name = Path(config.table).name
    if not readable:
        reasons = problems.lines()
        raise UserError(f"table '{name}' has no readable row" + (f": {reasons[0]}" if reasons else " below its header"))
    columns = {column: [cells[row] for row in readable] for column, cells in view.target.items()}
    target = TargetCodec.choose(columns, config.task, config.separator)
    ok, found = target.readable(list(columns.values()))
    for i, kind, detail in found:
        problems.add("target", kind, readable[i], detail)
    usable = [row for row, good in zip(readable, ok, strict=True) if good]
    if not usable:
        why = "; ".join(problems.lines())
        raise UserError(f"no row of table '{name}' has a usable target {', '.join(view.target)!r}: {why}")
    return target, usable


def _check_broken(encoder: TableEncoder, problems: Problems, rows: int) -> None:
    """Refuse a table whose files are mostly broken: a wrong folder must not become a training run."""
    limit = encoder.config.max_bad_fraction
    for name in encoder.config.modalities:
        broken = problems.broken(name)
        filled = rows - problems.counts.get((name, "empty cell"), 0)
        if broken and broken > limit * filled:
            kinds = [f"{count} x {kind}: {'; '.join(named[:3])}" for w, kind, count, named in problems if w == name]
            raise UserError(
                f"modality '{name}': {broken} of {filled} files broken, more than data.max_bad_fraction = {limit:g} "
                f"({' | '.join(kinds)[:600]}); mend them or raise the limit"
            )


def _summary(encoder: TableEncoder, problems: Problems, batches: Sequence[Batch], rows: int) -> dict[str, Any]:
    """Plain values that describe what is trained on."""

    def times(where: str, kind: str) -> int:
        return problems.counts.get((where, kind), 0)

    modalities = {}
    for m, (name, codec) in enumerate(encoder.codecs.items()):
        present = {split: int(batch.present[:, m].sum()) for split, batch in zip(NAMES, batches, strict=True)}
        modalities[name] = {"type": codec.spec.type, "columns": list(codec.columns), "present": present}
    patterns: Counter[str] = Counter()
    for batch in batches:
        names = np.array(encoder.modalities, dtype=object)
        found, count = np.unique(batch.present.numpy(), axis=0, return_counts=True)
        for pattern, number in zip(found, count, strict=True):
            patterns["+".join(names[pattern])] += int(number)
    classes: dict[str, dict[str, int]] = {}
    for split, batch in zip(NAMES, batches, strict=True):
        if encoder.target.task != "regression" and batch.target is not None:
            target = batch.target.numpy()
            hot = target if target.ndim == 2 else target[:, None] == np.arange(len(encoder.target.classes))
            for label, number in zip(encoder.target.classes, hot.sum(0), strict=True):
                classes.setdefault(label, {})[split] = int(number)
    without = sum(n for (where, kind), n in problems.counts.items() if where == "target" and kind != "unseen label")
    notes = list(encoder.notes)
    if unseen := times("target", "unseen label"):
        notes.append(f"target: {unseen} x a label that no training row has; left out of scoring")
    return {
        "rows": rows,
        "unreadable": times("row", "unreadable"),
        "without_target": without,
        "unseen_label": unseen,
        "without_input": times("row", "no usable input"),
        "task": encoder.target.task,
        "target": list(encoder.target_codec.columns),
        "splits": {split: len(batch) for split, batch in zip(NAMES, batches, strict=True)},
        "modalities": modalities,
        "patterns": dict(patterns.most_common()),
        "classes": classes,
        "problems": problems.to_dict(),
        "notes": notes,
    }
