"""A registry is a plain dict whose failed lookup says what exists; so does a failed choice among names."""

import difflib
import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

from polyfuse.errors import UserError


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


def select_names(patterns: Sequence[str], names: Sequence[str], kind: str = "parameter") -> list[str]:
    """The names, in their order, that any of the patterns matches.

    A pattern is a glob over the whole dotted name (``*`` crosses dots), the name of a part (``image`` means all of
    ``image.*``), or a regular expression behind ``re:`` that must match from the first letter to the last.

    Raises:
        UserError: If a pattern matches nothing, with the nearest names, or is no regular expression.

    Example:
        >>> select_names(["text", "re:image[.]layers[.][01]"], ["image.layers.0", "image.layers.2", "text.norm"])
        ['image.layers.0', 'text.norm']
    """
    found: set[str] = set()
    for pattern in patterns:
        if pattern.startswith("re:"):
            try:
                regex = re.compile(pattern.removeprefix("re:"))
            except re.error as error:
                raise UserError(f"'{pattern}' is not a regular expression: {error}") from None
            matched = {name for name in names if regex.fullmatch(name)}
        else:
            matched = {name for name in names if fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")}
        if not matched:
            parts = {".".join(name.split(".")[:size]) for name in names for size in range(1, name.count(".") + 2)}
            near = difflib.get_close_matches(pattern.removeprefix("re:"), sorted(parts), n=3, cutoff=0.4)
            hint = f"nearest: {', '.join(near)}" if near else f"the first is {names[0]}" if names else "there is none"
            raise UserError(f"no {kind} matches '{pattern}'; {hint}")
        found |= matched
    return [name for name in names if name in found]
