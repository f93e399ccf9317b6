"""The series as one job: order, parallel runs, what is not run again, what a failure leaves."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from makers_maps import make_places
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ucore import reproduce as module
from ucore import series
from ucore.cli_adapt import target_parts
from ucore.crossing import two_sides
from ucore.errors import ConfigError, UserError
from ucore.files import only_writer
from ucore.manifest import Manifest
from ucore.reproduce import Task, finished, reproduce, run_key
from ucore.runner import NotebookError, RunResult
from ucore.series import SERIES, Chapter, dataset_for, series_for


def write_notebook(path: Path, *code: str, parameters: str = "seed = 0  # of every choice") -> Path:
    cells = [new_markdown_cell("# Does it run?"), new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=[*cells, *map(new_code_cell, code)]), path)
    return path


@pytest.fixture
def notebooks(tmp_path, monkeypatch) -> dict[str, Path]:
    """Notebooks 00, 02, 04, 09 with places in the series like the real ones; the current folder is empty."""
    monkeypatch.chdir(tmp_path)
    chapters = (
        Chapter("00_setup", alone=True),
        Chapter("02_cut"),
        Chapter("04_train", ("02_cut",)),
        Chapter("09_results"),
    )
    monkeypatch.setattr(series, "SERIES", chapters)
    stems = {"00_setup": "", "02_cut": "seed = 0", "04_train": "seed = 0\nepochs = 1", "09_results": ""}
    return {stem: write_notebook(tmp_path / "n" / f"{stem}.ipynb", parameters=text) for stem, text in stems.items()}


@pytest.fixture
def recorded(monkeypatch) -> list[Any]:
    """Runs are recorded as (what, stem, parameters), not executed; each takes a moment and leaves its two files."""
    calls: list[Any] = []

    def record(path, parameters, out, **settings):
        assert settings["place"] in range(4), "a line of the progress bars"
        calls.append(("start", path.stem, parameters))
        time.sleep(0.05)
        folder = Path(out) / path.stem
        folder.mkdir(parents=True, exist_ok=True)
        for name in (path.name, f"{path.stem}.html"):
            (folder / name).write_text(path.stem)
        calls.append(("end", path.stem, settings["threads"]))
        return RunResult(folder / path.name, folder / f"{path.stem}.html", 0.05)

    monkeypatch.setattr(module, "run_notebook", record)
    return calls


def started(calls: list[Any]) -> list[str]:
    return [stem for what, stem, _ in calls if what == "start"]


# --- order --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_a_notebook_waits_for_what_it_needs(notebooks, recorded, jobs, capsys):
    results = reproduce({"seed": 4, "epochs": 2}, list(notebooks.values()), "there", jobs=jobs)
    order = [(what, stem) for what, stem, _ in recorded]
    assert order[:2] == [("start", "00_setup"), ("end", "00_setup")]  # alone
    assert order.index(("end", "02_cut")) < order.index(("start", "04_train"))
    assert order[-2:] == [("start", "09_results"), ("end", "09_results")]  # reads what all others wrote
    shares = {stem: share for what, stem, share in recorded if what == "start"}
    assert shares == {"00_setup": {}, "02_cut": {"seed": 4}, "04_train": {"seed": 4, "epochs": 2}, "09_results": {}}
    assert [result.path.stem for result in results] == list(notebooks)  # as asked, not as ended
    lines = capsys.readouterr().out.splitlines()
    assert all(re.fullmatch(r"\w+ +[\d.]+ s  ok", line) for line in lines) and len(lines) == 4


def test_independent_notebooks_run_at_the_same_time_with_a_share_of_the_cores(notebooks, monkeypatch):
    both = threading.Barrier(2, timeout=20)

    def meet(path, parameters, out, **settings):
        both.wait()  # breaks, and fails the test, unless two run at once
        assert settings["threads"] == 2
        for name in (path.name, f"{path.stem}.html"):
            (Path(out) / path.stem).mkdir(parents=True, exist_ok=True)
            (Path(out) / path.stem / name).touch()
        return RunResult(path, None, 0.0)

    monkeypatch.setattr(module, "run_notebook", meet)
    monkeypatch.setattr(module, "cores", lambda: 4)
    other = write_notebook(Path("n/03_say.ipynb"))
    assert len(reproduce({}, [notebooks["02_cut"], other], jobs=2)) == 2


def test_after_a_failure_nothing_is_started_and_what_runs_may_end(notebooks, recorded, monkeypatch, capsys):
    record = module.run_notebook

    def fail(path, *arguments, **settings):
        result = record(path, *arguments, **settings)
        if path.stem == "02_cut":
            raise NotebookError("02_cut failed")
        return result

    monkeypatch.setattr(module, "run_notebook", fail)
    with pytest.raises(NotebookError, match="02_cut failed"):
        reproduce({}, list(notebooks.values()), jobs=2)
    assert started(recorded) == ["00_setup", "02_cut"]
    assert re.search(r"02_cut +[\d.]+ s  failed", capsys.readouterr().out)
    monkeypatch.setattr(module, "run_notebook", record)
    reproduce({}, list(notebooks.values()), jobs=2)  # goes on: what ended well is not repeated
    assert started(recorded)[2:] == ["02_cut", "04_train", "09_results"]


@pytest.mark.parametrize(
    ("parameters", "names", "message"),
    [
        ({"epoch": 2}, ["00_setup", "04_train"], "'epoch' is not a parameter of any of .*; did you mean 'epochs'"),
        ({"epochs": "x"}, ["00_setup", "04_train"], "'epochs' of 04_train takes int"),
        ({}, ["00_setup", "zz"], "no notebook 'zz'"),
    ],
)
def test_everything_is_checked_before_the_first_starts(notebooks, recorded, parameters, names, message):
    with pytest.raises(ConfigError, match=message):
        reproduce(parameters, [notebooks.get(name, name) for name in names])
    assert recorded == []


def test_two_jobs_in_one_folder_and_no_job_at_all_are_refused(notebooks, recorded):
    Path("there").mkdir()
    with only_writer("there"), pytest.raises(UserError, match="Another process is writing into there"):
        reproduce({}, [notebooks["00_setup"]], "there")
    with pytest.raises(ConfigError, match="--jobs is 0"):
        reproduce({}, [notebooks["00_setup"]], jobs=0)
    assert recorded == []


# --- what is not run again ----------------------------------------------------------------------------------------


def run(notebooks, **parameters: Any) -> None:
    reproduce({"seed": 0, **parameters}, [notebooks["02_cut"], notebooks["04_train"]], "there")


def test_a_finished_notebook_is_run_again_only_when_something_it_depends_on_changed(notebooks, recorded, capsys):
    run(notebooks)
    recorded.clear()
    run(notebooks)
    assert recorded == [] and capsys.readouterr().out.count("as before") == 2
    run(notebooks, epochs=5)  # a parameter of one of them
    assert started(recorded) == ["04_train"]
    recorded.clear()
    write_notebook(notebooks["02_cut"], "print(1)", parameters="seed = 0")  # its own code
    run(notebooks, epochs=5)
    assert started(recorded) == ["02_cut"]
    recorded.clear()
    Path("there/04_train/04_train.html").write_text("changed by hand")  # an output
    Path("there/02_cut/02_cut.html").unlink()
    run(notebooks, epochs=5)
    assert started(recorded) == ["02_cut", "04_train"]


def test_the_results_expect_a_report_of_every_notebook_that_has_a_place_for_them(notebooks, recorded, tmp_path):
    for stem, names in (("04_train", "reports = 'r'"), ("02_cut", "reports = 'r'"), ("00_setup", "seed = 0")):
        write_notebook(notebooks[stem], parameters=names)
    write_notebook(notebooks["09_results"], parameters="reports = 'r'\nexpected = []\nkeep = []")
    old = Path("r/02_cut-old/metrics.json")
    old.parent.mkdir(parents=True)
    old.write_text("{}")
    reproduce({}, list(notebooks.values()), "there", progress=False)
    given = next(parameters for what, stem, parameters in recorded if (what, stem) == ("start", "09_results"))
    assert given["expected"] == ["02_cut", "04_train"] and given["keep"] == ["02_cut-old"]


def test_what_a_killed_notebook_left_half_written_is_swept_before_it_runs_again(notebooks, recorded, tmp_path):
    notebooks["04_train"] = write_notebook(tmp_path / "n" / "04_train.ipynb", parameters="out = 'o'\nreports = 'r'")
    theirs = [Path("o/04_train/deep"), Path("r/04_train-a"), Path("nb/04_train")]
    others = [Path("o/features"), Path("o/02_cut"), Path("r/04_trainer-a")]
    for folder in (*theirs, *others):
        folder.mkdir(parents=True)
        (folder / ".x.json.12345678.tmp").write_text("{")
        (folder / "x.json").write_text("{}")
    reproduce({}, [notebooks["04_train"]], "nb", progress=False)
    assert [sorted(path.name for path in folder.glob("*x.json*")) for folder in theirs] == [["x.json"]] * 3
    assert all((folder / ".x.json.12345678.tmp").is_file() for folder in others), "another may be writing there"


@pytest.mark.parametrize("record", ["", "{", "[]", '{"key": 3}', '{"key": "KEY", "files": 3}'])
def test_a_damaged_record_means_run_again(tmp_path, record):
    (tmp_path / "run.json").write_text(record.replace("KEY", "k"))
    assert finished(tmp_path, "k") is None


def test_a_key_counts_the_content_of_the_data_and_of_files_that_parameters_name(notebooks, tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.txt").write_text("one")
    (tmp_path / "prompt.txt").write_text("say")
    path = notebooks["04_train"]

    def key(**changes: Any) -> str:
        given = {"dataset": str(data), "prompt": str(tmp_path / "prompt.txt"), "seed": 0, **changes}
        return run_key(Task(Chapter("04_train"), path, given), tmp_path / "memory")

    first = key()
    assert key() == first
    (data / "a.txt").write_text("two")
    second = key()
    (tmp_path / "prompt.txt").write_text("sing")
    keys = {first, second, key(), key(seed=1)}
    assert len(keys) == 4
    monkeypatch.setattr(platform, "python_version", lambda: "3.99.0")
    assert key() not in keys


def test_a_key_counts_the_locked_packages(notebooks, tmp_path, monkeypatch):
    def key() -> str:
        return run_key(Task(Chapter("04_train"), notebooks["04_train"], {"seed": 0}))

    (tmp_path / "ucore").mkdir()
    monkeypatch.setattr(module.ucore, "__file__", str(tmp_path / "ucore" / "__init__.py"))
    keys = {key()}
    for text in ("torch==2.15.0", "torch==2.16.0"):
        (tmp_path / "requirements.lock").write_text(text)
        keys.add(key())
    assert len(keys) == 3


def test_ctrl_c_stops_all_kernels_and_leaves_a_job_that_goes_on(tmp_path):
    """A real job of two kernels at once: interrupted in the middle, then finished; what had ended is kept."""
    slow = "import pathlib, time\npathlib.Path(f'{mark}.on').touch()\ntime.sleep(wait)\nprint('done', mark)"
    quick = write_notebook(tmp_path / "q.ipynb", "print(1)", parameters="seed = 0")
    names = [str(quick)]
    for mark, wait in (("a", 60), ("b", 60)):
        text = f"mark = {mark!r}\nwait = {wait}\ndataset = ''"
        names.append(str(write_notebook(tmp_path / f"{mark}.ipynb", slow, parameters=text)))
    script = "import sys, json\nfrom ucore.reproduce import reproduce\n"
    script += "reproduce(json.loads(sys.argv[1]), json.loads(sys.argv[2]), 'there', progress=False, jobs=2)"
    command = [sys.executable, "-c", script]
    job = subprocess.Popen(
        [*command, "{}", json.dumps(names)], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not all((tmp_path / f"{mark}.on").exists() for mark in "ab") and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(job.pid, signal.SIGINT)
    out, err = job.communicate(timeout=120)
    assert "KeyboardInterrupt" in err and job.returncode != 0
    assert re.search(r"(?m)^q +[\d.]+ s  ok$", out) and len(re.findall(r"s  failed$", out, re.MULTILINE)) == 2
    again = [*command, '{"wait": 0}', json.dumps(names)]
    done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.search(r"(?m)^q +[\d.]+ s  as before$", done.stdout)
    assert len(re.findall(r"s  ok$", done.stdout, re.MULTILINE)) == 2


# --- which notebooks, which data ----------------------------------------------------------------------------------


def test_the_series_names_every_notebook_once_and_only_what_comes_before():
    names = [chapter.name for chapter in SERIES]
    on_disk = sorted(path.stem for path in (Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
    assert names == [*sorted(names[:-1]), "09_results"] and sorted(names) == on_disk
    for number, chapter in enumerate(SERIES):
        assert set(chapter.after) <= set(names[:number])


def test_one_domain_has_no_border(tiny_rsicd, tmp_path, capsys):
    for _ in range(2):  # from the data, then from what is remembered of them
        names = [chapter.name for chapter in series_for(tiny_rsicd, tmp_path)]
        assert "05_domain_gap" not in names and {"04_train", "09_results"} <= set(names)
        assert "05_domain_gap is left out: it needs 2 domains" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("splits", "left_out"),
    [
        ({"germany": "train", "finland": "finetune"}, {"05_domain_gap"}),  # the target is the first by name
        ({"germany": "train", "finland": "train"}, set()),
        ({"germany": "finetune", "finland": "finetune"}, {"05_domain_gap", "06_adapt"}),
        ({"germany": "train", "finland": "other"}, {"05_domain_gap", "06_adapt"}),
        ({"finland": "alone", "germany": "train", "spain": "finetune"}, {"05_domain_gap"}),  # no val beside its train
        ({"finland": "other", "germany": "train", "spain": "finetune"}, {"05_domain_gap"}),
    ],
)
def test_a_target_with_splits_of_its_own_is_adapted_to(tmp_path, splits, left_out):
    places = make_places(tmp_path).domain(list(splits))
    frame = places.frame.copy()
    for domain, name in splits.items():
        if name == "alone":
            frame.loc[frame["domain"] == domain, "split"] = "train"
        frame.loc[(frame["domain"] == domain) & (frame["split"] == "train"), "split"] = name.replace("alone", "train")
    Manifest(frame, tmp_path).save(tmp_path / "manifest.parquet")
    names = {chapter.name for chapter in series_for(tmp_path)}
    assert {chapter.name for chapter in SERIES} - names == left_out
    if "06_adapt" in names:
        home, away = two_sides(tmp_path)
        assert {"train", "val"} <= set(home.frame["split"]) and home.name != away.name
        if "finetune" in splits.values():
            assert splits[away.name] == "finetune"
        finetune, val = target_parts(away, None, 0)
        assert len(finetune) and len(val)


def test_a_named_dataset_is_found_and_another_refused(tiny_rsicd, tmp_path, monkeypatch):
    monkeypatch.delenv("UCORE_DATA", raising=False)
    assert dataset_for("rsicd", tiny_rsicd) == tiny_rsicd
    assert dataset_for("rsicd", tiny_rsicd.parent) == tiny_rsicd  # the folder that holds it under its name
    with pytest.raises(ConfigError, match="holds a dataset of the layout rsicd, not geotiles"):
        dataset_for("geotiles", tiny_rsicd)
    with pytest.raises(ConfigError, match="holds no dataset of a known layout, not urbancross"):
        dataset_for("urbancross", tmp_path)
    with pytest.raises(ConfigError, match="--dataset rsicd needs its folder"):
        dataset_for("rsicd", None)
    with pytest.raises(ConfigError, match="simulated is built in"):
        dataset_for("simulated", tiny_rsicd)
