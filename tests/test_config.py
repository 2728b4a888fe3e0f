from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from polyfuse.config import (
    ModelConfig,
    RunConfig,
    TrainConfig,
    describe,
    load_config,
    make_config,
    to_dict,
)
from polyfuse.config_values import save_config, to_yaml
from polyfuse.errors import UserError

DATA = {
    "table": "products.csv",
    "target": "category",
    "modalities": {"photo": {"type": "image", "column": "path"}, "title": {"type": "text", "column": "title"}},
}
YAML = """
data:
  table: products.csv
  target: category
  modalities:
    photo: {type: image, column: path}
    title: {type: text, column: title}
model: {fusion: concat, modality_dropout: 0.25}
train: {epochs: 3, lr: 1e-3, class_weights: {a: 2, "1e3": 1.5}}
evaluate:
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(YAML, encoding="utf-8")
    return path


def test_yaml_is_read_and_overridden(path: Path) -> None:
    config = load_config(path, ["train.lr=2e-2", "model.fusion_args.hidden=7", "train.patience=null"])
    assert config.train.lr == 0.02
    assert config.train.epochs == 3
    assert config.train.class_weights == {"a": 2.0, "1e3": 1.5}
    assert config.train.patience is None
    assert config.model.fusion_args == {"hidden": 7}
    assert config.model.modality_dropout == 0.25
    assert config.evaluate.bins == 15  # a section with nothing in it is a section of defaults
    assert load_config(path).train.lr == 1e-3  # 1e-3 is a text in YAML 1.1


@pytest.mark.parametrize("override", ["data.modalities.photo.size=48", "model.encoders.photo.args.hidden_dim=16"])
def test_overrides_reach_into_named_parts(path: Path, override: str) -> None:
    plain, changed = to_dict(load_config(path)), to_dict(load_config(path, [override]))
    *parents, last = override.partition("=")[0].split(".")
    for key in parents:
        plain, changed = plain.get(key, {}), changed[key]
    assert changed[last] == int(override.partition("=")[2]) != plain.get(last)


def test_round_trip_through_yaml(path: Path, tmp_path: Path) -> None:
    settings = [
        "model.fusion_args={a: [1, 2.5, 1e-5], b: 'no', c: '1e5'}",
        "train.lr=1e-4",
        "data.null_values=['', '1e9']",
    ]
    config = load_config(path, settings)
    save_config(config, tmp_path / "again.yaml")
    assert load_config(tmp_path / "again.yaml") == config
    assert config.model.fusion_args["c"] == "1e5"  # quoted: a text
    assert make_config(config) == config
    assert make_config(yaml.safe_load(to_yaml(config))).train == config.train  # any YAML reader will do


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", r"unknown key 'train\.epoch' \(value 3\); did you mean 'epochs'"),
        ("trian.lr=1", r"unknown key 'trian\.lr' \(value '1'\); did you mean 'train'"),
        ("train.epochs=many", "'train.epochs' should be an integer, got 'many'"),
        ("train.epochs=2.5", "'train.epochs' should be an integer, got 2.5"),
        ("train.epochs=true", "'train.epochs': should be a number, not true or false"),
        ("train.epochs=0", "'train.epochs' should be greater than or equal to 1, got 0"),
        ("train.lr=.nan", "'train.lr' should be a finite number, got nan"),
        ("train.lr", "must read key=value, such as train.lr=1e-3, got 'train.lr'"),
        ("=3", "must read key=value"),
        ("train..lr=3", "must read key=value"),
        ("train.lr=[", "the value of 'train.lr' is not YAML, line 1"),
        ("train.lr.peak=1", r"cannot set 'train\.lr\.peak': 'train\.lr' is the value 0\.001"),
        ("train=3", "'train' should be .*, got 3"),
        ("train.precision=8", "'train.precision' should be '32-true', 'bf16-mixed' or '16-mixed', got 8"),
        ("train.class_weights={a: -1}", "the weight of class 'a' must be positive, got -1"),
        ("model.fusion=conct", "unknown fusion 'conct'; did you mean 'concat'"),
        ("model.fusion_args.k={a: 1}", "should be a number, a text, true, false, null or a list of them, got {'a': 1}"),
        ("model.encoders.foto.name=x", "^model.encoders names 'foto', .*; did you mean 'photo'"),
        ("evaluate.drop_rates=[1.0]", r"one or more rates in \[0, 1\), got \[1\.0\]"),
        ("train.class_weights=even", "^'train.class_weights' should be 'balanced' or a mapping .*, got 'even'$"),
        ("train.class_weights={a: x}", "^'train.class_weights.a' should be a number, got 'x'$"),
        ("model.encoders.photo=3", r"^'model.encoders.photo' should be a mapping \(key: value\), got 3$"),
        ("data.target=1", "^'data.target' should be a text or a list, got 1; put it in quotes$"),
        ("data.split.ratios=[0.5, 0.5]", r"must be three shares: .*, got \[0\.5, 0\.5\]"),
        ("data.delimiter=ab", "^'data.delimiter' should have at most 1 character, got 'ab'$"),
        ("calibrate.alpha=1", "'calibrate.alpha' should be less than 1, got 1"),
        ("data.modalities.photo.colum=x", r"unknown key 'data\.modalities\.photo\.colum'.*did you mean 'column'"),
    ],
)
def test_mistakes_name_key_rule_value_and_way_out(path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(path, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML, line 1"),
        ("- a", "a config must be a mapping .*, got list"),
        ("data: {table: t.csv}", "'data.target' is required; add it"),
        ("train: {lr: 1}\ntrain: {lr: 2}", "line 2: key 'train' is given twice"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_broken_files_are_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(path)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the config .*none\.yaml': No such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        load_config(tmp_path / "c.yaml")


def test_overrides_leave_the_given_mapping_alone() -> None:
    values: dict[str, Any] = {"data": DATA, "train": {"lr": 0.5}}
    assert make_config(values, ["train.lr=0.1"]).train.lr == 0.1
    assert values["train"] == {"lr": 0.5}


def test_configs_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainConfig().epochs = 3


def test_every_setting_is_described() -> None:
    rows = describe(RunConfig)
    assert len(rows) > 40
    for key, default, text in rows:
        assert text, f"{key} needs a description"
        assert default, key


@pytest.mark.parametrize(
    ("fusion", "given", "expected"), [("concat", None, 0.5), ("aecf", None, 0.0), ("aecf", 0.2, 0.2)]
)
def test_a_fusion_with_its_own_policy_is_not_dropped_twice(fusion: str, given: float | None, expected: float) -> None:
    masking = ModelConfig(fusion=fusion, modality_dropout=given).masking()
    assert masking["modality_dropout"] == expected
    assert masking["corruption"] == 0.15
