"""A notebook to begin with: it runs, passes the tests of notebooks, and has its line in the series.

make new-notebook NAME=10_seasons
"""

import json
import re
import sys
from pathlib import Path

import ucore
from ucore.errors import ConfigError, UserError
from ucore.files import atomic_path

PARAMETERS = """\
dataset = ""  # folder of the dataset; empty: the one UCORE_DATA names, else the built-in simulated set
scale = "tiny"  # tiny, small or full: how much is done
seed = 0  # of every random choice
out = "runs"  # folder for what this run makes
reports = "reports"  # folder for metrics.json and figures"""
DATA = """\
from ucore.data import find_dataset, read_dataset

source = find_dataset(dataset, scale, seed, out)
manifest = read_dataset(source, split=("train", "val"))
print("SIMULATED data." if manifest.simulated else "Real data.", f"{len(manifest):,} images.")"""
REPORT = """\
from ucore.report import Report, report_name

report = Report(
    report_name("{stem}", scale, of=manifest), reports,
    dataset=manifest.name, simulated=manifest.simulated, seed=seed, data=source,
    command=f"ucore run {number} -p scale={{scale}} -p seed={{seed}}", parameters={{"scale": scale}},
)  # fmt: skip
report.add("all", "images", len(manifest))
report.write()"""


def new_notebook(name: str, root: str | Path | None = None) -> Path:
    """Write notebooks/NAME.ipynb and its line into ucore/series.py, below `root` (this checkout's). Returns its path.

    name: two digits, an underscore and a word or several: "10_seasons". Raises ConfigError for another name, or one
    that is taken.
    """
    root = Path(root or Path(ucore.__file__).parents[1])
    if not re.fullmatch(r"\d\d_[a-z0-9]+(?:_[a-z0-9]+)*", name):
        raise ConfigError(f"{name!r} cannot name a notebook: write two digits and words, as make new-notebook "
                          "NAME=10_seasons")  # fmt: skip
    folder, series = root / "notebooks", root / "ucore" / "series.py"
    taken = sorted(path.stem for path in folder.glob(f"{name[:2]}_*.ipynb"))
    if taken:
        raise ConfigError(f"The number {name[:2]} is taken by {taken[0]}. Choose another one.")
    lines = series.read_text("utf-8").splitlines(keepends=True)
    places = [i for i, line in enumerate(lines) if re.match(r'    Chapter\("(\d\d)_', line)]
    before = next((i for i in places if lines[i].split('"')[1] > name), places[-1])  # the page of results stays last
    path = folder / f"{name}.ipynb"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(_stub(name), indent=1, ensure_ascii=False) + "\n", "utf-8")
    with atomic_path(series) as temporary:
        temporary.write_text("".join([*lines[:before], f'    Chapter("{name}"),\n', *lines[before:]]), "utf-8")
    return path


def _stub(name: str) -> dict:
    words = name[3:].replace("_", " ")
    report = REPORT.format(stem=name, number=name[:2])
    why = "Why the question matters, and what this notebook does about it."
    onward = "Next: [09_results](09_results.ipynb) puts all numbers on one page."
    cells = [
        ("markdown", f"# What do we want to know about {words}?\n\n## Overview\n\n{why}"),
        ("parameters", PARAMETERS),
        ("markdown", "## The data\n\nWhich samples are looked at, and why these."),
        ("code", DATA),
        ("markdown", "## The report\n\nWhat was measured, with intervals where there are any."),
        ("code", report),
        ("markdown", f"## What we learned\n\nThe answer, with its limits.\n\n{onward}"),
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    made = [_cell(number, kind, text) for number, (kind, text) in enumerate(cells)]
    return {
        "cells": made,
        "metadata": {**about, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _cell(number: int, kind: str, text: str) -> dict:
    cell = {"cell_type": "markdown" if kind == "markdown" else "code", "id": str(number), "metadata": {}}
    cell["source"] = text.splitlines(keepends=True)
    if kind == "parameters":
        cell["metadata"] = {"tags": ["parameters"]}
    return cell if kind == "markdown" else {**cell, "execution_count": None, "outputs": []}


if __name__ == "__main__":
    try:
        print(f"Wrote {new_notebook(' '.join(sys.argv[1:]))} and its line in ucore/series.py. Run it: ucore run NAME")
    except UserError as error:
        sys.exit(f"new-notebook: {error}")
