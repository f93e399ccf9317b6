"""Workers on a Ray cluster: one that runs, or one that is started on this machine for the time of the stage.

Plain actors under our own hand-out of work rather than Ray Data's map_batches: an actor that dies is then known by
name together with the batch it held, so the rules of `workers.share_out` (three deaths, then item by item, then
`Failed`) hold on a cluster as they do on one machine. Ray Data, unless told otherwise, retries the batch of a dead
actor without end, and takes every item into its store before the first is worked on. What Ray does best stays its
own: finding room, pinning GPUs (an actor sees only its own), moving items and results between machines.
"""

import logging
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from ucore.errors import ConfigError
from ucore.workers import Died, Function, Job, apply, build, limit_threads, packed, share_out

STARTS = 3  # of a cluster of our own: a busy machine may take longer than the half minute that Ray waits


def on_ray(
    make_worker: Callable[[], Function], jobs: Iterator[Job], workers: int | None, gpus_per_worker: float,
    address: str | None,
) -> Iterator[tuple[int, Any]]:  # fmt: skip
    """As parallel.map_stage with the engine "ray". Raises ConfigError where Ray is not installed."""
    try:
        import ray  # noqa: F401
    except ImportError:
        raise ConfigError('The engine ray needs Ray: run make setup, or pip install -e ".[ray]"') from None
    return _on_ray(make_worker, jobs, workers, gpus_per_worker, address)


def _on_ray(
    make_worker: Callable[[], Function], jobs: Iterator[Job], workers: int | None, gpus_per_worker: float,
    address: str | None,
) -> Iterator[tuple[int, Any]]:  # fmt: skip
    import ray
    from ray.cloudpickle import cloudpickle

    first = next(jobs, None)
    if first is None:  # nothing to do is no reason to start a cluster
        return
    with connected(address):
        # Taken apart once, here: every actor gets the same bytes, and a function of a notebook may be sent, too.
        payload = cloudpickle.dumps(make_worker)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        count, threads = room(nodes, workers, gpus_per_worker)
        remote = ray.remote(num_cpus=threads, num_gpus=gpus_per_worker, max_restarts=0)(_Remote)

        def start(number: int) -> _Actor:
            return _Actor(remote.remote(payload, threads))

        def answers(actors: list[_Actor]) -> list[tuple[_Actor, Any]]:
            futures = [actor.future for actor in actors]
            ray.wait(futures, num_returns=1)
            done = set(ray.wait(futures, num_returns=len(futures), timeout=0)[0])
            return [(actor, actor.answer()) for actor in actors if actor.future in done]

        yield from share_out(_after(first, jobs), count, start, answers)


def _after(first: Job, others: Iterator[Job]) -> Iterator[Job]:
    yield first
    yield from others


class _Remote:
    """The actor: what a worker process does, on whatever machine it is."""

    def __init__(self, payload: bytes, threads: int) -> None:
        limit_threads(threads)
        self.built = build(payload)

    def ready(self) -> Exception | None:
        return self.built if isinstance(self.built, Exception) else None

    def work(self, items: list[Any]) -> bytes:
        assert not isinstance(self.built, Exception)
        return packed(apply(self.built, items))


class _Actor:
    """A worker of `share_out` that is an actor."""

    def __init__(self, handle: Any) -> None:
        self.ready = False
        self.job: Job | None = None
        self.cause = ""
        self.handle = handle
        self.future = handle.ready.remote()

    def send(self, items: list[Any]) -> None:
        self.future = self.handle.work.remote(items)

    def answer(self) -> Any:
        import ray
        from ray.exceptions import RayError

        try:
            answer: Any = ray.get(self.future)
        except RayError as error:  # of any kind: process, machine or network gone, memory used up
            text = " ".join(str(error).split())  # a page, in which what matters follows "exit detail"
            self.cause = (text.partition("Worker exit detail: ")[2] or text).partition(". ")[0][:300]
            return Died()
        if isinstance(answer, Exception):
            raise answer
        return answer if answer is None else pickle.loads(answer)

    def end(self) -> str:
        import ray

        with suppress(Exception):  # it is dead, or its cluster is gone
            ray.kill(self.handle)
        return self.cause


def room(nodes: list[dict[str, float]], workers: int | None, gpus_per_worker: float) -> tuple[int, int]:
    """How many workers, and how many processors each gets so that all fit on the machines there are.

    nodes: CPU and GPU of every machine; those without a GPU to give are no use to workers that need one.
    """
    if gpus_per_worker:
        fitting = [(int(node.get("GPU", 0) / gpus_per_worker), int(node.get("CPU", 0))) for node in nodes]
        fitting = [(count, cpus) for count, cpus in fitting if count]
        if not fitting and workers is None:
            raise ConfigError(
                f"No machine of this Ray cluster has {gpus_per_worker:g} GPUs for a worker: use --device cpu, or give "
                "--workers where machines are added on demand"
            )
        threads = min((cpus // count for count, cpus in fitting), default=1)
        return workers or sum(count for count, _ in fitting), max(1, threads)
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    workers = workers or max(1, sum(cpus))
    threads = max(1, sum(cpus) // workers)
    while threads > 1 and sum(count // threads for count in cpus) < workers:
        threads -= 1
    return workers, threads


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connected to the cluster at `address`, or to one of our own; as it was before, where it was connected."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default, without its warning
    import ray

    if ray.is_initialized():  # the caller's, who may have its reasons
        yield
        return
    place = address or os.environ.get("RAY_ADDRESS", "local")  # `ray job submit` sets the variable
    _require_answer(place)
    settings: dict[str, Any] = {} if place.startswith("ray://") else {"include_dashboard": False}
    try:
        for left in reversed(range(STARTS if place == "local" else 1)):
            try:
                ray.init(place, log_to_driver=False, logging_level=logging.CRITICAL, **settings)
                break
            except Exception as error:  # Ray raises nearly anything here
                ray.shutdown()
                if left == 0:
                    raise ConfigError(_refusal(place, " ".join(str(error).split()).rstrip(".")[:300])) from error
        yield
    finally:
        ray.shutdown()


def _require_answer(place: str) -> None:
    """Raise ConfigError where nobody listens at HOST:PORT: Ray itself would try for two minutes."""
    url = urlsplit(place if "://" in place else f"//{place}")
    try:
        host, port = url.hostname, url.port
        if host and port:
            socket.create_connection((host, port), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ConfigError(_refusal(place, str(error))) from error


def _refusal(place: str, reason: str) -> str:
    if place == "local":
        return f"Ray could not be started here: {reason}. Use --engine local, or the address of a running cluster."
    return (
        f"No Ray cluster can be used at {place}: {reason}. Start one with `ray start --head`, correct --address, or "
        "set RAY_AUTH_MODE=token where the cluster asks for a token."
    )
