"""A registry is a plain dict whose failed lookup says what exists."""

import difflib
from collections.abc import Mapping
from typing import Any


class Registry(dict[str, Any]):
    """Names of one kind of part, mapped to the class or function that builds it.

    Raises:
        KeyError: From ``registry[name]`` for an unknown name, with the nearest known name and the full list.

    Example:
        >>> Registry("fusion", {"concat": object})["conct"]
        Traceback (most recent call last):
        KeyError: "unknown fusion 'conct'; did you mean 'concat'? known: concat"
    """

    def __init__(self, kind: str, entries: Mapping[str, Any]) -> None:
        super().__init__(entries)
        self.kind = kind

    def __missing__(self, name: str) -> Any:
        near = difflib.get_close_matches(str(name), list(self), n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ";"
        raise KeyError(f"unknown {self.kind} '{name}'{hint} known: {', '.join(sorted(self))}")
