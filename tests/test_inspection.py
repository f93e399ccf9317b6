import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from makers import make_rsicd
from makers_geo import make_country, make_geotiles, make_skyscript, picture, write_lines, zip_folder
from PIL import Image

from ucore.cli_data import HELP, help_text
from ucore.data import LAYOUTS, read_dataset
from ucore.inspection import DESCRIPTIONS, Inspection, inspect_path
from ucore.sharding import write_shards


def listing(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def looked_at(path: Path) -> Inspection:
    """The inspection, having checked that it is JSON-able, has a next step, and left no trace."""
    before = listing(path.parent)
    result = inspect_path(path)
    assert listing(path.parent) == before
    assert json.loads(json.dumps(result.to_dict()))["path"] == result.path
    assert result.next_steps and result.usable == (not result.problems)
    text = result.text()
    assert text.startswith(f"{result.path}: {DESCRIPTIONS[result.layout]}") and "nan" not in text
    return result


def test_a_sound_dataset_of_every_layout(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))  # where the index of shards is kept
    make_rsicd(tmp_path / "rsicd", 4, 2, 2, size=8)
    write_shards(read_dataset(tmp_path / "rsicd"), tmp_path / "shards")
    make_country(tmp_path / "urbancross")
    make_skyscript(tmp_path / "skyscript")
    make_geotiles(tmp_path / "geotiles", columns=("x", "y", "z"))
    (tmp_path / "ucore").mkdir()
    read_dataset(tmp_path / "geotiles").save(tmp_path / "ucore" / "manifest.parquet")
    for layout in LAYOUTS:
        result = looked_at(tmp_path / layout.name)
        assert (result.layout, result.usable) == (layout.name, True)
        assert result.counts["images"] == sum(sum(of.values()) for of in result.counts["splits"].values())
        assert result.next_steps[0].startswith(f"ucore train --data {tmp_path / layout.name} --scale tiny")
        # Only what is somewhere on Earth can be put on a map.
        assert any(step.startswith("ucore run 01") for step in result.next_steps) == (result.counts["with_place"] > 0)

    tiles = inspect_path(tmp_path / "geotiles")
    assert (tiles.counts["images"], tiles.counts["captions"], tiles.counts["distinct_captions"]) == (36, 72, 72)
    assert tiles.counts["frequent_tags"] == {"building=house": 36} and tiles.counts["with_description"] == 36
    west, south, east, north = tiles.counts["extent"]["finland"]
    assert 24.9 < west < east < 25 and 60.1 < south < north < 60.2
    sky = inspect_path(tmp_path / "skyscript")
    assert sky.counts["gsd_m"] == {"finland": [0.5] * 3, "spain": [0.1] * 3, "world": [10.0] * 3}
    assert any("between cameras" in note for note in sky.notes)
    assert "also holds" in " ".join(inspect_path(tmp_path).notes)


def test_what_is_wrong_with_a_dataset_and_what_to_do(tmp_path):
    folder = make_rsicd(tmp_path / "a folder", 4, 2, 0, size=8)
    (folder / "images" / "00001.png").write_bytes(b"")
    result = looked_at(folder)
    assert not result.usable and "00001.png (zero bytes)" in result.problems[0] and result.counts["images"] == 5
    assert result.next_steps == [f"ucore train --data '{folder}' --scale tiny --out 'runs/a folder' --skip-bad"]
    assert any("no split test" in note for note in result.notes)
    (folder / "dataset_rsicd.json").write_text("{")
    result = looked_at(folder)
    assert not result.usable and "line 1" in result.problems[0]


@pytest.mark.parametrize(
    ("make", "table", "change", "said"),
    [
        (make_geotiles, "metadata.csv", lambda text: text.replace("file", "filename", 1).encode(), "the column file."),
        (make_geotiles, "metadata.csv", lambda text: text.replace("finl", "f\xefnl").encode("latin-1"), "UTF-8"),
        (make_geotiles, "metadata.csv", lambda text: text.encode("utf-16"), "UTF-8"),
        (make_geotiles, "metadata.csv", lambda text: b"", "is empty"),
        (
            make_skyscript,
            "SkyScript_val_5K_filtered.csv",
            lambda text: text.replace("title", "titel", 1).encode(),
            "title",
        ),
    ],
)
def test_a_table_that_is_wrong_is_named_and_not_the_layout(tmp_path, make, table, change, said):
    path = make(tmp_path / "set") / table
    path.write_bytes(change(path.read_text()))
    result = looked_at(tmp_path / "set")
    assert result.layout == make.__name__.removeprefix("make_") and not result.usable
    assert said in result.problems[0] and table in result.problems[0]


def test_what_leaks_between_splits_is_said(tmp_path):
    folder = make_rsicd(tmp_path / "set", 4, 2, 2, size=8)
    (folder / "images" / "00006.png").write_bytes((folder / "images" / "00000.png").read_bytes())
    content = json.loads((folder / "dataset_rsicd.json").read_text())
    content["images"][6]["sentences"][0]["raw"] = content["images"][0]["sentences"][0]["raw"] + " ."
    (folder / "dataset_rsicd.json").write_text(json.dumps(content))
    notes = " ".join(looked_at(folder).notes)
    assert "captions of test also stand in train." in notes
    assert "images in different splits look alike: 00000 (train) and 00006 (test)" in notes


def test_archives_are_not_unpacked_by_looking(tmp_path):
    country = make_country(tmp_path, n=6)
    zip_folder(country / "images", country / "images.zip")
    for path in (country / "images").iterdir():
        path.unlink()
    (country / "images").rmdir()
    result = looked_at(tmp_path)
    assert result.usable and result.counts["Finland/images.zip"]["pictures"] == 6
    assert looked_at(country / "images.zip").next_steps == [f"ucore data inspect {country}"]
    (country / "images.zip").write_bytes((country / "images.zip").read_bytes()[:-40])
    assert "not a whole zip archive" in looked_at(country / "images.zip").problems[0]
    result = looked_at(tmp_path)
    assert (result.layout, result.usable) == ("urbancross", False) and "not a whole zip" in result.problems[0]
    picture(tmp_path / "some" / "a.png", 0)
    alone = zip_folder(tmp_path / "some", tmp_path / "some" / "some.zip")
    assert looked_at(alone).next_steps[0].startswith("python -m zipfile -e ")


def test_osm_and_imagery_lead_to_their_commands(tmp_path):
    import rasterio
    from rasterio.transform import from_bounds

    features = {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "properties": {"building": "yes"},
                "geometry": {"type": "Point", "coordinates": [24.94, 60.17]},
            }
        ],
    }
    (tmp_path / "finland.geojson").write_text(json.dumps(features))
    result = looked_at(tmp_path / "finland.geojson")
    assert result.layout == "osm" and result.counts["kinds"] == {"building": 1}
    assert "ucore simulate --osm" in result.next_steps[0] and "--country finland" in result.next_steps[0]
    (tmp_path / "finland.geojson").rename(tmp_path / "porto.geojson")
    result = looked_at(tmp_path / "porto.geojson")  # no style of that name: one that there is, and the choice
    assert "--country finland" in result.next_steps[0] and "finland, germany, spain" in result.notes[0]
    (tmp_path / "cut.osm.pbf").write_bytes(b"\0\0")
    assert not looked_at(tmp_path / "cut.osm.pbf").usable

    shape = dict(width=64, height=64, count=3, dtype="uint8", crs="EPSG:3857")
    place = from_bounds(2_776_000, 8_437_000, 2_776_064, 8_437_064, 64, 64)
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", transform=place, **shape) as file:
        file.write(np.full((3, 64, 64), 90, np.uint8))
    result = looked_at(tmp_path / "a.tif")
    assert result.layout == "imagery" and result.counts["gsd_m"] == pytest.approx(0.5, abs=0.02)
    west, south, east, north = result.counts["bounds"]
    assert 24.9 < west < east < 25 and 60.1 < south < north < 60.3
    assert f"--bounds {west},{south},{east},{north} --zoom 17" in result.next_steps[0]
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:5000])
    assert "cut short or damaged" in looked_at(tmp_path / "a.tif").problems[0]
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.tif")
    assert "georeference" in looked_at(tmp_path / "plain.tif").problems[0]

    picture(tmp_path / "tiles" / "17" / "74614" / "37927.png", 0, size=256)
    result = looked_at(tmp_path / "tiles")
    assert result.counts["zooms"] == [17] and "--zoom 17" in result.next_steps[0]


def test_what_nobody_knows(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds nothing" in looked_at(tmp_path / "empty").problems[0]
    assert "did you mean 'empty'" in looked_at(tmp_path / "emty").problems[0]
    picture(tmp_path / "shots" / "a.png", 0)
    result = looked_at(tmp_path / "shots")
    assert result.layout == "pictures" and all(layout.name in result.problems[1] for layout in LAYOUTS)
    assert looked_at(write_lines(tmp_path / "notes.txt", ["x"])).next_steps == [f"ucore data inspect {tmp_path}"]
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "a\x1b[2Jb").touch()
    assert "\x1b" not in looked_at(tmp_path / "odd").text()


def ucore(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from ucore.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"})


def test_the_commands(tmp_path):
    folder = make_rsicd(tmp_path / "r", 4, 2, 2, size=8)
    seen = ucore("data", "inspect", folder, "--json")
    assert seen.returncode == 0 and json.loads(seen.stdout)["counts"]["images"] == 8
    seen = ucore("data", "inspect", tmp_path / "absent")
    assert seen.returncode == 2 and "There is no" in seen.stdout and seen.stderr == ""
    seen = ucore("data", "help", "urbancross")
    assert seen.returncode == 0 and "instructblip_generation_finland_refine.csv" in seen.stdout


def test_every_topic_has_its_help():
    general = help_text()
    for topic in ("urbancross", "skyscript", "rsicd", "geotiles", "osm", "imagery"):
        text = help_text(topic)
        assert topic in general and text != general and "Then: ucore data inspect" in text
        assert max(map(len, text.splitlines())) <= 120
    assert HELP.endswith(".md") and help_text("all") == general
