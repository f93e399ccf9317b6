"""Captions, tags, file names and queries of strangers in everything that shows them: they stay text in a browser.

Maps of samples, of scores and reports have tests of their own; here is what cells and widgets of notebooks show.
"""

import html
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ucore.caption_explorer import caption_card
from ucore.caption_figures import told_of
from ucore.curriculum_figures import curriculum_html
from ucore.embedding import build_index
from ucore.heat import heat_layer, heat_map
from ucore.manifest import Manifest
from ucore.maps import sample_map, save_map
from ucore.report import Report, load_report
from ucore.retrieve import Searcher
from ucore.search_box import SearchBox
from ucore.tables import recall_table

PAYLOADS = (
    "<img src=x onerror=\"window.hacked='img'\">",
    "</script><script>window.hacked='script'</script>",
    "</title></textarea></style><svg onload=\"window.hacked='svg'\">",
    '" onmouseover="window.hacked=\'attribute\'" autofocus onfocus="window.hacked=\'focus\'" x="',
    "' onmouseover='window.hacked=1' x='",
    "<a href=\"javascript:window.hacked='link'\">here</a>",
    "${window.hacked='template'}`{x}{{7*7}}<%= 1 %>",
    "[here](javascript:window.hacked='markdown')",
    "<iframe srcdoc=\"<script>parent.hacked='frame'</script>\">",
)
HOSTILE = " ".join(PAYLOADS)


@pytest.fixture(scope="module")
def strangers(tmp_path_factory) -> Manifest:
    """Two pictures; all that is written of them, their files' names among it, is hostile."""
    folder, rows = tmp_path_factory.mktemp("strangers"), []
    for number, payload in enumerate(PAYLOADS[:2]):
        name = payload.replace("/", "")[:100] + ".png"
        Image.new("RGB", (16, 16), (90 * number, 90, 90)).save(folder / name)
        text = dict.fromkeys(("domain", "split", "licence", "description"), HOSTILE)
        rows.append({"sample_id": f"{payload}{number}", "image": name, "captions": [HOSTILE, payload],
                     "tags": [f"name={HOSTILE}"], "surrounding_tags": [HOSTILE], "lon": 25.0 + 0.01 * number,
                     "lat": 60.0, "source": f"simulated {HOSTILE}", **text,
                     "domain": f"{HOSTILE} {number}"})  # fmt: skip
    return Manifest.from_rows(rows, folder)


def shown(browser, path: Path) -> Any:
    """The page, with everything in it clicked, hovered and focused that can be, after a while."""
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    page.on("dialog", lambda dialog: (page.evaluate("window.hacked = 'dialog'"), dialog.dismiss()))
    page.goto(path.as_uri())
    page.evaluate("""() => { for (const item of document.querySelectorAll('*'))
        for (const kind of ['mouseover', 'mouseenter', 'focus', 'click', 'error'])
            if (item.tagName !== 'A' || kind !== 'click') item.dispatchEvent(new Event(kind, {bubbles: false})); }""")
    page.wait_for_timeout(300)
    return page


def harmless(page: Any) -> None:
    assert page.evaluate("window.hacked") is None
    assert page.locator("a[href^='javascript:'], iframe[srcdoc*='hacked'], img[src='x'], svg[onload]").count() == 0
    page.close()


def as_page(parts: list[str], path: Path) -> Path:
    path.write_text(f"<!DOCTYPE html><meta charset='utf-8'><body>{'<hr>'.join(parts)}</body>", "utf-8")
    return path


def test_this_would_be_seen(browser, tmp_path):
    page = shown(browser, as_page(list(PAYLOADS), tmp_path / "open.html"))
    assert page.evaluate("window.hacked") is not None
    page.close()


def test_cells_and_cards_show_it_as_text(browser, strangers, tmp_path):
    names = strangers.frame["sample_id"].tolist()
    run: Any = SimpleNamespace(texts=dict.fromkeys(names, HOSTILE), prompts=dict.fromkeys(names, HOSTILE))
    report = Report("04_train-a", tmp_path, dataset=HOSTILE, simulated=True, seed=0, command=HOSTILE)
    report.add(HOSTILE, "mR", 1.0)
    parts = [
        caption_card(strangers, 0, told_of(strangers, 0, {HOSTILE: run})),
        curriculum_html(strangers, np.ones(2), [], HOSTILE),
        recall_table([load_report(report.write())]).html(),
    ]
    page = shown(browser, as_page(parts, tmp_path / "cells.html"))
    assert "onerror" in page.inner_text("body")
    harmless(page)


def test_popups_of_the_map_show_it_as_text(browser, strangers, tmp_path):
    page = shown(browser, save_map(sample_map(strangers, credit=HOSTILE), tmp_path / "map.html"))
    page.locator(".ucore-list button").first.click()
    page.locator(".ucore-popup").first.wait_for()
    texts = page.locator(".ucore-popup").all_inner_texts()  # the one before may still be fading
    assert any("${window.hacked" in text for text in texts)
    harmless(page)


def test_search_shows_queries_and_places_as_text(browser, search_place, tmp_path):
    searcher = Searcher(search_place.index)
    box = SearchBox(searcher, examples=(HOSTILE,))
    box.ask(HOSTILE)
    parts = [searcher.text(HOSTILE, k=3)._repr_html_(), box.status.value, box.why.value, html.escape(HOSTILE)]
    page = shown(browser, as_page(parts, tmp_path / "search.html"))
    assert "onerror" in page.inner_text("body")
    harmless(page)


def test_the_map_of_a_search_shows_captions_places_and_lost_pictures_as_text(
    browser, strangers, search_place, tmp_path
):
    build_index(search_place.checkpoint, strangers, tmp_path / "index", progress=False)
    searcher = Searcher(tmp_path / "index")
    layers = [heat_layer(searcher, HOSTILE, k=2), heat_layer(searcher, "a house", k=2)]
    lost = layers[0].answer.hits[0]
    (tmp_path / "pictures").mkdir()
    for name in strangers.frame["image"]:
        if name != lost.image:
            shutil.copy(strangers.root / name, tmp_path / "pictures" / name)
    searcher.root, searcher.thumbnails = tmp_path / "pictures", {}
    path = save_map(heat_map(layers, credit=HOSTILE), tmp_path / "map.html")
    page = shown(browser, path)
    page.locator(".ucore-card").first.click()
    page.locator(".ucore-popup").first.wait_for()
    assert "${window.hacked" in page.locator(".ucore-popup").first.inner_text()
    assert f"The image {lost.image} cannot be read." in page.locator(".ucore-card").first.inner_text()
    assert page.locator(".ucore-card img").count() == 2  # the other one, in either list
    buttons = page.get_by_role("navigation", name="Go to").get_by_role("button")
    assert buttons.count() == 3 and all("onerror" in text for text in buttons.all_inner_texts()[:2])
    buttons.first.click()
    harmless(page)
