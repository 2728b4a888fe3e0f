"""Arrays of untrusted ``.npz`` archives: sizes are read off the headers first, nothing is unpickled."""

import io
import zipfile
from collections.abc import Sequence

import numpy as np

from polyfuse.data.problems import Broken

_MOST_BYTES = 1 << 31


def read_npz(source: str | bytes, names: Sequence[str], most_bytes: int = _MOST_BYTES) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` that have one of the names.

    Raises:
        Broken: ``truncated``, ``undecodable`` or ``too large``.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source) as archive:
            found = {}
            for name in names:
                if f"{name}.npy" not in archive.namelist():
                    continue
                info = archive.getinfo(f"{name}.npy")
                if info.file_size > most_bytes:
                    raise Broken("too large", f"'{name}' has {info.file_size} bytes")
                with archive.open(info) as member:
                    data = member.read(most_bytes + 1)
                if len(data) != info.file_size:
                    raise Broken("truncated", f"'{name}' ends early")
                found[name] = _array(data)
            return found
    except Broken:
        raise
    except zipfile.BadZipFile as error:
        raise Broken("truncated", str(error)[:80]) from None
    except Exception as error:  # numpy's and zipfile's parsers raise whatever they like on a broken file
        raise Broken("undecodable", (str(error).splitlines() or [""])[0][:80]) from None


def _array(data: bytes) -> np.ndarray:
    """An .npy file whose header promises no more than there is."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(stream)
    if dtype.hasobject or dtype.kind not in "fiub":
        raise Broken("undecodable", f"an array of {dtype}")
    values = np.frombuffer(data, dtype=dtype, offset=stream.tell())
    return np.array(values.reshape(shape, order="F" if fortran else "C"))
