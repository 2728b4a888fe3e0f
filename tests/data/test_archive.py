"""Archives that try to write where they should not, and ones that do not."""

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from polyfuse.data.archive import extract, safe_path
from polyfuse.errors import UserError


def make_tar(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as bundle:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            bundle.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            bundle.addfile(info)
    return path


def make_zip(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in members.items():
            bundle.writestr(name, content)
        for name, target in (links or {}).items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            bundle.writestr(info, target)
    return path


MAKERS = pytest.mark.parametrize(("make", "suffix"), [(make_tar, ".tgz"), (make_zip, ".whl")])


@MAKERS
def test_only_matching_members_come_out_without_the_prefix(make, suffix, tmp_path: Path) -> None:
    archive = make(tmp_path / f"a{suffix}", {"package/a/x.txt": b"one", "package/y.txt": b"two", "setup.py": b"no"})
    files = extract(archive, tmp_path / "out", keep=("package/*.txt",), strip="package/", limit=6)
    assert files == [Path("a/x.txt"), Path("y.txt")]
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").rglob("*.txt")} == {"x.txt": b"one", "y.txt": b"two"}
    assert not (tmp_path / "out" / "setup.py").exists()


@MAKERS
@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "c:/evil", "a\\..\\evil"])  # noqa: S108
def test_an_escaping_member_is_refused_even_if_it_is_not_wanted(make, suffix, name: str, tmp_path: Path) -> None:
    archive = make(tmp_path / f"a{suffix}", {name: b"x"})
    with pytest.raises(UserError, match=r"must stay inside its folder, got .*evil"):
        extract(archive, tmp_path / "out", keep=("wanted",), limit=100)
    assert not list(tmp_path.rglob("evil"))


@MAKERS
def test_a_wanted_link_is_refused_and_an_unwanted_one_is_left(make, suffix, tmp_path: Path) -> None:
    archive = make(tmp_path / f"a{suffix}", {"good": b"x"}, {"link": "/etc/passwd"})
    assert extract(archive, tmp_path / "out", keep=("good",), limit=9) == [Path("good")]
    with pytest.raises(UserError, match="member 'link' must be a regular file"):
        extract(archive, tmp_path / "again", keep=("*",), limit=9)


@MAKERS
def test_a_bomb_stops_at_the_limit(make, suffix, tmp_path: Path) -> None:
    archive = make(tmp_path / f"a{suffix}", {"bomb": bytes(5_000_000)})
    assert archive.stat().st_size < 50_000
    with pytest.raises(UserError, match="more than 1000000 bytes"):
        extract(archive, tmp_path / "out", keep=("bomb",), limit=1_000_000)
    assert (tmp_path / "out" / "bomb").stat().st_size <= 1_000_000


@MAKERS
def test_nothing_matching_and_a_truncated_file_are_errors(make, suffix, tmp_path: Path) -> None:
    archive = make(tmp_path / f"a{suffix}", {"a": bytes(range(256)) * 40})
    with pytest.raises(UserError, match=r"no member matches wanted"):
        extract(archive, tmp_path / "out", keep=("wanted",), limit=100)
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(UserError, match="cannot be unpacked"):
        extract(archive, tmp_path / "cut", keep=("a",), limit=100_000)


def test_a_member_that_comes_twice_is_refused(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tgz", {"p/a": b"1"})
    with tarfile.open(archive, "w:gz") as bundle:
        for content in (b"1", b"2"):
            info = tarfile.TarInfo("p/a")
            info.size = 1
            bundle.addfile(info, io.BytesIO(content))
    with pytest.raises(UserError, match="'p/a' comes twice"):
        extract(archive, tmp_path / "out", keep=("p/a",), limit=10)


def test_empty_name_is_not_a_path() -> None:
    with pytest.raises(UserError, match="got ''"):
        safe_path("")
