import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from shapely import STRtree
from shapely.geometry import box

from ucore.blocks import places
from ucore.duplicates import close_pairs, identical_groups, near_duplicates
from ucore.errors import ConfigError, DataError
from ucore.manifest import Manifest
from ucore.splits import (
    adaptation_split,
    load_split,
    repair_duplicates,
    save_split,
    spatial_split,
    split_report,
)

STEP = 0.001  # degrees: 111.2 m to the north everywhere, and to the east at the equator


def tile(name: str, column: float, row: float, domain: str = "flat", **more) -> dict:
    west, south = 10 + column * STEP, row * STEP
    place = {"lon": west + STEP / 2, "lat": south + STEP / 2, "footprint": box(west, south, west + STEP, south + STEP)}
    return {
        "sample_id": name,
        "image": f"{name}.png",
        "captions": [name],
        "domain": domain,
        "split": "all",
        **place,
        **more,
    }


def grid(size: int, domain: str = "flat", first: float = 0) -> list[dict]:
    """size x size tiles of 111.2 m near the equator that touch each other."""
    return [tile(f"{domain}-{x}-{y}", first + x, y, domain) for x, y in itertools.product(range(size), repeat=2)]


def manifest(rows: list[dict], root: str | Path = ".") -> Manifest:
    return Manifest.from_rows(rows, root)


def counts(split: Manifest) -> dict[str, int]:
    return split.frame["split"].value_counts().to_dict()


def metres(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Great-circle distances (n, m) by the haversine formula, of degrees (n, 2) and (m, 2)."""
    (lon_a, lat_a), (lon_b, lat_b) = np.radians(a).T[..., None], np.radians(b).T[:, None]
    h = np.sin((lat_a - lat_b) / 2) ** 2 + np.cos(lat_a) * np.cos(lat_b) * np.sin((lon_a - lon_b) / 2) ** 2
    return 2 * 6_371_008.8 * np.arcsin(np.sqrt(h))


def degrees(split: Manifest, *names: str) -> np.ndarray:
    return split.frame.loc[split.frame["split"].isin(names), ["lon", "lat"]].to_numpy(float)


def test_a_grid_is_split_near_the_fractions_and_no_tile_touches_another_split():
    split = spatial_split(manifest(grid(20)))
    shares = {name: count / 400 for name, count in counts(split).items()}
    assert set(shares) == {"train", "val", "test", "buffer"} and shares["buffer"] < 0.2
    assert abs(shares["test"] - 0.2) < 0.04 and abs(shares["val"] - 0.1) < 0.03 and shares["train"] > 0.5
    # Neighbours are 111.2 m apart, over the corner 157.2 m: two tiles apart, 222.4 m, is the first to be free.
    assert metres(degrees(split, "train"), degrees(split, "test")).min() == pytest.approx(222.4, abs=0.1)
    assert metres(degrees(split, "train", "test"), degrees(split, "val")).min() == pytest.approx(222.4, abs=0.1)
    report = split_report(split, images=False)
    assert report["touching_tiles"] == {"val to train": 0, "test to train": 0, "test to val": 0}
    assert report["nearest_m"]["test to train"] == pytest.approx(222.4, abs=0.1)
    assert report["settings"]["domains"]["flat"]["buffer_m"] == pytest.approx(1.01 * 157.25, abs=0.1)


def test_only_what_is_too_close_gives_way_and_never_a_test_tile():
    split = spatial_split(manifest(grid(12)), block_m=400, buffer_m=300, seed=3)
    frame = split.frame
    kept = set(zip(frame["split"], frame["block"], strict=True))
    tests = {block for name, block in kept if name == "test"}
    assert set(frame.loc[frame["block"].isin(tests), "split"]) == {"test"}  # whole blocks
    assert metres(degrees(split, "train"), degrees(split, "val", "test")).min() >= 300
    assert metres(degrees(split, "val"), degrees(split, "test")).min() >= 300
    away = metres(degrees(split, "buffer"), degrees(split, "val", "test")).min(axis=1)
    assert len(away) and away.max() < 300  # nobody gave way without a reason


def test_without_a_buffer_every_block_is_whole_and_square_at_any_latitude():
    places = np.random.default_rng(0).uniform([24, 60], [25, 61], (3000, 2))
    rows = [tile(f"{k}", 0, 0, lon=lon, lat=lat, footprint=None) for k, (lon, lat) in enumerate(places)]
    split = spatial_split(manifest(rows), buffer_m=0, block_m=20_000)
    assert "buffer" not in counts(split)
    blocks = split.frame.groupby("block")
    assert (blocks["split"].nunique() == 1).all()
    # At 60 degrees one degree is 55.6 km from west to east and 111.2 km from south to north.
    assert 3 * 6 <= len(blocks) <= 5 * 7
    spans = blocks[["lon", "lat"]].agg(np.ptp).max()
    assert 15_000 < spans["lat"] * 111_195 <= 20_000
    assert 15_000 < spans["lon"] * 111_195 * np.cos(np.radians(60.5)) <= 20_500


def test_the_order_of_the_rows_does_not_matter_and_the_seed_does():
    rows = [*grid(10), *grid(8, "far", 500)]
    shuffled = [rows[k] for k in np.random.default_rng(1).permutation(len(rows))]
    first, second = spatial_split(manifest(rows)), spatial_split(manifest(shuffled))
    assert list(first.frame["sample_id"]) == [row["sample_id"] for row in rows]
    table = [frame.set_index("sample_id")[["split", "block"]] for frame in (first.frame, second.frame)]
    assert table[0].equals(table[1].loc[table[0].index])
    assert not spatial_split(manifest(rows), seed=1).frame["split"].equals(first.frame["split"])
    alone = spatial_split(manifest(grid(10)))  # another domain far away changes nothing
    assert table[0].loc[alone.frame["sample_id"], "split"].tolist() == alone.frame["split"].tolist()
    assert set(manifest(rows).frame["split"]) == {"all"}


def test_two_fresh_processes_split_alike(tmp_path):
    manifest(grid(9), tmp_path).save(tmp_path / "manifest.parquet")
    code = (
        "import sys; from ucore.manifest import Manifest; from ucore.splits import spatial_split, split_report\n"
        "split = spatial_split(Manifest.load(sys.argv[1]))\n"
        "print(list(split.frame['split']), list(split.frame['block']), split_report(split, images=False))"
    )
    seen = [
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "manifest.parquet")],
            env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert seen[0] == seen[1] and "'test'" in seen[0]


def test_a_target_is_split_for_adaptation_by_the_same_rules():
    target = manifest(grid(20))
    split = adaptation_split(target, seed=5)
    assert set(counts(split)) == {"finetune", "val", "test", "buffer"}
    assert counts(split)["test"] / 400 > 0.6 and counts(split)["finetune"] / 400 > 0.15
    assert metres(degrees(split, "finetune"), degrees(split, "val", "test")).min() > 222
    same = spatial_split(target, {"finetune": 0.2, "val": 0.1, "test": 0.7}, seed=5, regions=True)
    assert same.frame["split"].equals(split.frame["split"])


def test_domains_that_share_ground_give_way_to_each_other():
    """The same tiles under two names: one's test tile is not in the other's training set."""
    split = spatial_split(manifest([*grid(16, "summer"), *grid(16, "winter")]), seed=1)
    assert split_report(split, images=False)["touching_tiles"] == {
        "val to train": 0,
        "test to train": 0,
        "test to val": 0,
    }
    with pytest.raises(DataError, match=r"'(train|val)' images of the domain '(summer|winter)'.*buffer_m"):
        spatial_split(manifest([*grid(4, "summer"), *grid(4, "winter")]))


def test_a_domain_alone_may_be_cut_into_regions_that_lose_less_to_the_buffer():
    tiles = manifest(grid(16, "alone"))
    shares = {"finetune": 0.2, "val": 0.1, "test": 0.7}
    strewn, regions = (spatial_split(tiles, shares, seed=3, regions=wanted) for wanted in (False, True))
    assert (strewn.frame["split"] == "buffer").sum() > (regions.frame["split"] == "buffer").sum()
    assert adaptation_split(tiles, seed=3).frame["split"].equals(regions.frame["split"])
    assert split_report(regions, images=False)["touching_tiles"] == {
        "val to finetune": 0, "test to finetune": 0, "test to val": 0,
    }  # fmt: skip


@pytest.mark.parametrize("side", [2, 1])
def test_a_domain_with_too_little_ground_is_named(side):
    with pytest.raises(
        DataError, match=rf"domain 'small' of .* \({side * side} images.*Choose a smaller block_m or buffer_m"
    ):
        spatial_split(manifest([*grid(20, "large"), *grid(side, "small", 300)]))
    with pytest.raises(DataError, match="lists no images"):
        spatial_split(manifest([]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"fractions": {"train": 0.7, "test": 0.7}}, "sum to 1"),
        ({"fractions": {"train": 1.0}}, "two or more"),
        ({"fractions": {}}, "two or more"),
        ({"fractions": {"train": 1.0, "test": 0.0}}, "above 0"),
        ({"fractions": {"train": float("nan"), "test": 0.5}}, "sum to 1"),
        ({"fractions": {"buffer": 0.5, "test": 0.5}}, "'buffer'"),
        ({"block_m": 0}, "block_m is 0"),
        ({"block_m": float("nan")}, "block_m is nan"),
        ({"buffer_m": -1.0}, "buffer_m is -1.0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 0.5}, "seed is 0.5"),
    ],
)
def test_settings_out_of_range(arguments, said):
    with pytest.raises(ConfigError) as caught:
        spatial_split(manifest(grid(3)), **arguments)
    assert said in str(caught.value)


def test_places_off_the_earth():
    with pytest.raises(DataError, match="sample b lies at lon 10, lat 95"):
        spatial_split(manifest([tile("a", 0, 0), tile("b", 0, 0, lon=10, lat=95, footprint=None)]))
    rows = [tile("a", 0, 0), tile("b", 0, 0, footprint=None), tile("c", 0, 0, lon=np.nan, footprint=None)]
    points, diagonals = places(manifest(rows).frame)
    assert np.linalg.norm(points[0] - points[1]) < 1e-6 and np.isnan(points[2]).all()
    assert diagonals == pytest.approx([157.25, 362.04, 362.04], abs=0.1)


def unplaced(folder: Path, captions: list[list[str]], same: dict[int, int] | None = None) -> Manifest:
    """Pictures without a place; image `i` is a copy of image `same[i]`."""
    rng, rows = np.random.default_rng(0), []
    for number, texts in enumerate(captions):
        pixels = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        pixels.resize((96, 96), Image.Resampling.BICUBIC).save(folder / f"{number:03d}.png")
        if same and number in same:
            (folder / f"{number:03d}.png").write_bytes((folder / f"{same[number]:03d}.png").read_bytes())
        row = {"sample_id": f"{number:03d}", "image": f"{number:03d}.png", "captions": texts}
        rows.append({**row, "domain": "anywhere", "split": "train"})
    return Manifest.from_rows(rows, folder)


def test_images_without_a_place_stay_with_their_copies(tmp_path):
    captions = [[f"scene {number}", "a park"] for number in range(40)]
    captions[7] = ["  Scene 3 .", "a  park"]
    captions[8] = captions[9] = []
    whole = unplaced(tmp_path, captions, same={30: 7, 20: 11})
    assert identical_groups(whole)[[3, 7, 30]].tolist() == ["003"] * 3 and len(set(identical_groups(whole))) == 37
    split = spatial_split(whole)
    assert counts(split) == {"train": 28, "val": 4, "test": 8}
    named = split.frame.set_index("sample_id")["split"]
    assert named["003"] == named["007"] == named["030"] and named["011"] == named["020"]
    mixed = manifest([*whole.frame.to_dict("records"), *grid(10, "anywhere")], tmp_path)
    assert {"train", "val", "test"} < set(counts(spatial_split(mixed)))
    (tmp_path / "004.png").unlink()
    with pytest.raises(DataError, match=r"004\.png"):
        spatial_split(whole)
    with pytest.raises(DataError, match="2 groups without lon and lat"):
        spatial_split(manifest(whole.frame.to_dict("records")[:2], tmp_path))


def test_near_duplicates_are_found_turned_mirrored_recoded_and_resized(tmp_path):
    whole = unplaced(tmp_path, [[str(number)] for number in range(12)])
    picture = Image.open(tmp_path / "005.png")
    changed = [picture.transpose(turn) for turn in Image.Transpose]
    changed += [picture.resize((150, 150)), ImageEnhance.Brightness(picture).enhance(1.2)]
    for number, image in enumerate(changed):
        image.save(tmp_path / f"copy{number}.jpg", quality=70)
    paths = [*whole.image_paths, *(tmp_path / f"copy{number}.jpg" for number in range(len(changed)))]
    pairs = near_duplicates(paths)
    with_five = {int(j) for i, j, _ in pairs if i == 5}
    assert with_five == set(range(12, 12 + len(changed))) and (pairs[:, 0] < pairs[:, 1]).all()
    assert not [pair for pair in pairs.tolist() if pair[0] < 12 and pair[0] != 5]
    assert len(near_duplicates([])) == 0 and len(near_duplicates(whole)) == 0


def test_close_pairs_against_a_plain_loop():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**63, (40, 8), dtype=np.uint64)
    hashes = np.concatenate([base, base ^ (np.uint64(1) << rng.integers(0, 64, (40, 8), dtype=np.uint64))])
    expected = []
    for i, j in itertools.combinations(range(80), 2):
        turns = [(hashes[i, 0], turned) for turned in hashes[j]] + [(hashes[j, 0], turned) for turned in hashes[i]]
        distance = min(bin(int(a) ^ int(b)).count("1") for a, b in turns)
        if distance <= 20:
            expected.append([i, j, distance])
    assert close_pairs(hashes, 20).tolist() == expected and len(expected) > 40


def test_the_report_names_duplicates_and_the_repair_sets_the_training_copy_aside(tmp_path):
    captions = [["A park.", f"own {number}"] if number in (0, 9) else [f"own {number}"] for number in range(10)]
    whole = unplaced(tmp_path, captions, same={9: 2, 8: 3, 1: 0})
    whole.frame["split"] = ["train"] * 7 + ["val"] + ["test"] * 2
    report = split_report(whole)
    assert json.loads(json.dumps(report)) == report
    assert report["images"] == 10 and list(report["domains"]) == ["anywhere"]
    assert report["domains"]["anywhere"] == {"train": {"images": 7}, "val": {"images": 1}, "test": {"images": 2}}
    assert report["nearest_m"]["test to train"] is None and report["touching_tiles"]["test to train"] is None
    assert report["repeated_captions"]["test in train"] == {"captions": 3, "repeated": 1, "share": 0.3333}
    assert report["near_duplicates"]["across_splits"] == 2
    named = [tuple(pair.values()) for pair in report["near_duplicates"]["pairs"]]
    assert named == [("002", "train", "009", "test", 0), ("003", "train", "008", "test", 0)]
    repaired = repair_duplicates(whole)
    assert counts(repaired) == {"train": 5, "buffer": 2, "test": 2, "val": 1}
    assert repaired.frame["split"].tolist()[2:4] == ["buffer"] * 2
    assert split_report(repaired)["near_duplicates"]["across_splits"] == 0 and counts(whole)["train"] == 7


def test_a_split_is_saved_and_taken_up_again(tmp_path):
    whole = manifest([*grid(8), *grid(8, "far", 200)])
    split = adaptation_split(whole)
    save_split(split, tmp_path / "split.json")
    back = load_split(manifest(list(reversed(whole.frame.to_dict("records")))), tmp_path / "split.json")
    columns = ["sample_id", "split", "block"]
    assert back.frame[columns].iloc[::-1].reset_index(drop=True).equals(split.frame[columns])
    assert split_report(back, images=False) == split_report(split, images=False)

    rows = whole.frame.to_dict("records")
    other = manifest([*rows[2:], tile("new", 50, 50)])
    with pytest.raises(
        DataError, match=r"2 are only in .*split.json \(flat-0-0, flat-0-1\) and 1 are only in the d.*new"
    ):
        load_split(other, tmp_path / "split.json")
    with pytest.raises(DataError, match="another domain or place"):
        load_split(manifest([{**rows[0], "lon": 11.0}, *rows[1:]]), tmp_path / "split.json")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"settings": {}, "content_key": "", "samples": {"flat": []}}', "[" * 100_000,
     '{"settings": {}, "content_key": "", "samples": {"a": {"train": {"": [3]}}}}',
     '{"settings": {}, "content_key": "", "samples": {"a": {"train": {"": ["x"]}, "test": {"": ["x"]}}}}'],
)  # fmt: skip
def test_a_file_that_is_no_split(tmp_path, text):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(DataError, match="not a split"):
        load_split(manifest(grid(2)), tmp_path / "split.json")
    with pytest.raises(DataError, match="Cannot read the split"):
        load_split(manifest(grid(2)), tmp_path / "none.json")


def test_real_tiles_of_three_countries():
    folder = Path(os.environ.get("UCORE_DATA", "")) / "geotiles"
    if "UCORE_DATA" not in os.environ or not (folder / "metadata.csv").is_file():
        pytest.skip("UCORE_DATA is not set to a folder that holds geotiles/metadata.csv")
    import pandas as pd

    rows = []
    for item in pd.read_csv(folder / "metadata.csv").to_dict("records"):
        high = item["gsd_m"] * item["height"] / 2 / 111_195
        wide = high / np.cos(np.radians(item["lat"]))
        bounds = [item["lon"] - wide, item["lat"] - high, item["lon"] + wide, item["lat"] + high]
        bounds = [item[side] for side in ("west", "south", "east", "north")] if item["west"] == item["west"] else bounds
        row = {
            "sample_id": item["file"],
            "image": item["file"],
            "captions": [],
            "domain": item["country"],
            "split": "all",
        }
        rows.append({**row, "lon": item["lon"], "lat": item["lat"], "footprint": box(*bounds)})
    for seed in range(3):
        split = spatial_split(Manifest.from_rows(rows, folder), seed=seed)
        for country, images in {"nepal": 276, "germany": 103, "tanzania": 46}.items():
            part = split.domain(country)
            assert len(part) == images and {"train", "val", "test"} <= set(counts(part))
            assert counts(part).get("buffer", 0) < 0.2 * images
        tests = STRtree(split.split("test").frame.geometry)
        assert len(tests.query(split.split(["train", "val"]).frame.geometry, predicate="intersects")[0]) == 0
        assert len(adaptation_split(split, seed=seed).split("finetune")) > 40
