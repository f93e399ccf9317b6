"""Galleries for tests of the index, and processes that are killed while they change one."""

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ucore import index_flat
from ucore.index import GalleryIndex
from ucore.sketch import Sketch

DIM = 8
CARD = {"name": "made-up", "fingerprint": "f1", "embed_dim": DIM, "root": "."}


def make_features(count: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    features = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def make_rows(count: int, first: int = 0, seed: int = 0) -> pd.DataFrame:
    """Items i0, i1, ... on the globe; every seventh has no place, every fifth is a text."""
    rng = np.random.default_rng(seed)
    number = np.arange(first, first + count)
    tags = [["building=house"], ["building=school", "amenity=school"], [], ["highway=service", "leisure=park"]]
    return pd.DataFrame(
        {
            "item_id": [f"i{n}" for n in number],
            "kind": ["text" if n % 5 == 4 else "image" for n in number],
            "sample_id": [f"s{n // 2}" for n in number],
            "domain": [("finland", "germany", "spain")[n % 3] for n in number],
            "source": ["simulated" if n % 2 else "rsicd" for n in number],
            "tags": [tags[n % 4] for n in number],
            "lon": np.where(number % 7 == 6, np.nan, rng.uniform(-180, 180, count)),
            "lat": np.where(number % 7 == 6, np.nan, rng.uniform(-90, 90, count)),
        }
    )


def state_of(index: GalleryIndex) -> dict[str, tuple[float, ...]]:
    """Item -> its features, of all that a search can find."""
    found = np.concatenate([index.select(kind) for kind in ("image", "text", "segment")])
    rows, features = index.rows(found), index.features(found)
    assert rows["item_id"].is_unique
    return {name: tuple(values) for name, values in zip(rows["item_id"], features.tolist(), strict=True)}


def sketch_of(index: GalleryIndex) -> Sketch | None:
    """The sketch of an index in a folder, after comparing it with what its vectors give."""
    now = index._engine.now  # type: ignore[attr-defined]
    if now.sketch:
        np.testing.assert_array_equal(now.sketch.codes, now.sketch.encode(now.vectors))
    return now.sketch


def change(index: GalleryIndex, until: int, done: int = 0) -> None:
    """Add, delete, replace and compact in turn, so that after n changes the index holds what `expected_states` says."""
    for step in range(done, until):
        turn, first = step % 4, step // 4 * 20
        if turn == 0:
            index.add(make_features(20, step), make_rows(20, first))
        elif turn == 1:
            index.delete([f"i{n}" for n in range(first, first + 20, 2)])
        elif turn == 2:
            index.add(make_features(5, step), make_rows(20, first).iloc[1:10:2], replace=True)
        else:
            index.compact()


def change_for_ever(folder: str | Path, ready: Any, count: bool = False) -> None:
    """Go on with changes where the index stands, until killed.

    count: versions do not count the changes; what is there tells how many there were.
    """
    index_flat.FROM = 30  # in this process alone: so that there is a sketch to be broken
    index = GalleryIndex.open(folder)
    state = state_of(index) if count else {}
    made = (step for step, then in enumerate(expected_states(200)) if then == state)
    done = max(made) if count else index.version
    ready.set()
    change(index, 10**6, done)


def kill_while_changing(processes: Any, folder: Path, chance: random.Random, count: bool = False) -> None:
    """Start `change_for_ever`, let it make some versions, and kill it at any moment of the next."""
    ready = processes.Event()
    process = processes.Process(target=change_for_ever, args=(str(folder), ready, count))
    process.start()
    assert ready.wait(100)
    started, first, last = time.monotonic(), GalleryIndex.open(folder).version, chance.randrange(1, 5)
    while GalleryIndex.open(folder).version < first + last:
        assert process.is_alive() and time.monotonic() < started + 100
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 1.2) * (time.monotonic() - started) / last)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def expected_states(count: int) -> Iterator[dict[str, tuple[float, ...]]]:
    """What the index holds after 0 to `count` steps of `change`."""
    state: dict[str, tuple[float, ...]] = {}
    for step in range(count + 1):
        yield dict(state)
        turn, first = step % 4, step // 4 * 20
        if turn == 0:
            state |= {f"i{first + n}": tuple(row) for n, row in enumerate(make_features(20, step).tolist())}
        elif turn == 1:
            for n in range(first, first + 20, 2):
                del state[f"i{n}"]
        elif turn == 2:
            state |= {f"i{first + 1 + 2 * n}": tuple(row) for n, row in enumerate(make_features(5, step).tolist())}
