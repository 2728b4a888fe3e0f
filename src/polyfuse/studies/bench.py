"""The engine of the studies: many arms and seeds on many data sets, in one pool of processes, resumable.

A study is data sets and a function from a data set to arms. Every arm trains the same steps on the same rows; settings
are chosen on validation rows with the first seed, the same number of tries for each; test rows are looked at once.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from polyfuse.config import CalibrateConfig, EvaluateConfig
from polyfuse.data.schema import nearest
from polyfuse.datasets import DATASETS, DataSet, load_dataset
from polyfuse.errors import UserError
from polyfuse.evaluate.subsets import all_subsets
from polyfuse.files import read_json, write_json
from polyfuse.report.context import machine, this_command, versions
from polyfuse.report.study_page import console_lines, write_study
from polyfuse.report.study_records import DataInfo
from polyfuse.studies.arms import Plan
from polyfuse.studies.clock import Clock
from polyfuse.studies.compare import Say, oracle_plan
from polyfuse.studies.jobs import Answer, Load, Place, StudyJob, checksum, clear_loaded
from polyfuse.studies.ledger import data_name
from polyfuse.studies.pool import run_jobs
from polyfuse.studies.results import VERSION, StudyResult, merge, shard_meta
from polyfuse.studies.tables import Questions, summarise

RATES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
FACTS = ""
"""The arm of records that belong to a data set."""

Settings = Mapping[str, Any] | None

_MANY = 15
RESEEDED = 1000
"""Added to the seed of the second block of oracles: the difference of the blocks is the noise of a regret."""


@dataclass(frozen=True)
class Size:
    """How much of a study is done.

    Attributes:
        steps: Of every training.
        tries: Settings tried per arm.
        seeds: Per arm.
        oracles: Seeds of the models per subset, and again as many of the reseeded ones; 0 = none. With more than 15
            subsets it is one.
        bootstrap: Resamples of an interval.
        datasets: Those of this scale; empty = all of the study.
        skip: Arms that this scale leaves out.
    """

    steps: int
    tries: int = 1
    seeds: int = 5
    oracles: int = 0
    bootstrap: int = 1000
    datasets: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """What a study compares, on what.

    Attributes:
        name: Its registry key.
        title: Of its page.
        datasets: Entries of ``DATASETS``, with a variant where wanted: ``mfeat``, ``mfeat | missing 0.7``.
        arms: From a data set (its variant applied) and the size to the plans; one has kind ``reference``. It must be a
            function of its arguments.
        scales: ``smoke``, ``small`` and ``full``.
        encode: Train an encoder per modality, also of vectors.
        evaluate: Subsets, rates, corruptions.
        calibrate: Levels.
        questions: What its page answers beside the tables.
        load: Loads a data set by name and split; a function that worker processes can import.
    """

    name: str
    title: str
    datasets: tuple[str, ...]
    arms: Callable[[DataSet, Size], list[Plan]]
    scales: Mapping[str, Size]
    encode: bool = True
    evaluate: EvaluateConfig = field(default_factory=lambda: EvaluateConfig(drop_rates=RATES))
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    questions: Questions = field(default_factory=Questions)
    load: Load = load_dataset


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
    if scale not in study.scales:
        raise UserError(f"--scale must be one of {', '.join(study.scales)}, got '{scale}'")
    size = study.scales[scale] if seeds is None else replace(study.scales[scale], seeds=seeds)
    for name, value in (("seeds", size.seeds), ("workers", workers)):
        if value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")
    places = _places(study, size, datasets)
    folder = _folder(study, scale, out)
    run = _Run(study, size, folder, set(only), say)
    run.plan(places)
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


class _Arm:
    """The jobs of one arm on one data set: tries first, where there are several, then a job per seed."""

    def __init__(self, name: str, tries: Sequence[StudyJob], final: Callable[[Settings], list[StudyJob]]):
        self.name, self.tries, self._final = name, tries, final
        self.waiting: set[Path] = set()
        self.count = len(final(None))

    def final(self) -> list[StudyJob] | None:
        """The jobs with the settings of the lowest validation loss; None if no try came through."""
        if not self.tries:
            return self._final(None)
        best, found = math.inf, None
        for job in self.tries:
            loss = float(shard_meta(job.path).get("loss", math.inf)) if _is_done(job) else math.inf
            if loss < best:
                best, found = loss, job.settings
        return None if found is None else self._final(found)


class _Run:
    """The state of one call: what is to be done, what came of it."""

    def __init__(self, study: Study, size: Size, folder: Path, only: set[str], say: Say) -> None:
        self.study, self.size, self.folder, self.only, self.say = study, size, folder, only, say
        self.arms: list[_Arm] = []
        self.arm_of: dict[Path, _Arm] = {}
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
            entries.append(_Entry(self, place, data, plans))
            rows = " + ".join(str(len(batch)) for batch in (data.train, data.validation, data.test))
            self.say(f"{place}: {rows} rows, {len(plans)} arms ({time.perf_counter() - began:.1f} s)")
        for name in sorted(self.only - known if entries else ()):
            raise UserError(f"unknown arm '{name}'{nearest(name, known) or ';'} known: {', '.join(sorted(known))}")
        entries.sort(key=lambda entry: -entry.weight)
        for number, entry in enumerate(entries):
            self.planned.add(entry.place.folder)
            self.arms += entry.arms(number)

    def wanted(self, arm: _Arm) -> bool:
        """Whether the call asks for this arm."""
        return not self.only or arm.name in self.only or arm.name == FACTS

    def first(self) -> list[StudyJob]:
        """The jobs that can start now; what is to be done again is deleted."""
        jobs: list[StudyJob] = []
        for arm in self.arms:
            if not self.wanted(arm):
                continue
            if arm.name in self.only:
                for job in (*arm.tries, *arm._final(None)):
                    job.path.unlink(missing_ok=True)
            todo = [job for job in arm.tries if not _is_done(job)]
            self.skipped += len(arm.tries) - len(todo)
            if todo:
                arm.waiting = {job.path for job in todo}
                self.arm_of |= dict.fromkeys(arm.waiting, arm)
                self.clock.expect(arm._final(None))
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
        self.clock.forget(arm._final(None))
        jobs = self._final(arm)
        self.clock.expect(jobs)
        return jobs

    def _final(self, arm: _Arm) -> list[StudyJob]:
        jobs = arm.final()
        if jobs is None:
            self.failed.append((f"{arm.tries[0].place}: {arm.name}", "none of its settings could be trained"))
            return []
        todo = [job for job in jobs if not _is_done(job)]
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


class _Entry:
    """The jobs of one data set."""

    def __init__(self, run: _Run, place: Place, data: DataSet, plans: Sequence[Plan]) -> None:
        self.run, self.place, self.plans = run, place, plans
        self.names = tuple(data.train.modalities)
        self.checksum = checksum(data)
        subsets = len(all_subsets(len(self.names)))
        self.judge_rows = subsets * (len(data.test) + len(data.validation)) + 12 * len(self.names) * len(data.test)
        self.resplit = place.dataset in DATASETS and DATASETS[place.dataset].resplit
        oracles = 2 * run.size.oracles * subsets * 0.5
        self.weight = sum(self._weight(plan) for plan in plans) * run.size.seeds + oracles * self._weight(plans[0])

    def arms(self, number: int) -> list[_Arm]:
        """In the order of the records."""
        run, size = self.run, self.run.size
        seeds = range(size.seeds)
        orders = iter(range(1_000_000))

        def job(what: str, name: str, seed: int, file: str, **more: Any) -> StudyJob:
            split = seed if self.resplit else 0
            return StudyJob(
                what=what,
                place=self.place,
                split=split,
                name=name,
                seed=seed,
                path=run.folder / "jobs" / self.place.folder / f"{_file(file)}.parquet",
                load=run.study.load,
                evaluate=run.study.evaluate,
                calibrate=run.study.calibrate,
                encode=run.study.encode,
                checksum=self.checksum,
                order=(number, split, next(orders)),
                **more,
            )

        def final(plan: Plan) -> Callable[[Settings], list[StudyJob]]:
            own = seeds if self.resplit or not plan.baseline else seeds[:1]

            def make(settings: Settings) -> list[StudyJob]:
                chosen = plan.tries[0] if settings is None else settings
                return [
                    job("arm", plan.name, seed, f"{plan.name}-{seed}", plan=plan.trying(chosen, seed), settings=chosen)
                    for seed in own
                ]

            return make

        made = []
        splits = seeds if self.resplit else seeds[:1]
        facts = [job("data", FACTS, seed, f"data-{seed}", weight=1.0) for seed in splits]
        made.append(_Arm(FACTS, [], _always(facts)))
        for plan in self.plans:
            tries = plan.tries[: size.tries]
            tried = [
                job("try", plan.name, 0, f"{plan.name}-try-{k}", plan=plan.trying(settings, 0), settings=settings)
                for k, settings in enumerate(tries)
            ]
            made.append(_Arm(plan.name, tried if len(tries) > 1 else [], final(plan)))
        return made + self._oracles(job)

    def _oracles(self, job: Callable[..., StudyJob]) -> list[_Arm]:
        size = self.run.size
        reference = next((plan for plan in self.plans if plan.kind == "reference"), None)
        if reference is None or not size.oracles:
            return []
        plan = oracle_plan(reference.model, reference.train)
        masks = all_subsets(len(self.names))
        made = []
        for name, shift in (("oracle", 0), ("oracle reseeded", RESEEDED)):
            jobs = []
            for seed in range(size.oracles if len(masks) <= _MANY else 1):
                for mask in masks:
                    uses = tuple(n for n, here in zip(self.names, mask, strict=True) if here)
                    code = "".join(str(int(here)) for here in mask)
                    trained = plan.trying({}, seed + shift)
                    jobs.append(job("oracle", name, seed, f"{name}-{seed}-{code}", plan=trained, uses=uses))
            made.append(_Arm(name, [], _always(jobs)))
        return made

    def _weight(self, plan: Plan) -> float:
        steps = plan.train.steps or 1000
        return 3.0 * steps * plan.train.batch_size + self.judge_rows


def _always(jobs: list[StudyJob]) -> Callable[[Settings], list[StudyJob]]:
    return lambda settings: jobs


def _is_done(job: StudyJob) -> bool:
    meta = shard_meta(job.path)
    return meta.get("fingerprint") == job.fingerprint and not meta["failed"]


def _file(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-+" else "_" for c in name)


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


def _folder(study: Study, scale: str, out: Path | None) -> Path:
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
