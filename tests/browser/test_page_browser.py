"""The page of results in a real browser: opens without a network, walks by keyboard, shows the map, runs no name."""

from pathlib import Path
from typing import Any

import pytest

from ucore.maps import sample_map, save_map
from ucore.page import write_page
from ucore.report import Report, load_reports
from ucore.simulate import SimulationConfig, simulate_dataset

HOSTILE = "<img src=x onerror=\"document.title='broken'\">"


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("page")
    made = simulate_dataset(root / "tiles", SimulationConfig(tiles=4, masks=False), workers=1, progress=False)
    save_map(sample_map(made), root / "runs" / "01_explore_map" / "map.html")
    for name in ("01_explore_map-a", "04_train-a"):
        report = Report(name, root / "reports", dataset=HOSTILE, simulated=True, seed=0, command=HOSTILE)
        report.add(HOSTILE, "mR", 50.0, 40.0, 60.0, n=9)
        report.add(HOSTILE, "count", 3)
        report.write()
    return write_page(load_reports(root / "reports"), root / "reports", root / "runs")


@pytest.fixture
def page(browser, index) -> Any:
    opened = browser.new_page(viewport={"width": 1100, "height": 800})
    asked: list[str] = []
    failed: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: failed.append(str(error)))
    opened.on("console", lambda message: failed.append(message.text) if message.type == "error" else None)
    opened.goto(index.as_uri())
    yield opened
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:", "about:"))] == []
    assert failed == []
    opened.close()


def test_names_run_nothing_and_the_map_shows_its_samples(page):
    page.locator("iframe").scroll_into_view_if_needed()
    frame = page.frame_locator("iframe")
    frame.locator(".ucore-count").wait_for()
    assert "12 of 12 samples" in frame.locator(".ucore-count").inner_text()
    assert page.title() == "ucore: results"
    assert page.locator("table img").count() == 0


def test_a_map_that_starts_without_a_size_opens_once_it_has_one(page):
    page.evaluate("""() => { const frame = document.querySelector('iframe'), hidden = frame.cloneNode();
        hidden.style.display = 'none'; frame.replaceWith(hidden); }""")
    frame = page.frame_locator("iframe")
    frame.locator(".ucore-count", has_text="12 of 12").wait_for(state="attached")
    page.evaluate("document.querySelector('iframe').style.display = ''")
    frame.locator(".ucore-count").wait_for(timeout=10_000)
    frame.locator(".ucore-list button").nth(11).wait_for(timeout=10_000)  # the view holds every sample


def test_the_keyboard_reaches_the_results_and_opens_what_is_folded(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the results"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details").first.evaluate("element => element.open")


@pytest.mark.parametrize("width", [360, 1100])
def test_nothing_is_wider_than_the_window_but_tables_that_scroll(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_what_is_said_of_a_table_stays_in_the_window_while_it_scrolls(page):
    page.set_viewport_size({"width": 360, "height": 800})
    table = page.locator(".wide").first
    table.evaluate("element => { element.scrollLeft = 100 }")
    assert table.evaluate("element => element.scrollLeft") > 0  # it is wider than the window
    place = table.locator("caption > span").bounding_box()
    assert place["x"] >= 0 and place["x"] + place["width"] <= 360


def test_words_stand_out_from_the_ground(page):
    """Contrast by the formula of WCAG 2.1 for every text on the page: at least 4.5 to 1."""
    lowest = page.evaluate("""() => {
        const light = rgb => rgb.map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
        const numbers = text => text.match(/[\\d.]+/g).map(Number);
        const ground = e => { for (; e; e = e.parentElement) { const c = numbers(getComputedStyle(e).backgroundColor);
            if (c.length < 4 || c[3] > 0) return c.slice(0, 3); } return [255, 255, 255]; };
        const words = [...document.querySelectorAll('body *')].filter(
            e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()));
        return Math.min(...words.map(e => { const pair = [numbers(getComputedStyle(e).color).slice(0, 3), ground(e)]
            .map(light).sort((a, b) => b - a); return (pair[0] + .05) / (pair[1] + .05); }));
    }""")
    assert lowest >= 4.5
