import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polyfuse.data import codecs_frozen
from polyfuse.data.codecs import Reading, codec_from_dict, restartable
from polyfuse.data.codecs_frozen import FrozenCodec
from polyfuse.data.schema import ModalityConfig
from polyfuse.data.table_csv import BadText
from polyfuse.errors import UserError


class Twin:
    """Two features of an image or of a text, and a count of the calls."""

    name, width, weights_digest, size = "twin", 2, "0123456789abcdef", 16

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, items: Sequence[Any]) -> np.ndarray:
        self.calls += 1
        values = [(len(i), i.count("a")) if isinstance(i, str) else (i.mean(), i.shape[0]) for i in items]
        return np.array(values, dtype=np.float32)


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch) -> Twin:
    network = Twin()
    monkeypatch.setattr(codecs_frozen, "load_frozen", lambda name: network)
    return network


def fit(cells: list[Any], reading: Reading | None = None, **options: Any) -> FrozenCodec | None:
    config = ModalityConfig.model_validate({"column": "c", "pretrained": "twin", **options})
    return FrozenCodec.fit("m", config, restartable([[cells[:2]], [cells[2:]]]), reading or Reading())


def test_texts_become_standardised_vectors(twin: Twin) -> None:
    codec = fit(["a", "banana", None, "car"], type="text")
    assert codec is not None
    assert codec.spec.type == "vector"
    assert codec.spec.options["width"] == 2
    out = codec.encode([["banana", None, BadText("x"), ["y"], "a"]], Reading())
    features = np.array([[1, 1], [6, 3], [3, 1.0]])
    expected = (np.array([[6, 3], [1, 1.0]]) - features.mean(0)) / features.std(0)
    np.testing.assert_allclose(out.parts[""][[0, 4]], expected, rtol=1e-6)
    assert out.present.tolist() == [True, False, False, False, True]
    assert [(i, kind) for i, kind, _ in out.problems] == [(2, "bad UTF-8"), (3, "not a text")]
    assert not out.parts[""][1:4].any()
    again = codec_from_dict(json.loads(json.dumps(codec.to_dict())))
    np.testing.assert_array_equal(again.encode([["banana", "a"]], Reading()).parts[""], out.parts[""][[0, 4]])


def test_images_are_decoded_at_the_network_size(twin: Twin, tmp_path: Any) -> None:
    Image.new("RGB", (30, 20), (90, 90, 90)).save(tmp_path / "a.png")
    Image.new("RGB", (30, 20), (30, 30, 30)).save(tmp_path / "b.png")
    reading = Reading(tmp_path)
    codec = fit(["a.png", "b.png", "gone.png"], reading, type="image")
    assert codec is not None
    assert codec.size == 16
    np.testing.assert_allclose(codec.mean, [60, 16])
    np.testing.assert_allclose(codec.std, [30, 1])
    out = codec.encode([["b.png", "gone.png"]], reading)
    np.testing.assert_allclose(out.parts[""], [[-1, 0], [0, 0]])
    assert [(i, kind) for i, kind, _ in out.problems] == [(1, "missing file")]
    chosen = fit(["a.png", "b.png"], reading, type="image", size=8)
    assert chosen is not None
    assert chosen.size == 8


def test_nothing_to_encode_runs_no_network(twin: Twin) -> None:
    codec = fit(["a", "bb"], type="text")
    assert codec is not None
    twin.calls = 0
    assert not codec.encode([[None, None]], Reading()).present.any()
    assert twin.calls == 0
    assert fit([None, None], type="text") is None


def test_other_weights_are_refused(twin: Twin) -> None:
    codec = fit(["a", "bb"], type="text")
    assert codec is not None
    again = codec_from_dict(codec.to_dict())
    twin.weights_digest = "fedcba9876543210"
    with pytest.raises(
        UserError, match="the weights of 'twin' are fedcba987654, but the run was trained with 0123456789ab"
    ):
        again.encode([["a"]], Reading())
