"""A map of samples in one HTML file that needs no network: clusters, popups with thumbnails, filters, legend.

    save_map(sample_map(manifest), "runs/map.html")

folium makes the page; Leaflet comes from the installed package js_lib_leaflet and lies in the page, as do the data.
Captions, tags and file names are untrusted: they enter the page as JSON that no parser takes for markup, and the
scripts in assets/ show them as text only. A content security policy forbids the page every other source.
"""

import base64
import html
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import numpy as np

from ucore.basemap import page_features
from ucore.errors import DataError
from ucore.files import atomic_path
from ucore.images import load_image, map_files
from ucore.manifest import Manifest
from ucore.picture import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION

if TYPE_CHECKING:
    import folium
    import geopandas

THUMBNAIL = 160  # pixels of the longer side
THUMBNAIL_BYTES = 3_000_000  # all together, before base64 adds a third
TEXT_LETTERS = 8_000_000  # of all captions in a page; beyond it each sample keeps the start of its first
COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, "#F0E442")
SHAPES = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "wedge": "v", "plus": "P"}  # matplotlib's
SHOWN_BY_BROWSERS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
SCRIPTS = ("map_canvas.js", "map_samples.js", "map_panel.js")  # in assets/
MAP_NAME = "map_samples"  # of the map object in the page
OSM_TILES = "https://tile.openstreetmap.org/{z}/{x}/{y}.png"


class Mark(NamedTuple):
    """How a domain looks wherever samples are drawn: no meaning rests on the colour alone."""

    colour: str
    shape: str  # a key of SHAPES
    code: str  # two letters or more, unique


def domain_marks(domains: Iterable[str]) -> dict[str, Mark]:
    """A mark for each domain, in alphabetical order; up to 42 differ."""
    marks: dict[str, Mark] = {}
    codes: set[str] = set()
    for number, name in enumerate(sorted(set(domains))):
        letters = re.sub(r"[^A-Z0-9]", "", name.upper()) or "X"
        code = next((letters[:n] for n in range(2, len(letters) + 1) if letters[:n] not in codes), f"{letters}{number}")
        codes.add(code)
        marks[name] = Mark(COLOURS[number % len(COLOURS)], list(SHAPES)[number % len(SHAPES)], code)
    return marks


def has_place(manifest: Manifest) -> np.ndarray:
    """bool (N,): lon within +-180 and lat within +-90 degrees; NaN is no place."""
    lon, lat = (manifest.frame[name].to_numpy(float) for name in ("lon", "lat"))
    return (np.abs(lon) <= 180) & (np.abs(lat) <= 90)


def located(manifest: Manifest) -> Manifest:
    """The samples whose place is known."""
    rows: Any = manifest.frame.loc[has_place(manifest)]
    return Manifest(rows.reset_index(drop=True), manifest.root)


def sample_map(
    manifest: Manifest,
    features: "geopandas.GeoDataFrame | None" = None,
    *,
    credit: str = "",
    online: bool = False,
    thumbnails: int = 300,
    height: int = 600,
    linked: str = "",
) -> "folium.Map":
    """The located samples on a map, as `save_map` writes it or a notebook shows it.

    features: drawn as the background, as from `geo.read_osm`; credit: what to say of their origin.
    online: also ask openstreetmap.org for tiles, and stay with the plain background where it does not answer.
    thumbnails: the most that are embedded, within 3 MB, spread evenly; the other popups name the image file, which
        is shown where the HTML lies beside the images.
    height: pixels, in a notebook. linked: name under which a `SampleExplorer` chooses the samples.
    Raises DataError when no sample has a place.
    """
    placed = located(manifest)
    if not len(placed):
        raise DataError(
            f"None of the {len(manifest):,} samples of {manifest.root} has coordinates, so there is no map. "
            "Give lon and lat in the dataset's table, or look at its tags and statistics instead."
        )
    page = _page_data(placed, thumbnails)
    page |= {"features": [] if features is None else page_features(features), "linked": linked}
    page |= {"tiles": OSM_TILES if online else ""}
    if len(placed) < len(manifest):
        page["notes"].append(f"{len(manifest) - len(placed):,} samples without coordinates are not on the map.")
    if credit:
        page["notes"].append(f"Background: {credit}")
    made = blank_map("Samples on the map", height)
    made.add_child(page_element(page, online, image_root=placed.root))
    return made


def blank_map(title: str, height: int) -> "folium.Map":
    """A folium map without ground or links to other hosts, for `page_element` to fill."""
    import folium

    made = folium.Map(tiles=None, maxZoom=20, minZoom=1, zoomAnimation=False, worldCopyJump=True)
    made.default_js, made.default_css = [], []
    made._id = MAP_NAME.removeprefix("map_")  # folium's are random; the same samples give the same page
    root: Any = made.get_root()
    root.title, root.height = html.escape(title), f"{height}px"
    return made


def save_map(made: "folium.Map", path: str | Path) -> Path:
    """Write a map of `sample_map` as one HTML file, whole or not at all. Returns its path."""
    path = Path(path)
    for child in made._children.values():
        if hasattr(child, "beside"):
            setattr(child, "beside", path.resolve().parent)  # noqa: B010 - an attribute of SampleLayer
    with atomic_path(path) as temporary:
        temporary.write_text(made.get_root().render(), "utf-8")
    return path


# --- the page ---------------------------------------------------------------------------------------------------


@cache
def _leaflet() -> tuple[str, str]:
    """Leaflet's script and style sheet, its pictures inside, from the installed package."""
    folder = files("js_lib_leaflet") / "static" / "js_lib_leaflet"
    script = (folder / "leaflet.js").read_text("utf-8").split("\n//# sourceMappingURL")[0]

    def inside(match: re.Match[str]) -> str:
        picture = base64.b64encode((folder / "images" / match[1]).read_bytes()).decode("ascii")
        return f"url(data:image/png;base64,{picture})"

    return script, re.sub(r"url\(images/([\w.-]+\.png)\)", inside, (folder / "leaflet.css").read_text("utf-8"))


def page_element(
    page: dict[str, Any], online: bool, scripts: Sequence[str] = SCRIPTS, call: str = "ucoreMap",
    image_root: Path | None = None,
) -> Any:  # fmt: skip
    """What makes a blank map a page: Leaflet, the scripts of assets/, and the data that the function `call` is given.

    image_root: folder that the page may show images of, where it is written beside them.
    """
    from branca.element import Element

    class Raw(Element):
        """Text as it is: folium's own elements would run it as a template once more."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

        def render(self, **kwargs: Any) -> str:
            return self.text

    class SampleLayer(Element):
        """Puts Leaflet, the scripts of assets/ and the data into the page around the map."""

        def __init__(self) -> None:
            super().__init__()
            self.image_root, self.beside = image_root, None

        def render(self, **kwargs: Any) -> str:
            figure: Any = self.get_root()
            script, style = _leaflet()
            assets = files("ucore") / "assets"
            style += (assets / "map.css").read_text("utf-8")
            script = "\n".join([script, *((assets / name).read_text("utf-8") for name in scripts)])
            root, beside = self.image_root, self.beside
            near = root is not None and beside is not None and root.is_relative_to(beside)
            base = quote(Path(os.path.relpath(root, beside)).as_posix()) + "/" if root is not None and near else None
            images = "data: 'self' file:" + " https://tile.openstreetmap.org" * online
            rule = f"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src {images}"
            head = f'<meta http-equiv="Content-Security-Policy" content="{rule}">'
            figure.header.add_child(Raw(head), name="policy", index=0)
            figure.header.add_child(Raw(f"<style>{style}</style>\n<script>{script}</script>"), name="assets")
            data = _script_json({**page, "base": base})
            figure.html.add_child(Raw(f'<script type="application/json" id="data">{data}</script>'), name="data")
            call_it = f"{call}({MAP_NAME}, JSON.parse(document.getElementById('data').textContent));"
            figure.script.add_child(Raw(call_it), name="samples")
            return ""

    return SampleLayer()


def _script_json(value: Any) -> str:
    """JSON in ASCII without the signs that could end the script element or start a comment or an entity."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return re.sub("[<>&]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _page_data(manifest: Manifest, thumbnails: int) -> dict[str, Any]:
    """Everything the page shows, as columns of plain values, one item a sample."""
    frame = manifest.frame
    marks = domain_marks(frame["domain"])
    splits = in_order(frame["split"])
    tag_names = _by_frequency([*frame["tags"], *frame["surrounding_tags"]])
    source = [" · ".join(filter(None, pair)) for pair in zip(frame["source"], frame["licence"], strict=True)]
    sources = sorted(set(source))
    captions, notes = _within_budget([list(of_image) for of_image in frame["captions"]])
    texts = list(dict.fromkeys(text for of_image in captions for text in of_image))
    numbers = {
        "text": _numbering(texts), "tag": _numbering(tag_names), "source": _numbering(sources),
        "split": _numbering(splits), "domain": _numbering(marks),
    }  # fmt: skip
    return {
        "simulated": manifest.simulated,
        "notes": notes,
        "domains": [{"name": name, **mark._asdict()} for name, mark in marks.items()],
        "splits": splits,
        "sources": sources,
        "tagNames": tag_names,
        "texts": texts,
        "ids": list(frame["sample_id"]),
        "images": [_linkable(name) for name in frame["image"]],
        "lon": frame["lon"].round(6).tolist(),
        "lat": frame["lat"].round(6).tolist(),
        "gsd": [round(gsd, 3) if math.isfinite(gsd) else None for gsd in frame["gsd_m"]],
        "domain": [numbers["domain"][name] for name in frame["domain"]],
        "split": [numbers["split"][name] for name in frame["split"]],
        "source": [numbers["source"][name] for name in source],
        "tags": [[numbers["tag"][tag] for tag in dict.fromkeys(of_image)] for of_image in frame["tags"]],
        "around": [[numbers["tag"][tag] for tag in dict.fromkeys(of_image)] for of_image in frame["surrounding_tags"]],
        "captions": [[numbers["text"][text] for text in of_image] for of_image in captions],
        "footprints": rings_of(frame["footprint"]),
        "thumbnails": _thumbnails(manifest, thumbnails),
    }


def _numbering(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


def in_order(splits: Iterable[str]) -> list[str]:
    """train, val, test, then any other split by name."""
    usual = ("train", "val", "test")
    return sorted(set(splits), key=lambda name: (usual.index(name) if name in usual else len(usual), name))


def _by_frequency(tags: Sequence[Sequence[str]]) -> list[str]:
    counts = Counter(tag for of_image in tags for tag in of_image)
    return sorted(counts, key=lambda tag: (-counts[tag], tag))


def _within_budget(captions: list[list[str]]) -> tuple[list[list[str]], list[str]]:
    """The captions, shortened where all together are too long for a page, and a note where they were."""
    if sum(map(len, {text for of_image in captions for text in of_image})) <= TEXT_LETTERS:
        return captions, []
    most = max(40, TEXT_LETTERS // len(captions))
    short = [[text if len(text) <= most else text[: most - 2] + " …" for text in of[:1]] for of in captions]
    return short, [f"So many samples: each shows and is searched by the first {most} letters of its first caption."]


def _linkable(name: str) -> str:
    """An image name that a page may link to, or "" for one that leaves its folder or that browsers do not show."""
    path = PurePosixPath(name)
    inside = not path.is_absolute() and ".." not in path.parts
    return str(path) if inside and path.suffix.lower() in SHOWN_BY_BROWSERS else ""


def rings_of(footprints: Any) -> list[list[float] | None]:
    """Each footprint as [west, south, east, north] if it is such a box, else its outline as lon, lat, lon, lat, ..."""
    import shapely

    shapes = np.array(footprints, dtype=object)
    bounds, areas = shapely.bounds(shapes), shapely.area(shapes)
    boxes = np.isclose(areas, (bounds[:, 2] - bounds[:, 0]) * (bounds[:, 3] - bounds[:, 1]), rtol=1e-6, atol=0)
    rings: list[list[float] | None] = []
    for shape, bound, area, is_box in zip(shapes, bounds.round(6).tolist(), areas, boxes, strict=True):
        if not area > 0:  # NaN where there is none
            rings.append(None)
        elif is_box:
            rings.append(bound)
        else:
            largest = max(getattr(shape, "geoms", [shape]), key=lambda part: part.area)
            rings.append(shapely.get_coordinates(largest.exterior)[:-1].round(6).ravel().tolist())
    return rings


def _thumbnails(manifest: Manifest, most: int) -> dict[int, str]:
    """JPEG in base64 of at most `most` rows, evenly spread; fewer where they exceed THUMBNAIL_BYTES."""
    rows = np.unique(np.linspace(0, len(manifest) - 1, min(most, len(manifest))).round().astype(int)).tolist()
    pictures = map_files(jpeg_thumbnail, [manifest.image_path(row) for row in rows], "Thumbnails")
    total, kept = 0, {}
    for row, picture in zip(rows, pictures, strict=True):
        total += len(picture)
        if picture and total <= THUMBNAIL_BYTES:
            kept[row] = base64.b64encode(picture).decode("ascii")
    return kept


def jpeg_thumbnail(path: Path, size: int = THUMBNAIL) -> bytes:
    """The picture as JPEG bytes, its longer side at most `size` pixels; b"" where it cannot be read."""
    try:
        picture = load_image(path)
    except DataError:
        return b""  # a map of 10,000 samples is not given up for one damaged file
    picture.thumbnail((size, size))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
