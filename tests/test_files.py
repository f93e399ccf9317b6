import errno
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ucore import files
from ucore.errors import DataError, UserError
from ucore.files import atomic_path, content_hash, file_hash, safe_join, syntax_tree, typed_path, write_json


def names(folder: Path) -> list[str]:
    """What lies in `folder`, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def break_off(target: Path, error: BaseException, folder: bool = False) -> None:
    """Raise `error` when `target` is half written."""
    with atomic_path(target) as temporary:
        if folder:
            temporary.mkdir()
        (temporary / "inside" if folder else temporary).write_text("half")
        raise error


# --- atomic_path --------------------------------------------------------------------------------------------


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    target = tmp_path / "deep" / "er" / "a.txt"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary != target
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert names(target.parent) == ["a.txt"]


def test_a_file_replaces_the_earlier_one(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("a longer, older text")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "a longer, older text"
    assert target.read_text() == "new"


def test_a_folder_replaces_the_earlier_one_as_a_whole(tmp_path):
    target = tmp_path / "shards"
    target.mkdir()
    (target / "old").touch()
    with atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
        assert names(target) == ["old"]
    assert names(tmp_path) == ["shards"]
    assert names(target) == ["new"]


@pytest.mark.parametrize("failure", [ValueError, OSError, RuntimeError, UserError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failure_keeps_the_old_and_leaves_nothing_else(tmp_path, kind, failure):
    target = tmp_path / "target"
    kept = target / "inside" if kind == "folder" else target
    if kind == "folder":
        target.mkdir()
    kept.write_text("old")
    raised = failure("something else")
    with pytest.raises(failure) as caught:
        break_off(target, raised, folder=kind == "folder")
    assert caught.value is raised  # not mistaken for a full disk
    assert names(tmp_path) == ["target"]
    assert kept.read_text() == "old"


def test_two_writers_do_not_meet(tmp_path):
    target = tmp_path / "a.txt"
    with atomic_path(target) as first:
        first.write_text("first")
        with atomic_path(target) as second:
            second.write_text("second")
        assert target.read_text() == "second"
    assert target.read_text() == "first"
    assert names(tmp_path) == ["a.txt"]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "a").write_text("a file")
    with pytest.raises(UserError, match="part of that path is a file") as caught, atomic_path(tmp_path / "a" / "b"):
        pytest.fail("the body must not run")
    assert str(tmp_path / "a" / "b") in str(caught.value)
    assert (tmp_path / "a").read_text() == "a file"


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        write_json(tmp_path / "a", 1)
    assert names(tmp_path) == ["a"]


def test_a_name_too_long_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="too long"):
        write_json(tmp_path / ("n" * 250), 1)
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_place_that_cannot_be_written_is_named(tmp_path, number):
    with pytest.raises(UserError, match=r"Cannot write .*Choose another") as caught:
        break_off(tmp_path / "a", OSError(number, os.strerror(number)))
    assert str(tmp_path / "a") in str(caught.value)


# --- a full disk --------------------------------------------------------------------------------------------


def write_text(path: Path, count: int) -> None:
    path.write_text("x" * 4 * count)


def save_npz(path: Path, count: int) -> None:
    with open(path, "wb") as stream:
        np.savez(stream, a=np.zeros(count, np.float32))


def save_npy(path: Path, count: int) -> None:
    with open(path, "wb") as stream:
        np.save(stream, np.zeros(count, np.float32))


def save_torch(path: Path, count: int) -> None:
    import torch

    torch.save({"a": torch.zeros(count)}, path)


def save_safetensors(path: Path, count: int) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(count)}, path)


def save(target: Path, write: Callable[[Path, int], None], count: int) -> None:
    with atomic_path(target) as temporary:
        write(temporary, count)


WRITERS = [write_text, save_npz, save_npy, save_torch, save_safetensors]


@pytest.fixture
def one_mebibyte(tmp_path):
    """A file system of 1 MiB; only root can mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("NOT TESTED: a really full disk, as mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)  # lazily: torch leaves the file that failed open


@pytest.mark.parametrize("write", WRITERS)
def test_a_really_full_disk_is_a_sentence_and_keeps_the_old_file(one_mebibyte, write):
    target = one_mebibyte / "a.bin"
    save(target, write, 50_000)  # 200 kB fit
    old = target.read_bytes()
    with pytest.raises(UserError, match=r"The disk is full: could not write .*a\.bin\. Free some space"):
        save(target, write, 1_000_000)
    assert names(one_mebibyte) == ["a.bin"]
    assert target.read_bytes() == old


# What the libraries raise, as measured on a full disk; only the first has an error number.
FULL = [
    (OSError(errno.ENOSPC, "No space left on device"), 0),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), 2**40),
    (OSError("4000000 requested and 262112 written"), 0),
    (RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534"), 0),
    (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), 2**40),
]


@pytest.mark.parametrize(("error", "free"), FULL, ids=["number", "quota", "numpy", "torch", "safetensors"])
def test_every_way_to_say_that_the_disk_is_full(tmp_path, monkeypatch, error, free):
    usage = namedtuple("usage", "total used free")(2**41, 0, free)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="The disk is full") as caught:
        break_off(tmp_path / "a", error)
    assert caught.value.__cause__ is error
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [OSError("strange"), RuntimeError("strange"), OSError(errno.EIO, "broken")])
def test_with_space_left_an_error_stays_what_it_is(tmp_path, error):
    with pytest.raises(type(error)) as caught:
        break_off(tmp_path / "a", error)
    assert caught.value is error


# --- JSON, names, hashes ------------------------------------------------------------------------------------


def test_json_is_sorted_readable_and_ends_with_a_newline(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None], "a": "ü"})
    text = (tmp_path / "a.json").read_text("utf-8")
    assert json.loads(text) == {"a": "ü", "b": [1, 2.5, None]}
    assert text.startswith('{\n  "a": "ü",')
    assert text.endswith("}\n")


def test_what_is_no_json_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", object())
    assert names(tmp_path) == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == 1


@pytest.mark.parametrize("name", ["a.png", "sub/a.png", "sub/../a.png", "..a.png", "a..b/c", "inner/a.png"])
def test_names_inside_the_folder_are_joined(tmp_path, name):
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "root" / "inner").symlink_to(tmp_path / "root" / "sub")
    joined = safe_join(tmp_path / "root", name)
    assert joined.is_relative_to(tmp_path.resolve() / "root")
    assert joined.name == Path(name).name


@pytest.mark.parametrize(
    "name", ["../a.png", "sub/../../a.png", "/etc/passwd", "", ".", "sub/..", "a\0.png", "out/a.png", "link.png"]
)
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "a.png").touch()
    (tmp_path / "root" / "out").symlink_to(tmp_path)
    (tmp_path / "root" / "link.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(DataError) as caught:
        safe_join(tmp_path / "root", name)
    assert repr(name) in str(caught.value)


def test_a_folder_that_no_folder_can_be_called_is_refused():
    with pytest.raises(DataError, match="can be no folder"):
        safe_join("a\0b", "c.png")


def test_a_neighbour_with_the_same_beginning_is_outside(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root2").mkdir()
    with pytest.raises(DataError):
        safe_join(tmp_path / "root", "../root2/a.png")


def test_file_hash_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_hash(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_content_hash_tells_contents_apart():
    contents = [
        *(("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), (b"abc",), (b"a", b"bc"), ()),
        *((1,), ("1",), (1.5,), ([1, 2],), ([2, 1],), ({"a": 1},), ({"a": 2},), (None,)),
    ]
    hashes = [content_hash(*parts) for parts in contents]
    assert len(set(hashes)) == len(contents)
    assert all(len(digits) == 16 and int(digits, 16) >= 0 for digits in hashes)


def test_content_hash_ignores_the_order_of_keys_and_stays_the_same_over_versions():
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    # sha256 of the length 3 as eight bytes and "abc" without quotes: caches of earlier runs stay valid.
    assert content_hash(b"abc") == hashlib.sha256(b"\x03" + bytes(7) + b"abc").hexdigest()[:16]


def test_what_somebody_typed_is_a_path_or_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    assert typed_path(tmp_path / "a.txt", Path.is_file) == tmp_path / "a.txt"
    assert typed_path(str(tmp_path), Path.is_dir) == tmp_path
    for name in (tmp_path / "b.txt", tmp_path, "9" * 5000, "a\0b", "~nobody-of-this-name/x"):
        assert typed_path(name, Path.is_file) is None


# --- what a killed process left -----------------------------------------------------------------------------------

LEFT = ".a.json.0123abcd.tmp"


def test_only_what_atomic_path_makes_is_swept_and_links_are_not_followed(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    (root / "deep" / ".part.0123abcd.tmp" / "inside").mkdir(parents=True)
    elsewhere.mkdir()
    kept = [root / ".notes.tmp", root / ".vim.swp.tmp", root / "a.0123abcd.tmp", elsewhere / LEFT]
    for path in (*kept, root / LEFT, root / "deep" / ".b.0123abcd.tmp"):
        path.write_text("half")
    (root / "linked").symlink_to(elsewhere)
    (root / ".link.0123abcd.tmp").symlink_to(elsewhere)
    (tmp_path / "root-linked").symlink_to(elsewhere)
    files.sweep(tmp_path / "root-linked")
    files.sweep(tmp_path / "absent")
    files.sweep(root, below=False)
    assert names(root) == [".notes.tmp", ".vim.swp.tmp", "a.0123abcd.tmp", "deep", "linked"]
    assert names(root / "deep") == [".b.0123abcd.tmp", ".part.0123abcd.tmp"]
    files.sweep(root)
    assert names(root / "deep") == [] and names(elsewhere) == [LEFT]


@pytest.mark.parametrize("locked", [".", "run", "run/part"])
def test_nothing_is_swept_where_somebody_writes(tmp_path, locked):
    (tmp_path / "run" / "part").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    with files.only_writer(tmp_path / locked):
        for folder in ("run/part", "other"):
            (tmp_path / folder / LEFT).write_text("half")
        files.sweep(tmp_path)
        assert names(tmp_path / "run" / "part") == [LEFT]
        assert names(tmp_path / "other") == ([LEFT] if locked == "." else [])
    files.sweep(tmp_path)
    assert names(tmp_path / "run" / "part") == names(tmp_path / "other") == []


def test_python_is_parsed_by_one_thread_at_a_time(monkeypatch):
    within, most = [], []

    def slow_parse(source):
        within.append(source)
        most.append(len(within))
        time.sleep(0.01)
        within.remove(source)
        return source

    monkeypatch.setattr("ast.parse", slow_parse)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(syntax_tree, "abcdefgh")) == list("abcdefgh")
    assert max(most) == 1
