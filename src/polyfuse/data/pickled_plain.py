"""Plain containers out of a pickle, read by a small machine of our own that knows nothing else.

A pickle is a program. This reader carries out only what numbers, texts, lists, tuples, sets and dicts need, and
refuses every other instruction by name: nothing in the file can import, call or construct anything.
"""

import codecs
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from polyfuse.errors import UserError

MAX_BYTES = 1 << 30
_MARK = object()
_STOP = object()
_NAMES = {op.code: op.name for op in pickletools.opcodes}


class _Refused(Exception):
    pass


def read_pickled_plain(path: Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """What ``pickle.load`` gives, for lists, tuples, dicts and sets of None, bool, int, float, str and bytes.

    Protocols 0 to 5; bytes from protocol 3 on, sets from 4 on; keys are no tuples. Texts of
    Python 2 become str, read as UTF-8; bytes that are none become U+FFFD.

    Raises:
        UserError: If the file asks for anything else (the instruction is named), is too large, or is damaged.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise UserError(f"'{path}' has {size} bytes; at most {max_bytes} are read")
        with path.open("rb") as stream:
            return _Machine(stream, size).run()
    except _Refused as error:
        raise UserError(
            f"'{path}' is a pickle that {error}, which is refused: only plain containers are read"
        ) from None
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from None
    except (ValueError, IndexError, KeyError, TypeError, EOFError, struct.error, RecursionError) as error:
        raise UserError(f"'{path}' cannot be read as a pickle ({error}); it is damaged or another file") from None


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _long(raw: bytes) -> int:
    if len(raw) > 1024:
        raise ValueError("a number has too many digits")
    return int.from_bytes(raw, "little", signed=True)


class _Machine:
    """Stack, memo, and one method per kind of instruction."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream, self.size = stream, size
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.actions = self._actions()

    def run(self) -> Any:
        actions, stream = self.actions, self.stream
        while True:
            code = stream.read(1)
            if not code:
                raise EOFError("it ends too early")
            action = actions.get(code)
            if action is None:
                self._refuse(code)
            elif action() is _STOP:
                if len(self.stack) != 1:
                    raise ValueError("it must leave one value")
                return self._take()

    def _refuse(self, code: bytes) -> None:
        name = _NAMES.get(code.decode("latin1"))
        if name is None:
            raise ValueError(f"unknown instruction {code!r}")
        what = name
        if name in ("GLOBAL", "INST"):
            what = f"{name} {self._line().decode('latin1')[:80]}.{self._line().decode('latin1')[:80]}"
        elif name == "STACK_GLOBAL":
            what = f"{name} {'.'.join(str(value)[:80] for value in self.stack[-2:])}"
        raise _Refused(f"asks for {what}")

    def _read(self, count: int) -> bytes:
        if not 0 <= count <= self.size:  # before anything of that size is made
            raise ValueError(f"it announces {count} bytes")
        raw = self.stream.read(count)
        if len(raw) < count:
            raise EOFError("it ends too early")
        return raw

    def _line(self) -> bytes:
        line = self.stream.readline()
        if not line.endswith(b"\n"):
            raise EOFError("it ends too early")
        return line[:-1]

    def _number(self, form: str) -> int:
        (value,) = struct.unpack(form, self._read(struct.calcsize(form)))
        return int(value)

    def _since_mark(self) -> list[Any]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                values = self.stack[place + 1 :]
                del self.stack[place:]
                return values
        raise ValueError("a mark is missing")

    def _actions(self) -> dict[bytes, Callable[[], Any]]:
        push, number, read = self.stack.append, self._number, self._read

        def sized(form: str, make: Callable[[bytes], Any]) -> Callable[[], None]:
            return lambda: push(make(read(number(form))))

        def constant(value: Any) -> Callable[[], None]:
            return lambda: push(value)

        def kept(form: str) -> Callable[[], None]:
            return lambda: self._put(number(form))

        def got(form: str) -> Callable[[], None]:
            return lambda: push(self.memo[number(form)])

        return {
            b"\x80": lambda: number("<B"),  # PROTO
            b"\x95": lambda: number("<Q"),  # FRAME: a hint
            b".": lambda: _STOP,
            b"(": constant(_MARK),
            b"N": constant(None),
            b"\x88": constant(True),
            b"\x89": constant(False),
            b"I": lambda: push(_int_line(self._line())),
            b"L": lambda: push(int(_short(self._line()).rstrip(b"L"))),
            b"F": lambda: push(float(self._line())),
            b"J": lambda: push(number("<i")),
            b"K": lambda: push(number("<B")),
            b"M": lambda: push(number("<H")),
            b"G": lambda: push(struct.unpack(">d", read(8))[0]),
            b"\x8a": sized("<B", _long),
            b"\x8b": sized("<i", _long),
            b"S": lambda: push(_text(_quoted(self._line()))),
            b"T": sized("<i", _text),
            b"U": sized("<B", _text),
            b"V": lambda: push(self._line().decode("raw-unicode-escape")),
            b"X": sized("<I", _utf8),
            b"\x8c": sized("<B", _utf8),
            b"\x8d": sized("<Q", _utf8),
            b"B": sized("<I", bytes),
            b"C": sized("<B", bytes),
            b"\x8e": sized("<Q", bytes),
            b"]": lambda: push([]),
            b"l": lambda: push(self._since_mark()),
            b"a": self._append,
            b"e": self._appends,
            b")": constant(()),
            b"t": lambda: push(tuple(self._since_mark())),
            b"\x85": lambda: self._tuple(1),
            b"\x86": lambda: self._tuple(2),
            b"\x87": lambda: self._tuple(3),
            b"}": lambda: push({}),
            b"d": self._dict,
            b"s": self._set_item,
            b"u": self._set_items,
            b"\x8f": lambda: push(set()),
            b"\x90": self._add_items,
            b"0": lambda: self.stack.pop() and None,
            b"1": lambda: self._since_mark() and None,
            b"2": lambda: push(self._top(object)),
            b"p": lambda: self._put(int(_short(self._line()))),
            b"q": kept("<B"),
            b"r": kept("<I"),
            b"\x94": lambda: self._put(len(self.memo)),
            b"g": lambda: push(self.memo[int(_short(self._line()))]),
            b"h": got("<B"),
            b"j": got("<I"),
        }

    def _put(self, index: int) -> None:
        self.memo[index] = self._top(object)

    def _take(self) -> Any:
        value = self._top(object)
        self.stack.pop()
        return value

    def _top(self, kind: type) -> Any:
        value = self.stack[-1]
        if value is _MARK or not isinstance(value, kind):
            raise ValueError(f"a {kind.__name__} must be there, got {type(value).__name__}")
        return value

    def _append(self) -> None:
        value = self._take()
        self._top(list).append(value)

    def _appends(self) -> None:
        values = self._since_mark()
        self._top(list).extend(values)

    def _tuple(self, count: int) -> None:
        values = tuple(self.stack[-count:])
        if len(values) < count or any(value is _MARK for value in values):
            raise ValueError("a tuple lacks values")
        self.stack[-count:] = [values]

    def _dict(self) -> None:
        values = self._since_mark()
        self.stack.append(dict(zip(map(_key, values[::2]), values[1::2], strict=True)))

    def _set_item(self) -> None:
        value, key = self._take(), self._take()
        self._top(dict)[_key(key)] = value

    def _set_items(self) -> None:
        values = self._since_mark()
        self._top(dict).update(zip(map(_key, values[::2]), values[1::2], strict=True))

    def _add_items(self) -> None:
        values = self._since_mark()
        self._top(set).update(map(_key, values))


def _key(value: Any) -> Any:
    """A key: tuples are none, as those that share their parts take for ever to hash."""
    if not isinstance(value, str | bytes | int | float | None):
        raise ValueError(f"a key must be a text or a number, got {type(value).__name__}")
    return value


def _utf8(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _short(line: bytes) -> bytes:
    if len(line) > 4300:  # as Python bounds the digits of int()
        raise ValueError("a number has too many digits")
    return line


def _int_line(line: bytes) -> int | bool:
    return line == b"01" if line in (b"00", b"01") else int(_short(line))


def _quoted(line: bytes) -> bytes:
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise ValueError("a text lacks its quotes")
    return codecs.escape_decode(line[1:-1])[0]
