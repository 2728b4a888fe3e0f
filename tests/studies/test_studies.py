"""The studies as they are defined: names that exist, arms that train, choices that see no test row."""

from dataclasses import replace

import pytest
import torch

from polyfuse.datasets import DATASETS, DataSet, load_dataset
from polyfuse.datasets.variants import apply
from polyfuse.studies import aecf, choice, imbalance
from polyfuse.studies.arms import Plan, Task, train_plan
from polyfuse.studies.floors import linear_floors
from polyfuse.studies.jobs import Place
from polyfuse.studies.registry import STUDIES
from polyfuse.studies.study import Size

SIZE = Size(steps=2, tries=3)


@pytest.fixture(scope="module")
def small() -> DataSet:
    """A few rows of a generated set, where one input says much more than the others."""
    data = load_dataset("collapsed")
    rows = torch.arange(96)
    return replace(data, train=data.train.rows(rows), validation=data.validation.rows(rows), test=data.test.rows(rows))


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_names_exist(name: str, small: DataSet) -> None:
    study = STUDIES[name]
    places = [Place.parse(text) for text in study.datasets]
    places += [Place.parse(text) for size in study.scales.values() for text in size.datasets]
    assert {place.dataset for place in places} <= set(DATASETS)
    assert set(study.scales) == {"smoke", "small", "full"}
    assert min(study.scales[s].seeds for s in ("small", "full")) >= (3 if name == "choice" else 5)
    plans = study.arms(small, SIZE)
    names = {plan.name for plan in plans}
    assert len(names) == len(plans)
    assert [plan.kind for plan in plans].count("reference") == 1
    asked = study.questions
    wanted = {arm for _, *pair in asked.ingredients for arm in pair} | set(asked.families.values())
    assert wanted | ({asked.default} - {""}) <= names
    assert len({len(plan.tries) for plan in plans}) == 1


@pytest.mark.parametrize("study", ["aecf", "imbalance", "choice"])
def test_every_arm_trains(study: str, small: DataSet) -> None:
    task = Task(small.train, small.validation, small.test, small.specs, small.target, encode=True)

    def train(plan: Plan) -> int:
        if plan.baseline or plan.uses:
            return 2
        ready = plan.trying(plan.tries[-1], seed=1)
        return train_plan(task, ready, task.train, task.validation, task.specs)[1].steps

    assert {train(plan) for plan in STUDIES[study].arms(small, SIZE)} == {2}


def test_arms_without_classes_have_no_hinge() -> None:
    data = load_dataset("longtail")
    plans = aecf.arms(data, SIZE)
    assert all(plan.train.recipe.hinge == 0 for plan in plans)
    assert len(plans) == len(aecf.arms(load_dataset("mixed"), SIZE)) - 4


def test_floors_order_combinations_by_what_they_say(small: DataSet) -> None:
    data = load_dataset("collapsed")
    floors = linear_floors(data)
    assert set(floors) == {"a", "b", "c", "a+b", "a+c", "b+c", "a+b+c"}
    assert floors["a+b+c"] < floors["a"] < min(floors["b"], floors["c"])
    assert linear_floors(load_dataset("longtail")) == {}


def test_the_weak_input_is_named_or_found() -> None:
    data = load_dataset("collapsed")
    assert imbalance.weak_modality(apply(data, "scarce a 0.1")) == "a"
    assert imbalance.weak_modality(data) != "a"
    weights = [p.train.recipe.modality_weights for p in imbalance.arms(apply(data, "weak b"), SIZE)]
    assert {"b": 3.0} in weights


def test_the_choice_touches_no_test_row(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_dataset("mixed")
    groups = {part: [f"{part}{i // 10}" for i in range(len(getattr(data, part)))] for part in ("train", "validation")}
    groups["test"] = [f"test{i}" for i in range(len(data.test))]
    for given in (None, groups):
        monkeypatch.setattr(choice, "load_dataset", lambda name, split, given=given: replace(data, groups=given))
        chosen = choice.load_for_choice("mixed", 0)
        assert torch.equal(chosen.test.keys, data.validation.keys)
        held = set(chosen.validation.keys.tolist())
        left = set(chosen.train.keys.tolist())
        assert held | left == set(data.train.keys.tolist())
        assert not held & left
        assert 0.15 < len(held) / len(data.train) < 0.25
        if chosen.groups is not None:
            assert not set(chosen.groups["train"]) & set(chosen.groups["validation"])
            assert len(chosen.groups["validation"]) == len(chosen.validation)
