"""`polyfuse inspect`: look at a table, show its holes, propose a config."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polyfuse.config import make_config
from polyfuse.data.inspect import Proposal, propose
from polyfuse.errors import UserError
from polyfuse.files import write_text
from polyfuse.run.source import Say, quiet
from polyfuse.yaml_text import parse_yaml


@dataclass(frozen=True)
class Inspection:
    """A proposal and the config that follows from it."""

    proposal: Proposal
    yaml: str
    output: Path | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return self.proposal.to_dict()

    def text(self) -> str:
        """The tables and the proposed ``data:`` part, or where it was written."""
        lines = self.proposal.lines()
        if self.output is None:
            return "\n".join([*lines, "", "proposed config (write it with -o config.yaml):", "", self.yaml.rstrip()])
        return "\n".join([*lines, "", f"config: {self.output}", f"next: polyfuse train {self.output}"])


def inspect_table(
    table: Path,
    *,
    target: str | Sequence[str] | None = None,
    output: Path | None = None,
    delimiter: str | None = None,
    say: Say = quiet,
) -> Inspection:
    """Inspect a table.

    Args:
        table: CSV, Parquet or JSON Lines.
        target: The column to predict, or several of 0 and 1; None = the likeliest, named.
        output: Write the proposed config here.
        delimiter: CSV: what separates cells; None looks at the header.
        say: Told nothing yet; results are the return value.

    Raises:
        UserError: If the table cannot be read, or ``output`` exists.
    """
    if output is not None and output.exists():
        raise UserError(f"'{output}' exists; delete it or choose another -o")
    if output is not None and not output.absolute().parent.is_dir():
        raise UserError(f"the folder of '{output}' does not exist; make it or choose another -o")
    proposal = propose(table, target=target, delimiter=delimiter)
    if output is not None:
        beside = os.path.relpath(table.resolve(), output.resolve().parent)
        proposal = replace(proposal, config=proposal.config.model_copy(update={"table": beside}))
    yaml = proposal.to_yaml()
    make_config(parse_yaml(yaml, "the proposed config"))  # what is proposed must run
    if output is not None:
        write_text(output, yaml)
    return Inspection(proposal, yaml, output)
