"""What a task study is, and its jobs: a function and plain options, done once, written down in a shard of records."""

import hashlib
import json
import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from polyfuse.report.study_tables import Table
from polyfuse.report.task_page import Chart, Example
from polyfuse.studies.folder import file_name
from polyfuse.studies.results import shard_meta, write_shard
from polyfuse.studies.task_records import SCHEMA, Records

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
        return self.jobs_folder / file_name(f"{arm}{f'@{setting}' if setting else ''}-{seed}")


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
class Work:
    """A job as the pool takes it."""

    job: TaskJob
    fingerprint: str
    order: int

    @property
    def urgency(self) -> tuple[float, ...]:
        """Smaller comes first."""
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


def paragraphs(text: str) -> tuple[str, ...]:
    r"""Sentences of a protocol, parted by empty lines, each on one line.

    Example:
        >>> paragraphs("One\n    two.\n\n    Three.")
        ('One two.', 'Three.')
    """
    return tuple(" ".join(part.split()) for part in text.split("\n\n") if part.strip())
