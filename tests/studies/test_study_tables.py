"""From records with planted answers to tables: every figure is known before it is computed."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from made_records import BASE, ROWS, SEEDS, SUBSETS, plans, study_records

from polyfuse.report.study_records import DataInfo, Difference, Goal, StudyReport, Technique
from polyfuse.studies.differences import Sampled, claims, corrected
from polyfuse.studies.goals import TEXTS, coverage_p
from polyfuse.studies.ledger import Ledger
from polyfuse.studies.results import Records
from polyfuse.studies.situations import recommend
from polyfuse.studies.tables import Questions, noise_floor, summarise

DRAWS = 400


def report(records: pa.Table, real: tuple[str, ...] = ("htad", "mfeat"), **asked: Any) -> StudyReport:
    about = {name: DataInfo(name, real=name in real) for name in ("htad", "mfeat", "synergy")}
    questions = Questions(**{"default": "default", **asked})
    return summarise(records, plans(), about=about, questions=questions, draws=DRAWS)


def goal(found: StudyReport, key: str) -> Goal:
    return next(g for g in found.goals if g.text == TEXTS[key])


def test_the_main_table_holds_what_was_planted() -> None:
    found = report(study_records())
    row = found.table("htad").row("reference")
    assert row is not None
    values = {k: row.values[k].mean for k in row.values}
    assert values["complete"] == pytest.approx(0.9)
    assert values["mean"] == pytest.approx((0.7 + 0.6 + 0.9) / 3)
    assert values["worst"] == pytest.approx(0.6)
    assert row.worst_subset == "motion"
    assert values["nll"] == pytest.approx(0.54)  # after the temperature per subset, not 0.60
    assert values["ece"] == pytest.approx(0.04)
    assert (values["coverage"], values["worst_coverage"]) == pytest.approx((0.9, 0.9))
    # Noise: (0.8 + 0.6) / 2 for audio, 0.1 less for motion, the worse. Held out: (0.5 + 0.7) / 2, less 0.1.
    assert (values["noise"], values["broken"]) == pytest.approx((0.6, 0.5), abs=0.003)
    assert (values["parameters"], values["seconds"], values["passes"]) == (1000, 2, 1)
    assert row.values["mean"].n == SEEDS
    single = found.table("htad").row("audio only")
    assert single is not None
    assert "mean" not in single.values  # of one input: it has no mean over subsets
    assert single.subsets == {"audio": pytest.approx(0.7)}
    assert found.info("htad").rows == {"train": 700, "validation": 300, "test": ROWS}
    assert found.info("htad").notes == ("Rows were made up.",)


def test_regret_is_less_its_noise_floor() -> None:
    table = report(study_records()).table("htad")
    # The twins differ by -0.004 on audio and +0.004 on the others: the worst is 0.004 either way.
    assert table.floor == pytest.approx(0.004)
    row = table.row("default")
    assert row is not None
    gaps = [table.oracle[s] - row.subsets[s] for s in SUBSETS]
    assert row.values["regret"].mean == pytest.approx(max(gaps) - 0.004)
    assert noise_floor({"a": 0.8, "b": 0.7}, {"a": 0.7, "b": 0.72}) == pytest.approx(0.5 * (0.1 + 0.02))
    assert math.isnan(noise_floor({"a": 0.8}, {}))


def noisy_oracles(data: str) -> pa.Table:
    """Records whose twins differ by 20 points on that data set."""
    columns = study_records(oracle_gain=0.01).to_pydict()
    for i, (name, arm) in enumerate(zip(columns["dataset"], columns["arm"], strict=True)):
        if name == data and arm == "oracle reseeded":
            columns["value"][i] += 0.2 if columns["subset"][i] == "audio" else -0.2
    return pa.table(columns, schema=study_records().schema)


def test_a_data_set_with_a_high_noise_floor_judges_no_regret() -> None:
    found = report(noisy_oracles("mfeat"))
    assert found.table("mfeat").floor == pytest.approx(0.2, abs=0.01)
    rows = {data: found.table(data).row("default") for data in ("htad", "mfeat")}
    assert ["regret" in row.values for row in rows.values() if row is not None] == [True, False]
    regret = goal(found, "regret")
    assert regret.met
    assert "1 of 1 data sets within 1; not judged, noise floor above 5: mfeat (19.6)" in regret.figure
    assert any(text.startswith("No regret is given on mfeat (19.6 points)") for text in found.notes)
    every = report(study_records(oracle_gain=0.01))
    assert "2 of 2 data sets within 1" in goal(every, "regret").figure
    assert not any(text.startswith("No regret") for text in every.notes)


def test_planted_differences_are_found_and_ties_stay_ties() -> None:
    found = report(study_records(gain={"bad": 0.0}))
    for data in ("htad", "mfeat", ""):
        gain = found.difference("default", "mean", data)
        assert gain is not None
        assert gain.mean == pytest.approx(0.029, abs=0.002)
        assert gain.low < gain.mean < gain.high
        assert gain.verdict == "better"
        same = found.difference("bad", "mean", data)
        assert same is not None
        assert (same.mean, same.verdict, same.p) == (0.0, "tied", 1.0)
    nll = found.difference("default", "nll")
    assert nll is not None
    assert nll.mean == pytest.approx(0.05)  # less loss is a gain
    broken, noise = (found.difference("default", q, "htad") for q in ("broken", "noise"))
    assert broken is not None
    assert noise is not None
    assert (broken.verdict, noise.verdict) == ("better", "tied")
    assert broken.mean == pytest.approx(0.06, abs=0.003)


@pytest.mark.parametrize(("subset", "gained"), [("motion", {"mean", "worst"}), ("audio+motion", {"mean", "complete"})])
def test_a_gain_on_one_subset_is_a_gain_there_and_in_the_mean(subset: str, gained: set[str]) -> None:
    found = report(study_records(gain_on=(subset,)))
    for quantity, size in (("complete", 0.029), ("worst", 0.029), ("mean", 0.029 / 3)):
        d = found.difference("default", quantity, "htad")
        assert d is not None
        assert d.mean == pytest.approx(size if quantity in gained else 0.0, abs=0.001)
        assert d.verdict == ("better" if quantity in gained else "tied")


def test_a_worse_arm_is_worse_and_may_claim_nothing() -> None:
    found = report(study_records())
    by = {(c.arm, c.quantity): c for c in found.claims}
    assert by["default", "mean"].stands
    assert by["default", "mean"].better == ("htad", "mfeat")
    assert by["bad", "mean"].worse == ("htad", "mfeat")
    assert not by["bad", "mean"].stands
    assert any(text.startswith("A bad idea loses to concat + dropout: −4.2 points") for text in found.lost)


def test_rows_of_a_group_are_resampled_together() -> None:
    def width(groups: int) -> float:
        compared = Sampled(Ledger(study_records(("htad",), groups=groups)), "htad", DRAWS).compare(
            "default", "reference"
        )
        d = next(c.difference for c in compared if c.difference.quantity == "complete")
        return d.high - d.low

    assert width(8) != pytest.approx(width(ROWS), rel=0.05)


def test_the_interval_is_that_of_a_plain_bootstrap_over_rows() -> None:
    sampled = Sampled(Ledger(study_records(("htad",))), "htad", 4000)
    found = next(c.difference for c in sampled.compare("default", "reference") if c.difference.quantity == "complete")
    share = found.mean  # the same rows gained in every seed but shifted: at most the sum of three shares
    sd = math.sqrt(share * (1 - share) / ROWS)
    assert 0.5 * sd < (found.high - found.low) / 3.92 < 1.2 * sd


def test_holm_by_hand_and_one_family_per_data_set_and_quantity() -> None:
    def made(arm: str, p: float, data: str = "x", quantity: str = "mean") -> Difference:
        return Difference(data, arm, "r", quantity, 0.1, 0.05, 0.2, p)

    found = corrected(
        [made("a", 0.01), made("b", 0.04), made("c", 0.03), made("d", 0.04, "y"), made("e", 0.04, "x", "nll")]
    )
    assert [d.p_holm for d in found] == pytest.approx([0.03, 0.06, 0.06, 0.04, 0.04])
    assert [d.sure for d in found] == [True, False, False, True, True]
    (claim,) = claims([found[0], replace(found[3], arm="a")], ["x", "y"])
    assert (claim.better, claim.after_holm) == (("x", "y"), ("x", "y"))
    (claim,) = claims([found[0], replace(found[3], arm="a", low=-0.3, high=-0.1)], ["x", "y"])
    assert (claim.stands, claim.worse) == (False, ("y",))


def test_all_goals_are_met_when_all_figures_say_so() -> None:
    found = report(study_records(oracle_gain=0.01))
    assert [g.met for g in found.goals] == [True] * 7
    assert [g.text for g in found.goals] == list(TEXTS.values())
    assert any("7 of 7 goals are met, 0 missed." in text for text in found.verdict)


@pytest.mark.parametrize(
    ("key", "records"),
    [
        ("complete", lambda: study_records(gain={"default": -0.04})),
        ("mean", lambda: study_records(gain={"default": 0.0})),
        ("worst", lambda: study_records(gain={"default": 0.0})),
        ("regret", lambda: study_records(oracle_gain=0.06)),
        ("nll", lambda: study_records(nll_gain=0.0)),
        ("broken", lambda: study_records(broken_gain=0.03)),
        ("coverage", lambda: study_records(coverage=0.7)),
    ],
)
def test_each_goal_is_missed_when_its_figure_is(key: str, records: Callable[[], pa.Table]) -> None:
    found = report(records())
    assert goal(found, key).measured
    assert not goal(found, key).met
    assert any(TEXTS[key] in text for text in found.lost)


def test_goals_count_real_data_as_it_is() -> None:
    good = study_records(("htad", "mfeat"), oracle_gain=0.01)
    bad = study_records(("synergy",), {"default": -0.1}, nll_gain=-0.1, broken_gain=-0.1, coverage=0.5)
    changed = study_records(("htad",), {"default": -0.1}, variant="missing 0.7")
    found = summarise(
        pa.concat_tables([good, bad, changed]),
        plans(),
        about={
            "synergy": DataInfo("synergy", real=False),
            "htad, missing 0.7": DataInfo("htad, missing 0.7", plain=False),
        },
        questions=Questions(default="default"),
        draws=DRAWS,
    )
    assert [d.name for d in found.data] == ["htad", "mfeat", "synergy", "htad, missing 0.7"]
    assert all(g.met for g in found.goals)
    pooled = found.difference("default", "mean")
    assert pooled is not None
    assert pooled.sets == 2
    worse = found.difference("default", "mean", "htad, missing 0.7")
    assert worse is not None
    assert worse.verdict == "worse"


def test_a_goal_that_was_not_measured_is_not_met() -> None:
    records = study_records()
    kinds = records["kind"].to_pylist()
    found = report(records.filter(pa.array([k not in ("oracle", "row") for k in kinds])))
    assert [(g.met, g.measured) for g in found.goals[:4]] == [(False, False)] * 4
    assert goal(found, "regret").figure == "not measured"
    assert goal(found, "coverage").met


def test_coverage_is_asked_where_enough_rows_calibrated() -> None:
    records = study_records(("htad",), coverage=0.7)
    few = Records("htad", "", 0, "default", 0)
    for subset in SUBSETS:
        few.add("subset", "calibration_rows", 150, subset=subset, stage="lac mask")
    found = goal(report(pa.concat_tables([records, few.table()])), "coverage")
    assert (found.met, found.measured) == (False, False)
    assert "fewer than 200 calibration rows" in found.details[0]


def test_without_losses_of_rows_corruption_is_judged_over_seeds() -> None:
    records = study_records(("htad",), row_broken=False)
    compared = Sampled(Ledger(records), "htad", DRAWS).compare("default", "reference")
    found = next(c.difference for c in compared if c.difference.quantity == "broken")
    assert (found.basis, found.mean) == ("seeds", pytest.approx(0.06, abs=0.003))


def test_coverage_bounds_are_those_of_scipy() -> None:
    betabinom = pytest.importorskip("scipy.stats").betabinom
    law = betabinom(150, 271, 30)  # ceil(301 * 0.9) = 271 of 300 rows
    for covered in (110, 128, 135, 149):
        expected = min(1.0, 2 * min(law.cdf(covered), law.sf(covered - 1)))
        assert coverage_p(covered, 150, 300) == pytest.approx(expected)
    assert coverage_p(0, 10, 5) == 1.0  # five rows cannot promise 90 %: every answer is in the set


def test_ingredients_are_pooled_over_data_sets() -> None:
    found = report(study_records(), ingredients=(("the recipe", "default", "bad"),))
    (one,) = found.ingredients
    effect = next(e for e in one.effects if not e.data and e.quantity == "mean")
    assert (effect.sets, effect.verdict) == (2, "better")
    assert effect.mean == pytest.approx(0.029 + 0.042, abs=0.002)
    assert any("the recipe +7.1 points" in text for text in found.verdict)


def test_the_verdict_names_the_ingredients_that_move_something() -> None:
    asked = (
        ("nothing", "default", "reference"),
        ("a loss", "bad", "reference"),
        ("a gain", "default", "bad"),
        ("never run", "default", "absent"),
    )
    found = report(study_records(gain={"default": 0.0}), ingredients=asked)
    (text,) = [text for text in found.verdict if text.startswith("What the ingredients buy")]
    assert text.index("a gain +4.2 points") < text.index("a loss −4.2 points")
    assert "nothing" not in text
    assert found.verdict[-1] == "The other ingredient is a tie averaged over subsets."
    assert [one.label for one in found.ingredients] == ["nothing", "a loss", "a gain"]
    assert "Ingredients whose arms did not run at this scale: never run." in found.notes


def test_families_speak_from_their_numbers() -> None:
    found = report(study_records(), families={"early": "reference", "late": "bad", "hybrid": "default"})
    early, late, hybrid = found.families
    assert "best accuracy over subsets" in hybrid.strengths
    assert "highest cost in speed" in hybrid.weaknesses
    assert "worst accuracy on complete inputs" in late.weaknesses
    assert (early.strengths, early.weaknesses) == ((), ())


def test_costs_are_ratios_to_the_reference() -> None:
    cost = next(c for c in report(study_records()).costs if c.arm == "default")
    assert (cost.values["seconds"], cost.ratios["seconds"]) == (pytest.approx(4.0), pytest.approx(2.0))


def test_every_stage_of_calibration_is_kept() -> None:
    found = {r.stage: r.values for r in report(study_records(("htad",))).calibration if r.arm == "default"}
    assert [found[s]["ece"].mean for s in ("raw", "full", "pooled", "mask")] == pytest.approx([0.1, 0.12, 0.06, 0.04])
    assert found["lac full"]["worst_coverage"].mean == pytest.approx(0.7)
    assert "coverage" not in found["mask"]


def test_a_recommendation_follows_the_rule() -> None:
    def technique(arm: str, worst: tuple[float, float, float], **others: tuple[float, float, float]) -> Technique:
        gains = {"worst": worst, **others}
        return Technique(arm, {}, {}, {}, tuple(Difference("x", arm, "r", q, *v) for q, v in gains.items()))

    small = technique("small", (0.02, 0.01, 0.03), complete=(0.0, -0.01, 0.01))
    large = technique("large", (0.05, 0.04, 0.06), complete=(-0.02, -0.03, -0.01))
    unsure = technique("unsure", (0.03, -0.01, 0.07))
    assert recommend([small, large, unsure])[0] == "small"  # the largest gain is paid for on complete inputs
    best, text = recommend([large, unsure])
    assert best == ""
    assert (
        text == "nothing helps surely without a loss: large gives +5.0 points on the worst subset and loses on complete"
    )
    assert recommend([unsure])[1].startswith("nothing helps surely: the most is +3.0 points (−1.0 to +7.0)")


def planted(arm: str, worst: tuple[float, float, float], mean: float, p_holm: float = math.nan) -> Technique:
    gain = Difference("x", arm, "r", "worst", *worst, p_holm=p_holm)
    return Technique(arm, {}, {}, {"mean": (0.5, mean), "complete": (0.7, 0.7)}, (gain,))


def test_a_recommendation_names_its_ties_and_takes_the_best_mean_of_them() -> None:
    # Tux Paint: 0.2 points on the worst subset are not worth four in the mean.
    distilled = planted("distilled", (0.076, 0.026, 0.128), 0.573)
    heads = planted("heads", (0.068, 0.020, 0.120), 0.613)
    behind = planted("behind", (0.010, 0.005, 0.015), 0.620)
    best, text = recommend([distilled, heads, behind], str.upper)
    assert best == "heads"
    assert text == (
        "use HEADS: +6.8 points (+2.0 to +12.0) on the worst subset, and nothing is surely lost; "
        "tied there with DISTILLED (+7.6); of these it has the best mean over subsets"
    )

    def paired(arm: str, other: str) -> Difference:
        assert (arm, other) in (("heads", "distilled"), ("behind", "distilled"))
        return Difference("x", arm, other, "worst", -0.01, *((-0.02, -0.005) if arm == "heads" else (-0.02, 0.01)))

    assert recommend([distilled, heads, behind], paired=paired)[0] == "behind"  # the paired difference decides
    assert "tied" not in recommend([distilled, planted("last", (0.01, 0.005, 0.015), 0.9)])[1]


def test_a_recommendation_says_when_it_fails_correction() -> None:
    assert "Holm" in recommend([planted("a", (0.05, 0.01, 0.09), 0.6, p_holm=0.08)])[1]
    assert "Holm" not in recommend([planted("a", (0.05, 0.01, 0.09), 0.6, p_holm=0.04)])[1]


def test_ties_are_judged_on_the_same_rows_and_the_page_says_what_was_chosen() -> None:
    # 7 points lie inside the interval of 9, but the same rows are right, and more of them.
    records = study_records(gain={"default": 0.09, "bad": 0.072}, gain_on=("motion",))
    found = report(records, imbalance=True, default="")
    for one in found.situations:
        assert one.best == "default"
        assert "tied" not in one.sentence
    near = report(study_records(gain={"default": 0.03, "bad": 0.025}), imbalance=True, default="")
    assert "tied there with a bad idea (+2.5)" in near.situations[0].sentence
    assert any("not corrected for the choice" in text for text in found.notes)
    assert not any("not corrected for the choice" in text for text in report(study_records()).notes)


def test_a_technique_that_did_nothing_is_called_the_same_model() -> None:
    found = report(study_records(gain={"bad": 0.0}), imbalance=True, default="")
    (text,) = [text for text in found.notes if "the same model" in text]
    assert text.startswith("a bad idea is the same model as concat + dropout on htad, mfeat:")
    tied = report(study_records(gain={"bad": 0.0}), default="")
    assert not any("the same model" in text for text in tied.notes)


def test_a_study_of_imbalance_pools_over_all_situations() -> None:
    tables = [study_records(("htad",)), study_records(("htad",), variant="weak motion")]
    records, changed = pa.concat_tables(tables), DataInfo("htad, weak motion", plain=False)
    made = [
        summarise(
            records,
            plans(),
            about={"htad, weak motion": changed},
            questions=Questions(imbalance=imbalance),
            draws=DRAWS,
        )
        for imbalance in (True, False)
    ]
    sets = []
    for one in made:
        pooled = one.difference("default", "mean")
        assert pooled is not None
        sets.append((pooled.sets, len(one.judged)))
    assert sets == [(2, 2), (1, 1)]


def test_situations_compare_before_and_after() -> None:
    (found, _) = report(study_records(), imbalance=True).situations
    assert found.best == "default"
    technique = next(t for t in found.techniques if t.arm == "default")
    assert technique.alone["audio"] == (pytest.approx(BASE["audio"]), pytest.approx(0.729, abs=0.001))
    assert technique.shapley["motion"] == (pytest.approx(0.4 / 0.7), pytest.approx(0.5 / 0.8))
    assert {d.quantity for d in technique.gains} >= {"worst", "complete", "alone: audio", "alone: motion"}
    assert "use the default recipe" in found.sentence


def test_rows_are_matched_by_key_whatever_their_order() -> None:
    records = study_records(("htad",))
    columns = records.to_pydict()
    for i, (arm, keys) in enumerate(zip(columns["arm"], columns["keys"], strict=True)):
        if arm == "default" and keys:
            order = np.random.default_rng(i).permutation(len(keys))
            columns["keys"][i] = [keys[j] for j in order]
            columns["values"][i] = [columns["values"][i][j] for j in order]
    shuffled = pa.table(columns, schema=records.schema)
    plain, mixed = (Sampled(Ledger(t), "htad", DRAWS).compare("default", "reference") for t in (records, shuffled))
    assert [c.difference for c in plain] == [c.difference for c in mixed]


def test_values_without_keys_are_refused() -> None:
    records = study_records(("htad",))
    columns = records.to_pydict()
    place = next(i for i, k in enumerate(columns["kind"]) if k == "row")
    columns["keys"][place] = columns["keys"][place][:-1]
    with pytest.raises(ValueError, match="record of reference must have one value per key"):
        Sampled(Ledger(pa.table(columns, schema=records.schema)), "htad", DRAWS)
