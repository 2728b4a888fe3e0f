"""Unpack an archive that somebody else made, without letting it write anywhere but where it should."""

import lzma
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO

from polyfuse.errors import UserError

MAX_MEMBERS = 200_000
CHUNK = 1 << 20


def safe_path(name: str) -> PurePosixPath:
    """The member's path, refused where it could leave the folder it is unpacked into.

    Raises:
        UserError: For an absolute path, a ``..`` part, a drive letter, a backslash, a NUL or an empty name.

    Example:
        >>> safe_path("package/./assets/1f436.webp")
        PurePosixPath('package/assets/1f436.webp')
    """
    path = PurePosixPath(name)
    bad = path.is_absolute() or ".." in path.parts or not path.parts or any(c in name for c in "\\\0")
    if bad or path.parts[0][1:2] == ":":
        raise UserError(f"an archive member must stay inside its folder, got {name!r}; the archive is not trusted")
    return path


def extract(
    archive: Path, folder: Path, *, keep: Sequence[str], strip: str = "", limit: int, skip_links: bool = False
) -> list[Path]:
    """Unpack the members of ``archive`` that match ``keep`` into ``folder``.

    Zip (``.whl``, ``.zip``), tar (``.tgz``, ``.tar.*``) and Debian (``.deb``) archives are read. Every member's path is
    checked, kept or not; only regular files are written, and sizes are counted while bytes come out, whatever the
    headers say.

    Args:
        archive: The file.
        folder: Where to; created.
        keep: ``fnmatch`` patterns of whole member paths (``*`` also crosses ``/``).
        strip: Prefix to take off.
        limit: Most bytes in all.
        skip_links: Leave links and devices out, instead of refusing the archive.

    Returns:
        The written paths, relative to ``folder``, in archive order.

    Raises:
        UserError: If the archive is broken, a path escapes, a kept member is a link or device, two members
            share a name, the limit is passed, or nothing matches.
    """
    written: dict[Path, None] = {}
    left = limit
    try:
        for name, stream in _members(archive):
            path = safe_path(name)
            if not any(fnmatchcase(str(path), pattern) for pattern in keep):
                continue
            if stream is None and skip_links:
                continue
            if stream is None:
                raise UserError(f"{archive.name}: member '{path}' must be a regular file, got a link or a device")
            relative = Path(str(path).removeprefix(strip))
            if relative in written:
                raise UserError(f"{archive.name}: member '{path}' comes twice")
            written[relative] = None
            target = folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as out:
                while block := stream.read(CHUNK):
                    left -= len(block)
                    if left < 0:
                        raise UserError(f"{archive.name}: more than {limit} bytes come out; the archive is not trusted")
                    out.write(block)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        raise UserError(f"{archive.name}: cannot be unpacked ({error}); delete it and fetch again") from error
    except (RuntimeError, NotImplementedError) as error:  # zipfile's words for a password and an unknown method
        raise UserError(f"{archive.name}: cannot be unpacked ({error})") from error
    if not written:
        raise UserError(f"{archive.name}: no member matches {', '.join(keep)}")
    return list(written)


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Name and stream of every member but folders; the stream is None for links and devices."""
    if archive.suffix in (".whl", ".zip"):
        members = _zip_members(archive)
    elif archive.suffix == ".deb":
        members = _deb_members(archive)
    else:
        members = _tar_members(archive)
    for count, member in enumerate(members):
        if count >= MAX_MEMBERS:
            raise UserError(f"{archive.name}: more than {MAX_MEMBERS} members; the archive is not trusted")
        yield member


def _zip_members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    with zipfile.ZipFile(archive) as bundle:
        for info in bundle.infolist():
            if info.is_dir():
                continue
            is_link = (info.external_attr >> 28) == 0o12  # the high four bits of a Unix mode are its file type
            if is_link:
                yield info.filename, None
            else:
                with bundle.open(info) as stream:
                    yield info.filename, stream


def _tar_members(archive: Path, stream: IO[bytes] | None = None) -> Iterator[tuple[str, IO[bytes] | None]]:
    opened = tarfile.open(archive, "r:*") if stream is None else tarfile.open(fileobj=stream, mode="r|")
    with opened as bundle:
        for info in bundle:
            if not info.isdir():
                yield info.name, bundle.extractfile(info) if info.isreg() else None


def _deb_members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    tool = shutil.which("dpkg-deb")
    if tool is None:
        raise UserError(f"{archive.name}: unpacking needs dpkg-deb, which is not on the PATH (Debian or Ubuntu only)")
    command = [tool, "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: S603 (our own arguments, no shell)
        assert process.stdout is not None  # noqa: S101 (asked for above)
        yield from _tar_members(archive, process.stdout)
        process.stdout.read()
    if process.returncode:
        raise UserError(f"{archive.name}: dpkg-deb failed with status {process.returncode}; delete it and fetch again")
