import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from PIL import Image
from rasterio.transform import from_origin
from rasterio.warp import transform

from ucore.build import BuildConfig, build_dataset, caption, grid, is_blank
from ucore.data import read_dataset
from ucore.errors import DataError, UserError
from ucore.geo import local_frame, tile_bounds
from ucore.imagery import open_imagery
from ucore.servers import TileServer

PLACE = (24.94, 60.17)
SIDE_M = 1200  # of the imagery
UTM = "EPSG:32635"
FRAME = local_frame(*PLACE)
BOUNDS = FRAME.to_degrees(shapely.box(-500, -500, 500, 500)).bounds
ZOOM = 15


def write_tiff(path: Path, pixels: np.ndarray, crs: str | None = UTM, metres: float = 4.0, **options) -> Path:
    """(H, W) or (H, W, bands) as a GeoTIFF centred on PLACE."""
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    height, width, count = pixels.shape
    (x,), (y,) = transform("EPSG:4326", UTM, [PLACE[0]], [PLACE[1]])
    place = from_origin(x - width * metres / 2, y + height * metres / 2, metres, metres)
    options = {"crs": crs, "transform": place if crs else None, **options}
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=pixels.dtype, **options
    ) as file:
        file.write(np.moveaxis(pixels, -1, 0))
    return path


def slopes(side: int = SIDE_M // 4) -> np.ndarray:
    """uint8 (side, side, 3): red grows to the east, green to the south, blue is a checkerboard."""
    row, column = np.mgrid[:side, :side]
    blue = 50 + 100 * ((row // 8 + column // 8) % 2)
    return np.dstack([40 + column * 200 // side, 40 + row * 200 // side, blue]).astype(np.uint8)


@pytest.fixture(scope="module")
def osm(tmp_path_factory) -> Path:
    """GeoJSON of a road through the middle, and a school in the north-east."""
    shapes = {"highway": shapely.LineString([(-600, -20), (600, -20)]), "amenity": shapely.box(200, 200, 400, 400)}
    values = {"highway": "residential", "amenity": "school"}
    places = {key: shapely.geometry.mapping(FRAME.to_degrees(shape)) for key, shape in shapes.items()}
    rows = [{"type": "Feature", "properties": {key: values[key]}, "geometry": places[key]} for key in places]
    path = tmp_path_factory.mktemp("osm") / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": rows}))
    return path


@pytest.fixture(scope="module")
def tiff(tmp_path_factory) -> Path:
    return write_tiff(tmp_path_factory.mktemp("tiff") / "a.tif", slopes())


@pytest.fixture
def config(tiff, osm) -> BuildConfig:
    return BuildConfig(str(tiff), str(osm), BOUNDS, "finland", gsd=2.0, tile_size=32, keep_untagged=True, split="test")


class Server(ThreadingHTTPServer):
    """Tiles of one colour each, with a cross; `faults` maps a path to answers given first: (status, headers, body)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: Counter[str] = Counter()
        self.names: set[str] = set()
        self.faults: dict[str, list[tuple[int, dict[str, str], bytes]]] = {}
        self.template = f"http://127.0.0.1:{self.server_port}/{{z}}/{{x}}/{{y}}.png?key=secret"


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.asked[path] += 1
        self.server.names.add(self.headers["User-Agent"])
        faults = self.server.faults.get(path) or self.server.faults.get("*")
        status, headers, body = faults.pop(0) if faults else (200, {}, picture(path))
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def picture(path: str) -> bytes:
    x, y = (int(part.partition(".")[0]) for part in path.split("/")[-2:])
    tile = Image.new("RGB", (256, 256), (x % 200 + 20, y % 200 + 20, 90))
    tile.paste((250, 250, 0), (120, 0, 136, 256))
    stream = BytesIO()
    tile.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def server():
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


def content(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in (".jpg", ".json"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_tiles_are_square_on_the_ground_and_inside_the_bounds():
    windows = list(grid((10, 50, 11, 60), 30_000).values())
    for west, south, east, north in windows:
        assert 10 <= west < east <= 11 + 1e-9 and 50 <= south < north <= 60
        middle = local_frame(west, (south + north) / 2)
        width, height = np.array(middle.scale) * (east - west, north - south)
        assert (width, height) == pytest.approx((30_000, 30_000), rel=2e-3)
    union = shapely.union_all([shapely.box(*window) for window in windows])
    assert union.area == pytest.approx(sum(shapely.box(*window).area for window in windows))
    assert Counter(Counter(window[1] for window in windows).values()) == {2: 28, 1: 9}  # narrower in the north


def test_a_build_is_a_dataset_that_shows_what_it_says(config, tmp_path):
    facts = build_dataset(config, tmp_path / "out")
    manifest = read_dataset(tmp_path / "out")
    frame = manifest.frame
    assert len(frame) == facts["counts"]["images"] == 15 * 15 and not facts["simulated"]
    assert set(frame["split"]) == {"test"} and set(frame["domain"]) == {"finland"} and set(frame["gsd_m"]) == {2.0}
    assert set(frame["source"]) == {"a.tif"} and "ODbL" in frame["licence"][0]
    for place in (0, 112, 224):  # colours tell the place
        row, pixels = frame.iloc[place], np.asarray(Image.open(manifest.image_path(place)), float)
        east, south = np.array(FRAME.to_metres(shapely.Point(row["lon"], row["lat"])).coords[0]) * (1, -1)
        expected = [40 + (metres + SIDE_M / 2) / SIDE_M * 200 for metres in (east, south)]
        # Grid north and true north differ by 1.8 degrees here, 20 m at the corner.
        assert pixels[..., :2].mean(axis=(0, 1)) == pytest.approx(expected, abs=5)
        assert pixels.shape == (32, 32, 3) and row["footprint"].contains(shapely.Point(row["lon"], row["lat"]))
    by_tags = Counter(tuple(tags) for tags in frame["tags"])
    assert by_tags["highway=residential",] == 15 and 9 <= by_tags["amenity=school",] <= 25
    text = caption(["amenity=school"], ["highway=residential"], "tile-1")
    assert "school" in text and "street" in text and "=" not in text
    assert caption([], []) == caption(["fixme=1"], ["x=;;"]) == "A satellite image."


def test_untagged_tiles_are_left_out_and_splits_are_drawn(config, tmp_path):
    build = dataclasses.replace(config, keep_untagged=False, split="blocks", gsd=1.0)
    facts = build_dataset(build, tmp_path / "out")
    manifest = read_dataset(tmp_path / "out")
    assert facts["counts"]["skipped"]["without tags"] > 100
    assert (manifest.frame["tags"].str.len() + manifest.frame["surrounding_tags"].str.len() > 0).all()
    assert {"train", "val", "test"} <= set(manifest.frame["split"]) and (tmp_path / "out" / "split.json").is_file()
    assert len(read_dataset(tmp_path / "out", split="val", domain="finland"))
    limited = build_dataset(dataclasses.replace(config, limit=7), tmp_path / "few")
    assert limited["counts"]["images"] == 7


CHILD = """
import sys
from ucore import build
from ucore.build import BuildConfig, build_dataset
read = build.open_imagery
def slow(*arguments, **options):
    import time
    imagery = read(*arguments, **options)
    plain = imagery.read
    imagery.read = lambda *window: (time.sleep(0.02), plain(*window))[1]
    return imagery
build.open_imagery = slow
build_dataset(BuildConfig(**eval(sys.argv[1])), sys.argv[2])
"""


def test_a_killed_build_goes_on_to_the_same_bytes(config, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    config = dataclasses.replace(config, limit=60)
    child = subprocess.Popen([sys.executable, "-c", CHILD, repr(dataclasses.asdict(config)), str(out)])
    images = out / "images" / "finland"
    try:
        deadline = time.monotonic() + 60
        while len(list(images.glob("*.jpg"))) < 10 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    done = {path: path.stat().st_mtime_ns for path in images.glob("*.jpg")}
    assert 10 <= len(done) < 60 and not (out / "dataset.json").exists()
    build_dataset(config, out)
    build_dataset(config, whole)
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    assert content(out) == content(whole)
    assert read_dataset(out).content_key() == read_dataset(whole).content_key()


def test_other_settings_and_other_folders_are_refused(config, tmp_path):
    build_dataset(config, tmp_path / "out")
    with pytest.raises(UserError, match=r"gsd_m was 2\.0 and is now 3\.0"):
        build_dataset(dataclasses.replace(config, gsd=3.0), tmp_path / "out")
    with pytest.raises(UserError, match=r"seed was 0 and is now 1"):
        build_dataset(dataclasses.replace(config, seed=1), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds no earlier build"):
        build_dataset(config, tmp_path / "full")


def test_what_shows_nothing_is_left_out(config, osm, tmp_path):
    pixels = slopes()
    pixels[:, :150] = 0
    tiff = write_tiff(tmp_path / "half.tif", pixels, nodata=0)
    facts = build_dataset(dataclasses.replace(config, imagery=str(tiff)), tmp_path / "out")
    assert facts["counts"]["skipped"].get("without imagery", 0) > 80
    assert facts["counts"]["images"] + sum(facts["counts"]["skipped"].values()) == 225
    full = np.full((10, 10, 4), 255, np.uint8)
    assert is_blank(full) and is_blank(full // 2)
    full[..., 0] = np.arange(10)
    assert not is_blank(full)
    tiff = write_tiff(tmp_path / "black.tif", pixels * 0)
    with pytest.raises(DataError, match="No tile of 225 is left: 225 mostly blank"):
        build_dataset(dataclasses.replace(config, imagery=str(tiff)), tmp_path / "none")


def test_kinds_of_geotiff(tmp_path):
    window = FRAME.to_degrees(shapely.box(-64, -64, 64, 64)).bounds
    pixels = slopes()
    truth = open_imagery(write_tiff(tmp_path / "rgb.tif", pixels)).read(*window, 32)[..., :3].astype(float)
    deep = open_imagery(write_tiff(tmp_path / "deep.tif", pixels.astype(np.uint16) * 40))
    stretched = deep.read(*window, 32)[..., :3].astype(float)
    assert np.corrcoef(stretched.ravel(), truth.ravel())[0, 1] > 0.999 and deep.native_gsd_m == pytest.approx(
        4, rel=0.01
    )
    grey = open_imagery(write_tiff(tmp_path / "grey.tif", pixels[..., 0])).read(*window, 32)
    assert (grey[..., 0] == grey[..., 2]).all() and grey[..., 0].mean() == pytest.approx(truth[..., 0].mean(), abs=1)
    halves = tmp_path / "halves"
    halves.mkdir()
    west, east = np.zeros_like(pixels), pixels.copy()
    west[:, :150], east[:, :150] = pixels[:, :150], 0
    write_tiff(halves / "east.tif", east, nodata=0)
    write_tiff(halves / "west.tif", west, nodata=0)
    mosaic = open_imagery(halves).read(*window, 32)
    assert mosaic[..., 3].min() == 255 and np.abs(mosaic[..., :3] - truth).mean() < 2
    for name, refused, said in (
        ("five.tif", np.dstack([pixels, pixels]), "6 bands"),
        ("flat.tif", np.ones((9, 9), np.uint16), "all pixels are alike"),
    ):
        with pytest.raises(DataError, match=said):
            open_imagery(write_tiff(tmp_path / name, refused))
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        write_tiff(tmp_path / "nowhere.tif", pixels, crs=None)
    with pytest.raises(DataError, match="no georeference"):
        open_imagery(tmp_path / "nowhere.tif")
    (tmp_path / "text.tif").write_text("text")
    with pytest.raises(DataError, match="not a GeoTIFF"):
        open_imagery(tmp_path / "text.tif")


def tile_folder(folder: Path, tms: bool = False) -> Path:
    """All tiles of ZOOM around PLACE, each as the server gives it."""
    frame = open_imagery("http://localhost/{z}/{x}/{y}", ZOOM, attribution="nobody")
    for x, y in frame.touched([BOUNDS]):
        path = folder / str(ZOOM) / str(x) / f"{2**ZOOM - 1 - y if tms else y}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(f"/{ZOOM}/{x}/{y}.png"))
    return folder


def test_a_server_is_asked_once_and_gives_what_a_folder_gives(config, server, tmp_path):
    folder = tile_folder(tmp_path / "tiles")
    x, y = next(iter(open_imagery(folder, ZOOM).touched([(*PLACE, *PLACE)])))
    absent, late = f"/{ZOOM}/{x}/{y}.png", f"/{ZOOM}/{x}/{y + 1}.png"
    server.faults = {late: [(503, {"Retry-After": "1"}, b"")], absent: [(404, {}, b"no")] * 9}
    setup = dict(cache=tmp_path / "cache", rate=50.0, backoff_s=0.01)
    build = dataclasses.replace(config, imagery=server.template, zoom=ZOOM, gsd=None, attribution="(c) nobody")
    began = time.monotonic()
    facts = build_dataset(build, tmp_path / "out", **setup)
    assert time.monotonic() - began >= 1  # Retry-After
    assert server.asked[late] == 2 and server.asked[absent] == 1 and max(server.asked.values()) == 2
    assert all(name.startswith("ucore/") for name in server.names)
    assert facts["gsd_m"] == pytest.approx(2.377, abs=0.001) and facts["counts"]["skipped"]["without imagery"] > 0
    assert not any(b"secret" in path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert read_dataset(tmp_path / "out").frame["source"][0].endswith("{y}.png; (c) nobody")
    images = {name: data for name, data in content(tmp_path / "out").items() if "jpg" in name}
    shutil.rmtree(tmp_path / "out")
    asked = sum(server.asked.values())
    build_dataset(build, tmp_path / "out", **setup)  # from the cache
    assert sum(server.asked.values()) == asked
    (folder / absent.removeprefix("/")).unlink()
    south = tile_folder(tmp_path / "south", tms=True)
    (south / str(ZOOM) / str(x) / f"{2**ZOOM - 1 - y}.png").unlink()
    for place in (folder, south):
        build_dataset(dataclasses.replace(build, imagery=str(place), tms=place == south), tmp_path / f"of-{place.name}")
        assert images.items() <= content(tmp_path / f"of-{place.name}").items()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ((200, {}, b"<html>sign in</html>"), "is not an image .*<html>"),
        ((403, {}, b""), "refuses with status 403"),
        ((429, {"Retry-After": "9000"}, b""), "asks to wait 9000 s"),
        ((500, {}, b""), "in 5 attempts .status 500"),
    ],
)
def test_a_server_that_fails_is_explained(server, tmp_path, fault, said):
    server.faults = {"*": [fault] * 9}
    imagery = open_imagery(server.template, ZOOM, attribution="x", cache=tmp_path / "cache", rate=50.0, backoff_s=0.001)
    with pytest.raises(DataError, match=said):
        imagery.read(*tile_bounds(18654, 9481, ZOOM), 16)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(imagery="http://127.0.0.1:9/{z}/{x}/{y}.png", zoom=ZOOM), "name its owner with --attribution"),
        (dict(imagery="http://127.0.0.1:9/{z}/{x}/{y}.png", zoom=ZOOM, attribution="x"), "cannot be reached"),
        (dict(imagery="http://127.0.0.1:9/{z}/{x}/{y}.png", zoom=22, attribution="x"), "more than --max-tiles 100"),
        (dict(imagery="https://tile.openstreetmap.org/{z}/{x}/{y}.png", zoom=15, attribution="x"), "forbids"),
        (dict(imagery="http://127.0.0.1/{z}/{x}.png", zoom=15, attribution="x"), r"lacks \{y\}"),
        (dict(imagery="file:///{z}/{x}/{y}", zoom=15, attribution="x"), "not an http"),
        (dict(imagery="absent.tif"), "There is no imagery absent.tif"),
        (dict(osm="absent.osm.pbf"), "There is no OpenStreetMap extract"),
        (dict(bounds=(BOUNDS[0] + 3, BOUNDS[1], BOUNDS[2] + 3, BOUNDS[3])), "lie outside .*a.geojson, which covers"),
        (dict(bounds=(BOUNDS[0], BOUNDS[3], BOUNDS[2], BOUNDS[1])), "south must be less than north"),
        (dict(bounds=(0, 0, 90, 80)), "more than 500,000"),
        (dict(tile_size=2048), "smaller than one tile of 4096 m"),
        (dict(zoom=3), "--zoom is 3; it must be from 10 to 23"),
        (dict(gsd=None), "add --zoom"),
        (dict(country="../etc"), "--country is"),
    ],
)
def test_bad_settings_are_refused(config, tmp_path, change, said):
    options = dict(cache=tmp_path, rate=50.0, backoff_s=0.001, most_tiles=100)
    with pytest.raises(UserError, match=said) as caught:
        build_dataset(dataclasses.replace(config, **change), tmp_path / "out", **options)
    assert "\n" not in str(caught.value) and not (tmp_path / "out" / "dataset.json").exists()


def test_imagery_elsewhere_is_refused_with_both_extents(config, osm, tmp_path):
    tiff = write_tiff(tmp_path / "there.tif", slopes(), transform=from_origin(0, 0, 4, 4))
    with pytest.raises(DataError, match=rf"{BOUNDS[0]:.4f}.* lie outside the imagery there\.tif, which covers"):
        build_dataset(dataclasses.replace(config, imagery=str(tiff)), tmp_path / "out")


def test_the_command_builds_from_a_real_extract(tiff, tmp_path, monkeypatch, capsys):
    extract = Path(os.environ.get("UCORE_DATA", "")) / "osm" / "finland_helsinki_centre.osm.pbf"
    if not extract.is_file():
        pytest.skip("UCORE_DATA names no folder with osm/ in it")
    from ucore.cli import main

    text = ",".join(str(value) for value in BOUNDS)
    options = ["--imagery", str(tiff), "--osm", str(extract), "--bounds", text, "--country", "finland"]
    options += ["--zoom", "17", "--limit", "40", "--split", "test", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["ucore", "data", "build", *options])
    main()
    assert "tiles of 0.594 m a pixel" in capsys.readouterr().out
    manifest = read_dataset(tmp_path / "out")
    assert len(manifest) == 40 and any("highway=footway" in tags for tags in manifest.frame["tags"])


def test_a_server_that_stalls_is_given_up_in_one_sentence(tmp_path, monkeypatch):
    class Stalling(BaseHTTPRequestHandler):
        def do_GET(self):
            time.sleep(1.5)

        def log_message(self, *_):
            pass

    monkeypatch.setattr("ucore.servers.TIMEOUT", (0.2, 0.2))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stalling)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/{{z}}/{{x}}/{{y}}.png"
    try:
        source = TileServer(address, 18, "nobody", cache=tmp_path / "cache", rate=50, backoff_s=0.01)
        with pytest.raises(DataError, match=r"127\.0\.0\.1"):
            source.read(24.94, 60.17, 24.942, 60.171, 64)
    finally:
        server.shutdown()
        server.server_close()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
