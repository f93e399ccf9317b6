"""Search as a person does it: a map in a file, and the application by Voila."""

import re
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from ucore.app import voila_command, write_app
from ucore.filters import Filter
from ucore.heat import heat_layer, heat_map
from ucore.maps import save_map
from ucore.retrieve import Searcher
from ucore.search_box import SearchBox

PATIENCE = 120_000  # milliseconds


def test_the_map_of_two_queries(search_place, open_page, tmp_path):
    searcher = Searcher(search_place.index)
    layers = [heat_layer(searcher, text, k=4) for text in ("a red house", "<img src=x onerror=alert(1)>")]
    page = open_page(save_map(heat_map(layers), tmp_path / "map.html"))
    assert page.locator(".folium-map").count() == 2 and page.locator(".ucore-card").count() == 8
    assert page.get_by_role("heading", name="B: <img src=x onerror=alert(1)>").count() == 1
    page.locator(".ucore-card").first.click()
    first = layers[0].answer.hits[0].sample_id
    page.locator(".ucore-popup h2", has_text=first).wait_for(timeout=10_000)
    assert page.evaluate("map_samples.getZoom()") >= 15


def test_the_map_opens_where_the_first_result_lies_and_leads_to_the_others(search_place, open_page, tmp_path):
    layer = heat_layer(Searcher(search_place.index), "a red house", k=12)
    hits, table = layer.answer.hits, layer.table.set_index("sample_id")
    page = open_page(save_map(heat_map([layer]), tmp_path / "map.html"))

    def in_view() -> set[str]:
        west, south, east, north = map(float, page.evaluate("map_samples.getBounds().toBBoxString()").split(","))
        seen = table[table["lon"].between(west, east) & table["lat"].between(south, north)]
        return set(seen["domain"])

    domains = list(dict.fromkeys(table.loc[hit.sample_id, "domain"] for hit in hits))
    assert len(domains) > 1 and in_view() == {domains[0]}
    buttons = page.get_by_role("navigation", name="Go to").get_by_role("button")
    told = [f"{name} ({sum(table.loc[hit.sample_id, 'domain'] == name for hit in hits)})" for name in domains]
    assert buttons.all_inner_texts() == [*told, "everywhere"]
    buttons.nth(1).click()
    assert in_view() == {domains[1]}
    buttons.last.click()
    assert in_view() == set(table["domain"])


def test_a_box_drawn_across_the_antimeridian_is_one_that_a_filter_takes(search_place, open_page, tmp_path):
    layer = heat_layer(Searcher(search_place.index), "a red house", k=1)
    page = open_page(save_map(heat_map([layer]), tmp_path / "map.html"))
    for drawn, told in (
        ((170, -10, 190, 10), [170, -10, 190, 10]), ((-190, -10, -170, 10), [170, -10, 190, 10]),
        ((530, 1, 540.5, 2), [170, 1, 180.5, 2]), ((24, 60, 25, 61), [24, 60, 25, 61]),
        ((384, 60, 385, 61), [24, 60, 25, 61]), ((-180, -95, 180, 95), [-180, -90, 180, 90]),
        ((-300, 0, 200, 1), [-180, 0, 180, 1]),
    ):  # fmt: skip
        box = page.evaluate("(edges) => drawnBox(...edges)", list(drawn))
        assert box == told and Filter(box=box).box is not None


def test_a_frame_of_two_maps_that_gets_its_size_late(search_place, browser, tmp_path):
    searcher = Searcher(search_place.index)
    layers = [heat_layer(searcher, text, k=4) for text in ("a red house", "a green field")]
    save_map(heat_map(layers), tmp_path / "map.html")
    page, failed = browser.new_page(viewport={"width": 900, "height": 600}), []
    page.on("pageerror", lambda error: failed.append(str(error)))
    view = """() => [...document.querySelectorAll('.leaflet-control-scale-line')].map(line => line.innerText).concat(
        [map_samples.getSize().x, map_samples.getZoom(), map_samples.getCenter().lat.toFixed(2)])"""
    page.goto((tmp_path / "map.html").as_uri())
    page.locator(".ucore-card").first.wait_for()
    at_once = page.evaluate(view)
    frame = '<iframe src="map.html" style="display: none; width: 900px; height: 600px; border: 0"></iframe>'
    (tmp_path / "page.html").write_text(frame)
    page.goto((tmp_path / "page.html").as_uri())
    inside = page.frame_locator("iframe")
    inside.locator(".ucore-card").nth(7).wait_for(state="attached")
    page.evaluate("document.querySelector('iframe').style.display = ''")
    inside.locator(".ucore-card").first.wait_for(timeout=10_000)
    assert page.frames[1].evaluate(view) == at_once and failed == []
    page.close()


def test_an_answer_given_before_the_frame_has_a_size_is_there_afterwards(search_place, browser, tmp_path):
    box = SearchBox(Searcher(search_place.index))
    box.ask("a red house")
    seen = []
    for style in ("", "display: none"):
        html = f'<div id="frame" style="{style}">{box.map_view.value}</div>{box.link.value}'
        (tmp_path / "page.html").write_text(html, encoding="utf-8")
        page = browser.new_page(viewport={"width": 1000, "height": 700})
        page.goto((tmp_path / "page.html").as_uri())
        inside = page.frame_locator("iframe")
        inside.locator(".ucore-panel").wait_for(state="attached")
        page.evaluate("document.querySelector('#frame').style.display = ''")
        inside.locator(".ucore-card").first.wait_for(timeout=10_000)
        buttons = inside.get_by_role("navigation", name="Go to").get_by_role("button")
        buttons.last.wait_for(timeout=10_000)
        seen.append(
            (buttons.all_inner_texts(), page.frames[1].evaluate("[map_samples.getZoom(), map_samples.getSize().x]"))
        )
        page.close()
    assert seen[0] == seen[1] and len(seen[0][0]) > 1 and seen[0][1][0] > 10


def test_two_layers_count_the_places_of_both(search_place, open_page, tmp_path):
    searcher = Searcher(search_place.index)
    layers = [heat_layer(searcher, "a red house", k=5), heat_layer(searcher, "a green field", k=7)]
    page = open_page(save_map(heat_map(layers), tmp_path / "map.html"))
    buttons = page.get_by_role("navigation", name="Go to").get_by_role("button").all_inner_texts()
    found = [[hit.domain for hit in layer.answer.hits] for layer in layers]
    names = list(dict.fromkeys(found[0] + found[1]))
    counted = [f"{name} ({found[0].count(name)} and {found[1].count(name)})" for name in names]
    assert buttons == [*counted, "everywhere"]


@pytest.fixture
def voila(search_place, tmp_path):
    """The application's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = write_app(search_place.index, tmp_path, ("a red house",))
    command, environment = voila_command(path, port)
    places = {name: str(tmp_path / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")}
    with (tmp_path / "voila.log").open("w") as log:
        server = subprocess.Popen([*command, "--no-browser"], env={**environment, **places}, stdout=log, stderr=log)
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/voila/static/voila.js", timeout=1).close()
                    break
                except urllib.error.HTTPError:
                    break
                except OSError:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(20)


def test_type_see_draw_and_ask_why(voila, watched):
    page = watched(viewport={"width": 1250, "height": 950})
    page.goto(voila, timeout=PATIENCE)
    inside = page.frame_locator("iframe[title='Search results on the map']")

    def said(pattern: str) -> None:
        page.get_by_role("status").filter(has_text=re.compile(pattern)).first.wait_for(timeout=PATIENCE)

    said("36 images")
    page.get_by_placeholder("tennis courts beside a school").fill("a red house")
    page.get_by_placeholder("tennis courts beside a school").press("Enter")
    said("12 results for “a red house”")
    inside.locator(".ucore-card").nth(11).wait_for(timeout=PATIENCE)
    assert inside.locator(".ucore-card img").count() == 12
    inside.locator(".ucore-why").first.click()
    page.get_by_text(re.compile("^Why ")).first.wait_for(timeout=PATIENCE)
    inside.locator(".ucore-card").first.click()
    inside.get_by_role("button", name="Find more like this").click()
    said("12 results for “image ")
    inside.get_by_role("button", name="▭ Box").click()
    frame = page.locator("iframe[title='Search results on the map']").bounding_box()
    assert frame is not None
    x, y = frame["x"] + 100, frame["y"] + 100
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 400, y + 350, steps=5)
    page.mouse.up()
    said(r"results for “image .*(within the filter)?")
    inside.locator("path.leaflet-interactive, .leaflet-overlay-pane path").first.wait_for(timeout=PATIENCE)
    inside.get_by_role("button", name="Clear area").click()
    said("12 results for “image ")
