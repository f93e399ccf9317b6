"""The commands that look at data and make them: `ucore data inspect`, `help`, `build` and `shard`."""

import json
import sys
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

HELP = "data_help.md"
Topic = Literal["all", "urbancross", "skyscript", "rsicd", "geotiles", "shards", "osm", "imagery"]


def inspect(
    path: Annotated[Path, tyro.conf.Positional],
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Say what a dataset folder, archive, OSM extract or imagery is, what is wrong with it, and which command is next.

    Exit status 0 when it can be used as it is, 2 when not. Nothing is unpacked, or written beside it.

    Args:
        path: Folder or file to look at.
        as_json: Print JSON instead of text.
    """
    from ucore.inspection import inspect_path

    result = inspect_path(path)
    print(json.dumps(result.to_dict(), indent=2, ensure_ascii=False) if as_json else result.text())
    if not result.usable:
        sys.exit(2)


def explain(topic: Annotated[Topic, tyro.conf.Positional] = "all") -> None:
    """Tell where to get a dataset, and where to put it.

    Args:
        topic: Which one.
    """
    print(help_text(topic))


def help_text(topic: str = "all") -> str:
    """The section of the help about `topic`, or its introduction."""
    sections = (resources.files("ucore") / "assets" / HELP).read_text("utf-8").split("\n## ")
    texts = dict(section.split("\n", 1) for section in sections[1:])
    return (texts.get(topic) or sections[0].removeprefix("# ")).strip()


def build(
    imagery: str,
    osm: Path,
    bounds: Annotated[str, tyro.conf.arg(metavar="W,S,E,N")],
    country: str,
    out: Path,
    zoom: int | None = None,
    gsd: float | None = None,
    tile_size: int = 224,
    attribution: str = "",
    licence: str = "",
    source: str = "",
    seed: int = 0,
    split: str = "blocks",
    limit: int | None = None,
    keep_untagged: bool = False,
    tms: bool = False,
    cache: Path = Path("runs/tiles"),
    rate: float = 2.0,
    max_tiles: int = 10_000,
) -> None:
    """Cut tiles of one ground resolution out of imagery and tag them from OpenStreetMap; a repeated call goes on.

    Args:
        imagery: A GeoTIFF, a folder of GeoTIFFs or of z/x/y tiles, or an address with {z}, {x} and {y}.
        osm: Extract: .osm.pbf, .osm, .osm.gz, .osm.bz2 or .geojson.
        bounds: West, south, east and north in degrees, for example 24.93,60.16,24.96,60.18.
        country: The samples' domain, for example finland.
        out: Folder for the dataset.
        zoom: Level of the tiles to read; the ground resolution is its web map's at the centre's latitude.
        gsd: Metres a pixel, instead of the zoom's.
        tile_size: Pixels of a tile's side.
        attribution: Whom the imagery's terms of use want named; required for an address.
        licence: Of the imagery.
        source: Name of the imagery in the manifest; by default its file or address.
        seed: Of the splits.
        split: "blocks" draws train, val and test by blocks of ground; "test", say, puts all samples into one.
        limit: At most so many tiles, evenly spread over the area.
        keep_untagged: Keep tiles where the extract has nothing.
        tms: Rows of tiles count from the south.
        cache: Folder for what was fetched from an address.
        rate: Most requests a second.
        max_tiles: Most requests of one build.
    """
    from ucore.build import BuildConfig, build_dataset
    from ucore.geo import parse_bounds

    config = BuildConfig(
        imagery, str(osm), parse_bounds(bounds), country.lower(), zoom, gsd, tile_size,
        attribution, licence, source, seed, split, limit, keep_untagged, tms,
    )  # fmt: skip
    facts = build_dataset(config, out, cache=cache, rate=rate, most_tiles=max_tiles)
    counts = facts["counts"]
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in counts["skipped"].items() if count) or "none"
    print(
        f"{counts['images']:,} tiles of {facts['gsd_m']:.3g} m a pixel; of {counts['windows']:,}, left out: {left_out}."
    )
    print("Splits: " + ", ".join(f"{name} {count:,}" for name, count in counts["splits"].items()))
    print("\n".join(facts["notes"]))
    print(f"Look at it: ucore data inspect {out}")


def shard(data: Path, out: Path, images: int = 1000, skip_bad: bool = False) -> None:
    """Copy a dataset of any layout into WebDataset tar files, for clusters and object stores.

    Args:
        data: Dataset folder.
        out: Folder for the shards.
        images: Most images a shard.
        skip_bad: Leave out images that cannot be read, with a warning.
    """
    from ucore.data import read_dataset
    from ucore.sharding import write_shards

    written = write_shards(read_dataset(data, skip_bad=skip_bad), out, images)
    print(f"{len(written):,} shard(s), {sum(path.stat().st_size for path in written) / 1e6:,.1f} MB, in {out}.")
    print(f"Look at them: ucore data inspect {out}")


# One line a command of `ucore data`: its name and the function behind it.
DataCommand = (
    Annotated[Any, tyro.conf.subcommand("inspect", constructor=inspect)]
    | Annotated[Any, tyro.conf.subcommand("help", constructor=explain)]
    | Annotated[Any, tyro.conf.subcommand("build", constructor=build)]
    | Annotated[Any, tyro.conf.subcommand("shard", constructor=shard)]
)


def data(command: tyro.conf.OmitSubcommandPrefixes[DataCommand]) -> None:
    """Look at a dataset, learn where to get one, or build one."""


def simulate(
    countries: str = "finland,germany,spain",
    tiles: int = 300,
    sensor: Literal["shared", "per-country"] = "shared",
    seed: int = 0,
    out: Path = Path("runs/simulated"),
    osm: Path | None = None,
    country: str | None = None,
    captions: int = 5,
    masks: bool = True,
    workers: int | None = None,
) -> None:
    """Make simulated satellite tiles with masks, tags and captions; a repeated call goes on where it stopped.

    Args:
        countries: Whose styles, separated by commas: finland, germany, spain.
        tiles: Of each country.
        sensor: shared: one camera for all, so that only the country differs. per-country: each has its own.
        seed: Of every random choice.
        out: Folder for the dataset.
        osm: Draw this OpenStreetMap extract instead of made-up cities, in the style of one country.
        country: The one country, with an extract; the same as --countries with one name.
        captions: Of each tile; one is vague on purpose.
        masks: Keep the mask of every object.
        workers: Processes; by default one a core.
    """
    import time

    from ucore.simulate import SimulationConfig, simulate_dataset

    started = time.perf_counter()
    names = tuple(name.strip().lower() for name in (country or countries).split(",") if name.strip())
    config = SimulationConfig(names, tiles, sensor, seed, captions, str(osm) if osm else "", masks)
    manifest = simulate_dataset(out, config, workers)
    seconds, summary = time.perf_counter() - started, manifest.summary()
    print(f"{len(manifest):,} simulated tiles in {seconds:.1f} s ({len(manifest) / seconds:.0f} a second).")
    print("Splits: " + ", ".join(f"{name} {part['images']:,}" for name, part in summary["splits"].items()))
    print(f"Captions: {summary['captions']:,}, {summary['distinct_captions']:,} of them distinct.")
    print(f"Look at it: ucore run 01 -p dataset={out}")
