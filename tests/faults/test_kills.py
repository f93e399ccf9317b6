"""kill -9 at any change of a file, in any process: what goes on afterwards ends as if nothing had happened.

A few kills of quick stages here, and one of each other with `ALL=1`; `make faults` makes twenty of every stage.
"""

import os
import signal
import time
from pathlib import Path

import pytest
from harness import content, differences, leftovers, run
from stages import DATA, STAGES, Stage, nothing, torment

BY_NAME = {stage.name: stage for stage in STAGES}
QUICK = {"simulate", "data build", "archive"}
OFTEN = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in BY_NAME]


@pytest.mark.parametrize("name", OFTEN)
def test_what_was_killed_goes_on_to_the_same_result(tmp_path, name):
    kills = 3 if name in QUICK else 1
    tally = torment(BY_NAME[name], tmp_path, kills)
    assert tally.wrong == []
    assert tally.faults >= kills


CARELESS = """
from pathlib import Path
for number in range(40):
    with open("log.txt", "a") as stream:
        stream.write(f"{number}\\n")
Path(".new.tmp").write_text("x")
Path(".new.tmp").rename("done")
"""
LEAVES = """
import subprocess
subprocess.Popen(["sleep", "60"])
for number in range(9):
    open("log.txt", "w").close()
"""


@pytest.mark.parametrize(("code", "told"), [(CARELESS, "log.txt differs"), (LEAVES, "lives on")])
def test_a_stage_that_does_not_survive_is_found_out(tmp_path, code, told):
    """Lines written twice after a kill, and a process that is left behind."""
    tally = torment(Stage("careless", nothing, code, imports=()), tmp_path, 2)
    assert tally.survived < tally.faults and any(told in what for what in tally.wrong), tally


def test_every_change_of_a_file_is_a_moment(tmp_path):
    changes = ("os.mkdir('a')", "open('a/b', 'w').close()", "os.replace('a/b', 'a/c')", "os.remove('a/c')")
    code = "import os\n" + "\nopen(os.devnull).read()\n".join(changes)
    outcome = run(code, tmp_path / "work", imports=())
    assert outcome.status == 0 and outcome.events == 4
    outcome = run(code, tmp_path / "again", at=4, imports=())
    assert outcome.status == -signal.SIGKILL and os.listdir(tmp_path / "again" / "a") == ["c"]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(tmp_path):
    """As by a system that lacks memory: the stage goes on, and gives what it gives otherwise."""
    stage = BY_NAME["segment, 2 workers"]
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    stage.prepare(inputs)
    assert stage.command(inputs, tmp_path / "whole").wait().status == 0
    command = stage.command(inputs, tmp_path / "work")
    until, killed = time.monotonic() + 60, 0
    while command.poll() is None and time.monotonic() < until and not killed:
        killed = next((pid for pid in command.family() if "spawn_main" in command_line(pid)), 0)
    os.kill(killed, signal.SIGKILL)
    outcome = command.wait()
    assert outcome.status == 0, outcome.printed
    assert differences(content(tmp_path / "work"), content(tmp_path / "whole")) == []
    assert leftovers(tmp_path / "work") == [] and command.orphans() == []


def test_too_little_memory_is_a_sentence(tmp_path):
    code = (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))\nfrom ucore import cli\nimport numpy\n"
    )
    code += "cli.simulate = lambda: numpy.ones(2**33)\nucore('simulate')"
    outcome = run(code, tmp_path / "work", imports=DATA)
    assert outcome.status == 2 and outcome.printed.startswith("ucore: There is too little memory")
