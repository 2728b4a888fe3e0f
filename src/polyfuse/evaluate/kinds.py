"""Means per kind of row: the table under every task metric.

Shapes: N rows.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike


def rows_by_kind(
    values: Mapping[str, ArrayLike], kinds: Sequence[str] | None = None
) -> list[dict[str, str | int | float]]:
    """The mean of each value over all rows, then over the rows of each kind, in the order of the alphabet.

    Args:
        values: ``{name: (N,)}``, numbers or truths per row.
        kinds: ``(N,)`` kind of each row; None = the line of all rows alone.

    Returns:
        Lines ``{"kind": ..., "rows": ..., name: mean, ...}``, the first of kind ``"all"``; the mean of no rows is NaN.

    Raises:
        ValueError: If lengths differ.

    Example:
        >>> rows_by_kind({"right": [1, 0, 1]}, ["count", "colour", "colour"])[1]
        {'kind': 'colour', 'rows': 2, 'right': 0.5}
    """
    columns = {name: np.asarray(value, np.float64) for name, value in values.items()}
    lengths = {len(column) for column in columns.values()} | (set() if kinds is None else {len(kinds)})
    if len(lengths) != 1:
        raise ValueError(f"values and kinds must have one length, got {sorted(lengths)}")
    everything = np.ones(lengths.pop(), bool)
    named = np.asarray([] if kinds is None else list(kinds), dtype=object)
    chosen = [("all", everything), *((kind, named == kind) for kind in sorted(set(named.tolist())))]
    return [
        {"kind": kind, "rows": int(rows.sum())}
        | {name: float(column[rows].mean()) if rows.any() else float("nan") for name, column in columns.items()}
        for kind, rows in chosen
    ]
