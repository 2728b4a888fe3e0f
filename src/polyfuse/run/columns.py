"""Tables for the terminal: aligned, and cut into blocks of columns that fit its width."""

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence

WIDTH = 80


def described(parts: Mapping[str, str], width: int | None = None) -> list[str]:
    """Names to the left, what they are to the right, in as many lines as it takes.

    Args:
        parts: What each name is.
        width: Columns; None = those of the terminal, 80 to 120.

    Example:
        >>> described({"late": "Mean of logits.", "sum": "Sum."}, width=14)
        ['late  Mean of', '      logits.', 'sum   Sum.']
    """
    width = min(max(shutil.get_terminal_size((WIDTH, 24)).columns, WIDTH), 120) if width is None else width
    indent = max(map(len, parts), default=0) + 2
    lines: list[str] = []
    for name, text in parts.items():
        number = re.match(r" +\S+ +", text)  # a column of its own
        margin = " " * (indent + (number.end() if number else 0))
        first = f"{name:<{indent}}{text}"
        lines += textwrap.wrap(first, width, subsequent_indent=margin, break_on_hyphens=False, break_long_words=False)
    return lines


def aligned(rows: Sequence[Sequence[str]], width: int = WIDTH) -> list[str]:
    """The first column to the left, the others to the right.

    Columns that do not fit stand in a further block, below an empty line, with the first column again.

    Example:
        >>> aligned([["step", "loss", "accuracy"], ["10", "0.5", "0.75"]], width=12)
        ['step  loss', '10     0.5', '', 'step  accuracy', '10        0.75']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    blocks: list[list[int]] = [[]]
    for column in range(1, len(widths)):
        taken = widths[0] + sum(2 + widths[other] for other in blocks[-1])
        if blocks[-1] and taken + 2 + widths[column] > width:
            blocks.append([])
        blocks[-1].append(column)
    lines: list[str] = []
    for block in blocks:
        lines += [""] if lines else []
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(row[column].rjust(widths[column]) for column in block)]
            lines.append("  ".join(cells).rstrip())
    return lines
