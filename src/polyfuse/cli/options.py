"""What the commands share: options that several take, and where a result and a line of log go."""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings to override, such as train.lr=1e-3.", metavar="[KEY=VALUE]...")
]
Target = Annotated[
    list[str] | None,
    typer.Option(help="The column to predict, when a table is given; repeated for several 0/1 columns."),
]
NewRun = Annotated[Path | None, typer.Option(help="The run folder; default runs/NAME-N. Never overwritten.")]
Resume = Annotated[bool, typer.Option("--resume", help="SOURCE is an interrupted run: carry on to the same result.")]
Workers = Annotated[int, typer.Option(help="Processes, one thread each.")]


class Result(Protocol):
    """What a command came to."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""

    def text(self) -> str:
        """Lines for a person."""


def say(message: str) -> None:
    """One line of log, on stderr; work goes on when nobody reads it any more."""
    with contextlib.suppress(BrokenPipeError):
        print(message, file=sys.stderr, flush=True)


def show(result: Result | None, as_json: bool) -> None:
    """The result, on stdout; None, as on every process but the first of a distributed run, is nothing."""
    if result is not None:
        emit(result.to_dict(), as_json, result.text)


def emit(value: Any, as_json: bool, text: Callable[[], str]) -> None:
    """A value or its text, on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str) if as_json else text())


def names_in(text: str) -> list[str]:
    """The names of a comma-separated list.

    Example:
        >>> names_in("concat, aecf,")
        ['concat', 'aecf']
    """
    return [name.strip() for name in text.split(",") if name.strip()]
