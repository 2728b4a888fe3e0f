"""The engine of the task studies: jobs of any kind in a pool of processes, resumable, in the order of their needs.

A task study is a list of jobs per scale. A job is a function and plain options; it gives figures, curves and examples,
and may leave files in its folder (the weights of a pre-training) for jobs that need it. What an earlier run has done
with the same options is not done again.
"""

import hashlib
import json
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from polyfuse.data.schema import nearest
from polyfuse.errors import UserError
from polyfuse.files import read_json, write_json
from polyfuse.report.context import machine, this_command, versions
from polyfuse.report.study_tables import Table
from polyfuse.report.task_page import Chart, Example, TaskReport, console_lines, write_task_page
from polyfuse.studies.pool import run_jobs
from polyfuse.studies.results import StudyResult, shard_meta, write_shard
from polyfuse.studies.task_records import SCHEMA, Place, Records, merge, read_records

Say = Callable[[str], None]
Key = tuple[str, int, str]
"""Arm, seed, setting."""

SCALES = ("smoke", "small", "full")


@dataclass(frozen=True)
class Outcome:
    """What a job found.

    Attributes:
        figures: Numbers by name.
        curves: ``{name: [(step, value), ...]}``.
        examples: For the page.
        rows: ``{name of a figure: (N,) its value at every test row}``, for intervals paired by row.
    """

    figures: Mapping[str, float]
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    examples: Sequence[Example] = ()
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskJob:
    """One piece of work.

    Attributes:
        arm: Row of the tables.
        seed: Of the training.
        run: Does it, given the job and its folder, which is empty and is kept; a function of a module.
        setting: Column group, such as "5 %" of the labels; "" = none.
        needs: ``(arm, seed)``, or ``(arm, seed, setting)``, of jobs that must be done first; ``folder_of`` finds their
            folders.
        options: Plain values that decide the outcome.
        jobs_folder: Where the folders of all jobs are; the engine sets it.
    """

    arm: str
    seed: int
    run: Callable[["TaskJob", Path], Outcome]
    setting: str = ""
    needs: tuple[tuple[Any, ...], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    jobs_folder: Path = Path("jobs")

    @property
    def key(self) -> Key:
        """Unique in a study."""
        return self.arm, self.seed, self.setting

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"{self.arm}{f' at {self.setting}' if self.setting else ''}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Its own."""
        return self.folder_of(*self.key)

    def folder_of(self, arm: str, seed: int, setting: str = "") -> Path:
        """Of a job that this one needs."""
        return self.jobs_folder / _file(f"{arm}{f'@{setting}' if setting else ''}-{seed}")


@dataclass(frozen=True)
class TaskStudy:
    """What a task study does.

    Attributes:
        name: Its registry key.
        title: Of its page.
        question: What it asks, a sentence.
        protocol: How it is done, in sentences.
        jobs: From the scale to the jobs, in the order of the tables; a function of its argument.
        tables: From what was found.
        verdict: Likewise, in sentences that follow from the figures.
        charts: Likewise.
        scales: Known scales.
        version: Raised when what a job does has changed, so that it is done again.
    """

    name: str
    title: str
    question: str
    protocol: tuple[str, ...]
    jobs: Callable[[str], list[TaskJob]]
    tables: Callable[[Records], list[Table]]
    verdict: Callable[[Records], list[str]]
    charts: Callable[[Records], list[Chart]] = lambda records: []
    scales: tuple[str, ...] = SCALES
    version: int = 1


@dataclass(frozen=True)
class _Work:
    """A job as the pool takes it."""

    job: TaskJob
    fingerprint: str
    order: int

    @property
    def urgency(self) -> tuple[float, ...]:
        return (self.order,)

    @cached_property
    def path(self) -> Path:
        """The shard."""
        return self.job.folder.with_name(f"{self.job.folder.name}.parquet")

    def is_done(self) -> bool:
        """Whether an earlier run has done it with the same options."""
        meta = shard_meta(self.path)
        return meta.get("fingerprint") == self.fingerprint and not meta["failed"] and self.job.folder.is_dir()

    def run(self) -> tuple[float, str]:
        """Do it and write the shard; a failure is written down too."""
        began, spent = time.perf_counter(), time.process_time()
        try:
            shutil.rmtree(self.job.folder, ignore_errors=True)
            self.job.folder.mkdir(parents=True)
            outcome = self.job.run(self.job, self.job.folder)
            table = self._table(outcome, time.process_time() - spent)
            write_shard(self.path, table, {"fingerprint": self.fingerprint, "failed": ""})
        except Exception as error:
            return self.fail(f"{type(error).__name__}: {error}", traceback.format_exc(), began)
        return time.perf_counter() - began, ""

    def died(self, status: int | None) -> tuple[float, str]:
        """For the pool: the worker ended."""
        return self.fail(f"the worker process ended with status {status}")

    def fail(self, message: str, trace: str = "", began: float | None = None) -> tuple[float, str]:
        """Write down why there is nothing."""
        rows = [self._row("failed", "", text=message)]
        meta = {"fingerprint": self.fingerprint, "failed": message, "trace": trace}
        write_shard(self.path, pa.Table.from_pylist(rows, schema=SCHEMA), meta)
        return (0.0 if began is None else time.perf_counter() - began), message

    def _row(self, kind: str, metric: str, **more: Any) -> dict[str, Any]:
        empty = {"step": None, "value": None, "values": None, "text": None}
        head = {"arm": self.job.arm, "setting": self.job.setting, "seed": self.job.seed}
        return {**head, "kind": kind, "metric": metric, **empty, **more}

    def _table(self, outcome: Outcome, seconds: float) -> pa.Table:
        figures = {"cpu_seconds": seconds, **outcome.figures}
        rows = [self._row("figure", name, value=float(value)) for name, value in figures.items()]
        for name, points in outcome.curves.items():
            rows += [self._row("curve", name, step=float(x), value=float(y)) for x, y in points]
        for name, values in outcome.rows.items():
            rows.append(self._row("rows", name, values=np.asarray(values, np.float32).tolist()))
        rows += [self._row("example", one.title, text=one.to_text()) for one in outcome.examples]
        return pa.Table.from_pylist(rows, schema=SCHEMA)


def run_task_study(
    study: TaskStudy,
    *,
    scale: str = "small",
    out: Path | None = None,
    only: Sequence[str] = (),
    seeds: int | None = None,
    workers: int = 2,
    say: Say = lambda line: None,
) -> StudyResult:
    """Do what is not done yet of a task study, merge the records, write the page.

    Args:
        study: What to do.
        scale: One of its scales.
        out: Its folder; None = ``runs/study-NAME-SCALE``. What an earlier run did there is not done again.
        only: Arms to run, again if they were. Empty = all.
        seeds: The first so many of the scale's; None = all.
        workers: Processes of one thread each; the records do not depend on it, but for times.
        say: Told the progress, line by line.

    Raises:
        UserError: For a name that does not exist, or a folder of another study or scale.
        KeyboardInterrupt: On Ctrl-C, when what is done has been merged.
    """
    started = time.perf_counter()
    if scale not in study.scales:
        raise UserError(f"--scale must be one of {', '.join(study.scales)}, got '{scale}'")
    for name, value in (("seeds", seeds), ("workers", workers)):
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")
    jobs = _jobs(study, scale, seeds)
    known = list(dict.fromkeys(job.arm for job in jobs))
    for arm in sorted(set(only) - set(known)):
        raise UserError(f"unknown arm '{arm}'{nearest(arm, known) or ';'} known: {', '.join(known)}")
    folder = _folder(study, scale, out)
    run = _Run(study, [replace(job, jobs_folder=folder / "jobs") for job in jobs], frozenset(only), say)
    try:
        run_jobs(run.first(), workers, run.done)
    except KeyboardInterrupt:
        merge(run.shards(), folder / "records.parquet")
        say(f"interrupted after {run.count} jobs; the same command goes on from there")
        raise
    merge(run.shards(), folder / "records.parquet")
    result = StudyResult(
        study=study.name,
        scale=scale,
        folder=folder,
        done=run.count,
        skipped=run.skipped,
        failed=tuple(run.failed),
        seconds=time.perf_counter() - started,
    )
    report = make_report(study, read_records(folder / "records.parquet"), scale)
    page = write_task_page(report, folder)
    write_json(
        folder / "study.json",
        {"study": study.name, "scale": scale, "version": study.version, **result.to_dict(), "command": this_command()},
    )
    width = min(max(shutil.get_terminal_size((120, 24)).columns, 80), 120)
    return replace(result, lines=[*console_lines(report, width), "", str(page)])


def make_report(study: TaskStudy, records: Records, scale: str) -> TaskReport:
    """What the page says, from the records alone."""
    found = bool(records.figures)
    return TaskReport(
        name=study.name,
        title=study.title,
        question=study.question,
        protocol=study.protocol,
        verdict=study.verdict(records) if found else ["No job came through, so there is nothing to judge."],
        tables=study.tables(records) if found else [],
        charts=study.charts(records) if found else [],
        examples=[shown for _, shown in records.examples],
        figures=list(records.plain()),
        seeds=len(records.seeds),
        failed=[f"{_title(place)}: {message}" for place, message in records.failed],
        notes=("Numbers of the scale smoke mean nothing: it shows that everything runs.",) if scale == "smoke" else (),
        scale=scale,
        seconds=sum(sum(v.values()) for (_, _, metric), v in records.figures.items() if metric == "cpu_seconds"),
        commands=(this_command(),),
        versions=versions(),
        machine=machine(),
    )


class _Run:
    """The state of one call: what is to be done, what came of it."""

    def __init__(self, study: TaskStudy, jobs: Sequence[TaskJob], only: frozenset[str], say: Say) -> None:
        self.only, self.say = only, say
        self.works: dict[Key, _Work] = {}
        by_key = {job.key: job for job in jobs}
        for order, job in enumerate(jobs):
            self.works[job.key] = _Work(job, fingerprint(study, job, by_key), order)
        self.waiting: dict[Key, set[Key]] = {}
        self.sunk: dict[Key, str] = {}
        self.failed: list[tuple[str, str]] = []
        self.count = self.skipped = 0
        self.spent = 0.0
        self.began = self.said = time.perf_counter()

    def first(self) -> list[_Work]:
        """The jobs that can start now."""
        todo = {
            key for key, work in self.works.items() if (self._asked(key) if self.only else False) or not work.is_done()
        }
        if self.only:
            wanted = {key for key in self.works if self._asked(key)}
            frontier = list(wanted)
            while frontier:  # what they need and is not there
                for key in needs_of(self.works[frontier.pop()].job):
                    if key in todo and key not in wanted:
                        wanted.add(key)
                        frontier.append(key)
            todo &= wanted
        self.skipped = sum(key not in todo and work.is_done() for key, work in self.works.items())
        for key in todo:
            self.works[key].path.unlink(missing_ok=True)
            self.waiting[key] = {need for need in needs_of(self.works[key].job) if need in todo}
        return [self.works[key] for key in self.works if key in todo and not self.waiting[key]]

    def _asked(self, key: Key) -> bool:
        return key[0] in self.only

    def done(self, work: _Work, answer: tuple[float, str]) -> Iterable[_Work]:
        """Count a job, say how far it is, and give what waited for it alone."""
        seconds, failed = answer
        self.count += 1
        self.spent += seconds
        key = work.job.key
        del self.waiting[key]
        if failed:
            self._sink(key, failed)
        ready = []
        for other, needs in self.waiting.items():
            if key in needs:
                needs.discard(key)
                if not needs:
                    ready.append(self.works[other])
        self._progress(work)
        return ready

    def _sink(self, key: Key, message: str) -> None:
        """A job failed, and with it all that needs it."""
        title = self.works[key].job.title
        self.failed.append((title, message))
        self.say(f"failed: {title}: {message}")
        for other in [k for k, needs in self.waiting.items() if key in needs]:
            if other in self.waiting:
                del self.waiting[other]
                text = f"needs {title}, which failed"
                self.works[other].fail(text)
                self._sink(other, text)

    def _progress(self, work: _Work) -> None:
        now, rest = time.perf_counter(), len(self.waiting)
        if now - self.said < 5.0 and rest:
            return
        self.said = now
        gone = now - self.began
        left = f", about {_duration(gone * rest / self.count)} left" if rest else ""
        self.say(f"{self.count} of {self.count + rest} jobs, {_duration(gone)}{left} ({work.job.title})")

    def shards(self) -> Iterator[Path]:
        """What the records are made of: shards that fit the jobs as they are now."""
        stale = 0
        for work in self.works.values():
            meta = shard_meta(work.path)
            if meta.get("fingerprint") == work.fingerprint:
                yield work.path
            else:
                stale += bool(meta)
        if stale:
            self.say(f"left out of the records: {stale} jobs of other options; a run without --only does them again")


def needs_of(job: TaskJob) -> list[Key]:
    """Keys of the jobs that must be done first."""
    return [(need[0], need[1], need[2] if len(need) > 2 else "") for need in job.needs]


def fingerprint(study: TaskStudy, job: TaskJob, jobs: Mapping[Key, TaskJob]) -> str:
    """A hash of everything that decides the outcome of a job, that of the jobs it needs included."""
    decisive = {
        "study": study.name,
        "version": study.version,
        "key": job.key,
        "run": f"{job.run.__module__}.{job.run.__qualname__}",
        "options": job.options,
        "needs": [fingerprint(study, jobs[key], jobs) for key in needs_of(job)],
    }
    text = json.dumps(decisive, sort_keys=True, default=list)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _jobs(study: TaskStudy, scale: str, seeds: int | None) -> list[TaskJob]:
    """The jobs of a scale, looked over before any work is done."""
    jobs = study.jobs(scale)
    folders = Counter(job.folder.name.lower() for job in jobs)
    if len(folders) < len(jobs):
        same = sorted(name for name, count in folders.items() if count > 1)
        raise ValueError(f"jobs must differ in arm, seed or setting, as file names too; twice: {', '.join(same)}")
    numbers = sorted({job.seed for job in jobs})
    if seeds is not None:
        if seeds > len(numbers):
            raise UserError(f"--seeds: {study.name} has {len(numbers)} seeds at scale {scale}, got {seeds}")
        jobs = [job for job in jobs if job.seed in numbers[:seeds]]
    ready: set[Key] = set()
    left = jobs
    while left:
        now = {job.key for job in left if ready.issuperset(needs_of(job))}
        if not now:
            raise ValueError(f"these jobs need what does not exist, or each other: {[job.title for job in left]}")
        ready |= now
        left = [job for job in left if job.key not in ready]
    return jobs


def _folder(study: TaskStudy, scale: str, out: Path | None) -> Path:
    """The folder of a study, new or of the same study and scale."""
    folder = out if out is not None else Path("runs") / f"study-{study.name}-{scale}"
    note = folder / "study.json"
    if note.exists():
        found = read_json(note)
        if (found["study"], found["scale"]) != (study.name, scale):
            raise UserError(
                f"'{folder}' holds study {found['study']} at scale {found['scale']}, not {study.name} at {scale}; "
                "choose another --out"
            )
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"'{folder}' is not empty and holds no study; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(note, {"study": study.name, "scale": scale})
    return folder


def paragraphs(text: str) -> tuple[str, ...]:
    r"""Sentences of a protocol, parted by empty lines, each on one line.

    Example:
        >>> paragraphs("One\n    two.\n\n    Three.")
        ('One two.', 'Three.')
    """
    return tuple(" ".join(part.split()) for part in text.split("\n\n") if part.strip())


def _title(place: Place) -> str:
    return f"{place.arm}{f' at {place.setting}' if place.setting else ''}, seed {place.seed}"


def _file(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-+@" else "_" for c in name)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
