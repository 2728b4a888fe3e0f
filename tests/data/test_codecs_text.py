import json

import numpy as np

from polyfuse.data.codecs import Reading, codec_from_dict, restartable
from polyfuse.data.codecs_text import PADDING, UNKNOWN, TextCodec
from polyfuse.data.schema import ModalityConfig
from polyfuse.data.table_csv import BadText

TEXTS = ["The red house", "the Red house, the blue house", "a blue tree", None, "a red tree near the house"]


def fit(texts: list[object], **options: object) -> TextCodec | None:
    config = ModalityConfig.model_validate({"type": "text", "column": "t", **options})
    return TextCodec.fit("t", config, restartable([[texts[:2]], [texts[2:]]]), Reading())


def test_tokens_come_from_training_texts_case_folded() -> None:
    codec = fit(TEXTS)
    assert codec is not None
    out = codec.encode([["The RED house", "the red house", None]], Reading())
    ids, mask = out.parts["ids"], out.parts["mask"]
    np.testing.assert_array_equal(ids[0], ids[1])
    assert mask.sum(1).tolist()[:2] == [3, 3]  # whole words were learned
    assert not ids[2].any()
    assert not mask[2].any()
    assert ids.dtype == np.int32
    assert (ids < codec.spec.size("vocab_size")).all()
    np.testing.assert_array_equal(mask, ids != PADDING)


def test_what_was_never_seen_is_the_unknown_token() -> None:
    codec = fit(TEXTS)
    assert codec is not None
    out = codec.encode([["日本", "\u200d", "日" * 9, " \n "]], Reading())
    assert out.present.all()
    assert out.parts["mask"].any(1).all()
    assert set(out.parts["ids"][0][out.parts["mask"][0]]) == {UNKNOWN}


def test_length_is_what_most_texts_need_and_long_ones_are_cut() -> None:
    codec = fit(["red house"] * 99 + ["red house " * 50])
    assert codec is not None
    assert codec.max_length == 2
    codec = fit(["red house"] * 10, max_length=5)
    assert codec is not None
    out = codec.encode([["red house " * 100_000, "red"]], Reading())
    assert out.parts["mask"].sum(1).tolist() == [5, 1]
    assert codec.spec.options["max_length"] == 5


def test_cells_that_are_no_text() -> None:
    codec = fit(TEXTS)
    assert codec is not None
    out = codec.encode([[BadText("caf\ufffd"), ["a"], b"red", b"\xff", None]], Reading())
    assert out.present.tolist() == [False, False, True, False, False]
    assert [(i, kind) for i, kind, _ in out.problems] == [(0, "bad UTF-8"), (1, "not a text"), (3, "bad UTF-8")]


def test_no_training_text_and_the_saved_form() -> None:
    assert fit([None, None, BadText("x")]) is None
    codec = fit(TEXTS, vocab_size=40)
    assert codec is not None
    assert codec.spec.size("vocab_size") <= 40
    again = codec_from_dict(json.loads(json.dumps(codec.to_dict())))
    first, second = codec.encode([TEXTS], Reading()), again.encode([TEXTS], Reading())
    np.testing.assert_array_equal(first.parts["ids"], second.parts["ids"])
    assert again.spec == codec.spec


def test_training_is_deterministic() -> None:
    words = [f"word{i % 37} thing{i % 23} {i % 11}" for i in range(500)]
    first, second = fit(words), fit(words)
    assert first is not None
    assert second is not None
    assert first.tokenizer == second.tokenizer
