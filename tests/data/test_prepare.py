"""Files come whole, once, or not at all: cut lines, web pages, wrong sums, hostile archives."""

import hashlib
import http.server
import io
import json
import os
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyfuse.data import prepare as preparing
from polyfuse.data.download import download
from polyfuse.data.prepare import prepare
from polyfuse.errors import UserError

NOISE = bytes((i * i * 7 + i // 251) % 256 for i in range(300_007))


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in members.items():
            bundle.writestr(name, content)
    return stream.getvalue()


def tarred(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as bundle:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = 0 if isinstance(content, tarfile.TarInfo) else len(content)
            bundle.addfile(info, None if isinstance(content, tarfile.TarInfo) else io.BytesIO(content))
    return stream.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files``; what it does wrong is set by the test."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.etag: str | None = '"one"'
        self.cut: list[int] = []  # bytes sent before the line is cut, reply by reply
        self.ranges = True
        self.length = True
        self.kind = "application/octet-stream"
        self.status: list[int] = []
        self.asked: list[str | None] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, name = self.server, self.path.lstrip("/").partition("?")[0]
        asked = self.headers.get("Range")
        server.asked.append(asked)
        if server.status:
            self.send_error(server.status.pop(0))
            return
        if name not in server.files:
            self.send_error(404)
            return
        body, start = server.files[name], 0
        condition = self.headers.get("If-Range")
        if asked and server.ranges and (condition is None or condition == server.etag):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if server.length:
            self.send_header("Content-Length", str(len(body) - start))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Type", server.kind)
        self.end_headers()
        stop = len(body) if not server.cut else start + server.cut.pop(0)
        self.wfile.write(body[start:stop])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- download ---------------------------------------------------------------------------------------------------------


def test_a_file_comes_whole_and_leaves_nothing_else(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"] = NOISE
    said: list[str] = []
    assert download(server.url("a.bin"), tmp_path / "x" / "a.bin", say=said.append).read_bytes() == NOISE
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["a.bin"]
    assert server.asked == [None]


def test_a_cut_line_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"] = NOISE
    server.cut = [100_003, 1, 50_000]
    said: list[str] = []
    assert download(server.url("a.bin"), tmp_path / "a.bin", say=said.append).read_bytes() == NOISE
    assert server.asked == [None, "bytes=100003-", "bytes=100004-", "bytes=150004-"]
    assert "cut after 100003 bytes (100003 of 300007 bytes arrived), going on" in said[0]


def test_another_process_goes_on_where_the_first_was_killed(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"] = NOISE
    server.cut = [70_001] + [0] * 3
    with pytest.raises(UserError, match=r"was cut after 70001 bytes .*; they are kept, run the same command again"):
        download(server.url("a.bin"), tmp_path / "a.bin", attempts=3)
    assert not (tmp_path / "a.bin").exists()
    server.cut = []
    assert download(server.url("a.bin"), tmp_path / "a.bin").read_bytes() == NOISE
    assert server.asked[-1] == "bytes=70001-"


@pytest.mark.parametrize("change", ["etag", "no ranges", "shorter", "no validator"])
def test_a_file_that_changed_meanwhile_starts_anew(server: Server, tmp_path: Path, change: str) -> None:
    if change == "no validator":
        server.etag = None
    server.files["a.bin"] = NOISE
    server.cut = [70_001, 0]
    with pytest.raises(UserError, match="70001"):
        download(server.url("a.bin"), tmp_path / "a.bin", attempts=1)
    new = (
        NOISE[::-1]
        if change in ("etag", "no ranges")
        else NOISE[::-1][:50_000]
        if change == "shorter"
        else NOISE + b"1"
    )
    server.cut, server.files["a.bin"] = [], new
    server.ranges = change != "no ranges"
    if change == "etag":
        server.etag = '"two"'
    assert download(server.url("a.bin"), tmp_path / "a.bin").read_bytes() == new


def test_a_broken_note_or_another_url_starts_anew(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"] = NOISE
    (tmp_path / "a.bin.part").write_bytes(b"old")
    (tmp_path / "a.bin.part.json").write_text("{")
    assert download(server.url("a.bin"), tmp_path / "a.bin").read_bytes() == NOISE
    assert server.asked == [None]


def test_errors_of_the_server(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="server answers 404"):
        download(server.url("none.zip"), tmp_path / "a")
    server.files["a"] = NOISE
    server.status = [503, 500]
    assert download(server.url("a"), tmp_path / "a").read_bytes() == NOISE
    server.status = [503] * 9
    with pytest.raises(UserError, match=r"cannot be reached .status 503"):
        download(server.url("a"), tmp_path / "b")
    server.server_close()
    for url in ("ftp://x/a", "file:///etc/passwd", "http://", "a/b.zip"):
        with pytest.raises(UserError, match=r"folder, a file or an http\(s\) URL, got '"):
            download(url, tmp_path / "c")


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/zip"])
def test_a_web_page_is_no_file(server: Server, tmp_path: Path, kind: str) -> None:
    server.files["a.zip"] = b"\n<!doctype HTML><html><head><title>Please\n sign in</title>"
    server.kind = kind
    with pytest.raises(UserError, match=r"answers with a web page titled 'Please sign in'.* in a browser"):
        download(server.url("a.zip"), tmp_path / "a.zip")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_seen_before_it_is_full(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["a"] = NOISE
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("U", (), {"free": 1000})())
    with pytest.raises(UserError, match=r"has 300007 bytes, .* has room for 1000"):
        download(server.url("a"), tmp_path / "a")


# -- prepare ----------------------------------------------------------------------------------------------------------


def test_prepared_once_from_urls_then_nothing_is_asked(server: Server, tmp_path: Path) -> None:
    server.files = {"one.zip": zipped({"top/a.txt": b"1", "top/b/c.txt": b"2"}), "two.tgz": tarred({"top/d": b"3"})}
    server.files["list.txt"] = b"plain"
    home, sources = tmp_path / "home", [server.url(name) for name in server.files]
    result = prepare(home, sources)
    assert result.done == tuple(sources)
    assert tree(result.folder) == {"list.txt": b"plain", "top/a.txt": b"1", "top/b/c.txt": b"2", "top/d": b"3"}
    assert not any(p for p in (home / "downloads").rglob("*") if p.is_file())
    asked, before = len(server.asked), tree(home)
    assert prepare(home, sources).done == ()
    assert prepare(home, sources[1:2]).done == ()
    assert (len(server.asked), tree(home)) == (asked, before)
    (home / "files" / "top" / "a.txt").unlink()  # a lost file is brought again
    assert prepare(home, sources).done == (sources[0],)
    assert tree(result.folder)["top/a.txt"] == b"1"


def test_a_download_killed_midway_goes_on_in_the_next_call(server: Server, tmp_path: Path) -> None:
    server.files["a.zip"] = zipped({"noise": os.urandom(200_000)})
    server.cut = [50_000] + [0] * 5
    with pytest.raises(UserError, match="cut after 50000 bytes"):
        prepare(tmp_path / "home", [server.url("a.zip")])
    assert not (tmp_path / "home" / "PREPARED.json").exists()
    server.cut = []
    assert (prepare(tmp_path / "home", [server.url("a.zip")]).folder / "noise").stat().st_size == 200_000
    assert server.asked[-1] == "bytes=50000-"


def test_sha256(server: Server, tmp_path: Path) -> None:
    server.files["a.zip"] = zipped({"a": b"1"})
    right, wrong = hashlib.sha256(server.files["a.zip"]).hexdigest(), "0" * 64
    with pytest.raises(UserError, match=f"must have SHA-256 {wrong}, got {right}; nothing was unpacked"):
        prepare(tmp_path / "home", [server.url("a.zip")], sha256=wrong)
    assert list(tree(tmp_path / "home")) == [".lock"]
    assert prepare(tmp_path / "home", [server.url("a.zip")], sha256=right.upper()).done
    assert not prepare(tmp_path / "home", [server.url("a.zip")], sha256=right).done
    with pytest.raises(UserError, match="one file; give one --source"):
        prepare(tmp_path / "home", [server.url("a.zip"), "b"], sha256=right)


def test_a_numbered_download_is_known_by_its_bytes(server: Server, tmp_path: Path) -> None:
    server.files = {"4711": zipped({"a": b"1"}), "4712": tarred({"b": b"2"}), "4713": b"text"}
    folder = prepare(tmp_path / "home", [server.url(f"{name}?x=1") for name in server.files], keep=True).folder
    assert tree(folder) == {"a": b"1", "b": b"2", "4713": b"text"}
    assert len([p for p in (tmp_path / "home" / "downloads").rglob("*") if p.is_file()]) == 3


def link(target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo("link")
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def kind(type_: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo("odd")
    info.type, info.linkname = type_, "a"
    return info


def zip_link() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as bundle:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        bundle.writestr(info, "/etc/passwd")
    return stream.getvalue()


HOSTILE = {
    "up.zip": (zipped({"a": b"1", "../evil": b"x"}), "must stay inside its folder"),
    "up.tgz": (tarred({"a": b"1", "b/../../evil": b"x"}), "must stay inside its folder"),
    "root.tgz": (tarred({"/evil": b"x"}), "must stay inside its folder"),
    "link.tgz": (tarred({"link": link("../../.."), "link/evil": b"x"}), "a link or a device"),
    "link.zip": (zip_link(), "a link or a device"),
    "hard.tgz": (tarred({"a": b"1", "odd": kind(tarfile.LNKTYPE)}), "a link or a device"),
    "device.tgz": (tarred({"odd": kind(tarfile.CHRTYPE)}), "a link or a device"),
    "fifo.tgz": (tarred({"odd": kind(tarfile.FIFOTYPE)}), "a link or a device"),
    "bomb.zip": (zipped({"bomb": bytes(5_000_000)}), "more than 100000 bytes come out"),
    "bomb.tgz": (tarred({"bomb": bytes(5_000_000)}), "more than 100000 bytes come out"),
    "cut.zip": (zipped({"a": NOISE})[:-40], "cannot be unpacked"),
    "cut.tgz": (tarred({"a": NOISE})[:-400], "cannot be unpacked"),
    "none.zip": (b"PK\x03\x04 no archive", "cannot be unpacked"),
    "page.zip": (b"<html>quota exceeded", "web page"),
    "empty.zip": (b"", "is empty"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("remote", [False, True])
def test_hostile_and_broken_archives_leave_what_was_there(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, remote: bool
) -> None:
    monkeypatch.setattr(preparing, "SMALL", 100_000)
    monkeypatch.setattr(preparing, "MAX_RATIO", 10)
    home = tmp_path / "sub" / "home"
    good = tmp_path / "good.zip"
    good.write_bytes(zipped({"kept": b"1"}))
    prepare(home, [str(good)])
    before = tree(home)
    content, named = HOSTILE[name]
    (tmp_path / name).write_bytes(content)
    server.files[name] = content
    with pytest.raises(UserError, match=named):
        prepare(home, [server.url(name) if remote else str(tmp_path / name)])
    assert tree(home) == before
    assert not list(tmp_path.rglob("evil"))


def test_a_damaged_stream_inside_a_zip_is_one_sentence(tmp_path: Path) -> None:
    raw = bytearray(zipped({"a": bytes(range(256)) * 99}))
    raw[45:90] = bytes(45)
    (tmp_path / "a.zip").write_bytes(bytes(raw))
    with pytest.raises(UserError, match=r"a.zip: cannot be unpacked"):
        prepare(tmp_path / "home", [str(tmp_path / "a.zip")])
    flags = bytearray(zipped({"a": b"secret"}))
    flags[6] |= 1  # "encrypted", in the member's own header and in the directory
    flags[flags.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "b.zip").write_bytes(bytes(flags))
    with pytest.raises(UserError, match=r"b.zip: cannot be unpacked .*password"):
        prepare(tmp_path / "home", [str(tmp_path / "b.zip")])


def test_a_folder_is_read_in_place(tmp_path: Path) -> None:
    mine, home = tmp_path / "mine", tmp_path / "home"
    mine.mkdir()
    with pytest.raises(UserError, match="is empty"):
        prepare(home, [str(mine)])
    (mine / "a").write_text("1")
    assert prepare(home, [str(mine)]) == preparing.Prepared(mine, (str(mine),))
    assert prepare(home, [str(mine)]).done == ()
    assert json.loads((home / "PREPARED.json").read_text())["folder"] == str(mine)
    with pytest.raises(UserError, match="the only --source"):
        prepare(home, [str(mine), "b.zip"])
    with pytest.raises(UserError, match="does not exist"):
        prepare(home, [str(tmp_path / "none.zip")])
    with pytest.raises(UserError, match="at least one --source"):
        prepare(home, [])


def test_archives_that_disagree_and_archives_that_changed(tmp_path: Path) -> None:
    home, one, two = tmp_path / "home", tmp_path / "one.zip", tmp_path / "two.zip"
    one.write_bytes(zipped({"a": b"1", "old": b"1"}))
    two.write_bytes(zipped({"a": b"2"}))
    folder = prepare(home, [str(one)]).folder
    with pytest.raises(UserError, match="brings another 'a' than a source before"):
        prepare(home, [str(two)])
    assert tree(folder) == {"a": b"1", "old": b"1"}
    one.write_bytes(zipped({"a": b"3", "new": b"1"}))
    os.utime(one, (1, 1))
    assert prepare(home, [str(one)]).done == (str(one),)
    assert tree(folder) == {"a": b"3", "new": b"1"}
    with pytest.raises(UserError, match=r"delete '.*home' first"):
        prepare(home, [str(tmp_path)])
    (home / "PREPARED.json").write_text("[]")
    with pytest.raises(UserError, match="is damaged"):
        prepare(home, [str(one)])


def test_two_at_a_time_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({"a": b"1"}))
    (tmp_path / "home").mkdir()
    with preparing._alone(tmp_path / "home"), pytest.raises(UserError, match="another process is preparing"):
        prepare(tmp_path / "home", [str(tmp_path / "a.zip")])
