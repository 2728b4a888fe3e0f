"""Which row goes to train, validation or test: by a column, or by ratio, keyed, stratified, groups kept whole.

The draw hashes the row's own key, so that the order of the rows never matters.
"""

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from polyfuse.errors import UserError

NAMES = ("train", "validation", "test")
WORDS = {"train": 0, "training": 0, "validation": 1, "valid": 1, "val": 1, "dev": 1, "test": 2, "testing": 2}


def split_by_column(
    values: Sequence[str | None], column: str, *, way_out: str = "rename it there or remove data.split.column"
) -> np.ndarray:
    """``(N,)`` int8: 0 train, 1 validation, 2 test, -1 empty; ``way_out`` ends the message of a wrong word.

    Raises:
        UserError: For a word that is none of train, validation (val, valid, dev) and test.

    Example:
        >>> split_by_column(["train", "dev", None, "Test"], "fold").tolist()
        [0, 1, -1, 2]
    """
    known = {word: WORDS.get(str(word).lower(), -2) for word in set(values) if word is not None}
    for word, code in sorted(known.items(), key=str):
        if code == -2:
            raise UserError(
                f"split column {column!r} must hold train, validation (val, valid, dev) or test, got {word!r}; "
                f"{way_out}"
            )
    return np.array([-1 if value is None else known[value] for value in values], dtype=np.int8)


def split_by_ratio(
    keys: Sequence[str],
    *,
    ratios: tuple[float, float, float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    strata: Sequence[Hashable] | None = None,
    groups: Sequence[str | None] | None = None,
) -> np.ndarray:
    """Divide rows so that every stratum has the wanted shares to within one unit.

    Units (groups, or rows) are ordered by a keyed hash within their stratum and each goes to the split that lacks most.
    The first unit of every stratum is a training unit.

    Args:
        keys: One stable, distinct string per row.
        ratios: Shares of train, validation and test.
        seed: Another seed gives another split.
        strata: What must be spread evenly, such as the class; a group counts as its commonest stratum.
        groups: Rows with the same group stay together; None stands alone.

    Returns:
        ``(N,)`` int8: 0 train, 1 validation, 2 test.

    Example:
        >>> split_by_ratio(list("abcdefghij"), ratios=(0.5, 0.3, 0.2)).tolist().count(0)
        5
    """
    units: dict[tuple[int, str], list[int]] = {}
    for row, key in enumerate(keys):
        group = None if groups is None else groups[row]
        units.setdefault((0, key) if group is None else (1, group), []).append(row)
    ordered = []
    for (kind, name), rows in units.items():
        mark = hashlib.blake2b(f"{seed}\0{kind}\0{name}".encode(), digest_size=8).digest()
        if strata is None:
            stratum: Hashable = 0
        else:
            count = Counter(strata[row] for row in rows)
            stratum = min(count, key=lambda s: (-count[s], str(s)))
        ordered.append((str(stratum), mark, rows))
    ordered.sort(key=lambda unit: unit[:2])
    out = np.zeros(len(keys), dtype=np.int8)
    wanted = [s for s in range(3) if ratios[s] > 0]
    everywhere, here, last = [0, 0, 0], [0, 0, 0], ""
    for stratum_name, _, rows in ordered:
        if stratum_name != last:
            here, last = [0, 0, 0], stratum_name
        size, seen, total = len(rows), sum(here), max(sum(everywhere), 1)
        choice, most = 0, -np.inf
        for s in wanted if seen else ():
            # what the split lacks in this stratum; ties go to what it lacks over all
            lack = ratios[s] * (seen + size) - here[s] + 1e-3 * (ratios[s] * (total + size) - everywhere[s]) / total
            if lack > most:
                choice, most = s, lack
        here[choice] += size
        everywhere[choice] += size
        for row in rows:
            out[row] = choice
    return out


def strata_of(labels: Sequence[Hashable], *, smallest: int = 7) -> list[Hashable]:
    """Labels as strata; those too rare to reach every split are pooled.

    Only for combinations of labels: a class is never pooled, so that each has a training row.

    Example:
        >>> strata_of(["a"] * 7 + ["b"])[-1]
        'rare'
    """
    count = Counter(labels)
    return [label if count[label] >= smallest else "rare" for label in labels]
