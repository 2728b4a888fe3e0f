from typing import Any

import pytest
from pydantic import BaseModel

from polyfuse.data.schema import DataConfig, ModalityConfig, SplitConfig, validate
from polyfuse.errors import UserError

GOOD: dict[str, Any] = {
    "table": "t.csv",
    "target": "y",
    "modalities": {
        "photo": {"type": "image", "column": "path"},
        "specs": {"type": "tabular", "columns": ["a", "b"], "categorical": ["b"]},
    },
}


def test_columns_are_listed_once_in_order() -> None:
    config = validate(DataConfig, {**GOOD, "id": "key", "split": {"group": "a"}})
    assert config.input_columns == ("path", "a", "b")
    assert config.used_columns == ("path", "a", "b", "y", "key")
    assert config.modalities["photo"].all_columns == ("path",)
    assert DataConfig.model_validate(config.model_dump(mode="json")) == config


def test_every_key_is_described() -> None:
    models: list[type[BaseModel]] = [DataConfig, ModalityConfig, SplitConfig]
    assert all(field.description for model in models for field in model.model_fields.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tabel": "x"}, "unknown key 'data.tabel' .*did you mean 'table'"),
        ({"max_bad_fraction": 2}, "'data.max_bad_fraction' should be less than or equal to 1, got 2"),
        ({"task": "rank"}, "'data.task' should be 'auto', 'classification'.*got 'rank'"),
        ({"target": "path"}, "the target column 'path' is also an input of modality 'photo'"),
        ({"split": {"ratio": [1, 0, 0]}}, "unknown key 'data.split.ratio' .*did you mean 'ratios'"),
        ({"split": {"ratios": [0.5, 0.5, 0.5]}}, "'data.split.ratios': must be three shares that sum to 1"),
        ({"modalities": {}}, "'data.modalities'.*at least 1 item"),
        ({"modalities": {"a.b": {"type": "image", "column": "p"}}}, "a modality name must be .*got 'a.b'"),
        ({"modalities": {"a": {"type": "film", "column": "p"}}}, "'data.modalities.a.type' should be .*got 'film'"),
        ({"modalities": {"a": {"type": "image", "colum": "p"}}}, "unknown key 'data.modalities.a.colum'.*'column'"),
        ({"modalities": {"a": {"type": "image"}}}, "'data.modalities.a': give exactly one of 'column' and 'columns'"),
        ({"modalities": {"a": {"type": "text", "columns": ["p"]}}}, "type text takes 'column', only tabular"),
        ({"modalities": {"a": {"type": "tabular", "columns": ["p", "p"]}}}, "must be distinct"),
        ({"modalities": {"a": {"type": "text", "column": "p", "size": 32}}}, "'size' is not an option of type text"),
        (
            {"modalities": {"a": {"type": "tabular", "columns": ["p"], "numeric": ["q"]}}},
            r"'numeric' names \['q'\], which 'columns' does not",
        ),
        (
            {"modalities": {"a": {"type": "tabular", "column": "p", "numeric": ["p"], "categorical": ["p"]}}},
            r"\['p'\] stand in both",
        ),
    ],
)
def test_mistakes_name_key_rule_value_and_way_out(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(DataConfig, {**GOOD, **change}, "data.")


def test_a_missing_key_and_many_mistakes() -> None:
    with pytest.raises(UserError, match=r"'data.target' is required; add it"):
        validate(DataConfig, {k: v for k, v in GOOD.items() if k != "target"}, "data.")
    with pytest.raises(UserError, match=r"and 2 more$"):
        validate(SplitConfig, {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5})
