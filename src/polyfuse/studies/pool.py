"""Worker processes that take jobs in order of urgency; a job may ask for more jobs when it is done.

Unlike ``concurrent.futures``, it ends at once on Ctrl-C and outlives a worker that dies: the job in its hands is
reported as failed, and another worker takes its place.
"""

import heapq
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch in this process on one thread: the same sums, to the bit, whatever the machine or the environment."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Job(Protocol):
    """What a worker runs; it is pickled."""

    @property
    def urgency(self) -> tuple[float, ...]:
        """Smaller comes first."""
        ...

    def run(self) -> Any:
        """Do it; the answer is pickled. It must not raise."""
        ...

    def died(self, status: int | None) -> Any:
        """The answer in the name of a worker that ended before it could give one."""
        ...


def run_jobs(jobs: Iterable[Job], workers: int, done: Callable[[Any, Any], Iterable[Job]]) -> None:
    """Run jobs, and those that ``done`` (called here, with a job and its answer) asks for.

    Args:
        jobs: The first ones.
        workers: Processes of one thread each; 1 = in this process.
        done: Told every answer as it comes; returns further jobs.
    """
    numbers = itertools.count()
    queue: list[tuple[tuple[float, ...], int, Job]] = []

    def add(more: Iterable[Job]) -> None:
        for job in more:
            heapq.heappush(queue, (job.urgency, next(numbers), job))

    add(jobs)
    if workers <= 1:
        with one_thread():
            while queue:
                job = heapq.heappop(queue)[2]
                add(done(job, job.run()))
        return
    with _one_thread_each():
        _run_in_processes(queue, add, min(workers, max(len(queue), 1)), done)


def _run_in_processes(
    queue: list[tuple[tuple[float, ...], int, Job]],
    add: Callable[[Iterable[Job]], None],
    workers: int,
    done: Callable[[Any, Any], Iterable[Job]],
) -> None:
    context = multiprocessing.get_context("spawn")
    processes: dict[Connection, BaseProcess] = {}
    busy: dict[Connection, Job] = {}
    idle: list[Connection] = []

    def hire() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        processes[ours] = process
        idle.append(ours)

    try:
        for _ in range(workers):
            hire()
        while queue or busy:
            while queue and idle:
                connection, job = idle.pop(), heapq.heappop(queue)[2]
                busy[connection] = job
                try:
                    connection.send(job)
                except OSError:
                    continue  # it died; the end of its pipe is seen below
            for ready in wait(list(busy)):
                connection = ready  # type: ignore[assignment]
                job = busy.pop(connection)
                try:
                    answer = connection.recv()
                except (EOFError, OSError):
                    process = processes.pop(connection)
                    process.join()
                    answer = job.died(process.exitcode)
                    hire()
                else:
                    idle.append(connection)
                add(done(job, answer))
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.join()


def _serve(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides
    torch.set_num_threads(1)
    try:
        while True:
            job = connection.recv()
            connection.send(job.run())
    except (EOFError, BrokenPipeError):
        return


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Variables that PyTorch reads when a worker loads it."""
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
