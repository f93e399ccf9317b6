"""SIGTERM, as `kill`, `docker stop` and a batch system send it: a command ends as after Ctrl-C, but sooner.

Python's own answer is to vanish at once, and what a command has started outside of its session, the kernels of
notebooks among them, would be left behind.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TERMINATED = 128 + signal.SIGTERM  # the exit status that shells give to it
PATIENCE_S = {False: 20.0, True: 4.0}  # for a cell to save its state: after Ctrl-C, and where SIGKILL soon follows
_asked = threading.Event()


@contextmanager
def termination() -> Iterator[None]:
    """Within, the first SIGTERM raises KeyboardInterrupt in the main thread; a second ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked.clear()
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def terminated() -> bool:
    """Whether SIGTERM came."""
    return _asked.is_set()


def patience() -> float:
    """Seconds that a running cell has to save its state before its kernel is killed."""
    return PATIENCE_S[terminated()]


def _stop(number: int, frame: FrameType | None) -> None:
    _asked.set()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise KeyboardInterrupt
