"""`polyfuse compare` and `polyfuse evaluate` on the small real table."""

from pathlib import Path

import pytest

from polyfuse.config import load_config
from polyfuse.errors import UserError
from polyfuse.run import compare_runs, evaluate_run
from polyfuse.run.compare import _arm
from polyfuse.run.folder import Run


def test_compare_trains_the_reference_the_arms_and_the_baselines(config: Path, tmp_path: Path) -> None:
    found = compare_runs(
        config, overrides=["train.steps=8"], fusions=["late"], seeds=1, frozen=True, out=tmp_path / "c", workers=1
    )
    report = found.report
    assert [arm.name for arm in report.arms] == ["reference", "late", "presence_only", "gradient_boosting"]
    assert {p.arm for p in report.paired} == {"late", "presence_only", "gradient_boosting"}
    assert (tmp_path / "c" / "report.html").is_file()
    assert (tmp_path / "c" / "report.csv").is_file()
    assert any("each alone, frozen and cached" in line for line in report.protocol)
    text = found.text()
    assert "late" in text
    assert str(tmp_path / "c" / "report.html") in text


def test_evaluate_refreshes_the_report_and_takes_another_table(run: Run, table: Path, tmp_path: Path) -> None:
    again = evaluate_run(run)
    first = {r.subset: r.metrics["accuracy"] for r in again.report.subset_records}
    assert len(first) == 7
    lines = table.read_text(encoding="utf-8").splitlines()
    other = table.parent / "other.csv"
    other.write_text("\n".join(lines[:60]) + "\n", encoding="utf-8")
    judged = evaluate_run(run.folder, table=other)
    assert judged.folder == run.folder / "evaluations" / "other"
    assert (judged.folder / "report.html").is_file()
    assert max(r.n for r in judged.report.subset_records) <= 59
    unlabelled = table.parent / "unlabelled.csv"
    unlabelled.write_text("id,name,category\n1,cat,\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"no row of 'unlabelled.csv' has a known target and an input"):
        evaluate_run(run, table=unlabelled)


def test_mistakes_are_one_sentence(config: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown fusion 'conct'; did you mean 'concat'"):
        compare_runs(config, fusions=["conct"], out=tmp_path / "x")
    with pytest.raises(UserError, match="--seeds must be at least 1, got 0"):
        compare_runs(config, seeds=0, out=tmp_path / "x")
    with pytest.raises(UserError, match="--workers must be at least 1, got 0"):
        compare_runs(config, workers=0, out=tmp_path / "x")
    with pytest.raises(UserError, match="has no column 'zz'"):
        compare_runs(config, overrides=["data.id=zz"], out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_arguments_of_the_configs_fusion_stay_with_it(config: Path) -> None:
    settings = load_config(config, ["model.fusion=aecf", "model.fusion_args.num_heads=2"])
    assert _arm(settings, "aecf").fusion_args == {"num_heads": 2}
    assert _arm(settings, "late").fusion_args == {}
