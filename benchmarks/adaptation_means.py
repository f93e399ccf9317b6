"""What each method is worth over all directions together: the runs that `adaptation.py` kept, pooled.

    python benchmarks/adaptation_means.py --data DATASET --runs runs/adaptation [--ours ucore] [--out table.json]

Nothing is trained. For every row of all the directions in --runs: mean mR, and what --ours has above it, paired by
direction, seed and query, with the interval of that difference of means; rows with hubs corrected ("+qb") are compared
with --ours "+qb". --data is the dataset that the runs were made on, whose captions say which texts belong together.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ucore.comparison import pooled_difference
from ucore.data import read_dataset
from ucore.errors import DataError
from ucore.evaluate import Ranks, metrics_from_ranks
from ucore.files import read_json, write_json
from ucore.splits import adaptation_split

Row = dict[str, dict[int, Ranks]]  # by direction and seed


def read_runs(folder: Path) -> tuple[dict[str, Row], dict[str, list[float]]]:
    """Ranks of every row, and the seconds of every method's adaptations; `folder` holds one run of a kind."""
    found: dict[str, Row] = {}
    seconds: dict[str, list[float]] = {}
    for path in sorted(folder.glob("*.json")):
        run: Any = read_json(path)
        seconds.setdefault(run["method"], []).append(run["seconds"])
        for label, (images, texts) in run["ranks"].items():
            seeds = found.setdefault(label, {}).setdefault(run["direction"], {})
            if run["seed"] in seeds:
                raise DataError(
                    f"{folder} holds two runs of {label}, {run['direction']}, seed {run['seed']}, of other code or "
                    "data. Choose a folder with the runs of one command."
                )
            seeds[run["seed"]] = np.array(images), np.array(texts)
    if not found:
        raise DataError(f"There are no runs in {folder}. Make some with benchmarks/adaptation.py --runs {folder}")
    return found, seconds


def compare(rows: dict[str, Row], label: str, ours: str, owners: dict[str, np.ndarray]) -> tuple[float, float, float]:
    """`ours` above `label`, over the directions that both have, with the interval."""
    shared = sorted(set(rows[label]) & set(rows[ours]))
    pairs = []
    for name in shared:
        a, b = rows[ours][name], rows[label][name]
        seeds, target = sorted(set(a) & set(b)), name.split(" -> ")[1]
        pairs.append((target, [a[seed] for seed in seeds], [b[seed] for seed in seeds], owners[target]))
    return pooled_difference(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/adaptation"))
    parser.add_argument("--ours", default="ucore")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data = read_dataset(options.data)
    rows, seconds = read_runs(options.runs)
    owners = {
        name: adaptation_split(data.domain(name), seed=0).split("test").texts[1]
        for name in sorted(set(data.frame["domain"]))
    }
    table = []
    print(f"{'SIMULATED' if data.simulated else 'Real'} data, {options.data}; {options.ours} above the row, 95 %")
    for label, row in rows.items():
        each = [metrics_from_ranks(*ranks)["mR"] for seeds in row.values() for ranks in seeds.values()]
        ours = options.ours + (" +qb" if label.endswith(" +qb") else "")
        gain = compare(rows, label, ours, owners)
        took = float(np.mean(seconds.get(label, [0.0])))
        counts = len(row), min(len(seeds) for seeds in row.values())
        table.append({"method": label, "mR": float(np.mean(each)), "ours_above": gain, "seconds": took,
                      "directions": counts[0], "seeds": counts[1]})  # fmt: skip
    for one in sorted(table, key=lambda one: one["mR"]):
        mean, low, high = one["ours_above"]
        gained = f"{mean:+6.2f} [{low:+.2f}, {high:+.2f}]  {one['seconds']:5.1f} s"
        print(f"{one['method']:34} mR {one['mR']:6.2f}  {gained}  {one['directions']} directions, {one['seeds']} seeds")
    if options.out:
        write_json(options.out, {"data": str(options.data), "rows": table})


if __name__ == "__main__":
    main()
