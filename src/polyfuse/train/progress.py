"""The progress of a run on stderr: a bar on a terminal, one line per evaluation in a log file."""

import sys
import time
from types import TracebackType
from typing import Any

from torch import Tensor

_REFRESH_SECONDS = 0.2


class Bar:
    """Steps, rate, time left and losses.

    Args:
        total: Steps in all.
        done: Steps done before, by a run that is resumed.
        enabled: False shows nothing.
    """

    def __init__(self, total: int, done: int = 0, *, enabled: bool = True) -> None:
        self.total, self.first, self.enabled = total, done, enabled
        self._progress: Any = None
        self._task: Any = None
        self._losses = {"train": "-", "validation": "-"}
        self._started = self._shown = time.perf_counter()

    def __enter__(self) -> "Bar":
        if self.enabled and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]:.0f} steps/s"),
                TimeRemainingColumn(),
                TextColumn("loss {task.fields[train]} · validation {task.fields[validation]}"),
                console=Console(stderr=True),
                auto_refresh=False,
            )
            self._progress.start()
            self._task = self._progress.add_task("", total=self.total, completed=self.first, rate=0.0, **self._losses)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.refresh()
            self._progress.stop()

    def step(self, done: int, loss_sum: Tensor, rows: int) -> None:
        """Show ``done`` steps, a few times per second; only then is the loss read from the device."""
        if self._progress is None:
            return
        now = time.perf_counter()
        if now - self._shown < _REFRESH_SECONDS:
            return
        self._shown = now
        self._losses["train"] = f"{loss_sum.item() / max(rows, 1):.3f}"
        self._update(done)

    def evaluated(self, record: dict[str, Any]) -> None:
        """Show an evaluation."""
        if not self.enabled:
            return
        found = {"train": record["train_loss"], "validation": record.get("validation_loss")}
        self._losses = {name: "-" if loss is None else f"{loss:.3f}" for name, loss in found.items()}
        if self._progress is not None:
            self._update(record["step"])
        else:
            left = (self.total - record["step"]) / max(self._rate(record["step"]), 1e-9)
            print(
                f"step {record['step']}/{self.total}  loss {self._losses['train']}  "
                f"validation {self._losses['validation']}  {self._rate(record['step']):.0f} steps/s  {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def _rate(self, done: int) -> float:
        return (done - self.first) / max(time.perf_counter() - self._started, 1e-9)

    def _update(self, done: int) -> None:
        self._progress.update(self._task, completed=done, rate=self._rate(done), refresh=True, **self._losses)
