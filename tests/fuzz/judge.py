"""What a reader may do with a damaged file: work, or refuse it in words; and whether it did."""

import contextlib
import io
import os
import re
import resource
import shutil
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mutations import damage_bytes, damage_document, edits, put_whole
from shapes import BYTES, Shape, copied

import ucore
from ucore.errors import UserError

SECONDS = 10.0
ROOM = 2**26  # bytes that any reader may take beside what a whole file takes
ADDRESSES = 2**32  # bytes of address space that a case may ask for, beside what the process has
PACKAGE = str(Path(ucore.__file__).parent)
LEAK = re.compile(r"Traceback|<class |[A-Z]\w+(Error|Exception)\(|\bline \d+, in ")


@dataclass
class Target:
    """A reader of bytes from outside.

    covers: "module.function" of what it goes through, which is checked with whole files. make: writes whole files into
    a folder. read: reads and uses all of them. victims: glob -> shape of the files that are damaged, one a case.
    named: whether a refusal names a file. cases: in `make test`. seal: after the damage, what an attacker would put
    right (checksums).
    """

    name: str
    covers: tuple[str, ...]
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    victims: Mapping[str, Shape]
    cases: int = 150
    named: bool = True
    seal: Callable[[Path], Any] | None = None
    room: int = ROOM
    limited: bool = True


@dataclass
class Tally:
    """What came of a reader's cases.

    wrong: where it went wrong -> the first such case, told. entered: "module.function" of the package, of what the
    whole files went through.
    """

    name: str
    worked: int = 0
    refused: int = 0
    count_wrong: int = 0
    wrong: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    entered: set[str] = field(default_factory=set)

    @property
    def cases(self) -> int:
        return self.worked + self.refused + self.count_wrong


def fuzz(target: Target, place: Path, cases: int) -> Tally:
    """Try `cases` damaged files; always the same ones."""
    whole, around, tally = place / "whole", place / "around", Tally(target.name)
    whole.mkdir(parents=True)
    target.make(whole)
    victims = [(path.relative_to(whole), shape) for pattern, shape in target.victims.items()
               for path in sorted(whole.glob(pattern)) if path.is_file()]  # fmt: skip
    assert {shape for _, shape in victims} == set(target.victims.values()), "a pattern fits no file"
    arena = Arena(target, whole, around)
    arena.check_whole(tally.entered)
    victim, seals = st.sampled_from(victims), st.booleans()

    @settings(max_examples=cases, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(data=st.data())
    def one(data: Any) -> None:
        name, shape = data.draw(victim)
        changes = data.draw(edits(shape.parse is not None))
        sealed = target.seal is not None and data.draw(seals)
        said = arena.judge(name, shape, changes, sealed)
        if said == "worked":
            tally.worked += 1
        elif said == "refused":
            tally.refused += 1
        else:
            tally.count_wrong += 1
            key = said.split("\n", 1)[0]
            tally.wrong.setdefault(key, f"{target.name}: {name} {changes!r}{' sealed' * sealed}\n{said}")

    began = time.perf_counter()
    one()
    tally.seconds = time.perf_counter() - began
    return tally


class Arena:
    """A folder for one case after another, with watched ground around it."""

    def __init__(self, target: Target, whole: Path, around: Path) -> None:
        self.target, self.whole, self.around = target, whole, around
        self.case, self.cwd, self.guard = around / "case", around / "cwd", around / "guard.txt"
        self.guard.parent.mkdir()
        self.guard.write_text("untouched")
        self.canary = around / "canary"
        self.peak = 0

    def check_whole(self, seen: set[str]) -> None:
        """That the whole files are read at all, how much memory that takes, and by which functions: `seen` gets them.

        What is imported late, is now; the memory is that of a second time.
        """
        for watched in (_entered(seen), contextlib.nullcontext()):
            self._fresh()
            with watched:
                said, taken = self._read()
            assert said == "worked", said
        self.peak = taken

    def judge(self, name: Path, shape: Shape, changes: list[Any], sealed: bool) -> str:
        """ "worked", "refused", or what was wrong: a line that says where, and more."""
        self._fresh()
        path = self.case / name
        if changes[0][0] == "whole":
            put_whole(path, changes[0][1], self.canary)
        else:
            path.write_bytes(damaged(path.read_bytes(), shape, changes))
        if sealed and self.target.seal is not None:
            with contextlib.suppress(Exception):  # a file too broken to be sealed stays so
                self.target.seal(self.case)
        began = time.perf_counter()
        said, taken = self._read(name)
        if time.perf_counter() - began > SECONDS:
            return f"took {time.perf_counter() - began:.0f} s"
        if taken > 2 * self.peak + self.target.room:
            return f"took {taken / 2**20:.0f} MB more than before, {self.peak / 2**20:.0f} MB when whole"
        there = {entry.name for entry in self.around.iterdir()}
        if self.canary.exists():
            self.canary.rmdir()
            return "ran code of the file"
        if there - {"case", "cwd", "guard.txt"} or self.guard.read_text() != "untouched":
            return f"wrote outside of its folder: {sorted(there)}"
        return said

    def _fresh(self) -> None:
        shutil.rmtree(self.case, ignore_errors=True)
        shutil.rmtree(self.cwd, ignore_errors=True)
        self.cwd.mkdir()
        shutil.copytree(self.whole, self.case, symlinks=True)

    def _read(self, name: Path | None = None) -> tuple[str, int]:
        before, back = _peak(), os.getcwd()
        os.chdir(self.cwd)
        try:
            with warnings.catch_warnings(), _quiet(), _less_memory(self.target.limited):
                warnings.simplefilter("ignore")
                self.target.read(self.case)
            said = "worked"
        except UserError as error:
            said = self._refusal(str(error), name)
        except (Exception, SystemExit) as error:
            said = _where(error)
        finally:
            os.chdir(back)
        return said, _peak(reset=False) - before

    def _refusal(self, text: str, name: Path | None) -> str:
        flat = " ".join(text.split())
        named = any(word.startswith("/") and Path(word).is_file() for word in flat.split())  # another, that it names
        if (
            self.target.named
            and name is not None
            and name.name not in flat
            and str(self.case) not in flat
            and not named
        ):
            return f"names no file: {flat[:300]}"
        if not flat.isprintable():
            return f"cannot be printed: {ascii(flat)[:300]}"
        if LEAK.search(flat) or len(flat) > 3000 or not flat:
            return f"is no sentence: {len(flat)} signs, {flat[:300]}"
        return "refused"


def damaged(data: bytes, shape: Shape, changes: list[Any]) -> bytes:
    """The file after the edits: of its document where they are, and it can still be written."""
    if shape.parse is not None and changes[0][0] in ("put", "drop", "twice", "swap", "rename", "inside"):
        try:
            return shape.dump(damage_document(copied(parsed(data, shape)), changes))  # type: ignore[misc]
        except Exception:  # the document cannot be written that way
            changes = [("flip", change[1] % 10_000, change[-1] % 8) for change in changes]
    return damage_bytes(data, changes)


@lru_cache(64)
def parsed(data: bytes, shape: Shape) -> Any:
    assert shape is not BYTES and shape.parse is not None
    return shape.parse(data)


def _where(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/ucore/" in frame.filename]
    last = frames[-1] if frames else None
    place = f"{Path(last.filename).stem}.{last.name}:{last.lineno}" if last else "?"
    told = "".join(traceback.format_exception(error))
    return f"{type(error).__name__} in {place}\n{told[-2500:]}"


@contextlib.contextmanager
def _entered(seen: set[str]) -> Any:
    """Within, `seen` gets "module.function" of all of the package that runs, also in threads that begin here."""
    codes = set()

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            codes.add(frame.f_code)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
        here = [code for code in list(codes) if os.path.dirname(code.co_filename) == PACKAGE]
        seen |= {f"{Path(code.co_filename).stem}.{code.co_name}" for code in here}


@contextlib.contextmanager
def _quiet() -> Any:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def _less_memory(limited: bool) -> Any:
    """Within, the process gets `ADDRESSES` bytes more and no others: what asks for terabytes fails and is seen."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if limited:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESSES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _peak(reset: bool = True) -> int:
    """Most bytes that the process held since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
