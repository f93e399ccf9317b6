"""How long a query takes: the first of a new process, and a warm one of the notebook's box over many tiles.

    python benchmarks/query_latency.py --index INDEX --tiles 10000

Tiles of the second are made up: random features and places, pictures of the index.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

QUERIES = ("a lake in a forest", "tennis courts beside a school", "dense houses with red roofs", "a long bridge")


def cold(index: Path, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of `ucore search`, from typing to the prompt."""
    code = (
        "import sys; sys.argv = ['ucore', 'search', sys.argv[1], '--index', sys.argv[2]]; import ucore.cli; ucore.cli"
    )
    code += ".main()"
    seconds, busy = [], []
    for number in range(rounds):
        started, before = time.perf_counter(), _children()
        command = [sys.executable, "-c", code, QUERIES[number % len(QUERIES)], str(index)]
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
        busy.append(_children() - before)
    return seconds, busy


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def warm(index: Path, tiles: int, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds from a typed query to what the map is told."""
    from ucore.index import GalleryIndex
    from ucore.retrieve import Searcher
    from ucore.search_box import SearchBox

    known = GalleryIndex.open(index)
    pictures = known.rows(known.select("image"))["image"].tolist()
    rng = np.random.default_rng(0)
    features = rng.normal(size=(tiles, known.dim)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    names = [f"t{number}" for number in range(tiles)]
    rows = pd.DataFrame({
        "item_id": [f"image:{name}" for name in names], "kind": "image", "sample_id": names, "domain": "made-up",
        "image": [pictures[number % len(pictures)] for number in range(tiles)], "text": "a tile",
        "lon": rng.uniform(24, 26, tiles), "lat": rng.uniform(60, 61, tiles), "hub_bias": np.float32(0),
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "index"
        GalleryIndex.create(made, {**known.card, "simulated": True}, known.dim).add(features, rows)
        box = SearchBox(Searcher(made))
        seconds, busy = [], []
        for number in range(rounds + 1):
            started, before = time.perf_counter(), time.process_time()
            box.ask(f"{QUERIES[number % len(QUERIES)]} {number}")
            seconds.append(time.perf_counter() - started)
            busy.append(time.process_time() - before)
        return seconds[1:], busy[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--index", type=Path, required=True, help="folder that ucore index build wrote")
    parser.add_argument("--tiles", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    for name, (seconds, busy) in (
        ("ucore search, a new process", cold(given.index, given.rounds)),
        (f"a warm query of SearchBox, {given.tiles:,} tiles", warm(given.index, given.tiles, given.rounds)),
    ):
        middle, work = statistics.median(seconds), statistics.median(busy)
        print(f"{name}: median {middle:.3f} s, worst of {len(seconds)} {max(seconds):.3f} s; processor {work:.3f} s")


if __name__ == "__main__":
    main()
