"""The series itself: every notebook runs from start to end, and its numbers are those of the README."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from makers import make_rsicd

from ucore.checkpoint import load_checkpoint
from ucore.data import read_dataset
from ucore.differences import compare_runs
from ucore.errors import DataError
from ucore.report import load_report
from ucore.reproduce import reproduce
from ucore.runner import run_notebook
from ucore.simulate import SimulationConfig, simulate_dataset
from ucore.tables import provenance, recall_table, results_text
from ucore.tasks import score

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def series(tiny_rsicd, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("series")
    parameters = {"dataset": str(tiny_rsicd), "out": str(folder / "runs"), "reports": str(folder / "reports")}
    names = ["00_setup_check", "04_train", "09_results"]
    reproduce({**parameters, "scale": "tiny", "epochs": 2}, names, folder / "notebooks", progress=False)
    return folder


def test_the_series_leaves_its_notebooks_reports_and_page(series, tiny_rsicd):
    for name in ("00_setup_check", "04_train", "09_results"):
        assert (series / "notebooks" / name / f"{name}.html").stat().st_size > 10_000
    assert json.loads((series / "runs" / "environment.json").read_text())["images_per_second"] > 0
    report = load_report(series / "reports" / "04_train-lite0-minilm-tiny-rsicd" / "metrics.json")
    labels = list(dict.fromkeys(row["label"] for row in report["metrics"]))
    assert [label.split(", ", 1)[1] for label in labels] == [
        "before training",
        "before training, duplicate-aware",
        "before training, ties at random",
        "trained (tiny)",
        "trained (tiny), duplicate-aware",
        "trained (tiny), ties at random",
        "trained (tiny), hubs corrected",
        "trained (tiny), hubs corrected, duplicate-aware",
        "trained (tiny), hubs corrected, ties at random",
    ]
    assert (series / "reports" / "04_train-lite0-minilm-tiny-rsicd" / "curves.png").read_bytes().startswith(b"\x89PNG")
    checkpoint = next((series / "runs" / "04_train").glob("*/encoder.json")).parent
    encoder, card = load_checkpoint(checkpoint)
    again = score(encoder, read_dataset(tiny_rsicd, split="val"), card["train"]["test_views"], progress=False)
    reported = {row["metric"]: row["value"] for row in report["metrics"] if row["label"].endswith("trained (tiny)")}
    assert again.metrics()[0] == reported
    page = (series / "reports" / "results.md").read_text()
    value = next(row["value"] for row in report["metrics"] if row["metric"] == "mR")
    assert f"{value:.2f} [" in page


@pytest.mark.slow
def test_running_a_finished_notebook_again_gives_the_same_numbers(series, tiny_rsicd):
    path = series / "reports" / "04_train-lite0-minilm-tiny-rsicd" / "metrics.json"
    before = load_report(path)["metrics"]
    given = {"dataset": str(tiny_rsicd), "scale": "tiny", "epochs": 2, "out": str(series / "runs")}
    run_notebook("04", {**given, "reports": str(series / "reports")}, series / "again", html=False, progress=False)
    assert load_report(path)["metrics"] == before


@pytest.mark.slow
def test_a_run_from_nothing_gives_the_same_bits(series, tiny_rsicd, tmp_path):
    """Another process, other folders, nothing cached: every number is the same, but for what a clock says."""
    given = {"dataset": str(tiny_rsicd), "scale": "tiny", "epochs": 2, "out": str(tmp_path / "runs")}
    given |= {"reports": str(tmp_path / "reports")}
    run_notebook("04", given, tmp_path / "notebooks", html=False, progress=False, threads=1)
    found = compare_runs(series / "reports" / "04_train-lite0-minilm-tiny-rsicd", tmp_path / "reports")
    assert found.compared > 50
    assert found.metrics == [], found.text()
    assert [change for change in found.facts if not change.what.startswith("machine")] == []


def test_results_refuse_what_is_missing_and_show_one_page(series, tmp_path):
    page = (series / "reports" / "index.html").read_text("utf-8")
    assert "04_train-lite0-minilm-tiny-rsicd" in page and "data:image/png;base64," in page
    assert "../notebooks/" not in page  # they were executed elsewhere than below `out`
    given = {"reports": str(series / "reports"), "expected": ["05_domain_gap-lite0-minilm-tiny"]}
    with pytest.raises(DataError, match="Missing: there is no report 05_domain_gap"):
        run_notebook("09", given, tmp_path, html=False, progress=False)


@pytest.mark.slow
def test_the_series_runs_on_simulated_data_and_calls_it_so(tmp_path, monkeypatch):
    monkeypatch.delenv("UCORE_DATA", raising=False)
    made = SimulationConfig(tiles=24, seed=0, masks=False)
    monkeypatch.chdir(tmp_path)
    simulate_dataset("runs/simulated-tiny-0", made, workers=1, progress=False)
    parameters = {"dataset": "runs/simulated-tiny-0", "scale": "tiny", "epochs": 2}
    reproduce(parameters, ["01_explore_map", "04_train", "08_retrieve", "09_results"], "notebooks", progress=False)
    assert len(list(tmp_path.glob("runs/04_train/*/encoder.json"))) == 1  # 08 searches with what 04 has trained
    for name in ("01_explore_map-finland-germany-spain-simulated", "04_train-lite0-minilm-tiny-simulated"):
        assert load_report(tmp_path / "reports" / name / "metrics.json")["simulated"] is True
    page = (tmp_path / "reports" / "results.md").read_text()
    assert "finland+germany+spain val (simulated)" in page
    assert "(simulated data)" in page
    html = (tmp_path / "runs" / "01_explore_map" / "map.html").read_text("utf-8")
    assert "simulated" in html.lower()
    assert "https://cdn" not in html


@pytest.mark.slow
def test_segments_and_captions_run_on_simulated_data_and_keep_the_leak_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    simulate_dataset("tiles", SimulationConfig(tiles=24, seed=0), workers=1, progress=False)
    parameters = {"dataset": "tiles", "scale": "tiny", "generator": "felzenszwalb"}
    reproduce(parameters, ["02_segments", "03_captions"], "notebooks", progress=False)
    reports = [load_report(path) for path in sorted(tmp_path.glob("reports/*/metrics.json"))]
    assert [report["name"] for report in reports] == [
        "02_segments-felzenszwalb-tiny-simulated",
        "03_captions-micro-tiny-simulated",
    ]
    assert all(report["simulated"] for report in reports)
    leaked = [row for row in reports[0]["metrics"] if "(leak)" in row["label"]]
    assert leaked
    assert all(row["metric"].startswith("leaked_") for row in leaked)
    table = recall_table(reports)
    assert table
    assert "leak" not in table.markdown()
    labels = {row["label"] for row in reports[1]["metrics"]}
    assert {"finland: original captions", "spain: micro", "germany: tags", "micro"} <= labels
    for name in ("02_segments/segments.png", "03_captions/captions.png"):
        assert (tmp_path / "runs" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_gap_is_a_matrix_of_all_domains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    simulate_dataset(
        "runs/simulated-tiny-3", SimulationConfig(tiles=24, seed=3, masks=False), workers=1, progress=False
    )
    given = {"dataset": "runs/simulated-tiny-3", "seed": 3, "epochs": 1}
    run_notebook("05", given, tmp_path / "notebooks", progress=False)
    report = load_report(tmp_path / "reports" / "05_domain_gap-lite0-minilm-tiny-simulated" / "metrics.json")
    labels = [row["label"] for row in report["metrics"]]
    assert len(labels) == 2 * (9 + 1) and report["simulated"]
    assert {"finland -> spain, one camera", "finland -> spain, own cameras"} <= set(labels)
    page = (tmp_path / "notebooks" / "05_domain_gap" / "05_domain_gap.html").read_text("utf-8")
    assert "of the whole loss is the camera" in page


@pytest.mark.slow
def test_an_adaptation_is_stepped_through_and_its_test_part_scored_once(tiny_rsicd, tmp_path):
    other = make_rsicd(tmp_path / "other", 20, 10, 10, seed=7)
    given = {"dataset": str(tiny_rsicd), "target": str(other), "epochs": 2}
    given |= {"out": str(tmp_path / "runs"), "reports": str(tmp_path / "reports")}
    run_notebook("06", given, tmp_path / "notebooks", progress=False)
    (path,) = tmp_path.glob("reports/06_adapt-*/metrics.json")
    report = load_report(path)
    rows = {(row["label"], row["metric"]): row for row in report["metrics"]}
    assert {label for label, metric in rows if metric == "mR"} == {
        *("not adapted", "paper", "ucore"), *(f"{name}, hubs corrected" for name in ("not adapted", "paper", "ucore"))
    }  # fmt: skip
    gain = rows["ucore", "mR_difference"]
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert gain["value"] == pytest.approx(rows["ucore", "mR"]["value"] - rows["not adapted", "mR"]["value"])
    for name in ("adaptation", "features", "curriculum", "gains"):
        assert path.with_name(f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_an_ablation_shows_its_arms_with_intervals_and_repeats_nothing(tiny_rsicd, tmp_path):
    given = {
        "dataset": str(tiny_rsicd),
        "epochs": 1,
        "seeds": 1,
        "generator": "slic",
        "arms": ["segments=none", "ema=0"],
    }
    given |= {"out": str(tmp_path / "runs"), "reports": str(tmp_path / "reports")}
    run_notebook("07", given, tmp_path / "notebooks", progress=False)
    folder = tmp_path / "reports" / "07_ablations-lite0-minilm-tiny-slic-segments-none-ema-0-rsicd"
    report = load_report(folder / "metrics.json")
    differences = {row["label"]: row for row in report["metrics"] if row["metric"] == "mR_difference"}
    assert set(differences) == {"segments=none", "ema=0"}
    assert all(row["low"] <= row["value"] <= row["high"] for row in differences.values())
    assert (folder / "ablations.png").stat().st_size > 1000
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "07_ablations").glob("*.json")}
    assert len(kept) == 3
    run_notebook("07", given, tmp_path / "again", html=False, progress=False)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.slow
def test_training_with_segments_shows_what_a_caption_attends_to(tiny_rsicd, tmp_path):
    given = {"dataset": str(tiny_rsicd), "epochs": 2, "generator": "slic"}
    given |= {"out": str(tmp_path / "runs"), "reports": str(tmp_path / "reports")}
    run_notebook("04", given, tmp_path / "notebooks", progress=False)
    report = load_report(tmp_path / "reports" / "04_train-lite0-minilm-tiny-slic-rsicd" / "metrics.json")
    assert "lite0-minilm, trained (tiny, with segments of slic)" in {row["label"] for row in report["metrics"]}
    assert (report["parameters"]["segments"], report["parameters"]["generator"]) == ("late", "slic")
    page = next(tmp_path.glob("notebooks/**/04_train.html")).read_text()
    assert "segments and the shares that a query gives them now" in page


@pytest.mark.slow
def test_training_on_real_images_beats_chance_tenfold(tmp_path):
    if not os.environ.get("UCORE_DATA"):
        pytest.skip("UCORE_DATA is not set: the notebook was not tried on real images")
    given = {"scale": "tiny", "out": str(tmp_path / "runs"), "reports": str(tmp_path / "reports")}
    run_notebook("04", given, tmp_path / "notebooks", progress=False)
    report = load_report(tmp_path / "reports" / "04_train-lite0-minilm-tiny-rsicd" / "metrics.json")
    mean_recall = {row["label"]: row["value"] for row in report["metrics"] if row["metric"] == "mR"}
    n_images = len(read_dataset(split="val"))
    chance = 100 * (1 + 5 + 10) / 3 / n_images  # text to image; image to text is below it under our tie rule
    assert mean_recall["lite0-minilm, before training"] < 2 * chance
    assert mean_recall["lite0-minilm, trained (tiny)"] > 10 * chance


def test_the_readme_shows_the_committed_reports():
    readme = (ROOT / "README.md").read_text("utf-8")
    section = readme.split("<!-- BEGIN results -->")[1].split("<!-- END results -->")[0]
    tracked = subprocess.run(["git", "ls-files", "reports"], cwd=ROOT, capture_output=True, text=True, check=False)
    found = [load_report(ROOT / name) for name in sorted(tracked.stdout.split()) if name.endswith("/metrics.json")]
    if tracked.returncode:
        pytest.skip("this is no git checkout: which reports are committed is not known")
    assert section.strip() == f"{results_text(found)}\n{provenance(found)}".strip()
