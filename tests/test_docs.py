"""The documentation says what is: settings are current, links lead somewhere, commands and overrides exist."""

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from polyfuse.cli import app
from polyfuse.config import RunConfig, describe

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_the_page_of_settings_is_current() -> None:
    spec = importlib.util.spec_from_file_location("make_configuration", ROOT / "docs" / "make_configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    current = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert current == module.page(), "run: python docs/make_configuration.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def commands(page: Path) -> list[list[str]]:
    """Every `polyfuse ...` line in a console block, and every one in backticks."""
    text = page.read_text(encoding="utf-8")
    lines = [
        line.removeprefix("$ ")
        for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]
    lines += re.findall(r"`(polyfuse [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("polyfuse ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_exist(page: Path) -> None:
    settings = {key for key, _, _ in describe(RunConfig)}
    for words in commands(page):
        command: Any = typer.main.get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command, words = command.commands[words[0]], words[1:]
        assert command.name != "polyfuse" or words[:1] in ([], ["--help"], ["--version"]), f"{page.name}: {words}"
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {
            "--help"
        }
        for word in words:
            if word.startswith("-"):
                assert word.partition("=")[0] in known, f"{page.name}: {command.name} has no {word}"
            elif re.match(r"^(data|model|train|evaluate|calibrate)\.[\w.]+=", word):
                key = word.partition("=")[0]
                assert key in settings or key.startswith(
                    ("data.modalities.", "model.encoders.", "model.fusion_args.")
                ), key


def test_the_readme_example_runs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(block, names)  # noqa: S102  our own example
    assert names["fused"].shape == (8, 128)
    assert names["fused"].isfinite().all()
