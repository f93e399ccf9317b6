"""Several processes train as one: torchrun starts two on this machine, once or twice, which speak by gloo."""

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command import ucore
from makers import make_rsicd

from ucore import distributed
from ucore.checkpoint import load_state
from ucore.config import TrainConfig
from ucore.data import read_dataset
from ucore.errors import ConfigError
from ucore.model import load_encoder
from ucore.tower_phase import TowerPhase
from ucore.train import Trainer

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]  # ten processes import torch

# The command line with a tiny CLIP known to open_clip. The second process ends as it comes to step DIES, in silence for
# a minute if it is SILENT, of which ten seconds are too many then; and it has the arguments OTHER besides.
COMMAND = """
import datetime, os, sys, time
import open_clip
from ucore import cli, distributed
from ucore.train import Trainer

open_clip.add_model_config(sys.argv.pop(1))
step = Trainer.step

def dying(self):
    if os.environ["RANK"] == "1" and str(self.step_count) == os.environ["DIES"]:
        time.sleep(60 * bool(os.environ["SILENT"]))
        os._exit(9)
    return step(self)

if os.environ["RANK"] == "1" and os.environ["OTHER"]:
    name, value = os.environ["OTHER"].split()
    if name == "--data":  # may stand there once
        sys.argv[sys.argv.index(name) + 1] = value
    else:
        sys.argv += [name, value]
if os.environ["SILENT"]:
    distributed.SILENCE = datetime.timedelta(seconds=10)
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
def started(arguments, tiny_clip, tmp_path_factory):
    """A function: two processes that train into a folder, started as on one machine or as on two; the launchers' ends.

    dies, other, silent: of the second process, see COMMAND.
    """
    import open_clip.factory

    script = tmp_path_factory.mktemp("script") / "command.py"
    script.write_text(COMMAND)
    model = next(path for path in open_clip.factory._MODEL_CONFIG_PATHS if path.stem == tiny_clip)

    def start(
        out, machines: int, dies: str = "never", other: str = "", silent: str = ""
    ) -> list[subprocess.CompletedProcess]:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        where = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}"]
        where = where if machines == 2 else ["--standalone", "--nproc-per-node=2"]
        launcher = [sys.executable, "-m", "torch.distributed.run", *where]
        command = [str(part) for part in (*launcher, script, model, *arguments(out))]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "DIES": dies, "OTHER": other, "SILENT": silent}
        with ThreadPoolExecutor(machines) as pool:
            running = [pool.submit(subprocess.run, command, env=variables, capture_output=True, text=True)
                       for _ in range(machines)]  # fmt: skip
        return [process.result() for process in running]

    return start


@pytest.fixture(scope="module")
def together(started, tmp_path_factory):
    """Trained by two processes, of which one died in the last epoch, and by two again, as of two machines: the folder,
    how the first launcher ended, how the two others did."""
    folder = tmp_path_factory.mktemp("together") / "out"
    (died,) = started(folder, machines=1, dies="9")
    return folder, died, started(folder, machines=2)


def history(folder: Path) -> list[dict]:
    state = load_state(folder)
    assert state is not None and state["finished"]
    return state["history"]


def test_a_process_that_dies_ends_all_and_the_repeated_command_goes_on(together):
    folder, died, again = together
    assert died.returncode == 1
    assert "exitcode  : 9" in died.stderr or "Another process of this training ended" in died.stderr
    assert [end.returncode for end in again] == [0, 0], [end.stderr for end in again]
    assert f"Found a run in {folder}, at step 8: going on from there." in "".join(end.stdout for end in again)


def test_two_processes_have_the_loss_curve_of_one(alone, together):
    one, two = history(alone), history(together[0])
    assert [row["phase"] for row in one] == [row["phase"] for row in two] == ["heads"] * 6 + ["towers"] * 4
    for name in ("loss", "grad_norm", "temperature"):
        np.testing.assert_allclose([row[name] for row in two], [row[name] for row in one], rtol=0, atol=1e-4)
    towers = [row["loss"] for row in one if row["phase"] == "towers"]
    assert max(towers) - min(towers) > 1e-2  # something was learned, so that the same curve says something


def test_only_the_first_process_prints_and_writes(alone, together):
    folder, _, again = together
    said = "".join(end.stdout for end in again)
    assert said.count("training and 8 validation images") == said.count("Validation, cosine") == 1
    assert len(list((folder / "tensorboard").iterdir())) == 2  # one of each call
    measured, expected = (json.loads((place / "validation.json").read_text()) for place in (folder, alone))
    assert [row["value"] for row in measured["metrics"]] == [row["value"] for row in expected["metrics"]]


def test_a_machine_that_falls_silent_is_not_waited_for(started, tmp_path):
    (end,) = started(tmp_path / "out", machines=1, dies="6", silent="yes")
    state = load_state(tmp_path / "out")
    assert state is not None and state["step_count"] == 6  # not before the silence: the last of the heads' epochs
    assert end.returncode == 1 and "exitcode  : 9" not in end.stderr  # it had not come to its own end
    assert "ucore: Another process of this training ended or cannot be reached" in end.stderr


@pytest.mark.parametrize("what", ["data", "settings"])
def test_machines_with_other_data_or_settings_are_refused(started, tmp_path, what):
    other = make_rsicd(tmp_path / "other", seed=1)
    ends = started(tmp_path / "out", machines=2, other=f"--data {other}" if what == "data" else "-s head_lr=0.5")
    assert all(end.returncode for end in ends)
    told = "".join(end.stderr for end in ends)
    assert told.count("ucore: The processes have different settings, rows or segments") == 2, told
    assert (f"(this one's images: {other}" in told) == (what == "data")
    assert not (tmp_path / "out" / "model.safetensors").exists()


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
