"""WebDataset shards: samples as neighbouring members of plain tar files, written once and read as a stream.

A sample is a dict: ``__key__`` and its members by their endings, ``{"__key__": "17", "jpg": b"...", "txt": "..."}``.
The members of one sample have one name up to the first dot and stand side by side, as in Aizman, Maltby and Breuel
2019, https://arxiv.org/abs/2001.01858; the package ``webdataset`` reads what is written here, and the other way
round. It is not used: it resumes nowhere and splits by whole shards, so that ranks without one get nothing.

Reading, in one epoch: shards in an order of the epoch's own; of R ranks x W workers = n readers, reader c takes the
shards c, c + n, ... of that order, or, where there are fewer shards than readers, shares one with others, each taking
every k-th sample. Samples then fill a buffer, leave it in an order of its own, and it fills again. Every order is
drawn from (seed, epoch, reader, buffer number), so the state of a reader is a handful of numbers.
"""

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyfuse.data.keyed import permutation
from polyfuse.data.problems import Problems
from polyfuse.errors import UserError
from polyfuse.files import write_json

INDEX = "shards.json"
MAX_MEMBER_BYTES = 256 << 20
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
_KEY = re.compile(r"[\w+@=,-]+(?:/[\w+@=,-]+)*")
_ENDING = re.compile(r"[\w+-]+(?:\.[\w+-]+)*")
Sample = dict[str, Any]


def write_shards(
    samples: Iterable[Mapping[str, Any]],
    out: Path,
    *,
    prefix: str = "shard",
    max_count: int = 1000,
    max_bytes: int = 256 << 20,
) -> list[Path]:
    """Write ``shard-000000.tar`` and so on, and ``shards.json`` with how many samples and bytes each has.

    The same samples give the same bytes. A shard gets its name when it is whole.

    Args:
        samples: Each a ``__key__`` (distinct; letters, digits, ``_ + @ = , -`` and ``/``) and at least one member:
            bytes are written as they are; ``txt`` takes a str, ``cls`` an int, ``json`` anything JSON has; a
            ``pathlib.Path`` is a file to copy.
        out: A folder, new or empty.
        prefix: Of the names.
        max_count: Most samples in a shard.
        max_bytes: Most bytes in a shard; a larger sample has a shard of its own.

    Raises:
        UserError: If ``out`` is not empty.
        ValueError: If a sample has no usable key or member, or there is no sample.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> samples = ({"__key__": f"{i}", "cls": i % 2} for i in range(5))
        >>> [path.name for path in write_shards(samples, folder, max_count=3)]
        ['shard-000000.tar', 'shard-000001.tar']
        >>> sorted(sample["cls"] for sample in ShardReader(folder))
        [0, 0, 0, 1, 1]
    """
    if max_count < 1 or max_bytes < 1:
        raise ValueError(f"max_count and max_bytes must be at least 1, got {max_count} and {max_bytes}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"'{out}' exists and is not empty; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    keys: set[str] = set()
    shard: _Shard | None = None
    done: list[_Shard] = []
    try:
        for sample in samples:
            members = _members(sample)
            if sample["__key__"] in keys:
                raise ValueError(f"keys must be distinct, got {sample['__key__']!r} twice")
            keys.add(sample["__key__"])
            size = sum(_tar_size(len(content)) for _, content in members)
            if shard is not None and (shard.count == max_count or shard.bytes + size > max_bytes):
                done.append(shard.close())
                shard = None
            shard = shard or _Shard(out / f"{prefix}-{len(done):06d}.tar")
            shard.add(members, size)
        if shard is None:
            raise ValueError("there must be at least one sample, got none")
        done.append(shard.close())
    except BaseException:
        if shard is not None:
            shard.drop()
        raise
    entries = [{"name": s.path.name, "samples": s.count, "bytes": s.path.stat().st_size} for s in done]
    write_json(out / INDEX, {"shards": entries})
    return [s.path for s in done]


class _Shard:
    def __init__(self, path: Path) -> None:
        self.path, self.count, self.bytes = path, 0, 0
        self.part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.tar = tarfile.open(self.part, "w", format=tarfile.PAX_FORMAT)

    def add(self, members: list[tuple[str, bytes]], size: int) -> None:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o644
            self.tar.addfile(info, io.BytesIO(content))
        self.count, self.bytes = self.count + 1, self.bytes + size

    def close(self) -> "_Shard":
        self.tar.close()
        self.part.replace(self.path)
        return self

    def drop(self) -> None:
        self.tar.close()
        self.part.unlink(missing_ok=True)


def _tar_size(size: int) -> int:
    return 512 + -(-size // 512) * 512


def _members(sample: Mapping[str, Any]) -> list[tuple[str, bytes]]:
    key = sample.get("__key__")
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ValueError(f"a sample must have a '__key__' of letters, digits, _ + @ = , - and /, got {key!r}")
    members = []
    for ending, value in sample.items():
        if ending.startswith("__") or value is None:
            continue
        if not _ENDING.fullmatch(ending):
            raise ValueError(f"member names must be file endings such as jpg or left.png, got {ending!r}")
        members.append((f"{key}.{ending}", _content(ending, value)))
    if not members:
        raise ValueError(f"sample {key!r} must have at least one member, got none")
    return members


def _content(ending: str, value: Any) -> bytes:
    kind = ending.rpartition(".")[2]
    if isinstance(value, bytes):
        return value
    if isinstance(value, Path):
        return value.read_bytes()
    if kind in ("txt", "text") and isinstance(value, str):
        return value.encode()
    if kind == "cls" and isinstance(value, int):
        return str(int(value)).encode()
    if kind == "json":
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    raise ValueError(f"a member '{ending}' must be bytes or a path (txt: str, cls: int), got {type(value).__name__}")


def decode(ending: str, content: bytes) -> Any:
    """A member as a value: ``txt`` str, ``cls`` int, ``json`` what it holds; everything else stays bytes.

    Raises:
        ValueError: If it cannot be read so.
    """
    kind = ending.rpartition(".")[2]
    if kind in ("txt", "text"):
        return content.decode()
    if kind == "cls":
        return int(content)
    if kind == "json":
        return json.loads(content)
    return content


def read_shard(
    path: Path, problems: Problems, *, wanted: Callable[[int], bool] | None = None
) -> Iterator[Sample | None]:
    """The samples of a shard in their order, None for those not wanted or broken: places count.

    Args:
        path: A plain tar file.
        problems: What is broken is counted under ``shard`` (from there on the rest of it is lost) or ``sample``.
        wanted: By the sample's place; of others nothing but the headers is read.
    """
    place, key = -1, None
    sample: Sample | None = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                vars(tar)["members"] = []  # a stream: nothing is looked up again
                name = _NAME.fullmatch(info.name)
                if not info.isreg() or name is None:
                    if not info.isdir():
                        problems.add("sample", "no member", max(place, 0), f"{path.name}: {info.name!r:.60}")
                    continue
                if name[1] != key:
                    if key is not None:
                        yield sample
                    place, key = place + 1, name[1]
                    take = wanted is None or wanted(place)
                    sample = {"__key__": key} if take else None
                if sample is not None:
                    sample = _read_member(tar, info, name[2], sample, place, path.name, problems)
            tar.fileobj.seek(tar.offset)
            if not tar.fileobj.read(tarfile.BLOCKSIZE):
                # tarfile takes a file that was cut between two members for whole; a whole one ends in zeros.
                raise tarfile.ReadError("the end is missing")
    except (tarfile.TarError, OSError, EOFError) as error:
        problems.add("shard", "truncated or no tar", max(place, 0), f"{path.name}: {error}")
        return  # the sample it broke in may lack members
    if key is not None:
        yield sample


def _read_member(
    tar: tarfile.TarFile, info: tarfile.TarInfo, ending: str, sample: Sample, place: int, name: str, problems: Problems
) -> Sample | None:
    """The sample with one more member, None if it is broken."""
    if info.size > MAX_MEMBER_BYTES or ending in sample:
        kind = "comes twice" if ending in sample else "too large"
        problems.add("sample", kind, place, f"{name}: {info.name}, {info.size} bytes")
        return None
    stream = tar.extractfile(info)
    content = b"" if stream is None else stream.read()
    if len(content) != info.size:
        raise tarfile.ReadError("unexpected end of data")
    try:
        sample[ending] = decode(ending, content)
    except (ValueError, RecursionError) as error:
        problems.add("sample", "undecodable", place, f"{name}: {info.name}: {str(error)[:60]}")
        return None
    return sample


def shard_paths(shards: Path | str | Sequence[Path | str]) -> list[Path]:
    """The ``.tar`` files of a folder in the order of their names, or the given ones.

    Raises:
        UserError: If there is none, or one is missing.
    """
    if isinstance(shards, Path | str):
        folder = Path(shards)
        paths = sorted(folder.glob("*.tar")) if folder.is_dir() else [folder]
        if not paths:
            raise UserError(f"'{folder}' must hold .tar shards, found none")
    else:
        paths = [Path(path) for path in shards]
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        raise UserError(f"shard '{missing[0]}' does not exist" if missing else "give at least one shard, got none")
    return paths


class ShardReader:
    """Samples of shards, epoch by epoch, from where it stands to the end of the epoch.

    Together, all readers of ``ranks`` x ``workers`` give every sample of an epoch once. They need not give equally
    many: where processes step together, stop at the shortest or go round.

    Args:
        shards: A folder of ``.tar`` files, or the files; the same for every reader.
        seed: Of the orders.
        shuffle: False = shards in their order, samples in theirs.
        buffer: Samples held for shuffling.
        rank: Of this process.
        ranks: How many processes.
        worker: Of this loader worker.
        workers: How many workers each process has.

    Attributes:
        problems: What was broken since the reader was made.

    Raises:
        UserError: If shards are missing.
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        shards: Path | str | Sequence[Path | str],
        *,
        seed: int = 0,
        shuffle: bool = True,
        buffer: int = 1000,
        rank: int = 0,
        ranks: int = 1,
        worker: int = 0,
        workers: int = 1,
    ) -> None:
        if not 0 <= rank < ranks or not 0 <= worker < workers or buffer < 1:
            raise ValueError(
                "must be 0 <= rank < ranks, 0 <= worker < workers, buffer >= 1, "
                f"got {rank} of {ranks}, {worker} of {workers}, {buffer}"
            )
        self.paths = shard_paths(shards)
        self.seed, self.shuffle, self.buffer = seed, shuffle, buffer
        self.reader, self.readers = rank * workers + worker, ranks * workers
        self.epoch = self.position = 0
        self.problems = Problems()
        self._samples = _indexed(self.paths)

    def state(self) -> dict[str, Any]:
        """Where it stands, as plain JSON: a reader that loads it gives the very next sample.

        The position counts this reader's places of the epoch, broken samples included.
        """
        return {"epoch": self.epoch, "position": self.position, **self._identity()}

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "shuffle": self.shuffle,
            "buffer": self.buffer,
            "reader": self.reader,
            "readers": self.readers,
            "shards": [[path.name, path.stat().st_size] for path in self.paths],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Stand where ``state`` was taken.

        Raises:
            UserError: If it is of another reader, seed, buffer or set of shards.
        """
        mine = self._identity()
        for name, value in mine.items():
            if state.get(name) != value:
                shown = "other shards" if name == "shards" else repr(state.get(name))
                raise UserError(f"the state is of another reader: '{name}' must be {_short(value)}, got {shown}")
        self.epoch, self.position = int(state["epoch"]), int(state["position"])

    def __iter__(self) -> Iterator[Sample]:
        """The rest of the epoch; then the reader stands at the start of the next."""
        first = self.position // self.buffer if self.shuffle else self.position
        stream = self._stream(first * self.buffer if self.shuffle else first)
        while True:
            held = [sample for _, sample in zip(range(self.buffer if self.shuffle else 1), stream, strict=False)]
            if not held:
                break
            number, start = (self.position // self.buffer, self.position % self.buffer) if self.shuffle else (0, 0)
            order = self._order(f"buffer {number}", len(held))
            for place in order[start:]:
                self.position += 1
                if (sample := held[place]) is not None:
                    held[place] = None
                    yield sample
        self.epoch, self.position = self.epoch + 1, 0

    def _order(self, what: str, count: int) -> list[int]:
        if not self.shuffle:
            return list(range(count))
        mark = what if what == "shards" else f"reader {self.reader} of {self.readers}, {what}"
        order: list[int] = permutation(self.seed, f"shards: {mark}", self.epoch, count).tolist()
        return order

    def _stream(self, skip: int) -> Iterator[Sample | None]:
        """This reader's places of the epoch before the buffer, from place ``skip`` on."""
        order = self._order("shards", len(self.paths))  # the same for every reader
        count = len(order)
        if count >= self.readers:
            mine, share, of = order[self.reader :: self.readers], 0, 1
        else:  # every shard has several readers: those that are its place, modulo the number of shards
            place = self.reader % count
            mine, share = [order[place]], self.reader // count
            of = len(range(place, self.readers, count))
        for shard in mine:
            known = self._samples.get(self.paths[shard])
            if known is not None and skip >= (held := len(range(share, known, of))):
                skip -= held  # without opening it
                continue
            seen = 0

            def wanted(place: int, skip: int = skip) -> bool:
                return place % of == share and place // of >= skip

            for place, sample in enumerate(read_shard(self.paths[shard], self.problems, wanted=wanted)):
                if place % of == share:
                    seen += 1
                    if seen > skip:
                        yield sample
            skip = max(0, skip - seen)


def _indexed(paths: Sequence[Path]) -> dict[Path, int]:
    """How many samples those shards have that an index beside them knows, and that have the size it says."""
    found: dict[Path, int] = {}
    for folder in {path.parent for path in paths}:
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            entries = {entry["name"]: (int(entry["samples"]), entry["bytes"]) for entry in index["shards"]}
        except (OSError, ValueError, KeyError, TypeError):
            continue
        for path in paths:
            samples, size = entries.get(path.name, (0, -1)) if path.parent == folder else (0, -1)
            if path.stat().st_size == size:
                found[path] = samples
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."
