"""Reports that may stand on one page, and those that may not."""

from typing import Any

import pytest

from ucore.errors import ConfigError, DataError
from ucore.freshness import check_reports, is_stale
from ucore.report import present_code


def report(name: str, **changes: Any) -> dict[str, Any]:
    fresh = {"code": present_code(name), "data": "d1", "seed": 0, "dataset": "rsicd val", "simulated": False}
    return {"name": name, **fresh, **changes}


def test_reports_of_one_run_pass():
    run = [report("04_train-a"), report("05_domain_gap-a", dataset="rsicd test"), report("07_ablations-a")]
    check_reports(run)
    check_reports(run, expected=[one["name"] for one in run])


def test_a_missing_report_is_named_with_its_command():
    with pytest.raises(DataError, match=r"Missing: there is no report 05_domain_gap-a. Run first: ucore run 05$"):
        check_reports([report("04_train-a")], expected=["04_train-a", "05_domain_gap-a"])


def test_a_notebook_that_is_expected_needs_a_new_report():
    check_reports([report("04_train-a"), report("04_train")], expected=["04_train"])
    kept = [report("04_train-a"), report("04_trainer-a")]
    with pytest.raises(DataError, match=r"Missing: there is no report 04_train. Run first: ucore run 04$"):
        check_reports(kept, expected=["04_train"], keep=["04_train-a"])


@pytest.mark.parametrize("code", ["unknown", "0123456789abcdef"])
def test_a_stale_report_is_refused_unless_it_is_kept(code):
    old = report("04_train-a", code=code)
    assert is_stale(old)
    with pytest.raises(DataError, match=r"Stale: .* since 04_train-a .*ucore run 04; or .*'keep=\[04_train-a\]'"):
        check_reports([old, report("05_domain_gap-a")])
    check_reports([old, report("05_domain_gap-a")], keep=["04_train-a"])
    with pytest.raises(ConfigError, match="keep names 04_train-b, of which there is no report"):
        check_reports([old], keep=["04_train-b"])


@pytest.mark.parametrize(
    ("change", "words"), [({"data": "d2"}, "different files of the dataset"), ({"seed": 1}, r"seeds \(0 and 1\)")]
)
def test_reports_of_other_files_or_seeds_are_mixed(change, words):
    pair = [report("04_train-a"), report("05_domain_gap-a", **{"dataset": "rsicd test", **change})]
    with pytest.raises(DataError, match=f"Mixed: 04_train-a and 05_domain_gap-a are of .*{words}"):
        check_reports(pair)
    check_reports(pair, keep=["05_domain_gap-a"])
    check_reports([pair[0], {**pair[1], "dataset": "nepal val"}])  # another set may have other files and another seed


@pytest.mark.parametrize("called", ["rsicd val, 30 images", "rsicd, 1,200 images", "rsicd test", "rsicd"])
def test_neither_split_nor_size_makes_another_dataset(called):
    pair = [report("04_train-a"), report("02_segments-a", dataset=called, data="d2")]
    with pytest.raises(DataError, match="Mixed"):
        check_reports(pair)


def test_what_one_run_must_have_is_of_one_set():
    pair = [report("04_train-a"), report("05_domain_gap-b", dataset="nepal test", data="d2")]
    check_reports(pair)
    with pytest.raises(DataError, match="Mixed"):
        check_reports(pair, expected=[one["name"] for one in pair])
