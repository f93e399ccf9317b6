"""What the simulated set is for: it can be learned, and a model loses at a border, with one camera for all."""

import copy

import numpy as np
import pytest
import torch

from ucore.config import TrainConfig
from ucore.data import read_dataset
from ucore.manifest import Manifest
from ucore.simulate import SimulationConfig, simulate_dataset
from ucore.tasks import score
from ucore.train import Trainer

pytestmark = pytest.mark.slow

COUNTRIES = ("finland", "germany", "spain")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Manifest:
    folder = tmp_path_factory.mktemp("gap") / "set"
    simulate_dataset(folder, SimulationConfig(masks=False), progress=False)
    return read_dataset(folder)


@pytest.fixture(scope="module")
def mean_recall(simulated, encoder_factory, tmp_path_factory):
    """mR on every country's held-out tiles of a model trained on one country, or on all."""
    folder = tmp_path_factory.mktemp("gap-runs")
    torch.manual_seed(0)
    fresh = encoder_factory()
    held_out = {name: simulated.domain(name).split(("val", "test")) for name in COUNTRIES}
    result = {}
    for source in (*COUNTRIES, "all"):
        part = simulated if source == "all" else simulated.domain(source)
        config = TrainConfig.at("tiny") if source == "all" else TrainConfig.at("tiny", head_batch_size=42)  # a third
        encoder = copy.deepcopy(fresh)
        splits = part.split("train"), part.split("val")
        Trainer(encoder, *splits, config, folder / source, folder / "features", progress=False).fit()
        targets = {"all": simulated.split("test")} if source == "all" else held_out
        for target, manifest in targets.items():
            result[source, target] = score(encoder, manifest, progress=False).metrics()[0]["mR"]
    return result


def test_training_beats_chance_tenfold(mean_recall, simulated):
    chance = 100 * (1 + 5 + 10) / 3 / len(simulated.split("test"))
    assert mean_recall["all", "all"] > 1.15 * 10 * chance


def test_a_model_of_one_country_loses_at_the_border(mean_recall):
    pairs = [(source, target) for source in COUNTRIES for target in COUNTRIES if source != target]
    lost = [1 - mean_recall[source, target] / mean_recall[target, target] for source, target in pairs]
    assert np.mean(lost) > 0.33
    assert min(lost) > 0
