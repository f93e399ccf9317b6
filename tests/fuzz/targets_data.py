"""Readers of datasets, archives, pictures, maps and imagery."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from judge import Target
from makers import make_rsicd
from makers_geo import make_country, make_geotiles, make_skyscript, picture, write_csv, write_lines, zip_folder
from makers_maps import make_places
from PIL import Image
from shapes import BYTES, CSV, JSON, JSON_LINES, LINES, PARQUET, PBF, PNG, TAR, ZIP

from ucore.archives import unpack_zip
from ucore.data import read_dataset
from ucore.images import load_image, picture_pixels, try_image
from ucore.inspection import inspect_path
from ucore.manifest import Manifest, statistics
from ucore.osm import read_osm


def use(manifest: Manifest) -> None:
    """Whatever stages ask of a dataset."""
    assert len(manifest.texts[0]) >= len(manifest) and len(manifest.text_ids) == len(manifest.texts[1])
    manifest.summary()
    statistics(manifest)
    json.dumps([manifest.name, manifest.simulated, manifest.content_key()])
    for row in range(len(manifest)):
        load_image(manifest.image_path(row))


def use_folder(folder: Path) -> None:
    use(read_dataset(folder))


def look_at(folder: Path) -> None:
    found = inspect_path(folder)
    json.dumps(found.to_dict())
    assert found.text().replace("\n", "").isprintable()


def _rsicd(folder: Path) -> None:
    make_rsicd(folder, 2, 1, 1, 2, size=16)


def _country(folder: Path) -> None:
    place = make_country(folder, n=6)
    write_lines(place / "train_list.txt", [f"F{k}.png" for k in range(2)])
    write_lines(place / "test_list.txt", [f"F{k}.png" for k in range(2, 6)])


def _country_zip(folder: Path) -> None:
    _country(folder)
    images = folder / "Finland" / "images"
    zip_folder(images, folder / "Finland" / "images.zip")
    for path in images.iterdir():
        path.unlink()
    images.rmdir()


def _skyscript(folder: Path, kind: str) -> None:
    make_skyscript(folder, 2)
    lines = folder / "metadata.jsonl"
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    lines.unlink()
    if kind == "json":
        (folder / "metadata.json").write_text(json.dumps({row.pop("filepath"): row for row in rows}))
    elif kind == "csv":
        flat = [{name: value if isinstance(value, str) else repr(value) for name, value in row.items()} for row in rows]
        write_csv(folder / "metadata.csv", flat)
    elif kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        flat = [{"filepath": row["filepath"], "box": row["box"], "center_tags": json.dumps(row["center_tags"])}
                for row in rows]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(flat), folder / "metadata.parquet")
    else:
        write_lines(lines, rows)


def _geotiles(folder: Path) -> None:
    make_geotiles(folder, 2, columns=("lat", "lon", "west", "south", "east", "north", "gsd_m"))
    table = (folder / "metadata.csv").read_text().splitlines()
    splits = ("train", "val", "test", "test")
    rows = [f"{line},{split}" for line, split in zip(table[1:], splits, strict=True)]
    (folder / "metadata.csv").write_text("\n".join([table[0] + ",split", *rows]) + "\n")


def _small_sky(folder: Path) -> None:
    _skyscript(folder, "jsonl")


def _shards_tar(folder: Path) -> None:
    from ucore.sharding import write_shards

    make_places(folder / "set", 2, 16)
    write_shards(Manifest.load(folder / "set" / "manifest.parquet"), folder / "tar")
    for path in (folder / "tar").iterdir():
        path.rename(folder / path.name)
    import shutil

    shutil.rmtree(folder / "set"), shutil.rmtree(folder / "tar")
    (folder / "shards.txt").write_text("*.tar\n")


def _shards_parquet(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = picture(folder / "x.png", 1)
    data = place.read_bytes()
    place.unlink()
    rows = [
        {"image": {"bytes": data, "path": f"{k}.png"}, "captions": [f"a house {k}"], "lat": 60.0, "lon": 25.0 + k,
         "split": ("train", "test")[k % 2], "tags": ["building=yes"], "footprint": "POINT (25 60)"}
        for k in range(4)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-0.parquet")


def _zip(folder: Path) -> None:
    place = folder / "pictures"
    for k in range(3):
        picture(place / f"{k}.png", k, 8)
    (place / "readme.txt").write_text("a text " * 50)
    zip_folder(place, folder / "pictures.zip")
    for path in place.iterdir():
        path.unlink()
    place.rmdir()


def _use_zip(folder: Path) -> None:
    place = unpack_zip(folder / "pictures.zip", folder / "out")
    assert place == folder / "out"
    inspect_path(folder / "pictures.zip")


def _pictures(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    image = Image.fromarray(pixels)
    for kind in ("jpg", "tif", "webp", "bmp", "gif", "jp2", "ppm"):
        image.save(folder / f"rgb.{kind}")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "rotated"
    image.save(folder / "exif.jpg", exif=exif)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.arange(144, dtype=np.float32).reshape(12, 12) / 144).save(folder / "float.tif")
    image.save(folder / "lzw.tif", compression="tiff_lzw")
    for name, mode in (
        ("rgb", "RGB"),
        ("alpha", "RGBA"),
        ("grey", "L"),
        ("bits", "1"),
        ("palette", "P"),
        ("both", "LA"),
    ):
        image.convert(mode).save(folder / f"{name}.png")
    Image.fromarray(np.arange(144, dtype=np.uint16).reshape(12, 12) * 400).save(folder / "deep.png")


def _use_pictures(folder: Path) -> None:
    """The damaged one first, as the readers see it, which name it; then with what is wrong as an answer."""
    for path in sorted(folder.iterdir()):
        try_image(path)
        assert picture_pixels(path) >= 0
    for path in sorted(folder.iterdir()):
        picture = load_image(path)
        assert picture.mode == "RGB" and len(np.asarray(picture).shape) == 3


def claimed(folder: Path) -> int:
    """Bytes that the largest picture needs by its own claim, as Pillow holds it, three times."""
    most = 0
    for path in folder.rglob("*"):
        try:
            with Image.open(path) as image:
                most = max(most, image.width * image.height)
        except Exception:
            continue
    return 3 * 4 * most


def _manifest(folder: Path) -> None:
    make_places(folder, 2, 16)


def _series(folder: Path) -> None:
    """What `ucore reproduce` looks at before any notebook runs, and what it remembers of that."""
    from ucore.files import write_json
    from ucore.origin import data_key

    make_places(folder / "data", 2, 16)
    data_key(folder / "data", folder / "files.json")
    write_json(folder / "domains.json", {"whole_domains": 3, "targets": 0})


def _use_series(folder: Path) -> None:
    from ucore.files import content_hash
    from ucore.origin import data_key
    from ucore.series import dataset_for, series_for

    data = dataset_for("ucore", folder / "data")
    key = data_key(data)
    assert series_for(data)
    memory = folder / "memory"
    memory.mkdir()
    for name, called in (("files", f"files-{content_hash(str(data.resolve()))}"), ("domains", key)):
        if (folder / f"{name}.json").exists():
            (folder / f"{name}.json").rename(memory / f"{called}.json")
    for _ in range(2):  # from what was remembered, whatever is wrong with that; then from what is remembered now
        assert series_for(data, memory) and data_key(data) == key


def _files(folder: Path) -> None:
    """One file after the other, none of them a dataset's folder."""
    _tiff(folder)
    _osm_xml(folder)
    _geojson(folder)
    _zip(folder)


def _look_at_manifest(folder: Path) -> None:
    """As the file that somebody names; it stands for its folder."""
    look_at(folder / "manifest.parquet")


def look_at_files(folder: Path) -> None:
    for name in ("a.tif", "city.osm", "city.geojson", "pictures.zip"):
        look_at(folder / name)


OSM = """<?xml version='1.0' encoding='UTF-8'?>
<osm version="0.6">
{nodes}
<node id="90" lat="60.0012" lon="25.0012"><tag k="amenity" v="school"/></node>
<way id="1"><nd ref="1"/><nd ref="2"/><nd ref="3"/><nd ref="4"/><nd ref="1"/><tag k="building" v="house"/></way>
<way id="2"><nd ref="1"/><nd ref="3"/><tag k="highway" v="residential"/><tag k="name" v="A street"/></way>
<way id="3"><nd ref="1"/><nd ref="2"/><nd ref="3"/><nd ref="4"/><nd ref="1"/></way>
<relation id="7"><member type="way" ref="3" role="outer"/><tag k="type" v="multipolygon"/><tag k="natural" v="wood"/>
</relation>
</osm>
"""


def _osm_xml(folder: Path) -> None:
    places = [(60.0, 25.0), (60.0, 25.001), (60.001, 25.001), (60.001, 25.0)]
    nodes = "\n".join(f'<node id="{k}" lat="{lat}" lon="{lon}"/>' for k, (lat, lon) in enumerate(places, 1))
    (folder / "city.osm").write_text(OSM.format(nodes=nodes))


def _osm_gz(folder: Path) -> None:
    _osm_xml(folder)
    (folder / "city.osm.gz").write_bytes(gzip.compress((folder / "city.osm").read_bytes()))
    (folder / "city.osm").unlink()


def _osm_pbf(folder: Path) -> None:
    import osmium

    _osm_xml(folder)
    with osmium.SimpleWriter(str(folder / "city.osm.pbf")) as writer:
        for item in osmium.FileProcessor(str(folder / "city.osm")):
            writer.add(item)
    (folder / "city.osm").unlink()


def _geojson(folder: Path) -> None:
    ring = [[25.0, 60.0], [25.001, 60.0], [25.001, 60.001], [25.0, 60.001], [25.0, 60.0]]
    features = [
        {"type": "Feature", "id": "way/1", "properties": {"building": "house", "osm_id": 1, "osm_type": "way"},
         "geometry": {"type": "Polygon", "coordinates": [ring]}},
        {"type": "Feature", "properties": {"tags": {"highway": "service", "lanes": 2}},
         "geometry": {"type": "LineString", "coordinates": ring[:3]}},
        {"type": "Feature", "properties": {"amenity": "school", "name": None},
         "geometry": {"type": "Point", "coordinates": [25.0, 60.0]}},
        {"type": "Feature", "properties": {"natural": "wood"},
         "geometry": {"type": "MultiPolygon", "coordinates": [[ring]]}},
    ]  # fmt: skip
    (folder / "city.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def _use_osm(folder: Path) -> None:
    path = folder / next(iter(folder.glob("city*")), Path("city.osm")).name
    table = read_osm(path)
    assert table.crs == "EPSG:4326"
    read_osm(path, (24.9, 59.9, 25.1, 60.1))


def _polygon(folder: Path) -> None:
    ring = [[24.9, 60.0], [25.1, 60.0], [25.1, 60.2], [24.9, 60.0]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    feature = {"type": "Feature", "properties": {}, "geometry": geometry}
    (folder / "a.json").write_text(json.dumps(geometry))
    (folder / "b.json").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))


def _use_polygon(folder: Path) -> None:
    from makers_index import make_rows

    from ucore.cli_search import _filter

    for path in (folder / "a.json", folder / "b.json"):
        where: Any = _filter(None, None, None, path, [], [], [])
        where.mask(make_rows(50))


def _tiles(folder: Path) -> None:
    for x in (74600, 74601):
        picture(folder / "17" / str(x) / "38000.png", x, 32)


def _use_tiles(folder: Path) -> None:
    from ucore.imagery import open_imagery

    source = open_imagery(str(folder), zoom=17)
    west, south, east, north = source.bounds
    assert source.read(west, south, east, north, 16) is not None


def _tiff(folder: Path) -> None:
    import rasterio
    from rasterio.transform import from_bounds

    shape = dict(width=32, height=32, count=3, dtype="uint8", crs="EPSG:4326")
    place = from_bounds(25.0, 60.0, 25.01, 60.01, 32, 32)
    with rasterio.open(folder / "a.tif", "w", driver="GTiff", transform=place, **shape) as file:
        file.write(np.random.default_rng(0).integers(1, 255, (3, 32, 32), np.uint8))


def _use_tiff(folder: Path) -> None:
    from ucore.imagery import open_imagery

    source = open_imagery(str(folder))
    west, south, east, north = source.bounds
    source.read(west, south, east, north, 16)
    source.gsd_at((south + north) / 2)
    source.fingerprint()


def _stored_png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    return stream.getvalue()


READERS = ("readers.load_json", "readers.read_text", "images._read")
LOOKS = ("inspection.inspect_path", "inspection._folder", "inspection._dataset", "inspection._describe")
TARGETS = [
    Target("rsicd", (*READERS, "rsicd.read_rsicd"), _rsicd, use_folder, {"*.json": JSON}, 100),
    Target("rsicd pictures", ("images._read", "files.file_hash"), _rsicd, use_folder, {"images/*": PNG}, 200),
    Target("urbancross", ("readers.load_table", "urbancross._lines"), _country, use_folder,
           {"*/*.csv": CSV, "*/*.txt": LINES}, 100),
    Target("urbancross archive", ("archives.unpack_zip", "archives.archive_key", "archives._extract",
           "archives._is_whole"), _country_zip, use_folder, {"*/*.zip": ZIP}, 200),
    Target("skyscript csv", ("skyscript._value",), lambda folder: _skyscript(folder, "csv"), use_folder,
           {"*.csv": CSV}, 100),
    Target("skyscript json", ("readers.load_json",), lambda folder: _skyscript(folder, "json"), use_folder,
           {"*.json": JSON}, 100),
    Target("skyscript jsonl", ("readers.load_json_lines",), _small_sky, use_folder, {"*.jsonl": JSON_LINES}, 100),
    Target("skyscript parquet", ("skyscript._parquet",), lambda folder: _skyscript(folder, "parquet"), use_folder,
           {"*.parquet": PARQUET}, 100),
    Target("geotiles", ("readers.load_table", "readers.header_of", "readers.load_json_lines", "geotiles._ground"),
           _geotiles, use_folder, {"*.csv": CSV, "*.jsonl": JSON_LINES}, 200),
    Target("shards tar", ("shards._tar", "shards._indexed", "shards._facts", "shards._require_end", "spans._span",
           "shards.shard_files"),
           _shards_tar, use_folder, {"*.tar": TAR, "*.txt": LINES}, 100),
    Target("shards parquet", ("shards._parquet", "shards._has_pictures", "shards._row", "spans._row_group",
           "shards._decoded"), _shards_parquet, use_folder, {"*.parquet": PARQUET}, 200),
    Target("zip", ("archives.open_zip", "archives.unpack_zip", "inspection._zip"), _zip, _use_zip, {"*.zip": ZIP}, 300),
    Target("pictures", ("images._read", "images.picture_pixels"), _pictures, _use_pictures,
           {"*.[bgjtw]*": BYTES, "*.ppm": BYTES, "*.png": PNG}, 200, room=2**31),
    Target("manifest", ("manifest.load", "data.read_manifest"), _manifest, use_folder, {"*.parquet": PARQUET}, 100),
    Target("series", ("origin.data_key", "origin._hash_of_rows", "origin._remembered", "files.file_hash",
           "series.dataset_for", "series.series_for", "series.known_key", "series._domains"), _series, _use_series,
           {"data/*.parquet": PARQUET, "data/images/*/*": PNG, "*.json": JSON}, 100),
    Target("osm xml", ("osm._read_osmium",), _osm_xml, _use_osm, {"*.osm": LINES}, 200),
    Target("osm gz", ("osm._read_osmium",), _osm_gz, _use_osm, {"*.osm.gz": BYTES}, 200),
    Target("osm pbf", ("osm._read_osmium",), _osm_pbf, _use_osm, {"*.pbf": PBF}, 300),
    Target("osm geojson", ("osm._read_geojson", "osm._properties"), _geojson, _use_osm, {"*.geojson": JSON}, 100),
    Target("polygon", ("filters.polygon_in", "filters._checked_polygon"), _polygon, _use_polygon, {"*.json": JSON},
           200),
    Target("tile folder", ("tiles.decode_tile", "tiles.__init__", "tiles.read_tile"), _tiles, _use_tiles,
           {"17/*/*.png": PNG}, 200),
    Target("geotiff", ("imagery._open_tiff",), _tiff, _use_tiff, {"*.tif": BYTES}, 200),
    *(Target(f"inspect {name}", (*LOOKS, *covers), make, look, victims, 100)
      for name, covers, make, look, victims in (
          ("rsicd", ("rsicd.read_rsicd",), _rsicd, look_at, {"*.json": JSON}),
          ("geotiles", ("readers.load_table", "readers.header_of"), _geotiles, look_at, {"*.csv": CSV}),
          ("manifest", ("inspection._file", "manifest.load", "manifest.statistics"), _manifest, _look_at_manifest,
           {"*.parquet": PARQUET}))),
    Target("inspect files", ("inspection._file", "inspection._zip", "inspection._osm", "inspection._imagery",
           "archives.open_zip", "osm._read_osmium", "osm._read_geojson", "imagery._open_tiff"), _files, look_at_files,
           {"*.tif": BYTES, "*.osm": LINES, "*.geojson": JSON, "*.zip": ZIP}, 100),
]  # fmt: skip
