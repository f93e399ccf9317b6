"""`make fuzz`: every reader against many damaged files (UCORE_FUZZ_CASES each, or FUZZ=name of some), one table."""

import faulthandler
import multiprocessing
import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
if __name__ in ("__main__", "__mp_main__") or multiprocessing.parent_process() is not None:
    os.environ.update(HF_HUB_OFFLINE="1", MPLBACKEND="Agg", OMP_NUM_THREADS="1")

from judge import Tally, fuzz  # noqa: E402
from targets import TARGETS  # noqa: E402

FAST = Path("/dev/shm")  # files in memory: on a busy disk, a case's few files take longer than reading them does
HOURS = 3  # that a reader may take for all of its cases


def measured(name: str, cases: int) -> Tally:
    """In a process of its own: what a reader breaks, stays there."""
    faulthandler.enable()
    faulthandler.dump_traceback_later(HOURS * 3600, exit=True)
    target = next(target for target in TARGETS if target.name == name)
    fast = FAST.is_dir() and os.access(FAST, os.W_OK) and shutil.disk_usage(FAST).free > 2**30
    with tempfile.TemporaryDirectory(prefix="ucore-fuzz-", dir=FAST if fast else None) as place:
        return fuzz(target, Path(place), cases)


def judged(name: str, cases: int) -> Tally:
    """The tally of a target, also where its reader hung or crashed."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measured, name, cases).result()
        except BrokenProcessPool:  # at once where it crashed; after HOURS, `measured` ends it
            return Tally(
                name, count_wrong=1, wrong={"?": f"{name}: it hung or crashed; the last lines above say where"}
            )


def main() -> int:
    cases, wanted = int(os.environ.get("UCORE_FUZZ_CASES", "10000")), os.environ.get("FUZZ", "")
    print(f"{'reader':<24}{'cases':>8}{'worked':>8}{'refused':>9}{'wrong':>7}{'seconds':>9}", flush=True)
    names, wrong = [target.name for target in TARGETS if wanted in target.name], 0
    with ThreadPoolExecutor(os.cpu_count()) as crowd:  # of threads that each wait for a process
        for done in as_completed([crowd.submit(judged, name, cases) for name in names]):
            tally = done.result()
            print(f"{tally.name:<24}{tally.cases:>8,}{tally.worked:>8,}{tally.refused:>9,}{tally.count_wrong:>7,}"
                  f"{tally.seconds:>9.1f}", flush=True)  # fmt: skip
            for told in tally.wrong.values():
                print(f"\n{told}\n", flush=True)
            wrong += tally.count_wrong
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
