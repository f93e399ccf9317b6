"""Files that are whole or absent, names that stay inside their folder, and content hashes."""

import ast
import errno
import hashlib
import json
import os
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ucore.errors import DataError, UserError
from ucore.spans import part_bytes

_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.tmp", re.DOTALL)  # as `atomic_path` calls them
_parsing = threading.Lock()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` (file or folder); rename it to `path` on success.

    On any failure the temporary is removed and an earlier `path` stays as it was.
    Raises UserError when the disk is full or the place is not writable.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if path.is_dir() and temporary.is_dir():
                shutil.rmtree(path)
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # where there can be no such file, the error above says why
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink()


def syntax_tree(source: str) -> ast.Module:
    """`ast.parse`, by one thread at a time: CPython 3.11 counts the depth of a tree for all threads together, and two
    that parse at once can end in a SystemError."""
    with _parsing:
        return ast.parse(source)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Within, safetensors writes `path`, for its owner alone; afterwards it may be read by whom other files may."""
    path.touch()
    mode = path.stat().st_mode
    yield
    path.chmod(mode)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Within, a `path` that cannot be written is a UserError; for what grows in place, as no `atomic_path` can."""
    try:
        yield
    except Exception as error:
        told = explain(error, path)
        if told is None:
            raise
        raise told from error


def explain(error: Exception, path: Path) -> UserError | None:
    """The sentence for a place that cannot be written; None for an error of another kind."""
    if _disk_is_full(error, path):
        return UserError(f"The disk is full: could not write {path}. Free some space and repeat the command.")
    reason = error.errno if isinstance(error, OSError) else None
    if reason in (errno.EACCES, errno.EROFS, errno.EPERM, errno.EISDIR, errno.ENAMETOOLONG):
        return UserError(f"Cannot write {path} ({os.strerror(reason)}). Choose another folder.")
    if reason in (errno.ENOTDIR, errno.EEXIST):
        return UserError(f"Cannot write {path}: part of that path is a file, not a folder. Choose another folder.")
    return None


def _disk_is_full(error: Exception, path: Path) -> bool:
    """Whether `error` comes from a lack of space, which not every library says by an error number."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return True
    if os.strerror(errno.ENOSPC) in str(error):  # safetensors
        return True
    # numpy's OSError has no number and torch's RuntimeError no cause, but the temporary still fills the disk.
    unsaid = isinstance(error, RuntimeError) or (isinstance(error, OSError) and error.errno is None)
    return unsaid and path.parent.is_dir() and shutil.disk_usage(path.parent).free < 2**20


def require_writable(folder: str | Path) -> None:
    """Raise UserError where `folder` cannot be made or written: better before hours of work than after them."""
    place = Path(folder).absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise UserError(f"Cannot write into {folder}: {place} is not a folder. Choose another folder.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"Cannot write into {folder}: {place} is not yours to write. Choose another folder.")


@contextmanager
def only_writer(folder: str | Path, wait: bool = False) -> Iterator[None]:
    """Within, no other process writes into `folder` (by this lock), and what a killed one left half written is gone.

    The lock is the system's and ends with the process that holds it, however that ends. wait: until another process
    is done, for what both want alike; otherwise UserError is raised while another holds it.
    """
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"Another process is writing into {folder}. Wait for it, or choose another --out."
            ) from error
        for left in half_written(folder):
            _remove(left)
        yield
    finally:
        os.close(handle)


def half_written(folder: str | Path) -> list[Path]:
    """Temporaries of `atomic_path` in a folder and those below it, sorted; links to folders are not followed."""
    found = []
    for place, folders, names in os.walk(folder):
        found += [Path(place) / name for name in (*folders, *names) if _TEMPORARY.fullmatch(name)]
        folders[:] = [name for name in folders if not _TEMPORARY.fullmatch(name)]
    return sorted(found)


def sweep(folder: str | Path, below: bool = True) -> None:
    """Remove what a killed process left half written in a folder and `below`, but where somebody holds a lock."""
    import fcntl

    root = Path(folder)
    for left in [] if root.is_symlink() else half_written(root):
        within, held = left.relative_to(root).parents, []
        if len(within) > 1 and not below:
            continue
        try:
            for place in reversed(within):  # the root, then each folder on the way
                held.append(os.open(root / place, os.O_RDONLY))
                fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(left)
        except BlockingIOError:
            continue
        finally:
            for handle in held:
                os.close(handle)


def _remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def parse_json(text: str | bytes) -> Any:
    """What JSON text holds. Raises ValueError for what is none, is nested too deeply, or is no valid Unicode."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if b"\\ud" in (text if isinstance(text, bytes) else text.encode("utf-8", "replace")).lower():
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair, which no file and no page takes
    return value


def read_json(path: str | Path) -> Any:
    """What a JSON file holds; None where there is none, or one that cannot be read: for what can be made again."""
    try:
        return parse_json(Path(path).read_text("utf-8"))
    except (OSError, ValueError):
        return None


def typed_path(name: str | Path, kind: Callable[[Path], bool]) -> Path | None:
    """The path that somebody typed, where `kind` (Path.is_file, Path.is_dir) says so of it; None where it does not, and
    for what no file can be called."""
    try:
        path = Path(name).expanduser()
        return path if kind(path) else None
    except (OSError, ValueError, RuntimeError):
        return None


def safe_join(root: str | Path, name: str, told_by: str = "the dataset's index") -> Path:
    """`root / name`, refused when it would leave `root` (absolute names, `..`, symbolic links).

    told_by: what an error calls the file that has these names. Raises DataError naming the offending one.
    """
    try:
        root = Path(root).resolve()
    except ValueError as error:
        raise DataError(f"{str(root)!r} can be no folder; correct it in {told_by}.") from error
    try:
        usable = bool(name) and b"\0" not in os.fsencode(name)
    except ValueError:  # half of a character
        usable = False
    if not usable:
        raise DataError(f"A file name in {root}, {name!r}, is empty or no name; correct it in {told_by}.")
    target = (root / name).resolve()
    if not target.is_relative_to(root) or target == root:
        raise DataError(f"The file name {name!r} leaves the folder {root}; correct it in {told_by}.")
    return target


def file_hash(path: str | Path) -> str:
    """SHA-256 of the bytes of a file, or of a picture in a shard (`spans`), hexadecimal."""
    data = part_bytes(path)
    if data is not None:
        return hashlib.sha256(data).hexdigest()
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_hash(*parts: Any) -> str:
    """16 hexadecimal digits that change when any of `parts` (JSON-able values or bytes) changes."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=str).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]
