"""How long a study still takes."""

import time
from collections.abc import Iterable, Sequence

from polyfuse.studies.jobs import StudyJob


class Clock:
    """How long the rest takes, from the seconds of what is done, data set by data set."""

    def __init__(self) -> None:
        self.left: dict[tuple[str, str], int] = {}
        self.spent: dict[tuple[str, str], list[float]] = {}
        self.started = self.said = time.perf_counter()
        self.finished = 0

    def start(self) -> None:
        """Begin to count."""
        self.started = self.said = time.perf_counter()

    def expect(self, jobs: Iterable[StudyJob]) -> None:
        """More to do."""
        for job in jobs:
            self.left[_sort(job)] = self.left.get(_sort(job), 0) + 1

    def forget(self, jobs: Iterable[StudyJob]) -> None:
        """Not to do after all."""
        for job in jobs:
            self.left[_sort(job)] -= 1

    def tick(self, job: StudyJob, seconds: float) -> str:
        """Count one; a line about the rest, every few seconds."""
        self.left[_sort(job)] -= 1
        self.spent.setdefault(_sort(job), []).append(seconds)
        self.finished += 1
        now = time.perf_counter()
        rest = sum(self.left.values())
        if now - self.said < 5.0 and rest:
            return ""
        self.said = now
        gone = now - self.started
        total = sum(sum(times) for times in self.spent.values())
        everything = total / self.finished
        ahead = sum(count * _mean(self.spent.get(kind), everything) for kind, count in self.left.items())
        remaining = f", about {_duration(ahead * gone / max(total, 1e-9))} left" if rest else ""
        return f"{self.finished} of {self.finished + rest} jobs, {_duration(gone)}{remaining} ({job.place})"


def _sort(job: StudyJob) -> tuple[str, str]:
    return str(job.place), job.what


def _mean(times: Sequence[float] | None, otherwise: float) -> float:
    return sum(times) / len(times) if times else otherwise


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
