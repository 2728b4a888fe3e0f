"""The printed part of docs/studies.md, from reports with planted answers."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from made_records import PLANS, study_records

from polyfuse.report.study_records import DataInfo
from polyfuse.studies.tables import Questions, summarise

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_studies", ROOT / "docs" / "make_studies.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        spec.loader.exec_module(module)
    return module


def made(records: pa.Table, **asked: Any) -> dict[str, Any]:
    names = ("htad", "htad, weak motion", "mfeat, scarce motion 0.1")
    about = {name: DataInfo(name, plain="," not in name) for name in names}
    plans = {name: list(PLANS) for name in names}
    report = summarise(records, plans, about=about, questions=Questions(**asked), draws=200)
    return dict(json.loads(report.to_json()))


@pytest.fixture(scope="module")
def imbalance() -> dict[str, Any]:
    tables = [
        study_records(("htad",)),
        study_records(("htad",), {"default": 0.06}, variant="weak motion"),
        study_records(("mfeat",), {"default": -0.02, "bad": 0.0}, variant="scarce motion 0.1"),
    ]
    return made(pa.concat_tables(tables), imbalance=True)


def test_the_table_of_all_arms_is_over_all_situations(make: ModuleType, imbalance: dict[str, Any]) -> None:
    text = make.section(imbalance)
    assert "Mean over 3 situations (1 weak, 1 scarce, 1 as it is), each counting the same;" in text
    row = next(line for line in text.splitlines() if line.startswith("| the default recipe |"))
    assert "| 2 / 1 |" in row
    (line,) = [line for line in make.by_kind(imbalance) if line.startswith("| the default recipe |")]
    assert [cell.strip() for cell in line.split("|")[2:-1]] == [
        "+5.8 (1 / 0)", "+5.8 (1 / 0)", "−2.1 (0 / 1)", "−2.1 (0 / 1)", "+2.9 (1 / 0)", "+2.9 (1 / 0)",
    ]  # fmt: skip


def test_the_recommendations_say_where_they_were_chosen(make: ModuleType, imbalance: dict[str, Any]) -> None:
    text = make.section(imbalance)
    head = text.index("### Situation by situation")
    assert head < text.index("The choice was made on these test rows", head) < text.index("**htad**", head)
    assert "a bad idea is the same model as concat + dropout on mfeat, scarce motion 0.1" in text


def test_ingredients_that_did_not_run_have_no_row(make: ModuleType) -> None:
    asked = (("the recipe", "default", "bad"), ("never run", "default", "absent"))
    text = make.section(made(study_records(("htad",)), ingredients=asked))
    assert "| the recipe |" in text
    assert "| never run |" not in text
    assert "- Ingredients whose arms did not run at this scale: never run." in text


def test_data_sets_without_regret_are_named(make: ModuleType) -> None:
    columns = study_records(("htad",)).to_pydict()
    for i, arm in enumerate(columns["arm"]):
        columns["value"][i] += 0.3 * (arm == "oracle reseeded") * (1 if columns["subset"][i] == "audio" else -1)
    table = pa.table(columns, schema=study_records(("htad",)).schema)
    assert "Regret: without htad (noise floor 29.6 points)" in make.pool_words(made(table))
    assert "Regret" not in make.pool_words(made(study_records(("htad",))))
