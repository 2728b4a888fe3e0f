"""Jobs of a task study that worker processes can import."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from polyfuse.errors import UserError
from polyfuse.report.study_tables import Table
from polyfuse.report.task_page import Chart, Example
from polyfuse.studies.task_jobs import Outcome, TaskJob, TaskStudy
from polyfuse.studies.task_records import Column, Records, curve_chart, figure_table, gap_table, setting_chart

ROWS = 53


def learn(job: TaskJob, folder: Path) -> Outcome:
    """Leave a number behind for others."""
    _log(job, folder)
    (folder / "weight.txt").write_text(str(job.options["weight"]))
    return Outcome({"loss": 1.0 / (1 + job.seed)}, {"loss": [(1, 2.0), (2, 1.0 + 0.1 * job.seed)]})


def use(job: TaskJob, folder: Path) -> Outcome:
    """Read what the first job left."""
    _log(job, folder)
    weight = float((job.folder_of("learn", job.seed) / "weight.txt").read_text())
    hits = np.arange(ROWS) % 10 < 5 + weight + job.seed % 2
    picture = np.full((8, 8, 3), 7, np.uint8)
    shown = [Example(picture, ("<b>said</b>",), (("here", (0.1, 0.2, 0.5, 0.6)),), np.arange(4.0), "a title")]
    return Outcome({"accuracy": float(hits.mean())}, examples=shown, rows={"accuracy": hits})


def alone(job: TaskJob, folder: Path) -> Outcome:
    """Needs nothing; fails, dies or interrupts where the environment says so."""
    _log(job, folder)
    if os.environ.get("TOY_FAILS") == job.title:
        raise UserError("it is sick")
    if os.environ.get("TOY_DIES") == job.title:
        os._exit(7)
    if os.environ.get("TOY_INTERRUPTS") == job.title:
        if os.environ["TOY_PARENT"] == str(os.getpid()):
            raise KeyboardInterrupt
        os.kill(int(os.environ["TOY_PARENT"]), signal.SIGINT)
        time.sleep(60)  # the pool ends this process
    hits = np.arange(ROWS) % 10 < 3
    return Outcome({"accuracy": float(hits.mean())}, rows={"accuracy": hits})


def _log(job: TaskJob, folder: Path) -> None:
    assert not any(folder.iterdir())
    with (job.jobs_folder / "log.txt").open("a") as stream:
        stream.write(f"{job.title}\n")


def jobs(scale: str, weight: float = 2.0) -> list[TaskJob]:
    """What needs comes first in the list, so that order is by needs."""
    found = [
        TaskJob("use", seed, use, share, (("learn", seed),), {"share": share})
        for seed in range(2)
        for share in ("10 %", "100 %")
    ]
    found += [TaskJob("alone", seed, alone, share) for seed in range(2) for share in ("10 %", "100 %")]
    return [*found, *(TaskJob("learn", seed, learn, options={"weight": weight}) for seed in range(2))]


def tables(records: Records) -> list[Table]:
    columns = [Column("accuracy", "right", "%", best="high", setting="10 %"), Column("loss", "loss", "nats", "number")]
    pairs = [("use − alone", "use", "alone")]
    return [figure_table(records, "All", columns), gap_table(records, "Gains", pairs, columns[:1])]


def verdict(records: Records) -> list[str]:
    gap = records.gap("use", "alone", "accuracy", "10 %")
    return [f"use is {gap.verdict}" if gap else "nothing to compare"]


def charts(records: Records) -> list[Chart]:
    shares = {"10 %": 0.1, "100 %": 1.0}
    lines = [("use", "use"), ("alone", "alone")]
    return [
        setting_chart(
            records, "Shares", "accuracy", shares, lines, x="share of labels", y="right", flat=[("floor", 0.2)]
        ),
        curve_chart(records, "Loss", [("learn", "learn", "loss", "")], y="loss"),
    ]


TOY = TaskStudy("toy", "A toy", "Does it run?", ("It is a toy.",), jobs, tables, verdict, charts, ("smoke", "small"))
