"""Workers for tests of stages, in a module that a new process imports at once."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ucore.errors import DataError


def squares(places: str = "") -> Callable[[list[Any]], list[Any]]:
    """A worker that squares; "raise", "kill once" and so on stand for what may go wrong with an item."""

    def one(item: Any) -> Any:
        if item == "raise":
            raise DataError("this item\nis bad")
        if item == "kill" or (item == "kill once" and first_time(Path(places) / "killed")):
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "exit":
            os._exit(7)
        if item == "lambda":
            return lambda: None
        return os.getpid() if item == "pid" else os.environ["OMP_NUM_THREADS"] if item == "threads" else item * item

    return lambda items: [one(item) for item in items]


def first_time(marker: Path) -> bool:
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def too_few() -> Callable[[list[Any]], list[Any]]:
    return lambda items: items[1:]


def refuses() -> Callable[[list[Any]], list[Any]]:
    raise DataError("There is no checkpoint sam.pth.")


def broken() -> Callable[[list[Any]], list[Any]]:
    return [][1]


def dies() -> Callable[[list[Any]], list[Any]]:
    os.kill(os.getpid(), signal.SIGKILL)
    return squares()


def sleeps() -> Callable[[list[Any]], list[Any]]:
    return lambda items: [time.sleep(0.05) or os.getpid() for _ in items]
