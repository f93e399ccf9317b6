import json
import math
import os
import shutil
import warnings
from pathlib import Path

import pytest
from makers_geo import make_country, make_geotiles, make_skyscript, picture, write_csv, write_lines, zip_folder

from ucore.data import find_layout, read_dataset, read_geotiles, read_skyscript, read_urbancross
from ucore.errors import DataError
from ucore.urbancross import MADE, segment_files

LISTS = ("train_list.txt", "val_list.txt", "test_list.txt")


def quietly(read, *arguments, **settings):
    """What `read` returns, with no warning at all."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read(*arguments, **settings)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


# --- UrbanCross


def test_urbancross_makes_lists_without_leaks_once(tmp_path):
    for country in ("Finland", "Spain"):
        make_country(tmp_path, country)
    with pytest.warns(UserWarning, match="no split lists") as heard:
        manifest = read_dataset(tmp_path)
    assert len(heard) == 1 and heard[0].filename == __file__
    frame = manifest.frame.set_index("sample_id")
    assert dict(frame["domain"].value_counts()) == {"finland": 20, "spain": 20}
    assert frame.loc["F3", "captions"] == ["scene 3 of Finland , seen from above ."]
    assert manifest.image_paths[0] == tmp_path / "Finland" / "images" / "F0.png"
    for letter in "FS":  # 0 and 1 share a description, 18 and 19 a picture
        assert frame.loc[f"{letter}0", "split"] == frame.loc[f"{letter}1", "split"]
        assert frame.loc[f"{letter}18", "split"] == frame.loc[f"{letter}19", "split"]
    counts = manifest.domain("spain").frame["split"].value_counts()
    assert counts["train"] in (13, 14, 15) and counts["val"] >= 1 and counts["test"] >= 2

    again = quietly(read_dataset, tmp_path)  # from the lists that were kept
    assert list(again.frame["split"]) == list(manifest.frame["split"])
    assert list(quietly(read_dataset, tmp_path / "Spain").frame["domain"].unique()) == ["spain"]
    assert len(quietly(read_dataset, tmp_path, split="test", domain="finland")) == sum(
        (frame["split"] == "test") & (frame["domain"] == "finland")
    )


def test_urbancross_lists_go_where_they_can_be_written(tmp_path, monkeypatch):
    country = make_country(tmp_path / "data")
    zip_folder(country / "images", country / "images.zip")
    shutil.rmtree(country / "images")
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="out/finland"):
        first = read_urbancross(country, out=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "finland" / MADE).iterdir()) == [
        "about.json",
        *sorted(LISTS),
    ]
    key = first.content_key()
    shutil.rmtree(country / "images")
    really = os.access
    monkeypatch.setattr("os.access", lambda path, mode: country not in (path, *path.parents) and really(path, mode))
    with pytest.warns(UserWarning, match="runs/splits"):
        second = read_urbancross(country)
    assert not (country / "images").exists() and not (country / MADE).exists()
    assert list(second.frame["split"]) == list(first.frame["split"])
    assert second.content_key() == key
    assert list(quietly(read_urbancross, country).frame["image"]) == list(second.frame["image"])


def test_urbancross_given_lists(tmp_path):
    country = make_country(tmp_path, n=8)
    for name, members in zip(
        LISTS, (("F0.png", "images/F1.png", "F2"), ("F3.png",), ("F4.png", "gone.png")), strict=True
    ):
        write_lines(country / name, [*members, ""])
    write_lines(country / "finetune_list.txt", ["F1.png", "F5.png"])
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        manifest = read_dataset(tmp_path)
    said = " ".join(str(item.message) for item in heard)
    assert "gone.png (test_list.txt)" in said and "1 image(s) are on train_list.txt and finetune_list.txt" in said
    assert "2 image(s) of" in said and "F6.png, F7.png" in said
    assert list(manifest.frame["split"]) == [*["train"] * 3, "val", "test", "finetune", *["unlisted"] * 2]

    write_lines(country / "finetune_list.txt", ["F5.png", "F4.png"])
    with pytest.raises(DataError, match=r"on two sides: F4\.png \(finetune_list\.txt and test_list\.txt\)"):
        read_dataset(tmp_path)
    write_lines(country / "val_list.txt", ["F0.png"])
    (country / "finetune_list.txt").unlink()
    with pytest.raises(DataError, match=r"F0\.png \(train_list\.txt and val_list\.txt\)"):
        read_dataset(tmp_path)


def test_urbancross_images_and_descriptions_that_do_not_match(tmp_path):
    country = make_country(tmp_path, n=12)
    index = country / "instructblip_generation_finland_refine.csv"
    (country / "images" / "F3.png").unlink()
    picture(country / "images" / "more.png", 99)
    with (
        pytest.raises(DataError, match=r"1 of 12 images .*F3\.png \(absent\)"),
        pytest.warns(UserWarning, match=r"more\.png"),
    ):
        read_dataset(tmp_path)
    with pytest.warns(UserWarning, match="Skipped images: 1 of 12"):
        assert "F3" not in set(read_dataset(tmp_path, skip_bad=True).frame["sample_id"])
    picture(country / "images" / "F3.png", 3)
    (country / "images" / "more.png").unlink()
    replace(index, "scene 5 of Finland , seen from above .", "")
    with pytest.raises(DataError, match=r"F5\.png \(caption 1 is blank\)"):
        read_dataset(tmp_path)
    with open(index, "a") as stream:
        stream.write("F5.png,another text\nF6.png,another text\n")
    with pytest.warns(UserWarning, match="describes 2 image"):
        captions = read_dataset(tmp_path, skip_bad=True).frame.set_index("sample_id")["captions"]
    assert captions["F6"] == ["scene 6 of Finland , seen from above .", "another text"]
    replace(index, "image_name", "image_nam")
    with pytest.raises(DataError, match=r"lacks the column image_name. .*; did you mean 'image_nam'"):
        read_dataset(tmp_path)
    shutil.rmtree(country / "images")
    with pytest.raises(DataError, match=r"neither images/ nor images\.zip"):
        read_dataset(tmp_path)


def test_urbancross_segments(tmp_path):
    country = make_country(tmp_path, n=3)
    assert segment_files(country) == {}
    for image in ("F0", "F1"):
        for number in range(2):
            picture(country / "image_segments" / image / f"{image}_{number}.png", number)
    segments = segment_files(country)
    assert {name: [path.name for path in of] for name, of in segments.items()} == {
        "F0": ["F0_0.png", "F0_1.png"],
        "F1": ["F1_0.png", "F1_1.png"],
    }


# --- SkyScript


def test_skyscript_place_tags_and_country(tmp_path):
    manifest = quietly(read_dataset, make_skyscript(tmp_path))
    assert list(manifest.frame["split"]) == ["train"] * 3 + ["val"] * 3 + ["test"] * 3
    row = manifest.frame.iloc[1]
    assert (row["sample_id"], row["domain"], row["gsd_m"]) == ("a01_ES_19", "spain", 0.1)
    assert row["captions"] == ["road 1 , tree"]
    assert row["tags"] == ["highway=residential"] and row["surrounding_tags"] == ["natural=tree", "building=house"]
    assert (row["lon"], row["lat"]) == pytest.approx((25.011, 60.0005))
    assert row["footprint"].bounds == pytest.approx((25.01, 60, 25.012, 60.001))
    assert len(read_dataset(tmp_path, split="val", domain="finland")) == 1

    zip_folder(tmp_path / "images2", tmp_path / "images2.zip")
    key = manifest.content_key()
    shutil.rmtree(tmp_path / "images2")
    assert quietly(read_dataset, tmp_path).content_key() == key


def test_skyscript_metadata_as_columns_without_and_pickled(tmp_path):
    make_skyscript(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "meta2").mkdir()
    (tmp_path / "meta2" / "a00_FI_19.pickle").write_bytes(b"cos\nsystem\n(S'exit'\ntR.")
    with pytest.warns(UserWarning, match="pickles, which can run code"):
        manifest = read_skyscript(tmp_path)
    assert manifest.frame["lon"].isna().all() and set(manifest.frame["tags"].map(len)) == {0}
    shutil.rmtree(tmp_path / "meta2")
    for name in ("val", "test"):
        (tmp_path / f"SkyScript_{name}_5K_filtered.csv").unlink()
    row = {
        "filepath": "images2/a00_FI_19.png",
        "title": "t",
        "title_multi_objects": "",
        "box": "(25.0, 60.0, 25.1, 60.1)",
    }
    write_csv(tmp_path / "SkyScript_train_5K_filtered.csv", [{**row, "center_tags": "{'highway': 'service'}"}])
    frame = quietly(read_skyscript, tmp_path).frame
    assert frame["lat"][0] == pytest.approx(60.05)
    assert frame["tags"][0] == ["highway=service"] and frame["captions"][0] == ["t"]

    for box, said in (
        ("(60, 25, 61, 200)", "no place"),
        ("(1, 100, 2, 101)", "swapped"),
        ("(1, 2)", "not four numbers"),
    ):
        write_csv(tmp_path / "SkyScript_train_5K_filtered.csv", [{**row, "box": box}])
        with pytest.raises(DataError, match=said):
            read_skyscript(tmp_path)
    write_csv(tmp_path / "SkyScript_train_5K_filtered.csv", [{**row, "center_tags": "__import__('os')"}])
    with pytest.raises(DataError, match="neither JSON nor"):
        read_skyscript(tmp_path)
    write_csv(tmp_path / "SkyScript_train_5K_filtered.csv", [{**row, "filepath": "../a.png"}])
    with pytest.raises(DataError, match="leaves the folder"):
        read_skyscript(tmp_path)
    for name in ("9" * 2000, f"{'ü' * 128}.png", f"images2/{'9' * 300}.png", "a/" * 2000 + "a.png"):
        write_csv(tmp_path / "SkyScript_train_5K_filtered.csv", [{**row, "filepath": name}])
        with pytest.raises(DataError, match=r"train_5K_filtered\.csv is longer than a file's may be\. Correct it"):
            read_skyscript(tmp_path)
    write_csv(tmp_path / "SkyScript_train_5K_filtered.csv", [{**row, "filepath": "../a.png"}])
    shutil.copy(tmp_path / "SkyScript_train_5K_filtered.csv", tmp_path / "SkyScript_train_top30pct.csv")
    with pytest.raises(DataError, match="several caption files for one split"):
        read_skyscript(tmp_path)


# --- geo-tagged tiles


@pytest.mark.parametrize(
    "columns",
    [
        ("west", "south", "east", "north"),
        ("x", "y", "z"),
        ("lat", "lon", "gsd_m"),
        ("lat", "lon", "x", "y", "z", "west"),
    ],
)
def test_geotiles_place_from_whatever_columns_there_are(tmp_path, columns):
    import mercantile

    manifest = quietly(read_dataset, make_geotiles(tmp_path, columns=columns))
    row, tile = manifest.frame.iloc[0], mercantile.tile(24.94, 60.17, 17)
    box = mercantile.bounds(tile)
    assert row["captions"] == ["tile 0 , first .", "tile 0 , second ."] and row["description"] == "long 0"
    assert row["domain"] == "finland" and row["tags"] == ["building=house"]
    assert (row["lon"], row["lat"]) == pytest.approx(((box.west + box.east) / 2, (box.south + box.north) / 2), abs=1e-6)
    if "gsd_m" in columns:
        side = 16 * 2.4 / 6_371_000 / math.pi * 180  # degrees of latitude
        west, south, east, north = row["footprint"].bounds
        assert (north - south, (east - west) * math.cos(math.radians(row["lat"]))) == pytest.approx(
            (side, side), rel=1e-3
        )
        assert row["gsd_m"] == 2.4
    else:
        assert row["footprint"].bounds == pytest.approx(tuple(box), abs=1e-9)
        # 16 pixels over a tile of zoom 17
        assert row["gsd_m"] == pytest.approx(40_075_017 / 2**17 / 16 * math.cos(math.radians(row["lat"])), rel=2e-3)
    assert {"train", "val", "test"} <= set(manifest.frame["split"]) <= {"train", "val", "test", "buffer"}
    assert list(quietly(read_geotiles, tmp_path, "test").frame["sample_id"]) == list(
        manifest.split("test").frame["sample_id"]
    )


def test_geotiles_without_any_place_or_with_splits(tmp_path):
    frame = quietly(read_dataset, make_geotiles(tmp_path)).frame
    assert frame["lon"].isna().all() and frame["gsd_m"].isna().all() and set(frame["footprint"]) == {None}
    lines = (tmp_path / "metadata.csv").read_text().split()
    rows = [f"{line},{'test' if k % 2 else 'train'}" for k, line in enumerate(lines[1:])]
    write_lines(tmp_path / "metadata.csv", [f"{lines[0]},split", *rows])
    (tmp_path / "finland" / "images" / "000.png").unlink()  # of the other split
    assert list(quietly(read_dataset, tmp_path, split="test").frame["image"])[:2] == [
        "finland/images/001.png",
        "finland/images/003.png",
    ]
    write_lines(tmp_path / "metadata.csv", [f"{lines[0]},split", *rows[:-1], f"{lines[-1]},"])
    with pytest.raises(DataError, match=r"1 rows of .* have no split"):
        read_dataset(tmp_path)


def test_tables_as_people_save_them(tmp_path):
    make_geotiles(tmp_path, columns=("lat", "lon", "gsd_m"))
    expected = quietly(read_dataset, tmp_path).frame
    table = tmp_path / "metadata.csv"
    text = table.read_text()
    table.write_text(text.replace(",", ";").replace(".", ",").replace(",png", ".png"), "utf-8-sig")
    with pytest.warns(UserWarning, match="separated by semicolons"):
        frame = read_dataset(tmp_path).frame
    assert list(frame["lat"]) == list(expected["lat"]) and list(frame["split"]) == list(expected["split"])
    for change, said in (
        (lambda text: text.encode("utf-16"), "not CSV text in UTF-8"),
        (lambda text: (text + 'x.png,"finland').encode(), "quotation mark out of place"),
        (lambda text: (text + "x.png,finland,1\n").encode(), "Line 38 of .* has 3 cells, the heading 5"),
        (lambda text: text.replace("lat,lon", "lat,lat").encode(), "column lat more than once"),
        (lambda text: text.split("\n")[0].encode(), "a heading and no rows"),
    ):
        table.write_bytes(change(text))
        with pytest.raises(DataError, match=said):
            read_geotiles(tmp_path)


@pytest.mark.parametrize(
    ("column", "cell", "said"),
    [
        ("lat", "95", "no place on Earth"),
        ("lat", "north", "lat is 'north'"),
        ("lat", "", "One of lat and lon is missing"),
        ("gsd_m", "0", "above 0"),
        ("east", "24.0", "hold nothing"),
        ("west", "-179.99", "outside the tile's bounds"),
        ("x", "-1", "no tile of the web map"),
    ],
)
def test_geotiles_places_that_are_wrong(tmp_path, column, cell, said):
    columns = ("lat", "lon", "gsd_m", *(("x", "y", "z") if column == "x" else ("west", "south", "east", "north")))
    make_geotiles(tmp_path, 2, columns=columns)
    header, first, *rest = (tmp_path / "metadata.csv").read_text().split()
    cells = dict(zip(header.split(","), first.split(","), strict=True)) | {column: cell}
    if column == "west":  # a tile that seems to span the earth, and lies elsewhere
        cells |= {"east": "-179.98"}
    write_lines(tmp_path / "metadata.csv", [header, ",".join(cells.values()), *rest])
    with pytest.raises(DataError, match=said) as caught:
        read_dataset(tmp_path)
    assert "row 2 (finland/images/000.png)" in str(caught.value)


@pytest.mark.parametrize("more", [(), ("west", "south", "east", "north")])
def test_geotiles_exchanged_lat_and_lon_are_recognised(tmp_path, more):
    make_geotiles(tmp_path, 2, columns=("lat", "lon", *more))
    replace(tmp_path / "metadata.csv", "lat,lon", "lon,lat")
    with pytest.raises(DataError, match="lat and lon look exchanged"):
        read_dataset(tmp_path)


def test_geotiles_captions_that_are_wrong(tmp_path):
    make_geotiles(tmp_path)
    path = tmp_path / "captions.jsonl"
    lines = path.read_text().splitlines()
    write_lines(path, [*lines[:-1], json.dumps({"file": "stranger.png", "captions": ["x"]})])
    with pytest.warns(UserWarning, match=r"stranger\.png"), pytest.raises(DataError, match=r"035\.png \(no captions\)"):
        read_dataset(tmp_path)
    with pytest.warns(UserWarning, match="Skipped: 1 image"):
        assert len(read_dataset(tmp_path, skip_bad=True)) == 35
    for line, said in (
        ("{", "Line 37 of .* not valid JSON"),
        ("[1]", "not a JSON object"),
        ('{"captions": []}', "no text 'file' in line 37"),
        (lines[0], "a second time in line 37"),
        ('{"file": "x", "tags": "a=b"}', "'tags' is not a list"),
    ):
        write_lines(path, [*lines, line])
        with pytest.raises(DataError, match=said):
            read_dataset(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"There is no .*captions\.jsonl"):
        read_dataset(tmp_path)


def test_layouts_are_told_apart_and_found_in_their_subfolder(tmp_path):
    make_geotiles(tmp_path / "all" / "geotiles", 2)
    make_skyscript(tmp_path / "sky")
    make_country(tmp_path / "cross" / "urbancross", n=4)
    for place, name in (
        (tmp_path / "all", "geotiles"),
        (tmp_path / "sky", "skyscript"),
        (tmp_path / "cross", "urbancross"),
    ):
        found = find_layout(place)
        assert found and found[0].name == name
    assert find_layout(tmp_path) is None
    with pytest.raises(DataError) as caught:
        read_dataset(tmp_path)
    assert all(name in str(caught.value) for name in ("manifest.parquet", "image_name", "filepath", "metadata.csv"))


def test_the_real_tiles():
    root = Path(os.environ.get("UCORE_DATA", "")) / "geotiles"
    if not (root / "metadata.csv").is_file():
        pytest.skip("UCORE_DATA is not set to a folder that holds geotiles/")
    frame = quietly(read_dataset, root).frame
    assert dict(frame["domain"].value_counts()) == {"nepal": 276, "germany": 103, "tanzania": 46}
    assert frame.groupby("domain")["split"].nunique().min() >= 3
    assert frame["footprint"].notna().all() and frame["lon"].notna().all()
    width = (
        frame["footprint"].bounds.eval("maxx - minx")
        * 111_195
        * frame["lat"].map(lambda lat: math.cos(math.radians(lat)))
    )
    assert width[frame["domain"] == "germany"].between(127, 129).all()
