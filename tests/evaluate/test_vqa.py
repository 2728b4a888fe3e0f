"""The challenge's accuracy and its normaliser, on cases worked out from the published rules."""

import itertools
import math

import pytest

from polyfuse.evaluate.vqa import normalise_answer, soft_targets, vqa_accuracy, vqa_table


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (5, 1), (10, 1)])
def test_ten_people(count: int, expected: float) -> None:
    answers = ["yes"] * count + ["no"] * (10 - count)
    assert vqa_accuracy("yes", answers) == expected  # to the last bit: .9 is not .8999...
    # The definition: every nine of the ten, min(1, n / 3), averaged.
    loop = [min(1, sum(a == "yes" for a in nine) / 3) for nine in itertools.combinations(answers, 9)]
    assert sum(loop) / 10 == pytest.approx(expected)


def test_fewer_people() -> None:
    assert soft_targets(["circle"]) == {"circle": 1.0}
    assert soft_targets(["a cat", "dog"]) == {"cat": 0.5, "dog": 0.5}
    for people in range(1, 12):
        assert vqa_accuracy("x", ["x"] * people) == 1.0
        assert vqa_accuracy("y", ["x"] * people) == 0.0
    with pytest.raises(ValueError, match="one human answer at least, got none"):
        soft_targets([])


def test_soft_targets_are_the_scores_of_the_answers() -> None:
    votes = ["red"] * 3 + ["orange"] * 2 + ["brown", "pink", "blue", "rose", "rust"]
    targets = soft_targets(votes)
    assert targets == {answer: vqa_accuracy(answer, votes) for answer in set(votes)}
    assert list(targets.items())[:2] == [("red", 0.9), ("orange", 0.6)]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The  Cat\n", "cat"),
        ("an apple a day", "apple day"),
        ("None", "0"),
        ("twenty one", "twenty 1"),
        ("TEN.", "10"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),  # two apostrophes away
        ("couldnt've", "couldn't've"),
        ("youd've", "you'd've"),
        ("oclock", "o'clock"),
        ("lets", "lets"),
        ("well", "well"),
        ("don't", "don't"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("t-shirt - red", "tshirt red"),  # the hyphen touches a space somewhere: it goes everywhere
        ("yes, it is", "yes it is"),
        ("1,000", "1000"),
        ("1,000 (about)", "1000 about"),
        ("(about 5)", "about 5"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("5.", "5"),
        ("U.S.A.", "usa"),
        ("no?!", "no"),
        ("what's up?", "what's up"),
        ("", ""),
        ("the", ""),
    ],
)
def test_normaliser(answer: str, expected: str) -> None:
    assert normalise_answer(answer) == expected


def test_normaliser_is_on_by_default_on_both_sides() -> None:
    people = ["Two dogs."] * 10
    assert vqa_accuracy("2 dogs", people) == 1.0
    assert vqa_accuracy("2 dogs", people, normalise=False) == 0.0
    assert soft_targets(["A", "a "], normalise=False) == {"A": 0.5, "a ": 0.5}


def test_table_by_kind() -> None:
    lines = vqa_table(["2", "red", "no"], [["two"] * 10, ["blue"] * 10, ["no"] * 2 + ["yes"] * 8], ["n", "c", "c"])
    assert [line["kind"] for line in lines] == ["all", "c", "n"]
    assert [line["rows"] for line in lines] == [3, 2, 1]
    assert [line["accuracy"] for line in lines] == [pytest.approx(1.6 / 3), pytest.approx(0.3), 1.0]
    empty = vqa_table([], [])
    assert empty[0]["rows"] == 0
    assert math.isnan(float(empty[0]["accuracy"]))
    with pytest.raises(ValueError, match="1 predictions for the human answers of 2"):
        vqa_table(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match=r"one length, got \[1, 2\]"):
        vqa_table(["a"], [["a"]], ["x", "y"])
