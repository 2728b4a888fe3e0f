"""Configs as plain values: read from a YAML file, overridden by dotted keys, checked, and written back."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from polyfuse.data.schema import nearest, validate
from polyfuse.errors import UserError
from polyfuse.yaml_text import dump_yaml, parse_yaml

Config = TypeVar("Config", bound=BaseModel)


def read_values(path: Path | str) -> Any:
    """What a YAML file holds.

    Raises:
        UserError: If the file is missing, or is not YAML.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(f"cannot read the config '{path}': {reason}") from None
    return parse_yaml(text, f"'{path}'")


def config_of(kind: type[Config], values: Any, overrides: Sequence[str], keys: str) -> Config:
    """A config from plain values, with overrides.

    Args:
        kind: The config's class.
        values: Plain values; a key with nothing under it counts as left out.
        overrides: ``"train.lr=1e-3"``: a dotted key, entries of lists by their number, and a YAML value.
        keys: Keys to name to somebody who gave something else.

    Raises:
        UserError: If a rule is broken: the sentence names the key, the rule, the value and the nearest known key.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"a config must be a mapping with {keys}, got {type(values).__name__}")
    tree: Any = {key: value for key, value in values.items() if value is not None}
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise UserError(f"an override must read key=value, such as train.lr=1e-3, got '{override}'")
        if parts[0] not in kind.model_fields:
            hint = nearest(parts[0], kind.model_fields) or f"; known: {', '.join(kind.model_fields)}"
            raise UserError(f"unknown key '{key}' (value '{text}'){hint}")
        tree = _with(tree, parts, parse_yaml(text, f"the value of '{key}'"))
    return validate(kind, tree)


def _with(tree: Any, parts: Sequence[str], value: Any, depth: int = 0) -> Any:
    """``tree``, found at ``parts[:depth]``, with one value replaced, lists by number; nothing is changed in place."""
    if depth == len(parts):
        return value
    key, part = ".".join(parts), parts[depth]
    if isinstance(tree, (list, tuple)):
        if not part.isdigit() or int(part) >= len(tree):
            raise UserError(f"cannot set '{key}': say which of the {len(tree)} entries by its number, from 0")
        return [_with(item, parts, value, depth + 1) if i == int(part) else item for i, item in enumerate(tree)]
    if tree is not None and not isinstance(tree, Mapping):
        above = ".".join(parts[:depth])
        raise UserError(f"cannot set '{key}': '{above}' is the value {tree!r}, it has no keys below it")
    below = dict(tree or {})
    return {**below, part: _with(below.get(part), parts, value, depth + 1)}


def to_dict(config: BaseModel) -> dict[str, Any]:
    """Plain values, for YAML or JSON, in the order of the fields."""
    return config.model_dump(mode="json")


def to_yaml(config: BaseModel) -> str:
    """The whole config as YAML; reading it gives it back."""
    return dump_yaml(to_dict(config))


def save_config(config: BaseModel, path: Path) -> None:
    """Write ``to_yaml`` to ``path``."""
    path.write_text(to_yaml(config), encoding="utf-8")
