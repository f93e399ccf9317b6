"""One stage over many items: every item exactly once, whatever raises, dies, or is too large to hold twice."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from makers import make_rsicd
from makers_workers import broken, dies, refuses, squares, too_few

from ucore.captions import caption_dataset
from ucore.cluster import connected, room
from ucore.data import read_dataset
from ucore.errors import ConfigError, DataError, UserError
from ucore.parallel import Failed, map_stage
from ucore.processes import local_workers
from ucore.segments import segment_dataset


def results(*arguments: Any, **settings: Any) -> dict[int, Any]:
    """What map_stage yields, each position exactly once."""
    pairs = list(map_stage(*arguments, **settings))
    assert len({position for position, _ in pairs}) == len(pairs)
    return dict(pairs)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("count", "batch_size"), [(0, 8), (1, 8), (17, 4)])
def test_every_item_once(workers, count, batch_size):
    expected = {number: number * number for number in range(count)}
    assert results(squares, range(count), workers=workers, batch_size=batch_size) == expected


def test_one_worker_is_this_process_and_needs_no_pickling():
    seen = []
    assert results(lambda: lambda items: [seen.append(item) for item in items], [1, 2], workers=1) == {0: None, 1: None}
    assert seen == [1, 2]


def test_more_workers_are_processes_of_their_own_with_a_share_of_the_threads():
    pids = results(squares, ["pid"] * 20, workers=2, batch_size=1)
    assert os.getpid() not in pids.values() and 1 <= len(set(pids.values())) <= 2
    assert set(results(squares, ["threads"] * 4, workers=2, batch_size=1).values()) == {"1"}  # conftest allows one


@pytest.mark.parametrize("workers", [1, 2])
def test_an_item_that_raises_fails_alone(workers):
    found = results(squares, [1, "raise", 3, 4], workers=workers, batch_size=4)
    assert found == {0: 1, 1: Failed("this item is bad"), 2: 9, 3: 16}
    assert results(squares, [None], workers=workers)[0].reason.startswith("TypeError: unsupported operand")


def test_results_that_are_too_few_or_cannot_be_sent_fail():
    assert "0 results for 1 items" in results(too_few, [1, 2], workers=1)[1].reason
    found = results(squares, [2, "lambda"], workers=2)
    assert found[0] == 4 and "lambda" in found[1].reason


def test_a_killed_worker_is_replaced_and_its_batch_done_again(tmp_path):
    items = [*range(30), "kill once", *range(30)]
    found = results(partial(squares, str(tmp_path)), items, workers=2, batch_size=4)
    assert (tmp_path / "killed").exists()
    assert found.pop(30).reason.startswith("TypeError")  # the words, when nothing is killed any more
    assert found == {number: item * item for number, item in enumerate(items) if number != 30}


def test_an_item_that_always_kills_its_worker_is_given_up_alone():
    found = results(squares, ["kill", 2, "exit"], workers=2, batch_size=2)
    assert found[0] == Failed("its worker process died 3 times: killed, most often for lack of memory")
    assert found[1] == 4
    assert found[2] == Failed("its worker process died 3 times: ended with status 7")


@pytest.mark.parametrize("workers", [1, 2])
def test_what_building_a_worker_raises_is_raised(workers):
    with pytest.raises(DataError, match=r"^There is no checkpoint sam\.pth\.$"):
        results(refuses, [1], workers=workers)
    with pytest.raises((RuntimeError, IndexError), match="list index out of range"):
        results(broken, [1], workers=workers)
    assert results(refuses, [], workers=workers) == {}  # nothing to do: nothing is built


def test_workers_that_cannot_start_are_not_started_for_ever():
    with pytest.raises(UserError, match="cannot start: killed, most often for lack of memory"):
        results(dies, [1, 2], workers=2)


def test_items_are_read_only_when_a_worker_is_free():
    read = []
    stage = map_stage(squares, (read.append(number) or number for number in range(1000)), workers=2, batch_size=2)
    assert read == []  # nor is a process started
    for _ in range(10):
        next(stage)
    assert 10 <= len(read) <= 10 + 4 * 2
    stage.close()
    assert len(read) < 30


def test_settings_that_cannot_be():
    for settings, words in (
        ({"engine": "spark"}, "choose local or ray"),
        ({"workers": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"address": "auto"}, "add --engine ray"),
    ):
        with pytest.raises(ConfigError, match=words):
            map_stage(squares, [1], **settings)


def test_workers_share_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, 2,5,7")
    assert local_workers(None, 1) == (4, ["0", "2", "5", "7"])
    assert local_workers(3, 0.5) == (3, ["0", "0", "2"])
    assert local_workers(None, 2) == (2, ["0,2", "5,7"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert local_workers(2, 1) == (2, ["0", "1"])
    with pytest.raises(ConfigError, match="at most --workers 4"):
        local_workers(5, 1)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ConfigError, match="use --device cpu"):
        local_workers(None, 1)


STAGE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.path.insert(0, sys.argv[1])
from makers_workers import sleeps
from ucore.parallel import map_stage
for position, pid in map_stage(sleeps, range(1000), workers=2, batch_size=1):
    print(pid, flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(how):
    """Ctrl-C goes to the whole group of processes, a kill to the parent alone."""
    parent = subprocess.Popen([sys.executable, "-c", STAGE, str(Path(__file__).parent)], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
    assert parent.stdout is not None
    pids = {int(parent.stdout.readline()) for _ in range(30)}
    (os.killpg if how == signal.SIGINT else os.kill)(parent.pid, how)
    assert parent.communicate(timeout=60)[1].count("Traceback") == (how == signal.SIGINT)  # the parent's own
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}/stat").exists() and alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- on a cluster -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray_cluster():
    """Two processors; the tests below use it one after the other, as starting one takes ten seconds."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # a cluster's processes import the module of the work
        with connected(None):
            yield
    assert not ray.is_initialized()


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "127.0.0.1:no"])
def test_an_address_where_nobody_answers_is_told_at_once(address):  # before the fixture: that one would be used
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match=f"No Ray cluster can be used at {address}: "):
        results(squares, [1], engine="ray", address=address)


def test_a_cluster_gives_what_one_process_gives_though_a_worker_is_killed(ray_cluster, tmp_path):
    items = [*range(20), "kill once", "raise", *range(20)]
    expected = results(
        partial(squares, str(tmp_path)), [1 if item == "kill once" else item for item in items], workers=1
    )
    found = results(partial(squares, str(tmp_path)), items, engine="ray", workers=2, batch_size=3)
    assert (tmp_path / "killed").exists()
    assert found.pop(20).reason.startswith("TypeError") and expected.pop(20) == 1
    assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["segment", "caption"])
def test_the_stages_on_a_cluster_give_what_they_give_here_though_a_worker_is_killed(ray_cluster, tmp_path, stage):
    """Every image exactly once, in the store of masks and in the dataset with captions."""
    manifest = read_dataset(make_rsicd(tmp_path / "data", 20, 6, 6, size=192))

    def done(engine: str) -> Any:
        common: dict[str, Any] = {"engine": engine, "workers": 2, "progress": False}
        if stage == "segment":
            store = segment_dataset(manifest, "slic", tmp_path / engine, **common)
            return store.parts.table(["key", "rles", "predicted_iou", "stability", "count", "covered"])
        run = caption_dataset(manifest, "micro", tmp_path / engine, batch_size=2, device="cpu", **common)
        return read_dataset(run.folder).frame[["sample_id", "captions", "description"]].to_dict("list")

    over, killed = threading.Event(), []
    killer = threading.Thread(target=kill_a_ray_worker, args=(over, killed), daemon=True)
    killer.start()
    try:
        away = done("ray")
    finally:
        over.set()
        killer.join()
    assert killed, "no worker was found at work"
    here = done("local")
    assert len(here["key"] if stage == "segment" else here["sample_id"]) == 32
    assert away.equals(here) if stage == "segment" else away == here


def kill_a_ray_worker(over: threading.Event, killed: list[int]) -> None:
    """As by a system that lacks memory: the first process that works for this process's own Ray."""

    def is_ours(process: Path) -> bool:
        while process.name not in ("0", "1", str(os.getpid())):
            process = process.parent / (process / "stat").read_text().rpartition(")")[2].split()[1]
        return process.name == str(os.getpid())

    while not killed and not over.is_set():
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if path.read_bytes().startswith(b"ray::_Remote.work") and is_ours(path.parent):
                    os.kill(int(path.parent.name), signal.SIGKILL)
                    killed.append(int(path.parent.name))
                    return
        time.sleep(0.002)


def test_a_cluster_gives_up_what_always_kills_its_worker(ray_cluster):
    found = results(squares, ["kill", 2], engine="ray", workers=1, batch_size=1)
    assert found[0].reason.startswith("its worker process died 3 times: ") and found[1] == 4


def test_what_building_a_worker_on_a_cluster_raises_is_raised(ray_cluster):
    with pytest.raises(DataError, match=r"^There is no checkpoint sam\.pth\.$"):
        results(refuses, [1], engine="ray", workers=1)
    with pytest.raises(ConfigError, match="No machine of this Ray cluster has 2 GPUs"):
        results(squares, [1], engine="ray", gpus_per_worker=2)


def test_ray_is_asked_for_where_it_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r'pip install -e "\.\[ray\]"'):
        map_stage(squares, [1], engine="ray")


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ([{"CPU": 96}, {"CPU": 16, "GPU": 4}], (4, 4)),  # processors of a machine without GPUs are not theirs
        ([{"CPU": 64}, {"CPU": 8, "GPU": 8}], (8, 1)),
        ([{"CPU": 16}, {"CPU": 32, "GPU": 8}], (8, 4)),
        ([{"CPU": 4, "GPU": 8}], (8, 1)),
        ([{"CPU": 8, "GPU": 1}, {"CPU": 64, "GPU": 2}], (3, 8)),
    ],
)
def test_workers_with_gpus_fit_on_the_machines_that_have_them(nodes, found):
    assert room(nodes, None, 1.0) == found


def test_workers_without_gpus_share_all_processors():
    assert room([{"CPU": 4}, {"CPU": 2, "GPU": 1}], None, 0.0) == (6, 1)
    assert room([{"CPU": 4}, {"CPU": 2}], 2, 0.0) == (2, 2)
    with pytest.raises(ConfigError, match=r"0\.5 GPUs"):
        room([{"CPU": 4}], None, 0.5)
