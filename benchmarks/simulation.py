"""How many tiles a second the simulator makes: city, picture, masks, tags, captions and files, in one process a core.

    python benchmarks/simulation.py [--tiles N] [--workers W]

The city of each country is built first and timed apart: its cost is once a country, however many tiles follow.
"""

import argparse
import tempfile
import time
from pathlib import Path

from ucore.city import make_city
from ucore.countries import COUNTRIES, SHARED_CAMERA
from ucore.origin import machine_facts
from ucore.render import render_tile
from ucore.simulate import cities_of, make_tiles, simulate_dataset
from ucore.simulated_set import PARTS, SimulationConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=300, help="of each country")
    parser.add_argument("--workers", type=int, default=None, help="processes; by default one a core")
    arguments = parser.parse_args()
    facts = machine_facts()
    print(f"{facts['cpu']}, {facts['cores']} cores")
    for name, style in COUNTRIES.items():
        started = time.perf_counter()
        city = make_city(style, 4500.0, 0)
        built = time.perf_counter()
        for number in range(40):
            render_tile(city, 200.0 * (number % 8) - 700, 200.0 * (number // 8) - 400, SHARED_CAMERA, 224)
        rendered = time.perf_counter() - built
        print(f"{name}: city of {len(city.features):,} features {built - started:.1f} s; "
              f"{40 / rendered:.0f} pictures of 224 pixels a second in one process")  # fmt: skip
    config = SimulationConfig(tiles=arguments.tiles)
    with tempfile.TemporaryDirectory() as folder:
        city, spots = next(cities_of("germany", config))
        (Path(folder) / PARTS).mkdir()
        started = time.perf_counter()
        make_tiles(Path(folder), "germany-000", city, spots, SHARED_CAMERA, config, arguments.workers, False)
        seconds = time.perf_counter() - started
    print(
        f"pictures, masks, captions and files: {len(spots) / seconds:.1f} tiles of 225 pixels a second, all processes"
    )
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        manifest = simulate_dataset(Path(folder) / "set", config, arguments.workers, progress=False)
        seconds = time.perf_counter() - started
    print(f"whole dataset, cities and tags included: {len(manifest):,} tiles in {seconds:.1f} s")


if __name__ == "__main__":
    main()
