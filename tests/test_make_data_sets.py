"""The page of data sets lists what `polyfuse data list` lists, and no folder of the machine that made it."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from polyfuse.cache import cache_dir
from polyfuse.errors import UserError
from polyfuse.run import list_parts

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_data_sets", DOCS / "make_data_sets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_names_every_set_that_is_listed(make: ModuleType) -> None:
    page, names = (DOCS / "data-sets.md").read_text(encoding="utf-8"), set(list_parts("datasets"))
    assert set(make.listed()) == names
    assert names <= set(re.findall(r"^(?:## |- `)(\w+)", page, re.MULTILINE))


def test_the_comparison_leaves_no_earlier_figure_out(make: ModuleType) -> None:
    page = (DOCS / "data-sets.md").read_text(encoding="utf-8")
    for name, figures in make.EARLIER.items():
        for what, figure in figures.items():
            assert f"| {name} | {what} | {figure:.3f} |" in page


def test_what_could_not_be_fetched_shows_no_folder(make: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise UserError(f"no file in '{cache_dir() / 'own' / name}', nor in '{Path.home() / 'elsewhere'}'")

    monkeypatch.setattr(make, "section", fail)
    monkeypatch.setattr(make, "pictures", fail)
    text = make.page(["av_mnist", "openclipart"])
    assert "no file in '$POLYFUSE_CACHE/own/av_mnist', nor in '~/elsewhere'" in text
    assert "- `openclipart`: Open Clip Art" in text
    assert str(cache_dir()) not in text


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda p: p.name)
def test_no_page_shows_a_folder_of_a_machine(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"/root/|/home/|/Users/|/tmp/", text)
    checkout = DOCS.resolve().parent
    assert not any(f"{folder}/" in text for folder in (checkout, checkout.parent) if folder != folder.parent)
