"""Files that are whole or not there, and folders that are new."""

import json
import os
from pathlib import Path
from typing import Any

from polyfuse.errors import UserError


def check_new(out: Path | None) -> None:
    """Refuse a folder that holds something, before any work is done.

    Raises:
        UserError: If ``out`` exists and is not empty.
    """
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"'{out}' exists and is not empty; a run is never overwritten, choose another --out")


def new_folder(name: str, out: Path | None, parent: Path = Path("runs")) -> Path:
    """Make the folder of a new run: ``out``, or the first free ``runs/name-N``. Never an old one.

    Raises:
        UserError: If ``out`` exists and is not empty, or cannot be made.
    """
    check_new(out)
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder '{out}': {error.strerror}") from None
        return out
    number = 1
    while True:
        folder = parent / f"{name}-{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(f"cannot make the folder '{folder}': {error.strerror}; name another with --out") from None


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # A lone surrogate, which a file name may hold, is written as its escape.
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of a run.

    Raises:
        UserError: If it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"'{path}' is missing: the run is not finished; polyfuse train --resume finishes it") from None
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read as JSON ({error}); the run folder is damaged") from None
