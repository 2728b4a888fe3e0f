"""Shards hold what was written, readers share it without loss or repeat, and a resumed reader goes on at the next."""

import io
import itertools
import json
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from polyfuse.data.problems import Problems
from polyfuse.data.shards import ShardReader, read_shard, shard_paths, write_shards
from polyfuse.errors import UserError


def sample(i: int) -> dict[str, Any]:
    members = {"jpg": bytes([i % 256]) * (i + 1), "txt": f"text {i} ü", "cls": i, "json": {"i": [i]}}
    return {"__key__": f"{i:04d}", **members}


def write(folder: Path, count: int, per_shard: int) -> list[Path]:
    return write_shards((sample(i) for i in range(count)), folder, max_count=per_shard)


def keys(reader: ShardReader) -> list[str]:
    return [one["__key__"] for one in reader]


def test_what_is_read_is_what_was_written_and_the_bytes_are_the_same_again(tmp_path: Path) -> None:
    paths = write(tmp_path / "a", 11, 4)
    assert [path.name for path in paths] == [f"shard-00000{i}.tar" for i in range(3)]
    assert list(ShardReader(tmp_path / "a", shuffle=False)) == [sample(i) for i in range(11)]
    again = write(tmp_path / "b", 11, 4)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]
    index = json.loads((tmp_path / "a" / "shards.json").read_text())["shards"]
    assert [entry["samples"] for entry in index] == [4, 4, 3]
    assert [entry["bytes"] for entry in index] == [path.stat().st_size for path in paths]


def test_shards_are_cut_by_bytes_and_files_are_copied(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 3000)
    rows = [{"__key__": f"k/{i}", "left.png": tmp_path / "f", "none": None} for i in range(5)]
    paths = write_shards(rows, tmp_path / "out", max_bytes=2 * 3584, prefix="p")
    assert [path.name for path in paths] == ["p-000000.tar", "p-000001.tar", "p-000002.tar"]
    assert next(iter(ShardReader(paths, shuffle=False))) == {"__key__": "k/0", "left.png": b"x" * 3000}
    assert len(write_shards(rows, tmp_path / "small", max_bytes=1)) == 5


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([], "at least one sample"),
        ([{"txt": "a"}], "'__key__' .*got None"),
        ([{"__key__": "a.b", "txt": "a"}], "got 'a.b'"),
        ([{"__key__": "../a", "txt": "a"}], r"got '../a'"),
        ([{"__key__": "/a", "txt": "a"}], "got '/a'"),
        ([{"__key__": "a"}], "at least one member"),
        ([{"__key__": "a", "x/y": b""}], "got 'x/y'"),
        ([{"__key__": "a", "jpg": "text"}], "'jpg' must be bytes or a path .* got str"),
        ([sample(1), sample(1)], "got '0001' twice"),
    ],
)
def test_what_cannot_be_written_leaves_no_shard(tmp_path: Path, rows: list[dict[str, Any]], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        write_shards(rows, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(ValueError, match="max_count"):
        write_shards(rows, tmp_path / "out", max_count=0)


def test_an_old_folder_is_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path, 2, 2)
    with pytest.raises(UserError, match="not empty"):
        write(tmp_path, 2, 2)


SPLITS = [(r, w, s) for r in (1, 2, 3, 5) for w in (1, 2, 3) for s in (1, 2, 3, 4, 5, 7, 13)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_and_workers_share_every_sample_once(tmp_path: Path, shuffle: bool) -> None:
    count = 29
    expected = Counter(f"{i:04d}" for i in range(count))
    for shards in {s for _, _, s in SPLITS}:
        write(tmp_path / str(shards), count, -(-count // shards))
    for ranks, workers, shards in SPLITS:
        readers = [
            ShardReader(
                tmp_path / str(shards),
                seed=3,
                shuffle=shuffle,
                buffer=4,
                rank=r,
                ranks=ranks,
                worker=w,
                workers=workers,
            )
            for r, w in itertools.product(range(ranks), range(workers))
        ]
        for epoch in range(2):
            parts = [keys(reader) for reader in readers]
            assert Counter(itertools.chain(*parts)) == expected, (ranks, workers, shards, epoch)
            fewest = min(count // (ranks * workers), 1)
            assert all(len(part) >= fewest for part in parts), (ranks, workers, shards)  # nobody stands idle


@pytest.mark.parametrize(("count", "shards", "readers"), [(23, 5, 2), (13, 2, 3), (9, 1, 1), (7, 7, 3)])
@pytest.mark.parametrize("buffer", [0, 1, 4, 100])  # 0 = not shuffled
@pytest.mark.parametrize("indexed", [True, False])
def test_resumes_at_every_position(
    tmp_path: Path, count: int, shards: int, readers: int, buffer: int, indexed: bool
) -> None:
    write(tmp_path, count, -(-count // shards))
    if not indexed:
        (tmp_path / "shards.json").unlink()

    def reader(rank: int) -> ShardReader:
        return ShardReader(tmp_path, seed=7, shuffle=buffer > 0, buffer=max(buffer, 1), rank=rank, ranks=readers)

    for rank in range(readers):
        straight = reader(rank)
        epochs = [keys(straight) for _ in range(3)]
        whole = list(itertools.chain(*epochs))
        for stop in range(len(epochs[0]) + len(epochs[1]) + 1):
            first = reader(rank)
            head = [one["__key__"] for one in itertools.islice(itertools.chain(first, first), stop)]
            state = json.loads(json.dumps(first.state()))
            second = reader(rank)
            second.load_state(state)
            tail = list(itertools.chain(keys(second), keys(second), keys(second)))
            assert (head + tail)[: len(whole)] == whole, (rank, stop)


def test_orders_differ_by_epoch_and_seed_and_repeat(tmp_path: Path) -> None:
    write(tmp_path, 40, 5)
    reader = ShardReader(tmp_path, seed=1, buffer=11)
    one, two = keys(reader), keys(reader)
    assert one != two
    assert one != sorted(one)
    assert keys(ShardReader(tmp_path, seed=1, buffer=11)) == one
    assert keys(ShardReader(tmp_path, seed=2, buffer=11)) != one
    at_once = [{int(key) // 5 for key in one[:11]}, {int(key) // 5 for key in one[11:22]}]
    assert all(len(shards) > 2 for shards in at_once)  # a buffer mixes shards
    plain = ShardReader(tmp_path, shuffle=False)
    assert keys(plain) == keys(plain) == sorted(one)


def test_a_state_of_another_reader_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", 6, 2)
    write(tmp_path / "b", 6, 3)
    state = ShardReader(tmp_path / "a", seed=1).state()
    for other, named in (
        (ShardReader(tmp_path / "a", seed=2), "'seed' must be 2, got 1"),
        (ShardReader(tmp_path / "a", seed=1, ranks=2), "'readers' must be 2, got 1"),
        (ShardReader(tmp_path / "a", seed=1, buffer=5), "'buffer' must be 5, got 1000"),
        (ShardReader(tmp_path / "b", seed=1), "'shards' must be .* got other shards"),
    ):
        with pytest.raises(UserError, match=named):
            other.load_state(state)


def test_misuse(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found none"):
        ShardReader(tmp_path)
    with pytest.raises(UserError, match=r"'.*x.tar' does not exist"):
        ShardReader([tmp_path / "x.tar"])
    with pytest.raises(UserError, match="at least one shard"):
        shard_paths([])
    write(tmp_path, 2, 2)
    for wrong in ({"rank": 1}, {"worker": 2, "workers": 2}, {"buffer": 0}, {"rank": -1}):
        with pytest.raises(ValueError, match="0 <= rank < ranks"):
            ShardReader(tmp_path, **wrong)


def add(tar: tarfile.TarFile, name: str, content: bytes = b"1", kind: bytes = tarfile.REGTYPE) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type = (len(content) if kind == tarfile.REGTYPE else 0), kind
    tar.addfile(info, io.BytesIO(content) if kind == tarfile.REGTYPE else None)


def test_broken_samples_are_counted_and_keep_their_place(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "folder", kind=tarfile.DIRTYPE)
        add(tar, "a.cls", b"1")
        add(tar, "b.cls", b"one")
        add(tar, "c.json", b"{")
        add(tar, "link.jpg", kind=tarfile.SYMTYPE)
        add(tar, "no_ending")
        add(tar, "d.txt", b"\xff")
        add(tar, "e.txt", b"x")
        add(tar, "e.txt", b"y")
        add(tar, "sub.dir/f.seg.png", b"p")
        add(tar, "sub.dir/f.txt", b"t")
    problems = Problems()
    found = list(read_shard(tmp_path / "a.tar", problems))
    assert found == [
        {"__key__": "a", "cls": 1}, None, None, None, None,
        {"__key__": "sub.dir/f", "seg.png": b"p", "txt": "t"},
    ]  # fmt: skip
    assert problems.counts == {("sample", "undecodable"): 3, ("sample", "no member"): 2, ("sample", "comes twice"): 1}
    reader = ShardReader(tmp_path / "a.tar", buffer=2)
    assert sorted(keys(reader)) == ["a", "sub.dir/f"]
    assert reader.problems.counts == problems.counts


@pytest.mark.parametrize("left", [0, 100, 512 * 9 + 7, 512 * 12, 20_000])
def test_a_cut_shard_is_counted_and_others_go_on(tmp_path: Path, left: int) -> None:
    paths = write(tmp_path, 20, 10)
    paths[0].write_bytes(paths[0].read_bytes()[:left])
    reader = ShardReader(tmp_path, shuffle=False)
    found = list(reader)
    assert found[-10:] == [sample(i) for i in range(10, 20)]
    assert found == [sample(i) for i in range(len(found) - 10)] + found[-10:]  # whole samples only
    assert len(found) < 20
    assert reader.problems.counts == {("shard", "truncated or no tar"): 1}


def test_a_reader_is_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 100, 10)
    opened: list[str] = []
    real = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda path, *a, **k: (opened.append(str(path)), real(path, *a, **k))[1])
    next(iter(ShardReader(tmp_path, buffer=15)))
    assert len(opened) == 2  # what fills one buffer
    reader = ShardReader(tmp_path, buffer=15)
    reader.load_state({**reader.state(), "position": 62})
    opened.clear()
    next(iter(reader))
    assert len(opened) == 2  # places 60 to 75: the six shards before are not opened
    (tmp_path / "shards.json").unlink()
    without = ShardReader(tmp_path, buffer=15)
    without.load_state(reader.state())
    assert next(iter(without)) == next(iter(reader))


def test_torch_loader_workers_share_the_samples(tmp_path: Path) -> None:
    write(tmp_path, 17, 3)
    code = f"""
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from polyfuse.data.shards import ShardReader
class Rows(IterableDataset):
    def __iter__(self):
        info = get_worker_info()
        return iter(ShardReader({str(tmp_path)!r}, seed=5, worker=info.id, workers=info.num_workers))
if __name__ == "__main__":
    print(sorted(row["cls"] for row in DataLoader(Rows(), batch_size=None, num_workers=2)) == list(range(17)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_webdataset_package_reads_ours_and_we_read_its(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    paths = write(tmp_path / "ours", 7, 4)
    dataset = webdataset.WebDataset([str(path) for path in paths], shardshuffle=False).decode()
    found = [(row["__key__"], row["txt"], row["cls"], row["json"]) for row in dataset]
    assert found == [(f"{i:04d}", f"text {i} ü", i, {"i": [i]}) for i in range(7)]
    (tmp_path / "its").mkdir()
    with webdataset.TarWriter(str(tmp_path / "its" / "a.tar")) as sink:
        for i in range(5):
            sink.write({key: value for key, value in sample(i).items() if key != "jpg"} | {"bin": b"b"})
    assert [row["json"] for row in ShardReader(tmp_path / "its", shuffle=False)] == [{"i": [i]} for i in range(5)]
