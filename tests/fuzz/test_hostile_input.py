"""Every reader of bytes from outside against damaged files: it works, or refuses in words; `make fuzz` tries many more.

Of each case are watched: the exception and its message, seconds, memory, files written around the folder, code run.
"""

import ast
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from judge import Tally, Target
from run_fuzz import measured
from targets import OWN, TARGETS

import ucore

# What reads: functions and methods by name, as they are called in the package.
READS = {
    *("loads", "read_json", "parse_json", "load_file", "safe_open", "memmap", "ZipFile", "ParquetFile", "read_parquet"),
    *("read_table", "read_schema", "read_file", "FileProcessor", "open_file", "literal_eval", "from_wkt", "from_wkb"),
    *("from_pretrained", "from_file", "read_bytes", "read_text", "read1", "iter_content", "fromhex", "frombuffer"),
}
LOADS = ("torch.load", "np.load", "Image.open", "tarfile.open", "rasterio.open", "gzip.open")


class Elsewhere:
    """A process for one reader after another: what they break or take of memory ends with it."""

    def __init__(self) -> None:
        self.pool: ProcessPoolExecutor | None = None
        self.tallies: dict[str, Tally] = {}

    def fuzz(self, target: Target) -> Tally:
        """Of all the cases of a target, which are tried once."""
        if target.name not in self.tallies:
            cases = int(os.environ.get("UCORE_FUZZ_CASES", target.cases))
            self.tallies[target.name] = self._tried(target.name, cases)
        return self.tallies[target.name]

    def _tried(self, name: str, cases: int) -> Tally:
        self.pool = self.pool or ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            return self.pool.submit(measured, name, cases).result()
        except BrokenProcessPool:
            self.close()
            pytest.fail(f"{name}: the process died")

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown()
        self.pool = None


@pytest.fixture(scope="module")
def elsewhere():
    other = Elsewhere()
    yield other
    other.close()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged_files(target, elsewhere):
    tally = elsewhere.fuzz(target)
    assert tally.worked + tally.refused > 0
    assert not tally.wrong, "\n\n".join(tally.wrong.values())


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_whole_files_go_through_every_reader_that_is_named(target, elsewhere):
    assert set(target.covers) <= elsewhere.fuzz(target).entered


def readers() -> set[str]:
    """ "module.function" of every function of the package that reads."""
    found = set()
    for path in Path(ucore.__file__).parent.glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(function, ast.FunctionDef):
                calls = [ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)]
                if any(call.rpartition(".")[2] in READS or call in LOADS for call in calls):
                    found.add(f"{path.stem}.{function.name}")
    return found


def test_no_reader_is_missing_in_the_table():
    covered = {place for target in TARGETS for place in target.covers}
    assert readers() - covered - set(OWN) == set()
    assert set(OWN) <= readers(), "an exception that is none any more"


def test_the_search_for_readers_sees_them():
    assert {"shards._tar", "weights.read_weights", "osm._read_osmium"} <= readers()
