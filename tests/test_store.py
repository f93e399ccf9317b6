"""The growing table: nothing is lost or doubled by kill -9, and what is damaged is named and done again."""

import multiprocessing
import os
import random
import signal
import time
import warnings

import pyarrow as pa
import pytest

from ucore.errors import ConfigError, DataError, UserError
from ucore.store import PartStore

# A fork server has pyarrow and pandas loaded before it forks; to start eight Pythons would take a minute.
PROCESSES = multiprocessing.get_context("forkserver")


def work(folder: str, ready) -> None:
    store = PartStore(folder, {"a": 1})
    ready.set()
    with store.writing():
        done = store.done()
        for start in range(0, 60, 3):
            rows = [{"key": f"k{n:03d}", "value": n * n, "text": "x" * n} for n in range(start, start + 3)]
            if start == 30 and "bad" not in done:
                store.quarantine("bad", "broken.jpg", "truncated")
            store.append([row for row in rows if row["key"] not in done])
            time.sleep(0.004)


def start_work(folder):
    ready = PROCESSES.Event()
    process = PROCESSES.Process(target=work, args=(str(folder), ready))
    process.start()
    assert ready.wait(60)
    return process


def test_kill_at_any_moment_loses_and_doubles_nothing(tmp_path):
    PROCESSES.set_forkserver_preload(["ucore.store", "pandas", "pytest"])
    finished = start_work(tmp_path / "whole")
    finished.join()
    assert finished.exitcode == 0
    chance = random.Random(0)
    killed = 0
    for _ in range(6):
        process = start_work(tmp_path / "killed")
        time.sleep(chance.uniform(0.005, 0.06))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed
    finished = start_work(tmp_path / "killed")
    finished.join()
    assert finished.exitcode == 0
    whole, resumed = (PartStore(tmp_path / name, None) for name in ("whole", "killed"))
    assert resumed.table().equals(whole.table())
    assert resumed.table(["value"])["value"].to_pylist() == [n * n for n in range(60)]
    assert resumed.quarantined() == {"broken.jpg": "truncated"}
    assert not list((tmp_path / "killed").rglob("*.tmp"))


def test_rows_are_found_by_key_and_stored_once(tmp_path):
    store = PartStore(tmp_path, {"a": [1, 2]})
    assert store.table().num_rows == 0 and store.done() == set() and len(store) == 0
    with store.writing():
        store.append([{"key": "b", "v": 2}, {"key": "a", "v": 1}, {"key": "a", "v": 9}])
        store.append([{"key": "a", "v": 8}, {"key": "c", "v": 3}])
        store.append([{"key": "a", "v": 7}])  # nothing new: no part
        store.append([])
    assert len(list(tmp_path.glob("part-*"))) == 2
    again = PartStore(tmp_path, {"a": (1, 2)})  # as JSON a tuple is a list
    assert again.table().to_pylist() == [{"key": "a", "v": 1}, {"key": "b", "v": 2}, {"key": "c", "v": 3}]
    assert again.table(["v"]).column_names == ["v"]
    assert again.row("c") == {"key": "c", "v": 3} and "c" in again and "d" not in again
    with pytest.raises(KeyError):
        again.row("d")
    with pytest.raises(RuntimeError, match="writing"):
        again.append([{"key": "d"}])


def test_a_part_written_elsewhere_is_seen_and_a_lost_one_is_missed(tmp_path):
    writer, reader = PartStore(tmp_path, {}), PartStore(tmp_path, {})
    assert reader.done() == set()
    with writer.writing():
        writer.append([{"key": "a"}])
        writer.append([{"key": "b"}])
    assert reader.done() == {"a", "b"}
    (tmp_path / "part-000000.parquet").unlink()
    assert reader.done() == {"b"} and reader.table()["key"].to_pylist() == ["b"]


def test_a_truncated_part_is_named_and_its_items_are_done_again(tmp_path):
    store = PartStore(tmp_path, {})
    with store.writing():
        store.append([{"key": "a", "v": 1}])
        store.append([{"key": "b", "v": 2}])
    part = tmp_path / "part-000001.parquet"
    part.write_bytes(part.read_bytes()[:-40])
    store = PartStore(tmp_path, {})
    assert store.done() == {"a"}
    with pytest.raises(DataError, match=r"part-000001\.parquet is damaged"):
        store.table()
    with warnings.catch_warnings(record=True) as said, store.writing():
        assert store.done() == {"a"}
        store.append([{"key": "b", "v": 2}])
    assert [str(one.message).split("/")[-1] for one in said] == [
        "part-000001.parquet is cut short or damaged; its items are done again"
    ]
    assert store.table()["v"].to_pylist() == [1, 2]
    assert (tmp_path / "part-000001.parquet.damaged").exists()  # its number is not used again
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with PartStore(tmp_path, {}).writing():
            pass


def test_flipped_bytes_are_noticed(tmp_path):
    store = PartStore(tmp_path, {})
    with store.writing():
        store.append([{"key": f"{n}", "v": os.urandom(200)} for n in range(20)])
    part = tmp_path / "part-000000.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 255
    part.write_bytes(data)
    with pytest.raises(DataError, match=r"part-000000\.parquet is damaged"):
        PartStore(tmp_path, {}).table()


def test_settings_never_mix(tmp_path):
    PartStore(tmp_path, {"k": 1, "generator": "slic"})
    with pytest.raises(ConfigError, match=r"other settings \(k\)"):
        PartStore(tmp_path, {"k": 2, "generator": "slic"})
    assert PartStore(tmp_path, None).settings == {"k": 1, "generator": "slic"}
    with pytest.raises(DataError, match=r"no settings\.json"):
        PartStore(tmp_path / "elsewhere", None)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        PartStore(tmp_path, {"k": 1})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not a folder"):
        PartStore(tmp_path / "file" / "store", {})


def test_one_writer_at_a_time(tmp_path):
    with (
        PartStore(tmp_path, {}).writing(),
        pytest.raises(UserError, match="Another process"),
        PartStore(tmp_path, {}).writing(),
    ):
        pass


def test_quarantine_survives_half_a_line_and_odd_names(tmp_path):
    store = PartStore(tmp_path, {})
    path = tmp_path / "quarantine.jsonl"
    path.write_text('{"key": "half", "sam')
    with store.writing():
        store.quarantine("k", "a\u2028\n<b>.jpg", "zero bytes")
        store.quarantine("l", "c.jpg", "absent")
    assert store.done() == {"k", "l"}
    assert store.quarantined() == {"a\u2028\n<b>.jpg": "zero bytes", "c.jpg": "absent"}
    assert store.reasons() == {"k": "zero bytes", "l": "absent"}


def test_a_schema_keeps_the_types_of_empty_lists(tmp_path):
    schema = pa.schema([("key", pa.string()), ("codes", pa.list_(pa.binary()))])
    for number, store in enumerate((PartStore(tmp_path / "a", {}, schema), PartStore(tmp_path / "b", {}))):
        assert store.table().num_rows == 0
        with store.writing():
            store.append([{"key": "empty", "codes": []}])
            store.append([{"key": "full", "codes": [b"\x00\xff"]}])
        assert store.table()["codes"].to_pylist() == [[], [b"\x00\xff"]], number
        assert store.table().schema.field("codes").type == pa.list_(pa.binary())
