"""The series as one job: independent notebooks at the same time, and none that has run already.

    reproduce({"dataset": "runs/simulated", "scale": "tiny"}, ["04", "07", "09"], "runs/notebooks")

A finished notebook leaves run.json beside it: a key of its code, the code of ours that it uses, its parameters, the
content of its data and the pinned versions; and what it wrote. While the key is the same and the files are there, it
is not run again. What was stopped in the middle goes on where it was, by what the notebook itself keeps.
"""

import glob
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import ucore
from ucore.config import did_you_mean
from ucore.errors import ConfigError
from ucore.files import content_hash, file_hash, only_writer, read_json, require_writable, sweep, write_json
from ucore.notebooks import checked_parameters, code_cells, find_notebook, notebook_parameters
from ucore.origin import code_key, data_key
from ucore.processes import cores
from ucore.runner import RunResult, run_notebook, stop_notebooks
from ucore.series import RESULTS, Chapter, chapter_of, known_key

VERSION = 1  # of what run.json means
RECORD = "run.json"
MOST_JOBS = 4  # without being asked: a kernel takes one to two GB
MEMORY = "data"  # folder beside the executed notebooks: what was read of datasets


class Task(NamedTuple):
    """A notebook to run: what the series says of it, its file, and its share of the parameters."""

    chapter: Chapter
    path: Path
    parameters: dict[str, Any]


def reproduce(
    parameters: Mapping[str, Any],
    names: Sequence[str | Path],
    out: str | Path = "runs/notebooks",
    progress: bool = True,
    timeout: int | None = None,
    jobs: int | None = None,
) -> list[RunResult]:
    """Run notebooks, each with those of the shared `parameters` it declares; a line for each as it ends.

    A notebook starts when those that the series puts before it have ended, the longest first. jobs: how many at the
    same time, each with its share of the cores; None: one a core, at most 4. Results come in the order of `names`.
    Everything is checked before the first starts. After a failure nothing more is started, what runs may end, and
    the first failure's error is raised, as by `run_notebook`. Raises ConfigError for a parameter that none of them
    declares, UserError while another process reproduces into `out`.
    """
    tasks = _tasks(parameters, names)
    count = jobs if jobs is not None else min(cores(), MOST_JOBS)
    if count < 1:
        raise ConfigError(f"--jobs is {count}; it must be at least 1")
    out = Path(out)
    require_writable(out)
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        run = _Run(tasks, out, min(count, len(tasks)), progress, timeout)
        return run.all()


def _tasks(parameters: Mapping[str, Any], names: Sequence[str | Path]) -> list[Task]:
    paths = [find_notebook(name) for name in names]
    declared = {path: notebook_parameters(path) for path in paths}
    known = list(dict.fromkeys(name for parameter in declared.values() for name in parameter))
    for name in parameters:
        if name not in known:
            stems = ", ".join(path.stem for path in paths)
            raise ConfigError(f"{name!r} is not a parameter of any of {stems}{did_you_mean(name, known)}")
    shares = [checked_parameters(path, {k: v for k, v in parameters.items() if k in declared[path]}) for path in paths]
    return [Task(chapter_of(path), path, share) for path, share in zip(paths, shares, strict=True)]


class _Run:
    """The state of one job: what waits, what runs, what has ended."""

    def __init__(self, tasks: list[Task], out: Path, jobs: int, progress: bool, timeout: int | None) -> None:
        self.tasks, self.out, self.jobs, self.progress, self.timeout = tasks, out, jobs, progress, timeout
        # The share is the same whatever else runs, since the number of threads shows in the last digits of a sum.
        self.threads = max(1, cores() // jobs)
        self.waiting = list(tasks)
        self.running: dict[Future[RunResult], Task] = {}
        self.ended: dict[str, RunResult] = {}
        self.places = set(range(jobs))  # lines of the progress bars
        self.failure: BaseException | None = None

    def all(self) -> list[RunResult]:
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                while self.waiting or self.running:
                    self._start(pool)
                    done, _ = wait(self.running, return_when=FIRST_COMPLETED)
                    self._collect(done)
            except KeyboardInterrupt:
                stop_notebooks()
                raise  # when the last of them has ended
        if self.failure is not None:
            raise self.failure
        return [self.ended[task.path.stem] for task in self.tasks]

    def _start(self, pool: ThreadPoolExecutor) -> None:
        """Start what may: the longest first; nothing beside a notebook that must be alone, nothing after a failure."""
        if self.failure is not None:
            self.waiting.clear()
        for task in sorted(self.waiting, key=lambda task: -task.chapter.seconds):
            alone = task.chapter.alone or any(other.chapter.alone for other in self.running.values())
            if self._ready(task) and len(self.running) < self.jobs and not (alone and self.running):
                self.waiting.remove(task)
                self.running[pool.submit(self._do, task)] = task

    def _ready(self, task: Task) -> bool:
        unfinished = {other.path.stem for other in (*self.waiting, *self.running.values())} - {task.path.stem}
        first = next((other for other in self.tasks if other.chapter.alone), None)
        if first is not None and first is not task and first.path.stem in unfinished:
            return False
        return not unfinished if task.chapter.name == RESULTS else not unfinished & set(task.chapter.after)

    def _collect(self, done: Iterable[Future[RunResult]]) -> None:
        for future in done:
            task = self.running.pop(future)
            error = future.exception()
            if error is None:
                self.ended[task.path.stem] = future.result()
            elif self.failure is None:
                self.failure = error

    def _do(self, task: Task) -> RunResult:
        """Run a notebook, or take what an earlier run left. In a thread."""
        started, outcome = time.perf_counter(), "failed"
        place = self.places.pop()
        try:
            task = task._replace(parameters=self._with_reports(task))
            folder = self.out / task.path.stem
            key = run_key(task, self.out / MEMORY)
            kept = finished(folder, key)
            if kept is not None:
                outcome = "as before"
                return RunResult(folder / task.path.name, folder / f"{task.path.stem}.html", kept)
            (folder / RECORD).unlink(missing_ok=True)
            _sweep(task)
            before = {path: _stamp(path) for path in _reports(task)}
            result = run_notebook(
                task.path, task.parameters, self.out, progress=self.progress, timeout=self.timeout,
                threads=cores() if task.chapter.alone else self.threads, place=place,
            )  # fmt: skip
            written = {str(path): file_hash(path) for path in _written(task, folder, before)}
            write_json(folder / RECORD, {"key": key, "seconds": round(result.seconds, 1), "files": written})
            outcome = "ok"
            return result
        finally:
            self.places.add(place)
            line = f"{task.path.stem:<20} {time.perf_counter() - started:8.1f} s  {outcome}\n"
            print(line, end="", flush=True)  # in one piece: another thread may print, too

    def _with_reports(self, task: Task) -> dict[str, Any]:
        """The parameters of the notebook of results: which reports this job made, and so which are of earlier ones."""
        declared = notebook_parameters(task.path)
        if not {"expected", "keep"} <= set(declared) or "expected" in task.parameters:
            return task.parameters
        reports = Path(task.parameters.get("reports", declared["reports"].default))
        made, expected = set(), set()
        for other in self.tasks:
            record = _record(self.out / other.path.stem)
            own = {Path(path).parent.name for path in record["files"] if Path(path).name == "metrics.json"}
            reporting = other is not task and "reports" in notebook_parameters(other.path)
            expected |= own or ({other.path.stem} if reporting else set())  # it ran and told nothing: that is missing
            made |= own
        present = {path.parent.name for path in reports.glob("*/metrics.json")}
        return {**task.parameters, "expected": sorted(expected), "keep": sorted(present - made)}


def _written(task: Task, folder: Path, before: Mapping[Path, Any]) -> list[Path]:
    """The files that make a finished run: the executed notebook and its page, the reports, what is to be looked at.

    before: its reports as they were; what has not changed since is another run's. A clock may jump, and is not asked.
    """
    found = [folder / task.path.name, folder / f"{task.path.stem}.html"]
    found += [path for path in _reports(task) if _stamp(path) != before.get(path)]
    out = _value(task, "out")
    if out is not None:
        found += [path for path in sorted((Path(out) / task.path.stem).glob("*.*")) if path.is_file()]
    return found


def _reports(task: Task) -> list[Path]:
    """Files where the notebook writes its reports."""
    place = _value(task, "reports")
    if place is None:
        return []
    reports = Path(place)
    own = [*reports.glob(f"{task.path.stem}*/*"), *([*reports.glob("*.*")] if task.chapter.name == RESULTS else [])]
    return [path for path in sorted(own) if path.is_file()]


def _sweep(task: Task) -> None:
    """Remove what a killed run left half written in the folders of the notebook and of its reports."""
    out, reports = _value(task, "out"), _value(task, "reports")
    if out is not None:
        sweep(Path(out) / task.path.stem)
    if reports is not None:
        for own in sorted(Path(reports).glob(f"{glob.escape(task.path.stem)}-*/")):
            sweep(own)
        if task.chapter.name == RESULTS:
            sweep(reports, below=False)


def _value(task: Task, name: str) -> Any:
    """The value of a parameter that the notebook declares, its default where none is given; else None."""
    declared = notebook_parameters(task.path)
    return task.parameters.get(name, declared[name].default) if name in declared else None


def _stamp(path: Path) -> tuple[int, ...]:
    info = path.stat()
    return info.st_ino, info.st_size, info.st_mtime_ns


def run_key(task: Task, memory: str | Path | None = None) -> str:
    """Key of all that a notebook's results depend on: see the module's first lines.

    A parameter that names a file or a folder counts by its content, too, but for the folders that are written. The
    notebook of results depends on the reports. memory: a folder for what was read of datasets.
    """
    contents = {}
    for name, value in task.parameters.items():
        if name in ("out", "reports", "readme") or not isinstance(value, str) or not value or not Path(value).exists():
            continue
        read = file_hash if Path(value).is_file() else data_key if memory is None else _remembering(memory)
        contents[name] = read(value)
    reports = []
    if task.chapter.name == RESULTS and "reports" in task.parameters:
        reports = _content(Path(task.parameters["reports"]))
    elif task.chapter.name == RESULTS:
        reports = _content(Path("reports"))
    lock = Path(ucore.__file__).parents[1] / "requirements.lock"
    versions = [platform.python_version(), platform.machine(), file_hash(lock) if lock.is_file() else ""]
    code = [code_key(code_cells(task.path)), file_hash(task.path)]
    return content_hash(VERSION, code, task.parameters, contents, reports, versions)


def _remembering(memory: str | Path) -> Any:
    return lambda folder: known_key(folder, memory)


def _content(reports: Path) -> list[Any]:
    """Names and hashes of what the notebook of results reads."""
    return [(str(path), file_hash(path)) for path in sorted(reports.glob("*/*")) if path.is_file()]


def finished(folder: Path, key: str) -> float | None:
    """The seconds that a finished run with this key took, where all its files are as it left them; else None."""
    record = _record(folder)
    if record.get("key") != key:
        return None
    for name, known in record["files"].items():
        if not os.path.isfile(name) or file_hash(name) != known:
            return None
    return float(record["seconds"])


def _record(folder: Path) -> dict[str, Any]:
    """What a finished run noted in its folder; no files where it did not, or not so."""
    record = read_json(folder / RECORD)
    if (
        isinstance(record, dict)
        and isinstance(record.get("files"), dict)
        and type(record.get("seconds")) in (int, float)
    ):
        return record | {"seconds": min(max(record["seconds"], 0), 10**9)}
    return {"files": {}, "seconds": 0.0}
