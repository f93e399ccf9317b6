"""Simulated tiles: the same everywhere, true captions, right shadows and masks, two code paths into one painter."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from shapely.geometry import Point, box

from ucore.city import City, make_city
from ucore.countries import COUNTRIES, OWN_CAMERAS, SHARED_CAMERA, Camera, country_camera, country_style
from ucore.describe import Group, captions, count_word, place_word, relation_word, visible_groups
from ucore.errors import ConfigError, DataError, UserError
from ucore.files import file_hash, only_writer
from ucore.geo import local_frame
from ucore.kinds import KINDS, RULES, Feature, kind_of
from ucore.manifest import Manifest
from ucore.osm_city import city_from_osm
from ucore.painters import PAINTERS
from ucore.render import render_tile
from ucore.simulate import built_in_dataset, simulate_dataset
from ucore.simulated_set import LICENCES, SimulationConfig, dataset_credit, dataset_features

SMALL = SimulationConfig(countries=("germany",), tiles=6, seed=3)
CLEAR = Camera(gsd_m=1.0, sun_azimuth=180.0, sun_elevation=45.0, haze=0.0, noise=0.0, blur=0.0)


def city_of(*features: Feature) -> City:
    style = country_style("germany")
    return City(style, local_frame(*style.place), 1000.0, 1000.0, list(features))


def thing(kind: str, shape, **more) -> Feature:
    return Feature(kind, shape, dict(KINDS[kind].tags), **{"height": KINDS[kind].height, **more})


def contents(folder) -> dict[str, str]:
    """Hash of every file of a dataset, but for the manifest, whose file also tells where it lies."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "manifest.parquet"]
    return {str(p.relative_to(folder)): file_hash(p) for p in files}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "set"
    return folder, simulate_dataset(folder, SMALL, workers=1, progress=False)


# --- the dataset ------------------------------------------------------------------------------------------------


def test_a_fresh_process_with_other_workers_gives_the_same_files(small, tmp_path):
    folder, manifest = small
    code = "from ucore.cli import main; main()"
    arguments = ["simulate", "--countries", "germany", "--tiles", "6", "--seed", "3", "--workers", "2", "--out"]
    command = [sys.executable, "-c", code, *arguments, str(tmp_path / "again")]
    result = subprocess.run(
        command, env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True
    )
    assert contents(tmp_path / "again") == contents(folder)
    assert "6 simulated tiles" in result.stdout
    again = Manifest.load(tmp_path / "again" / "manifest.parquet")
    pd.testing.assert_frame_equal(pd.DataFrame(again.frame), pd.DataFrame(manifest.frame))


def test_a_killed_run_goes_on_to_the_same_files(small, tmp_path):
    folder, _ = small
    code = "import ucore.simulate as s; s.PART = 1; from ucore.cli import main; main()"
    arguments = ["simulate", "--countries", "germany", "--tiles", "6", "--seed", "3", "--workers", "1", "--out"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments, str(tmp_path / "cut")], start_new_session=True, stderr=subprocess.PIPE
    )
    parts, deadline = tmp_path / "cut" / "parts", time.monotonic() + 120
    while len(list(parts.glob("*.json"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()  # its worker must not live on and keep the folder locked
    process.wait()
    done = len(list(parts.glob("*.json")))
    assert done >= 2
    assert not (tmp_path / "cut" / "manifest.parquet").exists() or done == 6
    (tmp_path / "cut" / "images" / "germany" / ".x.png.0123abcd.tmp").write_text("left by the kill")
    subprocess.run([sys.executable, "-c", code, *arguments, str(tmp_path / "cut")], check=True, capture_output=True)
    whole, cut = contents(folder), contents(tmp_path / "cut")
    assert {n: h for n, h in cut.items() if "parts" not in n} == {n: h for n, h in whole.items() if "parts" not in n}


def test_tiles_are_made_after_opencv_has_worked_in_threads(tmp_path):
    code = (
        "import cv2, numpy as np; cv2.setNumThreads(4);"
        "cv2.GaussianBlur(np.zeros((3000, 3000, 3), np.uint8), (0, 0), 5);"
        "from ucore.simulate import *;"
        f"simulate_dataset({str(tmp_path / 'set')!r}, SimulationConfig(countries=('spain',), tiles=2), workers=2);"
        "assert cv2.getNumThreads() == 4"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    with only_writer(folder), pytest.raises(UserError, match="Another process is writing"), only_writer(folder):
        pass


def test_samples_are_placed_tagged_and_called_simulated(small):
    folder, manifest = small
    assert manifest.simulated
    card = json.loads((folder / "dataset.json").read_text())
    assert card["simulated"] is True
    assert card["counts"] == {"germany": 6}
    frame = manifest.frame
    assert frame["source"].str.startswith("simulated").all()
    metres = local_frame(*COUNTRIES["germany"].place).to_metres(np.array(frame["footprint"].tolist(), dtype=object))
    assert [round(shape.area) for shape in metres] == [180 * 180] * 6
    assert all(len(of_tile) == 5 and len(set(of_tile)) == 5 for of_tile in frame["captions"])
    assert all("=" in tag for tags in frame["tags"] for tag in tags)
    centres = [(shape.centroid.x, shape.centroid.y) for shape in metres]
    apart = [np.hypot(a[0] - b[0], a[1] - b[1]) for i, a in enumerate(centres) for b in centres[:i]]
    assert min(apart) > 180 * np.sqrt(2)


def test_masks_and_their_table_agree(small):
    folder, manifest = small
    table = pd.read_parquet(folder / "instances.parquet")
    for sample_id in manifest.frame["sample_id"]:
        mask = np.array(Image.open(folder / "masks" / "germany" / f"{sample_id}.png"))
        rows = table[table["sample_id"] == sample_id]
        assert mask.shape == (225, 225)
        assert np.bincount(mask.ravel(), minlength=len(rows) + 1)[1:].tolist() == rows["pixels"].tolist()
        assert set(rows["kind"]) <= KINDS.keys()


def test_the_ground_of_the_map_is_kept(small, tmp_path):
    folder, manifest = small
    features = dataset_features(folder)
    assert {"highway", "landuse"} <= {key for tags in features["tags"] for key in tags}
    assert not any("building" in tags for tags in features["tags"])
    west, south, east, north = features.total_bounds
    assert west < manifest.frame["lon"].min() < manifest.frame["lon"].max() < east
    assert south < manifest.frame["lat"].min() < manifest.frame["lat"].max() < north
    assert dataset_features(tmp_path) is None


def test_another_dataset_in_the_folder_is_left_alone(small, tmp_path):
    folder, _ = small
    before = contents(folder)
    with pytest.raises(ConfigError, match=r"seed 3, not 4"):
        simulate_dataset(folder, SimulationConfig(countries=("germany",), tiles=6, seed=4), progress=False)
    assert contents(folder) == before
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="holds other files"):
        simulate_dataset(tmp_path, SMALL, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"countries": ("finnland",)}, "did you mean 'finland'"),
        ({"countries": ()}, "at least one country"),
        ({"countries": ("spain", "spain")}, "each once"),
        ({"tiles": 0}, "tiles is 0"),
        ({"sensor": "own"}, "shared"),
        ({"osm": "x.pbf"}, "one country"),
    ],
)
def test_wrong_settings_are_named(values, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        simulate_dataset(tmp_path / "out", SimulationConfig(**values), progress=False)
    assert not (tmp_path / "out").exists()


def test_a_missing_extract_is_named(tmp_path):
    config = SimulationConfig(countries=("spain",), osm=str(tmp_path / "no.osm.pbf"))
    with pytest.raises(DataError, match=r"no\.osm\.pbf"):
        simulate_dataset(tmp_path / "out", config, progress=False)


def test_an_unusable_extract_leaves_nothing_behind(tmp_path):
    hut = {"type": "Polygon", "coordinates": [[[10, 50], [10.003, 50], [10.003, 50.002], [10, 50]]]}
    huts = [{"type": "Feature", "properties": {"building": "hut"}, "geometry": hut}] * 3
    for name, text, message in (
        ("cut.osm", "<osm version='0.6'><node id='1'", "cut.osm"),
        ("small.geojson", json.dumps({"type": "FeatureCollection", "features": huts[:2]}), "Use a larger extract"),
        ("one.geojson", json.dumps({"type": "FeatureCollection", "features": huts}), "--tiles 1 "),
    ):
        (tmp_path / name).write_text(text)
        config = SimulationConfig(countries=("spain",), tiles=2, osm=str(tmp_path / name))
        with pytest.raises(DataError, match=message):
            simulate_dataset(tmp_path / "out", config, progress=False)
        assert not (tmp_path / "out").exists()


def test_maps_of_an_extracts_ground_name_openstreetmap(tmp_path):
    card = tmp_path / "dataset.json"
    assert dataset_credit(tmp_path) == ""
    for kind, credit in (("osm", "© OpenStreetMap contributors, ODbL"), ("procedural", "")):
        card.write_text(json.dumps({"licence": LICENCES[kind]}))
        assert dataset_credit(tmp_path) == credit
    card.write_text("[]")
    assert dataset_credit(tmp_path) == ""


def test_the_built_in_set_refuses_an_unknown_scale():
    with pytest.raises(ConfigError, match="tiny, small or full"):
        built_in_dataset("huge")


# --- country and camera -----------------------------------------------------------------------------------------


def test_the_sensor_dial_turns_the_camera_only():
    assert {country_camera(name, "shared") for name in COUNTRIES} == {SHARED_CAMERA}
    assert len({country_camera(name, "per-country").gsd_m for name in COUNTRIES}) == 3
    city = city_of(thing("forest", box(-200, -200, 0, 200)), thing("house", box(20, 20, 50, 50), roof="gable"))
    shared, own = (render_tile(city, 0, 0, camera, 128) for camera in (SHARED_CAMERA, OWN_CAMERAS["spain"]))
    assert [f.kind for f in shared.features] == ["forest", "house"]
    assert abs(shared.image.astype(float).mean() - own.image.astype(float).mean()) > 2


def test_every_country_builds_at_least_25_kinds_and_its_own_share_of_them():
    counts = {}
    for name, style in COUNTRIES.items():
        kinds = pd.Series([feature.kind for feature in make_city(style, 3000, 0).features]).value_counts()
        assert len(kinds) >= 25
        counts[name] = kinds
    pools = {name: counts[name].get("swimming_pool", 0) / counts[name]["house"] for name in COUNTRIES}
    assert pools["spain"] > 5 * pools["germany"] > 5 * pools["finland"]
    assert counts["spain"].get("olive_grove", 0) > 5
    assert counts["finland"].get("olive_grove", 0) == 0
    assert counts["finland"]["forest"] > 2 * counts["germany"]["forest"]


def test_kinds_have_painters_and_rules_name_kinds():
    assert {kind.paint for kind in KINDS.values()} <= PAINTERS.keys()
    assert {kind for _, _, kind in RULES} <= KINDS.keys()
    back = {name: kind_of(kind.tags) for name, kind in KINDS.items()}
    # A roundabout is mapped as a line, a boat not at all.
    assert {name: kind for name, kind in back.items() if kind != name} == {"roundabout": "street", "boat": None}
    assert kind_of({"building": "no"}) is None
    assert kind_of({"highway": "residential", "name": "Long Street"}) == "street"
    assert kind_of({"amenity": "school", "building": "school"}) == "school"


# --- light ------------------------------------------------------------------------------------------------------


def test_a_shadow_is_as_long_as_the_thing_is_high_and_falls_away_from_the_sun():
    tower = thing("building", box(-10, -10, 10, 10), colour=(200, 200, 200), height=20.0)
    tile = render_tile(city_of(tower), 0, 0, CLEAR, 128)  # sun in the south, 45 degrees: 20 m of shadow to the north
    bare = render_tile(city_of(), 0, 0, CLEAR, 128)
    darker = tile.image.astype(float).mean(axis=2) < 0.75 * bare.image.astype(float).mean(axis=2)
    column = np.flatnonzero(darker[:, 64])
    assert abs(column.min() - (64 - 10 - 20)) <= 2
    assert abs(column.max() - (64 - 10 - 1)) <= 2
    assert not darker[75:, :].any()
    assert not darker[:, :50].any()


def test_shadows_fall_onto_lower_roofs_but_not_onto_higher_ones():
    south = thing("building", box(-10, -30, 10, -10), colour=(120, 120, 120), height=30.0)
    low = thing("building", box(-10, -8, 10, 12), colour=(200, 200, 200), height=4.0)
    high = thing("building", box(-10, -8, 10, 12), colour=(200, 200, 200), height=60.0)
    shaded, lit = (render_tile(city_of(south, roof), 0, 0, CLEAR, 96).image[48, 48].mean() for roof in (low, high))
    assert shaded < 0.7 * lit


def test_a_tile_beside_shows_the_same_ground():
    city = make_city(COUNTRIES["spain"], 1500, 1)
    camera = Camera(gsd_m=1.0, noise=0.0)
    whole, right = render_tile(city, 0, 0, camera, 128), render_tile(city, 32, 0, camera, 128)
    difference = np.abs(whole.image[:, 40:120].astype(int) - right.image[:, 8:88].astype(int))
    assert np.median(difference) == 0
    assert (difference > 40).mean() < 0.01


# --- captions ---------------------------------------------------------------------------------------------------


def three_tanks():
    tanks = [thing("storage_tank", Point(x, 30).buffer(9), colour_name="white") for x in (-40, -15, 10)]
    return render_tile(
        city_of(thing("farmland", box(-70, -70, 70, -5), colour=(90, 140, 60)), *tanks), 0, 0, CLEAR, 128
    )


def test_captions_count_colour_and_place_what_is_there():
    groups = {group.kind: group for group in visible_groups(three_tanks())}
    assert groups["storage_tank"].phrase == "three white storage tanks"
    assert place_word(groups["storage_tank"].middle) == "at the top"
    assert groups["farmland"].phrase == "a large green field"
    assert relation_word(groups["storage_tank"], groups["farmland"]) == "above"


def test_five_different_captions_one_of_them_vague():
    tile = three_tanks()
    for seed in range(20):
        written = captions(tile, seed)
        assert len(set(written)) == 5
        assert sum("tank" in text or "field" in text for text in written) == 4
        assert written == captions(tile, seed)
        assert all(text.endswith(" .") and text == text.lower() for text in written)


def test_counts_and_relations_in_words():
    assert [count_word(n) for n in (1, 3, 6, 13, 14, 90)] == ["one", "three", "several", "several", "many", "many"]
    inside = Group("church", 1, 0.03, (0.5, 0.5), "red", 1.0)
    around = Group("forest", 1, 0.8, (0.52, 0.5), "", 1.0)
    assert inside.phrase == "a church with a red roof"
    assert relation_word(inside, around) == "surrounded by"
    assert Group("olive_grove", 1, 0.1, (0.5, 0.5), "", 1.0).phrase == "an olive grove"


def test_what_is_whole_counts_though_small_and_mixed_colours_are_called_mostly():
    red, grey = ({"colour_name": name, "roof": "gable"} for name in ("red", "grey"))
    houses = [thing("house", box(x, 0, x + 12, 10), **(grey if x == 0 else red)) for x in (-60, -40, -20, 0)]
    pools = [thing("swimming_pool", box(x, -30, x + 5, -26)) for x in (-60, -40, -20)]
    corner = thing("swimming_pool", box(63, 63, 70, 70))
    groups = {
        group.kind: group for group in visible_groups(render_tile(city_of(*houses, *pools, corner), 0, 0, CLEAR, 128))
    }
    assert groups["house"].phrase == "four houses with mostly red roofs"
    assert groups["swimming_pool"].phrase == "three swimming pools"
    assert Group("church", 1, 0.03, (0.5, 0.5), "orange", 1.0).phrase == "a church with an orange roof"


def test_the_vague_caption_is_not_wrong():
    def said(*features):
        tile = render_tile(city_of(*features), 0, 0, CLEAR, 128)
        return " ".join(text for seed in range(40) for text in captions(tile, seed))

    store = said(thing("retail", box(-30, -20, 30, 20)), thing("parking", box(-60, -60, 60, -25)))
    assert "town" not in store and "country" not in store and "green" not in store
    glass = said(
        thing("farmland", box(-64, -64, 64, 64)), *(thing("greenhouse", box(-50, y, 50, y + 20)) for y in (-40, 0))
    )
    assert "town" not in glass and "built-up" not in glass
    assert "countryside" in said(thing("forest", box(-64, -64, 64, 64)))


def test_every_car_park_of_an_estate_has_cars():
    lot = thing("parking", box(-8, -30, 8, 30), angle=0.0)  # one column of bays is all that fits
    tile = render_tile(city_of(lot), 0, 0, Camera(gsd_m=0.5, noise=0.0), 256)
    assert tile.image[tile.instances == 1].std() > 15


# --- OpenStreetMap ----------------------------------------------------------------------------------------------


def osm_table(rows):
    import geopandas

    shapes, tags = zip(*rows, strict=True)
    names = [f"w{number}" for number in range(len(rows))]
    return geopandas.GeoDataFrame({"osm_id": names, "tags": list(tags)}, geometry=list(shapes), crs="EPSG:4326")


def test_an_extract_is_drawn_by_the_same_painters():
    from shapely.geometry import LineString

    degree = 1 / 111_000
    table = osm_table(
        [
            (box(10, 50, 10 + 40 * degree, 50 + 20 * degree), {"building": "yes", "building:levels": "4"}),
            (LineString([(10, 50.001), (10.002, 50.001)]), {"highway": "primary", "name": "<b>x</b>"}),
            (Point(10.001, 50.0005), {"natural": "tree"}),
            (Point(10.001, 50.0006), {"shop": "bakery"}),
        ]
    )
    city = city_from_osm(table, COUNTRIES["germany"])
    assert sorted(feature.kind for feature in city.features) == ["building", "road", "tree"]
    house = next(feature for feature in city.features if feature.kind == "building")
    assert house.height == pytest.approx(4 * 3.1)
    with pytest.raises(DataError, match="nothing that can be drawn"):
        city_from_osm(osm_table([(Point(1, 1), {"shop": "bakery"})]), COUNTRIES["germany"])


def test_tiles_of_real_helsinki(tmp_path):
    root = os.environ.get("UCORE_DATA")
    if not root:
        pytest.skip("UCORE_DATA is not set: no real extract was drawn")
    extract = os.path.join(root, "osm", "finland_helsinki_centre.osm.pbf")
    config = SimulationConfig(countries=("finland",), tiles=12, osm=extract)
    manifest = simulate_dataset(tmp_path / "helsinki", config, workers=1, progress=False)
    assert manifest.frame["lon"].between(24.8, 25.1).all()
    assert manifest.frame["lat"].between(60.1, 60.3).all()
    assert manifest.frame["licence"].str.startswith("ODbL").all()
    assert {tag.split("=")[0] for tags in manifest.frame["tags"] for tag in tags} >= {"building", "highway"}
    splits = simulate_dataset(tmp_path / "close", SimulationConfig(("finland",), 200, osm=extract), progress=False)
    assert set(splits.frame["split"]) == {"train", "val", "test", "buffer"}  # tiles overlap here
    config = SimulationConfig(countries=("finland",), tiles=5000, osm=extract)
    with pytest.raises(DataError, match=r"has room for \d+ tiles"):
        simulate_dataset(tmp_path / "many", config, progress=False)
