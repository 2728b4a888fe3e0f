"""The main job at its smallest scale, through the command's own function."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from polyfuse.data.emoji import MODALITIES, load_emoji
from polyfuse.errors import UserError
from polyfuse.evaluate.intervals import Interval
from polyfuse.studies.demo import AECF, DEFAULT, REFERENCE, SCALES, Check, DemoResult, arms, run_demo


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return run_demo(out=tmp_path_factory.mktemp("demo") / "out", scale="smoke", seeds=1, workers=1)


def test_every_arm_has_the_same_budget() -> None:
    size = SCALES["full"]
    plans = arms(size)
    assert {"concat", REFERENCE, "late", "hybrid", "gated", "attention_pool", AECF, "embracenet", DEFAULT} <= {
        plan.name for plan in plans
    }
    assert [plan.name for plan in plans if plan.kind == "unimodal"] == list(MODALITIES)
    assert [plan.baseline for plan in plans if plan.kind == "baseline"] == ["presence_only", "gradient_boosting"]
    trained = [plan for plan in plans if not plan.baseline]
    assert {len(plan.tries) for plan in trained} == {size.tries}
    assert {plan.train.steps for plan in trained} == {size.steps}
    assert [plan.name for plan in plans if plan.kind == "reference"] == [REFERENCE]


def test_every_try_of_every_arm_makes_a_model() -> None:
    """A setting that no fusion takes would only fail minutes into the job."""
    import torch

    from polyfuse.data.spec import ModalitySpec, TargetSpec
    from polyfuse.train.build import build_model

    target = TargetSpec("classification", ("x", "y"))
    for plan in arms(SCALES["full"]):
        specs = {n: ModalitySpec(n, "vector", {"width": 3}) for n in plan.uses or MODALITIES}
        for settings in plan.tries:
            chosen = plan.trying(settings, 0)
            model = build_model(specs, target, chosen.model, encoders={n: torch.nn.Identity() for n in specs})
            assert model({n: torch.zeros(2, 3) for n in specs}).logits.shape == (2, 2)
            if plan.name == AECF:
                assert chosen.model.masking()["modality_dropout"] == 0.0  # its own policy drops, and nothing else


def test_the_report_holds_what_was_promised(result: DemoResult) -> None:
    report = result.report
    report.check()
    fusions = [arm for arm in report.arms if arm.kind in ("arm", "reference")]
    assert len(fusions) == 9
    for arm in [*fusions, *(a for a in report.arms if a.kind == "baseline")]:
        subsets = {r.subset for r in report.subset_records if r.arm == arm.name}
        assert len(subsets) == 7
    assert {o.subset for o in report.oracles} == subsets
    judged = {p.arm for p in report.paired}
    assert judged == {a.name for a in report.arms if a.kind in ("arm", "baseline")}
    assert (report.default, report.reference_arm, report.watch) == (DEFAULT, REFERENCE, (AECF,))
    assert report.data.missing_rule
    assert report.data.grouping == "concept"
    assert report.arm(AECF).drop_rate is not None
    assert report.arm("concat").drop_rate is None


def test_the_files_and_the_text_say_the_same(result: DemoResult) -> None:
    numbers = json.loads((result.folder / "report.json").read_text(encoding="utf-8"))
    assert {arm["name"] for arm in numbers["arms"]} == {arm.name for arm in result.report.arms}
    html = (result.folder / "report.html").read_text(encoding="utf-8")
    text = result.text()
    for arm in result.report.arms:
        assert arm.title in html
        if arm.kind != "unimodal":
            assert arm.title in text
    assert str(result.folder / "report.html") in text.splitlines()[-1]
    assert "Realised drop rate" in " ".join(text.split())  # lines are wrapped
    assert "Inputs alone: picture" in text
    with (result.folder / "report.csv").open(encoding="utf-8", newline="") as stream:
        assert len(list(csv.reader(stream))) > 100
    json.dumps(result.to_dict(), allow_nan=False, default=str)


def test_the_check_reads_the_arm_with_the_lowest_validation_loss(result: DemoResult) -> None:
    fusions = {arm.name: arm for arm in result.report.arms if arm.kind in ("arm", "reference")}
    best = min(fusions, key=lambda name: result.outcomes[name][0].validation_loss)
    assert result.check.arm == fusions[best].title
    records = {r.subset: r.metrics for r in result.report.subset_records if r.arm == best}
    for name, value in result.check.alone.items():
        assert value == pytest.approx(records[(name,)]["accuracy"])
    assert result.check.accuracy == pytest.approx(records[MODALITIES]["accuracy"])
    pairs = {s: m["nll_calibrated"] for s, m in records.items() if len(s) == 2}
    assert result.check.pair == min(pairs, key=lambda s: pairs[s])
    gap = records[MODALITIES]["nll_calibrated"] - pairs[result.check.pair]
    assert result.check.loss.mean == pytest.approx(gap, abs=1e-5)
    assert result.check.loss.low < result.check.loss.mean < result.check.loss.high


@pytest.mark.parametrize(
    ("alone", "loss", "said"),
    [
        ((0.6, 0.5, 0.5), (-0.03, -0.05, -0.01), ["each is informative", "none is near the ceiling", "inputs beat"]),
        ((0.6, 0.25, 0.5), (-0.03, -0.05, 0.01), ["NOT each is informative", "do not surely beat"]),
        ((0.95, 0.5, 0.5), (-0.03, -0.05, -0.01), ["one is near the ceiling"]),
    ],
)
def test_the_check_says_when_the_data_do_not_fit(alone, loss, said) -> None:
    check = Check(
        arm="late",
        alone=dict(zip(MODALITIES, alone, strict=True)),
        majority=0.2,
        pair=MODALITIES[:2],
        pair_accuracy=0.70,
        accuracy=0.72,
        gain=Interval(0.02, -0.01, 0.05),
        loss=Interval(*loss),
    )
    text = " ".join(check.lines())
    assert all(phrase in text for phrase in said), text


def test_choosing_settings_never_sees_the_test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings are compared by validation loss: a try is not judged at all."""
    from polyfuse.studies import arms as work

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("a try was judged")

    monkeypatch.setattr(work, "judge", forbidden)
    tables = load_emoji()
    batches = [b.rows(np_range(40)) for b in (tables.train, tables.validation, tables.test)]
    task = work.Task(*batches, tables.specs, tables.target)
    plan = next(p for p in arms(SCALES["smoke"]) if p.name == DEFAULT)
    outcome = work.train_and_judge(task, plan.trying(plan.tries[0], 0), plan.tries[0], False)
    assert outcome.judgement is None
    assert np.isfinite(outcome.validation_loss)


def np_range(count: int):
    import torch

    return torch.arange(count)


@pytest.mark.parametrize(("options", "match"), [
    ({"scale": "huge"}, "--scale must be one of full, smoke, got 'huge'"),
    ({"seeds": 0}, "--seeds must be at least 1, got 0"),
    ({"workers": 0}, "--workers must be at least 1, got 0"),
])  # fmt: skip
def test_bad_options_are_refused_before_any_work(options, match: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=match):
        run_demo(out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_old_report_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        run_demo(out=tmp_path, scale="smoke")
    assert (tmp_path / "report.html").read_text() == "mine"
