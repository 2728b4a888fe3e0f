"""Word pieces: there and back, marks, absent texts, and the same pieces in every process."""

import hashlib
import os
import subprocess
import sys

import pytest

from polyfuse.tasks.words import BOS, CLS, EOS, PAD, SEP, UNK, WordTokenizer

TEXTS = [
    f"{size} {colour} {shape}."
    for size in ("small", "large")
    for colour in ("red", "blue")
    for shape in ("star", "ring")
]
SCRIPT = """
import hashlib
from polyfuse.tasks.words import WordTokenizer
sizes, colours, shapes = ("small", "large", "huge"), ("red", "blue", "grün"), ("star", "ring", "x")
texts = [f"{a} {b} {c}, {a}-{c}?" for a in sizes for b in colours for c in shapes]
print(hashlib.sha256(WordTokenizer.train(texts, 120).to_str().encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def words() -> WordTokenizer:
    return WordTokenizer.train(TEXTS, 200)


def test_every_process_learns_the_same_pieces() -> None:
    found = {
        subprocess.run(  # noqa: S603
            [sys.executable, "-c", SCRIPT],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in range(4)
    }
    assert len(found) == 1
    assert len(found.pop().strip()) == len(hashlib.sha256().hexdigest())


def test_texts_come_back(words: WordTokenizer) -> None:
    ids, mask = words.encode([*TEXTS, "", "  "], 24)
    assert [words.decode(row) for row in ids[: len(TEXTS)]] == [text.replace(".", " .") for text in TEXTS]
    assert mask[-2:].sum() == 0
    assert (ids[~mask] == PAD).all()


def test_marks_frame_a_text(words: WordTokenizer) -> None:
    ids, _ = words.encode(["red ring"], 24)
    assert ids[0, 0] == CLS
    assert ids[0, -1] == SEP
    written, _ = words.encode(["red ring"], 24, decoder=True)
    assert (written[0, 0], written[0, -1]) == (BOS, EOS)


def test_a_long_text_keeps_its_last_mark(words: WordTokenizer) -> None:
    ids, mask = words.encode(["red " * 50], 7)
    assert ids.shape == (1, 7)
    assert ids[0, -1] == SEP
    assert mask.all()


def test_unknown_letters_are_unknown_and_frequent_words_whole(words: WordTokenizer) -> None:
    ids, _ = words.encode(["red Ж"], 24)
    assert UNK in ids[0].tolist()
    assert words.encode(["red"], 24)[0].shape == (1, 3)


def test_a_written_tokenizer_reads_the_same(words: WordTokenizer, tmp_path) -> None:  # type: ignore[no-untyped-def]
    words.write(tmp_path / "words.json")
    again = WordTokenizer.read(tmp_path / "words.json")
    assert again.encode(TEXTS, 24)[0].tolist() == words.encode(TEXTS, 24)[0].tolist()


def test_no_room_for_pieces_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size must be above 7"):
        WordTokenizer.train(TEXTS, 7)
