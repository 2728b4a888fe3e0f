"""What is wrong with the cells of a table, counted by kind, the first ten of each kind named."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

NAMED = 10

#: Kinds of a file, or of a series or vector cell, that is there but of no use: these count against max_bad_fraction.
BROKEN = (
    "missing file",
    "zero bytes",
    "truncated",
    "undecodable",
    "wrong type",
    "wrong shape",
    "not finite",
    "directory",
    "not a file",
    "outside the folder",
    "web address",
    "too many pixels",
    "too large",
    "unreadable",
)


class Broken(Exception):
    """A cell that is not empty and still cannot be used.

    Attributes:
        kind: One of the kinds of ``BROKEN``.
        detail: What was found, for a message.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail


@dataclass
class Problems:
    """Counts by (modality, kind). ``target``, ``row`` and ``split`` stand beside the modalities.

    Attributes:
        counts: ``{(where, kind): how many}``.
        named: ``{(where, kind): the first ten, as "row 7: 'a.png' ..."}``.
    """

    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    named: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def add(self, where: str, kind: str, row: int | None = None, detail: str = "", *, times: int = 1) -> None:
        """Count one more; ``row`` counts from 0 and is shown from 1."""
        key = (where, kind)
        self.counts[key] = self.counts.get(key, 0) + times
        if row is not None:
            names = self.named.setdefault(key, [])
            if len(names) < NAMED:
                names.append(f"row {row + 1}" + (f": {detail}" if detail else ""))

    def update(self, other: "Problems") -> None:
        """Add the problems of later rows."""
        for key, count in other.counts.items():
            self.counts[key] = self.counts.get(key, 0) + count
        for key, names in other.named.items():
            mine = self.named.setdefault(key, [])
            mine += names[: NAMED - len(mine)]

    def broken(self, where: str) -> int:
        """Cells of a modality that count against ``max_bad_fraction``."""
        return sum(self.counts.get((where, kind), 0) for kind in BROKEN)

    def __iter__(self) -> Iterator[tuple[str, str, int, list[str]]]:
        """``(where, kind, count, named)``, most frequent first within each place."""
        for where, kind in sorted(self.counts, key=lambda key: (key[0], -self.counts[key], key[1])):
            yield where, kind, self.counts[where, kind], self.named.get((where, kind), [])

    def __bool__(self) -> bool:
        return bool(self.counts)

    def lines(self) -> list[str]:
        """One line per kind.

        Example:
            >>> problems = Problems()
            >>> problems.add("photo", "missing file", 6, "'a.png'")
            >>> problems.lines()
            ["photo: 1 x missing file (row 7: 'a.png')"]
        """
        lines = []
        for where, kind, count, named in self:
            shown = "; ".join(named) + ("; ..." if named and count > len(named) else "")
            lines.append(f"{where}: {count} x {kind}" + (f" ({shown})" if shown else ""))
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``{where: {kind: {"count": n, "named": [...]}}}``."""
        plain: dict[str, Any] = {}
        for where, kind, count, named in self:
            plain.setdefault(where, {})[kind] = {"count": count, "named": list(named)}
        return plain

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Problems":
        """The inverse of ``to_dict``."""
        problems = cls()
        for where, kinds in value.items():
            for kind, entry in kinds.items():
                problems.counts[where, kind] = int(entry["count"])
                problems.named[where, kind] = list(entry["named"])
        return problems
