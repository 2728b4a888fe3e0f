"""Where a study keeps what is done of it, and the options that every study takes."""

from collections.abc import Collection
from pathlib import Path

from polyfuse.errors import UserError
from polyfuse.files import read_json, write_json


def check_options(scale: str, scales: Collection[str], **numbers: int | None) -> None:
    """Refuse a scale that is not there and numbers below 1.

    Raises:
        UserError: With the option and what may stand there.
    """
    if scale not in scales:
        raise UserError(f"--scale must be one of {', '.join(scales)}, got '{scale}'")
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")


def study_folder(study: str, scale: str, out: Path | None) -> Path:
    """The folder of a study: new, empty, or of the same study and scale. ``begin`` makes it.

    Raises:
        UserError: If it holds something else.
    """
    folder = out if out is not None else Path("runs") / f"study-{study}-{scale}"
    note = folder / "study.json"
    if note.exists():
        found = read_json(note)
        if (found["study"], found["scale"]) != (study, scale):
            raise UserError(
                f"'{folder}' holds study {found['study']} at scale {found['scale']}, not {study} at {scale}; "
                "choose another --out"
            )
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"'{folder}' is not empty and holds no study; choose another --out")
    return folder


def begin(folder: Path, study: str, scale: str) -> None:
    """Make the folder of a study, and write down whose it is; nothing happens where it is."""
    if not (folder / "study.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "study.json", {"study": study, "scale": scale})


def file_name(text: str) -> str:
    """A text as the name of a file, on any system.

    Example:
        >>> file_name("aecf (entropy)@5 %-0")
        'aecf__entropy_@5__-0'
    """
    return "".join(c if c.isalnum() or c in "._-+@" else "_" for c in text)
