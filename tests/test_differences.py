"""What changed between two runs, and the exit status that says whether anything did."""

import json
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


def test_two_single_reports_are_compared_whatever_they_are_called_within_a_tolerance(tmp_path):
    one, other = make(tmp_path, "04_train-a"), make(tmp_path, "04_train-b", value=20.5)
    assert not compare_runs(one, other).same
    assert compare_runs(one.parent, other, tolerance=0.5).same
    assert ucore("diff", one, other, "--tolerance", "0.5").status == 0


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
