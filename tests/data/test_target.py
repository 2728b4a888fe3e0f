import json

import numpy as np
import pytest

from polyfuse.data.table_csv import BadText
from polyfuse.data.target import TargetCodec, decide_task
from polyfuse.errors import UserError


@pytest.mark.parametrize(
    ("cells", "task"),
    [
        (["a", "b", None], "classification"),
        (["1", "0", "1"], "classification"),
        ([str(i % 20) for i in range(99)], "classification"),
        ([str(i % 21) for i in range(99)], "regression"),
        (["1.5", "2", None], "regression"),
        (["1.0", "2.0"], "classification"),
        (["1.5", "about 2"], "classification"),
        (['["a"]', "[]", None], "multilabel"),
        ([["a", "b"], ["c"]], "multilabel"),
        (['["a"]', "b"], "classification"),
        (["a|b", "b"], "classification"),
        ([None, None], "classification"),
    ],
)
def test_the_rule_of_auto(cells: list[object], task: str) -> None:
    assert decide_task([cells]) == task
    assert decide_task([cells], "regression") == "regression"


def test_a_separator_or_several_columns_mean_multilabel() -> None:
    assert decide_task([["a", "b"]], separator="|") == "multilabel"
    assert decide_task([["0"], ["1"]]) == "multilabel"


def test_labels_are_kept_as_written_and_ordered() -> None:
    codec = TargetCodec.choose({"y": ["10", "9", "9"]}).fit([["10", "9", "9", "01"]])
    assert codec.spec.classes == ("01", "9", "10")
    codec = TargetCodec.choose({"y": ["b", "A"]}).fit([["b", "A", "1.0", "1"]])
    assert codec.spec.classes == ("1", "1.0", "A", "b")
    values, unseen = codec.encode([["b", "zebra", "1.0"]])
    assert values.tolist() == [3, -1, 1]
    assert values.dtype == np.int64
    assert unseen == [(1, "unseen label", "'zebra'")]


def test_rows_without_a_readable_target() -> None:
    codec = TargetCodec.choose({"y": ["a", "b"]})
    ok, problems = codec.readable([["a", None, BadText("b\ufffd"), ["c"], "b"]])
    assert ok.tolist() == [True, False, False, False, True]
    assert [(i, kind) for i, kind, _ in problems] == [(1, "empty cell"), (2, "bad UTF-8"), (3, "not a label")]


def test_regression_is_standardised_on_training_rows() -> None:
    codec = TargetCodec.choose({"y": ["1.5", "2", "x", None, "inf"]}, "regression")
    ok, problems = codec.readable([["1.5", "2", "x", None, "inf"]])
    assert ok.tolist() == [True, True, False, False, False]
    assert [(i, kind) for i, kind, _ in problems] == [(2, "not a number"), (4, "infinite number"), (3, "empty cell")]
    codec = codec.fit([["1", "3", "8"]])
    values, _ = codec.encode([["1", "3", "8", "100"]])
    raw = np.array([1, 3, 8, 100.0])
    np.testing.assert_allclose(values * codec.spec.std + codec.spec.mean, raw, rtol=1e-6)
    np.testing.assert_allclose([codec.spec.mean, codec.spec.std], [4, np.std([1, 3, 8])])
    assert values.dtype == np.float32
    assert codec.strata([["1"]]) is None


def test_multilabel_cells() -> None:
    cells = ['["a", "b"]', "[]", ["c"], np.array(["a"]), "[1, 2.50]"]
    codec = TargetCodec.choose({"y": cells}).fit([cells])
    assert codec.spec.classes == ("1", "2.50", "a", "b", "c")
    values, unseen = codec.encode([[*cells, '["a", "q"]']])
    assert values.tolist()[:3] == [[0, 0, 1, 1, 0], [0] * 5, [0, 0, 0, 0, 1]]
    assert values[5].tolist() == [0, 0, 1, 0, 0]  # the row stays, the label that no training row has does not
    assert unseen == [(5, "unseen label", "'q'")]
    joined = ["red; blue", "blue", " ;red", ";"]
    codec = TargetCodec.choose({"y": joined}, "multilabel").fit([joined])
    assert (codec.separator, codec.spec.classes) == (";", ("blue", "red"))
    assert codec.encode([joined])[0].tolist() == [[1, 1], [1, 0], [0, 1], [0, 0]]
    assert codec.strata([joined]) == [("blue", "red"), ("blue",), ("red",), ()]


def test_multilabel_columns() -> None:
    columns = [["1", "no", "TRUE", "2", None], ["0", "yes", "0.0", "1", "1"]]
    codec = TargetCodec.choose(dict(zip(("warm", "wet"), columns, strict=True)))
    ok, problems = codec.readable(columns)
    assert ok.tolist() == [True, True, True, False, False]
    assert [(i, kind) for i, kind, _ in problems] == [(3, "neither 0 nor 1"), (4, "empty cell")]
    good = [column[:3] for column in columns]
    codec = codec.fit(good)
    assert codec.spec.classes == ("warm", "wet")
    assert codec.encode(good)[0].tolist() == [[1, 0], [0, 1], [1, 0]]
    assert codec.strata(good) == [(True, False), (False, True), (True, False)]


def test_saved_form() -> None:
    for cells, task in ((["a|b", "b"], "multilabel"), (["1.5", "2"], "regression"), (["x", "y"], "classification")):
        codec = TargetCodec.choose({"y": cells}, task).fit([cells])
        assert TargetCodec.from_dict(json.loads(json.dumps(codec.to_dict()))) == codec


def test_targets_that_cannot_be_learned() -> None:
    with pytest.raises(UserError, match="target 'y' is 'a' in every training row; two classes are needed"):
        TargetCodec.choose({"y": ["a"]}).fit([["a", "a"]])
    with pytest.raises(UserError, match="target 'y' is 3 in every training row; a regression needs two values"):
        TargetCodec.choose({"y": ["3"]}, "regression").fit([["3", "3.0"]])
    with pytest.raises(UserError, match="target 'y' has no label in any training row"):
        TargetCodec.choose({"y": ["[]"]}).fit([["[]", "[]"]])
    with pytest.raises(UserError, match=r"target 'y' has 30 classes in 40 training rows, e.g. 't0'; choose another"):
        TargetCodec.choose({"y": ["t"]}).fit([[f"t{i % 30}" for i in range(40)]])
    with pytest.raises(UserError, match=r"data.target names 2 columns, which is multilabel; got data.task: regression"):
        TargetCodec.choose({"a": ["1"], "b": ["0"]}, "regression")
