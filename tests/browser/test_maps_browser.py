"""The map as a reader sees it, in a real browser and without a network."""

import io
import re

import numpy as np
import pytest
from makers_maps import CENTRES, make_places, point_rows
from PIL import Image

from ucore.manifest import Manifest
from ucore.maps import domain_marks, sample_map, save_map

HOSTILE = '<img src=x onerror="window.hacked=1"></script><script>window.hacked=1</script>{{ 7*7 }}{% raw %} & "\u2028'
MARKS = domain_marks(CENTRES)


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Manifest:
    return make_places(tmp_path_factory.mktemp("places"))


def count_colour(png: bytes, colour: str) -> int:
    """Pixels of a screenshot that have exactly this colour, "#rrggbb"."""
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return int((np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) == wanted).all(axis=2).sum())


def count_text(page) -> str:
    return page.locator(".ucore-count").inner_text()


def counted(page, shown: str) -> None:
    """Waits until that many samples are said to be shown; the page's policy forbids playwright's wait_for_function."""
    page.locator(".ucore-count", has_text=re.compile(f"^{shown} of")).wait_for(timeout=10_000)


def look_at(page, lon: float, lat: float, zoom: int) -> None:
    page.evaluate(f"map_samples.setView([{lat}, {lon}], {zoom})")


def spot(page, lon: float, lat: float) -> tuple[float, float]:
    point = page.evaluate(f"map_samples.latLngToContainerPoint([{lat}, {lon}])")
    return point["x"], point["y"]


def test_samples_appear_with_legend_and_layers(places, open_page, tmp_path):
    page = open_page(save_map(sample_map(places), tmp_path / "map.html"))
    assert count_text(page) == "36 of 36 samples"
    for mark in MARKS.values():
        assert count_colour(page.screenshot(), mark.colour) > 100
    for name, mark in MARKS.items():
        assert page.get_by_label(f"{name} ({mark.code})").is_checked()
    page.get_by_label("spain").uncheck()
    assert count_text(page) == "24 of 36 samples"
    legend_only = count_colour(page.locator(".folium-map").screenshot(), MARKS["spain"].colour)
    assert legend_only == 0
    page.get_by_label("train").uncheck()
    page.get_by_label("val").uncheck()
    assert count_text(page) == "4 of 36 samples"
    assert page.get_by_text("Simulated data").count() == 0


def test_text_and_tag_filters(places, open_page, tmp_path):
    page = open_page(save_map(sample_map(places), tmp_path / "map.html"))
    page.get_by_label("Text").fill("NUMBER tile finland")
    counted(page, "12")
    page.get_by_label("Tag", exact=True).fill("pool")
    counted(page, "0")
    page.get_by_role("button", name="Show all").click()
    assert count_text(page) == "36 of 36 samples"
    page.get_by_role("button", name="landuse=allotments").click()
    assert count_text(page) == "12 of 36 samples"


def test_a_cluster_opens_into_footprints_and_a_popup(places, open_page, tmp_path):
    page = open_page(save_map(sample_map(places), tmp_path / "map.html"))
    lon, lat = places.domain("spain").frame[["lon", "lat"]].mean()
    before = page.evaluate("map_samples.getZoom()")
    page.mouse.click(*spot(page, lon, lat))
    assert page.evaluate("map_samples.getZoom()") > before + 3
    assert page.evaluate("map_samples.getBounds().contains([39.472, -0.378])")
    look_at(page, -0.38, 39.47, 17)
    for _ in range(50):  # drawn in a later frame, on a busy machine seconds later
        outlines = count_colour(page.locator(".folium-map").screenshot(), MARKS["spain"].colour)
        if outlines > 1000:
            break
        page.wait_for_timeout(200)
    assert outlines > 1000
    page.mouse.click(*spot(page, -0.38, 39.47))
    popup = page.locator(".ucore-popup")
    told = popup.inner_text()
    for said in ("spain_000", "a tile of spain , number 0", "leisure=swimming_pool", "highway=service", "split train",
                 "39.47000, -0.38000", "0.7 m a pixel", "survey · CC0"):  # fmt: skip
        assert said in told
    assert popup.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 48


def test_the_keyboard_reaches_every_sample_in_view(places, open_page, tmp_path):
    page = open_page(save_map(sample_map(places), tmp_path / "map.html"))
    look_at(page, *CENTRES["finland"], 15)
    items = page.locator(".ucore-list button")
    assert items.count() == 12
    items.first.focus()
    page.keyboard.press("Enter")
    assert "finland_000" in page.locator(".ucore-popup").inner_text()
    assert page.evaluate("document.activeElement.className") == "ucore-popup"


def test_images_that_are_not_embedded_are_shown_from_beside_the_page(tmp_path, open_page):
    places = make_places(tmp_path / "a b#c", per_country=2)
    page = open_page(save_map(sample_map(places, thumbnails=0), tmp_path / "map.html"))
    page.locator(".ucore-list button").first.click()
    image = page.locator(".ucore-popup img")
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 48
    (tmp_path / "elsewhere").mkdir()
    page = open_page(save_map(sample_map(places, thumbnails=0), tmp_path / "elsewhere" / "map.html"))
    page.locator(".ucore-list button").first.click()
    assert "No thumbnail" in page.locator(".ucore-popup").inner_text()


def test_hostile_names_and_captions_stay_text(open_page, tmp_path):
    row = dict.fromkeys(("sample_id", "domain", "split", "licence"), HOSTILE)
    row |= {"image": f"{HOSTILE}.png", "captions": [HOSTILE], "tags": [HOSTILE], "lon": 1.0, "lat": 2.0}
    row |= {"source": f"simulated{HOSTILE}"}
    manifest = Manifest.from_rows([row, {**row, "sample_id": "twin"}], tmp_path)
    for captions in manifest.frame["captions"]:  # from_rows would refuse it
        captions.append("\ud800")
    made = sample_map(manifest, thumbnails=0, credit=HOSTILE)
    page = open_page(save_map(made, tmp_path / "page" / "map.html"))
    assert page.get_by_text("Simulated data").is_visible()
    page.mouse.click(*spot(page, 1, 2))
    popup = page.locator(".ucore-popup")
    assert "1 of 2 here" in popup.inner_text()
    page.get_by_role("button", name="Next").press("Enter")  # the map may still be panning
    assert "twin" in popup.inner_text() and '<img src=x onerror="window.hacked=1">' in popup.inner_text()
    assert "{{ 7*7 }}{% raw %}" in popup.inner_text()
    page.mouse.move(*spot(page, 1, 2))
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src='x']").count() == 0
    assert re.search("{{ 7", page.locator(".ucore-panel").inner_text())


def test_a_hundred_thousand_points_are_drawn_and_searched(open_page, tmp_path):
    made = sample_map(Manifest.from_rows(point_rows(100_000), tmp_path), thumbnails=0)
    path = save_map(made, tmp_path / "map.html")
    assert path.stat().st_size < 15e6
    page = open_page(path)
    assert count_text(page) == "100,000 of 100,000 samples"
    assert count_colour(page.locator(".folium-map").screenshot(), MARKS["spain"].colour) > 500
    page.get_by_label("Text").fill("99999")
    counted(page, "1")
    assert page.locator(".ucore-list button").first.inner_text() == "p99999 point number 99999"
