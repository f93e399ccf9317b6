"""Within a process under test: count what it does to files in a folder, and let a fault happen at one of these events.

An event is what changes a folder: a file opened for writing, a rename, a removal, a folder made, an fsync. All
processes of a command share one count, so that the K-th event is one moment of the whole command. Python reports
events before they happen, which is the state that a kill just before leaves. What libraries write by themselves
(pyarrow, torch) goes into files that Python then renames.

FAULT_ROOT: the folder. FAULT_COUNT: a file outside of it, a line an event. FAULT_AT: at which event; 0: never.
FAULT_HOW: "self", "main" or "group": SIGKILL for the process that meets the event, for the command's first process, or
for all of them; "full": from this event on no file can be opened for writing, as on a full disk.
FAULT_CLOCK: seconds that the clock is wrong by.
"""

import errno
import os
import signal
import sys
import threading
import time

WIDTH = 160  # bytes of a line of the count: where a line ends tells its number
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_inside = threading.local()


def arm() -> None:
    """Start counting, where the environment asks for it."""
    if shift := float(os.environ.get("FAULT_CLOCK", "0")):
        clock, clock_ns = time.time, time.time_ns
        time.time = lambda: clock() + shift
        time.time_ns = lambda: clock_ns() + int(shift * 10**9)
    if "FAULT_ROOT" not in os.environ:
        return
    os.environ.setdefault("FAULT_MAIN", str(os.getpid()))
    wire, real_fsync = _Wire(), os.fsync
    sys.addaudithook(wire)

    def fsync(handle: int) -> None:
        wire("fsync", (wire.root,))
        real_fsync(handle)

    os.fsync = fsync


class _Wire:
    def __init__(self) -> None:
        self.root, self.count = os.environ["FAULT_ROOT"], os.environ["FAULT_COUNT"]
        self.at, self.how = int(os.environ.get("FAULT_AT", "0")), os.environ.get("FAULT_HOW", "self")
        self.main = int(os.environ["FAULT_MAIN"])
        self.pid, self.handle = 0, -1
        self.lock = threading.Lock()

    def __call__(self, event: str, args: tuple) -> None:
        if event != "open" and event not in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "fsync"):
            return
        if getattr(_inside, "busy", False) or not (told := self._concerns(event, args)):
            return
        _inside.busy = True
        try:
            with self.lock:
                number = self._noted(f"{event} {told}")
        finally:
            _inside.busy = False
        if self.at and self.how == "full":
            if number >= self.at and event in ("open", "os.mkdir"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), told)
        elif number == self.at:
            if self.how == "group":
                os.killpg(self.main, signal.SIGKILL)
            os.kill(self.main if self.how == "main" else os.getpid(), signal.SIGKILL)

    def _concerns(self, event: str, args: tuple) -> str:
        """The path below the root that is about to change; empty if none is."""
        place = args[0]
        if event == "open" and (isinstance(place, int) or not (args[2] or 0) & WRITES):
            return ""
        try:
            path = os.path.abspath(os.fsdecode(place))
        except (TypeError, ValueError):
            return ""
        return path if path == self.root or path.startswith(self.root + os.sep) else ""

    def _noted(self, text: str) -> int:
        """Append a line; its number. The handle is a process's own, as a forked one would share its position."""
        if self.pid != os.getpid():
            self.pid, self.handle = os.getpid(), os.open(self.count, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(self.handle, f"{self.pid} {text}"[: WIDTH - 1].encode()[: WIDTH - 1].ljust(WIDTH - 1) + b"\n")
        return os.lseek(self.handle, 0, os.SEEK_CUR) // WIDTH
