"""The same work on many items: in this process, in processes of this machine, or on a Ray cluster.

for position, result in map_stage(partial(load_worker, "vit_b:sam.pth"), paths, workers=4):
    ...
"""

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

from tqdm.auto import tqdm

from ucore.errors import ConfigError
from ucore.images import someone_looks
from ucore.processes import in_processes, local_workers
from ucore.workers import Failed, Function, Job, apply, batches

__all__ = ["Failed", "map_stage"]


def map_stage(
    make_worker: Callable[[], Function],
    items: Iterable[Any],
    engine: str = "local",
    workers: int | None = None,
    batch_size: int = 8,
    gpus_per_worker: float = 0.0,
    address: str | None = None,
    label: str = "Working",
    progress: bool = True,
) -> Iterator[tuple[int, Any]]:
    """Work on every item; yield (position, result) as results come, each position exactly once.

    make_worker: called once in each worker; returns a function from a list of items to as many results. It must be
        picklable (a module's function, or functools.partial of one; every machine of a cluster imports that module),
        unless all is done in this process.
    items: read one batch at a time, when a worker is free for it; they need be picklable, too.
    engine: "local", this machine's processes; one worker works in this process. "ray", a Ray cluster.
    workers: None: one a GPU where they need any, else one a core, at most 8; on a cluster, as many as it has room for.
    gpus_per_worker: GPUs that a worker alone sees, as cuda:0 and so on; 0.5 lets two share one.
    address: of a running Ray cluster ("auto", "HOST:6379", "ray://HOST:10001"); None: one is started here and stopped.

    An exception on a batch is tried again item by item, and an item that raises again yields `Failed`. A batch whose
    worker dies is done again by a new one, after three deaths item by item, and an item that outlives three more
    workers yields `Failed`. What `make_worker` raises is raised here. Nothing is started before the first item is
    wanted, and everything is ended with the iterator, by Ctrl-C too. Raises ConfigError for impossible settings.
    """
    if engine not in ("local", "ray"):
        raise ConfigError(f"There is no engine {engine!r}: choose local or ray")
    if batch_size < 1 or (workers is not None and workers < 1):
        raise ConfigError(f"workers ({workers}) and the batch size ({batch_size}) must be at least 1")
    if address is not None and engine == "local":
        raise ConfigError(f"--address {address} names a Ray cluster: add --engine ray")
    jobs = batches(items, batch_size)
    if engine == "ray":
        from ucore.cluster import on_ray

        results = on_ray(make_worker, jobs, workers, gpus_per_worker, address)
    else:
        count, gpus = local_workers(workers, gpus_per_worker)
        results = _here(make_worker, jobs) if count == 1 else in_processes(make_worker, jobs, count, gpus)
    total = len(items) if isinstance(items, Sized) else None
    return _watched(results, total, label, progress and someone_looks())


def _watched(results: Iterator[tuple[int, Any]], total: int | None, label: str, shown: bool) -> Iterator[Any]:
    with tqdm(total=total, desc=label, unit="item", disable=not shown) as bar:
        for result in results:
            bar.update()
            yield result


def _here(make_worker: Callable[[], Function], jobs: Iterator[Job]) -> Iterator[tuple[int, Any]]:
    function = None
    for job in jobs:
        function = function or make_worker()
        yield from zip(job.positions, apply(function, job.items), strict=True)
