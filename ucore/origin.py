"""Where a number comes from: the commit, the machine, the code that a notebook uses, the content of a dataset.

A key is 16 hexadecimal digits that change with what they stand for. A report carries those of its code and its data,
so that it can be told later whether it is of today's code, and whether two reports are of the same data.
"""

import ast
import os
import platform
import re
import stat
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ucore.errors import DataError
from ucore.files import content_hash, file_hash, read_json, syntax_tree, write_json

UNKNOWN = "unknown"
_RESULT_FILES = ("*.py", "*.ipynb", "*.toml", "*.lock")  # a change of these can change a number
_TABLE = "manifest.parquet"  # known by its rows: the file also holds the folder it lies in
_WORKING = "parts"  # what `simulate` records on its way; the same facts stand in the table


def machine_facts() -> dict[str, Any]:
    """What the numbers were measured on, without host, user or folder names.

    cpu (model), cores (usable by this process), ram_gb (GiB; None where the system does not tell), gpu (names, or
    "none"), python and torch (versions), platform (system and architecture).
    """
    import torch

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    sysconf = getattr(os, "sysconf", None)  # absent on Windows, as sched_getaffinity is on macOS too
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "ram_gb": round(sysconf("SC_PAGE_SIZE") * sysconf("SC_PHYS_PAGES") / 2**30, 1) if sysconf else None,
        "gpu": ", ".join(gpus) or "none",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def peak_memory_gb() -> float:
    """Largest resident memory of this process so far, in GB (10^9 bytes).

    On Linux the kernel's figure of this program alone: getrusage's is never below that of the process that started it.
    """
    try:
        match = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text("utf-8", "replace"), re.MULTILINE)
    except OSError:
        match = None
    if match:
        return int(match[1]) * 1024 / 1e9
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if platform.system() == "Darwin" else 1024) / 1e9


def _cpu_name() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8", "replace"), re.MULTILINE)
    except OSError:
        match = None
    return match[1].strip() if match else platform.processor() or platform.machine() or UNKNOWN


# --- code -------------------------------------------------------------------------------------------------------


def git_commit(folder: str | Path | None = None) -> str:
    """Commit of the repository that tracks `folder` (this package's, by default), or "unknown" without one.

    Ends in "+dirty" when code, notebooks or pinned versions differ from that commit or are not part of it. Other
    files do not count: reports and the README's tables change while a series of notebooks runs.
    """
    folder = Path(folder or Path(__file__).parent)
    commit, tracked = _git(folder, "rev-parse", "HEAD"), _git(folder, "ls-files", "--", ".")
    if not commit or not tracked:  # an installed package may lie inside somebody else's repository
        return UNKNOWN
    patterns = [f":(top){pattern}" for pattern in _RESULT_FILES]
    return commit + ("+dirty" if _git(folder, "status", "--porcelain", "-uall", "--", *patterns) else "")


def _git(folder: Path, *arguments: str) -> str:
    """What git prints, or "" when it fails or is not installed."""
    # A hook that runs this points these at its own repository.
    hook = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in hook}
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, env=environment, check=False
        )
    except OSError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def code_key(sources: Iterable[str], package: str | Path | None = None) -> str:
    """Key of pieces of Python, such as a notebook's code cells, and of all the code of ours that they use.

    That is every module of `package` (this one, by default) that they import, and what these import, wherever in a
    function an import stands; and the package's other files, such as the bundled weights, as a whole; model cards
    do not count. A comment counts as well as a statement. Where an import cannot be followed, the whole package counts.
    """
    package = Path(package or Path(__file__).parent)
    cells = list(sources)
    modules = _modules_of(cells, package)
    others = [path for path in sorted((package / "assets").rglob("*")) if path.is_file() and path.suffix != ".md"]
    files = [package / "__init__.py", *(package / f"{name}.py" for name in sorted(modules)), *others]
    known = {path.relative_to(package).as_posix(): file_hash(path) for path in files if path.is_file()}
    return content_hash(cells, known)


def _modules_of(cells: Iterable[str], package: Path) -> set[str]:
    every = {path.stem for path in package.glob("*.py")} - {"__init__"}
    found: set[str] = set()
    waiting = [name for cell in cells for name in _imported(cell)]
    while waiting:
        name = waiting.pop()
        if name not in every and name not in ("__version__", "STARTED"):
            return every
        if name in every and name not in found:
            found.add(name)
            waiting += _imported((package / f"{name}.py").read_text("utf-8"))
    return found


@cache
def _imported(source: str) -> frozenset[str]:
    """The first names below `ucore` that a piece of Python imports, wherever; "?" for what cannot be followed."""
    try:  # a cell may hold lines that are IPython's: %matplotlib, !ls
        lines = ("" if line.lstrip().startswith(("%", "!")) else line for line in source.split("\n"))
        tree = syntax_tree("\n".join(lines))
    except SyntaxError:
        return frozenset("?")
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            parts = [alias.name.split(".") for alias in node.names]
            names |= {path[1] for path in parts if path[0] == "ucore" and len(path) > 1}
            names |= {"?" for alias in node.names if alias.name == "ucore" and alias.asname}
        elif isinstance(node, ast.ImportFrom):
            path = f"ucore.{node.module or ''}" if node.level else node.module or ""
            if path.rstrip(".") == "ucore":
                names |= {alias.name for alias in node.names}
            elif path.startswith("ucore."):
                names.add(path.split(".")[1])
    return frozenset(names)


# --- data -------------------------------------------------------------------------------------------------------


def data_key(folder: str | Path, memory: str | Path | None = None) -> str:
    """Key of all files of a dataset folder, by their names and bytes; the same wherever the folder lies.

    memory: a JSON file that keeps what was read of each file, so that a second call reads only files of another
    size or time. Shards that shards.txt names elsewhere count by their names alone. Raises DataError for what cannot
    be read, such as a link to nothing or a pipe.
    """
    from ucore.images import map_files

    root = Path(folder)
    paths = sorted(_files(root))
    known = _remembered(memory)
    try:
        states = {path.relative_to(root).as_posix(): [*_state(path)] for path in paths}
    except OSError as error:
        raise DataError(f"Cannot read {error.filename} ({error.strerror}). Restore it, or remove it.") from error
    unread = [path for path in paths if known.get(name := path.relative_to(root).as_posix(), [])[:2] != states[name]]
    hashes = dict(zip(unread, map_files(_hash, unread, "Hashing the dataset"), strict=True))
    names = {path: path.relative_to(root).as_posix() for path in paths}
    table = {name: [*states[name], hashes[path] if path in hashes else known[name][2]] for path, name in names.items()}
    kept = {name: entry for name, entry in table.items() if _is_utf8(name)}  # JSON has no way to write other names
    if memory is not None and kept != known:
        write_json(memory, kept)
    return content_hash({name: entry[2] for name, entry in table.items()})


def _files(root: Path) -> Iterator[Path]:
    seen = set()
    for place, folders, names in os.walk(root, followlinks=True):
        here = os.path.realpath(place)
        if here in seen:  # a link back to a folder above
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != _WORKING)
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _state(path: Path) -> tuple[int, int]:
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):  # a pipe would be waited for
        raise DataError(f"{path} is no file but a pipe, a socket or a device. Remove it from the dataset's folder.")
    return info.st_size, info.st_mtime_ns


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _hash(path: Path) -> str:
    try:
        return _hash_of_rows(path) if path.name == _TABLE else file_hash(path)
    except OSError as error:
        raise DataError(f"Cannot read {path} ({error.strerror}). Restore it, or remove it.") from error


def _hash_of_rows(path: Path) -> str:
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.ParquetFile(path).iter_batches()
        return content_hash([content_hash(batch.to_pylist()) for batch in rows])
    except Exception:  # no whole table, or values that Python does not know: whoever reads it will say so
        return file_hash(path)


def _remembered(memory: str | Path | None) -> dict[str, Any]:
    kept = None if memory is None else read_json(memory)
    if isinstance(kept, dict) and all(_is_entry(entry) for entry in kept.values()):
        return kept
    return {}


def _is_entry(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and isinstance(value[2], str)
