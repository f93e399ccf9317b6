"""The commands that find things: `ucore search`, `ucore map` and `ucore app`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ucore.errors import ConfigError
from ucore.files import require_writable

if TYPE_CHECKING:
    from ucore.filters import Filter

Words = Annotated[list[str], tyro.conf.UseAppendAction]
PLACE, BOX = "LAT,LON", "W,S,E,N"


def search(
    query: Annotated[str, tyro.conf.Positional] = "",
    index: str = "runs/index",
    image: Path | None = None,
    sample: str | None = None,
    find: Literal["auto", "image", "text", "segment"] = "auto",
    k: int = 10,
    near: Annotated[str | None, tyro.conf.arg(metavar=PLACE)] = None,
    km: float | None = None,
    box: Annotated[str | None, tyro.conf.arg(metavar=BOX)] = None,
    polygon: Path | None = None,
    domain: Words = [],  # noqa: B006 - tyro reads the default, nobody changes it
    tag: Words = [],  # noqa: B006
    source: Words = [],  # noqa: B006
    checkpoint: Path | None = None,
    knn: Literal["auto", "exact", "approximate"] = "auto",
    correct_hubs: bool = True,
    late: bool = False,
    group: bool = True,
    explain: bool = False,
    out: Path | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Find images, segments or captions by a sentence, by a picture of your own or by a sample.

    Args:
        query: What to look for, in words.
        index: Folder that `ucore index build` wrote, or the address.
        image: A picture to look for, instead of words.
        sample: The id of an image of the index to look for, instead of words.
        find: What is found; auto: images.
        k: How many.
        near: Latitude and longitude of a place; with --km.
        km: The greatest distance from --near, in kilometres.
        box: West, south, east and north of an area, in degrees.
        polygon: GeoJSON file of an area.
        domain: Only of this domain (country); repeatable.
        tag: Only with this OpenStreetMap tag, "key=value" or "key"; repeatable: all of them.
        source: Only of this source; repeatable.
        checkpoint: Where the checkpoint is now, if not where the index says.
        knn: exact: every row is compared; approximate: a sketch of every row, where 50,000 or more were built in;
            auto: exact in folders, approximate with the engine lance.
        correct_hubs: Lower the scores of what fits everything a little.
        late: Images and segments in one score, for a checkpoint trained with segments.
        group: Show what is (nearly) the same once, with a count.
        explain: Say which words and segments decided; with --out, draw it beside that file.
        out: Write the hits: .json, .geojson, .parquet (GeoParquet) or .csv.
        as_json: Print JSON instead of text.
    """
    from ucore.answers import check_format

    if sum([bool(query.strip()), image is not None, sample is not None]) != 1:
        raise ConfigError("Ask with one of: words (“tennis courts beside a school”), --image FILE or --sample ID.")
    for option, given in (("--late", late), ("--explain", explain)):
        if given and not query.strip():
            raise ConfigError(f"{option} weighs words; leave it out, or ask with words")
    if out is not None:
        check_format(out)
        require_writable(out.parent)
    where = _filter(near, km, box, polygon, domain, tag, source)
    from ucore.retrieve import Searcher

    searcher = Searcher(index, checkpoint, exact=None if knn == "auto" else knn == "exact")
    kind: Any = "image" if find == "auto" else find
    common: dict[str, Any] = {"k": k, "find": kind, "where": where, "correct_hubs": correct_hubs, "group": group}
    if image is not None:
        answer = searcher.file(image, **common)
    elif sample is not None:
        answer = searcher.sample(sample, **common)
    else:
        answer = searcher.text(query, late=late, **common)
    found = []
    if explain:
        from ucore.explain import explain as explain_hit

        found = [explain_hit(searcher, answer, hit) for hit in answer.hits]
    if as_json:
        told = answer.to_dict() | ({"explanations": [each.to_dict() for each in found]} if explain else {})
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        print("\n".join([*answer.lines(), *(line for each in found for line in each.lines())]))
    if out is not None:
        _save(searcher, answer, found, out, as_json)


def _save(searcher: Any, answer: Any, found: list[Any], out: Path, quiet: bool) -> None:
    wrote = [answer.save(out)]
    if found:
        from ucore.explain import plot_explanations
        from ucore.files import atomic_path

        picture = out.with_name(f"{out.stem}-explained.png")
        with atomic_path(picture) as temporary:
            temporary.write_bytes(plot_explanations(searcher, answer, found[:10]).png())
        wrote.append(picture)
    if not quiet:
        print("Wrote " + " and ".join(map(str, wrote)))


def _filter(
    near: str | None, km: float | None, box: str | None, polygon: Path | None, domain: list[str], tag: list[str],
    source: list[str],
) -> "Filter | None":  # fmt: skip
    if (near, km, box, polygon) == (None, None, None, None) and not (domain or tag or source):
        return None
    from ucore.filters import Filter, polygon_in

    area = None if polygon is None else polygon_in(polygon)
    if (near is None) != (km is None):
        raise ConfigError("--near LAT,LON and --km belong together; give both")
    place: Any = None if near is None else _numbers("--near", near, PLACE)
    edges: Any = None if box is None else _numbers("--box", box, BOX)
    return Filter(tuple(domain), tuple(tag), (), tuple(source), edges, place, km, area)


def _numbers(option: str, text: str, form: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != form.count(",") + 1:
        raise ConfigError(f"{option} is {text!r}; it must be {form}, numbers in degrees with commas and no spaces")
    return values


def draw_map(
    query: Annotated[str, tyro.conf.Positional],
    index: str = "runs/index",
    out: Path = Path("map.html"),
    versus: str | None = None,
    versus_index: str | None = None,
    osm: Path | None = None,
    near: Annotated[str | None, tyro.conf.arg(metavar=PLACE)] = None,
    km: float | None = None,
    box: Annotated[str | None, tyro.conf.arg(metavar=BOX)] = None,
    polygon: Path | None = None,
    domain: Words = [],  # noqa: B006
    tag: Words = [],  # noqa: B006
    source: Words = [],  # noqa: B006
    k: int = 12,
    export: Path | None = None,
    checkpoint: Path | None = None,
    versus_checkpoint: Path | None = None,
    correct_hubs: bool = True,
    online: bool = False,
) -> None:
    """Colour every tile of the map by how well it fits a sentence; one HTML file that needs no network.

    Args:
        query: What to look for, in words.
        index: Folder that `ucore index build` wrote, or the address.
        out: The HTML file.
        versus: A second sentence, side by side.
        versus_index: Another index of the same ground (before and after adaptation), side by side.
        osm: OpenStreetMap extract (.osm.pbf) drawn as the background.
        near: Latitude and longitude of a place; with --km.
        km: The greatest distance from --near, in kilometres.
        box: West, south, east and north of an area, in degrees.
        polygon: GeoJSON file of an area.
        domain: Only of this domain (country); repeatable.
        tag: Only with this OpenStreetMap tag; repeatable: all of them.
        source: Only of this source; repeatable.
        k: Best tiles that are numbered and listed with their pictures.
        export: Write every tile's score: .geojson, .parquet (GeoParquet) or .csv.
        checkpoint: Where the checkpoint of INDEX is now, if not where the index says.
        versus_checkpoint: The same for VERSUS_INDEX.
        correct_hubs: Lower the scores of what fits everything a little.
        online: Also ask openstreetmap.org for the background.
    """
    from ucore.answers import check_format

    if out.suffix != ".html" or out.is_dir():
        raise ConfigError(f"--out {out} must be a file name that ends in .html, for example map.html")
    for path in filter(None, (out, export)):
        require_writable(path.parent)
    if export is not None:
        check_format(export, (".geojson", ".parquet", ".csv"))
    if versus_checkpoint is not None and versus_index is None:
        raise ConfigError("--versus-checkpoint is of the index that --versus-index names; give both")
    where = _filter(near, km, box, polygon, domain, tag, source)
    from ucore.heat import heat_layer, heat_map, save_scores
    from ucore.maps import save_map
    from ucore.retrieve import Searcher

    searcher = Searcher(index, checkpoint)
    layers = [heat_layer(searcher, query, where, k, correct_hubs)]
    if versus is not None or versus_index is not None:
        other = searcher if versus_index is None else Searcher(versus_index, versus_checkpoint)
        layers.append(heat_layer(other, query if versus is None else versus, where, k, correct_hubs))
    features, credit = None, ""
    if osm is not None:
        from ucore.geo import read_osm
        from ucore.simulated_set import OSM_CREDIT

        features, credit = read_osm(osm), OSM_CREDIT
    save_map(heat_map(layers, features, credit=credit, online=online), out)
    for note in dict.fromkeys(note for layer in layers for note in layer.notes):
        print(f"Note: {note}")
    print(f"{len(layers[0].table):,} tiles{' (SIMULATED data)' if searcher.simulated else ''}. Wrote {out}")
    if export is not None:
        print(f"Wrote {save_scores(layers, export)}")


def app(index: str | None = None, checkpoint: Path | None = None, port: int = 8866, browser: bool = True) -> None:
    """Search in the browser: type a query, click a tile, draw an area; until Ctrl-C.

    Args:
        index: Folder that `ucore index build` wrote; default: what notebook 08 made last.
        checkpoint: Where the checkpoint is now, if not where the index says.
        port: Where the application is served, on this machine alone.
        browser: Open it.
    """
    import sys

    from ucore.app import newest_index, serve

    sys.exit(serve(index or newest_index(), port, browser, checkpoint=checkpoint))
