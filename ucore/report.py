"""What a run measured: the only writer of metrics, and the schema that is checked when they are written and read.

`reports/<name>/metrics.json` holds one object:

    name, dataset, commit, command   str; commit as from `git_commit`, command as typed, without folder names
    code, data                       str, keys of the notebook with the code it uses and of the dataset's files (see
                                     `origin`); "unknown" where no notebook has that name or no data are given
    simulated                        bool: true when any pixel or text was generated
    seed                             int
    date                             str, ISO 8601; absent when the run did not say
    machine                          object, see `machine_facts`
    parameters                       object of the settings that differ from run to run
    seconds                          object: stage -> seconds; of the notebook until then where none was counted
    metrics                          list of {label, metric, value, low, high, n}: what was measured ("fine-tuned"),
                                     its name ("mR"), the number, the bounds of its 95 % interval and the count of
                                     queries behind it; the last three may be null, a label has a metric once
"""

import json
import math
import re
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import ucore
from ucore.errors import ConfigError, DataError, without_secrets
from ucore.files import atomic_path, content_hash, parse_json, write_json
from ucore.notebooks import code_cells, find_notebook
from ucore.origin import UNKNOWN, code_key, data_key, git_commit, machine_facts

if TYPE_CHECKING:
    from ucore.manifest import Manifest

NUMBER, NUMBER_OR_NULL = (int, float), (int, float, type(None))
REPORT_KEYS: dict[str, Any] = {
    "name": str,
    "dataset": str,
    "simulated": bool,
    "seed": int,
    "commit": str,
    "code": str,
    "data": str,
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

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,150}")
MOST_LETTERS = 150  # of a name that is made here: some file systems end at 255 bytes, and files lie below it
MOST = 1e300  # JSON may hold whole numbers that no float does
_WEIGHTS = re.compile(r"(?:[^:]*[/\\])?([^/\\:]+)\.(?:pth?|bin|safetensors)$")  # "vit_b:" before it stays
_ABSOLUTE_FOLDERS = re.compile(r"(?<![\w.~/-])(?:~|[A-Za-z]:)?[/\\](?:[^/\\\s'\"]+[/\\])+")


def report_name(chapter: str, *parts: str, of: "Manifest | None" = None) -> str:
    """ "04_train-lite0-minilm-tiny-simulated": the name of a report, another one for other data.

    parts: what sets it apart from others of its notebook, as text; of a file of weights the name without its folder;
    signs that no folder's name may have become "-". of: the data; "simulated", or what they are called, ends the name.
    What is longer than MOST_LETTERS ends in a hash of the whole.
    """
    plain = [_WEIGHTS.sub(r"\1", part) for part in parts]
    words = [chapter, *plain, "" if of is None else "simulated" if of.simulated else of.name]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(filter(None, words)))
    return name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 17]}-{content_hash(words)[:16]}"


def run_command(notebook: str, **parameters: object) -> str:
    """ "ucore run 04 -p scale=tiny -p seed=0": the command of a run; what is None or an empty list is left out."""
    given = {name: value for name, value in parameters.items() if value is not None and value != []}
    words = [f"{name}={json.dumps(value) if isinstance(value, list) else value}" for name, value in given.items()]
    return " ".join(["ucore run", notebook, *(f"-p {shlex.quote(word)}" for word in words)])


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
        data: str | Path | Sequence[str | Path] | None = None,
    ):
        """dataset: what the data are called; data: their folder, or folders, whose files the report's
        key `data` stands for; a folder that is named twice, or by nothing, makes no other key."""
        if not NAME.fullmatch(name):
            raise ConfigError(f"{name!r} cannot name a report; use letters, digits, '.', '_' and '-'.")
        self.path = Path(root) / name / "metrics.json"
        self.seconds: dict[str, float] = {}
        self._facts = {"name": name, "dataset": dataset, "simulated": simulated, "seed": seed, "command": command}
        self._facts |= {"parameters": dict(parameters or {})} | ({"date": date} if date else {})
        folders = [data] if isinstance(data, str | Path) else data or []
        self._folders = list(dict.fromkeys(Path(folder) for folder in folders if str(folder)))
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
        seconds = self.seconds or {"notebook": round(time.perf_counter() - ucore.STARTED, 1)}
        facts = self._facts | {"seconds": seconds, "metrics": list(self._metrics.values())}
        keys = list(dict.fromkeys(data_key(folder) for folder in self._folders)) or [UNKNOWN]
        data = keys[0] if len(keys) == 1 else content_hash(keys)
        write_report(self.path, {**facts, "code": present_code(self._facts["name"]), "data": data})
        return self.path

    def save_figure(self, name: str, png: bytes) -> Path:
        """Keep a small figure, PNG bytes, beside metrics.json. Raises ConfigError for a name that is a path."""
        if not re.fullmatch(r"[A-Za-z0-9_-]+\.png", name):
            raise ConfigError(f"{name!r} cannot name a figure; use letters, digits, '_' and '-', ending in .png.")
        path = self.path.with_name(name)
        with atomic_path(path) as temporary:
            temporary.write_bytes(png)
        return path


def write_report(path: Path, facts: Mapping[str, Any]) -> None:
    """Write `facts`, with commit and machine, as a report, whole or not at all; its folder's name is its own, unless
    they name it. Raises DataError for what the schema lacks or does not know as such."""
    name = re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9._-]+", "-", path.resolve().parent.name).lstrip("-._") or "run"
    document = _plain({"name": name[:150], **facts}) | {"commit": git_commit(), "machine": machine_facts()}
    _check(document, path)
    write_json(path, document)


def present_code(name: str) -> str:
    """Key of the code that the notebook of a report ("04_train-lite0" is of 04_train) uses now, or "unknown"."""
    try:
        return code_key(code_cells(find_notebook(name.partition("-")[0])))
    except ConfigError:
        return UNKNOWN


def load_report(path: str | Path) -> dict[str, Any]:
    """Read a metrics.json and check it against the schema.

    Raises DataError that names the file and what is missing, of the wrong type, or not finite.
    """
    try:
        document = parse_json(Path(path).read_text("utf-8"))
    except OSError as error:
        raise DataError(
            f"Cannot read the report {path} ({error.strerror}); run the notebook that writes it."
        ) from error
    except ValueError as error:
        raise DataError(f"The report {path} is not JSON ({error}); run the notebook that writes it again.") from error
    _check(document, path)
    return document


def load_reports(root: str | Path = "reports") -> list[dict[str, Any]]:
    """Every report under `root`, by name. Raises DataError when there is none, one is damaged, or two bear one name."""
    paths = sorted(Path(root).glob("*/metrics.json"))
    if not paths:
        raise DataError(f"There is no report under {root}; run the notebooks first: ucore reproduce --data FOLDER")
    reports = [load_report(path) for path in paths]
    names = [report["name"] for report in reports]
    for number, name in enumerate(names):
        if name in names[:number]:
            both = f"{paths[names.index(name)].parent} and {paths[number].parent}"
            raise DataError(f"{both} both hold a report of the name {name[:80]!r}; remove one of these folders.")
    return reports


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it: numpy scalars as numbers, other objects as text, folder names cut off."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return _ABSOLUTE_FOLDERS.sub(".../", without_secrets(str(value)))


def _check(document: Any, path: str | Path) -> None:
    where = f"The report {path}"
    _check_keys(document, REPORT_KEYS, where)
    _check_keys(document["machine"], MACHINE_KEYS, f"{where}, machine")
    _check_keys(document["seconds"], dict.fromkeys(document["seconds"], NUMBER), f"{where}, seconds")
    _check_keys(document, {"date": str} if "date" in document else {}, where)
    if any(value < 0 for value in document["seconds"].values()):
        raise DataError(f"{where}, seconds: one is negative; write the report again.")
    if not NAME.fullmatch(document["name"]):  # it becomes part of paths
        raise DataError(f"{where}: {document['name']!r} cannot name a report; write the report again.")
    check_metrics(document, where)


def check_metrics(document: Any, where: str) -> None:
    """Raise DataError, beginning with `where`, unless `document` holds `metrics` as the schema wants them."""
    _check_keys(document, {"metrics": list}, where)
    seen = set()
    for number, entry in enumerate(document["metrics"]):
        place = f"{where}, metrics[{number}]"
        _check_keys(entry, METRIC_KEYS, place)
        low, high, n = entry["low"], entry["high"], entry["n"]
        if (low is None) != (high is None) or (low is not None and low > high):
            raise DataError(f"{place}: {low} to {high} is no interval; write the report again.")
        if n is not None and n < 0:
            raise DataError(f"{place}: 'n' is {n}, a count; write the report again.")
        if (key := (entry["label"], entry["metric"])) in seen:
            raise DataError(f"{place}: {key[1]!r} of {key[0]!r} is there twice; write the report again.")
        seen.add(key)


def _check_keys(value: Any, schema: Mapping[str, Any], where: str) -> None:
    if not isinstance(value, dict):
        raise DataError(f"{where}: an object is expected, not {type(value).__name__}; write the report again.")
    for key, kinds in schema.items():
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        if key not in value:
            raise DataError(f"{where}: {key!r} is missing; write the report again.")
        item = value[key]
        right = type(item) in kinds and not (isinstance(item, int | float) and not abs(item) < MOST)
        if not right:
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise DataError(f"{where}: {key!r} is {item!r:.60}, expected {expected}; write the report again.")
