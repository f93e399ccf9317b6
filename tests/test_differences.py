"""What changed between two runs, and the exit status that says whether anything did."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import ucore

from ucore.differences import compare_runs
from ucore.errors import DataError
from ucore.files import write_json
from ucore.report import Report


def make(root: Path, name: str = "04_train", value: float = 20.0, **changes: Any) -> Path:
    facts = dict(dataset="rsicd val", simulated=False, seed=0, command="ucore run 04", parameters={"epochs": 3})
    report = Report(name, root, **{**facts, **changes})
    report.add("trained", "mR", value, value - 1, value + 1, n=100)
    report.add("trained", "seconds_per_image", value / 100)
    report.seconds["train"] = value
    return report.write()


def test_the_same_numbers_are_the_same_whatever_they_took(tmp_path):
    make(tmp_path / "a", date="2025-01-01")
    make(tmp_path / "b", date="2026-01-01")
    write_json(tmp_path / "b/04_train/metrics.json", {**json.loads((tmp_path / "b/04_train/metrics.json").read_text()),
                                                      "seconds": {"train": 1.0}})  # fmt: skip
    found = compare_runs(tmp_path / "a", tmp_path / "b")
    assert found.same and found.compared == 1
    outcome = ucore("diff", tmp_path / "a", tmp_path / "b")
    assert (outcome.status, outcome.out) == (0, "Same: 1 numbers compared.\n")


def test_what_differs_is_said_with_intervals_and_ends_with_status_1(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b", value=25.0, parameters={"epochs": 4}, seed=1)
    make(tmp_path / "b", "05_domain_gap")
    outcome = ucore("diff", tmp_path / "a", tmp_path / "b")
    assert outcome.status == 1
    assert outcome.out.splitlines() == [
        "only in B: 05_domain_gap",
        "04_train:",
        "  parameters.epochs: 3 -> 4",
        "  seed: 0 -> 1",
        "  trained, mR: 20 [19, 21] n=100 -> 25 [24, 26] n=100 (+5, intervals apart)",
        "Different: 1 numbers compared; 1 numbers and 2 facts differ.",
    ]
    told = json.loads(ucore("diff", tmp_path / "a", tmp_path / "b", "--json").out)
    assert told["same"] is False and told["only_b"] == ["05_domain_gap"]
    value = {"value": 25.0, "low": 24.0, "high": 26.0, "n": 100}
    assert told["metrics"][0]["b"] == value


def altered(path: Path, place: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of a report at `place`, changed."""
    document = json.loads(path.read_text())
    change(document)
    place.mkdir(parents=True)
    write_json(place / "metrics.json", document)
    return place


def test_every_fact_of_a_report_is_compared(tmp_path):
    one = make(tmp_path / "a")
    facts = set(json.loads(one.read_text())) - {"metrics", "name", "date", "seconds", "peak_memory_gb"}
    assert {"code", "commit", "command", "data", "dataset", "machine", "parameters", "seed", "simulated"} <= facts
    for key in sorted(facts - {"machine", "parameters", "simulated", "seed"}):
        other = altered(one, tmp_path / key / "04_train", lambda document, key=key: document.update({key: "0" * 12}))
        assert [change.what for change in compare_runs(one, other).facts] == [key]
    for key, value in {"simulated": True, "seed": 3, "parameters": {"epochs": 4}}.items():
        other = altered(one, tmp_path / key / "04_train", lambda document, new={key: value}: document.update(new))
        assert [change.what.split(".")[0] for change in compare_runs(one, other).facts] == [key]
    other = altered(one, tmp_path / "m" / "04_train", lambda document: document["machine"].update(cpu="another"))
    assert [change.what for change in compare_runs(one, other).facts] == ["machine.cpu"]


@pytest.mark.parametrize(("key", "value"), [("value", 20.25), ("low", 18.0), ("low", None), ("high", 30.0), ("n", 99)])
def test_a_number_its_interval_and_its_count_are_compared(tmp_path, key, value):
    one = make(tmp_path / "a")
    new = {"low": None, "high": None} if value is None else {key: value}
    other = altered(one, tmp_path / "b" / "04_train", lambda document: document["metrics"][0].update(new))
    (change,) = compare_runs(one, other).metrics
    assert change.what == "trained, mR" and change.b[key] == value
    assert compare_runs(one, other, tolerance=0.3).same == (key == "value")


def test_two_folders_with_one_name_are_refused(tmp_path):
    make(tmp_path / "a")
    altered(tmp_path / "a/04_train/metrics.json", tmp_path / "a" / "copy", lambda document: None)
    outcome = ucore("diff", tmp_path / "a", tmp_path / "a")
    assert outcome.status == 2 and "both hold a report of the name '04_train'" in outcome.err


def test_two_single_reports_are_compared_whatever_they_are_called_within_a_tolerance(tmp_path):
    one, other = make(tmp_path, "04_train-a"), make(tmp_path, "04_train-b", value=20.5)
    assert not compare_runs(one, other).same
    assert compare_runs(one.parent, other, tolerance=0.5).same
    assert ucore("diff", one, other, "--tolerance", "0.5").status == 0


@pytest.mark.parametrize("name", ["validation.json", "adaptation.json"])
def test_the_folder_of_a_training_is_a_run(tmp_path, name):
    one = make(tmp_path / "a").rename(tmp_path / "a" / name).parent
    assert compare_runs(one, one).compared == 1


def test_a_number_that_one_run_lacks_differs(tmp_path):
    one = make(tmp_path / "a")
    report = Report("04_train", tmp_path / "b", dataset="rsicd val", simulated=False, seed=0, command="ucore run 04",
                    parameters={"epochs": 3})  # fmt: skip
    report.add("trained", "image_to_text_R@1", 1.0)
    (change, other) = compare_runs(one, report.write()).metrics
    assert (change.what, change.b) == ("trained, mR", None)
    assert (other.what, other.a) == ("trained, image_to_text_R@1", None)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"metrics": [{"label": "a"}]}', '{"name": "x", "metrics": []}'])
def test_what_is_no_report_is_one_sentence_and_status_2(tmp_path, text):
    path = tmp_path / "metrics.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError):
        compare_runs(path, path)
    outcome = ucore("diff", path, path)
    assert outcome.status == 2 and outcome.err.startswith("ucore: ") and outcome.err.count("\n") == 1


def test_control_characters_of_a_file_do_not_reach_the_terminal(tmp_path):
    one, other = make(tmp_path / "a"), make(tmp_path / "b", dataset="\x1b[2Jnepal")
    assert "\x1b" not in ucore("diff", one, other).out
    report = Report("04_train", tmp_path / "c", dataset="rsicd val", simulated=False, seed=0, command="x",
                    parameters={"\x1b[1m": 1})  # fmt: skip
    report.add("\x1b[31mred\nSame: 9 numbers compared.", "mR", 1.0)
    told = ucore("diff", one, report.write()).out
    assert "\x1b" not in told and not any(line.startswith("Same") for line in told.splitlines())


@pytest.mark.parametrize("tolerance", ["nan", "inf", "-1"])
def test_a_tolerance_that_would_hide_everything_is_refused(tmp_path, tolerance):
    one, other = make(tmp_path / "a"), make(tmp_path / "b", value=30.0)
    outcome = ucore("diff", one, other, f"--tolerance={tolerance}")
    assert outcome.status == 2 and "tolerance" in outcome.err
