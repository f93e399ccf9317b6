"""Reports: a checked schema, written whole, without folder names; tables and marked sections made from them."""

import json
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ucore.errors import ConfigError, DataError
from ucore.manifest import Manifest
from ucore.notebooks import parse_parameters
from ucore.origin import git_commit, machine_facts, peak_memory_gb
from ucore.report import Report, load_report, report_name, run_command


def make_report(root: Path, **changes: Any) -> Report:
    settings = dict(dataset="RSICD", simulated=False, seed=0, command="ucore run 04", parameters={"epochs": 3})
    return Report("04_train", root, **{**settings, **changes})


def entry(label: str, metric: str, value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"label": label, "metric": metric, "value": value, "low": low, "high": high, "n": None}


def document(**changes: Any) -> dict[str, Any]:
    machine = dict(cpu="c", cores=2, ram_gb=None, gpu="none", python="3.11", torch="2.9", platform="Linux x86_64")
    facts = dict(name="04_train", dataset="RSICD", simulated=False, seed=0, commit="unknown", command="ucore run 04")
    facts |= {"code": "unknown", "data": "unknown"}
    return {**facts, "machine": machine, "parameters": {}, "seconds": {}, "metrics": [], **changes}


def git(folder: Path, *arguments: str) -> None:
    """Act on `folder` alone: nothing of the user's settings, hooks or of a hook that runs the tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, env=environment)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in ("ucore/model.py", "reports/04/metrics.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("1\n")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


def test_written_report_is_read_back(tmp_path: Path) -> None:
    report = make_report(
        tmp_path, seed=np.int64(7), parameters={"lr": np.float32(0.5), "sizes": (1, 2)}, date="2025-01-31"
    )
    report.add("zero-shot", "mR", 99.0)
    again: dict[str, Any] = {"value": np.float32(1.5), "low": np.float64(1), "high": 2.0, "n": np.int64(10)}
    report.add("zero-shot", "mR", **again)  # a cell is run twice
    report.add_rows([entry("fine-tuned", "mR", 20), entry("fine-tuned", "image_to_text_R@1", 7.25, 6, 8)])
    report.seconds["train"] = 12.5
    path = report.write()
    assert path == tmp_path / "04_train" / "metrics.json"
    loaded = load_report(path)
    assert loaded["metrics"] == [
        {"label": "zero-shot", "metric": "mR", "value": 1.5, "low": 1.0, "high": 2.0, "n": 10},
        entry("fine-tuned", "mR", 20),
        entry("fine-tuned", "image_to_text_R@1", 7.25, 6, 8),
    ]
    assert loaded["parameters"] == {"lr": 0.5, "sizes": [1, 2]}
    assert (loaded["seed"], loaded["seconds"], loaded["date"]) == (7, {"train": 12.5}, "2025-01-31")
    assert loaded["machine"] == machine_facts()
    assert set(loaded) == {*document(), "date"}
    assert set(load_report(make_report(tmp_path).write())) == set(document())


@pytest.mark.parametrize("value", [np.nan, np.inf, None, "21", True])
def test_refused_number_leaves_the_earlier_report(tmp_path: Path, value: Any) -> None:
    path = make_report(tmp_path).write()
    before = path.read_bytes()
    report = make_report(tmp_path)
    report.add("zero-shot", "mR", value)
    with pytest.raises(DataError, match=r"metrics\[0\]: 'value' is"):
        report.write()
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["metrics.json"]


def test_other_data_have_a_report_of_another_name(tmp_path: Path) -> None:
    row = {"sample_id": "a", "image": "a.png", "captions": [], "split": "val"}
    one, other = (Manifest.from_rows([{**row, "domain": name}], tmp_path) for name in ("nepal", "a/b <c>"))
    names = [report_name("04_train", "hf-hub:org/model", "tiny", of=data) for data in (one, other)]
    assert names == ["04_train-hf-hub-org-model-tiny-nepal", "04_train-hf-hub-org-model-tiny-a-b-c-"]
    assert report_name("06_adapt", "finland", "spain", "") == "06_adapt-finland-spain"
    assert all(Report(name, tmp_path, dataset="x", simulated=False, seed=0, command="x") for name in names)


def test_settings_that_differ_give_names_that_differ() -> None:
    assert (
        report_name("07_ablations", "vit_b:/home/me/b_01.pth", "", "loss=triplet")
        == "07_ablations-vit_b-b_01-loss-triplet"
    )
    arms = [f"image_lr={number}e-5" for number in range(1, 40)]
    long, other = report_name("07_ablations", *arms), report_name("07_ablations", *arms[:-1], "image_lr=1")
    assert long != other and long[:100] == other[:100]
    assert len(long) == len(other) == 150


def test_key_of_the_data_is_that_of_both_folders(tmp_path: Path) -> None:
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "captions.txt").write_text(name)
    source, target = tmp_path / "source", tmp_path / "target"

    def key(data: Any) -> str:
        report = Report("06_adapt", tmp_path, dataset="x", simulated=False, seed=0, command="x", data=data)
        return load_report(report.write())["data"]

    alone = key(source)
    assert key([source, ""]) == key([source, source]) == key(str(source)) == alone
    assert len({alone, key(target), key([source, target]), key(None)}) == 4
    before = key([source, target])
    (target / "captions.txt").write_text("another")
    assert key([source, target]) != before and key([source, ""]) == alone


@pytest.mark.parametrize("name", ["", "../x", "a/b", "/tmp/x", ".hidden", "a b", "x\n"])
def test_report_name_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a report"):
        Report(name, tmp_path, dataset="RSICD", simulated=False, seed=0, command="")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("ucore train --data /home/anna/rsicd --out=/srv/big/runs/x", "ucore train --data .../rsicd --out=.../x"),
        ("-p generator=vit_h:/home/anna/sam.pth", "-p generator=vit_h:.../sam.pth"),
        ("vit_h:https://example.org/a/sam.pth", "vit_h:https://example.org/a/sam.pth"),
        ("ucore train --data '~/data/rsicd'", "ucore train --data '.../rsicd'"),
        (r"ucore train --data C:\Users\anna\rsicd", "ucore train --data .../rsicd"),
        ("ucore train --data ../shared/rsicd --out runs/a/b", "ucore train --data ../shared/rsicd --out runs/a/b"),
        ("https://example.org/a/b.pt", "https://example.org/a/b.pt"),
    ],
)
def test_folder_names_are_cut_from_commands_and_parameters(tmp_path: Path, given: str, kept: str) -> None:
    loaded = load_report(
        make_report(tmp_path, command=given, parameters={"a": [given], "b": Path("/home/anna/x")}).write()
    )
    assert loaded["command"] == kept
    assert loaded["parameters"] == {"a": [kept], "b": ".../x"}


def test_peak_memory_is_of_this_process_and_not_of_the_one_that_started_it() -> None:
    before = peak_memory_gb()
    held = np.ones(40_000_000)  # 0.32 GB
    assert peak_memory_gb() >= max(before, 0.32)
    code = "from ucore.origin import peak_memory_gb; print(peak_memory_gb())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.005 < float(child.stdout) < 0.2 < len(held)


def test_machine_facts_identify_the_hardware_but_nobody() -> None:
    facts = machine_facts()
    assert facts["cores"] >= 1
    assert facts["ram_gb"] is None or facts["ram_gb"] > 0.1
    assert facts["python"] == platform.python_version()
    words = re.findall(r"[\w.-]+", json.dumps(facts))
    assert socket.gethostname() not in words
    assert platform.release() not in words
    assert str(Path.home()) not in json.dumps(facts)


def test_commit_of_a_clean_repository(repository: Path) -> None:
    head = (repository / ".git" / (repository / ".git/HEAD").read_text().split()[1]).read_text().strip()
    assert re.fullmatch("[0-9a-f]{40}", head)
    assert git_commit(repository) == git_commit(repository / "ucore") == head


@pytest.mark.parametrize("file", ["ucore/model.py", "ucore/new.py", "notebooks/deep/new.ipynb", "pyproject.toml"])
def test_uncommitted_code_is_dirty(repository: Path, file: str) -> None:
    (repository / file).parent.mkdir(parents=True, exist_ok=True)
    (repository / file).write_text("2\n")
    git(repository, "config", "status.showUntrackedFiles", "no")  # somebody's setting must not hide a new file
    assert git_commit(repository / "ucore").endswith("+dirty")


def test_reports_of_the_same_run_are_not_dirt(repository: Path) -> None:
    (repository / "reports/04/metrics.json").write_text("2\n")
    (repository / "scores.npz").write_text("new")
    assert not git_commit(repository).endswith("+dirty")


def test_commit_is_unknown_where_the_code_is_not_tracked(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = repository / ".venv" / "site-packages"
    installed.mkdir(parents=True)
    (installed / "model.py").write_text("1\n")
    assert git_commit(installed) == "unknown"  # somebody else's repository
    outside = tmp_path_factory.mktemp("outside")
    assert git_commit(outside) == "unknown"
    monkeypatch.setenv("GIT_DIR", str(repository / ".git"))  # as in a hook
    assert git_commit(outside) == "unknown"
    monkeypatch.setenv("PATH", "")
    assert git_commit(repository) == "unknown"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "Cannot read the report"),
        ("{", "is not JSON"),
        ("[]", "an object is expected, not list"),
        (json.dumps({k: v for k, v in document().items() if k != "commit"}), "'commit' is missing"),
        (json.dumps(document(simulated="no")), "'simulated' is 'no', expected bool"),
        (json.dumps(document(seed=True)), "'seed' is True, expected int"),
        (json.dumps(document(date=2025)), "'date' is 2025, expected str"),
        (json.dumps(document(metrics={})), "'metrics' is {}, expected list"),
        (json.dumps(document(machine={})), "machine: 'cpu' is missing"),
        (json.dumps(document(seconds={"train": "fast"})), "seconds: 'train' is 'fast'"),
        (json.dumps(document(metrics=[entry("a", "mR", 1), "x"])), r"metrics\[1\]: an object"),
        (json.dumps(document(metrics=[{"label": "a"}])), r"metrics\[0\]: 'metric' is missing"),
        (json.dumps(document(metrics=[entry("a", "mR", float("nan"))])), "'value' is nan, expected int or float"),
        (json.dumps(document(metrics=[{**entry("a", "mR", 1), "n": 2.5}])), "'n' is 2.5, expected int or null"),
        (json.dumps(document(metrics=[{**entry("a", "mR", 1), "n": -1}])), "'n' is -1, a count"),
        (json.dumps(document(metrics=[entry("a", "mR", 1, 2, 0)])), "2 to 0 is no interval"),
        (json.dumps(document(metrics=[entry("a", "mR", 1, 0)])), "0 to None is no interval"),
        (json.dumps(document(metrics=[entry("a", "mR", 1)] * 2)), "'mR' of 'a' is there twice"),
        (json.dumps(document(seconds={"train": -1})), "seconds: one is negative"),
    ],
)
def test_broken_report_is_named(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "metrics.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=words) as error:
        load_report(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_command_of_a_run_can_be_given_again():
    command = run_command("07", scale="tiny", generator="", arms=["ema=0", "loss=triplet"], epochs=None, adapt_arms=[])
    words = shlex.split(command)
    assert words[:3] == ["ucore", "run", "07"]
    given = {"scale": "tiny", "generator": "", "arms": ["ema=0", "loss=triplet"]}
    assert parse_parameters(words[4::2]) == given and set(words[3::2]) == {"-p"}
