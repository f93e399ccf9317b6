"""How much a model loses at a border of the simulated set, and how much of that the camera adds.

    python benchmarks/country_gap.py [--tiles 300] [--sensor shared per-country] [--seed 0]

Heads (scale tiny) are trained on one country and scored on the held-out tiles (val and test) of each. Prints mR for
every pair and the mean loss relative to the heads trained on the target country itself.
"""

import argparse
import copy
import tempfile
from pathlib import Path

import numpy as np
import torch

from ucore.config import TrainConfig
from ucore.data import read_dataset
from ucore.model import load_encoder
from ucore.simulate import simulate_dataset
from ucore.simulated_set import SimulationConfig
from ucore.tasks import score
from ucore.train import Trainer


def gap_matrix(folder: Path, sensor: str, tiles: int, seed: int) -> tuple[list[str], np.ndarray, int]:
    """Countries, mR float (sources, targets), and the number of held-out tiles of a country."""
    simulate_dataset(
        folder / "set", SimulationConfig(tiles=tiles, sensor=sensor, seed=seed, masks=False), progress=False
    )
    manifest = read_dataset(folder / "set")
    countries = sorted(set(manifest.frame["domain"]))
    held_out = [manifest.domain(name).split(("val", "test")) for name in countries]
    torch.manual_seed(seed)
    fresh = load_encoder()
    config = TrainConfig.at("tiny", seed=seed, head_batch_size=42)
    matrix = np.empty((len(countries), len(countries)))
    for row, name in enumerate(countries):
        encoder, part = copy.deepcopy(fresh), manifest.domain(name)
        parts = part.split("train"), part.split("val")
        Trainer(encoder, *parts, config, folder / name, folder / "features", progress=False).fit()
        for column, target in enumerate(held_out):
            matrix[row, column] = score(encoder, target, progress=False).metrics()[0]["mR"]
    return countries, matrix, len(held_out[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=300, help="of each country")
    parser.add_argument("--sensor", nargs="+", default=["shared", "per-country"], choices=["shared", "per-country"])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for sensor in arguments.sensor:
        with tempfile.TemporaryDirectory() as folder:
            countries, matrix, held = gap_matrix(Path(folder), sensor, arguments.tiles, arguments.seed)
        away = ~np.eye(len(countries), dtype=bool)
        lost = 100 * (1 - matrix / np.diag(matrix))
        print(f"SIMULATED, sensor {sensor}, seed {arguments.seed}: mR on {held} held-out tiles a country")
        print("source \\ target " + " ".join(f"{name:>9}" for name in countries))
        for name, row in zip(countries, matrix, strict=True):
            print(f"{name:<15} " + " ".join(f"{value:9.2f}" for value in row))
        print(f"mean loss against the target's own heads: {lost[away].mean():.1f} % (chance mR {1600 / 3 / held:.2f})")


if __name__ == "__main__":
    main()
