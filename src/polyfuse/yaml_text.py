"""YAML as the configs are written and read: 1e-3 is a number, and no key stands twice."""

import re
from typing import Any

import yaml

from polyfuse.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML that reads 1e-3 as a number, as YAML 1.2 and everybody else does.

    It refuses a key given twice, and ``{a:1}``, which YAML takes for a key "a:1" without a value.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, value in node.value:
            bare = node.flow_style and isinstance(key, yaml.ScalarNode) and key.style is None and ":" in key.value
            if bare and isinstance(value, yaml.ScalarNode) and value.value == "" and value.style is None:
                problem = f"a space is missing after ':' in '{key.value}'"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key.value}' is given twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what ``_Loader`` reads: the text '1e-3' gets quotes."""


_EXPONENT = re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
for _resolver in (_Loader, _Dumper):
    _resolver.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def dump_yaml(value: Any) -> str:
    """Plain values as YAML, in their order; ``parse_yaml`` gives them back.

    Example:
        >>> print(dump_yaml({"columns": ["1e-3", "no", "x"]}), end="")
        columns:
        - '1e-3'
        - 'no'
        - x
    """
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; ``where`` names it in errors.

    Raises:
        UserError: If it is not YAML, with the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "bad syntax"
        raise UserError(f"{where} is not YAML{place}: {problem}") from None
