"""A judged run keeps what training wrote, and every setting of the evaluation does something."""

import json
import shutil
from pathlib import Path

import pytest

from polyfuse.data.encode import prepare
from polyfuse.data.overlap import rows_met
from polyfuse.errors import UserError
from polyfuse.report.abstention import always_flagged
from polyfuse.report.content import ReportData
from polyfuse.run import evaluate_run, train_run
from polyfuse.run.answers import answers
from polyfuse.run.evaluate import add_oracles, read_labelled
from polyfuse.run.folder import Run
from polyfuse.run.train import Trained
from polyfuse.train.loop import FitResult


def report_of(folder: Path) -> ReportData:
    return ReportData.from_json((folder / "report.json").read_text(encoding="utf-8"))


def test_a_refreshed_report_keeps_what_only_training_knows(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run.folder, folder)
    before = report_of(folder)
    evaluate_run(folder)
    after = report_of(folder)
    assert after.arms[0].train_seconds == before.arms[0].train_seconds != ()
    assert after.arms[0].drop_rate == before.arms[0].drop_rate is not None
    assert [line for line in before.protocol if line.startswith("Training ")] == after.protocol[-1:]
    assert after.commands[: len(before.commands)] == before.commands
    (folder / "report.json").write_text("{}", encoding="utf-8")  # nothing to keep is no failure
    assert evaluate_run(folder).report.arms[0].train_seconds == ()


def test_a_table_that_changed_after_training_is_not_judged(run: Run, table: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run.folder, folder)
    shutil.copytree(table.parent / "pictures", tmp_path / "pictures")
    changed = tmp_path / "emoji.csv"
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    (folder / "config.yaml").write_text(text.replace(str(table), str(changed)), encoding="utf-8")
    head, *lines = table.read_text(encoding="utf-8").splitlines()
    before = (folder / "report.json").read_bytes()

    def grown(line: str, times: int) -> str:  # another emoji of the same looks: one more row, one more group
        return line.replace(line.split(",")[0], f"more{times}", 1).rpartition(",")[0] + f",more{times}"

    changed.write_text("\n".join([head, *lines, *(grown(line, i) for i, line in enumerate(lines[:99]))]), "utf-8")
    with pytest.raises(UserError, match=r"since .*copy' was trained on it \(\d+ training rows then, \d+ now\)"):
        evaluate_run(folder)
    name, cells = "code_points", [line.split(",") for line in lines]
    column = head.split(",").index(name)
    for row in cells:
        row[column] = row[column] and str(int(row[column]) * 7)
    changed.write_text("\n".join([head, *map(",".join, cells)]), "utf-8")
    with pytest.raises(UserError, match="its cells or files fit other encoders"):
        evaluate_run(folder)
    assert (folder / "report.json").read_bytes() == before


def test_what_is_flagged_is_said_in_the_same_words_everywhere(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run.folder, folder)
    found = evaluate_run(folder)
    test = prepare(run.config.data, folder=tmp_path).test
    flags = answers(run.model, test, run.encoder.target, run.calibration).abstain
    share, *why = found.report.abstention
    count = "all" if flags.all() else f"{100 * flags.mean():.1f} %" if flags.any() else "none"
    assert share.startswith(f"Abstention flags {count} of the {len(test)} test rows as too unsure")
    assert why == [always_flagged(run.calibration.abstention, found.report.modalities)]  # type: ignore[union-attr]
    text = " ".join(found.text().split())
    assert all(" ".join(sentence.split()) in text for sentence in found.report.abstention)
    assert found.to_dict()["abstention"] == found.report.abstention == report_of(run.folder).abstention
    page = (folder / "report.html").read_text(encoding="utf-8").replace("\xa0", " ")
    assert share in page
    assert Trained(folder, found.report, FitResult(0.0, 1, 1, 1, 0.0, [], 0.0, False)).text() == found.text()


def test_oracles_are_trained_for_every_combination_judged(run: Run, tmp_path: Path) -> None:
    report, said = report_of(run.folder), list[str]()
    train = run.config.train.model_copy(update={"steps": 2, "evaluations": 1})
    config = run.config.model_copy(update={"train": train})
    prepared = prepare(config.data, folder=tmp_path)
    add_oracles(report, config, prepared, said.append, workers=1)
    assert {o.subset for o in report.oracles} == {r.subset for r in report.subset_records}
    assert said[0] == "training one model for each of 7 combinations of inputs"
    assert said[-1].startswith("  7 of 7 models, ")


def test_the_setting_asks_for_oracles(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("polyfuse.run.train.add_oracles", lambda *_: asked.append(1))
    settings = ["train.steps=2", "calibrate.enabled=false", "evaluate.all_subsets_up_to=1"]
    for number, value in enumerate(("false", "true")):
        train_run(config, overrides=[*settings, f"evaluate.oracles={value}"], out=tmp_path / value, progress=False)
        assert len(asked) == number


def test_results_are_json_whatever_could_not_be_measured(config: Path, tmp_path: Path) -> None:
    lines = (config.parent / "emoji.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "few.csv").write_text("\n".join(lines[:20]) + "\n", encoding="utf-8")
    settings = ["train.steps=2", "data.target=words", "data.task=regression", "data.modalities.facts.columns=[style]"]
    copy = tmp_path / "config.yaml"
    copy.write_text(config.read_text(encoding="utf-8").replace("emoji.csv", "few.csv"), encoding="utf-8")
    settings += ["data.split.group=null", "data.max_bad_fraction=1"]
    found = train_run(copy, overrides=settings, out=tmp_path / "run", progress=False)
    assert found is not None
    json.dumps(found.to_dict(), allow_nan=False)
    json.dumps(evaluate_run(tmp_path / "run").to_dict(), allow_nan=False)


def test_a_table_that_is_gone_is_named_with_the_way_out(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run.folder, folder)
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    (folder / "config.yaml").write_text(text.replace("emoji.csv", "moved.csv"), encoding="utf-8")
    with pytest.raises(UserError, match=r"moved.csv', is not there.*data.table in '.*config.yaml'"):
        evaluate_run(folder)


def test_a_labelled_table_may_lack_inputs_but_not_all_and_not_the_target(run: Run, tmp_path: Path) -> None:
    def write(name: str, *lines: str) -> Path:
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return tmp_path / name

    said: list[str] = []
    batch, problems = read_labelled(
        run.encoder, write("a.csv", "name,category", "red heart,symbols", ",symbols", "cat,nothing"), said.append
    )
    assert (len(batch), batch.present.tolist()) == (1, [[False, True, False]])
    assert problems.counts[("row", "no usable input")] == 1
    assert "no column 'picture': 'picture' is missing in every row" in said
    with pytest.raises(UserError, match=r"'b.csv' has no target column 'category'; did you mean 'Category'\? add it"):
        read_labelled(run.encoder, write("b.csv", "name,Category", "red heart,symbols"))
    with pytest.raises(UserError, match=r"'c.csv' has none of the run's input columns"):
        read_labelled(run.encoder, write("c.csv", "category,x", "symbols,1"))
    with pytest.raises(UserError, match=r"no row of 'd.csv' has a known target and an input: .*no usable input"):
        read_labelled(run.encoder, write("d.csv", "category,name", "symbols,"))


def test_rows_that_the_run_has_met_are_named(run: Run, table: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run.folder, folder)
    head, *lines = table.read_text(encoding="utf-8").splitlines()
    prepared = prepare(run.config.data, folder=folder)
    judged = [*prepared.rows["train"][:3], *prepared.rows["test"][:4], prepared.rows["validation"][0]]
    again = table.parent / "again.csv"
    again.write_text("\n".join([head, *(lines[row].replace(",", " ,", 1) for row in judged)]), encoding="utf-8")
    learned = {lines[row].partition(",")[2] for part in ("train", "validation") for row in prepared.rows[part]}
    repeated = [place for place, row in enumerate(judged) if lines[row].partition(",")[2] in learned]
    assert {0, 1, 2, 7} <= set(repeated)
    assert len(repeated) < 8
    assert rows_met(run.config.data, prepared.rows["train"] + prepared.rows["validation"], again) == repeated
    said: list[str] = []
    found = evaluate_run(folder, table=again, say=said.append)
    (warning,) = [line for line in said if line.startswith("warning")]
    assert f"'again.csv' with the inputs and target of a training or validation row: {len(repeated)};" in warning
    assert [p.count for p in found.report.data.problems if p.kind == "met in training"] == [len(repeated)]
    fresh = table.parent / "fresh.csv"
    fresh.write_text("\n".join([head, *(line.replace("e", "ee") for line in lines[:40])]), encoding="utf-8")
    assert rows_met(run.config.data, prepared.rows["train"], fresh) == []


def test_unplug_says_whether_each_input_is_used(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run.folder, folder)
    plain = evaluate_run(folder)
    assert plain.report.inputs  # every report has it
    assert "Does it use each input" not in plain.text()
    found = evaluate_run(folder, unplug=True)
    text, records = found.text(), found.to_dict()["inputs"]
    assert "Does it use each input?" in text
    assert {r["modality"] for r in records} == set(found.report.modalities)
    assert {r["way"] for r in records} == {"added", "removed", "permuted", "other row"}
    removed = {r["modality"]: r["metrics"] for r in records if r["way"] == "removed"}
    for r in plain.report.inputs:
        if r.way == "removed":  # nothing is drawn but the resamples of an interval
            drawn = {key for key in r.metrics if key.endswith(("_low", "_high", "_p"))}
            assert {k: v for k, v in r.metrics.items() if k not in drawn} == {
                k: v for k, v in removed[r.modality].items() if k not in drawn
            }
    assert all(m["gain_low"] <= m["gain"] <= m["gain_high"] for m in removed.values())
    assert report_of(folder).inputs == found.report.inputs
