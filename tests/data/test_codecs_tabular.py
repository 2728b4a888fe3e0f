import json

import numpy as np
import pytest

from polyfuse.data.codecs import Codec, Encoding, Reading, codec_from_dict, restartable
from polyfuse.data.codecs_tabular import CLIP, Moments, TabularCodec
from polyfuse.data.schema import ModalityConfig
from polyfuse.data.table_csv import BadText

HERE = Reading()


def fit(columns: dict[str, list[object]], **options: object) -> TabularCodec | None:
    config = ModalityConfig.model_validate({"type": "tabular", "columns": list(columns), **options})
    return TabularCodec.fit("t", config, restartable([list(columns.values())]), HERE)


def encode(codec: Codec, *columns: list[object]) -> Encoding:
    return codec.encode(list(columns), HERE)


@pytest.mark.parametrize("chunks", [1, 3, 17])
def test_moments_equal_numpy_however_they_are_cut(chunks: int) -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(1e6, 3.0, (101, 3))
    values[draw.random(values.shape) < 0.3] = np.nan
    values[:, 2] = 7.0
    moments = Moments(3)
    for part in np.array_split(values, chunks):
        moments.add(part)
    np.testing.assert_allclose(moments.mean, np.nanmean(values, 0), rtol=1e-12)
    np.testing.assert_allclose(moments.std[:2], np.nanstd(values, 0)[:2], rtol=1e-9)
    assert moments.std[2] == 1.0


def test_numbers_are_standardised_and_missing_ones_are_zero() -> None:
    codec = fit({"a": ["1", "3", None, "5"], "b": ["x", "y", "x", None]})
    assert codec is not None
    assert codec.spec.options == {"numeric": 1, "cardinalities": [3]}
    out = encode(codec, ["3", None, "1000", "abc", "inf", None], ["y", "x", "z", None, BadText("x\ufffd"), None])
    std = np.std([1, 3, 5])
    np.testing.assert_allclose(out.parts["numeric"][:, 0], [0, 0, CLIP, 0, 0, 0])
    assert out.parts["numeric_mask"][:, 0].tolist() == [True, False, True, False, False, False]
    assert out.parts["categorical"][:, 0].tolist() == [2, 1, 0, 0, 0, 0]
    assert out.present.tolist() == [True, True, True, False, False, False]
    assert sorted((i, kind) for i, kind, _ in out.problems) == [
        (2, "unknown category"), (3, "not a number"), (4, "bad UTF-8"), (4, "infinite number"),
    ]  # fmt: skip
    np.testing.assert_allclose(encode(codec, ["1"], [None]).parts["numeric"], [[(1 - 3) / std]], rtol=1e-6)


def test_numeric_or_categorical_is_inferred_from_the_share_of_numbers() -> None:
    codec = fit({"a": ["1"] * 90 + ["?"] * 10, "b": ["1"] * 89 + ["?"] * 11, "c": ["7"] * 100})
    assert codec is not None
    assert codec.numeric == ["a", "c"]
    assert list(codec.categorical) == ["b"]
    codec = fit({"a": ["1", "2"], "b": ["1", "x"]}, categorical=["a"], numeric=["b"])
    assert codec is not None
    assert (codec.numeric, codec.categorical) == (["b"], {"a": ["1", "2"]})


def test_empty_and_wordy_columns_are_left_out_with_a_note() -> None:
    codec = fit({"a": [None, None], "b": ["x", "y"], "c": ["1", "2"]}, numeric=["b"])
    assert codec is not None
    assert codec.notes == [
        "t: column 'a' is empty in the training rows and is left out",
        "t: column 'b' has no number in the training rows and is left out",
    ]
    out = encode(codec, ["9", None], ["q", "q"], [None, "1"])
    assert out.present.tolist() == [False, True]
    assert fit({"a": [None], "b": [None]}) is None


def test_a_constant_column_stays_and_stays_finite() -> None:
    codec = fit({"a": ["7"] * 5})
    assert codec is not None
    out = encode(codec, ["7", "8", "1e30"])
    np.testing.assert_allclose(out.parts["numeric"][:, 0], [0, 1, CLIP])


def test_rare_categories_are_given_up_by_frequency() -> None:
    codec = fit({"a": ["x"] * 3 + ["y"] * 2 + ["z"]}, max_categories=2)
    assert codec is not None
    assert codec.categorical == {"a": ["x", "y"]}
    assert codec.notes == ["t: column 'a' has 3 categories; the 2 most frequent are kept, see max_categories"]
    assert encode(codec, ["z", "y"]).parts["categorical"][:, 0].tolist() == [0, 2]


def test_only_numbers_or_only_categories_and_the_saved_form() -> None:
    for cells, options in (
        (["1", "2"], {"numeric": 1, "cardinalities": []}),
        (["p", "q"], {"numeric": 0, "cardinalities": [3]}),
    ):
        codec = fit({"a": cells})
        assert codec is not None
        assert codec.spec.options == options
        again = codec_from_dict(json.loads(json.dumps(codec.to_dict())))
        for key, array in encode(codec, cells).parts.items():
            np.testing.assert_array_equal(encode(again, cells).parts[key], array)
            assert encode(codec, []).parts[key].shape[0] == 0
