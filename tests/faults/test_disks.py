"""Disks that are full, folders that are read-only, clocks that jump, and two commands that want one folder."""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Command, content, differences, leftovers, refused, run
from stages import CAPTION, DATA, PARTS, SEGMENT, SIMULATE, STAGES, TORCH, TRAIN, rsicd, starve

from ucore.files import only_writer

BY_NAME = {stage.name: stage for stage in STAGES}


@pytest.fixture
def mounted(tmp_path) -> Iterator[Path]:
    """A file system of its own, of 1 MiB; only root can mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("NOT TESTED: a really full disk and a read-only one, as mounting a tmpfs needs root")
    (place / "work").mkdir()
    (place / "work.notes").symlink_to(tmp_path)  # what the harness writes needs room, too
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


# --- full disks ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_disk_that_fills_up_is_a_sentence_and_with_room_the_work_goes_on(mounted, tmp_path):
    """48 tiles with masks need more than 1 MiB; what was whole stays, and is not made again."""
    code = SIMULATE.replace('"--tiles", 12', '"--tiles", 48')
    first = run(code, mounted / "work", imports=DATA)
    assert "The disk is full: could not write set" in refused(first) and "Free some space" in first.printed
    done = {path: path.stat().st_mtime_ns for path in (mounted / "work").rglob("parts/*.json")}
    assert leftovers(mounted / "work") == [] and not list((mounted / "work").rglob("manifest.parquet"))
    remount(mounted, "size=50m")
    assert run(code, mounted / "work", imports=DATA).status == 0
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    assert run(code, tmp_path / "work", imports=DATA).status == 0
    differ = differences(content(mounted / "work"), content(tmp_path / "work"))
    assert [name for name in differ if name != "set/manifest.parquet"] == []  # which names its folder


@pytest.mark.parametrize("name", ["archive", pytest.param("simulate", marks=pytest.mark.slow)])
def test_no_room_at_any_moment_is_a_sentence_and_harms_nothing(tmp_path, name):
    """Files cannot be made from the k-th change on: the same as a full disk, at the moments that matter."""
    tally = starve(BY_NAME[name], tmp_path, 2)
    assert tally.faults == 2 and tally.wrong == []


# --- read-only folders --------------------------------------------------------------------------------------------

WRITERS = {
    "simulate": SIMULATE,
    "segment": SEGMENT.replace("WORKERS", "1"),
    "caption": CAPTION.replace("CAPTIONER", "tags"),
    "train": TRAIN,
    "run": "ucore('run', '01', '--out', 'out')",
    "reproduce": "ucore('reproduce', '--data', '{inputs}/rsicd')",
}


@pytest.mark.parametrize("name", list(WRITERS))
def test_a_read_only_folder_is_refused_before_any_work(mounted, tmp_path, name):
    rsicd(tmp_path / "inputs")
    remount(mounted, "ro")
    outcome = run(WRITERS[name].replace("{inputs}", str(tmp_path / "inputs")), mounted / "work", imports=DATA)
    assert "Cannot write" in refused(outcome)
    assert "Choose another" in outcome.printed


# --- clocks -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_depends_on_the_clock(tmp_path):
    """The same command under clocks that are years ahead and behind, on files that are as old as they like."""
    stage = BY_NAME["caption"]
    rsicd(tmp_path / "inputs")
    chance, years = random.Random(0), 3 * 10**8
    whole = stage.command(tmp_path / "inputs", tmp_path / "whole").wait()
    assert whole.status == 0, whole.printed
    expected = content(tmp_path / "whole")
    for clock, at in ((years, whole.events // 2), (-years, whole.events // 2), (0, 0)):
        outcome = stage.command(tmp_path / "inputs", tmp_path / "work", at=at, how="group", clock=clock).wait()
        for path in (tmp_path / "work").rglob("*"):
            os.utime(path, (0, chance.uniform(0, 4 * 10**9)))
    assert outcome.status == 0
    assert differences(content(tmp_path / "work"), expected) == [] and leftovers(tmp_path / "work") == []


# --- two commands, one folder -------------------------------------------------------------------------------------

LOCKED = {
    "simulate": ("set", SIMULATE, DATA),
    "segment": ("segments/*", SEGMENT.replace("WORKERS", "1"), PARTS),
    "caption": ("captions/*", CAPTION.replace("CAPTIONER", "tags"), PARTS),
    "train": ("run", TRAIN.replace("head_epochs=2", "head_epochs=1"), TORCH),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LOCKED))
def test_the_second_command_in_a_folder_says_that_another_writes(tmp_path, name):
    where, code, imports = LOCKED[name]
    rsicd(tmp_path / "inputs")
    code = code.replace("{inputs}", str(tmp_path / "inputs"))
    killed = Command(code, tmp_path / "work", at=12, how="group", imports=imports)
    assert killed.wait().status == -9 and killed.orphans() == []
    if not list((tmp_path / "work").glob(where)):
        (tmp_path / "work" / where).mkdir(parents=True)
    (place,) = (tmp_path / "work").glob(where)
    with only_writer(place, wait=True):  # of those that were killed the last may still be on its way out
        before = content(tmp_path / "work")
        told = refused(run(code, tmp_path / "work", imports=imports))
    assert "Another process is writing into" in told and "Wait for it" in told
    after = content(tmp_path / "work")
    assert {name: after.get(name) for name in before} == before
    assert run(code, tmp_path / "work", imports=imports).status == 0  # the lock ended with its holder


@pytest.mark.slow
def test_two_that_unpack_one_archive_both_find_it_whole(tmp_path):
    stage = BY_NAME["archive"]
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    stage.prepare(inputs)
    both = [stage.command(inputs, tmp_path / "work") for _ in range(2)]
    assert [command.wait().status for command in both] == [0, 0]
    assert stage.command(inputs, tmp_path / "alone").wait().status == 0
    assert differences(content(tmp_path / "work"), content(tmp_path / "alone")) == []
