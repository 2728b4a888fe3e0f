"""Sentences about abstention: shares, wanted risks in the task's words, and who is always flagged."""

import math

import pytest

from polyfuse.calibrate.abstain import Abstention
from polyfuse.report.abstention import NAMED, always_flagged, flagged_share

NAMES = ("image", "text", "sound")


@pytest.mark.parametrize(
    ("task", "own", "said"),
    [
        (
            "classification",
            (0.0, 0.125),
            "flags none of the 7 rows as too unsure; 12.5 % of the answers kept are wrong",
        ),
        ("classification", (1.0, None), "flags all of the 7 rows as too unsure."),
        (
            "multilabel",
            (0.5, 0.03),
            "flags 50.0 % of the 7 rows as too unsure; 3.0 % of the labels kept are wrong (wanted",
        ),
        ("regression", (0.2, 3.2), "mean squared error of the values kept is 3.20 (wanted: at most 2.50)."),
    ],
)
def test_the_share_and_the_risk(task: str, own: tuple[float, float | None], said: str) -> None:
    record = {"abstained": own[0], "risk_accepted": own[1]}
    assert said in flagged_share(Abstention(task, 0.1, {}), record, "7 rows", scale=5.0)
    assert flagged_share(Abstention(task, 0.1, {}), {"abstained": None}, "0 rows") == ""


def test_who_is_always_flagged() -> None:
    thresholds = {code: math.inf for code in range(1, 8)} | {2: 0.5}
    fitted = Abstention("classification", 0.05, thresholds, dict.fromkeys(thresholds, 11), {7: 1234, 1: None})
    text = always_flagged(fitted, NAMES)
    assert text.startswith(
        "However sure the model is, rows with complete inputs (11 validation rows, about 1,234 needed), image + text ("
    )
    assert text.count("(11 validation rows") == NAMED
    assert " and 2 more combinations of inputs are always flagged: " in text
    assert "show that at most 5 % of their answers are wrong. To change it: " in text
    assert "data.split.ratios) or a higher calibrate.risk, then train again" in text
    assert "every row is flagged, with image alone (11 validation rows, wrong too often at any confidence): " in (
        always_flagged(fitted, NAMES, [0, 1])
    )
    assert always_flagged(fitted, NAMES, [0, 2]) == always_flagged(fitted, NAMES, [0]) == ""
    assert "rows with text + sound (never calibrated) are" in always_flagged(
        Abstention("regression", 0.1, {2: -1.0}), NAMES, [2, 6]
    )
    old = always_flagged(Abstention("multilabel", 0.1, {1: math.inf, 2: 0.5}), NAMES)  # rows were not kept
    assert "rows with image alone are always flagged" in old
    assert "at most 10 % of their labels" in old
