"""Start of the command line: ``polyfuse`` or ``python -m polyfuse``."""

import os
import sys


def main() -> None:
    """Run the command line; without the workbench extra, print the line that installs it."""
    # Idle OpenMP threads must not spin: on two cores they steal the time of the one that works.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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
