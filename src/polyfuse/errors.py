"""Mistakes a user can mend: one sentence, no traceback at the command line."""

import importlib
from typing import Any


class UserError(ValueError):
    """A mistake in what the user gave: the message says the name, the rule, the value and the way out."""


def require(module: str, *, extra: str) -> Any:
    """Import an optional dependency, or say which extra brings it.

    Raises:
        UserError: If ``module`` is not installed, with the ``pip install`` line.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise UserError(f"this needs the package '{error.name}': pip install 'polyfuse[{extra}]'") from None
