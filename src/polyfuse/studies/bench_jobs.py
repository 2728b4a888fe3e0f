"""The jobs of a study of fusions: on every data set its facts, then tries and trainings of every arm, then oracles."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyfuse.datasets import DATASETS, DataSet
from polyfuse.evaluate.subsets import all_subsets
from polyfuse.studies.arms import Plan
from polyfuse.studies.compare import oracle_plan
from polyfuse.studies.folder import file_name
from polyfuse.studies.jobs import Place, StudyJob, checksum
from polyfuse.studies.results import shard_meta
from polyfuse.studies.study import Size, Study

Settings = Mapping[str, Any] | None

FACTS = ""
"""The arm of records that belong to a data set."""

RESEEDED = 1000
"""Added to the seed of the second block of oracles: the difference of the blocks is the noise of a regret."""

_MANY = 15


class ArmJobs:
    """The jobs of one arm on one data set: tries first, where there are several, then a job per seed."""

    def __init__(self, name: str, tries: Sequence[StudyJob], final: Callable[[Settings], list[StudyJob]]):
        self.name, self.tries, self.jobs_with = name, tries, final
        self.waiting: set[Path] = set()

    def final(self) -> list[StudyJob] | None:
        """The jobs with the settings of the lowest validation loss; None if no try came through."""
        if not self.tries:
            return self.jobs_with(None)
        best, found = math.inf, None
        for job in self.tries:
            loss = float(shard_meta(job.path).get("loss", math.inf)) if is_done(job) else math.inf
            if loss < best:
                best, found = loss, job.settings
        return None if found is None else self.jobs_with(found)


class DataJobs:
    """The jobs of one data set."""

    def __init__(
        self, study: Study, size: Size, folder: Path, place: Place, data: DataSet, plans: Sequence[Plan]
    ) -> None:
        self.study, self.size, self.folder, self.place, self.plans = study, size, folder, place, plans
        self.names = tuple(data.train.modalities)
        self.checksum = checksum(data)
        subsets = len(all_subsets(len(self.names)))
        self.judge_rows = subsets * (len(data.test) + len(data.validation)) + 12 * len(self.names) * len(data.test)
        self.resplit = place.dataset in DATASETS and DATASETS[place.dataset].resplit
        oracles = 2 * size.oracles * subsets * 0.5
        self.weight = sum(self._weight(plan) for plan in plans) * size.seeds + oracles * self._weight(plans[0])

    def arms(self, number: int) -> list[ArmJobs]:
        """In the order of the records."""
        size = self.size
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
                path=self.folder / "jobs" / self.place.folder / f"{file_name(file)}.parquet",
                load=self.study.load,
                evaluate=self.study.evaluate,
                calibrate=self.study.calibrate,
                encode=self.study.encode,
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
        made.append(ArmJobs(FACTS, [], _always(facts)))
        for plan in self.plans:
            tries = plan.tries[: size.tries]
            tried = [
                job("try", plan.name, 0, f"{plan.name}-try-{k}", plan=plan.trying(settings, 0), settings=settings)
                for k, settings in enumerate(tries)
            ]
            made.append(ArmJobs(plan.name, tried if len(tries) > 1 else [], final(plan)))
        return made + self._oracles(job)

    def _oracles(self, job: Callable[..., StudyJob]) -> list[ArmJobs]:
        size = self.size
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
            made.append(ArmJobs(name, [], _always(jobs)))
        return made

    def _weight(self, plan: Plan) -> float:
        steps = plan.train.steps or 1000
        return 3.0 * steps * plan.train.batch_size + self.judge_rows


def _always(jobs: list[StudyJob]) -> Callable[[Settings], list[StudyJob]]:
    return lambda settings: jobs


def is_done(job: StudyJob) -> bool:
    """Whether its shard is there, of these settings, and did not fail."""
    meta = shard_meta(job.path)
    return meta.get("fingerprint") == job.fingerprint and not meta["failed"]
