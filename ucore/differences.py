"""What changed between two runs: numbers with their intervals, settings, code, data, machine.

    print(compare_runs("reports", "../yesterday/reports").text())

How long something took is no result: neither a report's seconds and date nor metrics called seconds... count.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ucore.errors import ConfigError, DataError
from ucore.files import parse_json
from ucore.report import check_metrics, load_report, load_reports

NO_RESULT = ("metrics", "seconds", "date", "name", "peak_memory_gb")


@dataclass(frozen=True)
class Change:
    """One thing that differs: in `place` (a report), what it is called, and both values; None: absent there."""

    place: str
    what: str
    a: Any
    b: Any


@dataclass
class Differences:
    """facts: settings, code, data, machine. metrics: entries of both reports. only_a, only_b: reports of one run."""

    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)
    facts: list[Change] = field(default_factory=list)
    metrics: list[Change] = field(default_factory=list)
    compared: int = 0  # numbers that both runs have

    @property
    def same(self) -> bool:
        """Whether nothing differs: no report, no fact and no number."""
        return not (self.only_a or self.only_b or self.facts or self.metrics)

    def text(self) -> str:
        """A line a difference below the report's name, or one that says that there is none."""
        lines = [f"only in A: {_shown(name)}" for name in self.only_a]
        lines += [f"only in B: {_shown(name)}" for name in self.only_b]
        for place in dict.fromkeys(change.place for change in (*self.facts, *self.metrics)):
            lines.append(f"{_shown(place)}:")
            lines += [f"  {_shown(c.what)}: {_shown(c.a)} -> {_shown(c.b)}" for c in self.facts if c.place == place]
            lines += [f"  {_metric_line(c)}" for c in self.metrics if c.place == place]
        count = f"{self.compared:,} numbers compared"
        differ = f"{len(self.metrics):,} numbers and {len(self.facts):,} facts differ."
        return "\n".join([*lines, f"Same: {count}." if self.same else f"Different: {count}; {differ}"])

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        listed = {"facts": self.facts, "metrics": self.metrics}
        changes = {name: [vars(change) for change in found] for name, found in listed.items()}
        return {"same": self.same, "compared": self.compared, "only_a": self.only_a, "only_b": self.only_b, **changes}


def compare_runs(a: str | Path, b: str | Path, tolerance: float = 0.0) -> Differences:
    """What differs between two runs; each a metrics.json, its folder, or a folder of reports.

    What `ucore train` and `adapt` leave, validation.json and adaptation.json, can be named as well. Two single reports
    are compared whatever they are called, several by name. tolerance: how far two numbers, or two bounds of intervals,
    may be apart and count as the same. Raises DataError for what is no report.
    """
    if not 0 <= tolerance < math.inf:
        raise ConfigError(f"tolerance is {tolerance}; it must be 0 or a finite number above it")
    first, second = _load(Path(a)), _load(Path(b))
    if len(first) == len(second) == 1:
        second = {next(iter(first)): next(iter(second.values()))}
    found = Differences([name for name in first if name not in second], [name for name in second if name not in first])
    for name in first:
        if name in second:
            _compare(name, first[name], second[name], tolerance, found)
    return found


def _load(path: Path) -> dict[str, dict[str, Any]]:
    """The reports of a run by name."""
    names = ("metrics.json", "validation.json", "adaptation.json")
    single = path if path.is_file() else next((path / name for name in names if (path / name).is_file()), None)
    if single is not None:
        return {single.parent.name if single.name in names else single.name: _load_one(single)}
    if not path.is_dir():
        raise DataError(f"There is no run {path}. Name a folder of reports, one of them, or a metrics.json.")
    nested = path / "reports"
    return {report["name"]: report for report in load_reports(nested if nested.is_dir() else path)}


def _load_one(path: Path) -> dict[str, Any]:
    """A report, or what `ucore train`, `eval` or `adapt` left beside a checkpoint, which bears no name."""
    try:
        document = parse_json(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read {path} as JSON ({error}); run what writes it again.") from error
    if isinstance(document, dict) and "name" in document:
        return load_report(path)
    check_metrics(document, f"The file {path}")
    return document


def _compare(name: str, a: Mapping[str, Any], b: Mapping[str, Any], tolerance: float, found: Differences) -> None:
    facts = [dict(_flat({key: value for key, value in one.items() if key not in NO_RESULT})) for one in (a, b)]
    for key in dict.fromkeys((*facts[0], *facts[1])):
        one, other = facts[0].get(key), facts[1].get(key)
        if one != other:
            found.facts.append(Change(name, key, one, other))
    entries = [{(entry["label"], entry["metric"]): entry for entry in one["metrics"]} for one in (a, b)]
    for key in dict.fromkeys((*entries[0], *entries[1])):
        one, other = entries[0].get(key), entries[1].get(key)
        if key[1].startswith("seconds"):
            continue
        found.compared += one is not None and other is not None
        if one is None or other is None or not _alike(one, other, tolerance):
            numbers = [None if e is None else {k: e[k] for k in ("value", "low", "high", "n")} for e in (one, other)]
            found.metrics.append(Change(name, ", ".join(key), *numbers))


def _flat(value: Any, prefix: str = "") -> Any:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _alike(a: Mapping[str, Any], b: Mapping[str, Any], tolerance: float) -> bool:
    for key in ("value", "low", "high"):
        one, other = a[key], b[key]
        if one != other and (one is None or other is None or abs(one - other) > tolerance):
            return False
    return a["n"] == b["n"]


def _metric_line(change: Change) -> str:
    told = f"{_shown(change.what)}: {_number(change.a)} -> {_number(change.b)}"
    if change.a is None or change.b is None:
        return told
    bounds = [(one["low"], one["high"]) for one in (change.a, change.b)]
    apart = None not in (*bounds[0], *bounds[1]) and (bounds[0][1] < bounds[1][0] or bounds[1][1] < bounds[0][0])
    return f"{told} ({change.b['value'] - change.a['value']:+.4g}{', intervals apart' if apart else ''})"


def _number(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "absent"
    bounds = "" if entry["low"] is None else f" [{entry['low']:.6g}, {entry['high']:.6g}]"
    return f"{entry['value']:.6g}{bounds}" + ("" if entry["n"] is None else f" n={entry['n']}")


def _shown(value: Any) -> str:
    """A fact on one line; what comes from a file is not sent to the terminal as it is."""
    text = "absent" if value is None else json.dumps(value, ensure_ascii=True) if not isinstance(value, str) else value
    return "".join(c if c.isprintable() else "?" for c in text)[:200]
