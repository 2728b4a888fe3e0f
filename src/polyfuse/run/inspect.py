"""`polyfuse inspect`: look at a table, show its holes, propose a config."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyfuse.config import make_config, to_dict, to_yaml
from polyfuse.data.inspect import Proposal, propose
from polyfuse.errors import UserError
from polyfuse.run.folder import write_text
from polyfuse.run.source import Say, quiet


@dataclass(frozen=True)
class Inspection:
    """A proposal and the config that follows from it."""

    proposal: Proposal
    yaml: str
    output: Path | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**self.proposal.to_dict(), "config": to_dict(self.proposal.config)}

    def text(self) -> str:
        """The tables and the proposed ``data:`` part, or where it was written."""
        lines = self.proposal.lines()
        if self.output is None:
            return "\n".join([*lines, "", "proposed config (write it with -o config.yaml):", "", self.yaml.rstrip()])
        return "\n".join([*lines, "", f"config: {self.output}", f"next: polyfuse train {self.output}"])


def inspect_table(
    table: Path, *, target: str | None = None, output: Path | None = None, say: Say = quiet
) -> Inspection:
    """Inspect a table.

    Args:
        table: CSV, Parquet or JSON Lines.
        target: The column to predict; None = the likeliest, named.
        output: Write the proposed config here.
        say: Told nothing yet; results are the return value.

    Raises:
        UserError: If the table cannot be read, or ``output`` exists.
    """
    proposal = propose(table, target=target)
    data = to_dict(proposal.config)
    if output is not None:
        if output.exists():
            raise UserError(f"'{output}' exists; delete it or choose another -o")
        data["table"] = os.path.relpath(table.resolve(), output.resolve().parent)
    full = {"data": data}
    make_config(full)  # what is proposed must run
    yaml = _short_yaml(proposal, data)
    if output is not None:
        write_text(output, yaml)
    return Inspection(proposal, yaml, output)


def _short_yaml(proposal: Proposal, data: dict[str, Any]) -> str:
    """The settings that differ from their defaults, and the three that everybody changes first."""
    short = proposal.config.model_dump(mode="json", exclude_defaults=True)
    short["table"] = data["table"]
    config = {"data": short, "model": {"fusion": "concat"}, "train": {"epochs": 20, "seed": 0}}
    return to_yaml(config)
