"""Look at a table and propose its schema: what each column is, what is missing, what could be predicted."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polyfuse.data.codecs import Reading, clean, find_file, numbers
from polyfuse.data.guess import Guess, guess_kind
from polyfuse.data.problems import Broken, Problems
from polyfuse.data.schema import NULL_VALUES, DataConfig, validate
from polyfuse.data.split import WORDS
from polyfuse.data.table import check_columns, read_chunks, read_header
from polyfuse.data.table_csv import BadText
from polyfuse.data.target import TargetCodec
from polyfuse.errors import UserError
from polyfuse.yaml_text import dump_yaml

SAMPLE = 5000
FILES = 2000
PATTERNS = 20
_FILE_TYPES = ("image", "audio", "video", "points")
_TARGET_NAMES = ("target", "label", "labels", "class", "category", "outcome", "diagnosis", "y", "rating", "score")
_SPLIT_NAMES = ("split", "fold", "subset", "partition", "set")
_NULLS = frozenset(NULL_VALUES)


@dataclass(frozen=True)
class Proposal:
    """A schema and what it rests on; every field but ``config`` is plain values.

    Attributes:
        config: The proposed schema, ready for ``prepare``.
        rows: Rows in the table, unreadable ones included.
        columns: Per column ``name, kind, role, filled, distinct, example, why``.
        modalities: Per modality ``name, type, columns, present, absent, absent_share``.
        patterns: ``{"photo+title": rows}``: which inputs rows have, most frequent first; ``""`` has none.
        target: ``columns, task, values`` (label to rows) or ``low, mean, high``, and ``empty``.
        notes: Sentences: what was left out and why, duplicates, missing files, what to decide.
        problems: Counted by kind, as training would.
    """

    config: DataConfig
    rows: int
    columns: list[dict[str, Any]]
    modalities: list[dict[str, Any]]
    patterns: dict[str, int]
    target: dict[str, Any]
    notes: list[str]
    problems: Problems

    def to_yaml(self) -> str:
        """The schema as a configuration file that `polyfuse train` takes."""
        plain = self.config.model_dump(mode="json", exclude_defaults=True)
        body = dump_yaml({"data": plain})
        return f"# proposed for {Path(self.config.table).name}; look it over, then: polyfuse train THIS_FILE\n{body}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "config": self.config.model_dump(mode="json", exclude_defaults=True),
            "rows": self.rows,
            "columns": self.columns,
            "modalities": self.modalities,
            "patterns": self.patterns,
            "target": self.target,
            "notes": self.notes,
            "problems": self.problems.to_dict(),
        }

    def lines(self) -> list[str]:
        """The whole as text, narrow enough for a terminal."""
        out = [f"table: {self.config.table}, {self.rows} rows, {len(self.columns)} columns", "", "columns:"]
        wide = max((len(c["name"]) for c in self.columns), default=0)
        for c in self.columns:
            out.append(f"  {c['name']:<{wide}}  {c['kind']:<11} {c['filled']:>5.0%} filled  {c['role']}")
        out += ["", "inputs:"]
        for m in self.modalities:
            out.append(f"  {m['name']} ({m['type']}): absent in {m['absent']} rows ({m['absent_share']:.1%})")
        out += ["", "present together:"]
        shown = list(self.patterns.items())[:PATTERNS]
        out += [f"  {names or '(nothing)'}: {n} ({n / max(self.rows, 1):.1%})" for names, n in shown]
        rest = sum(self.patterns.values()) - sum(n for _, n in shown)
        out += [f"  ... and {len(self.patterns) - PATTERNS} more in {rest} rows"] if rest else []
        out += [
            "",
            f"target: {', '.join(self.target['columns'])} ({self.target['task']}), {self.target['empty']} empty",
        ]
        if "values" in self.target:
            out += [f"  {label}: {n}" for label, n in list(self.target["values"].items())[:20]]
            hidden = len(self.target["values"]) - 20
            out += [f"  ... and {hidden} more"] if hidden > 0 else []
        else:
            out.append("  from {low:g} to {high:g}, mean {mean:g}".format(**self.target))
        out += ["", *self.notes] if self.notes else []
        return out + self.problems.lines()


def propose(path: Path | str, target: str | Sequence[str] | None = None, *, delimiter: str | None = None) -> Proposal:
    """Propose a schema.

    Types are guessed from the first 5,000 rows; counts are of the whole table; of each column of files, the first 2,000
    are looked for on disk.

    Args:
        path: The table.
        target: The column to predict, or several; None looks for a likely one and says so.
        delimiter: CSV: what separates cells; None looks at the header.

    Raises:
        UserError: If the table cannot be read, has no row, lacks the target column or has no usable input.
    """
    path = Path(path)
    header = read_header(path, delimiter=delimiter)
    targets = [target] if isinstance(target, str) else list(target or ())
    check_columns(targets, header, path.name)
    sample: dict[str, list[Any]] = {name: [] for name in header}
    words: dict[str, Counter[str]] = {name: Counter() for name in header}
    for chunk in read_chunks(path, delimiter=delimiter):
        for name in header:
            sample[name] += clean(chunk.columns[name], _NULLS)
            words[name].update(cell for cell in chunk.columns[name] if type(cell) is str and cell.strip() in _NULLS)
        if len(sample[header[0]]) >= SAMPLE:
            break
    if not any(sample.values()):
        raise UserError(f"table '{path.name}' has no row below its header")
    guesses = {name: guess_kind(name, cells, path.parent) for name, cells in sample.items()}
    notes = _bad_text(sample)
    notes += _null_words({name: count for name, count in words.items() if guesses[name].kind != "numeric"})
    if not targets:
        targets = [_likely_target(header, guesses, sample)]
        notes.append(f"target: {targets[0]!r} is a guess; --target COLUMN names another")
    roles = {name: "target" for name in targets}
    plain: dict[str, Any] = {"table": str(path), "target": targets[0] if len(targets) == 1 else targets}
    if delimiter is not None:
        plain["delimiter"] = delimiter
    split = _split_column(header, sample, roles)
    if split is not None:
        roles[split], plain["split"] = "split", {"column": split}
    name_of_row = next((n for n in header if n not in roles and guesses[n].kind == "id"), None)
    if name_of_row is not None:
        roles[name_of_row], plain["id"] = "id", name_of_row
    plain["modalities"] = _modalities(header, guesses, roles, notes)
    if not plain["modalities"]:
        kinds = ", ".join(f"{name}: {guesses[name].kind}" for name in header if name not in targets)
        raise UserError(f"table '{path.name}' has no column that can be an input ({kinds or 'only the target'})")
    separator = _separator(sample[targets[0]]) if len(targets) == 1 else None
    if separator is not None:
        plain["separator"] = separator
    notes += _leaks(targets, guesses, roles, sample)
    return _count(validate(DataConfig, plain, "data."), guesses, sample, roles, notes)


def _bad_text(sample: dict[str, list[Any]]) -> list[str]:
    """Columns with cells that are not UTF-8: another encoding, most likely of the whole file."""
    counts = {name: sum(type(cell) is BadText for cell in cells) for name, cells in sample.items()}
    told = ", ".join(f"{name!r} ({count})" for name, count in counts.items() if count)
    return [f"cells that are not UTF-8 read as empty, in column {told}; save the table as UTF-8"] if told else []


def _null_words(words: dict[str, Counter[str]]) -> list[str]:
    """Words that are read as empty, by column."""
    notes = []
    for name, count in words.items():
        found = [f"{n} x {word!r}" for word, n in count.most_common(3) if word.strip()]
        if found:
            notes.append(f"column {name!r}: {', '.join(found)} read as empty; if that is a value, set data.null_values")
    return notes


def _likely_target(header: Sequence[str], guesses: dict[str, Guess], sample: dict[str, list[Any]]) -> str:
    """A column by its usual name, else the last one with few repeated values, else the last numeric one."""
    lower = {name.lower(): name for name in reversed(header)}
    for usual in _TARGET_NAMES:
        if usual in lower and guesses[lower[usual]].kind in ("categorical", "numeric", "other"):
            return lower[usual]
    for kind in ("categorical", "numeric"):
        for name in reversed(header):
            full = sum(cell is not None for cell in sample[name])
            if guesses[name].kind == kind and (kind == "numeric" or 2 <= guesses[name].distinct <= full / 2):
                return name
    raise UserError(f"no column looks like a target; name it with --target COLUMN (columns: {', '.join(header)})")


def _split_column(header: Sequence[str], sample: dict[str, list[Any]], roles: dict[str, str]) -> str | None:
    for name in header:
        words = {str(cell).lower() for cell in sample[name] if cell is not None}
        if name not in roles and name.lower() in _SPLIT_NAMES and words and words <= WORDS.keys() and "train" in words:
            return name
    return None


def _modalities(
    header: Sequence[str], guesses: dict[str, Guess], roles: dict[str, str], notes: list[str]
) -> dict[str, Any]:
    """One modality per image, audio, text, series or vector column; one for all numbers and categories together."""
    modalities: dict[str, Any] = {}
    table: list[str] = []
    for name in header:
        kind = guesses[name].kind
        if name in roles:
            continue
        if kind in ("numeric", "categorical"):
            table.append(name)
            roles[name] = "input table"
        elif kind in ("image", "audio", "text", "series", "vector", "video", "points"):
            modality = _free(re.sub(r"[^\w-]+", "_", name).strip("_") or kind, modalities)
            modalities[modality] = {"type": kind, "column": name}
            roles[name] = f"input {modality}"
        else:
            roles[name] = "left out"
            notes.append(f"column {name!r} is left out: {kind} ({guesses[name].why})")
            if kind == "code":
                notes[-1] += "; if its rows belong together, set data.split.group to it"
    if table:
        name = _free("table", modalities)
        modalities[name] = {"type": "tabular", "columns": table}
        for column in table:
            roles[column] = f"input {name}"
    return modalities


def _free(name: str, taken: dict[str, Any]) -> str:
    while name in taken:
        name += "_"
    return name


def _separator(cells: Sequence[Any]) -> str | None:
    """What joins several labels in one cell: parts must repeat more than the whole cells do."""
    full = [cell for cell in cells if isinstance(cell, str)]
    for sign in "|;":
        joined = [cell for cell in full if sign in cell]
        if len(joined) >= 0.1 * len(full) and joined:
            parts = {part.strip() for cell in full for part in cell.split(sign)}
            if len(parts) <= 0.75 * len(set(full)) or len(parts) <= 10:
                return sign
    return None


def _leaks(
    targets: Sequence[str], guesses: dict[str, Guess], roles: dict[str, str], sample: dict[str, list[Any]]
) -> list[str]:
    """Columns whose values stand for the target's one to one."""
    notes: list[str] = []
    if len(targets) > 1 or guesses[targets[0]].kind not in ("categorical", "numeric", "code"):
        return notes
    for name, guess in guesses.items():
        if roles.get(name, "").startswith("input") and guess.kind == "categorical":
            pairs = {(a, b) for a, b in zip(sample[name], sample[targets[0]], strict=True) if None not in (a, b)}
            if len(pairs) > 1 and len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs):
                notes.append(f"column {name!r} tells the target one to one; remove it if it is known only afterwards")
    return notes


@dataclass
class _Tally:
    """Counts over the whole table."""

    rows: int = 0
    filled: Counter[str] = field(default_factory=Counter)
    patterns: Counter[tuple[bool, ...]] = field(default_factory=Counter)
    looked: Counter[str] = field(default_factory=Counter)
    ids: Counter[str] = field(default_factory=Counter)


def _count(
    config: DataConfig, guesses: dict[str, Guess], sample: dict[str, list[Any]], roles: dict[str, str], notes: list[str]
) -> Proposal:
    tally, problems = _Tally(), Problems()
    target: dict[str, list[Any]] = {name: [] for name in config.target_columns}
    for chunk in read_chunks(config.table, delimiter=config.delimiter):
        columns = {name: clean(chunk.columns[name], _NULLS) for name in sample}
        for row, reason in chunk.bad_rows:
            problems.add("row", "unreadable", row, reason)
        tally.rows += len(chunk)
        for name, cells in columns.items():
            tally.filled[name] += len(cells) - sum(cell is None for cell in cells)
        here = [
            np.any([[cell is not None for cell in columns[column]] for column in modality.all_columns], axis=0)
            for modality in config.modalities.values()
        ]
        tally.patterns.update(map(tuple, np.stack(here, axis=1).tolist()))
        for name, modality in config.modalities.items():
            if modality.type in _FILE_TYPES:
                _look_for_files(name, columns[modality.all_columns[0]], chunk.first_row, chunk.folder, tally, problems)
        if config.id is not None:
            tally.ids.update(str(cell) for cell in columns[config.id] if cell is not None)
        for name in target:
            target[name] += columns[name]
    repeated = sum(n - 1 for n in tally.ids.values() if n > 1)
    if repeated:
        problems.add("row", "duplicate id", times=repeated)
    modalities = []
    for m, (name, modality) in enumerate(config.modalities.items()):
        present = sum(n for pattern, n in tally.patterns.items() if pattern[m])
        absent = tally.rows - present
        share = absent / max(tally.rows, 1)
        entry = {"name": name, "type": modality.type, "columns": list(modality.all_columns)}
        modalities.append({**entry, "present": present, "absent": absent, "absent_share": share})
    names = np.array(list(config.modalities), dtype=object)
    patterns = {"+".join(names[list(pattern)]): n for pattern, n in tally.patterns.most_common()}
    columns_out = [
        {
            "name": name,
            "kind": guess.kind,
            "role": roles.get(name, "left out"),
            "filled": tally.filled[name] / max(tally.rows, 1),
            "distinct": guess.distinct,
            "example": str(next((c for c in sample[name] if c is not None), ""))[:60],
            "why": guess.why,
        }
        for name, guess in guesses.items()
    ]
    for name, looked in tally.looked.items():
        if problems.broken(name) > config.max_bad_fraction * looked:
            notes.append(
                f"{name}: {problems.broken(name)} of the first {looked} files are broken; training refuses more than "
                f"data.max_bad_fraction = {config.max_bad_fraction:g}"
            )
    found = _describe_target(config, target)
    settled = config.model_copy(update={"task": found["task"]})
    return Proposal(settled, tally.rows, columns_out, modalities, patterns, found, notes, problems)


def _look_for_files(
    name: str, cells: Sequence[Any], first: int, folder: Path | None, tally: _Tally, problems: Problems
) -> None:
    """Count what is wrong with the first files a column names, without opening them."""
    for i, cell in enumerate(cells):
        if type(cell) is str and tally.looked[name] < FILES:
            tally.looked[name] += 1
            try:
                find_file(cell, Reading(folder))
            except Broken as broken:
                problems.add(name, broken.kind, first + i, repr(cell))


def _describe_target(config: DataConfig, cells: dict[str, list[Any]]) -> dict[str, Any]:
    """Task and balance."""
    columns = list(cells.values())
    codec = TargetCodec.choose(cells, config.task, config.separator)
    ok, _ = codec.readable(columns)
    kept = [[cell for cell, good in zip(column, ok, strict=True) if good] for column in columns]
    out: dict[str, Any] = {"columns": list(cells), "task": codec.spec.task, "empty": int((~ok).sum())}
    if codec.spec.task == "regression":
        values = numbers(kept[0])[0]
        low, mean, high = (values.min(), values.mean(), values.max()) if len(values) else (0.0, 0.0, 0.0)
        return {**out, "low": float(low), "mean": float(mean), "high": float(high)}
    count: Counter[str] = Counter()
    if codec.spec.task == "classification":
        count.update(kept[0])
    elif len(columns) > 1:
        for row in codec.strata(kept) or ():
            count.update(name for name, yes in zip(cells, row, strict=True) if yes)  # type: ignore[call-overload]
    else:
        count.update(label for cell in kept[0] for label in set(codec.labels(cell)))
    return {**out, "values": dict(count.most_common())}
