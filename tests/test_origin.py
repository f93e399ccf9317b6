"""Keys of code and of data: they change with what they stand for, and with nothing else."""

import errno
import json
import os
import shutil
from pathlib import Path
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet
import pytest

from ucore import origin
from ucore.errors import DataError
from ucore.manifest import Manifest
from ucore.origin import code_key, data_key
from ucore.report import present_code


@pytest.fixture
def package(tmp_path) -> Path:
    folder = tmp_path / "ucore"
    (folder / "assets").mkdir(parents=True)
    for name, text in {
        "__init__": "",
        "files": "x = 1",
        "model": "def late():\n    from ucore import files",
        "train": "from ucore.model import late",
        "maps": "y = 2",
    }.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "assets" / "weights").write_text("w")
    return folder


CELLS = ["%matplotlib inline\nfrom ucore.train import late", "late()"]


@pytest.mark.parametrize("file", ["train.py", "model.py", "files.py", "__init__.py", "assets/weights"])
def test_the_key_changes_with_all_code_that_is_used_also_by_a_late_import(package, file):
    before = code_key(CELLS, package)
    (package / file).write_text("# changed")
    assert code_key(CELLS, package) != before


def test_the_key_does_not_change_with_code_that_is_not_used(package):
    before = code_key(CELLS, package)
    (package / "maps.py").write_text("y = 3")
    assert code_key(CELLS, package) == before
    assert code_key([*CELLS, "late()"], package) != before


@pytest.mark.parametrize("cell", ["import ucore as u", "from ucore import something_lazy", "this is no Python"])
def test_where_imports_cannot_be_followed_the_whole_package_counts(package, cell):
    before = code_key([cell], package)
    (package / "maps.py").write_text("y = 3")
    assert code_key([cell], package) != before


def test_a_report_is_of_the_notebook_whose_name_it_begins_with():
    assert len(present_code("04_train-lite0-minilm-tiny")) == 16
    assert present_code("04_train-x") == present_code("04_train-y") != present_code("05_domain_gap-x")
    assert present_code("of_my_own-x") == "unknown"


# --- data ---------------------------------------------------------------------------------------------------------


def test_the_key_of_data_is_that_of_names_and_bytes_wherever_they_lie(tiny_rsicd, tmp_path):
    first = data_key(tiny_rsicd)
    copy = shutil.copytree(tiny_rsicd, tmp_path / "elsewhere" / "copy")
    (copy / ".hidden").write_text("an editor's")
    assert data_key(copy) == first
    picture = next((copy / "images").iterdir())
    picture.rename(picture.with_name("renamed.jpg"))
    assert data_key(copy) != first


def test_a_link_to_nothing_is_named(tmp_path):
    (tmp_path / "image.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"Cannot read .*image\.png"):
        data_key(tmp_path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"pipe is no file but a pipe, a socket or a device\. Remove it"):
        data_key(tmp_path)


def test_a_file_that_fails_while_it_is_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "image.png").write_text("1")
    monkeypatch.setattr(origin, "file_hash", Mock(side_effect=OSError(errno.EIO, "Input/output error")))
    with pytest.raises(DataError, match=r"Cannot read .*image\.png \(Input/output error\)\. Restore it"):
        data_key(tmp_path)


def test_a_name_that_is_no_text_counts_and_is_read_again(tmp_path):
    data, memory = tmp_path / "data", tmp_path / "memory.json"
    data.mkdir()
    (data / "a").write_text("1")
    without = data_key(data)
    (data / os.fsdecode(b"\xff.png")).write_text("1")
    assert data_key(data, memory) == data_key(data, memory) == data_key(data) != without
    assert list(json.loads(memory.read_text())) == ["a"]


def test_a_table_with_values_that_python_does_not_know_has_a_key(tmp_path):
    far = pa.table({"day": pa.array([2**31 - 1], pa.int32()).cast(pa.date32())})
    pyarrow.parquet.write_table(far, tmp_path / "manifest.parquet")
    assert len(data_key(tmp_path)) == 16


def test_remembered_files_are_read_again_when_they_changed(tmp_path):
    data, memory = tmp_path / "data", tmp_path / "memory.json"
    data.mkdir()
    (data / "a").write_text("1")
    (data / "b").write_text("2")
    first = data_key(data, memory)
    assert data_key(data, memory) == first == data_key(data)
    (data / "a").write_text("10")
    second = data_key(data, memory)
    assert second == data_key(data) != first
    kept = json.loads(memory.read_text())
    for damaged in ({"a": [1]}, {name: [*entry[:2], ["no hash"]] for name, entry in kept.items()}):
        memory.write_text(json.dumps(damaged))
        assert data_key(data, memory) == second
        assert set(json.loads(memory.read_text())) == {"a", "b"}


def test_a_link_back_to_a_folder_above_ends(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert len(data_key(tmp_path)) == 16


def test_a_manifest_counts_by_its_rows_and_not_by_the_folder_it_names(tmp_path):
    keys = []
    for place, caption in (("one", "a house"), ("two", "a house"), ("three", "a lake")):
        row = {"sample_id": "s", "image": "s.jpg", "captions": [caption], "domain": "d", "split": "train"}
        (tmp_path / place).mkdir()
        Manifest.from_rows([row], tmp_path / place).save(tmp_path / place / "manifest.parquet")
        keys.append(data_key(tmp_path / place))
    assert keys[0] == keys[1] != keys[2]
