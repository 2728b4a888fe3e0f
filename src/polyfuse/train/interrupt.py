"""Ctrl-C and SIGTERM while a loop trains."""

import contextlib
import signal
import threading
from types import FrameType
from typing import Any, NoReturn


class Interrupt(contextlib.AbstractContextManager["Interrupt"]):
    """Turns the first Ctrl-C or SIGTERM into ``asked``, so that no step is cut in half; the second one ends at once."""

    def __init__(self, enabled: bool) -> None:
        # Python takes signals in the main thread only.
        self.enabled = enabled and threading.current_thread() is threading.main_thread()
        self.asked = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupt":
        if self.enabled:
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *details: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def end(self) -> NoReturn:
        """Leave as the signal would have."""
        if self.asked == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt

    def _ask(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = bool(self.asked), number
        if again:
            self.end()
