"""`polyfuse data prepare`: the files of a published data set, and how many rows and problems they hold."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyfuse.data.prepare import prepare
from polyfuse.data.problems import Problems
from polyfuse.datasets.published import PART_NAMES, prepared_home, read_published
from polyfuse.errors import UserError


@dataclass(frozen=True)
class PreparedData:
    """What is ready.

    Attributes:
        name: The data set.
        folder: Where its files lie.
        fresh: Whether this call brought anything.
        rows: By part.
        pictures: Rows with a picture that is there.
        problems: What is missing or broken.
    """

    name: str
    folder: Path
    fresh: bool
    rows: dict[str, int]
    pictures: int
    problems: Problems = field(default_factory=Problems)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "name": self.name,
            "folder": str(self.folder),
            "fresh": self.fresh,
            "rows": self.rows,
            "pictures": self.pictures,
            "problems": self.problems.to_dict(),
        }

    def text(self) -> str:
        """A few lines."""
        total = sum(self.rows.values())
        parts = ", ".join(f"{count:,} {part}" for part, count in self.rows.items())
        lines = [
            f"{self.name}: {'ready' if self.fresh else 'was ready'} in {self.folder}",
            f"rows: {total:,} ({parts}); with a picture: {self.pictures:,}",
        ]
        return "\n".join(lines + [f"problem: {line}" for line in self.problems.lines()])


def prepare_data(
    name: str,
    sources: Sequence[str],
    *,
    sha256: str | None = None,
    keep: bool = False,
    say: Callable[[str], None] | None = None,
) -> PreparedData:
    """Bring the files of a data set, read every row once, and count.

    Args:
        name: One of ``PUBLISHED``.
        sources: See ``polyfuse.data.prepare.prepare``.
        sha256: Of the one file.
        keep: Keep downloaded archives.
        say: Called with lines of progress.

    Raises:
        UserError: As ``prepare``; if the name is unknown; or if the files that a reader needs are not among them.
    """
    read_published(name, Path())  # the name, before anything is downloaded
    prepared = prepare(prepared_home(name), sources, sha256=sha256, keep=keep, say=say)
    if say is not None:
        say(f"{name}: counting rows")
    rows = read_published(name)
    counts = dict.fromkeys(PART_NAMES, 0)
    pictures = 0
    try:
        for row in rows:
            counts[PART_NAMES[row.part]] += 1
            pictures += row.image is not None
    except UserError as error:
        raise UserError(f"{error}; what was brought is kept, add the rest with another --source") from None
    return PreparedData(name, prepared.folder, bool(prepared.done), counts, pictures, rows.problems)
