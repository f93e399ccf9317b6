"""Workers that are processes of this machine."""

import math
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ucore.errors import ConfigError, UserError
from ucore.workers import Died, Function, Job, apply, build, limit_threads, packed, share_out

MOST_WORKERS = 8  # without being asked: each holds a model of its own


def in_processes(
    make_worker: Callable[[], Function], jobs: Iterator[Job], workers: int, gpus: list[str]
) -> Iterator[tuple[int, Any]]:
    """Do `jobs` in processes of this machine; gives positions of items and their results, as they are done.

    gpus: CUDA_VISIBLE_DEVICES of each worker; empty: all see what this process sees.
    """
    from multiprocessing.connection import wait

    payload = pickle.dumps(make_worker)
    threads = max(1, cores() // workers)

    def start(number: int) -> "_Process":
        return _Process(payload, threads, gpus[number] if gpus else None)

    def answers(processes: "list[_Process]") -> "list[tuple[_Process, Any]]":
        ready = wait([process.connection for process in processes])
        return [(process, process.answer()) for process in processes if process.connection in ready]

    return share_out(jobs, workers, start, answers)


class _Process:
    """A worker that is a process of this machine, started afresh: torch and pyarrow do not survive a fork."""

    def __init__(self, payload: bytes, threads: int, gpus: str | None) -> None:
        from multiprocessing import get_context, resource_tracker

        context = get_context("spawn")
        self.ready = False
        self.job: Job | None = None
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, payload, threads, gpus), daemon=True)
        # Ctrl-C reaches the whole group: the parent ends its workers, which need not say anything about it. They
        # inherit what is blocked here; the tracker, which starts with the first of them, would unblock it again.
        resource_tracker.ensure_running()
        usual = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, usual)
        theirs.close()  # so that the worker's death closes the pipe

    def send(self, items: list[Any]) -> None:
        with suppress(ConnectionError):
            self.connection.send(items)

    def answer(self) -> Any:
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join(5)  # for the status it ends with
            return Died()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def end(self) -> str:
        self.process.kill()
        self.process.join()
        self.connection.close()
        return _death(self.process.exitcode or 0)


def _death(status: int) -> str:
    if status == -signal.SIGKILL:
        return "killed, most often for lack of memory"
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def _serve(connection: Any, payload: bytes, threads: int, gpus: str | None) -> None:
    """What a worker process does: build the function, then answer each batch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    limit_threads(threads)
    built = build(payload)
    if isinstance(built, BaseException):
        connection.send(built)
        return
    with suppress(EOFError, ConnectionError):  # the parent is gone, or wants no more
        connection.send(None)
        while True:
            connection.send_bytes(packed(apply(built, connection.recv())))


def end_with_parent() -> None:
    """Run in a thread: a killed parent's workers would wait for work for ever, and keep what they hold."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def death_told() -> Iterator[None]:
    """Within, a worker of a pool of the standard library that is killed is a UserError: such a pool ends with it."""
    from concurrent.futures.process import BrokenProcessPool

    try:
        yield
    except BrokenProcessPool as error:
        raise UserError(
            "A worker process was killed, most often for lack of memory. What was finished is kept: repeat the command "
            "to go on, where there is more room or with fewer workers."
        ) from error


def cores() -> int:
    """Processors that this process may use; not more than UCORE_CORES says, its share where several run at once."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get("UCORE_CORES", "")
    return min(usable, max(1, int(share))) if share.isdecimal() else usable


def local_workers(workers: int | None, gpus_per_worker: float) -> tuple[int, list[str]]:
    """How many workers, and CUDA_VISIBLE_DEVICES of each when they need GPUs."""
    if gpus_per_worker <= 0:
        return workers or min(cores(), MOST_WORKERS), []
    gpus = _gpus()
    room = int(len(gpus) / gpus_per_worker) if gpus_per_worker <= 1 else len(gpus) // math.ceil(gpus_per_worker)
    count = workers or max(room, 1)
    if count > room:
        raise ConfigError(
            f"{count} workers of {gpus_per_worker:g} GPUs were asked for, but this machine has {len(gpus)} GPUs: "
            + (f"use at most --workers {room}" if room else "use --device cpu")
        )
    each = max(1, math.ceil(gpus_per_worker))
    first = [int(number * gpus_per_worker) if gpus_per_worker <= 1 else number * each for number in range(count)]
    return count, [",".join(gpus[start : start + each]) for start in first]


def _gpus() -> list[str]:
    """Names, for CUDA_VISIBLE_DEVICES, of the GPUs that this process may use."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]
