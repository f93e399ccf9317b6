"""Seconds to tag 10,000 footprints with the objects of a made-up city of 100,000.

    python benchmarks/tagging.py [--features 100000] [--tiles 10000] [--seed 0]

Houses, roads, parks and shops lie evenly on a square of 10 km; the footprints are 224 pixels of 0.5 m.
"""

import argparse
import json
import time

import geopandas
import numpy as np
import shapely

from ucore.geo import local_frame, tag_footprints

SIDE_M, TILE_M = 10_000.0, 112.0
KINDS = (
    {"building": "yes"},
    {"building": "house", "roof:shape": "gabled"},
    {"building": "school", "amenity": "school"},
    {"leisure": "park"},
    {"landuse": "forest"},
)
ROADS = ({"highway": "residential"}, {"highway": "service"}, {"railway": "rail"}, {"waterway": "stream"})
POINTS = ({"shop": "bakery"}, {"amenity": "restaurant"}, {"amenity": "bench"})


def city(count: int, rng: np.random.Generator) -> geopandas.GeoDataFrame:
    """60 % areas of 10 to 200 m with 8 corners, 30 % lines of 20 points over 400 m, 10 % points."""
    areas, lines = int(count * 0.6), int(count * 0.3)
    places = rng.uniform(-SIDE_M / 2, SIDE_M / 2, (count, 2))
    turns = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    ring = np.column_stack([np.cos(turns), np.sin(turns)])
    sizes = 5 * 20 ** rng.power(0.3, areas)
    steps = np.linspace(-200, 200, 20)[:, None] * np.array([1.0, 0.3])
    shapes = np.concatenate(
        [
            np.asarray(shapely.polygons(places[:areas, None] + sizes[:, None, None] * ring)),
            np.asarray(shapely.linestrings(places[areas : areas + lines, None] + steps)),
            np.asarray(shapely.points(places[areas + lines :])),
        ]
    )
    groups = [KINDS] * areas + [ROADS] * lines + [POINTS] * (count - areas - lines)
    tags = [group[rng.integers(len(group))] for group in groups]
    placed = local_frame(24.94, 60.17).to_degrees(shapes)
    return geopandas.GeoDataFrame({"tags": tags}, geometry=placed, crs="EPSG:4326")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--features", type=int, default=100_000)
    parser.add_argument("--tiles", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    features = city(arguments.features, rng)
    west, south = rng.uniform(-SIDE_M / 2, SIDE_M / 2, (2, arguments.tiles))
    boxes = shapely.box(west, south, west + TILE_M, south + TILE_M)
    footprints = local_frame(24.94, 60.17).to_degrees(boxes)
    started = time.perf_counter()
    tags = tag_footprints(features, footprints)
    seconds = time.perf_counter() - started
    central = sum(len(of_tile[0]) for of_tile in tags) / len(tags)
    around = sum(len(of_tile[1]) for of_tile in tags) / len(tags)
    result = {"features": len(features), "tiles": len(tags), "seconds": round(seconds, 2)}
    print(json.dumps({**result, "central_tags_a_tile": round(central, 2), "surrounding": round(around, 2)}))


if __name__ == "__main__":
    main()
