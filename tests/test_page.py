"""The page of results: whole in one file, inert, with words for every picture."""

import html.parser
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ucore.evaluate import RECALLS
from ucore.page import write_page
from ucore.report import Report, load_reports
from ucore.visualize import plot_recalls

HOSTILE = "<script>alert(1)</script>"


class Tags(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, Any]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.found if name == tag]


def make_run(root: Path, name: str, simulated: bool, dataset: str = "city val") -> None:
    command = f"ucore run 04 -p dataset={HOSTILE}"
    report = Report(name, root / "reports", dataset=dataset, simulated=simulated, seed=0, command=command)
    report.add("trained", "image_to_text_R@1", 5.0, 4.0, 6.0, n=10)
    report.add(f"{HOSTILE} words", "count", 3)
    report.write()
    rows = [{"label": "trained", "metric": name, "value": 5.0, "low": 4.0, "high": 6.0, "n": 9} for name in RECALLS]
    report.save_figure("recalls.png", plot_recalls(rows).png(30))


@pytest.fixture
def page(tmp_path) -> tuple[str, Tags]:
    make_run(tmp_path, "04_train-a", simulated=True)
    make_run(tmp_path, "01_explore_map-a", simulated=True, dataset=HOSTILE)
    for path, text in {"01_explore_map/map.html": "<b>map</b>", "notebooks/04_train/04_train.html": "x"}.items():
        (tmp_path / "runs" / path).parent.mkdir(parents=True)
        (tmp_path / "runs" / path).write_text(text)
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (400, 1600, 3), dtype=np.uint8)
    from PIL.PngImagePlugin import PngInfo

    words = PngInfo()
    words.add_text("Description", f'"><img src=x onerror=alert(2)>{HOSTILE}')
    Image.fromarray(noise).save(tmp_path / "runs/01_explore_map/sheet.png")
    Image.fromarray(noise[:9, :9]).save(tmp_path / "runs/01_explore_map/<i onclick=alert(3)>.png", pnginfo=words)
    (tmp_path / "runs/01_explore_map/broken.png").write_bytes(b"\x89PNG")
    Image.new("1", (4000, 3001)).save(tmp_path / "runs/01_explore_map/huge.png")
    path = write_page(load_reports(tmp_path / "reports"), tmp_path / "reports", tmp_path / "runs", ["04_train-a"])
    assert path == tmp_path / "reports" / "index.html"
    text = path.read_text("utf-8")
    return text, Tags(text)


def test_the_page_needs_nothing_from_elsewhere(page):
    text, tags = page
    assert not re.findall(r"<link|@import|url\(", text)
    assert all(image["src"].startswith("data:image/") for image in tags.of("img"))
    assert len(tags.of("img")) == 4  # two figures and two of 01's own; a broken picture is left out, and one too large
    links = {link["href"] for link in tags.of("a")}
    assert {link for link in links if "://" in link} == set()
    assert "../runs/notebooks/04_train/04_train.html" in links
    assert not any("07_ablations" in link for link in links)  # it was not executed
    assert len(text) < 1_000_000


def test_names_are_text_and_the_map_is_confined(page):
    text, tags = page
    assert tags.of("script") == [] and HOSTILE not in text and "&lt;script&gt;alert(1)" in text
    assert not any(name.startswith("on") for _, attributes in tags.found for name in attributes)
    (frame,) = tags.of("iframe")
    assert frame["sandbox"] == "allow-scripts" and frame["srcdoc"] == "<b>map</b>"
    assert "default-src 'none'" in tags.of("meta")[2]["content"]


def test_every_picture_has_words_and_the_page_can_be_walked_by_keyboard(page):
    _, tags = page
    assert all(len(image["alt"]) > 20 for image in tags.of("img"))
    names = {section["aria-labelledby"] for section in tags.of("section")}
    assert names <= {heading.get("id") for heading in tags.of("h2")}
    assert tags.of("html")[0]["lang"] == "en" and len(tags.of("h1")) == 1
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in tags.of("div"))
    assert tags.of("a")[0]["href"] == "#main"


def test_simulated_and_earlier_are_said(page):
    text, _ = page
    assert "Simulated data." in text and "city val (simulated)" in text
    assert "an earlier run" in text


def test_pictures_of_real_data_are_linked_and_not_copied(tmp_path):
    make_run(tmp_path, "01_explore_map-a", simulated=False)
    (tmp_path / "runs/01_explore_map").mkdir(parents=True)
    (tmp_path / "runs/01_explore_map/map.html").write_text("secret")
    text = write_page(load_reports(tmp_path / "reports"), tmp_path / "reports", tmp_path / "runs").read_text("utf-8")
    assert "secret" not in text and "../runs/01_explore_map/map.html" in text
    assert Tags(text).of("iframe") == []
