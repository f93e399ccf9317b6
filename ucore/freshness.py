"""Whether reports may stand on one page: all there, of today's code, of the same data."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ucore.errors import ConfigError, DataError
from ucore.manifest import few
from ucore.origin import UNKNOWN
from ucore.report import present_code

Reports = Sequence[Mapping[str, Any]]


def check_reports(reports: Reports, expected: Iterable[str] = (), keep: Iterable[str] = ()) -> None:
    """Raise DataError where reports are missing, stale or mixed, naming them and the command that helps.

    expected: names that must be there; the name of a notebook stands for any report of it that is not kept. keep: names
    that may be of earlier code or of other data: a long run whose numbers stand for the commit that they name. Missing:
    a name of `expected` without a report. Stale: the notebook, or a module that it uses, has changed since. Mixed: two
    reports of a dataset of one name and one kind, whose files or seeds differ; all that are expected must be of the
    same files and seed. Raises ConfigError for an unknown `keep`.
    """
    present = {report["name"]: report for report in reports}
    expected, keep = list(expected), set(keep)
    if unknown := sorted(keep - set(present)):
        raise ConfigError(f"keep names {few(unknown)}, of which there is no report. Correct the parameter keep.")
    new = set(present) - keep
    if missing := [name for name in expected if name not in present and not any(_is_of(one, name) for one in new)]:
        raise DataError(f"Missing: there is no report {few(missing)}. Run first: {_commands(missing)}")
    checked = [report for report in reports if report["name"] not in keep]
    if stale := [report["name"] for report in checked if is_stale(report)]:
        raise DataError(
            f"Stale: the code has changed since {few(stale)} was written. Run again: {_commands(stale)}; or show what "
            f"stands for its own commit with -p 'keep=[{', '.join(stale)}]'"
        )
    groups: dict[Any, dict[Any, str]] = {}
    for report in checked:
        awaited = any(_is_of(report["name"], name) for name in expected)
        together = "expected" if awaited else (report["simulated"], _name_of_data(report))
        groups.setdefault(together, {})[report["data"], report["seed"]] = report["name"]
    for kinds in groups.values():
        if len(kinds) > 1:
            (one, first), (other, second) = list(kinds.items())[:2]
            what = "files of the dataset" if one[0] != other[0] else f"seeds ({one[1]} and {other[1]})"
            raise DataError(
                f"Mixed: {first} and {second} are of different {what}. Run both on the same: "
                f"{_commands([first, second])}; or remove one of their folders."
            )


def _is_of(report: str, name: str) -> bool:
    """Whether a report has this name, or is of the notebook with this name."""
    return report == name or (report.startswith(f"{name}-") and "-" not in name)


def is_stale(report: Mapping[str, Any]) -> bool:
    """Whether the report's notebook, or code that it uses, is another than when the report was written."""
    return report["code"] == UNKNOWN or report["code"] != present_code(report["name"])


def _name_of_data(report: Mapping[str, Any]) -> str:
    """Without the split and the size of the part: "city val, 30 images" are data of "city"."""
    return re.sub(r"( val| test)?(, [\d,]+ images)?$", "", report["dataset"])


def _commands(names: Sequence[str]) -> str:
    return ", ".join(f"ucore run {number}" for number in dict.fromkeys(name[:2] for name in names))
