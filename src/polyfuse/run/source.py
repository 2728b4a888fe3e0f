"""What the user pointed at, a config or a bare table, as one resolved config."""

from collections.abc import Callable, Sequence
from pathlib import Path

from polyfuse.config import RunConfig, load_config, make_config
from polyfuse.errors import UserError
from polyfuse.yaml_text import parse_yaml

Say = Callable[[str], None]
Target = str | Sequence[str] | None
YAML = {".yaml", ".yml"}


def resolve(source: Path, overrides: Sequence[str], target: Target, say: Say) -> RunConfig:
    """The config to run, its table as an absolute path.

    Args:
        source: A YAML config (its table is looked for beside it), or a table.
        overrides: ``key=value``.
        target: The column to predict, or several of 0 and 1, when ``source`` is a table.
        say: Told what was inferred from a table.

    Raises:
        UserError: If ``source`` does not exist, is a table without ``target``, or breaks a rule.
    """
    if source.suffix.lower() in YAML:
        if target:
            shown = target if isinstance(target, str) else target[0] if len(target) == 1 else f"[{','.join(target)}]"
            raise UserError(f"--target belongs to a table, '{source.name}' is a config; use data.target={shown}")
        config = load_config(source, overrides)
    else:
        from polyfuse.data.inspect import propose

        if source.is_dir():
            raise UserError(f"'{source}' is a folder; give a config, a table, or --resume with a run folder")
        if not target:
            raise UserError(f"which column of '{source.name}' is to be predicted? add --target COLUMN")
        marks = [o.partition("=")[2] for o in overrides if o.startswith("data.delimiter=")]
        mark = parse_yaml(marks[-1], "the value of 'data.delimiter'") if marks else None
        proposal = propose(source, target=target, delimiter=mark if isinstance(mark, str) and mark else None)
        config = make_config({"data": proposal.config.model_dump(mode="json")}, overrides)
        for line in proposal.lines():
            say(line)
    table = Path(config.data.table)
    if not table.is_absolute():
        base = source.parent if source.suffix.lower() in YAML else Path()
        table = base / table
    return config.model_copy(update={"data": config.data.model_copy(update={"table": str(table.resolve())})})


def quiet(message: str) -> None:
    """A ``say`` that says nothing."""
