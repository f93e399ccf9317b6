"""Kill every stage many times, fill its disk at many moments, and print a table: `make faults`."""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from stages import STAGES, starve, torment  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--full", type=int, default=10, help="full disks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", action="append", choices=[stage.name for stage in STAGES])
    asked = parser.parse_args()
    wrong: list[str] = []
    print(f"{'stage':<20} {'fault':<10} {'moments':>7} {'faults':>6} {'survived':>8} {'seconds':>8}", flush=True)
    for stage in STAGES:
        if asked.stage and stage.name not in asked.stage:
            continue
        with tempfile.TemporaryDirectory() as place:
            for fault, work, count in (("kill -9", torment, asked.kills), ("full disk", starve, asked.full)):
                if not count:
                    continue
                tally = work(stage, Path(place), count, asked.seed)
                shutil.rmtree(Path(place) / "work", ignore_errors=True)
                numbers = f"{tally.events:>7} {tally.faults:>6} {tally.survived:>8} {tally.seconds:>8.0f}"
                print(f"{stage.name:<20} {fault:<10} {numbers}", flush=True)
                wrong += [f"{stage.name}, {fault}: {what}" for what in tally.wrong]
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
