"""The engine of the task studies: jobs of any kind in a pool of processes, resumable, in the order of their needs.

A task study is a list of jobs per scale. A job is a function and plain options; it gives figures, curves and examples,
and may leave files in its folder (the weights of a pre-training) for jobs that need it. What an earlier run has done
with the same options is not done again.
"""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from polyfuse.data.schema import nearest
from polyfuse.errors import UserError
from polyfuse.files import write_json
from polyfuse.report.context import machine, this_command, versions
from polyfuse.report.task_page import TaskReport, console_lines, write_task_page
from polyfuse.studies.folder import begin, check_options, study_folder
from polyfuse.studies.pool import run_jobs
from polyfuse.studies.results import StudyResult, shard_meta
from polyfuse.studies.task_jobs import Key, TaskJob, TaskStudy, Work, fingerprint, needs_of
from polyfuse.studies.task_records import Place, Records, merge, read_records

Say = Callable[[str], None]


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
    check_options(scale, study.scales, seeds=seeds, workers=workers)
    jobs = _jobs(study, scale, seeds)
    known = list(dict.fromkeys(job.arm for job in jobs))
    for arm in sorted(set(only) - set(known)):
        raise UserError(f"unknown arm '{arm}'{nearest(arm, known) or ';'} known: {', '.join(known)}")
    folder = study_folder(study.name, scale, out)
    begin(folder, study.name, scale)
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
        self.works: dict[Key, Work] = {}
        by_key = {job.key: job for job in jobs}
        for order, job in enumerate(jobs):
            self.works[job.key] = Work(job, fingerprint(study, job, by_key), order)
        self.waiting: dict[Key, set[Key]] = {}
        self.sunk: dict[Key, str] = {}
        self.failed: list[tuple[str, str]] = []
        self.count = self.skipped = 0
        self.spent = 0.0
        self.began = self.said = time.perf_counter()

    def first(self) -> list[Work]:
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

    def done(self, work: Work, answer: tuple[float, str]) -> Iterable[Work]:
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

    def _progress(self, work: Work) -> None:
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


def _title(place: Place) -> str:
    return f"{place.arm}{f' at {place.setting}' if place.setting else ''}, seed {place.seed}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
