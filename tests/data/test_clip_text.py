"""CLIP's tokenizer: a tiny vocabulary against byte-pair encoding written out, the real one against stored ids."""

import gzip
import importlib.util
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers

from polyfuse.data.clip_text import (
    MERGES,
    ClipTokenizer,
    clean_text,
    fetched_tokenizer,
    read_tokenizer,
    tokenizer_from_merges,
)
from polyfuse.data.fetch import path_of
from polyfuse.errors import UserError

PAIRS = ["c a", "x y", "a t</w>", "ca t</w>", "d o", "do g</w>", "t h", "th e</w>", "' s</w>", "Ã ©</w>", "ca ca"]
fetched = pytest.mark.skipif(path_of("clip_vocab") is None, reason="polyfuse weights fetch clip_vocab")


def tiny(folder: Path, **kwargs: int) -> ClipTokenizer:
    path = folder / MERGES
    path.write_bytes(gzip.compress(("#version: tiny\n" + "\n".join(PAIRS) + "\nq q\nz z\n").encode()))
    return tokenizer_from_merges(path, vocab_size=512 + len(PAIRS), **kwargs)


def byte_letters() -> dict[int, str]:
    """The table by its definition: printable bytes are themselves, the others count up from 256."""
    table, extra = {}, 0
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255:
            table[byte] = chr(byte)
    for byte in range(256):
        if byte not in table:
            table[byte], extra = chr(256 + extra), extra + 1
    return table


def slowly(text: str) -> list[int]:
    """Byte-pair encoding word by word: merge the earliest pair of the list until none is left."""
    table = byte_letters()
    order = list(table.values())  # dicts keep insertion: printable first
    ranks = {tuple(pair.split()): rank for rank, pair in enumerate(PAIRS)}
    ids = {
        name: i for i, name in enumerate([*order, *(c + "</w>" for c in order), *(p.replace(" ", "") for p in PAIRS)])
    }
    found = [len(ids)]
    for word in re.findall(r"'s|'t|[^\W\d_]+|\d|[^\s\w]+", text):
        parts = [table[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while True:
            known = [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]
            if not known:
                break
            _, i = min(known)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        found += [ids[part] for part in parts]
    return [*found, len(ids) + 1]


@pytest.mark.parametrize(
    "text", ["cat", "the cat's dog", "cacat cacaca", "café", "don't 12 !?", "thecat xyz zz", "日本"]
)
def test_tiny_vocabulary_equals_the_algorithm_written_out(text: str, tmp_path: Path) -> None:
    tokenizer = tiny(tmp_path)
    expected = slowly(text)
    (row,) = tokenizer(text)
    assert row[: len(expected)].tolist() == expected
    assert not row[len(expected) :].any()
    assert row.dtype == torch.int64
    assert row.shape == (77,)


def test_ids_are_bytes_then_ends_of_words_then_merges_then_specials(tmp_path: Path) -> None:
    tokenizer = tiny(tmp_path)
    assert (tokenizer.begin_id, tokenizer.end_id, tokenizer.vocab_size) == (523, 524, 525)
    assert tokenizer("!")[0, :3].tolist() == [523, 256, 524]
    assert tokenizer("cat")[0, :3].tolist() == [523, 512 + 3, 524]


def test_truncation_keeps_the_end_last(tmp_path: Path) -> None:
    tokenizer = tiny(tmp_path, context_length=5)
    assert tokenizer(["cat " * 9, "cat", "cat cat cat"]).tolist() == [
        [523, 515, 515, 515, 524],
        [523, 515, 524, 0, 0],
        [523, 515, 515, 515, 524],
    ]
    assert tokenizer([]).shape == (0, 5)
    with pytest.raises(ValueError, match=r"at least 2.*got 1"):
        tiny(tmp_path, context_length=1)
    with pytest.raises(TypeError, match="got int"):
        tokenizer(["cat", 3])  # type: ignore[list-item]


def test_names_of_special_tokens_are_text(tmp_path: Path) -> None:
    tokenizer = tiny(tmp_path)
    for name in ("<|endoftext|>", "<|startoftext|>", "<end_of_text>"):
        (row,) = tokenizer(f"cat {name} dog")
        assert (row == tokenizer.end_id).sum() == 1
        assert (row == tokenizer.begin_id).sum() == 1
        assert int(row.argmax()) > 6


def test_cleaning() -> None:
    assert clean_text(" A\n\tB\u3000&amp;lt;  “Q”’s ﬁ ＡＢ e\N{COMBINING ACUTE ACCENT}\x00 ") == 'a b < "q"\'s fi ab é'
    assert clean_text("\ud83d") == "\ufffd"
    assert clean_text("&quot;&#39;x") == "\"'x"


def test_every_form_of_a_folder_gives_the_same_ids(tmp_path: Path) -> None:
    tokenizer = tiny(tmp_path)
    texts = ["the cat's dog", "café 12!", "", "CAT &amp; dog"]
    expected = tokenizer(texts)
    names = list(byte_letters().values())
    merged = [pair.replace(" ", "") for pair in PAIRS]
    vocabulary = [*names, *(name + "</w>" for name in names), *merged, "<|startoftext|>", "<|endoftext|>"]
    ids = {name: index for index, name in enumerate(vocabulary)}
    two, one, merges = tmp_path / "two", tmp_path / "one", tmp_path / "merges"
    for folder in (two, one, merges):
        folder.mkdir()
    (two / "vocab.json").write_text(json.dumps(ids))
    (two / "merges.txt").write_text("#version: 0.2\n" + "\n".join(PAIRS) + "\n")
    assert torch.equal(read_tokenizer(two)(texts), expected)
    peer = transformers.CLIPTokenizer(vocab=ids, merges=[tuple(pair.split()) for pair in PAIRS], model_max_length=7)
    peer.backend_tokenizer.enable_truncation(6)  # what a file may carry
    peer.backend_tokenizer.enable_padding(length=6, pad_id=524, pad_token="<|endoftext|>")  # noqa: S106
    peer.backend_tokenizer.save(str(one / "tokenizer.json"))
    assert torch.equal(read_tokenizer(one)(texts), expected)
    assert read_tokenizer(one, context_length=9)(texts).shape == (4, 9)
    assert not torch.equal(read_tokenizer(one)("<|endoftext|>")[0, 1:2], torch.tensor([tokenizer.end_id]))
    peer.backend_tokenizer.no_truncation()
    peer.backend_tokenizer.no_padding()
    for text, row in zip(texts[:3], expected, strict=False):
        assert peer(text)["input_ids"] == row[: int(row.argmax()) + 1].tolist()
    (merges / MERGES).write_bytes((tmp_path / MERGES).read_bytes())
    assert torch.equal(tokenizer_from_merges(merges / MERGES, vocab_size=512 + len(PAIRS))(texts), expected)


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json' cannot be read as a tokenizer"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match=r"must have a token <\|startoftext\|>"):
        read_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("[]")
    with pytest.raises(UserError, match="cannot be read as a vocabulary"):
        read_tokenizer(tmp_path)
    path = tmp_path / MERGES
    path.write_bytes(b"\x1f\x8b broken")
    with pytest.raises(UserError, match="cannot be read as a file of merges"):
        tokenizer_from_merges(path)
    path.write_bytes(b"#v\na b c\n")
    with pytest.raises(UserError, match="two symbols a line, got 'a b c'"):
        tokenizer_from_merges(path)
    path.write_bytes(b"#v\nno such\n")
    with pytest.raises(UserError, match="no vocabulary for byte-pair encoding"):
        tokenizer_from_merges(path)


def test_without_any_file_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYFUSE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="polyfuse weights fetch clip_vocab"):
        read_tokenizer(tmp_path)


@pytest.mark.weights
@fetched
def test_published_ids() -> None:
    tokenizer = fetched_tokenizer()
    facts = {
        "a cycling race": [49406, 320, 6321, 2471, 49407],
        "a photo of two cats": [49406, 320, 1125, 539, 1237, 3989, 49407],
        "a robot holding a candle": [49406, 320, 8797, 5050, 320, 12674, 49407],
        "Patient shows signs of pneumonia.": [49406, 6262, 2665, 4659, 539, 42906, 269, 49407],
    }
    ids = tokenizer(list(facts))
    assert ids.shape == (4, 77)
    for row, expected in zip(ids, facts.values(), strict=True):
        assert row.tolist() == expected + [0] * (77 - len(expected))
    assert tokenizer.vocab_size == 49408
    long = tokenizer("two cats " * 99)[0]
    assert (long[0], long[-1]) == (49406, 49407)
    assert 0 not in long


@pytest.mark.weights
@fetched
def test_real_vocabulary_equals_stored_ids() -> None:
    spec = importlib.util.spec_from_file_location("made", Path(__file__).with_name("make_golden_clip_text.py"))
    made = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(made)  # type: ignore[union-attr]
    expected = json.loads(Path(__file__).with_name("golden_clip_text.json").read_text(encoding="utf-8"))
    for text, row, want in zip(made.TEXTS, fetched_tokenizer()(made.TEXTS), expected, strict=True):
        assert row[: len(want)].tolist() == want, text
        assert not row[len(want) :].any()
