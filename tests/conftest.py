"""What every test process has in common."""

import signal
import threading

import pytest


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_interrupts() -> None:
    """Python's own answer to SIGINT: the workers of pytest-xdist begin with it ignored, and tests send it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
