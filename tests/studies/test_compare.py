"""The comparison engine: same rows for every arm, choices on validation only, the same result in one process or two."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from polyfuse.config import EvaluateConfig, ModelConfig, TrainConfig
from polyfuse.data.batch import Batch
from polyfuse.data.spec import ModalitySpec, TargetSpec
from polyfuse.report.content import ReportData
from polyfuse.studies.arms import Outcome, Plan, Task, only
from polyfuse.studies.compare import compare_arms, oracle_plan, paired
from polyfuse.studies.judge import Judgement

NAMES, WIDTH = ("a", "b"), 5
Found = tuple[ReportData, dict[str, list[Outcome]]]


def rows(count: int, seed: int) -> Batch:
    """Three classes; each input tells a part; a fifth of the cells is missing."""
    g = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 3, (count,), generator=g)
    a = torch.randn(count, WIDTH, generator=g)
    b = torch.randn(count, WIDTH, generator=g)
    a[:, 0] += 2.5 * (target == 0)
    b[:, 0] += 2.5 * (target == 1)
    present = torch.rand(count, 2, generator=g) > 0.2
    present[~present.any(dim=1), 0] = True
    inputs: dict[str, Any] = {"a": a * present[:, :1], "b": b * present[:, 1:]}
    return Batch(NAMES, inputs, present, target, torch.arange(count) + 1000 * seed)


@pytest.fixture(scope="module")
def task() -> Task:
    specs = {name: ModalitySpec(name, "vector", {"width": WIDTH}) for name in NAMES}
    groups = {"validation": [str(i // 2) for i in range(60)], "test": [str(i // 2) for i in range(80)]}
    target = TargetSpec("classification", ("x", "y", "z"))
    evaluate = EvaluateConfig(bootstrap=200)
    return Task(rows(150, 1), rows(60, 2), rows(80, 3), specs, target, groups, evaluate)


def plans() -> list[Plan]:
    model = ModelConfig(embed_dim=8, hidden=8, corruption=0.0)
    train = TrainConfig(steps=25, batch_size=32, evaluations=2, lr=1e-2)
    return [
        Plan("reference", "reference", "reference", model, train),
        Plan("late", "late", "arm", model.model_copy(update={"fusion": "late"}), train),
        Plan("b alone", "b alone", "unimodal", model, train, uses=("b",)),
        Plan("presence", "presence", "baseline", model, train, baseline="presence_only"),
        Plan("trees", "trees", "baseline", model, train, baseline="gradient_boosting"),
    ]


def run(task: Task, chosen: list[Plan], workers: int = 1, **options: Any) -> Found:
    report = ReportData("test", "classification", NAMES)
    found = compare_arms(report, task, chosen, seeds=(0, 1), workers=workers, **options)
    report.check()
    return report, found


@pytest.fixture(scope="module")
def compared(task: Task) -> Found:
    model = ModelConfig(embed_dim=8, hidden=8)
    return run(task, plans(), oracles=oracle_plan(model, TrainConfig(steps=10, batch_size=32, evaluations=1)))


def test_every_arm_is_judged_on_every_subset_and_seed(compared: Found) -> None:
    report, _ = compared
    found = {(r.arm, r.seed, r.subset): r.n for r in report.subset_records}
    for arm in ("reference", "late"):
        for seed in (0, 1):
            assert {s for a, n, s in found if (a, n) == (arm, seed)} == {("a",), ("b",), ("a", "b")}
    assert {s for a, _, s in found if a == "b alone"} == {("b",)}
    assert found["late", 0, ("b",)] == found["reference", 1, ("b",)] == found["b alone", 0, ("b",)]  # the same rows
    assert {(o.subset, o.seed) for o in report.oracles} == {
        (s, n) for s in [("a",), ("b",), ("a", "b")] for n in (0, 1)
    }


def test_the_reference_differs_from_itself_by_nothing(compared: Found) -> None:
    report, _ = compared
    own = [p for p in report.paired if p.arm == "late"]
    assert {p.over for p in own} == {"mean", "complete", "worst"}
    assert all(p.reference == "reference" for p in report.paired)
    assert not [p for p in report.paired if p.arm == "b alone"]  # it reads other rows


def test_a_paired_difference_is_the_difference_of_the_table(
    compared: Found,
) -> None:
    report, _ = compared

    def mean(arm: str, subset: tuple[str, ...]) -> float:
        return float(
            np.mean([r.metrics["accuracy"] for r in report.subset_records if (r.arm, r.subset) == (arm, subset)])
        )

    over_all = next(p for p in report.paired if p.arm == "late" and p.over == "mean")
    subsets = [("a",), ("b",), NAMES]  # the test rows have holes: every subset has other rows
    table = [float(np.mean([mean(arm, subset) for subset in subsets])) for arm in ("late", "reference")]
    assert over_all.mean == pytest.approx(table[0] - table[1])
    complete = next(p for p in report.paired if p.arm == "late" and p.over == "complete")
    assert complete.mean == pytest.approx(mean("late", NAMES) - mean("reference", NAMES))
    assert complete.low <= complete.mean <= complete.high


def test_baselines_know_what_they_may(compared: Found) -> None:
    report, _ = compared
    scores = {r.arm: r.metrics["accuracy"] for r in report.subset_records if r.subset == NAMES and r.seed == 0}
    assert scores["trees"] > scores["presence"] + 0.2
    assert not [r for r in report.corruption if r.arm == "presence"]  # it cannot see what is corrupted


def test_two_processes_give_what_one_gives(task: Task) -> None:
    first, _ = run(task, plans()[:2], workers=1)
    second, _ = run(task, plans()[:2], workers=2)

    def numbers(report: ReportData) -> list[Any]:
        return [
            (r.arm, r.seed, r.subset, {k: v for k, v in r.metrics.items() if k != "ms_per_row"})
            for r in report.subset_records
        ]

    assert numbers(first) == numbers(second)


def test_settings_are_chosen_by_validation_loss(task: Task) -> None:
    hopeless = {"train.lr": 1e-8}
    tried = replace(plans()[0], tries=(hopeless, {"train.lr": 1e-2}))
    _, found = run(task, [tried])
    assert [dict(o.settings) for o in found["reference"]] == [{"train.lr": 1e-2}] * 2
    assert [o.seed for o in found["reference"]] == [0, 1]


def test_only_keeps_rows_that_have_all_and_nothing_else(task: Task) -> None:
    kept, places = only(task.test, ("b",))
    assert kept.modalities == ("b",)
    assert set(kept.inputs) == {"b"}
    assert places.tolist() == task.test.present[:, 1].nonzero()[:, 0].tolist()
    both, _ = only(task.test, ("a", "b"))
    assert len(both) == int(task.test.present.all(dim=1).sum())


def test_paired_worst_compares_worst_with_worst(task: Task) -> None:
    subsets = np.array([[True, False], [True, True]])

    def outcome(losses: list[list[float]]) -> Outcome:
        judgement = Judgement([], {}, {}, [], [], [], subsets, *2 * [np.array(losses, np.float32)])
        return Outcome("x", 0, {}, 0.0, 0.0, None, 0.0, judgement)

    ours = outcome([[0, 0, 0, 1], [0, 0, 1, 1]])  # accuracies 0.75, 0.5: worst 0.5
    theirs = outcome([[1, 1, 1, 0], [0, 0, 0, 0]])  # 0.25, 1.0: worst 0.25
    small = replace(task, groups=None)
    found = {p.over: p.mean for p in paired("x", [ours], "y", [theirs], small)}
    assert found == pytest.approx({"complete": -0.5, "mean": 0.0, "worst": 0.25})
