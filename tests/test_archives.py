import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from makers_geo import make_country, zip_folder

from ucore.archives import STAMP, open_folder, unpack_zip
from ucore.errors import DataError, UserError


def write_zip(path: Path, members: dict[str, bytes], mode: int = 0o100644) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as content:
        for name, data in members.items():
            item = zipfile.ZipInfo(name)
            item.external_attr, item.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            content.writestr(item, data)
    return path


@pytest.fixture
def archive(tmp_path) -> Path:
    return write_zip(tmp_path / "a.zip", {"one.txt": b"1" * 100, "sub\\two.txt": b"2", "__MACOSX/._one.txt": b"x"})


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != STAMP
    }


def test_unpacked_once_and_again_only_when_the_archive_changes(archive, tmp_path):
    folder = unpack_zip(archive, tmp_path / "out")
    assert files(folder) == {"one.txt": b"1" * 100, "sub/two.txt": b"2"}
    (folder / "one.txt").write_bytes(b"mine")
    unpack_zip(archive, folder)  # done before: not looked at again
    assert (folder / "one.txt").read_bytes() == b"mine"
    write_zip(archive, {"one.txt": b"new", "sub/two.txt": b"2"})
    os.utime(archive, (1, 1))
    assert files(unpack_zip(archive, folder)) == {"one.txt": b"new", "sub/two.txt": b"2"}


@pytest.mark.parametrize("name", ["../out.txt", "/etc/x", "a/../../x", "C:\\x", "..\\x", "\\\\host\\x"])
def test_names_that_leave_the_folder(tmp_path, name):
    archive = write_zip(tmp_path / "a.zip", {"fine.txt": b"", name: b"x"})
    with pytest.raises(DataError, match=r"names that leave the folder.*Nothing was unpacked"):
        unpack_zip(archive, tmp_path / "out" / "deep")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.zip"]


def test_links_devices_encryption_and_repeats_are_refused(tmp_path):
    for mode in (0o120777, 0o020644):
        with pytest.raises(DataError, match="links or devices"):
            unpack_zip(write_zip(tmp_path / "l.zip", {"link": b"/etc/passwd"}, mode), tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as content:
        content.writestr("x", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            content.writestr("x", b"2")
    with pytest.raises(DataError, match="a name more than once: 'x'"):
        unpack_zip(tmp_path / "d.zip", tmp_path / "out")
    with pytest.raises(DataError, match="a name more than once: 'a'"):
        unpack_zip(write_zip(tmp_path / "f.zip", {"a": b"", "a/b": b""}), tmp_path / "out")
    locked = write_zip(tmp_path / "e.zip", {"x": b"1"})
    data = bytearray(locked.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    locked.write_bytes(data)
    with pytest.raises(DataError, match="encrypted"):
        unpack_zip(locked, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({}, "swell more than 200 times"),
        ({"max_ratio": 1e6, "max_file": 10**6}, "files above 1.0 MB"),
        ({"max_ratio": 1e6, "max_total": 10**6}, "unpacks to 5.0 MB, more than 1.0 MB"),
        ({"max_ratio": 1e6, "max_files": 0}, "holds 1 files, more than 0"),
    ],
)
def test_bombs_and_limits(tmp_path, limits, said):
    archive = write_zip(tmp_path / "bomb.zip", {"zeros.bin": bytes(5_000_000)})
    with pytest.raises(DataError, match=said):
        unpack_zip(archive, tmp_path / "out", **limits)
    assert not (tmp_path / "out").exists()


def test_damage_is_named_and_whole_files_are_kept(tmp_path):
    members = {f"{k}.bin": os.urandom(2000) for k in range(5)}
    archive = write_zip(tmp_path / "a.zip", members)
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-30])
    with pytest.raises(DataError, match="not a whole zip archive"):
        unpack_zip(archive, tmp_path / "out")
    spoilt = bytearray(whole)
    spoilt[whole.index(members["3.bin"][:50]) + 10] ^= 1
    archive.write_bytes(spoilt)
    with pytest.raises(DataError, match=r"3\.bin"):
        unpack_zip(archive, tmp_path / "out")
    assert sorted(files(tmp_path / "out")) == ["0.bin", "1.bin", "2.bin"]
    kept = (tmp_path / "out" / "0.bin").stat().st_mtime_ns
    (tmp_path / "out" / "1.bin").write_bytes(bytes(2000))  # the right size, not the right bytes
    archive.write_bytes(whole)
    assert files(unpack_zip(archive, tmp_path / "out")) == members
    assert (tmp_path / "out" / "0.bin").stat().st_mtime_ns == kept
    (tmp_path / "n.zip").write_text("<html>")
    for name, said in (("n.zip", "not a whole zip"), ("absent.zip", "no archive")):
        with pytest.raises(DataError, match=said):
            unpack_zip(tmp_path / name, tmp_path / "o")


def test_a_full_disk_is_noticed_before(archive, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 50})())
    with pytest.raises(UserError, match=r"0\.0 MB are free"):
        unpack_zip(archive, tmp_path / "out")


def test_a_killed_unpacking_is_continued(tmp_path):
    members = {f"{k:04d}.bin": os.urandom(300) for k in range(3000)}
    archive = write_zip(tmp_path / "a.zip", members)
    command = "import sys; from ucore.archives import unpack_zip; unpack_zip(sys.argv[1], sys.argv[2])"
    process = subprocess.Popen([sys.executable, "-c", command, str(archive), str(tmp_path / "out")])
    while process.poll() is None and len(list((tmp_path / "out").glob("[0-9]*"))) < 5:
        time.sleep(0.002)
    process.kill()
    process.wait()
    before = list((tmp_path / "out").glob("[0-9]*"))
    assert all(path.read_bytes() == members[path.name] for path in before)
    unpack_zip(archive, tmp_path / "out")
    there = {name: data for name, data in files(tmp_path / "out").items() if not name.startswith(".")}
    assert there == members


def test_folder_archive_or_neither(tmp_path, monkeypatch):
    country = make_country(tmp_path, n=4)
    assert open_folder(country, "images") == country / "images"
    assert open_folder(country, "image_segments") is None
    expected = files(country / "images")
    zip_folder(country / "images", country / "images.zip")
    (country / "images" / "F0.png").unlink()
    assert open_folder(country, "images") == country / "images"  # the user's own folder is taken as it is
    for path in (country / "images").iterdir():
        path.unlink()
    assert files(open_folder(country, "images") or tmp_path) == expected  # images/images/ is entered

    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr("ucore.archives.require_writable", lambda _: None)
    inside = country / "images" / "images"
    assert open_folder(country, "images", tmp_path / "spare") == inside  # it was unpacked before the place was locked
    (country / "images" / STAMP).unlink()
    shutil.rmtree(inside)
    spare = open_folder(country, "images", tmp_path / "spare")
    assert spare and spare.is_relative_to(tmp_path / "spare") and files(spare) == expected
