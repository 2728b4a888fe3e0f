"""Arrays out of an ``.npy`` file that holds a pickle, without running what the pickle says.

A pickle is a program: it names functions and calls them. Here every name it may use stands for an inert class of this
module that only records what it is given, and any other name is refused. No function of numpy, or of anything else,
is called by the file.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from polyfuse.errors import UserError

PLAIN = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}


def read_pickled_npy(path: Path) -> Any:
    """What ``numpy.load(path, allow_pickle=True).item()`` gives, for plain containers of plain numeric arrays.

    Raises:
        UserError: If the pickle names anything but the parts of an array, or the file is damaged.
    """
    try:
        with path.open("rb") as stream:
            if np.lib.format.read_magic(stream) != (1, 0):
                raise UserError(f"'{path}' must be a version 1.0 .npy file")
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            if shape != () or dtype != np.dtype("O"):
                raise UserError(f"'{path}' must hold one object, got {dtype} of shape {shape}")
            array = _Unpickler(stream, encoding="ASCII").load()
            if not isinstance(array, _Array):
                raise pickle.UnpicklingError(f"an array must come out, got {type(array).__name__}")
            return _built(array.items()[0])
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way at all
        raise UserError(f"'{path}' cannot be read ({error}); it is damaged or not what it should be") from None


class _Array:
    """What the pickle says of an array."""

    state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def items(self) -> list[Any]:
        """Elements of an object array."""
        _, _, dtype, _, items = self.state
        if not isinstance(dtype, _Dtype) or dtype.code != "O8" or not isinstance(items, list) or not items:
            raise pickle.UnpicklingError("an array of objects must come out")
        return items

    def numeric(self) -> np.ndarray:
        """The array, copied from its bytes."""
        _, shape, dtype, fortran, raw = self.state
        if not isinstance(dtype, _Dtype) or dtype.code not in PLAIN or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array must be of plain numbers")
        values = np.frombuffer(raw, dtype=f"{dtype.order}{dtype.code}")
        return values.reshape(tuple(int(size) for size in shape), order="F" if fortran else "C").astype(
            values.dtype.newbyteorder("=")
        )


class _Dtype:
    """What the pickle says of a dtype; structure and sub-arrays are not read."""

    order = "="

    def __init__(self, code: str, align: int = 0, copy: int = 1) -> None:
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("a dtype must be plain")
        self.order = state[1]


def _empty_array(kind: object, shape: object, code: object) -> _Array:
    return _Array()


def _encoded(text: str, codec: str) -> bytes:
    if codec != "latin1":
        raise pickle.UnpicklingError(f"bytes must be written as latin1, got {codec!r}")
    return text.encode("latin1")


NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encoded,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NAMES:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}, which is refused")
        return NAMES[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("the pickle refers to an object outside of it, which is refused")


def _built(value: Any) -> Any:
    """The same containers with arrays in place of their descriptions."""
    if isinstance(value, _Array):
        return value.numeric()
    if isinstance(value, dict):
        return {key: _built(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_built(part) for part in value]
    return value
