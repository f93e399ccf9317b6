"""Small geo-tagged datasets: three countries at true places, generated pictures that their captions describe."""

from pathlib import Path
from typing import Any

import numpy as np
import shapely
from makers import SENTENCES, draw, scenes

from ucore.manifest import Manifest

CENTRES = {"finland": (24.94, 60.17), "germany": (13.05, 52.40), "spain": (-0.38, 39.47)}
TAGS = {"finland": "natural=wood", "germany": "landuse=allotments", "spain": "leisure=swimming_pool"}
STEP = 0.002  # degrees from tile to tile


def make_places(folder: str | Path, per_country: int = 12, size: int = 48, source: str = "survey") -> Manifest:
    """Write `images/<country>/<id>.png` and manifest.parquet into `folder`; a grid of tiles in each country.

    Of each country 60 % are train, then val and test. Captions name the picture and its country; the first tag is the
    country's own, the second the same everywhere.
    """
    folder = Path(folder)
    rows: list[dict[str, Any]] = []
    for number, (country, (lon, lat)) in enumerate(CENTRES.items()):
        (folder / "images" / country).mkdir(parents=True)
        noise = np.random.default_rng([number, per_country])
        for k, scene in enumerate(scenes(per_country, seed=number)):
            name = f"images/{country}/{country}_{k:03d}.png"
            draw(scene, size, noise).save(folder / name)
            x, y = lon + STEP * (k % 4), lat + STEP * (k // 4)
            rows.append(
                {
                    "sample_id": f"{country}_{k:03d}",
                    "image": name,
                    "captions": [SENTENCES[j].format(**scene) for j in range(2)]
                    + [f"a tile of {country} , number {k}"],
                    "tags": [TAGS[country], "building=yes"],
                    "surrounding_tags": ["highway=service"],
                    "domain": country,
                    "split": "train" if k < 0.6 * per_country else "val" if k < 0.8 * per_country else "test",
                    "lon": x,
                    "lat": y,
                    "footprint": shapely.box(x - STEP / 2, y - STEP / 2, x + STEP / 2, y + STEP / 2),
                    "gsd_m": 0.5 + 0.1 * number,
                    "source": source,
                    "licence": "CC0",
                }
            )
    manifest = Manifest.from_rows(rows, folder)
    manifest.save(folder / "manifest.parquet")
    return manifest


def point_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """`count` rows over Europe without image files."""
    rng = np.random.default_rng(seed)
    places = rng.uniform((-10, 36), (30, 65), (count, 2)).round(5).tolist()
    names = list(CENTRES)
    return [
        {"sample_id": f"p{k}", "image": f"{k}.png", "captions": [f"point number {k}"], "tags": ["building=yes"],
         "domain": names[k % 3], "split": "train", "lon": lon, "lat": lat}
        for k, (lon, lat) in enumerate(places)
    ]  # fmt: skip
