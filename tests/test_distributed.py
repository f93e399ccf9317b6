"""Several processes train as one: torchrun starts two on this machine, which speak by gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command import ucore

from ucore import distributed
from ucore.checkpoint import load_state
from ucore.config import TrainConfig
from ucore.data import read_dataset
from ucore.errors import ConfigError
from ucore.model import load_encoder
from ucore.tower_phase import TowerPhase
from ucore.train import Trainer

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]  # seven processes import torch

# The command line with a tiny CLIP known to open_clip; the process DIES kills itself as it comes to that step.
COMMAND = """
import os, sys
import open_clip
from ucore import cli
from ucore.train import Trainer

open_clip.add_model_config(sys.argv.pop(1))
step = Trainer.step

def dying(self):
    if os.environ["RANK"] == "1" and str(self.step_count) == os.environ["DIES"]:
        os._exit(9)
    return step(self)

Trainer.step = dying
cli.main()
"""
# Dropout belongs to a chunk, so that two processes draw what one would; two chunks, of 3 and 3, to each.
SETTINGS = {
    "head_epochs": 2, "tune_epochs": 2, "head_batch_size": 8, "tune_batch_size": 12, "chunk": 3, "train_views": 2,
    "test_views": 1, "precision": "float32", "frozen_image_stages": 0, "image_lr": 1e-3, "text_lr": 1e-3,
}  # fmt: skip


@pytest.fixture(scope="module")
def arguments(tiny_rsicd, tiny_clip):
    """A function that gives the arguments which train into a folder."""
    settings = [part for name, value in SETTINGS.items() for part in ("-s", f"{name}={value}")]
    common = ["train", "--data", tiny_rsicd, "--encoder", tiny_clip, "--device", "cpu", *settings]
    return lambda out: [*common, "--out", out, "--cache", f"{out}-features"]


@pytest.fixture(scope="module")
def alone(arguments, tmp_path_factory):
    """Trained by this process."""
    out = tmp_path_factory.mktemp("alone")
    outcome = ucore(*arguments(out))
    assert outcome.status == 0, outcome.err
    return out


@pytest.fixture(scope="module")
def together(arguments, tiny_clip, tmp_path_factory):
    """Trained by two processes, of which one died in the last epoch, and by two again: the folder, both outcomes."""
    import open_clip.factory

    place = tmp_path_factory.mktemp("together")
    (place / "command.py").write_text(COMMAND)
    model = next(path for path in open_clip.factory._MODEL_CONFIG_PATHS if path.stem == tiny_clip)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [str(part) for part in (*start, place / "command.py", model, *arguments(place / "out"))]
    variables = [{**os.environ, "OMP_NUM_THREADS": "1", "DIES": number} for number in ("9", "none")]
    return place / "out", *(subprocess.run(command, env=env, capture_output=True, text=True) for env in variables)


def history(folder: Path) -> list[dict]:
    state = load_state(folder)
    assert state is not None and state["finished"]
    return state["history"]


def test_a_process_that_dies_ends_all_and_the_repeated_command_goes_on(together):
    folder, died, again = together
    assert died.returncode == 1
    assert "exitcode  : 9" in died.stderr or "Another process of this training ended" in died.stderr
    assert again.returncode == 0, again.stderr
    assert f"Found a run in {folder}, at step 8: going on from there." in again.stdout


def test_two_processes_have_the_loss_curve_of_one(alone, together):
    one, two = history(alone), history(together[0])
    assert [row["phase"] for row in one] == [row["phase"] for row in two] == ["heads"] * 6 + ["towers"] * 4
    for name in ("loss", "grad_norm", "temperature"):
        np.testing.assert_allclose([row[name] for row in two], [row[name] for row in one], rtol=0, atol=1e-4)
    towers = [row["loss"] for row in one if row["phase"] == "towers"]
    assert max(towers) - min(towers) > 1e-2  # something was learned, so that the same curve says something


def test_only_the_first_process_prints_and_writes(alone, together):
    folder, _, again = together
    assert again.stdout.count("training and 8 validation images") == again.stdout.count("Validation, cosine") == 1
    assert len(list((folder / "tensorboard").iterdir())) == 2  # one of each call
    measured, expected = (json.loads((place / "validation.json").read_text()) for place in (folder, alone))
    assert [row["value"] for row in measured["metrics"]] == [row["value"] for row in expected["metrics"]]


def test_one_gpu_is_not_given_to_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"--device cuda:1 names one GPU for several processes; use --device cuda"):
        distributed.join("cuda:1")


def test_a_lone_process_needs_nobody():
    rows = np.arange(6.0).reshape(3, 2)
    distributed.exchange(rows, [slice(0, 3)])
    assert rows.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert (distributed.size(), distributed.is_first(), distributed.agree(False)) == (1, True, False)
    assert distributed.from_first("mine") == "mine"
    assert distributed.join("cpu") == "cpu"


@pytest.mark.parametrize(
    ("batch", "chunk", "processes"),
    [(40, 0, 16), (128, 0, 24), (128, 0, 48), (256, 0, 96), (10, 0, 8), (12, 6, 4), (12, 3, 2), (13, 5, 2), (7, 3, 1)],
)
def test_every_process_has_a_share_of_every_batch(monkeypatch, batch, chunk, processes):
    monkeypatch.setattr(distributed, "size", lambda: processes)
    phase = SimpleNamespace(config=SimpleNamespace(chunk=chunk), batch_size=batch)
    chunks = TowerPhase.chunks.fget(phase)  # type: ignore[attr-defined]
    assert len(chunks) >= processes and all(part.stop > part.start for part in chunks)
    assert [row for part in chunks for row in range(batch)[part]] == list(range(batch))
    assert all(part.stop - part.start <= (chunk or batch) for part in chunks)
    monkeypatch.setattr(distributed, "size", lambda: 1)
    assert len(TowerPhase.chunks.fget(phase)) == (-(-batch // chunk) if chunk else 1)  # type: ignore[attr-defined]


def test_more_processes_than_images_in_a_batch_are_refused(tiny_clip, tiny_rsicd, monkeypatch):
    data = read_dataset(tiny_rsicd)
    config = TrainConfig(head_epochs=0, tune_epochs=1, tune_batch_size=4, test_views=1)
    trainer = Trainer(load_encoder(tiny_clip), data.split("train"), data.split("val"), config, progress=False)
    monkeypatch.setattr(distributed, "size", lambda: 5)
    with pytest.raises(ConfigError, match="A batch of 4 images cannot be shared by 5 processes"):
        TowerPhase(trainer)
