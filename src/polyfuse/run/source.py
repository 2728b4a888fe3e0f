"""What the user pointed at, a config or a bare table, as one resolved config."""

from collections.abc import Callable, Sequence
from pathlib import Path

from polyfuse.config import RunConfig, load_config, make_config
from polyfuse.errors import UserError

Say = Callable[[str], None]
YAML = {".yaml", ".yml"}


def resolve(source: Path, overrides: Sequence[str], target: str | None, say: Say) -> RunConfig:
    """The config to run, its table as an absolute path.

    Args:
        source: A YAML config (its table is looked for beside it), or a table.
        overrides: ``key=value``.
        target: The column to predict, when ``source`` is a table.
        say: Told what was inferred from a table.

    Raises:
        UserError: If ``source`` does not exist, is a table without ``target``, or breaks a rule.
    """
    if source.suffix.lower() in YAML:
        if target is not None:
            raise UserError(f"--target belongs to a table, '{source.name}' is a config; use data.target={target}")
        config = load_config(source, overrides)
    else:
        from polyfuse.data.inspect import propose

        if source.is_dir():
            raise UserError(f"'{source}' is a folder; give a config, a table, or --resume with a run folder")
        if target is None:
            raise UserError(f"which column of '{source.name}' is to be predicted? add --target COLUMN")
        proposal = propose(source, target=target)
        for line in proposal.lines():
            say(line)
        config = make_config({"data": proposal.config.model_dump(mode="json")}, overrides)
    table = Path(config.data.table)
    if not table.is_absolute():
        base = source.parent if source.suffix.lower() in YAML else Path()
        table = base / table
    return config.model_copy(update={"data": config.data.model_copy(update={"table": str(table.resolve())})})


def quiet(message: str) -> None:
    """A ``say`` that says nothing."""
