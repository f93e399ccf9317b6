"""Image files that were decoded well before: a large set is looked through once, not by every command.

A file is taken for the same while its name, inode, size and times are: no writing leaves its change time as it was.
What is kept are such keys, nothing of the pictures; a place that cannot be read or written costs time alone.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from ucore.errors import UserError
from ucore.files import atomic_path, content_hash
from ucore.images import find_bad_images

CHECKED = Path("runs/checked")
WORTH = 1000  # files from which on it is worth remembering them
STALE = 3  # times as many keys as files: then those of files that are gone, or were changed, are forgotten


def find_bad_files(paths: Sequence[Path], kept: Path = CHECKED) -> dict[int, str]:
    """As `images.find_bad_images`; what was found good before, and has not changed, is not decoded again."""
    if len(paths) < WORTH:
        return find_bad_images(paths)
    place = kept / f"{content_hash(os.path.commonpath([path.absolute() for path in paths]))}.npy"
    keys, known = np.array([_key(path) for path in paths], np.uint64), _known(place)
    open_: list[int] = np.flatnonzero(~np.isin(keys, known) | (keys == 0)).tolist()
    found = find_bad_images([paths[position] for position in open_])
    problems = {open_[position]: problem for position, problem in found.items()}
    good = np.setdiff1d(np.delete(keys, list(problems)), [0])
    now = good if len(known) > STALE * len(paths) else np.union1d(known, good)
    if len(now) > len(known) or len(known) > STALE * len(paths):
        with suppress(UserError), atomic_path(place) as temporary, open(temporary, "wb") as stream:
            np.save(stream, now)
    return problems


def _key(path: Path) -> int:
    """64 bits that change with the file; 0 where it cannot be looked at."""
    try:
        info = path.stat()
    except OSError:
        return 0
    told = f"{path.absolute()}\0{info.st_ino} {info.st_size} {info.st_mtime_ns} {info.st_ctime_ns}"
    return int.from_bytes(hashlib.blake2b(os.fsencode(told), digest_size=8).digest(), "little")


def _known(place: Path) -> np.ndarray:
    with suppress(Exception):  # numpy raises its own on damaged bytes; mapped, a header cannot ask for memory
        keys = np.load(place, "r", allow_pickle=False)
        if keys.dtype == np.uint64 and keys.ndim == 1:
            return np.array(keys)
    return np.zeros(0, np.uint64)
