"""Tables for the terminal: aligned, and cut into blocks of columns that fit its width."""

from collections.abc import Sequence

WIDTH = 80


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
