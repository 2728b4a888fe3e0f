"""The verdict says what the numbers say: wins, ties and losses."""

from collections.abc import Callable

import pytest

from polyfuse.report.content import ReportData
from polyfuse.report.records import Arm, Metric, Paired, SubsetRecord
from polyfuse.report.summary import summarise
from polyfuse.report.table import columns
from polyfuse.report.verdict import plain_words, verdict

Build = Callable[..., ReportData]
SUBSETS = (("a", "b"), ("a",), ("b",))


def report(means: dict[str, tuple[float, float, float]], **fields: object) -> ReportData:
    """A report from {arm: accuracy on (complete, a, b)}, one seed; the arm called ref is the reference."""
    data = ReportData("t", "classification", ("a", "b"), **fields)  # type: ignore[arg-type]
    for name, scores in means.items():
        data.arms.append(Arm(name, kind="reference" if name == "ref" else "arm"))
        for subset, value in zip(SUBSETS, scores, strict=True):
            metrics = {data.primary.name: value, "ece": 0.1, "ece_calibrated": 0.02}
            data.subset_records.append(SubsetRecord(name, 0, subset, 101, metrics))
    return data


def paired(name: str, mean: float, low: float, high: float, over: str = "mean") -> Paired:
    return Paired(name, "ref", "accuracy", mean, low, high, over)


REF, UP = (0.8, 0.6, 0.4), (0.81, 0.64, 0.41)


def test_tie_when_the_interval_includes_zero() -> None:
    data = report({"ref": REF, "new": UP}, paired=[paired("new", 0.02, -0.01, 0.05)])
    first = verdict(data)[0]
    assert first.startswith("It is a tie: new")
    assert "cannot be told from ref" in first
    assert "−1.0 to +5.0" in first
    assert "wins" not in first


def test_win_only_when_the_interval_excludes_zero() -> None:
    first = verdict(report({"ref": REF, "new": UP}, paired=[paired("new", 0.02, 0.01, 0.03)]))[0]
    assert "wins with 62.0 % accuracy averaged over 3 combinations" in first
    assert "81.0 % complete, 41.0 % at worst, b alone" in first
    assert "2.0 points better than ref (95 % interval +1.0 to +3.0)" in first


def test_no_interval_is_said() -> None:
    assert "without an interval" in verdict(report({"ref": REF, "new": UP}))[0]


def test_nobody_beats_the_reference() -> None:
    rows = {"ref": UP, "even": REF, "down": (0.5, 0.5, 0.3)}
    gaps = [paired("even", -0.02, -0.05, 0.01), paired("down", -0.2, -0.3, -0.1)]
    first = verdict(report(rows, paired=gaps))[0]
    assert first.startswith("No arm beats ref")
    assert "1 of 2 tie with it and 1 lose" in first


def test_default_and_watched_arms_are_told_where_they_lose() -> None:
    rows = {"ref": REF, "default": UP, "aecf": (0.7, 0.5, 0.35), "plain": (0.9, 0.3, 0.2)}
    gaps = [
        paired("default", 0.02, 0.01, 0.03),
        paired("aecf", -0.0833, -0.11, -0.05),
        paired("plain", -0.13, -0.15, -0.1),
    ]
    second = verdict(report(rows, paired=gaps, default="default", watch=("aecf",)))[1]
    assert "Default loses with complete inputs (plain is 9.0 points better)" in second
    assert "aecf loses 8.3 points to ref (95 % interval −11.0 to −5.0)" in second


def test_default_that_loses_nowhere() -> None:
    rows = {"ref": REF, "default": UP}
    assert verdict(report(rows, paired=[paired("default", 0.02, 0.01, 0.03)], default="default"))[1] == (
        "No arm beats default with complete inputs, in the mean or on the worst subset."
    )


def test_ends_of_an_interval_never_read_as_zero() -> None:
    data = report({"ref": UP, "aecf": REF}, paired=[paired("aecf", -0.02, -0.04, -0.0002)], watch=("aecf",))
    assert "−4.0 to −0.02" in verdict(data)[1]


def test_lower_is_better_counts_the_other_way() -> None:
    metric = Metric("mae", "error", higher_is_better=False, percent=False, unit="kWh")
    gap = Paired("new", "ref", "mae", 2.0, 1.0, 3.0)
    data = report({"ref": (1.0, 2.0, 3.0), "new": (3.0, 4.0, 5.0)}, metric=metric, paired=[gap], watch=("new",))
    first, second = verdict(data)
    assert first.startswith("No arm beats ref: 2.00 kWh error")
    assert "loses 2.00 kWh to ref (95 % interval −3.00 to −1.00)" in second


def test_without_reference() -> None:
    first = verdict(report({"one": REF, "two": UP}))[0]
    assert first.startswith("Two is best with 62.0 % accuracy")


def test_single_model() -> None:
    first, second = verdict(report({"concat": UP}))
    assert first.startswith("Concat scores 81.0 % accuracy on the 101 test rows with complete inputs, 62.0 %")
    assert "41.0 % at worst (b alone)" in first
    assert second == "Calibration took ECE, the mean over subsets, from 0.100 to 0.020."
    assert any("one seed" in text for text in plain_words(report({"concat": UP})))


def test_calibration_that_harms_is_said() -> None:
    data = report({"one": UP, "two": REF})
    for i, r in enumerate(data.subset_records):
        if r.arm == "two":
            data.subset_records[i] = SubsetRecord("two", 0, r.subset, 1, {**r.metrics, "ece_calibrated": 0.3})
    assert any("it made two worse" in text for text in plain_words(data))
    alone = report({"one": UP})
    alone.subset_records = [
        SubsetRecord("one", 0, r.subset, 1, {**r.metrics, "ece_calibrated": 0.3}) for r in alone.subset_records
    ]
    assert verdict(alone)[1].startswith("Calibration made it worse")


@pytest.mark.parametrize("modalities", [("a",), ("a", "b")])
@pytest.mark.parametrize("parts", [True, False])
def test_plain_words_of_anything(make_data: Build, modalities: tuple[str, ...], parts: bool) -> None:
    for arms in (1, 2, 13):
        words = plain_words(make_data(arms=arms, seeds=1 + arms % 2, parts=parts, modalities=modalities))
        assert len(words) == len(set(words))
        assert all(text.endswith(".") and "nan" not in text and "  " not in text for text in words), words


def test_broken_inputs_and_headroom_are_told(make_data: Build) -> None:
    text = " ".join(plain_words(make_data(seeds=2)))
    assert "broken but not flagged" in text
    assert "that is the headroom" in text
    assert "Knowing only which inputs are there" in text


def test_nothing_scored() -> None:
    data = ReportData("t", "classification", ("a",), arms=[Arm("x")])
    assert verdict(data) == ["No arm was scored on all subsets, so there is nothing to judge."]


def test_one_model_names_the_rows_and_the_combinations_it_was_scored_on() -> None:
    data = report({"new": REF})
    data.subset_records[0] = SubsetRecord("new", 0, SUBSETS[0], 1, data.subset_records[0].metrics)
    first = verdict(data)[0]
    assert "on the 1 test row with complete inputs" in first
    assert "averaged over all 3 combinations of inputs" in first
    sampled = report({"new": REF})
    sampled.subset_records.pop()
    assert "averaged over 2 of the 3 combinations" in verdict(sampled)[0]
    sampled.data.rows.update(train=301, validation=101, test=0)
    assert "on the 101 validation rows" in verdict(sampled)[0]


def test_regression_has_intervals_and_no_sets() -> None:
    data = report({"new": REF}, nominal_coverage=0.9)
    data.task = "regression"
    for record in data.subset_records:
        record.metrics.update(r2=0.3, coverage=0.8)
    text = " ".join(plain_words(data))
    assert "conformal intervals that promise 90 %" in text
    assert "sets" not in text.replace("subsets", "")


def test_a_metric_that_cannot_be_measured_is_named() -> None:
    data = report({"new": REF})
    for record in data.subset_records:
        record.metrics.clear()
    assert verdict(data) == ["accuracy cannot be measured on 101 test rows, so there is nothing to judge."]


def test_a_single_combination_that_is_not_complete_is_scored_all_the_same() -> None:
    data = report({"new": REF})
    del data.subset_records[:2]
    assert verdict(data)[0] == "New scores 40.0 % accuracy on the 101 test rows with b."
    assert [c.key for c in columns(summarise(data))][:1] == ["mean"]
