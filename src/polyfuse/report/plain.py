"""Dataclasses to plain JSON values and back, by their annotations; no file format of its own.

Numbers that are not finite become null (JSON has none) and come back as NaN.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """JSON-able copy: tuples to lists, NumPy scalars to Python, not finite to None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if hasattr(value, "item"):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise ValueError(f"a report holds plain values only, got {type(value).__name__}")


def build(kind: Any, value: Any) -> Any:
    """Build a value of an annotated type from plain JSON values (the inverse of ``plain``)."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _record(kind, value)
    if origin is types.UnionType or origin is typing.Union:
        inner = next(a for a in args if a is not type(None))
        return None if value is None else build(inner, value)
    if origin is list:
        return [build(args[0], v) for v in value]
    if origin is tuple:
        if args[-1] is Ellipsis:
            return tuple(build(args[0], v) for v in value)
        return tuple(build(a, v) for a, v in zip(args, value, strict=True))
    if origin is dict:
        return {k: build(args[1], v) for k, v in value.items()}
    if kind is float:
        return math.nan if value is None else float(value)
    if not isinstance(value, kind):
        raise ValueError(f"expected {kind.__name__}, got {value!r}")
    return value


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _record(kind: Any, value: Mapping[str, Any]) -> Any:
    hints = _hints(kind)
    if unknown := sorted(set(value) - set(hints)):
        raise ValueError(f"{kind.__name__} has no field {', '.join(unknown)}; known: {', '.join(hints)}")
    try:
        return kind(**{k: build(hints[k], v) for k, v in value.items()})
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from None
