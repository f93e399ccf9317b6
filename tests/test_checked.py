"""A large set is decoded once; what has changed, and what was bad, is looked at again."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from ucore import checked
from ucore.checked import find_bad_files
from ucore.images import find_bad_images


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(checked, "WORTH", 4)
    (tmp_path / "images").mkdir()
    paths = [tmp_path / "images" / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        Image.new("RGB", (4, 4), (40 * number, 0, 0)).save(path)
    return paths


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that were decoded, in order."""
    names: list[str] = []

    def look(paths):
        names.extend(path.name for path in paths)
        return find_bad_images(paths)

    monkeypatch.setattr(checked, "find_bad_images", look)
    return names


def test_only_what_changed_or_was_bad_is_decoded_again(pictures, decoded, tmp_path):
    pictures[3].write_bytes(b"no picture")
    for expected in (["0.png", "1.png", "2.png", "3.png", "4.png"], ["3.png"]):
        assert list(find_bad_files(pictures, tmp_path / "kept")) == [3]
        assert decoded == expected
        decoded.clear()
    times = pictures[1].stat()
    pictures[1].write_bytes(b"x" * times.st_size)  # of the same size, and its time set back
    os.utime(pictures[1], ns=(times.st_atime_ns, times.st_mtime_ns))
    shutil.copy(pictures[2], pictures[3])
    pictures[0].unlink()
    assert find_bad_files(pictures, tmp_path / "kept") == {0: "absent", 1: "not an image of a known format"}
    assert decoded == ["0.png", "1.png", "3.png"]


def test_a_part_of_the_set_and_a_small_one_ask_for_no_more(pictures, decoded, tmp_path):
    assert find_bad_files(pictures[:4], tmp_path / "kept") == {}
    assert find_bad_files(pictures, tmp_path / "kept") == {}
    assert decoded == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    decoded.clear()
    assert find_bad_files(pictures[:3], tmp_path / "kept") == {} and len(decoded) == 3  # nothing is kept of so few
    shutil.copytree(tmp_path / "images", tmp_path / "other")
    decoded.clear()
    find_bad_files([tmp_path / "other" / path.name for path in pictures], tmp_path / "kept")
    assert len(decoded) == 5


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"no numbers at all"])
def test_what_is_kept_may_be_damaged_or_out_of_reach(pictures, decoded, tmp_path, content):
    find_bad_files(pictures, tmp_path / "kept")
    (place,) = (tmp_path / "kept").iterdir()
    place.write_bytes(content)
    assert find_bad_files(pictures, tmp_path / "kept") == {} and len(decoded) == 10
    (tmp_path / "file").write_text("no folder")
    assert find_bad_files(pictures, tmp_path / "file" / "kept") == {} and len(decoded) == 15


def test_keys_of_what_is_gone_are_forgotten(pictures, decoded, tmp_path):
    find_bad_files(pictures, tmp_path / "kept")
    (place,) = (tmp_path / "kept").iterdir()
    np.save(place, np.union1d(np.load(place), np.arange(1, 100, dtype=np.uint64)))
    find_bad_files(pictures, tmp_path / "kept")
    assert len(decoded) == 5 and len(np.load(place)) == 5
