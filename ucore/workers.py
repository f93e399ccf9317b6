"""Giving work to workers that may die: what parallel.map_stage does, whatever the workers are.

A worker is expensive to make (it loads a model), may run out of memory, and on a cluster may vanish at any time. Items
are therefore given out in batches that are done again, by another worker, when theirs dies.
"""

import itertools
import os
import pickle
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ucore.errors import UserError

Function = Callable[[list[Any]], Sequence[Any]]
MOST_DEATHS = 3  # workers that a batch, and then an item alone, may take with it


@dataclass(frozen=True)
class Failed:
    """Stands for the result of an item that could not be worked on."""

    reason: str


@dataclass
class Job:
    """Items that are worked on together, where they stand in the whole, and how many workers died over them."""

    positions: list[int]
    items: list[Any]
    deaths: int = 0


def batches(items: Iterable[Any], batch_size: int) -> Iterator[Job]:
    """Items in jobs of `batch_size`, the last one smaller, drawn as they are asked for."""
    numbered = enumerate(items)
    while batch := list(itertools.islice(numbered, batch_size)):
        yield Job([position for position, _ in batch], [item for _, item in batch])


class Worker(Protocol):
    """A process somewhere. It is `ready` once it is built; `job` is what it works on."""

    ready: bool
    job: Job | None

    def send(self, items: list[Any]) -> None:
        """Give it work; nothing is raised when it is dead already."""
        ...

    def end(self) -> str:
        """End it, whatever it does; say what it died of, if it was dead."""
        ...


class Died(Exception):
    """The answer of a worker that is no more."""


AnyWorker = TypeVar("AnyWorker", bound=Worker)


def share_out(
    jobs: Iterator[Job],
    workers: int,
    start: Callable[[int], AnyWorker],
    wait: Callable[[list[AnyWorker]], list[tuple[AnyWorker, Any]]],
) -> Iterator[tuple[int, Any]]:
    """Give jobs to workers until all are done. A worker holds one job at a time, so little is in flight.

    start: makes worker number n, without waiting for it to be built. wait: those that have something to say, each with
    its results, or None (it is built), or `Died`. Workers that nobody has room for hold nothing up.
    """
    pool: dict[int, AnyWorker] = {}
    held: deque[Job] = deque()  # drawn, and nobody's yet
    finished: list[tuple[int, Any]] = []
    stillborn = 0
    try:
        while True:
            for worker in pool.values():
                if worker.ready and worker.job is None and _hold(held, jobs, 1):
                    worker.job = held.popleft()
                    worker.send(worker.job.items)
            starting = sum(not worker.ready for worker in pool.values())
            for number in range(workers):
                if number not in pool and _hold(held, jobs, starting + 1):
                    pool[number] = start(number)
                    starting += 1
            yield from finished  # only now: workers go on while the caller uses these
            finished = []
            if not held and not any(worker.job for worker in pool.values()):
                return
            for worker, answer in wait([worker for worker in pool.values() if worker.job or not worker.ready]):
                job, worker.job = worker.job, None
                if answer is None:
                    worker.ready, stillborn = True, 0
                elif not isinstance(answer, Died):
                    assert job is not None
                    finished += zip(job.positions, answer, strict=True)
                else:
                    pool = {number: other for number, other in pool.items() if other is not worker}
                    cause = worker.end()
                    stillborn += not worker.ready
                    if stillborn >= MOST_DEATHS:
                        raise UserError(f"Worker processes cannot start: {cause}. Ask for fewer workers.")
                    finished += _done_again(job, held, cause) if job else []
    finally:
        for worker in pool.values():
            worker.end()


def _hold(held: deque[Job], jobs: Iterator[Job], count: int) -> bool:
    """Draw jobs until `count` are held; whether there were enough."""
    held.extend(itertools.islice(jobs, max(0, count - len(held))))
    return len(held) >= count


def _done_again(job: Job, held: deque[Job], cause: str) -> list[tuple[int, Failed]]:
    """Hold what a dead worker had for another, or give it up: the results of that."""
    job.deaths += 1
    if job.deaths < MOST_DEATHS:
        held.append(job)
    elif len(job.items) > 1:
        held.extend(Job([position], [item]) for position, item in zip(job.positions, job.items, strict=True))
    else:
        return [(job.positions[0], Failed(f"its worker process died {job.deaths} times: {cause}"))]
    return []


# --- inside a worker --------------------------------------------------------------------------------------------


def apply(function: Function, items: list[Any]) -> list[Any]:
    """`function` of a batch; where that raises, of each item alone, and `Failed` for those that raise again."""
    try:
        results = list(function(items))
        if len(results) != len(items):
            raise ValueError(f"the worker gave {len(results)} results for {len(items)} items")
        return results
    except Exception as error:
        if len(items) == 1:
            return [Failed(reason_of(error))]
    return [result for item in items for result in apply(function, [item])]


def reason_of(error: BaseException) -> str:
    """One line about an exception: a user's error in its own words, others with their kind."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, UserError) and text else f"{type(error).__name__}: {text}".removesuffix(": ")


def build(payload: bytes) -> Function | Exception:
    """The function that a pickled `make_worker` makes, or what it raised, as something that can be sent."""
    try:
        return pickle.loads(payload)()
    except UserError as error:
        return type(error)(str(error))
    except Exception:
        return RuntimeError(f"A worker could not be built:\n{traceback.format_exc()}")


def packed(results: list[Any]) -> bytes:
    """Results pickled; one that cannot be is replaced by `Failed`."""
    try:
        return pickle.dumps(results)
    except Exception as error:
        if len(results) == 1:
            return pickle.dumps([Failed(reason_of(error))])
    return pickle.dumps([pickle.loads(packed([result]))[0] for result in results])


def limit_threads(threads: int) -> None:
    """Let the libraries that compute use `threads` threads, or fewer where the environment says so already."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"):
        given = os.environ.get(name, "")
        os.environ[name] = str(min(threads, int(given)) if given.isdigit() and int(given) else threads)
    if "torch" in sys.modules:  # they have read the environment before
        sys.modules["torch"].set_num_threads(threads)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(threads)
