"""Commands that faults happen to: started, killed, started again; what they left, and whether anything lives on.

outcome = Command("ucore('simulate', '--out', 'set')", folder).wait()
Command(code, folder, at=7, how="group").wait()      # killed at its seventh change of the folder, see `tripwire`
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
HOOK = HERE / "hook"
sys.path.insert(0, str(HOOK))
from tripwire import WIDTH  # noqa: E402

PATIENCE = 240  # seconds that a command may take
# Never the same twice: how long it took, when, where.
CLOCKS = re.compile(r"seconds|^time|^this_call$|^machine$|^commit$|peak_memory|^created|^started|mtime")


class Outcome(NamedTuple):
    """How a command ended: exit status, or minus the signal; what it printed; how often it changed files."""

    status: int
    printed: str
    events: int


class _Nursery:
    """The process of `nursery`, started when first needed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def ask(self, **job: Any) -> Any:
        if self.process is None:
            paths = [str(HOOK), *filter(None, [os.environ.get("PYTHONPATH")])]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
            self.process = subprocess.Popen([sys.executable, str(HERE / "nursery.py")], env=environment, text=True,
                                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
        assert self.process.stdin and self.process.stdout
        print(json.dumps(job), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


nursery = _Nursery()


class Command:
    """A running command: Python code in which `ucore(*arguments)` is the command line.

    folder: its current folder, in which events count. at, how: the fault, see `tripwire`. clock: seconds by which its
    clock is wrong. imports: what it would import anyway, loaded once for all commands.
    """

    def __init__(
        self, code: str, folder: Path, at: int = 0, how: str = "self", clock: float = 0,
        imports: tuple[str, ...] = ("ucore.cli",), **environment: str,
    ) -> None:  # fmt: skip
        self.token = uuid.uuid4().hex
        notes = folder.parent / f"{folder.name}.notes"
        notes.mkdir(exist_ok=True)
        self.log, self.count = notes / f"{self.token}.log", notes / f"{self.token}.count"
        folder.mkdir(parents=True, exist_ok=True)
        wire = {"FAULT_ROOT": str(folder.absolute()), "FAULT_COUNT": str(self.count), "FAULT_AT": str(at)}
        wire |= {"FAULT_HOW": how, "FAULT_CLOCK": str(clock), "FAULT_TOKEN": self.token}
        job = {"code": code, "folder": str(folder), "log": str(self.log), "environment": {**wire, **environment}}
        job["imports"] = imports
        self.pid = nursery.ask(start=job)["pid"]
        self.status: int | None = None
        self.started = time.monotonic()

    def poll(self) -> int | None:
        if self.status is None:
            self.status = nursery.ask(poll=self.pid)["status"]
        return self.status

    def wait(self, seconds: float = PATIENCE) -> Outcome:
        """Until the command has ended; a hang is an error."""
        until = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > until:
                self.kill("group")
                raise AssertionError(f"the command hangs after {seconds:.0f} s; it printed:\n{self.printed()}")
            time.sleep(0.005)
        assert self.status is not None
        return Outcome(self.status, self.printed(), len(self.events()))

    def kill(self, how: str = "main", number: int = signal.SIGKILL) -> None:
        if self.poll() is None:
            (os.killpg if how == "group" else os.kill)(self.pid, number)

    def printed(self) -> str:
        return self.log.read_text("utf-8", errors="replace") if self.log.exists() else ""

    def events(self) -> list[str]:
        """What the command did to files, in order."""
        data = self.count.read_bytes() if self.count.exists() else b""
        return [data[k : k + WIDTH].decode(errors="replace").strip() for k in range(0, len(data), WIDTH)]

    def family(self) -> list[int]:
        """Processes of this command that live: of its session, or with its token in their environment."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if not entry.name.isdecimal() or int(entry.name) == os.getpid():
                    continue
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                own = int(fields[3]) == self.pid or self.token.encode() in (entry / "environ").read_bytes()
                if own and fields[0] not in "ZX":
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def orphans(self, seconds: float = 8) -> list[str]:
        """After the end: what still lives when `seconds` have passed, by command line; it is ended then."""
        until = time.monotonic() + seconds
        while (left := self.family()) and time.monotonic() < until:
            time.sleep(0.05)
        lines = []
        for pid in left:
            try:
                lines.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200])
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        return lines


def run(code: str, folder: Path, **settings: Any) -> Outcome:
    """Run a command to its end."""
    return Command(code, folder, **settings).wait()


def refused(outcome: Outcome) -> str:
    """The one sentence of a command that could not go on; fails for anything else, a traceback above all."""
    assert outcome.status == 2, outcome
    assert "Traceback" not in outcome.printed, outcome.printed
    last = outcome.printed.strip().splitlines()[-1]
    assert last.startswith("ucore: "), outcome.printed
    return last


# --- what a folder holds ------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, str]:
    """File -> digest of what it says, without what differs from run to run: seconds, machine, how rows are packed.

    Parts of a growing table count as one table. Names of temporary files are kept: there should be none.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            continue
        if path.name.startswith("part-") and path.suffix == ".parquet":
            found.setdefault(f"{Path(name).parent}/parts", _digest(_rows(path.parent)))
        elif path.name.startswith("events.out.tfevents"):
            found.setdefault(f"{Path(name).parent}/curves", _digest(_curves(path.parent)))
        elif path.suffix in (".json", ".pt"):
            found[name] = _digest(_timeless(_read(path)))
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def leftovers(folder: Path) -> list[str]:
    """Temporary files, and parts put aside as damaged."""
    left = [path for pattern in (".*.tmp", "*.damaged", "*.tmp") for path in folder.rglob(pattern)]
    return sorted({str(path.relative_to(folder)) for path in left})


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _read(path: Path) -> Any:
    if path.suffix == ".json":
        return json.loads(path.read_text("utf-8"))
    import torch

    return torch.load(path, weights_only=True)


def _timeless(value: Any) -> Any:
    """Without clocks, and tensors as bytes."""
    if isinstance(value, dict):
        return {
            str(key): _timeless(each) for key, each in sorted(value.items(), key=str) if not CLOCKS.search(str(key))
        }
    if isinstance(value, list | tuple):
        return [_timeless(each) for each in value]
    return (str(value.dtype), list(value.shape), value.numpy().tobytes()) if hasattr(value, "numpy") else value


def _rows(folder: Path) -> list[Any]:
    import pyarrow.parquet as pq

    rows = [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.ParquetFile(path).read().to_pylist()]
    return sorted((_timeless(row) for row in rows), key=str)


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
