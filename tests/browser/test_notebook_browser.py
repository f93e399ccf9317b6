"""The widgets of notebooks 01 to 08 in a real JupyterLab: what a click does reaches the page."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from makers import make_rsicd
from makers_maps import make_places

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
PATIENCE = 120_000  # milliseconds; a kernel imports torch meanwhile


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory) -> Iterator[tuple[Path, str]]:
    """A JupyterLab of our own: the folder it serves and its address."""
    folder = tmp_path_factory.mktemp("lab")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {name: str(folder / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")}
    environment = {**os.environ, **places, "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={port}"]
    command += ["--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"]
    makefile = (Path(__file__).parents[2] / "Makefile").read_text("utf-8")
    command += re.findall(r"(?m)^QUIET := (.*)$", makefile)[0].split()  # as `make lab` does
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(f"{address}/api/status")
            yield folder, address
        finally:
            server.terminate()
            server.wait(20)


def _wait_for(url: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("JupyterLab did not start; see server.log")


def excerpt(name: str, folder: Path, cells: list[str], **parameters: str) -> str:
    """Write the code cells of a notebook that contain one of `cells`, after its parameters; return the new name."""
    notebook = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    given = "".join(f"\n{key} = {value!r}" for key, value in parameters.items())
    code[0]["source"] = "".join(code[0]["source"]) + given
    kept = [cell for cell in code if cell is code[0] or any(part in "".join(cell["source"]) for part in cells)]
    assert len(kept) == 1 + len(cells)
    (folder / f"{name}.ipynb").write_text(json.dumps({**notebook, "cells": kept}), "utf-8")
    return f"{name}.ipynb"


def run_all(watched, address: str, name: str):
    page = watched(viewport={"width": 1200, "height": 1000})
    page.goto(f"{address}/lab/workspaces/{name.split('.')[0]}/tree/{name}?reset", timeout=PATIENCE)
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=PATIENCE)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=PATIENCE)  # earlier, Lab asks for a kernel
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    return page


def said(page, pattern: str) -> None:
    page.get_by_role("status").filter(has_text=re.compile(pattern)).first.wait_for(timeout=PATIENCE)


def test_the_explorer_filters_map_numbers_and_images(lab, watched):
    folder, address = lab
    make_places(folder / "places")
    name = excerpt("01_explore_map", folder, ["read_dataset(", "SampleExplorer("], dataset=str(folder / "places"))
    source = json.loads((folder / name).read_text())
    source["cells"][-1]["source"] = ["features, credit = None, ''\n", *source["cells"][-1]["source"]]
    (folder / name).write_text(json.dumps(source))
    page = run_all(watched, address, name)
    said(page, "36 of 36 samples")
    inside = page.frame_locator("iframe[title='Map of the samples']")
    count = inside.locator(".ucore-count")
    count.filter(has_text="36 of 36").wait_for(timeout=PATIENCE)
    page.get_by_placeholder("words of a caption").fill("tile spain")
    said(page, "12 of 36 samples")
    count.filter(has_text="12 of 36").wait_for(timeout=PATIENCE)
    statistics = page.locator(".jp-OutputArea table", has_text="most frequent tags")
    assert statistics.locator("tbody tr").count() == 1 and "spain (SP)" in statistics.inner_text()
    assert page.locator(".jp-OutputArea figcaption").count() == 8
    page.get_by_role("button", name="Show all").click()
    count.filter(has_text="36 of 36").wait_for(timeout=PATIENCE)


def test_step_run_and_reset_move_the_training_on_and_back(lab, watched, tiny_rsicd):
    folder, address = lab
    cells = ["read_dataset(", "load_encoder(", "segment_dataset(", "Trainer(model", "TrainingStepper("]
    given = {
        "dataset": str(tiny_rsicd),
        "scale": "tiny",
        "out": str(folder / "runs"),
        "reports": str(folder / "reports"),
    }
    page = run_all(watched, address, excerpt("04_train", folder, cells, **given))
    said(page, "Step 0 of")
    button = page.locator("button.jupyter-button")
    button.filter(has_text=re.compile("^Step$")).click()
    said(page, "Step 1 of")
    curve = page.locator("[aria-label^='Training curves'] polyline").first
    first = curve.get_attribute("points")
    button.filter(has_text=re.compile("^Run$")).click()
    said(page, r"(Step [2-9]|Step \d\d+|Finished after)")
    page.wait_for_function("before => document.querySelector(\"[aria-label^='Training curves'] polyline\")"
                           ".getAttribute('points') !== before", arg=first, timeout=PATIENCE)  # fmt: skip
    pause = button.filter(has_text=re.compile("^Pause$"))
    if pause.is_enabled():
        pause.click(force=True)  # training may end meanwhile
    shown = page.locator("figcaption", has_text="the right one")
    queries = page.locator(".jp-OutputArea .widget-dropdown select")
    before = page.locator(".jp-OutputArea b", has_text="“").inner_text()
    queries.select_option(index=3)
    page.locator(".jp-OutputArea b", has_text="“").filter(has_not_text=before).wait_for(timeout=PATIENCE)
    assert shown.count() == 1
    reset = button.filter(has_text=re.compile("^Reset$"))
    reset.click()  # waits until it is enabled
    said(page, "Step 0 of")
    page.get_by_text("No step yet").wait_for(timeout=PATIENCE)
    button.filter(has_text=re.compile("^Step$")).click()
    said(page, "Step 1 of")


def test_sliders_of_the_segments_act_at_once(lab, watched, tiny_rsicd):
    folder, address = lab
    name = excerpt("02_segments", folder, ["read_dataset(", "SegmentExplorer("], dataset=str(tiny_rsicd))
    source = json.loads((folder / name).read_text())
    source["cells"][-1]["source"] = ["model = None  # no words to compare with\n", *source["cells"][-1]["source"]]
    (folder / name).write_text(json.dumps(source))
    page = run_all(watched, address, name)
    said(page, r"\d+ masks → .* kept; the click means")
    picture = page.locator(".jupyter-widgets img")
    before = picture.get_attribute("src")
    slider = page.locator(".widget-slider", has_text="masks kept")
    slider.locator(".widget-readout").click()
    slider.locator(".widget-readout").press("Control+a")
    page.keyboard.type("1")
    page.keyboard.press("Enter")
    said(page, "→ 1 kept")
    assert picture.get_attribute("src") != before


def test_the_captions_of_another_image_are_shown(lab, watched, tiny_rsicd):
    folder, address = lab
    cells = ["read_dataset(", "caption_dataset(", "CaptionExplorer("]
    name = excerpt("03_captions", folder, cells, dataset=str(tiny_rsicd), captioner="tags", out=str(folder / "runs"))
    page = run_all(watched, address, name)
    said(page, "32 tiles")
    tiles = page.locator(".jp-OutputArea select").nth(2)
    first, second = (tiles.locator("option").nth(number).inner_text() for number in (0, 1))
    page.locator(f"img[alt='Image of {first}']").wait_for(timeout=PATIENCE)
    tiles.select_option(label=second)
    page.locator(f"img[alt='Image of {second}']").wait_for(timeout=PATIENCE)
    assert page.locator(f"img[alt='Image of {first}']").count() == 0


def test_a_step_of_adaptation_moves_the_curriculum_and_the_curves(lab, watched, tiny_rsicd):
    folder, address = lab
    target = make_rsicd(folder / "target", 20, 10, 10, seed=7)
    cells = ["two_sides(", "source_only(", 'AdaptConfig.of("paper"', "AdaptationStepper(paper)"]
    given = {"dataset": str(tiny_rsicd), "target": str(target), "out": str(folder / "runs")}
    name = excerpt("06_adapt", folder, cells, **given)
    source = json.loads((folder / name).read_text())
    source["cells"][0]["source"] += "\nepochs = 4"
    (folder / name).write_text(json.dumps(source))
    page = run_all(watched, address, name)
    failed: list[str] = []
    page.on("pageerror", lambda error: failed.append(str(error)))
    said(page, "Step 0 of")
    page.on("console", lambda message: failed.append(message.text) if message.type == "error" else None)
    page.get_by_text("of the source: no step yet").wait_for(timeout=PATIENCE)
    button = page.locator("button.jupyter-button")
    button.filter(has_text=re.compile("^Step$")).click()
    said(page, "Step 1 of")
    page.get_by_text(re.compile("Pass 1 through the target .1 step.: 50 %")).wait_for(timeout=PATIENCE)
    cloud = page.locator("svg[aria-label*='points of the source'] circle").first
    curve = page.locator("[aria-label^='Domains told apart'] polyline").first
    before = cloud.get_attribute("cx"), curve.get_attribute("points")
    button.filter(has_text=re.compile("^Run$")).click()
    said(page, "Finished after")
    page.get_by_text(re.compile(r"Pass (\d\d|[3-9]) through the target")).wait_for(timeout=PATIENCE)
    assert page.locator("th[scope='row']", has_text=re.compile("^pass 2$")).count() == 1
    assert (cloud.get_attribute("cx"), curve.get_attribute("points")) != before
    button.filter(has_text=re.compile("^Reset$")).click()
    page.get_by_text("of the source: no step yet").wait_for(timeout=PATIENCE)
    assert failed == []


def test_a_query_and_a_click_find_tiles_on_the_map(lab, watched, search_place):
    folder, address = lab
    name = excerpt("08_retrieve", folder, ["SearchBox("], query="a red house", other="a green field")
    source = json.loads((folder / name).read_text())
    given = "from ucore.retrieve import Searcher\nfrom ucore.data import read_dataset\n"
    given += f"source, searcher = {str(search_place.data)!r}, Searcher({str(search_place.index)!r})\n"
    given += "gallery = read_dataset(source)\n"
    source["cells"][-1]["source"] = [given, *source["cells"][-1]["source"]]
    (folder / name).write_text(json.dumps(source))
    page = run_all(watched, address, name)
    said(page, "36 images")
    inside = page.frame_locator("iframe[title='Search results on the map']")
    words = page.get_by_placeholder("tennis courts beside a school")
    words.fill("a red house")
    words.press("Enter")
    said(page, "12 results for “a red house”")
    inside.locator(".ucore-card").nth(11).wait_for(timeout=PATIENCE)
    inside.locator(".ucore-why").first.click()
    page.get_by_text(re.compile("^Why ")).first.wait_for(timeout=PATIENCE)
    inside.locator(".ucore-card").first.click()
    inside.get_by_role("button", name="Find more like this").click()
    said(page, "12 results for “image ")
