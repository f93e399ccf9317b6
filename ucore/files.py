"""Files that are whole or absent, names that stay inside their folder, and content hashes."""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ucore.errors import DataError, UserError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` (file or folder); rename it to `path` on success.

    On any failure the temporary is removed and an earlier `path` stays as it was.
    Raises UserError when the disk is full or the place is not writable.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if path.is_dir() and temporary.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        raise _explain(error, path) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _explain(error: OSError, path: Path) -> Exception:
    if error.errno == errno.ENOSPC:
        return UserError(f"The disk is full: could not write {path}. Free some space and repeat the command.")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return UserError(f"Cannot write {path} ({error.strerror}). Choose another --out folder.")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return UserError(
            f"Cannot write {path}: part of that path is a file, not a folder. Choose another --out folder."
        )
    return error


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def safe_join(root: str | Path, name: str) -> Path:
    """`root / name`, refused when it would leave `root` (absolute names, `..`, symbolic links).

    Raises DataError naming the offending name.
    """
    root = Path(root).resolve()
    if not name or "\0" in name:
        raise DataError(f"The file name {name!r} is empty or holds a zero byte; correct it in the dataset's index.")
    target = (root / name).resolve()
    if not target.is_relative_to(root) or target == root:
        raise DataError(f"The file name {name!r} leaves the folder {root}; correct it in the dataset's index.")
    return target


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_hash(*parts: Any) -> str:
    """16 hexadecimal digits that change when any of `parts` (JSON-able values or bytes) changes."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=str).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]
