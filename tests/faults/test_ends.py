"""How commands end when they are asked to, or when a part of them dies: soon, with nothing left behind, resumable."""

import signal
import socket
import time
from pathlib import Path

import pytest
from harness import Command, leftovers, run
from stages import CAPTION, DATA, INDEX, NOTEBOOKS, PARTS, SEGMENT, SIMULATE, TORCH, TRAIN, notebook, rsicd, trained

SLOW = pytest.mark.slow
SOON_S = 12  # the machine may be busy; alone it takes a second or two
REPRODUCE = """
import json
from ucore import cli, reproduce
def series(): reproduce.reproduce({parameters}, {names}, "out", progress=False, jobs=2)
cli.reproduce = series
ucore("reproduce")
"""


def until(there: Path, command: Command, seconds: float = 90) -> None:
    """Wait for a file that says that the command has come so far."""
    last = time.monotonic() + seconds
    while not there.exists():
        assert command.poll() is None and time.monotonic() < last, command.printed()
        time.sleep(0.02)


def ends(command: Command, status: int = 143) -> str:
    """After SIGTERM: it ends soon with that status, one sentence, and no process of it is left; what it printed."""
    asked = time.monotonic()
    command.kill("main", signal.SIGTERM)
    outcome = command.wait(60)
    assert time.monotonic() - asked < SOON_S
    assert outcome.status == status, outcome.printed
    assert "Traceback" not in outcome.printed, outcome.printed
    assert command.orphans(5) == []
    return outcome.printed


SLEEPS = """import pathlib, time
pathlib.Path("on").touch()
try:
    time.sleep(wait)
except KeyboardInterrupt:
    pathlib.Path("saved").touch()
    raise
"""
STUBBORN = """import pathlib, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path("on").touch()
time.sleep(wait)
"""


def test_sigterm_ends_a_notebook_and_its_kernel_after_the_cell_has_saved(tmp_path):
    path = notebook(tmp_path / "n" / "a.ipynb", SLEEPS, "wait = 300")
    command = Command(f"ucore('run', {str(path)!r}, '--out', 'out')", tmp_path / "work", imports=NOTEBOOKS)
    until(tmp_path / "work" / "on", command)
    assert "ucore: Stopped.\n" in ends(command)
    assert (tmp_path / "work" / "saved").exists()
    assert "KeyboardInterrupt" in (tmp_path / "work" / "out" / "a" / "a.ipynb").read_text()
    again = run(f"ucore('run', {str(path)!r}, '-p', 'wait=0', '--out', 'out')", tmp_path / "work")
    assert again.status == 0 and leftovers(tmp_path / "work") == []


@pytest.mark.parametrize("code", [pytest.param(SLEEPS, marks=SLOW), STUBBORN], ids=["saves", "does not listen"])
def test_sigterm_ends_a_series_and_its_kernels(tmp_path, code):
    names = [str(notebook(tmp_path / "n" / f"{name}.ipynb", code.replace('"on"', f'"{name}.on"'), "wait = 300"))
             for name in "ab"]  # fmt: skip
    series = REPRODUCE.replace("{names}", repr(names))
    command = Command(series.replace("{parameters}", "{}"), tmp_path / "work", imports=NOTEBOOKS)
    for name in "ab":
        until(tmp_path / "work" / f"{name}.on", command)
    assert len(command.family()) >= 3
    printed = ends(command)
    assert printed.count("failed") == 2 and "ucore: Stopped.\n" in printed
    again = run(series.replace("{parameters}", '{"wait": 0}'), tmp_path / "work")
    assert again.status == 0 and again.printed.count("  ok") == 2
    assert leftovers(tmp_path / "work") == []


def test_kernels_end_with_a_command_that_is_killed(tmp_path):
    path = notebook(tmp_path / "n" / "a.ipynb", SLEEPS, "wait = 300")
    command = Command(f"ucore('run', {str(path)!r}, '--out', 'out')", tmp_path / "work", imports=NOTEBOOKS)
    until(tmp_path / "work" / "on", command)
    command.kill("main")
    assert command.wait().status == -signal.SIGKILL
    assert command.orphans() == []


def test_a_kernel_that_is_killed_is_named(tmp_path):
    cells = ("print('be' + 'fore')", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "print('af' + 'ter')")
    path = notebook(tmp_path / "n" / "04_train.ipynb", "\n---\n".join(cells))
    command = Command(f"ucore('run', {str(path)!r}, '--out', 'out')", tmp_path / "work", imports=NOTEBOOKS)
    outcome = command.wait(90)
    assert outcome.status == 1
    (line,) = [line for line in outcome.printed.splitlines() if line.startswith("ucore: ")]
    assert "The kernel of 04_train died in cell In [3] (`import os, signal`)" in line
    assert "too little memory" in line and "Traceback" not in outcome.printed
    kept = (tmp_path / "work" / "out" / "04_train" / "04_train.ipynb").read_text()
    assert "before" in kept and "DeadKernelError" in kept and "after" not in kept
    assert command.orphans() == []


LONG = {
    "simulate": SIMULATE.replace('"--tiles", 12', '"--tiles", 200'),
    "segment": SEGMENT.replace("WORKERS", "2"),
    "caption": CAPTION.replace("CAPTIONER", "micro").replace('"--limit", 16,', ""),
    "train": TRAIN.replace("head_epochs=2", "head_epochs=300").replace("=8", "=2"),
}
FIRST = {  # what lies there when a command is at work, and what it imports
    "simulate": ("set/parts/*.json", DATA),
    "segment": ("segments/*/part-*.parquet", PARTS),
    "caption": ("captions/*/part-*.parquet", TORCH),
    "train": ("run/state.pt", TORCH),
}


@pytest.mark.parametrize("name", ["simulate", *(pytest.param(name, marks=SLOW) for name in list(LONG)[1:])])
def test_sigterm_ends_a_long_command_and_its_workers(tmp_path, name):
    rsicd(tmp_path / "inputs")
    many = name in ("segment", "caption")
    if many:
        from makers import make_rsicd

        make_rsicd(tmp_path / "inputs" / "more", 300, 100, 100, size=160)
    code = LONG[name].replace("{inputs}/rsicd", "{inputs}/more" if many else "{inputs}/rsicd")
    code = code.replace("{inputs}", str(tmp_path / "inputs"))
    first, imports = FIRST[name]
    command = Command(code, tmp_path / "work", imports=imports)
    last = time.monotonic() + 120
    while not list((tmp_path / "work").glob(first)):
        assert command.poll() is None and time.monotonic() < last, command.printed()
        time.sleep(0.02)
    printed = ends(command)
    assert "ucore: Stopped" in printed
    assert leftovers(tmp_path / "work") == []


@pytest.mark.slow
def test_sigterm_ends_the_application_and_its_server(tmp_path):
    trained(tmp_path)  # the application wants an index with its checkpoint
    made = run(INDEX.replace("{inputs}", str(tmp_path)).replace("*ENGINE", ""), tmp_path / "made", imports=TORCH)
    assert made.status == 0, made.printed
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"ucore('app', '--index', {str(tmp_path / 'made' / 'index')!r}, '--port', {port}, '--no-browser')"
    command = Command(code, tmp_path / "work")
    last = time.monotonic() + 120
    while True:
        with socket.socket() as there:
            if there.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert command.poll() is None and time.monotonic() < last, command.printed()
        time.sleep(0.1)
    ends(command)
