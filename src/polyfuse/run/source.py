"""What the user pointed at, a config or a bare table, as one resolved config."""

from collections.abc import Callable, Sequence
from pathlib import Path

from polyfuse.config import RunConfig, load_config, make_config
from polyfuse.data.table import read_header, table_format
from polyfuse.data.table_encoder import TableEncoder
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


def delimiter_of(encoder: TableEncoder, table: Path) -> str | None:
    """The delimiter of the run's config where this table has it too; None = seen from the header."""
    own = encoder.config.delimiter
    if own is None or table_format(table) != "csv":
        return None
    return own if set(read_header(table, delimiter=own)) & set(encoder.config.input_columns) else None


def check_inputs(encoder: TableEncoder, table: Path, known: Sequence[str], say: Say) -> None:
    """Say once which inputs the table cannot have; refuse one that has none."""
    lacking = {name: [c for c in codec.columns if c not in known] for name, codec in encoder.codecs.items()}
    if all(len(missing) == len(encoder.codecs[name].columns) for name, missing in lacking.items()):
        wanted, has = (", ".join(map(repr, names[:12])) for names in (encoder.config.input_columns, known))
        raise UserError(
            f"table '{table.name}' has none of the run's input columns ({wanted}); it has {has or 'no row'}"
        )
    for name, missing in lacking.items():
        if missing:
            columns = ", ".join(map(repr, missing))
            whole = len(missing) == len(encoder.codecs[name].columns)
            say(f"no column {columns}: '{name}' is {'missing in every row' if whole else 'read without it'}")


def quiet(message: str) -> None:
    """A ``say`` that says nothing."""
