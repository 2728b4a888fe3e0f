"""The engine of the studies: many arms and seeds on many data sets, in one pool of processes, resumable.

A study is data sets and a function from a data set to arms. Every arm trains the same steps on the same rows; settings
are chosen on validation rows with the first seed, the same number of tries for each; test rows are looked at once.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from polyfuse.data.schema import nearest
from polyfuse.datasets import DATASETS
from polyfuse.errors import UserError
from polyfuse.files import write_json
from polyfuse.report.context import machine, this_command, versions
from polyfuse.report.study_page import console_lines, write_study
from polyfuse.report.study_records import DataInfo
from polyfuse.studies.arms import Plan
from polyfuse.studies.bench_jobs import FACTS, ArmJobs, DataJobs, is_done
from polyfuse.studies.clock import Clock
from polyfuse.studies.compare import Say
from polyfuse.studies.folder import begin, check_options, study_folder
from polyfuse.studies.jobs import Answer, Place, StudyJob, clear_loaded
from polyfuse.studies.ledger import data_name
from polyfuse.studies.pool import run_jobs
from polyfuse.studies.results import VERSION, StudyResult, merge, shard_meta
from polyfuse.studies.study import Size, Study
from polyfuse.studies.tables import summarise


def run_study(
    study: Study,
    *,
    scale: str = "small",
    out: Path | None = None,
    only: Sequence[str] = (),
    datasets: Sequence[str] = (),
    seeds: int | None = None,
    workers: int = 2,
    say: Say = lambda line: None,
) -> StudyResult:
    """Do what is not done yet of a study, and merge the records.

    Args:
        study: What to do.
        scale: One of its scales.
        out: Its folder; None = ``runs/study-NAME-SCALE``. What an earlier run did there is not done again.
        only: Arms to run, again if they were; their old records go. Empty = all.
        datasets: Some of the study's (as written there, or the part before ``|``); empty = all.
        seeds: Replaces the scale's.
        workers: Processes of one thread each; the records do not depend on it, but for times.
        say: Told the progress, line by line.

    Raises:
        UserError: For a name that does not exist, or a folder of another study or scale.
        KeyboardInterrupt: On Ctrl-C, when what is done has been merged.
    """
    started = time.perf_counter()
    check_options(scale, study.scales, seeds=seeds, workers=workers)
    size = study.scales[scale] if seeds is None else replace(study.scales[scale], seeds=seeds)
    places = _places(study, size, datasets)
    folder = study_folder(study.name, scale, out)
    run = _Run(study, size, folder, set(only), say)
    run.plan(places)
    begin(folder, study.name, scale)
    try:
        run_jobs(run.first(), workers, run.done)
    except KeyboardInterrupt:
        merge(run.shards(), folder / "records.parquet")
        say(f"interrupted after {run.count} jobs; the same command goes on from there")
        raise
    finally:
        clear_loaded()
    count = merge(run.shards(), folder / "records.parquet")
    result = StudyResult(
        study=study.name,
        scale=scale,
        folder=folder,
        done=run.count,
        skipped=run.skipped,
        failed=tuple(run.failed),
        seconds=time.perf_counter() - started,
    )
    _note(folder, study, scale, size, result)
    return replace(result, lines=_page(run, folder)) if count else result


def _page(run: "_Run", folder: Path) -> list[str]:
    """Write the page and the tables; returns what the terminal shows."""
    import pyarrow.parquet as pq

    report = summarise(
        pq.read_table(folder / "records.parquet"),
        {data_name(place.dataset, place.variant): plans for place, plans in run.plans.items()},
        about={data_name(place.dataset, place.variant): _about(place) for place in run.plans},
        questions=run.study.questions,
        name=run.study.name,
        title=run.study.title,
        draws=run.size.bootstrap,
    )
    report.commands, report.versions, report.machine = (this_command(),), versions(), machine()
    page = write_study(report, folder)
    return [*console_lines(report), "", f"{page}"]


def _about(place: Place) -> DataInfo:
    name = data_name(place.dataset, place.variant)
    if place.dataset not in DATASETS:
        return DataInfo(name, plain=not place.variant)
    source = DATASETS[place.dataset]
    return DataInfo(name, source.real, not place.variant, source.licence, source.about)


class _Run:
    """The state of one call: what is to be done, what came of it."""

    def __init__(self, study: Study, size: Size, folder: Path, only: set[str], say: Say) -> None:
        self.study, self.size, self.folder, self.only, self.say = study, size, folder, only, say
        self.arms: list[ArmJobs] = []
        self.arm_of: dict[Path, ArmJobs] = {}
        self.planned: set[str] = set()
        self.plans: dict[Place, list[Plan]] = {}
        self.failed: list[tuple[str, str]] = []
        self.count = self.skipped = 0
        self.clock = Clock()

    def plan(self, places: Sequence[Place]) -> None:
        """Load every data set once, so that what it must fetch or embed is cached before the workers start."""
        known: set[str] = set()
        entries = []
        for place in places:
            began = time.perf_counter()
            try:
                data = place.load(self.study.load, 0)
                plans = [p for p in self.study.arms(data, self.size) if p.name not in self.size.skip]
            except Exception as error:
                self.failed.append((str(place), f"{type(error).__name__}: {error}"))
                self.say(f"{place}: {type(error).__name__}: {error}")
                continue
            if len({plan.name for plan in plans}) < len(plans):
                raise ValueError(f"arms must have different names, got {[plan.name for plan in plans]}")
            known |= {plan.name for plan in plans} | {"oracle", "oracle reseeded"}
            self.plans[place] = plans
            entries.append(DataJobs(self.study, self.size, self.folder, place, data, plans))
            rows = " + ".join(str(len(batch)) for batch in (data.train, data.validation, data.test))
            self.say(f"{place}: {rows} rows, {len(plans)} arms ({time.perf_counter() - began:.1f} s)")
        for name in sorted(self.only - known if entries else ()):
            raise UserError(f"unknown arm '{name}'{nearest(name, known) or ';'} known: {', '.join(sorted(known))}")
        entries.sort(key=lambda entry: -entry.weight)
        for number, entry in enumerate(entries):
            self.planned.add(entry.place.folder)
            self.arms += entry.arms(number)

    def wanted(self, arm: ArmJobs) -> bool:
        """Whether the call asks for this arm."""
        return not self.only or arm.name in self.only or arm.name == FACTS

    def first(self) -> list[StudyJob]:
        """The jobs that can start now; what is to be done again is deleted."""
        jobs: list[StudyJob] = []
        for arm in self.arms:
            if not self.wanted(arm):
                continue
            if arm.name in self.only:
                for job in (*arm.tries, *arm.jobs_with(None)):
                    job.path.unlink(missing_ok=True)
            todo = [job for job in arm.tries if not is_done(job)]
            self.skipped += len(arm.tries) - len(todo)
            if todo:
                arm.waiting = {job.path for job in todo}
                self.arm_of |= dict.fromkeys(arm.waiting, arm)
                self.clock.expect(arm.jobs_with(None))
                jobs += todo
            else:
                jobs += self._final(arm)
        self.clock.expect(jobs)
        self.clock.start()
        return jobs

    def done(self, job: StudyJob, answer: Answer) -> Iterable[StudyJob]:
        """Count a job, say how far it is, and give what waited for it."""
        self.count += 1
        if answer.failed:
            self.failed.append((job.title, answer.failed))
            self.say(f"failed: {job.title}: {answer.failed}")
        line = self.clock.tick(job, answer.seconds)
        if line:
            self.say(line)
        arm = self.arm_of.pop(job.path, None)
        if arm is None:
            return []
        arm.waiting.discard(job.path)
        if arm.waiting:
            return []
        self.clock.forget(arm.jobs_with(None))
        jobs = self._final(arm)
        self.clock.expect(jobs)
        return jobs

    def _final(self, arm: ArmJobs) -> list[StudyJob]:
        jobs = arm.final()
        if jobs is None:
            self.failed.append((f"{arm.tries[0].place}: {arm.name}", "none of its settings could be trained"))
            return []
        todo = [job for job in jobs if not is_done(job)]
        self.skipped += len(jobs) - len(todo)
        return todo

    def shards(self) -> Iterator[Path]:
        """What the records are made of: of the data sets of this call what fits its settings, of others what is there.

        With ``only`` the shards of other arms stay if they fit; those that do not are left out, and it is said.
        """
        stale = 0
        used: set[str] = set()
        for arm in self.arms:
            for job in (*arm.tries, *(arm.final() or ())):
                if not job.path.exists():
                    continue
                if shard_meta(job.path).get("fingerprint") == job.fingerprint:
                    used.add(job.place.folder)
                    yield job.path
                else:
                    stale += 1
        if stale:
            self.say(f"left out of the records: {stale} jobs of other settings; a run without --only does them again")
        for text in self.study.datasets:
            place = Place.parse(text).folder
            if place not in self.planned:
                yield from (p for p in sorted((self.folder / "jobs" / place).glob("*.parquet")) if shard_meta(p))


def _places(study: Study, size: Size, wanted: Sequence[str]) -> list[Place]:
    every = [Place.parse(text) for text in size.datasets or study.datasets]
    if not wanted:
        return every
    known = {str(place) for place in every} | {place.dataset for place in every}
    names = [str(Place.parse(text)) for text in wanted]
    for name in names:
        if name not in known:
            raise UserError(f"unknown data set '{name}'{nearest(name, known) or ';'} known: {', '.join(sorted(known))}")
    return [place for place in every if str(place) in names or place.dataset in names]


def _note(folder: Path, study: Study, scale: str, size: Size, result: StudyResult) -> None:
    """What made the records, beside them."""
    write_json(
        folder / "study.json",
        {
            "study": study.name,
            "scale": scale,
            "title": study.title,
            "format": VERSION,
            "seeds": size.seeds,
            "steps": size.steps,
            "tries": size.tries,
            "bootstrap": size.bootstrap,
            "command": this_command(),
            "machine": machine(),
            "versions": versions(),
            "done": result.done,
            "skipped": result.skipped,
            "failed": [f"{job}: {message}" for job, message in result.failed],
            "seconds": round(result.seconds, 1),
        },
    )
