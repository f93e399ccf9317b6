"""The commands about a whole run: `ucore reproduce` and `ucore diff`."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

Named = Literal["simulated", "rsicd", "geotiles", "urbancross", "skyscript", "shards", "ucore"]


def reproduce(
    data: Path | None = None,
    dataset: Named | None = None,
    scale: Literal["tiny", "small", "full"] = "tiny",
    seed: int = 0,
    out: Path = Path("runs"),
    reports: Path = Path("reports"),
    jobs: int | None = None,
    fresh: bool = False,
) -> None:
    """Run all notebooks that the data allow, and write reports/index.html; what has run already is not run again.

    Args:
        data: Dataset folder, or one that holds it under its name; without it, the folder that UCORE_DATA names;
            without that, the built-in simulated set.
        dataset: What the data must be: a set of another layout is refused. simulated: the built-in set, whatever
            UCORE_DATA names.
        scale: tiny (minutes on two cores), small (an hour) or full (GPU).
        seed: Of every random choice.
        out: Folder for checkpoints and executed notebooks.
        reports: Folder for metrics, figures and the page.
        jobs: Notebooks that run at the same time, each with its share of the cores; default: one a core, at most 4.
        fresh: Run every notebook again; features, segments and checkpoints in OUT are used all the same.
    """
    from ucore.reproduce import MEMORY, RECORD
    from ucore.reproduce import reproduce as run_all
    from ucore.series import dataset_for, series_for

    place = dataset_for(dataset, data, scale, seed, out)
    notebooks = out / "notebooks"
    names = [chapter.name for chapter in series_for(place, notebooks / MEMORY)]
    for name in names if fresh else ():
        (notebooks / name / RECORD).unlink(missing_ok=True)
    parameters: dict[str, Any] = {"dataset": str(place), "scale": scale, "seed": seed, "out": str(out)}
    started = time.perf_counter()
    run_all({**parameters, "reports": str(reports)}, names, notebooks, jobs=jobs)
    print(f"All done in {time.perf_counter() - started:.1f} s. Open {reports / 'index.html'}")


def diff(
    run_a: Annotated[Path, tyro.conf.Positional],
    run_b: Annotated[Path, tyro.conf.Positional],
    tolerance: float = 0.0,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Say what changed between two runs: metrics with intervals, parameters, commit, code, dataset, machine.

    Exit status 0 when nothing did, 1 when something did, 2 when one cannot be read. How long it took does not count.

    Args:
        run_a: A folder of reports, one of them, or a metrics.json, validation.json or adaptation.json.
        run_b: The other.
        tolerance: How far two numbers may be apart and count as the same.
        as_json: Print JSON instead of text.
    """
    from ucore.differences import compare_runs

    found = compare_runs(run_a, run_b, tolerance)
    print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False) if as_json else found.text())
    if not found.same:
        sys.exit(1)
