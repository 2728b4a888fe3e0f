"""Make the files of a published data set ready: found where they lie, or downloaded and unpacked, and remembered.

``home`` is the data set's folder in the cache. It holds ``files/`` (what was unpacked), ``downloads/`` (what is still
on its way) and ``PREPARED.json``: the folder to read from, and per source its SHA-256 and the files it gave. A source
that is in the record, with all its files there, is not touched again.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
import urllib.parse
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyfuse.data.archive import extract
from polyfuse.data.download import download, is_page
from polyfuse.data.fetch import sha256_of
from polyfuse.errors import UserError
from polyfuse.files import write_json

RECORD = "PREPARED.json"
#: Most bytes that may come out of one archive, and how many times its own size they may be.
MAX_BYTES = 200 << 30
MAX_RATIO = 100
SMALL = 64 << 20
ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """Where the files are.

    Attributes:
        folder: To read from.
        done: Sources that this call brought; empty = all was there.
    """

    folder: Path
    done: tuple[str, ...]


def prepare(
    home: Path, sources: Sequence[str], *, sha256: str | None = None, keep: bool = False, say: Say | None = None
) -> Prepared:
    """Bring sources into ``home``, those that are not there yet.

    Args:
        home: The data set's folder in the cache; made.
        sources: One folder, which is read in place and stays as it is; or archives and plain files, each a path or a
            URL, which are unpacked or copied into one folder.
        sha256: What a single file must have; hexadecimal.
        keep: Keep downloaded archives after they are unpacked.
        say: Called with lines of progress.

    Raises:
        UserError: If a source is missing, no archive, truncated, a web page, not what ``sha256`` says, or an archive
            that would write elsewhere, holds links or devices, or unpacks to much more than its size. What was there
            before stays.
    """
    if not sources:
        raise UserError("give at least one --source: a folder, an archive or a URL")
    if sha256 is not None and (len(sources) != 1 or Path(sources[0]).is_dir()):
        raise UserError("--sha256 is of one file; give one --source, an archive or a URL")
    if any("://" not in source and Path(source).is_dir() for source in sources):
        if len(sources) != 1:
            raise UserError("a folder must be the only --source: it is read in place; lay the other files into it")
        return _in_place(home, Path(sources[0]).resolve())
    home.mkdir(parents=True, exist_ok=True)
    done = []
    with _alone(home):
        for source in sources:
            record = _record(home)
            if record.get("folder") != "files":
                record = {"folder": "files", "sources": {}}
            name = source if "://" in source else str(Path(source).resolve())
            known = record["sources"].get(name)
            if known is not None and _whole(home, known) and _same(name, known, sha256):
                continue
            record["sources"][name] = _bring(home, source, sha256, keep, record, say)
            write_json(home / RECORD, record)
            done.append(source)
    return Prepared(home / "files", tuple(done))


def _in_place(home: Path, folder: Path) -> Prepared:
    if not any(folder.iterdir()):
        raise UserError(f"'{folder}' is empty")
    old = _record(home)
    if old.get("folder") == "files" and old["sources"]:
        raise UserError(
            f"files are prepared in '{home / 'files'}' already; delete '{home}' first, to read from '{folder}' instead"
        )
    if old.get("folder") == str(folder):
        return Prepared(folder, ())
    home.mkdir(parents=True, exist_ok=True)
    write_json(home / RECORD, {"folder": str(folder), "sources": {}})
    return Prepared(folder, (str(folder),))


def _record(home: Path) -> dict[str, Any]:
    path = home / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record["folder"], str) or not isinstance(record["sources"], dict):
            raise TypeError("keys")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"'{path}' is damaged; delete '{home}' and prepare it again") from None
    return dict(record)


def _whole(home: Path, known: dict[str, Any]) -> bool:
    """Whether every file a source gave is there in its size."""
    try:
        return all((home / "files" / name).stat().st_size == size for name, size in known["files"].items())
    except (OSError, KeyError, TypeError, AttributeError):
        return False


def _same(name: str, known: dict[str, Any], sha256: str | None) -> bool:
    """Whether the source is still what was unpacked: a file by its size and time, a URL by its name."""
    if sha256 is not None and known.get("sha256") != sha256.lower():
        return False
    if "://" in name:
        return True
    try:
        info = os.stat(name)
    except OSError:
        return True  # the archive is gone, what came out of it is there
    return [info.st_size, info.st_mtime_ns] == known.get("stat")


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process that holds it."""
    with (home / ".lock").open("w") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ModuleNotFoundError:  # no such locks on this system
            pass
        except OSError:
            raise UserError(f"another process is preparing '{home}'; wait for it") from None
        yield


def _bring(
    home: Path, source: str, sha256: str | None, keep: bool, record: dict[str, Any], say: Say | None
) -> dict[str, Any]:
    """Unpack or copy one source into ``files``; its entry of the record."""
    remote = "://" in source
    if remote:
        mark = hashlib.sha256(source.encode()).hexdigest()[:8]
        path = home / "downloads" / mark / _file_name(source)
        if not path.exists():
            if say is not None:
                say(f"downloading {source}")
            download(source, path, say=say)
        if not path.suffix:  # many servers number their files; what it is, its bytes say
            ending = ".zip" if zipfile.is_zipfile(path) else ".tar" if tarfile.is_tarfile(path) else ""
            path = path.replace(path.with_name(path.name + ending))
    else:
        path = Path(source)
        if not path.is_file():
            raise UserError(f"source '{source}' does not exist; give a folder, an archive or an http(s) URL")
    got = sha256_of(path)
    try:
        if sha256 is not None and got != sha256.lower():
            raise UserError(f"'{source}' must have SHA-256 {sha256.lower()}, got {got}; nothing was unpacked")
        if say is not None:
            say(f"{path.name}: SHA-256 {got}")
        with tempfile.TemporaryDirectory(prefix=".unpack-", dir=home) as scratch:
            files = _unpacked(path, Path(scratch))
            _move(home, Path(scratch), files, source, record)
    except UserError:
        if remote:
            path.unlink()  # it is whole and wrong: another attempt must start anew
        raise
    sizes = {name.as_posix(): (home / "files" / name).stat().st_size for name in files}
    info = path.stat()
    if remote and not keep:
        shutil.rmtree(path.parent)
    return {"sha256": got, "stat": None if remote else [info.st_size, info.st_mtime_ns], "files": sizes}


def _file_name(url: str) -> str:
    """The last part of a URL's path, as far as it can be a file's name."""
    name = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rpartition("/")[2]
    return name[-128:] if name.strip(".") and not any(sign in name for sign in "\\\0") else "download"


def _unpacked(path: Path, folder: Path) -> list[Path]:
    """Files of an archive in ``folder``, or the one plain file."""
    with path.open("rb") as stream:
        head = stream.read(2048)
    if is_page(head):
        raise UserError(f"'{path.name}' is a web page, not a file of data; it may want a sign-in: get it in a browser")
    if not head:
        raise UserError(f"'{path.name}' is empty")
    if not path.name.lower().endswith(ENDINGS):
        shutil.copyfile(path, folder / path.name)
        return [Path(path.name)]
    limit = min(MAX_BYTES, max(SMALL, MAX_RATIO * path.stat().st_size))
    return extract(path, folder, keep=("*",), limit=limit)


def _move(home: Path, scratch: Path, files: list[Path], source: str, record: dict[str, Any]) -> None:
    """Put unpacked files in place; a file that another source gave must be the same."""
    name = source if "://" in source else str(Path(source).resolve())
    others = {file for key, entry in record["sources"].items() if key != name for file in entry["files"]}
    target = home / "files"
    for file in files:
        if (
            file.as_posix() in others
            and (target / file).exists()
            and sha256_of(target / file) != sha256_of(scratch / file)
        ):
            raise UserError(f"'{source}' brings another '{file}' than a source before; delete '{home}' to start anew")
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        (scratch / file).replace(target / file)
    before = set(record["sources"].get(name, {}).get("files", ()))
    for gone in before - others - {file.as_posix() for file in files}:  # of an older archive of that name
        (target / gone).unlink(missing_ok=True)
