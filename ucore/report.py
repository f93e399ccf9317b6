"""What a run measured: the only writer into `reports/`, and the tables that are made from it.

`reports/<name>/metrics.json` holds one object:

    name, dataset, commit, command   str; commit as from `git_commit`, command as typed, without folder names
    simulated                        bool: true when any pixel or text was generated
    seed                             int
    date                             str, ISO 8601; absent when the run did not say
    machine                          object, see `machine_facts`
    parameters                       object of the settings that differ from run to run
    seconds                          object: stage -> seconds
    metrics                          list of {label, metric, value, low, high, n}: what was measured ("fine-tuned"),
                                     its name ("mR"), the number, the bounds of its interval and the count of
                                     queries behind it; the last three may be null
"""

import html
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ucore.errors import ConfigError, DataError
from ucore.evaluate import RECALLS
from ucore.files import atomic_path, write_json

NUMBER, NUMBER_OR_NULL = (int, float), (int, float, type(None))
REPORT_KEYS: dict[str, Any] = {
    "name": str,
    "dataset": str,
    "simulated": bool,
    "seed": int,
    "commit": str,
    "command": str,
    "machine": dict,
    "parameters": dict,
    "seconds": dict,
    "metrics": list,
}
MACHINE_KEYS: dict[str, Any] = {
    **{"cpu": str, "cores": int, "ram_gb": NUMBER_OR_NULL, "gpu": str},
    **{"python": str, "torch": str, "platform": str},
}
METRIC_KEYS: dict[str, Any] = {
    **{"label": str, "metric": str, "value": NUMBER},
    **{"low": NUMBER_OR_NULL, "high": NUMBER_OR_NULL, "n": (int, type(None))},
}

_ABSOLUTE_FOLDERS = re.compile(r"(?<![\w.~/:-])(?:~|[A-Za-z]:)?[/\\](?:[^/\\\s'\"]+[/\\])+")
_RESULT_FILES = ("*.py", "*.ipynb", "*.toml", "*.lock")  # a change of these can change a number


class Report:
    """Collects what one run measured and writes it to `root / name / metrics.json`.

    report = Report("04_train", dataset="RSICD", simulated=False, seed=0, command="ucore run 04")
    report.add("fine-tuned", "mR", 21.4, 19.8, 23.1, n=6564)
    report.seconds["train"] = 312.4
    report.write()
    """

    def __init__(
        self,
        name: str,
        root: str | Path = "reports",
        *,
        dataset: str,
        simulated: bool,
        seed: int,
        command: str,
        parameters: Mapping[str, Any] | None = None,
        date: str | None = None,
    ):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ConfigError(f"{name!r} cannot name a report; use letters, digits, '.', '_' and '-'.")
        self.path = Path(root) / name / "metrics.json"
        self.seconds: dict[str, float] = {}
        self._facts = {"name": name, "dataset": dataset, "simulated": simulated, "seed": seed, "command": command}
        self._facts |= {"parameters": dict(parameters or {})} | ({"date": date} if date else {})
        self._metrics: dict[tuple[str, str], dict[str, Any]] = {}

    def add(
        self,
        label: str,
        metric: str,
        value: float,
        low: float | None = None,
        high: float | None = None,
        n: int | None = None,
    ) -> None:
        """One number under `label`; a second one of the same label and metric replaces it (a cell run again)."""
        self._metrics[label, metric] = dict(label=label, metric=metric, value=value, low=low, high=high, n=n)

    def add_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """`add` for every row, a mapping of its arguments by name."""
        for row in rows:
            self.add(**row)

    def write(self) -> Path:
        """Check the report against the schema, then write it whole or not at all. Returns the file's path."""
        document = _plain(self._facts | {"seconds": self.seconds, "metrics": list(self._metrics.values())})
        document |= {"commit": git_commit(), "machine": machine_facts()}
        _check(document, self.path)
        write_json(self.path, document)
        return self.path

    def save_figure(self, name: str, png: bytes) -> Path:
        """Keep a small figure, PNG bytes, beside metrics.json. Raises ConfigError for a name that is a path."""
        if not re.fullmatch(r"[A-Za-z0-9_-]+\.png", name):
            raise ConfigError(f"{name!r} cannot name a figure; use letters, digits, '_' and '-', ending in .png.")
        path = self.path.with_name(name)
        with atomic_path(path) as temporary:
            temporary.write_bytes(png)
        return path


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


def git_commit(folder: str | Path | None = None) -> str:
    """Commit of the repository that tracks `folder` (this package's, by default), or "unknown" without one.

    Ends in "+dirty" when code, notebooks or pinned versions differ from that commit or are not part of it. Other
    files do not count: reports and the README's tables change while a series of notebooks runs.
    """
    folder = Path(folder or Path(__file__).parent)
    commit, tracked = _git(folder, "rev-parse", "HEAD"), _git(folder, "ls-files", "--", ".")
    if not commit or not tracked:  # an installed package may lie inside somebody else's repository
        return "unknown"
    patterns = [f":(top){pattern}" for pattern in _RESULT_FILES]
    return commit + ("+dirty" if _git(folder, "status", "--porcelain", "-uall", "--", *patterns) else "")


def load_report(path: str | Path) -> dict[str, Any]:
    """Read a metrics.json and check it against the schema.

    Raises DataError that names the file and what is missing, of the wrong type, or not finite.
    """
    try:
        document = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise DataError(
            f"Cannot read the report {path} ({error.strerror}); run the notebook that writes it."
        ) from error
    except ValueError as error:
        raise DataError(f"The report {path} is not JSON ({error}); run the notebook that writes it again.") from error
    _check(document, path)
    return document


def load_reports(root: str | Path = "reports") -> list[dict[str, Any]]:
    """Every report under `root`, by name. Raises DataError when there is none or one is damaged."""
    paths = sorted(Path(root).glob("*/metrics.json"))
    if not paths:
        raise DataError(f"There is no report under {root}; run the notebooks first: ucore reproduce --data FOLDER")
    return [load_report(path) for path in paths]


def provenance(reports: Iterable[Mapping[str, Any]]) -> str:
    """Where the numbers come from: a Markdown line a report, with data, seed, commit, machine and command."""
    lines = []
    for report in reports:
        kind, machine = "simulated" if report["simulated"] else "real", report["machine"]
        where = f"{machine['cpu']}, {machine['cores']} cores, GPU {machine['gpu']}, torch {machine['torch']}"
        lines.append(
            f"- {_escape(report['name'])}: {_escape(report['dataset'])} ({kind} data), seed {report['seed']}, "
            f"commit {report['commit'][:12]}{'+dirty' if report['commit'].endswith('+dirty') else ''}, "
            f"{_escape(where)}, {sum(report['seconds'].values()) / 60:.1f} min; `{report['command']}`"
        )
    return "\n".join(lines) + "\n"


def write_results(reports: Sequence[Mapping[str, Any]], root: str | Path = "reports") -> Path:
    """Write `root`/results.md, the page with all numbers and their origin. Returns its path."""
    path = Path(root) / "results.md"
    intro = "Made by notebooks/09_results.ipynb from the metrics.json files beside it; not edited by hand."
    page = f"# Results\n\n{intro}\n\n{markdown_table(reports)}\n## Origin\n\n{provenance(reports)}"
    with atomic_path(path) as temporary:
        temporary.write_text(page, "utf-8")
    return path


def markdown_table(
    reports: Iterable[Mapping[str, Any]],
    metrics: Sequence[str] = (*RECALLS, "mR"),
    intervals: Sequence[str] = ("mR",),
) -> str:
    """Markdown table of loaded reports: one row per label in the order measured, one column per metric.

    Metrics named in `intervals` show [low, high] where the report has them; a dash stands for what was not
    measured, and simulated data are called so. Raises DataError when no report holds any of the metrics.
    """
    heads = [metric.replace("image_to_text_", "i2t ").replace("text_to_image_", "t2i ") for metric in metrics]
    lines = [["dataset", "model", *(head.replace("_", " ") for head in heads), "report"]]
    lines.append(["---", "---", *("---:" for _ in metrics), "---"])
    for report in reports:
        rows: dict[str, dict[str, str]] = {}
        for entry in report["metrics"]:
            if entry["metric"] in metrics:
                rows.setdefault(entry["label"], {})[entry["metric"]] = _cell(entry, entry["metric"] in intervals)
        dataset = _escape(report["dataset"]) + (" (simulated)" if report["simulated"] else "")
        for label, cells in rows.items():
            numbers = [cells.get(metric, "–") for metric in metrics]
            lines.append([dataset, _escape(label), *numbers, _escape(report["name"])])
    if len(lines) == 2:
        raise DataError(f"No report holds any of {', '.join(metrics)}; run the notebooks that measure them first.")
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def update_marked_section(path: str | Path, marker: str, text: str) -> None:
    """Replace what stands between `<!-- BEGIN marker -->` and `<!-- END marker -->` in a Markdown file by `text`.

    All else stays as it is. Raises DataError when the file is missing or has not each line once, in this order.
    """
    begin, end = f"<!-- BEGIN {marker} -->", f"<!-- END {marker} -->"
    path = Path(path)
    try:
        page = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path} as text ({error}); name an existing Markdown file.") from error
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(end) < page.index(begin):
        raise DataError(f"{path} must hold {begin} and, below it, {end}, each once; add them where the text belongs.")
    if begin in text or end in text:
        raise DataError(f"The text for {path} holds the marker {marker} itself; remove it from the text.")
    head, tail = page[: page.index(begin) + len(begin)], page[page.index(end) :]
    with atomic_path(path) as temporary:
        temporary.write_bytes(f"{head}\n{text.strip()}\n{tail}".encode())


def _cell(entry: Mapping[str, Any], with_interval: bool) -> str:
    low, high = entry["low"], entry["high"]
    return f"{entry['value']:.2f}" + (f" [{low:.2f}, {high:.2f}]" if with_interval and None not in (low, high) else "")


def _escape(text: str) -> str:
    """Names come from datasets: shown as they are, they must not become markup or another column."""
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it: numpy scalars as numbers, other objects as text, folder names cut off."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return _ABSOLUTE_FOLDERS.sub(".../", str(value))


def _check(document: Any, path: str | Path) -> None:
    where = f"The report {path}"
    _check_keys(document, REPORT_KEYS, where)
    _check_keys(document["machine"], MACHINE_KEYS, f"{where}, machine")
    _check_keys(document["seconds"], dict.fromkeys(document["seconds"], NUMBER), f"{where}, seconds")
    _check_keys(document, {"date": str} if "date" in document else {}, where)
    for number, entry in enumerate(document["metrics"]):
        _check_keys(entry, METRIC_KEYS, f"{where}, metrics[{number}]")


def _check_keys(value: Any, schema: Mapping[str, Any], where: str) -> None:
    if not isinstance(value, dict):
        raise DataError(f"{where}: an object is expected, not {type(value).__name__}; write the report again.")
    for key, kinds in schema.items():
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        if key not in value:
            raise DataError(f"{where}: {key!r} is missing; write the report again.")
        item = value[key]
        right = type(item) in kinds and not (isinstance(item, float) and not math.isfinite(item))
        if not right:
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise DataError(f"{where}: {key!r} is {item!r:.60}, expected {expected}; write the report again.")


def _cpu_name() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8", "replace"), re.MULTILINE)
    except OSError:
        match = None
    return match[1].strip() if match else platform.processor() or platform.machine() or "unknown"


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
