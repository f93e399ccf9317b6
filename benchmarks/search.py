"""Latency, recall and memory of the gallery index beside FAISS and numpy, in one run, one query at a time.

    python benchmarks/search.py [--rows 1000000] [--dim 512] [--queries 60] [--only NAME ...]
    python benchmarks/search.py --checkpoint CKPT --data DIR        # real rows and real queries: see windows.py

The vectors are made up: a mixture of 2,400 topics of unequal size in 60 groups, on 96 directions of falling strength,
with noise in all others; queries are other samples of it, moved off by one common vector and more noise, as texts are
from images. Half of the places are the topic's own, the others lie anywhere, so that boxes and topics go together as
they do on a map. A box lies around a row's place and holds the share of rows that is told. Every latency includes the
box (for the peers: four comparisons in numpy and the selector). Each contender runs in a process of its own; memory is
its largest resident set, mapped files included, over the size of the vectors. The truth is brute force in float64.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from claims import claim
from windows import Windows
from windows import make as make_windows

from ucore.origin import peak_memory_gb

SHARES = (1.0, 0.25, 0.01, 0.001)
K, BLOCK, TOPICS, GROUPS, LATENT = 10, 50_000, 2400, 60, 96
Ask = Callable[[np.ndarray, Any], np.ndarray]


class Mixture:
    """The vectors, places and queries of the docstring; block b is always the same."""

    def __init__(self, dim: int) -> None:
        rng = np.random.default_rng(0)
        self.dim, latent = dim, min(LATENT, dim)
        self.strength = np.arange(1, latent + 1) ** -0.5
        groups = rng.standard_normal((GROUPS, latent))
        self.centres = np.repeat(groups, TOPICS // GROUPS, 0) + 0.7 * rng.standard_normal((TOPICS, latent))
        self.basis = np.linalg.qr(rng.standard_normal((dim, latent)))[0].T.astype(np.float32)
        self.homes = rng.uniform((-10, 35), (30, 70), (TOPICS, 2))
        self.chance = rng.permutation(np.arange(1, TOPICS + 1) ** -0.7)
        self.chance /= self.chance.sum()
        self.apart = self._normalised(rng.standard_normal((1, dim)))

    @staticmethod
    def _normalised(rows: np.ndarray) -> np.ndarray:
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def sample(self, count: int, seed: int, noise: float = 0.03) -> tuple[np.ndarray, np.ndarray]:
        """Vectors float32 (n, D) and places, longitude and latitude, float64 (n, 2)."""
        rng = np.random.default_rng([seed, 1])
        topic = rng.choice(TOPICS, count, p=self.chance)
        latent = (self.centres[topic] + 0.5 * rng.standard_normal((count, len(self.strength)))) * self.strength
        rows = latent.astype(np.float32) @ self.basis
        rows += noise * rng.standard_normal((count, self.dim), dtype=np.float32)
        anywhere = rng.uniform((-10, 35), (30, 70), (count, 2))
        at_home = self.homes[topic] + rng.normal(0, 0.3, (count, 2))
        return self._normalised(rows), np.where(rng.random((count, 1)) < 0.5, at_home, anywhere)

    def queries(self, count: int) -> np.ndarray:
        rows, _ = self.sample(count, 10**6)
        rng = np.random.default_rng(7)
        return self._normalised(rows + 0.4 * self.apart + 0.02 * rng.standard_normal(rows.shape))


def gallery(place: Path, dim: int) -> Any:
    """Rows and queries: real ones where they were made."""
    return Windows(place) if (place / "captions.npy").exists() else Mixture(dim)


def boxes(places: np.ndarray, count: int, share: float) -> list[tuple[float, float, float, float] | None]:
    """A box around a row's place for each query, which holds `share` of the rows."""
    if share == 1:
        return [None] * count
    centres = places[np.random.default_rng(3).choice(len(places), count, replace=False)]
    halves = [np.quantile(np.abs(places - centre).max(axis=1), share) for centre in centres]
    return [(lon - half, lat - half, lon + half, lat + half)
            for (lon, lat), half in zip(centres.tolist(), halves, strict=True)]  # fmt: skip


def inside(places: np.ndarray, box: Any) -> np.ndarray:
    west, south, east, north = box
    lon, lat = places
    return (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)


def build(place: Path, rows: int, dim: int) -> dict[str, Any]:
    """The index, block by block; making the data is not counted."""
    import pandas as pd

    from ucore.index import GalleryIndex

    source, seconds = gallery(place, dim), 0.0
    index = GalleryIndex.create(place / "index", {"name": "benchmark"}, dim)
    for first in range(0, rows, BLOCK):
        features, places = source.sample(min(BLOCK, rows - first), first)
        names = [f"s{number}" for number in range(first, first + len(features))]
        frame = pd.DataFrame({"item_id": names, "kind": "image", "sample_id": names, "domain": "anywhere",
                              "tags": [["building=house", "highway=service"]] * len(names),
                              "lon": places[:, 0], "lat": places[:, 1]})  # fmt: skip
        started = time.perf_counter()
        index.add(features, frame)
        seconds += time.perf_counter() - started
    started = time.perf_counter()
    index.compact()
    size = sum(path.stat().st_size for path in (place / "index").iterdir())
    return {"add_s": seconds, "compact_s": time.perf_counter() - started, "disk": size / (4 * rows * dim)}


def load(place: Path) -> tuple[Iterator[np.ndarray], np.ndarray]:
    """Blocks of vectors, read and not mapped, and places float64 (2, N), in the order of the compacted index."""
    from ucore.index import GalleryIndex

    engine: Any = GalleryIndex.open(place / "index")._engine
    columns, dim, path = engine.now.columns, engine.manifest["width"], next((place / "index").glob("*.f32"))
    places = np.stack([columns.lon, columns.lat])
    starts = range(0, places.shape[1], BLOCK)
    sizes = [min(BLOCK, places.shape[1] - start) for start in starts]
    blocks = (np.fromfile(path, np.float32, size * dim, offset=4 * dim * start).reshape(size, dim)
              for start, size in zip(starts, sizes, strict=True))  # fmt: skip
    return blocks, places


def make_truth(place: Path, dim: int, queries: int) -> dict[str, Any]:
    """Brute force in float64; and the boxes."""
    blocks, places = load(place)
    asked = gallery(place, dim).queries(queries).astype(float)
    scores = np.hstack([asked @ block.astype(float).T for block in blocks])
    asks: dict[str, Any] = {}
    truth: dict[str, Any] = {}
    for share in SHARES:
        asks[str(share)] = boxes(places.T, queries, share)
        found = []
        for row, box in enumerate(asks[str(share)]):
            allowed = np.arange(scores.shape[1]) if box is None else np.flatnonzero(inside(places, box))
            found.append(np.pad(allowed[np.argsort(-scores[row, allowed])[:K]], (0, K), constant_values=-2)[:K])
        truth[str(share)] = np.array(found)
    np.savez(place / "truth.npz", **truth)
    (place / "asks.json").write_text(json.dumps(asks))
    return {}


def measure(place: Path, queries: np.ndarray, ask: Ask) -> dict[str, Any]:
    """p50 and p95 in milliseconds and recall@10, without a box and with each."""
    asks, right = json.loads((place / "asks.json").read_text()), np.load(place / "truth.npz")
    for query in queries[:5]:  # not timed
        ask(query[None], None)
    result = {}
    for share in SHARES:
        seconds, recall = [], []
        for query, box, wanted in zip(queries, asks[str(share)], right[str(share)], strict=True):
            started = time.perf_counter()
            found = ask(query[None], box)
            seconds.append(time.perf_counter() - started)
            known = set(wanted.tolist()) - {-2}
            recall.append(len(known & set(found.tolist())) / max(1, len(known)))
        p50, p95 = np.quantile(seconds, [0.5, 0.95]) * 1000
        result[str(share)] = [p50, p95, float(np.mean(recall))]
    return result


def ours(place: Path, exact: bool) -> tuple[Ask, float]:
    from ucore.filters import Filter
    from ucore.index import GalleryIndex

    index = GalleryIndex.open(place / "index")

    def ask(query: np.ndarray, box: Any) -> np.ndarray:
        return index.search(query, K, None if box is None else Filter(box=box), exact=exact).positions[0]

    ask(np.ones((1, index.dim), np.float32), (0, 0, 60, 60))  # reads the places
    return ask, 0.0


def brute_force(place: Path, dim: int) -> tuple[Ask, float]:
    blocks, places = load(place)
    vectors = np.empty((places.shape[1], dim), np.float32)
    for number, block in enumerate(blocks):
        vectors[number * BLOCK : number * BLOCK + len(block)] = block

    def ask(query: np.ndarray, box: Any) -> np.ndarray:
        rows = None if box is None else np.flatnonzero(inside(places, box))
        scores = (vectors if rows is None else vectors[rows]) @ query[0]
        best = np.argpartition(-scores, min(K, len(scores) - 1))[:K]
        return best if rows is None else rows[best]

    return ask, 0.0


def of_faiss(place: Path, dim: int, kind: str) -> tuple[Ask, float]:
    """FAISS's own indexes with an id bitmap: flat, IVF (the root of the rows cells, 20 opened), HNSW (32, ef 64)."""
    from ucore.nearest import faiss_module

    faiss = faiss_module()
    blocks, places = load(place)
    count, inner = places.shape[1], faiss.METRIC_INNER_PRODUCT
    index: Any = {
        "flat": lambda: faiss.IndexFlatIP(dim),
        "ivf": lambda: faiss.index_factory(dim, f"IVF{round(count**0.5)},Flat", inner),
        "hnsw": lambda: faiss.IndexHNSWFlat(dim, 32, inner),
    }[kind]()
    started = time.perf_counter()
    if kind == "ivf":
        index.train(np.concatenate([block[:: max(1, count // 64_000)] for block in load(place)[0]]))
    for block in blocks:
        index.add(block)
    seconds = time.perf_counter() - started
    make: Any = {"flat": faiss.SearchParameters, "ivf": faiss.SearchParametersIVF,
                 "hnsw": faiss.SearchParametersHNSW}[kind]  # fmt: skip
    settings = {"flat": {}, "ivf": {"nprobe": 20}, "hnsw": {"efSearch": 64}}[kind]

    def ask(query: np.ndarray, box: Any) -> np.ndarray:
        if box is None:
            return index.search(query, K, params=make(**settings))[1][0]
        bits = np.packbits(inside(places, box), bitorder="little")
        return index.search(query, K, params=make(sel=faiss.IDSelectorBitmap(bits), **settings))[1][0]

    return ask, seconds


def of_lance(place: Path, dim: int, exact: bool) -> tuple[Ask, float]:
    """Our LanceDB engine, on disk."""
    import pandas as pd

    from ucore.filters import Filter
    from ucore.index import GalleryIndex

    folder, seconds = place / "lance", 0.0
    if not folder.exists():
        blocks, places = load(place)
        started = time.perf_counter()
        index = GalleryIndex.create(folder, {"name": "benchmark"}, dim, engine="lance")
        for number, block in enumerate(blocks):
            names = [str(name) for name in range(number * BLOCK, number * BLOCK + len(block))]
            lon, lat = places[:, number * BLOCK : number * BLOCK + len(block)]
            index.add(block, pd.DataFrame({"item_id": names, "kind": "image", "sample_id": names, "lon": lon,
                                           "lat": lat}))  # fmt: skip
        index.compact()
        seconds = time.perf_counter() - started
    index = GalleryIndex.open(folder)
    positions = index.select()
    row_of = dict(zip(positions.tolist(), index.rows(positions)["item_id"].astype(int).tolist(), strict=True))
    row_of[-1] = -1

    def ask(query: np.ndarray, box: Any) -> np.ndarray:
        where = None if box is None else Filter(box=box)
        return np.array([row_of[one] for one in index.search(query, K, where, exact=exact).positions[0].tolist()])

    return ask, seconds


STAGES: dict[str, Callable[[Path, int], tuple[Ask, float]]] = {
    "ucore exact": lambda place, dim: ours(place, True),
    "ucore approximate": lambda place, dim: ours(place, False),
    "numpy": brute_force,
    "faiss flat": lambda place, dim: of_faiss(place, dim, "flat"),
    "faiss ivf": lambda place, dim: of_faiss(place, dim, "ivf"),
    "faiss hnsw": lambda place, dim: of_faiss(place, dim, "hnsw"),
    "lance exact": lambda place, dim: of_lance(place, dim, True),
    "lance approximate": lambda place, dim: of_lance(place, dim, False),
}


def stage(name: str, place: Path, rows: int, dim: int, queries: int) -> dict[str, Any]:
    """What one process does; its largest resident set is in the result, in units of the vectors."""
    if name == "build":
        result = build(place, rows, dim)
    elif name == "truth":
        result = make_truth(place, dim, queries)
    else:
        ask, seconds = STAGES[name](place, dim)
        result = {"build_s": seconds}
        result |= measure(place, gallery(place, dim).queries(queries), ask)
    return {**result, "memory": peak_memory_gb() * 1e9 / (4 * dim * rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--only", nargs="+", default=list(STAGES), choices=list(STAGES), help="contenders")
    parser.add_argument("--folder", type=Path, help="where an index is kept, and found again; by default a temporary")
    parser.add_argument("--checkpoint", type=Path, help="of the bundled encoder, which makes real rows of --data")
    parser.add_argument("--data", type=Path, help="a dataset whose pictures' windows are the rows; its captions ask")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if bool(arguments.checkpoint) != bool(arguments.data):
        parser.error("--checkpoint and --data go together")
    if arguments.stage:
        place = arguments.folder
        print(json.dumps(stage(arguments.stage, place, arguments.rows, arguments.dim, arguments.queries)))
        return
    with tempfile.TemporaryDirectory() as folder:
        run(arguments, arguments.folder or Path(folder))


def run(arguments: argparse.Namespace, place: Path) -> None:
    """Every stage in a process of its own, and the table."""
    from ucore.files import read_json, write_json
    from ucore.report import machine_facts

    place.mkdir(parents=True, exist_ok=True)
    what = "made-up vectors"
    if (place / "captions.npy").exists() and not arguments.checkpoint:
        raise SystemExit(f"{place} holds real rows. Name --checkpoint and --data, or take another --folder.")
    if arguments.checkpoint:
        arguments.rows = make_windows(place, arguments.checkpoint, arguments.data, arguments.rows)
        arguments.dim, what = gallery(place, 0).captions.shape[1], f"windows of pictures of {arguments.data.name}"
    facts = machine_facts()
    print(f"{facts['cpu']}, {facts['cores']} cores, load {os.getloadavg()[0]:.1f}; "
          f"{arguments.rows:,} x {arguments.dim} {what}, {arguments.queries} queries, k {K}")  # fmt: skip

    def ask(name: str) -> dict[str, Any]:
        values = {name: getattr(arguments, name) for name in ("rows", "dim", "queries")}
        options = [f"--{name}={value}" for name, value in values.items()]
        command = [sys.executable, __file__, *options, f"--folder={place}", f"--stage={name}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    origin = {"rows": arguments.rows, "dim": arguments.dim, "windows": read_json(place / "origin.json")}
    if (place / "index").exists() and read_json(place / "built.json") != origin:
        raise SystemExit(f"{place} has an index of other rows. Take another --folder.")
    write_json(place / "built.json", origin)
    if not (place / "index").exists():
        made = ask("build")
        print(f"ucore build: {made['add_s']:.1f} s to add, {made['compact_s']:.1f} s to compact; "
              f"on disk {made['disk']:.3f} x the vectors, memory {made['memory']:.2f} x")  # fmt: skip
    ask("truth")
    heads = [f"{'no box' if share == 1 else f'{share:.1%} box'}: p50 p95 ms recall" for share in SHARES]
    print(f"| contender | build s | memory x | {' | '.join(heads)} |\n|---|---|---|{'---|' * len(SHARES)}")
    every: dict[str, Any] = {}
    for name in arguments.only:
        found = every[name] = ask(name)
        cells = [f"{p50:.1f} {p95:.1f} {recall:.3f}" for p50, p95, recall in (found[str(share)] for share in SHARES)]
        print(f"| {name} | {found['build_s']:.0f} | {found['memory']:.2f} | {' | '.join(cells)} |", flush=True)
    claims(every)


def claims(every: dict[str, Any]) -> None:
    """What is claimed of the contenders that ran."""
    ours, fast, flat = (every.get(name) for name in ("ucore exact", "ucore approximate", "faiss flat"))
    for share in map(str, SHARES):
        shown = "no box" if share == "1.0" else f"a box of {float(share):.1%}"
        if ours and flat:
            claim(f"search, {shown}: FAISS flat / ours exact, p50", [flat[share][0] / ours[share][0]], 1)
        if fast:
            claim(f"search, {shown}: recall@10 of ours approximate", [fast[share][2]], 0.95)


if __name__ == "__main__":
    main()
