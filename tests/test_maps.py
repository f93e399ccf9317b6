"""Maps, their figures and the explorer, short of a browser."""

import asyncio
import base64
import json
import re

import geopandas
import numpy as np
import pytest
import shapely
from makers_maps import make_places, point_rows
from PIL import Image

import ucore.explorer
from ucore.atlas import plot_places, plot_splits, plot_statistics, plot_tags, tag_shares
from ucore.basemap import background_paths, kind_of, page_features
from ucore.errors import ConfigError, DataError
from ucore.explorer import SampleExplorer, count_samples
from ucore.gallery import plot_contact_sheet
from ucore.manifest import Manifest
from ucore.maps import COLOURS, SHAPES, domain_marks, has_place, in_order, located, sample_map, save_map
from ucore.report import Report, load_report
from ucore.tables import results_text
from ucore.visualize import plot_recalls


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Manifest:
    return make_places(tmp_path_factory.mktemp("places"))


def rows_of(manifest: Manifest, **changes) -> Manifest:
    """The manifest with columns replaced by one value."""
    return Manifest(manifest.frame.assign(**changes), manifest.root)


def page_data(path) -> dict:
    """The data that a written map holds."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
    assert found
    return json.loads(found[1])


# --- the page ---------------------------------------------------------------------------------------------------


def test_the_page_holds_every_sample_once_and_names_no_other_host(places, tmp_path):
    path = save_map(sample_map(places, thumbnails=10), tmp_path / "maps" / "map.html")
    data, page = page_data(path), path.read_text("utf-8")
    assert data["ids"] == list(places.frame["sample_id"]) and len(data["thumbnails"]) == 10
    assert data["lon"][:2] == [24.94, 24.942] and data["footprints"][0] == [24.939, 60.169, 24.941, 60.171]
    assert data["tagNames"][0] in ("building=yes", "highway=service") and data["tags"][0] != data["around"][0]
    assert [data["texts"][number] for number in data["captions"][35]] == list(places.frame["captions"][35])
    assert data["splits"] == ["train", "val", "test"] and not data["simulated"]
    loaded = re.findall(r"""(?:src|href)=["']?(https?:[^"'> ]+)|@import|url\((?!data:|#)""", page)
    assert loaded == ["https://leafletjs.com"]  # a link that Leaflet can show to its own page
    assert "cdn." not in page and "sourceMappingURL" not in page
    assert "default-src 'none'" in page and "openstreetmap" not in page


def test_the_same_samples_give_the_same_page(places, tmp_path):
    one, two = (save_map(sample_map(places), tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert one == two


def test_online_tiles_only_when_asked_for(places, tmp_path):
    page = save_map(sample_map(places, online=True), tmp_path / "map.html").read_text("utf-8")
    assert "tile.openstreetmap.org/{z}" in page and "img-src data: 'self' file: https://tile.openstreetmap.org" in page


@pytest.mark.parametrize("text", ["</script><script>x()</script>", "<!-- <script>", "{{ 7*7 }}{% if %}", "\u2028&"])
def test_untrusted_text_cannot_leave_its_place(places, tmp_path, text):
    frame = places.frame.head(2).assign(domain=text, source=text, licence=text, image=f"{text}.png")
    frame["captions"], frame["tags"] = [[text], [text]], [[text], []]
    path = save_map(sample_map(Manifest(frame, places.root), credit=text, thumbnails=0), tmp_path / "map.html")
    data = page_data(path)
    assert data["texts"] == [text] and data["domains"][0]["name"] == text and data["notes"] == [f"Background: {text}"]
    assert "<" not in text or text not in path.read_text("utf-8")


def test_samples_without_a_place_are_counted(places, tmp_path):
    frame = places.frame.copy()
    frame.loc[0, "lon"], frame.loc[1, "lat"], frame.loc[2, "lon"] = np.nan, 91.0, 200.0
    some = Manifest(frame, places.root)
    assert has_place(some).sum() == len(located(some)) == 33
    data = page_data(save_map(sample_map(some), tmp_path / "map.html"))
    assert len(data["ids"]) == 33 and "3 samples without coordinates" in data["notes"][0]
    with pytest.raises(DataError, match=r"None of the 36 samples .* has coordinates"):
        sample_map(rows_of(places, lon=np.nan))


def test_footprints_captions_and_links(tmp_path):
    rows = point_rows(4)
    rows[0]["footprint"] = shapely.Polygon([(0, 0), (2, 0), (1, 1)])
    rows[1]["footprint"] = shapely.MultiPolygon([shapely.box(0, 0, 1, 1), shapely.box(3, 0, 5, 1.5)])
    rows[0]["image"], rows[1]["image"], rows[2]["image"] = "../a.png", "/etc/a.png", "a.tif"
    made = sample_map(Manifest.from_rows(rows, tmp_path), thumbnails=0)
    data = page_data(save_map(made, tmp_path / "map.html"))
    assert sorted(data["footprints"][0]) == [0, 0, 0, 1, 1, 2] and data["footprints"][2] is None
    assert set(data["footprints"][1]) == {0, 3, 5, 1.5}
    assert data["images"] == ["", "", "", "3.png"] and data["thumbnails"] == {} and data["base"] == "./"


def test_long_captions_are_shortened_and_the_page_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("ucore.maps.TEXT_LETTERS", 300)
    rows = [{**row, "captions": [row["sample_id"] + " word" * 50, "second"]} for row in point_rows(3)]
    data = page_data(save_map(sample_map(Manifest.from_rows(rows, tmp_path)), tmp_path / "map.html"))
    assert [len(data["texts"][number]) for of_image in data["captions"] for number in of_image] == [100, 100, 100]
    assert "first 100 letters" in data["notes"][0]


def test_marks_differ_for_every_domain():
    marks = domain_marks([f"domain {number}" for number in range(42)])
    assert len({(mark.colour, mark.shape) for mark in marks.values()}) == 42 == len(COLOURS) * len(SHAPES)
    codes = {name: mark.code for name, mark in domain_marks(["spain", "germany", "spanien", "日本"]).items()}
    assert codes == {"germany": "GE", "spain": "SP", "spanien": "SPA", "日本": "X3"}
    assert in_order(["val", "other", "train", "", "test"]) == ["train", "val", "test", "", "other"]


def test_background_features():
    square, line = shapely.box(0, 0, 1, 1), shapely.LineString([(0, 0), (2, 0)])
    tags = [{"building": "yes"}, {"natural": "water"}, {"highway": "primary"}, {"highway": "footway"}, {"name": "x"}]
    shapes = [square, shapely.MultiPolygon([square, shapely.box(5, 5, 8, 8)]), line, line, shapely.Point(0, 0)]
    features = geopandas.GeoDataFrame({"tags": tags}, geometry=shapes, crs="EPSG:4326")
    paths = background_paths(features)
    assert {kind: len(found) for kind, found in paths.items()} == {"water": 2, "building": 1, "path": 1, "road": 1}
    assert [len(found) for found in background_paths(features, most_points=6).values()] == [1]  # the largest
    steps = page_features(features)[-1]["paths"][0]
    assert np.cumsum(np.reshape(steps, (-1, 2)), axis=0).tolist() == [[0, 0], [2_000_000, 0]]
    assert (
        kind_of({"building": "no", "landuse": "forest"}, True) == "green"
        and kind_of({"amenity": "bench"}, False) is None
    )


# --- figures ----------------------------------------------------------------------------------------------------


def test_tag_shares_by_hand(tmp_path):
    rows = point_rows(4)
    for row, domain, tags in zip(rows, "aaab", (["x", "x"], ["x", "y"], [], ["y"]), strict=True):
        row |= {"domain": domain, "tags": tags}
    shares = tag_shares(Manifest.from_rows(rows, tmp_path))
    assert list(shares.index) == ["y", "x"] and list(shares.columns) == ["a", "b"]
    assert shares.to_numpy() == pytest.approx(np.array([[1 / 3, 1], [2 / 3, 0]]))


def test_figures_say_what_they_show(places):
    for plot, said in (
        (plot_tags, "finland: natural=wood"),
        (plot_places, "36 samples: finland 12, germany 12, spain 12"),
        (plot_splits, "train 24, val 6, test 6"),
        (plot_statistics, "mean words"),
        (plot_contact_sheet, "finland, germany, spain"),
    ):
        picture = plot(places)
        assert said in picture.alt and picture.png(50).startswith(b"\x89PNG")
        assert picture.get_size_inches()[0] == 8
    titles = [axes.get_title(loc="left") for axes in plot_contact_sheet(rows_of(places, source="simulated city")).axes]
    assert titles[0] == "finland: 5 of 12 (simulated)"


def test_the_main_area_is_the_one_with_most_samples(places):
    frame = places.domain("spain").frame
    frame.loc[:3, "lon"] += 1
    title = plot_splits(Manifest(frame, places.root)).axes[0].get_title(loc="left")
    assert title.startswith("spain: 8, 4 elsewhere\n39.47° N 0.38° W")


def test_figures_of_a_dataset_that_knows_nothing(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    row = {"sample_id": "a", "image": "a.png", "captions": ["$x^2$ \n"], "domain": "d$", "split": ""}
    bare = Manifest.from_rows([row], tmp_path)
    for plot in (plot_tags, plot_statistics, plot_contact_sheet):
        plot(bare).png(50)
    for plot in (plot_places, plot_splits):
        with pytest.raises(DataError, match="no map to draw"):
            plot(bare)
    with pytest.raises(ConfigError, match="per_domain is 0"):
        plot_contact_sheet(bare, per_domain=0)


# --- explorer ---------------------------------------------------------------------------------------------------


def test_filters_from_code_change_every_view(places):
    explorer = SampleExplorer(places)
    assert "36 of 36 samples" in explorer.status.value and len(explorer.filtered) == 36
    explorer.show(domain=("spain", "finland"), split="train", tag="leisure=swimming_pool", text="TILE number")
    frame = explorer.filtered.frame
    assert set(frame["domain"]) == {"spain"} and set(frame["split"]) == {"train"} and len(frame) == 8
    assert "8 of 36" in explorer.status.value and explorer.domain_box.value == ("spain", "finland")
    assert explorer.statistics.value.count("<tr>") == 2 and "leisure=swimming_pool 100 %" in explorer.statistics.value
    assert explorer.gallery.value.count("<figure") == 8 and "spain 8" in explorer.figure().alt
    bits = re.search(r'data-rows="(.*?)"', explorer.link.value)
    assert bits and np.unpackbits(np.frombuffer(base64.b64decode(bits[1]), np.uint8))[:36].sum() == 8
    explorer.show(text="no such words")
    assert "No sample fits" in explorer.statistics.value
    with pytest.raises(DataError, match="widen them"):
        explorer.figure()
    assert len(explorer.show().filtered) == 36


def test_unknown_names_are_refused_and_change_nothing(places):
    explorer = SampleExplorer(places).show(domain="spain")
    for given, said in (
        ({"domain": "france"}, "finland"),
        ({"split": "dev"}, "train"),
        ({"tag": "a=b"}, "building=yes"),
    ):
        with pytest.raises(DataError, match=said):
            explorer.show(**given)
    assert len(explorer.filtered) == 12


def test_typing_is_followed_once_after_a_pause(places, monkeypatch):
    monkeypatch.setattr(ucore.explorer, "PAUSE_SECONDS", 0.01)
    explorer = SampleExplorer(places)
    updates = []
    monkeypatch.setattr(explorer, "_update", lambda: updates.append(explorer.text_box.value))

    async def type_a_word() -> None:
        for end in range(1, 6):
            explorer.text_box.value = "spain"[:end]
        await asyncio.sleep(0.1)

    asyncio.run(type_a_word())
    assert updates == ["spain"]


def test_hostile_text_is_escaped_in_every_widget(places):
    bad = "<img src=x onerror=alert(1)>"
    frame = places.frame.head(3).assign(domain=bad, sample_id=[f'{bad}"{k}' for k in range(3)])
    frame["captions"], frame["tags"] = [[bad]] * 3, [[bad]] * 3
    explorer = SampleExplorer(Manifest(frame, places.root))
    for widget in (explorer.status, explorer.statistics, explorer.gallery, explorer.map, explorer.link):
        assert bad not in widget.value
    assert "&lt;img" in explorer.gallery.value and "&lt;img" in explorer.statistics.value


def test_without_coordinates_there_are_numbers_but_no_map(places):
    explorer = SampleExplorer(rows_of(places, lon=np.nan, footprint=None))
    assert "no map" in explorer.map.value and explorer.statistics.value.count("<tr>") == 4
    assert "caption lengths" in explorer.figure().alt


# --- the report -------------------------------------------------------------------------------------------------


def test_counts_by_hand_and_a_report_without_recalls(places, tmp_path):
    values = {(row["label"], row["metric"]): row["value"] for row in count_samples(places)}
    assert values["all", "images"] == 36 and values["spain", "captions"] == 36 and values["all", "tags_per_image"] == 2
    assert values["all", "distinct_tags"] == 4 and values["spain", "median_gsd_m"] == pytest.approx(0.7)
    report = Report("01", tmp_path, dataset="places", simulated=True, seed=0, command="ucore run 01")
    report.add_rows(count_samples(places))
    counted = load_report(report.write())
    scored = {**counted, "name": "04", "metrics": [
        {"label": "trained", "metric": f"{way}_R@{k}", "value": 1.0 * k, "low": 0.0, "high": 20.0, "n": 5}
        for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]}  # fmt: skip
    assert results_text([counted, scored]).count("\n") == 3
    assert "trained" in plot_recalls([*counted["metrics"], *scored["metrics"]]).alt
    with pytest.raises(DataError, match="No report holds any of"):
        results_text([counted])
