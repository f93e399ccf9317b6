"""Every ratio that this project claims, measured now, as one table with the facts of the machine.

    python benchmarks/claims.py [--only NAME ...] [--out runs/benchmarks]      (or: make bench)

Each benchmark runs in a process of its own, after the other, at a size that lets all of them end within a quarter of an
hour on two cores. A ratio is taken round by round, ours and theirs in turn; the table shows the median and the range.
The table and the rows behind it are kept in --out. The status is 1 where an aim is missed: on a machine that does other
work at the same time that says little.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROWS = "UCORE_BENCHMARK_ROWS"  # a file that `claim` adds lines to
SERIES = {
    "feature_extraction": (),
    "embedding": (),
    "loading": (),
    "evaluation": (),
    "train_step": ("--batch", "32"),
    "mask_generator": ("--images", "2", "--rounds", "2"),
    "search": ("--rows", "200000", "--queries", "30", "--only", "ucore exact", "ucore approximate", "faiss flat"),
}


def claim(what: str, ratios: Sequence[float], aim: float, least: bool = True) -> None:
    """Add a row to the table, where one is made. aim: what the median ratio must reach, at least or (not `least`) at
    most."""
    if os.environ.get(ROWS):
        row = {"what": what, "ratios": [float(ratio) for ratio in ratios], "aim": aim, "least": least}
        with open(os.environ[ROWS], "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def reached(row: dict[str, Any]) -> bool:
    median = statistics.median(row["ratios"])
    return median >= row["aim"] if row["least"] else median <= row["aim"]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| claim | ratio | range | rounds | aim | reached | measured by |", "|---|---:|---:|---:|---:|---|---|"]
    for row in rows:
        ratios, sign = row["ratios"], "≥" if row["least"] else "≤"
        spread = f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} | {len(ratios)}"
        end = f"{sign} {row['aim']:g} | {'yes' if reached(row) else 'NO'} | {row['by']}"
        lines.append(f"| {row['what']} | {spread} | {end} |")
    return "\n".join(lines)


def main() -> int:
    from ucore.files import write_json
    from ucore.origin import machine_facts

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SERIES), default=list(SERIES))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    started, rows, load = time.perf_counter(), [], os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            kept, began = Path(folder) / name, time.perf_counter()
            print(f"--- {name} {' '.join(SERIES[name])}", flush=True)
            script = Path(__file__).with_name(f"{name}.py")
            subprocess.run(
                [sys.executable, str(script), *SERIES[name]], env={**os.environ, ROWS: str(kept)}, check=True
            )
            found = [json.loads(line) for line in kept.read_text("utf-8").splitlines()]
            rows += [{**row, "by": f"{name}.py"} for row in found]
            print(f"({time.perf_counter() - began:.0f} s)\n", flush=True)
    facts = machine_facts()
    text = (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['ram_gb']} GB, GPU {facts['gpu']}, torch {facts['torch']}; "
        f"load before {load:.1f}; {time.perf_counter() - started:.0f} s in all\n\n{table(rows)}\n"
    )
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "claims.json", {"machine": facts, "load": load, "rows": rows})
    (options.out / "claims.md").write_text(text, encoding="utf-8")
    return 0 if all(reached(row) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
