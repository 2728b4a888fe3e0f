"""The command line: results on stdout, log on stderr; exit 0 done, 1 failed, 2 misused, 130 interrupted.

Every command imports what it needs when it runs, so that ``polyfuse --help`` answers without PyTorch.
"""

import contextlib
import os
import sys
from typing import Annotated, Any

import typer

from polyfuse.cli import tasks, workbench
from polyfuse.cli.data import data_app, weights_app
from polyfuse.cli.options import say
from polyfuse.errors import UserError

# typer carries its own click, or uses the installed one: whichever it is, this is the class of its usage errors.
_Misuse: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    name="polyfuse",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Multimodal models that keep working, and know how sure they are, when inputs go missing.",
)


def _version(value: bool) -> None:
    if value:
        from polyfuse import __version__

        print(f"polyfuse {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for command in (  # in the order of --help
    workbench.demo,
    workbench.inspect,
    workbench.train,
    tasks.pretrain,
    tasks.finetune,
    tasks.ask,
    tasks.caption,
    tasks.ground,
    workbench.evaluate,
    workbench.predict,
    workbench.compare,
    tasks.match,
    workbench.study,
):
    app.command()(command)
app.command("list")(workbench.list_parts)
app.add_typer(data_app, name="data")
app.add_typer(weights_app, name="weights")


def _reader_gone() -> int:
    """Whoever read the result, such as `head`, has what it wanted: no failure. Python must not flush at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def spread(arguments: list[str], options: tuple[str, ...]) -> list[str]:
    """Give every value behind a list option the option's name, which is the form that the parser knows.

    Example:
        >>> spread(["match", "--images", "a.png", "b.png", "--json"], ("--images",))
        ['match', '--images', 'a.png', '--images', 'b.png', '--json']
    """
    found: list[str] = []
    option, first = None, False
    for word in arguments:
        if word.startswith("--"):
            option, first = (word if word in options else None), True
            found.append(word)
            continue
        found += [word] if option is None or first else [option, word]
        first = False
    return found


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["match"]:
        arguments = spread(arguments, ("--images", "--texts"))
    try:
        status = app(args=arguments, standalone_mode=False)
        sys.stdout.flush()
        return int(status or 0)
    except _Misuse as error:
        error.show()
        return 2
    except UserError as error:
        say(f"polyfuse: {error}")
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "polyfuse"):
            raise
        say(f"polyfuse: this needs the package '{package}': pip install 'polyfuse[workbench]'")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        say("polyfuse: interrupted")
        return 130
    except SystemExit as left:  # typer answers a closed pipe by 1; a run ended by SIGTERM says so itself
        return _reader_gone() if left.code == 1 else int(left.code or 0)
    except BrokenPipeError:
        return _reader_gone()
    except OSError as error:
        where = f"'{error.filename}': " if error.filename else ""
        say(f"polyfuse: {where}{error.strerror or error}")
        return 1
