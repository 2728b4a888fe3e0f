"""Put the examples into their page: the diff from plain to robust, and what each prints in its full setting.

Run: ``python docs/make_examples.py`` (all, a few minutes), or with names of examples to run only those.
"""

import difflib
import hashlib
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "examples.md"
NAMES = ("vision_language", "medical_record", "robot_sensors")


def script(name: str) -> Path:
    """The file of an example."""
    return ROOT / "examples" / f"{name}.py"


def diff(source: str) -> str:
    r"""Unified diff from the class ``Before`` to the class ``After`` of an example, without its file header.

    Example:
        >>> print(diff("class Before(Module):\n    a = 1\n\n\nclass After(Module):\n    a = 2\n"))
        -class Before(Module):
        -    a = 1
        +class After(Module):
        +    a = 2
    """
    before, after = (
        re.findall(rf"^class {name}\b.*?(?=\n\n\n|\Z)", source, re.DOTALL | re.MULTILINE)[0].strip().splitlines()
        for name in ("Before", "After")
    )
    return "\n".join(list(difflib.unified_diff(before, after, n=100, lineterm=""))[3:])


def digest(source: str) -> str:
    """What tells that an example has changed since its figures were printed."""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def blocks(name: str, printed: str) -> str:
    """The part of the page that this script owns."""
    source = script(name).read_text(encoding="utf-8")
    return (
        f"<!-- {name} {digest(source)} -->\n```diff\n{diff(source)}\n```\n\n"
        f"```console\n$ python examples/{name}.py\n{printed.rstrip()}\n```\n<!-- end -->"
    )


def main(names: list[str]) -> None:
    """Run examples and write their blocks."""
    for name in names or NAMES:
        done = subprocess.run(  # noqa: S603  our own script
            [sys.executable, str(script(name))], cwd=ROOT, capture_output=True, text=True, check=True
        )
        page = PAGE.read_text(encoding="utf-8")
        old = re.search(rf"<!-- {name} \w* ?-->.*?<!-- end -->", page, re.DOTALL)
        if old is None:
            raise SystemExit(f"{PAGE.name} has lost the marks of {name}")
        new = page[: old.start()] + blocks(name, done.stdout) + page[old.end() :]
        PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
