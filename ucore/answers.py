"""What a search found, as values: for a table, for JSON, and for files that QGIS opens."""

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ucore.duplicates import normal_caption
from ucore.errors import ConfigError
from ucore.files import atomic_path, write_json

if TYPE_CHECKING:
    import pandas as pd

FORMATS = (".json", ".geojson", ".parquet", ".csv")
NEAR = 0.9995  # cosine from which two images or segments are one: the same picture, stored twice


@dataclass(frozen=True)
class Hit:
    """One thing that was found.

    rank: from 1. score: cosine with the query, hubs corrected where the answer says so. sure: probability that it is
    the very image asked for (`sureness`), None where it is not known. kind: "image", "text" or "segment". text: of a
    text, else the sample's first caption. lon, lat, gsd_m: None where not known. area: a segment's share of its image.
    box: left, top, right and bottom of a segment, as shares of its image's sides; bounds: the same on the ground, west,
    south, east and north in degrees, where the image's footprint is known.
    times, others: how often (nearly) the same was found, and the item ids of the repetitions.
    """

    rank: int
    score: float
    sure: float | None
    item_id: str
    kind: str
    sample_id: str
    image: str
    text: str
    domain: str
    tags: tuple[str, ...]
    source: str
    lon: float | None
    lat: float | None
    gsd_m: float | None
    split: str = ""
    area: float | None = None
    box: tuple[float, float, float, float] | None = None
    bounds: tuple[float, float, float, float] | None = None
    times: int = 1
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A query and its hits, best first.

    query: what was asked, as it was read. asked: "text" or "image". kind: of the hits. notes: sentences for the person
    who asked. late: whether segments count in the scores. positions: the hits' places in the index. simulated: whether
    the gallery is generated.
    """

    query: str
    kind: str
    hits: tuple[Hit, ...]
    notes: tuple[str, ...] = ()
    asked: str = "text"
    hubs_corrected: bool = False
    late: bool = False
    simulated: bool = False
    seconds: float = 0.0
    positions: tuple[int, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without the positions, which another version of the index may give to others."""
        values = asdict(self)
        del values["positions"]
        return values

    def table(self) -> "pd.DataFrame":
        """One row a hit, columns as of `Hit`."""
        import pandas as pd

        names = list(Hit.__dataclass_fields__)
        rows = [[_flat(getattr(hit, name)) for name in names] for hit in self.hits]
        return pd.DataFrame(rows, columns=pd.Index(names))

    def lines(self) -> list[str]:
        """For a terminal."""
        told = [f"“{self.query}”{' (SIMULATED data)' if self.simulated else ''}"]
        for hit in self.hits:
            sure = "" if hit.sure is None else f"  sure {hit.sure:4.0%}"
            place = "" if hit.lat is None or hit.lon is None else f"  {hit.lat:.5f}, {hit.lon:.5f}"
            times = f"  ×{hit.times}" if hit.times > 1 else ""
            said = plain(hit.text if len(hit.text) <= 70 else hit.text[:69] + "…")
            told.append(f"{hit.rank:3}. {hit.score:+.3f}{sure}  {plain(hit.item_id)}{place}{times}  {said}")
        return [*told, *([] if self.hits else ["Nothing was found."]), *(f"Note: {note}" for note in self.notes)]

    def save(self, path: str | Path) -> Path:
        """Write as .json, .geojson, .parquet (GeoParquet) or .csv, whole or not at all.

        In the two geographic ones a hit is a point, a segment its box on the ground; without a place it is left out.
        Raises ConfigError for another ending.
        """
        path = Path(path)
        check_format(path)
        if path.suffix == ".json":
            write_json(path, self.to_dict())
            return path
        if path.suffix == ".csv" or not any(hit.bounds for hit in self.hits):
            return save_places(self.table(), path)
        import shapely

        return save_places(self.table(), path, [hit.bounds and shapely.box(*hit.bounds) for hit in self.hits])

    def _repr_html_(self) -> str:
        lines = "".join(f"<div>{html.escape(line)}</div>" for line in self.lines())
        return f'<div style="font: 13px/1.5 monospace">{lines}</div>'


def hit_of(row: "Mapping[str, Any]", rank: int, score: float, sure: float | None, others: Sequence[str]) -> Hit:
    """A hit from a row of `GalleryIndex.rows`. others: item ids of the repetitions."""

    def number(name: str) -> float | None:
        value = row.get(name)
        return None if value is None or not math.isfinite(value) else float(value)

    box, bounds = _where_in(row) if row["kind"] == "segment" else (None, None)
    return Hit(
        rank=rank, score=round(score, 6), sure=None if sure is None else round(float(sure), 4),
        item_id=str(row["item_id"]), kind=str(row["kind"]), sample_id=str(row["sample_id"]), image=str(row["image"]),
        text=str(row["text"]), domain=str(row["domain"]), tags=tuple(row["tags"]), source=str(row["source"]),
        lon=number("lon"), lat=number("lat"), gsd_m=number("gsd_m"), split=str(row.get("split", "")),
        area=number("area") if row["kind"] == "segment" else None, box=box, bounds=bounds,
        times=1 + len(others), others=tuple(others),
    )  # fmt: skip


def _where_in(row: "Mapping[str, Any]") -> tuple[Any, Any]:
    """Where a segment lies, `Hit.box` and `Hit.bounds`; None for what is not known."""
    if not row["mask"] or not row["mask_height"] or not row["mask_width"]:
        return None, None
    from ucore.masks import Segments

    size = int(row["mask_height"]), int(row["mask_width"])
    left, top, right, bottom = Segments.from_rles(size, [row["mask"]]).boxes[0] / np.array([size[1], size[0]] * 2)
    box = tuple(round(float(edge), 4) for edge in (left, top, right, bottom))
    import shapely

    footprint = shapely.from_wkb(row["footprint"], on_invalid="ignore") if row["footprint"] else None
    if footprint is None or footprint.is_empty:
        return box, None
    west, south, east, north = footprint.bounds
    edges = (west + left * (east - west), north - bottom * (north - south),
             west + right * (east - west), north - top * (north - south))  # fmt: skip
    return box, tuple(round(float(edge), 7) for edge in edges)


def same_words(texts: Iterable[str]) -> list[list[int]]:
    """Numbers of equal captions (`normal_caption`) in groups, each led by its first, in the order of these."""
    groups: list[list[int]] = []
    places: dict[str, int] = {}
    for number, text in enumerate(texts):
        place = places.setdefault(normal_caption(text), len(groups))
        if place == len(groups):
            groups.append([])
        groups[place].append(number)
    return groups


def near_features(features: np.ndarray) -> list[list[int]]:
    """Rows of features float32 (N, D), L2-normalised, in groups nearer than NEAR to their first, which leads them."""
    groups: list[list[int]] = []
    leaders = np.empty_like(features)
    for number, feature in enumerate(features):
        alike = leaders[: len(groups)] @ feature >= NEAR
        if alike.any():
            groups[int(alike.argmax())].append(number)
        else:
            leaders[len(groups)] = feature
            groups.append([number])
    return groups


def there_are(count: int, kind: str) -> str:
    """ "are only 3 captions", for a sentence about too few."""
    name = {"text": "caption"}.get(kind, kind)
    return f"is only 1 {name}" if count == 1 else f"are only {count:,} {name}s" if count else f"is no {name}"


def check_format(path: Path, formats: Sequence[str] = FORMATS) -> None:
    """Raise ConfigError where results cannot be written in the format that a file's name asks for."""
    if path.suffix not in formats or path.is_dir():
        raise ConfigError(f"{path} must be a file name that ends in {', '.join(formats[:-1])} or {formats[-1]}.")


def save_places(table: "pd.DataFrame", path: Path, footprints: Sequence[Any] | None = None) -> Path:
    """Write rows with lon and lat as .geojson, .parquet (GeoParquet) or .csv, whole or not at all.

    Rows are points, or `footprints` (shapely, None where unknown) where given; those without place are in the CSV
    alone. Texts that a spreadsheet would take for a formula get an apostrophe in front, in the CSV.
    """
    if path.suffix == ".csv":
        safe = table.map(lambda value: f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" else value)
        with atomic_path(path) as temporary:
            safe.to_csv(temporary, index=False)
        return path
    import geopandas
    import shapely

    placed = table["lon"].notna() & table["lat"].notna()
    points: Any = shapely.points(table["lon"].to_numpy(float), table["lat"].to_numpy(float))
    shapes = [point if shape is None else shape for shape, point in zip(footprints or points, points, strict=True)]
    frame: Any = geopandas.GeoDataFrame(table, geometry=shapes, crs="EPSG:4326")[placed]
    with atomic_path(path) as temporary:
        if path.suffix == ".parquet":
            frame.to_parquet(temporary, index=False)
        else:  # by hand: the file's driver writes elsewhere first, and one format needs no other library
            temporary.write_text(json.dumps(_geojson(frame), allow_nan=False) + "\n", "utf-8")
    return path


def _geojson(frame: Any) -> dict[str, Any]:
    import shapely

    names = [name for name in frame.columns if name != "geometry"]
    rows = zip(*(frame[name] for name in names), strict=True)
    features = [
        {
            "type": "Feature",
            "geometry": shapely.geometry.mapping(shape),
            "properties": {name: _plain(value) for name, value in zip(names, row, strict=True)},
        }
        for shape, row in zip(frame.geometry, rows, strict=True)
    ]
    return {"type": "FeatureCollection", "features": features}


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(value: Any) -> Any:
    """Lists as one text, which every format holds."""
    return ", ".join(map(str, value)) if isinstance(value, tuple) else value


def plain(text: str) -> str:
    """`text` without signs that a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
