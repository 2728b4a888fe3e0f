"""Download one file over HTTP so that a cut line costs only what had not arrived.

What has arrived lies in ``<file>.part``, and beside it what the server said of the file: its length and its validator
(ETag, or the time of its last change). The next attempt asks for the rest under that validator, so that a file that
changed meanwhile starts anew (RFC 9110, sections 13 and 14). The file gets its name when it is whole.
"""

import http.client
import json
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from polyfuse.data.archive import CHUNK
from polyfuse.errors import UserError

TIMEOUT = 60.0
ATTEMPTS = 5
HEAD = 2048
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|head|body|!--)", re.IGNORECASE)
_TITLE = re.compile(rb"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
Say = Callable[[str], None]


@dataclass(frozen=True)
class _Told:
    """What the server says of a file."""

    url: str
    length: int | None
    etag: str | None
    modified: str | None

    @property
    def validator(self) -> str | None:
        """For ``If-Range``; a weak ETag cannot say that bytes are the same."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


class _Interrupted(Exception):
    """The line was cut; another attempt may go on."""


def is_page(head: bytes) -> bool:
    """Whether a file starts as an HTML page does.

    Example:
        >>> is_page(b" <!DOCTYPE html><title>Sign in</title>"), is_page(b"PK")
        (True, False)
    """
    return _PAGE.match(head) is not None


def download(url: str, target: Path, *, say: Say | None = None, attempts: int = ATTEMPTS) -> Path:
    """Bring ``url`` to ``target``; go on where an earlier call stopped.

    Args:
        url: ``http`` or ``https``; redirections are followed.
        target: The finished file; its folder is made.
        say: Called with lines of progress.
        attempts: Attempts in a row that may end early without bringing a byte; one that brings some is not counted.

    Returns:
        ``target``.

    Raises:
        UserError: If the URL is none, the server refuses, answers with a web page, or does not send the whole file. A
            cut file is kept as ``.part`` and the next call goes on.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"a source must be a folder, a file or an http(s) URL, got '{url}'")
    target.parent.mkdir(parents=True, exist_ok=True)
    part, note = target.with_name(target.name + ".part"), target.with_name(target.name + ".part.json")
    failed = 0
    while True:
        had = part.stat().st_size if part.exists() else 0
        try:
            _attempt(url, part, note, say)
            break
        except _Interrupted as reason:
            has = part.stat().st_size if part.exists() else 0
            failed = 0 if has > had else failed + 1
            if failed >= attempts:
                raise UserError(
                    f"'{url}' was cut after {has} bytes ({reason}); they are kept, run the same command again to go on"
                    if has
                    else f"'{url}' cannot be reached ({reason}); check the address and the network"
                ) from None
            if say is not None:
                say(f"{target.name}: cut after {has} bytes ({reason}), going on")
    part.replace(target)
    note.unlink(missing_ok=True)
    return target


def _attempt(url: str, part: Path, note: Path, say: Say | None) -> None:
    """Bring what is missing of the part file; return when it is whole."""
    known = _noted(note, url)
    start = part.stat().st_size if known is not None and part.exists() else 0
    if known is not None and known.length is not None and start == known.length:
        return
    headers = {"Accept-Encoding": "identity", "User-Agent": "polyfuse"}
    if start and known is not None and (known.validator or known.length):
        headers["Range"] = f"bytes={start}-"
        if known.validator:
            headers["If-Range"] = known.validator
    else:
        start = 0
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as reply:  # noqa: S310  http(s), checked
            told, begins = _told(url, reply)
            if start and (begins != start or (known is not None and told.length != known.length)):
                start = 0  # the whole file comes, or another one
                if begins:
                    _forget(part, note)
                    raise _Interrupted("the file has changed")
            _receive(reply, told, part, note, start, say)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # nothing there: what is kept is of another file
            _forget(part, note)
            raise _Interrupted("the file has changed") from None
        if error.code >= 500 or error.code in (408, 429):
            raise _Interrupted(f"status {error.code}") from None
        raise UserError(f"'{url}' cannot be downloaded: the server answers {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise _Interrupted(str(error.reason)) from None
    except (OSError, http.client.HTTPException) as error:
        if getattr(error, "filename", None):  # our own disk, not the line
            raise
        raise _Interrupted(str(error) or type(error).__name__) from None


def _told(url: str, reply: Any) -> tuple[_Told, int]:
    """What the reply says of the whole file, and the place of its first byte in it."""
    length, begins = reply.headers.get("Content-Length"), 0
    total = int(length) if length is not None and length.isdecimal() else None
    if reply.status == 206:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", reply.headers.get("Content-Range", ""))
        if match is None:
            raise UserError(f"'{url}' answers with a part of the file and does not say which; it cannot be resumed")
        begins, total = int(match[1]), None if match[3] == "*" else int(match[3])
    if reply.headers.get("Content-Encoding", "identity") != "identity":
        raise UserError(f"'{url}' comes as {reply.headers['Content-Encoding']!r}, though identity was asked for")
    return _Told(url, total, reply.headers.get("ETag"), reply.headers.get("Last-Modified")), begins


def _receive(reply: Any, told: _Told, part: Path, note: Path, start: int, say: Say | None) -> None:
    block = reply.read1(CHUNK)
    while len(block) < HEAD and (more := reply.read1(HEAD)):
        block += more
    html = reply.headers.get_content_type() == "text/html"
    if not start and (html or is_page(block[:HEAD])):
        title = _TITLE.search(block[: 1 << 16])
        shown = f" titled {' '.join(title[1].decode(errors='replace').split())[:80]!r}" if title else ""
        raise UserError(
            f"'{told.url}' answers with a web page{shown}, not with a file; it may want a sign-in or a click: download "
            "it in a browser and give the file as --source"
        )
    if told.length is not None and (free := shutil.disk_usage(part.parent).free) < told.length - start:
        raise UserError(f"'{told.url}' has {told.length} bytes, '{part.parent}' has room for {free}")
    note.write_text(json.dumps(asdict(told)), encoding="utf-8")
    done, shown_at = start, start
    with part.open("r+b" if start else "wb") as out:
        out.seek(start)
        out.truncate()
        while block:
            out.write(block)
            done += len(block)
            if say is not None and done - shown_at >= (told.length or 0) / 20 + (8 << 20):
                shown_at = done
                say(f"{part.stem}: {_megabytes(done)}" + (f" of {_megabytes(told.length)}" if told.length else ""))
            block = reply.read1(CHUNK)
    if told.length is not None and done != told.length:
        if done > told.length:
            _forget(part, note)
        raise _Interrupted(f"{done} of {told.length} bytes arrived")


def _noted(note: Path, url: str) -> _Told | None:
    try:
        told = _Told(**json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return told if told.url == url else None


def _forget(part: Path, note: Path) -> None:
    part.unlink(missing_ok=True)
    note.unlink(missing_ok=True)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
