"""How well every tile of a map fits a query: "where is it like this?", as one HTML file that needs no network.

    layer = heat_layer(searcher, "dense houses with red roofs")
    save_map(heat_map([layer]), "map.html")              # two layers stand side by side
    save_scores([layer], "map.parquet")

Colours span what the tiles of a layer score, from the middle up: what no tile shows still colours those that come
closest, and the legend tells the numbers.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ucore.answers import Answer, save_places
from ucore.basemap import page_features
from ucore.errors import ConfigError, DataError
from ucore.filters import Filter
from ucore.gallery import shortened
from ucore.maps import OSM_TILES, blank_map, jpeg_thumbnail, page_element, rings_of

if TYPE_CHECKING:
    import folium
    import geopandas
    import pandas as pd

    from ucore.retrieve import Searcher

SCRIPTS = ("map_canvas.js", "map_samples.js", "map_draw.js", "map_search.js")
SAID = 140  # letters of a tile's first caption
MOST_SAID = 20_000  # tiles, beyond which they keep their names alone: captions would make the page large
PICTURE = 128  # pixels of a result's picture
LEVELS = 254  # steps of colour; 255 stands for a tile without a score


@dataclass(frozen=True, eq=False)
class Layer:
    """A query over a map. table: one row a tile with a place: sample_id, domain, text, lon, lat, gsd_m, score, and
    footprint (shapely or None). answer: its best tiles. notes: sentences for the person who asked."""

    title: str
    table: "pd.DataFrame"
    answer: Answer
    notes: tuple[str, ...]
    searcher: "Searcher" = field(repr=False)


def heat_layer(
    searcher: "Searcher", query: str, where: Filter | None = None, k: int = 12, correct_hubs: bool = True
) -> Layer:
    """The query's score on every tile within `where`. Raises DataError where no tile has a place."""
    positions, scores, notes = searcher.scores(query, where, correct_hubs)
    tiles = tile_table(searcher, positions)
    placed = (tiles["lon"].notna() & tiles["lat"].notna()).to_numpy()
    if not placed.any():
        within = " within the filter" if where is not None else ""
        raise DataError(f"None of the {len(tiles):,} tiles of {searcher.place}{within} has coordinates: no map.")
    if not placed.all():
        notes.append(f"{int((~placed).sum()):,} tiles without coordinates are not on the map.")
    answer = searcher.text(query, k, where=where, correct_hubs=correct_hubs)
    table: Any = tiles.assign(score=scores)[placed].reset_index(drop=True)
    return Layer(answer.query, table, answer, tuple(dict.fromkeys([*notes, *answer.notes])), searcher)


def tile_table(searcher: "Searcher", positions: np.ndarray) -> "pd.DataFrame":
    """What a map needs of images of the index, one row a position."""
    import shapely

    rows = searcher.index.rows(positions)
    shapes = [shapely.from_wkb(code, on_invalid="ignore") if code else None for code in rows["footprint"]]
    kept = rows[["sample_id", "domain", "text", "lon", "lat", "gsd_m"]]
    return kept.assign(footprint=np.array([*shapes, None], object)[:-1])


def heat_map(
    layers: Sequence[Layer],
    features: "geopandas.GeoDataFrame | None" = None,
    *,
    credit: str = "",
    online: bool = False,
    height: int = 600,
) -> "folium.Map":
    """One or two layers as a map; `maps.save_map` writes it, a notebook shows it.

    features, credit, online: as of `maps.sample_map`. Raises ConfigError for more layers.
    """
    if not 1 <= len(layers) <= 2:
        raise ConfigError(f"A map shows one query or two side by side, not {len(layers)}.")
    simulated = any(layer.searcher.simulated for layer in layers)
    page = search_page(features, online, credit, simulated)
    page["notes"] += list(dict.fromkeys(note for layer in layers for note in layer.notes))
    titles = layer_titles(layers)
    for layer, title in zip(layers, titles, strict=True):
        own = tile_columns(layer.table)
        row_of = {name: row for row, name in enumerate(layer.table["sample_id"])}
        page["layers"].append(
            {
                "tiles": own,
                **layer_update(layer.searcher, layer.answer, layer.table["score"].to_numpy(), row_of, title=title),
            }
        )
    made = blank_map(f"Where is it like this? {layers[0].title}", height)
    made.add_child(page_element(page, online, SCRIPTS, "ucoreSearch"))
    return made


def layer_titles(layers: Sequence[Layer]) -> list[str]:
    """The queries, with the name of the index behind each where these differ."""
    names = _index_names(layers)
    return [f"{layer.title} ({name})" if name else layer.title for layer, name in zip(layers, names, strict=True)]


def _index_names(layers: Sequence[Layer]) -> list[str]:
    """The ends of the indexes' paths that tell them apart; empty where all are the same."""
    parts = [str(layer.searcher.place).rstrip("/").split("/") for layer in layers]
    different = len({tuple(of) for of in parts})
    tails = (["/".join(of[-length:]) for of in parts] for length in range(1, max(map(len, parts)) + 1))
    return [""] * len(layers) if different == 1 else next(tail for tail in tails if len(set(tail)) == different)


def search_page(
    features: "geopandas.GeoDataFrame | None", online: bool, credit: str, simulated: bool, linked: str = ""
) -> dict[str, Any]:
    """What assets/map_search.js shows, without layers. linked: name under which a `SearchBox` talks with it."""
    return {
        "simulated": simulated,
        "notes": [f"Background: {credit}"] if credit else [],
        "features": [] if features is None else page_features(features),
        "tiles": OSM_TILES if online else "",
        "linked": linked,
        "layers": [],
    }


def tile_columns(table: "pd.DataFrame") -> dict[str, Any]:
    """Tiles as the page takes them: columns of plain values."""
    said = [shortened(text, SAID) for text in table["text"]] if len(table) <= MOST_SAID else []
    return {
        "ids": list(table["sample_id"]),
        "domain": list(table["domain"]),
        "said": said,
        "lon": table["lon"].round(6).tolist(),
        "lat": table["lat"].round(6).tolist(),
        "footprints": rings_of(table["footprint"]),
    }


def layer_update(
    searcher: "Searcher",
    answer: Answer | None,
    scores: np.ndarray | None,
    row_of: dict[str, int],
    truth: frozenset[str] = frozenset(),
    title: str | None = None,
) -> dict[str, Any]:
    """What a query puts on a map: colours of the tiles, and its results with pictures.

    scores: of the tiles in the map's order, NaN for a tile that has none; None: no colours. row_of: a sample's place in
    that order. truth: samples that are known to be right.
    """
    low, high, levels = quantised(scores)
    update: dict[str, Any] = {"title": title or (answer.query if answer else ""), "low": low, "high": high}
    update |= {"scores": levels, "results": [], "truth": bool(truth), "asked": answer.asked if answer else ""}
    for hit in answer.hits if answer else ():
        picture = base64.b64encode(thumbnail_of(searcher, hit.image)).decode("ascii")
        update["results"].append({
            "rank": hit.rank, "tile": row_of.get(hit.sample_id), "id": hit.sample_id, "item": hit.item_id,
            "score": round(hit.score, 3), "sure": hit.sure, "said": shortened(hit.text, SAID), "times": hit.times,
            "picture": picture, "image": hit.image, "domain": hit.domain, "right": hit.sample_id in truth,
        })  # fmt: skip
    return update


def quantised(scores: np.ndarray | None) -> tuple[float | None, float | None, str]:
    """Lowest and highest of the colours, and a byte a tile in base64: 0 to LEVELS, 255 where there is no score."""
    values = np.asarray([] if scores is None else scores, np.float64)
    known = np.isfinite(values)
    if not known.any():
        return None, None, ""
    low, high = np.quantile(values[known], [0.5, 1.0]).tolist()
    share = np.zeros(len(values)) if high <= low else np.clip((values - low) / (high - low), 0, 1)
    levels = np.where(known, np.nan_to_num(share * LEVELS).round(), 255).astype(np.uint8)
    return round(low, 4), round(high, 4), base64.b64encode(levels.tobytes()).decode("ascii")


def thumbnail_of(searcher: "Searcher", name: str) -> bytes:
    """JPEG bytes of an image of the index; b"" where it cannot be read. The last ones are kept."""
    kept: dict[str, bytes] = searcher.thumbnails
    if name not in kept:
        if len(kept) > 500:
            kept.clear()
        kept[name] = jpeg_thumbnail(searcher.image_path(name), PICTURE)
    return kept[name]


def save_scores(layers: Sequence[Layer], path: str | Path) -> Path:
    """Every tile's score as .geojson or .parquet (GeoParquet), tiles as their footprints, or .csv; of two layers, each
    tile once for either query. Raises ConfigError for another ending."""
    import pandas as pd

    tables = [
        layer.table.assign(query=layer.title, index=name or str(layer.searcher.place).rpartition("/")[2])
        for layer, name in zip(layers, _index_names(layers), strict=True)
    ]
    table = pd.concat(tables, ignore_index=True)
    return save_places(table.drop(columns="footprint"), Path(path), list(table["footprint"]))
