"""Plain containers come out of a pickle as ``pickle`` reads them; every other instruction is refused by name."""

import collections
import datetime
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest

from polyfuse.data.pickled_plain import read_pickled_plain
from polyfuse.errors import UserError

from ..datasets.published_files import python_2_pickle, references

SHARED = ["twice"]
VALUES = [
    references(),
    {"none": None, "yes": True, "no": False, 3: -5, 2**40: 2**70, "neg": -(2**90), "f": [1.5, -0.0, float("inf")]},
    [[], {}, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [SHARED, SHARED], "x" * 300, "ü€😀", "line\nbreak \\ '"],
    [*range(-3, 3), 255, 256, 65535, 65536, 2**31 - 1, -(2**31)],
    7,
]


def write(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_equals_pickles_own_reading(tmp_path: Path, value: Any, protocol: int) -> None:
    path = write(tmp_path / "a.p", pickle.dumps(value, protocol))
    assert read_pickled_plain(path) == value
    assert repr(read_pickled_plain(path)) == repr(value)  # True is not 1


@pytest.mark.parametrize("protocol", [4, 5])
def test_bytes_and_sets(tmp_path: Path, protocol: int) -> None:
    value = {"b": b"\x00\xff", "long": b"x" * 1000, "set": {1, "a"}}
    assert read_pickled_plain(write(tmp_path / "a.p", pickle.dumps(value, protocol))) == value


def test_python_2s_protocol_0_with_texts_as_bytes(tmp_path: Path) -> None:
    raw = python_2_pickle(references())
    assert pickle.loads(raw, encoding="utf-8") == references()  # noqa: S301  the oracle, on our own bytes
    assert read_pickled_plain(write(tmp_path / "a.p", raw)) == references()
    assert read_pickled_plain(write(tmp_path / "b.p", b"U\x02\xffa.")) == "\ufffda"


class Runs:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "made",
    [
        lambda mark: Runs(os.system, f"touch {mark}"),
        lambda mark: Runs(eval, f"open({str(mark)!r}, 'w')"),
        lambda mark: collections.OrderedDict(a=1),
        lambda mark: datetime.date(2000, 1, 1),
        lambda mark: complex(1, 2),
        lambda mark: mark,
    ],
)
def test_whatever_else_is_named_and_not_run(tmp_path: Path, made: Any, protocol: int) -> None:
    mark = tmp_path / "ran"
    path = write(tmp_path / "evil.p", pickle.dumps([made(mark)], protocol))
    with pytest.raises(UserError, match=r"evil.p' is a pickle that asks for (STACK_)?GLOBAL .*\w.*refused"):
        read_pickled_plain(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b"cos\nsystem\n.", "GLOBAL os.system"),
        (b"(ios\nsystem\n.", "INST os.system"),
        (b"\x8c\x02os\x8c\x06system\x93.", "STACK_GLOBAL os.system"),
        (b"Pname\n.", "PERSID"),
        (b"Nb.", "BUILD"),
        (b")R.", "REDUCE"),
        (b"(o.", "OBJ"),
        (b"))\x81.", "NEWOBJ"),
        (b"NQ.", "BINPERSID"),
        (b"\x82\x01.", "EXT1"),
        (b"\x96" + struct.pack("<Q", 2**40) + b".", "BYTEARRAY8"),
        (b"\x97.", "NEXT_BUFFER"),
        (b"(\x91.", "FROZENSET"),
    ],
)
def test_every_other_instruction_is_refused_by_name(tmp_path: Path, raw: bytes, named: str) -> None:
    with pytest.raises(UserError, match=rf"asks for {named}"):
        read_pickled_plain(write(tmp_path / "a.p", raw))


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b"", "ends too early"),
        (b"]", "ends too early"),
        (b"X\xff\xff\xff\x7fabc.", "announces 2147483647 bytes"),
        (b"\x8d" + struct.pack("<Q", 2**62) + b".", "announces"),
        (b"T\xff\xff\xff\xffabc.", "announces -1 bytes"),
        (b"Xa\x00\x00\x00abc.", "announces 97"),
        (b"].].", ""),
        (b"NN.", "must leave one value"),
        (b"(.", "object"),
        (b"a.", ""),
        (b"Na.", ""),
        (b"]N(a.", ""),
        (b"t.", "mark"),
        (b"N\x86.", "lacks values"),
        (b"h\x05.", "5"),
        (b"(Nd.", ""),
        (b"}(NN]Nu.", "key"),
        (b"})Ns.", "key must be a text or a number, got tuple"),
        (b"Sabc\n.", "quotes"),
        (b"I" + b"9" * 5000 + b"\n.", "digits"),
        (b"\x8b\x00\x10\x00\x00" + b"1" * 4096 + b".", "digits"),
        (b"\xfe.", "unknown instruction"),
        (b"X\x01\x00\x00\x00\xff.", "utf-8"),
    ],
)
def test_damage_is_one_sentence(tmp_path: Path, raw: bytes, named: str) -> None:
    if raw == b"].].":
        assert read_pickled_plain(write(tmp_path / "a.p", raw)) == []  # what follows the end is not read
        return
    with pytest.raises(UserError, match=rf"a.p' cannot be read as a pickle \(.*{named}"):
        read_pickled_plain(write(tmp_path / "a.p", raw))


def test_a_memo_of_any_number_and_a_bomb_of_references_take_no_memory(tmp_path: Path) -> None:
    assert read_pickled_plain(write(tmp_path / "a.p", b"]r\xff\xff\xff\x7f0j\xff\xff\xff\x7f.")) == []
    value = read_pickled_plain(write(tmp_path / "b.p", b"]" + b"2\x86" * 60 + b"."))  # 2 to the 60 paths, 60 objects
    assert len(value) == 2


def test_a_large_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.p", pickle.dumps([0] * 100))
    with pytest.raises(UserError, match=r"has \d+ bytes; at most 99"):
        read_pickled_plain(path, max_bytes=99)
