"""Start of the command line: ``polyfuse`` or ``python -m polyfuse``."""

import os
import sys
from io import TextIOWrapper


def every_letter() -> None:
    """Let stdout and stderr take whatever a table or a file name holds, in any locale.

    Not a terminal: UTF-8, which CSV and JSON are read as. A letter that a terminal lacks, and a byte of a file name
    that is not UTF-8, is written as its escape. A stream that the caller closed becomes one that nobody reads.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="backslashreplace")


def main() -> None:
    """Run the command line; without the workbench extra, print the line that installs it."""
    # Idle OpenMP threads must not spin: on two cores they steal the time of the one that works.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    every_letter()
    try:
        from polyfuse.cli import run
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich", "click"}:
            raise
        print("the command line needs the workbench: pip install 'polyfuse[workbench]'", file=sys.stderr)
        sys.exit(2)
    sys.exit(run())


if __name__ == "__main__":
    main()
