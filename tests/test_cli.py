"""The commands as a user types them: what they write, and one clear sentence for everything that is wrong."""

import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from command import Outcome, ucore
from makers import edit_index, make_rsicd
from PIL import Image
from safetensors.torch import load_file, save_file

from ucore.checkpoint import load_bank, load_checkpoint
from ucore.data import read_dataset
from ucore.features import embed_images, embed_texts
from ucore.files import file_hash
from ucore.hubness import correct_hubs
from ucore.report import load_report
from ucore.train import Trainer

INDEX = "dataset_rsicd.json"
SETTINGS = ("-s", "head_epochs=2", "-s", "head_batch_size=8", "-s", "tune_epochs=0")  # three steps an epoch
STEPS = 6


def done(*arguments: Any) -> str:
    """Run a command that must succeed; what it printed."""
    outcome = ucore(*arguments)
    assert outcome.status == 0, outcome.err
    return outcome.out


def state_of(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every file and folder under `folder`; equal as long as nothing was made, changed or removed."""
    stats = {str(path.relative_to(folder)): path.lstat() for path in sorted(folder.rglob("*"))}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def check_refusal(outcome: Outcome, expected: str) -> None:
    assert "Traceback" not in outcome.err
    assert outcome.status == 2, outcome.err
    assert len(outcome.err.splitlines()) == 1, outcome.err
    assert outcome.err.startswith("ucore: ")
    assert expected in outcome.err


class Run(NamedTuple):
    """A finished training: its checkpoint folder, the feature cache, the data and what was printed."""

    folder: Path
    cache: Path
    data: Path
    printed: str

    def again(self, out: Path, *more: str) -> tuple[Any, ...]:
        """Arguments that train the same into `out`."""
        return "train", "--data", self.data, "--scale", "tiny", *SETTINGS, "--cache", self.cache, "--out", out, *more


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> None:
    """No default dataset, and a current folder in which nothing is expected to appear."""
    monkeypatch.delenv("UCORE_DATA", raising=False)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture(scope="module")
def run(tiny_rsicd, tmp_path_factory) -> Run:
    place = tmp_path_factory.mktemp("run")
    unfinished = Run(place / "trained", place / "cache", tiny_rsicd, "")
    command = [sys.executable, "-m", "ucore", *map(str, unfinished.again(unfinished.folder))]
    # A process of its own, whose memory holds nothing of the tests before.
    outcome = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=600)
    assert outcome.returncode == 0, outcome.stderr
    return unfinished._replace(printed=outcome.stdout)


@pytest.fixture(scope="module")
def test_only(tmp_path_factory) -> Path:
    """Another dataset, of which only the test images are there; some of its captions repeat."""
    folder = make_rsicd(tmp_path_factory.mktemp("data") / "test_only", 6, 2, 10, seed=1, repeat_captions=True)
    for number in range(8):
        (folder / "images" / f"{number:05d}.png").unlink()
    return folder


@pytest.fixture(scope="module")
def scored(run, test_only, tmp_path_factory) -> Path:
    """Folder with the scores.npz and metrics.json of one evaluation, and what it printed."""
    place = tmp_path_factory.mktemp("scored")
    command = ("eval", "--checkpoint", run.folder, "--split", "test", "--out", place / "scores.npz")
    (place / "printed.txt").write_text(done(*command, "--data", test_only))
    return place


@pytest.fixture
def data(tmp_path) -> Path:
    """A small dataset to spoil."""
    return make_rsicd(tmp_path / "data", n_train=4, n_val=2, n_test=2, captions_per_image=2, size=16)


@pytest.fixture
def checkpoint(run, tmp_path) -> Path:
    """A copy of the trained checkpoint to spoil: the weights are a second link, to be replaced, not written to."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    shutil.copy(run.folder / "encoder.json", folder)
    os.link(run.folder / "model.safetensors", folder / "model.safetensors")
    return folder


# --- train --------------------------------------------------------------------------------------------------


def test_training_leaves_a_checkpoint_and_its_metrics(run):
    assert sorted(path.name for path in run.folder.iterdir()) == [
        *("bank.safetensors", "encoder.json", "model.safetensors"),
        *("split.json", "state.pt", "tensorboard", "validation.json"),
    ]
    measured = json.loads((run.folder / "validation.json").read_text())
    assert (measured["dataset"], measured["split"], measured["seed"]) == ("rsicd", "val", 0)
    assert measured["encoder"] == "lite0-minilm"
    assert measured["parameters"]["head_epochs"] == 2
    assert measured["machine"]["cores"] >= 1
    assert set(measured["seconds"]) >= {"features", "training", "validation", "evaluation", "total"}
    assert 0.3 < measured["peak_memory_gb"] < 2.5
    assert "24 training and 8 validation images" in run.printed
    assert "Validation has 40 captions, 40 of them distinct." in run.printed
    for name in ("features", "training", "evaluation", "total"):
        assert f"{name} {measured['seconds'][name]:.1f}" in run.printed


def test_a_finished_training_is_not_repeated(run):
    before = state_of(run.folder)
    printed = done(*run.again(run.folder))
    after = state_of(run.folder)
    assert f"Found a run in {run.folder}, finished: going on from there." in printed
    assert {name for name in before if before[name] != after.get(name)} == {"split.json", "validation.json"}
    assert after.keys() == before.keys()


def test_another_setting_does_not_touch_a_finished_run(run):
    before = state_of(run.folder)
    outcome = ucore(*run.again(run.folder, "--seed", "1"))
    check_refusal(outcome, "holds a run with other settings (seed 0 -> 1); choose another --out, or --restart")
    assert state_of(run.folder) == before


class Killed(BaseException):
    """The process is gone: nothing of ucore can react."""


def fail_at(monkeypatch, owner: type, method: str, number: int, error: type[BaseException], after: bool) -> None:
    """Let the call of `owner.method` with this number, from 1, end in `error`, its work done or (not `after`) not."""
    calls, real = itertools.count(1), getattr(owner, method)

    def failing(*arguments: Any) -> Any:
        fails = next(calls) == number
        result = None if fails and not after else real(*arguments)
        if fails:
            raise error
        return result

    monkeypatch.setattr(owner, method, failing)


def same_result(folder: Path, run: Run) -> None:
    """Weights, card and metrics equal those of the uninterrupted run, digit for digit."""
    for name in ("model.safetensors", "encoder.json"):
        assert file_hash(folder / name) == file_hash(run.folder / name), name
    mine, theirs = (json.loads((place / "validation.json").read_text())["metrics"] for place in (folder, run.folder))
    assert mine == theirs
    losses = [torch.load(place / "state.pt", weights_only=True)["history"] for place in (folder, run.folder)]
    assert [row["loss"] for row in losses[0]] == [row["loss"] for row in losses[1]]


def test_the_saved_history_holds_every_step(run):
    history = torch.load(run.folder / "state.pt", weights_only=True)["history"]
    assert [row["step"] for row in history] == list(range(1, STEPS + 1))
    assert [row["step"] for row in history if "metrics" in row] == [STEPS // 2, STEPS]


def test_ctrl_c_keeps_the_state_and_the_repeated_command_ends_the_same(run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        fail_at(patch, Trainer, "step", 5, KeyboardInterrupt, after=False)
        outcome = ucore(*run.again(out))
    assert outcome.status == 2
    assert "Traceback" not in outcome.err
    assert outcome.err.splitlines()[-1] == (
        f"ucore: Stopped at step 4 of {STEPS}; repeat the command to go on from {out}."
    )
    assert (out / "state.pt").is_file()
    assert not (out / "validation.json").exists()
    assert f"Found a run in {out}, at step 4: going on from there." in done(*run.again(out))
    same_result(out, run)


# The fifth step is half applied; the second epoch is trained but not yet judged.
@pytest.mark.parametrize(("owner", "method", "number"), [(torch.optim.AdamW, "step", 5), (Trainer, "validate", 2)])
def test_ctrl_c_at_an_awkward_moment_ends_the_same_too(run, tmp_path, monkeypatch, owner, method, number):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        fail_at(patch, owner, method, number, KeyboardInterrupt, after=True)
        assert ucore(*run.again(out)).status == 2
    assert "going on from there" in done(*run.again(out))
    same_result(out, run)


def test_a_killed_training_goes_on_from_its_last_epoch(run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        fail_at(patch, Trainer, "step", 5, Killed, after=False)
        with pytest.raises(Killed):
            ucore(*run.again(out))
    assert "at step 3: going on" in done(*run.again(out))
    same_result(out, run)


def test_a_damaged_state_needs_restart_and_restart_begins_anew(run, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(run.folder, out)
    (out / "state.pt").write_bytes((run.folder / "state.pt").read_bytes()[:5000])
    before = state_of(tmp_path)
    check_refusal(ucore(*run.again(out)), f"{out / 'state.pt'} is damaged or of another version")
    assert state_of(tmp_path) == before
    assert "Found a run" not in done(*run.again(out, "--restart"))
    same_result(out, run)


@pytest.mark.parametrize("content", [[1], {"a": 1}, {"format": 0}])
def test_a_foreign_state_is_refused(run, tmp_path, content):
    torch.save(content, tmp_path / "state.pt")
    check_refusal(ucore(*run.again(tmp_path)), "is damaged or of another version")


def test_a_disk_that_fills_up_during_training_is_one_sentence(run, tmp_path):
    out = tmp_path / "disk"
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(out)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("NOT TESTED: a really full disk, as mounting a tmpfs needs root")
    try:
        outcome = ucore(*run.again(out))
        left = {path.name for path in out.iterdir()}
        split = (out / "split.json").read_bytes()
    finally:
        subprocess.run(["umount", "-l", str(out)], check=True)
    assert outcome.status == 2
    assert "Traceback" not in outcome.err
    assert outcome.err.splitlines()[-1].startswith("ucore: The disk is full: could not write ")
    assert left <= {"split.json", "tensorboard"}
    assert split == (run.folder / "split.json").read_bytes()  # whole: it stands there before the weights learn


# --- eval ---------------------------------------------------------------------------------------------------


def load_scores(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "scores.npz", allow_pickle=False) as scores:
        return dict(scores)


def captions_of(folder: Path) -> dict[str, list[str]]:
    """Image name without suffix -> captions, of the test split, from the file itself."""
    entries = json.loads((folder / INDEX).read_text())["images"]
    return {
        entry["filename"].removesuffix(".png"): [sentence["raw"] for sentence in entry["sentences"]]
        for entry in entries
        if entry["split"] == "test"
    }


def test_scores_hold_what_was_promised(scored, test_only):
    scores, captions = load_scores(scored), captions_of(test_only)
    assert list(scores) == ["similarity", "image_ids", "text_ids", "text_image_ids"]
    assert scores["similarity"].dtype == np.float32
    assert scores["similarity"].shape == (10, 50)
    assert np.abs(scores["similarity"]).max() <= 1 + 1e-5
    assert {scores[name].dtype.kind for name in ("image_ids", "text_ids", "text_image_ids")} == {"U"}
    assert scores["image_ids"].tolist() == list(captions)
    assert scores["text_image_ids"].tolist() == [name for name, texts in captions.items() for _ in texts]
    assert scores["text_ids"].tolist() == [f"{name}#{j}" for name, texts in captions.items() for j in range(len(texts))]


def test_scores_are_the_similarities_of_the_texts_and_images_they_name(run, scored, test_only):
    scores, captions = load_scores(scored), captions_of(test_only)
    encoder, _ = load_checkpoint(run.folder)
    image_id, text_id = "00013", "00009#2"
    name, number = text_id.split("#")
    with Image.open(test_only / "images" / f"{image_id}.png") as image, torch.inference_mode():
        one_image = encoder.encode_image(encoder.transform(image.convert("RGB"))[None])
        one_text = encoder.encode_text(encoder.tokenize([captions[name][int(number)]]))
    row, column = scores["image_ids"].tolist().index(image_id), scores["text_ids"].tolist().index(text_id)
    similarity, bank = scores["similarity"], load_bank(run.folder)
    assert bank is not None
    image, text = one_image.numpy(), one_text.numpy()
    expected = correct_hubs(image @ text.T, image, text, bank, float(torch.exp(-encoder.logit_scale.detach())))
    assert similarity[row, column] == pytest.approx(expected.item(), abs=0.04)  # bfloat16 on some CPUs
    assert similarity.std() > 0.05


def test_without_the_correction_scores_are_cosines(run, test_only, tmp_path):
    done("eval", "--checkpoint", run.folder, "--data", test_only, "--no-correct-hubs", "--out", tmp_path / "s.npz")
    similarity = np.load(tmp_path / "s.npz")["similarity"]
    encoder, card = load_checkpoint(run.folder)
    manifest = read_dataset(test_only, split="test")
    images = embed_images(encoder, manifest, card["train"]["test_views"], progress=False)
    expected = images @ embed_texts(encoder, manifest.texts[0], progress=False).T
    np.testing.assert_allclose(similarity, expected, atol=1e-5)


def rank_against_us(scores: np.ndarray, relevant: np.ndarray) -> int:
    """1-based rank of the best relevant item of one query, after every irrelevant one that scores as much."""
    best = max(score for score, wanted in zip(scores, relevant, strict=True) if wanted)
    return 1 + sum(score >= best for score, wanted in zip(scores, relevant, strict=True) if not wanted)


def plain_metrics(similarity: np.ndarray, relevant: np.ndarray) -> dict[str, float]:
    """The nine metrics, query by query."""
    sides = {
        "image_to_text": [rank_against_us(*query) for query in zip(similarity, relevant, strict=True)],
        "text_to_image": [rank_against_us(*query) for query in zip(similarity.T, relevant.T, strict=True)],
    }
    metrics = {
        f"{side}_R@{k}": 100 * sum(rank <= k for rank in ranks) / len(ranks)
        for side, ranks in sides.items()
        for k in (1, 5, 10)
    }
    medians = {f"{side}_median_rank": float(np.median(ranks)) for side, ranks in sides.items()}
    return {**metrics, "mR": sum(metrics.values()) / 6, **medians}


def reported(folder: Path, label: str) -> dict[str, dict[str, float]]:
    rows = json.loads((folder / "metrics.json").read_text())["metrics"]
    return {row["metric"]: row for row in rows if row["label"] == label}


def test_metrics_follow_from_the_scores(scored):
    scores = load_scores(scored)
    relevant = scores["image_ids"][:, None] == scores["text_image_ids"][None]
    rows, expected = reported(scored, "checkpoint"), plain_metrics(scores["similarity"], relevant)
    assert {metric: row["value"] for metric, row in rows.items()} == pytest.approx(expected)
    assert {row["n"] for metric, row in rows.items() if metric.startswith("image")} == {10}
    assert {row["n"] for metric, row in rows.items() if metric.startswith("text")} == {50}
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows.values())


def test_duplicate_aware_metrics_follow_from_scores_and_captions(scored, test_only):
    scores = load_scores(scored)
    texts = [text for of_image in captions_of(test_only).values() for text in of_image]
    assert len(set(texts)) < len(texts)
    relevant = np.array([
        [any(text == texts[k] for k in np.flatnonzero(scores["text_image_ids"] == name)) for text in texts]
        for name in scores["image_ids"]
    ])  # fmt: skip
    rows, expected = reported(scored, "checkpoint, duplicate-aware"), plain_metrics(scores["similarity"], relevant)
    assert {metric: row["value"] for metric, row in rows.items()} == pytest.approx(expected)
    assert rows["mR"]["value"] > reported(scored, "checkpoint")["mR"]["value"]


def test_metrics_with_ties_at_random_follow_from_the_scores(scored):
    scores, rng = load_scores(scored), np.random.default_rng(0)
    similarity, relevant = scores["similarity"], scores["image_ids"][:, None] == scores["text_image_ids"][None]
    apart = np.diff(np.unique(similarity)).min()  # what is added puts equal scores alone in another order
    drawn = [plain_metrics(similarity + apart / 2 * rng.random(similarity.shape), relevant)["mR"] for _ in range(200)]
    mR = reported(scored, "checkpoint, ties at random")["mR"]["value"]
    assert mR == pytest.approx(np.mean(drawn), abs=0.5)
    assert mR > reported(scored, "checkpoint")["mR"]["value"]


def test_what_is_printed_is_what_is_written(scored):
    printed, measured = (scored / "printed.txt").read_text(), json.loads((scored / "metrics.json").read_text())
    assert "10 images, 50 texts, 1 view(s) an image" in printed
    for label in ("checkpoint", "checkpoint, ties at random", "checkpoint, duplicate-aware"):
        row = reported(scored, label)["mR"]
        assert f"mR {row['value']:5.2f} [{row['low']:.2f}, {row['high']:.2f}]" in printed
    report = load_report(scored / "metrics.json")  # it has all that a notebook's report has
    assert report == measured and report["seed"] == report["trained"]["seed"] == 0
    assert report["command"] == "ucore eval --split test --views 1"
    assert report["parameters"] == {"views": 1, "hubs_corrected": True}
    assert len(report["code"]) == len(report["data"]) == 16 and report["encoder"]["name"] == "lite0-minilm"
    assert measured["trained"]["head_epochs"] == 2
    assert set(measured["seconds"]) == {"images", "texts", "scores", "metrics"}


def test_the_same_evaluation_gives_the_same_bytes(run, scored, test_only, tmp_path, monkeypatch):
    monkeypatch.setenv("UCORE_DATA", str(test_only))  # instead of --data
    done("eval", "--checkpoint", run.folder, "--out", tmp_path / "scores.npz")
    first, second = load_scores(scored), load_scores(tmp_path)
    assert first["similarity"].tobytes() == second["similarity"].tobytes()
    assert file_hash(tmp_path / "scores.npz") == file_hash(scored / "scores.npz")
    assert reported(tmp_path, "checkpoint") == reported(scored, "checkpoint")


def test_bad_images_are_left_out_on_demand_only(run, data, tmp_path):
    (data / "images" / "00007.png").write_bytes(b"no image")
    command = ("eval", "--checkpoint", run.folder, "--data", data, "--out", tmp_path / "scores.npz")
    check_refusal(ucore(*command), "1 of 2 images")
    with pytest.warns(UserWarning, match=r"1 of 2 images .*00007\.png"):
        done(*command, "--skip-bad")
    assert load_scores(tmp_path)["image_ids"].tolist() == ["00006"]


# --- bad input ----------------------------------------------------------------------------------------------


def spoil_file(name: str, content: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return spoil


def cut_short(data: Path) -> None:
    path = data / "images" / "00001.png"
    path.write_bytes(path.read_bytes()[:-40])


def first_entry(**changes: Any) -> Callable[[Path], None]:
    return lambda data: edit_index(data, lambda entries: entries[0].update(changes))


def only_train(data: Path) -> None:
    edit_index(data, lambda entries: [entry.update(split="train") for entry in entries])


BAD_DATA = {
    "missing folder": (shutil.rmtree, "does not exist"),
    "missing JSON": (lambda data: (data / INDEX).unlink(), "No dataset of a known layout"),
    "malformed JSON": (spoil_file(INDEX, b'{"images": ['), "is not valid JSON (line 1, column 13"),
    "other JSON": (spoil_file(INDEX, b"[1, 2]"), "has no list 'images'"),
    "absent image": (lambda data: (data / "images/00001.png").unlink(), "1 of 6 images"),
    "truncated image": (cut_short, "00001.png (truncated or damaged)"),
    "no image": (spoil_file("images/00001.png", b"<html>"), "00001.png (not an image of a known format)"),
    "empty image": (spoil_file("images/00001.png", b""), "00001.png (zero bytes)"),
    "empty split": (only_train, "There is no split 'val'"),
    "no captions": (first_entry(sentences=[]), "00000.png (no captions)"),
    "blank caption": (first_entry(sentences=[{"raw": "  "}]), "00000.png (caption 1 is blank)"),
    "caption not text": (first_entry(sentences=[{"raw": 5}]), "00000.png (caption 1 is not text)"),
    "name climbs out": (first_entry(filename="../../secret.png"), "'../../secret.png' leaves the folder"),
    "name with a line break": (first_entry(filename="a\nb.png"), "needs 'filename' as printable text"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_stop_training_with_one_sentence(name, data, tmp_path):
    spoil, expected = BAD_DATA[name]
    spoil(data)
    before = state_of(tmp_path)
    out, cache = tmp_path / "out", tmp_path / "cache"
    check_refusal(ucore("train", "--data", data, "--scale", "tiny", "--out", out, "--cache", cache), expected)
    assert state_of(tmp_path) == before


def test_without_any_data_the_ways_to_name_them_are_shown(tmp_path):
    before = state_of(tmp_path)
    check_refusal(ucore("train"), "--data FOLDER, or set UCORE_DATA")
    check_refusal(ucore("reproduce", "--data", tmp_path / "absent"), "absent does not exist")
    assert state_of(tmp_path) == before


BAD_OPTIONS = {
    "unknown encoder": (["--encoder", "ViT-B-33"], "Unknown encoder 'ViT-B-33'; did you mean 'ViT-B-32'?"),
    "encoder is a path": (["--encoder", "../ViT-B-32"], "Unknown encoder '../ViT-B-32'"),
    "weights for the bundled encoder": (["--pretrained", "a.pt"], "brings its own weights"),
    "missing weights": (["--encoder", "tiny-clip", "--pretrained", "absent.pt"], "no weight file at absent.pt"),
    "unknown tag": (["--encoder", "tiny-clip", "--pretrained", "laion"], "'laion' is neither a weight file"),
    "unknown scale": (["--scale", "tinny"], "Unknown scale 'tinny'"),
    "scale of another kind": (["-s", "scale=3"], "Unknown scale '3'"),
    "unknown setting": (["-s", "epochs=3"], "'epochs' is not a training setting; did you mean '"),
    "half a setting": (["-s", "head_epochs"], "write name=value"),
    "setting out of range": (["-s", "head_lr=7"], "head_lr is 7; it must be a number from 0 to 1"),
    "setting not a number": (["-s", "head_epochs=many"], "head_epochs is 'many'; it must be a whole number"),
    "nothing to train": (["-s", "head_epochs=0", "-s", "tune_epochs=0"], "nothing would be trained"),
    "seed out of range": (["--seed", "-1"], "seed is -1"),
    "unknown device": (["--device", "potato"], "Unknown device 'potato'"),
    "unsupported device": (["--device", "meta"], "'meta' is not supported"),
    "unknown domain": (["--domain", "spain"], "There is no domain 'spain'"),
    "out is a file": (["--out", "../file"], "is not a folder"),
    "out is below a file": (["--out", "../file/deep/er"], "is not a folder"),
    "cache is a file": (["--cache", "../file"], "is not a folder"),
}  # fmt: skip


@pytest.mark.usefixtures("tiny_clip")
@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_a_bad_option_stops_training_with_one_sentence(name, data, tmp_path):
    options, expected = BAD_OPTIONS[name]
    (tmp_path / "file").write_text("a file")
    before = state_of(tmp_path)
    base = {"--scale": "tiny", "--out": "../out", "--cache": "../cache"}
    given = [item for pair in base.items() if pair[0] not in options for item in pair]
    check_refusal(ucore("train", "--data", data, *given, *options), expected)
    assert state_of(tmp_path) == before


def test_cuda_is_refused_where_there_is_none(data, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_refusal(ucore("train", "--data", data, "--device", "cuda"), "torch finds no CUDA GPU here; use --device cpu")


def test_a_gpu_too_many_is_refused(data, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_refusal(ucore("train", "--data", data, "--device", "cuda:2"), "the GPUs here are cuda:0 to cuda:1")


class Evil:
    """Makes a folder when unpickled by code that runs what a pickle says."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.canary,)


def test_code_in_pretrained_weights_is_refused_and_not_run(data, tiny_clip, tmp_path):
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"weight": Evil(tmp_path / "canary")}, protocol=2))
    before = state_of(tmp_path)
    command = ("train", "--data", data, "--encoder", tiny_clip, "--pretrained", tmp_path / "evil.pt")
    check_refusal(ucore(*command, "--out", tmp_path / "out"), "holds more than weights (pickled code)")
    assert state_of(tmp_path) == before


def test_pretrained_weights_of_another_architecture_name_layers(data, tiny_clip, tmp_path):
    save_file({"visual.proj": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    before = state_of(tmp_path)
    command = ("train", "--data", data, "--encoder", tiny_clip, "--pretrained", tmp_path / "other.safetensors")
    check_refusal(ucore(*command, "--out", tmp_path / "out"), "visual.proj is (2, 2) where (64, 16) is needed")
    assert state_of(tmp_path) == before


def edit_card(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(checkpoint: Path) -> None:
        path = checkpoint / "encoder.json"
        card = json.loads(path.read_text())
        path.write_text(json.dumps(change(card) or card))

    return spoil


def new_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(checkpoint: Path) -> None:
        path = checkpoint / "model.safetensors"
        state = load_file(path)
        path.unlink()
        save_file(change(state) or state, path)

    return spoil


def cut_weights(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    content = path.read_bytes()[:100_000]
    path.unlink()
    path.write_bytes(content)


def evil_weights(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.unlink()
    path.write_bytes(pickle.dumps({"weight": Evil(checkpoint / "canary")}, protocol=2))


BAD_CHECKPOINTS = {
    "missing folder": (shutil.rmtree, "There is no checkpoint in"),
    "missing card": (lambda folder: (folder / "encoder.json").unlink(), "There is no checkpoint in"),
    "missing weights": (lambda folder: (folder / "model.safetensors").unlink(), "There is no weight file at"),
    "weights cut short": (cut_weights, "is cut short or not a safetensors file"),
    "pickled weights": (evil_weights, "is cut short or not a safetensors file"),
    "other weights": (new_weights(lambda state: {"conv.weight": torch.zeros(2)}), "another architecture (no "),
    "a layer too few": (new_weights(lambda state: state.pop("logit_scale") and None), "(no logit_scale);"),
    "NaN weights": (new_weights(lambda state: state["logit_scale"].fill_(torch.nan) and None), "NaN or infinite"),
    "card is not JSON": (spoil_file("encoder.json", b"{"), "encoder.json is damaged"),
    "card is a list": (edit_card(lambda card: [1]), "encoder.json is damaged"),
    "card of another format": (edit_card(lambda card: card.update(format=99)), "has format 99, this ucore reads 1"),
    "card without training": (edit_card(lambda card: card.pop("train") and None), "encoder.json is damaged"),
    "three views": (edit_card(lambda card: card["train"].update(test_views=3)), "encoder.json is damaged"),
    "unknown encoder": (edit_card(lambda card: card["encoder"].update(name="None")), "an encoder this ucore does not"),
    "encoder is a number": (edit_card(lambda card: card["encoder"].update(name=5)), "encoder.json is damaged"),
    "unknown head": (edit_card(lambda card: card["encoder"]["heads"].update(depth=5)), "encoder.json is damaged"),
    "head of text": (edit_card(lambda card: card["encoder"]["heads"].update(hidden="x")), "encoder.json is damaged"),
    "endless head": (edit_card(lambda card: card["encoder"]["heads"].update(hidden=10**15)), "encoder.json is damaged"),
    "no temperature": (edit_card(lambda card: card["encoder"]["heads"].update(temperature=0)), "json is damaged"),
    "narrow head": (edit_card(lambda card: card["encoder"]["heads"].update(hidden=8)), "another architecture (image_"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_a_bad_checkpoint_is_one_sentence(name, data, checkpoint, tmp_path):
    spoil, expected = BAD_CHECKPOINTS[name]
    spoil(checkpoint)
    before = state_of(tmp_path)
    command = ("eval", "--checkpoint", checkpoint, "--data", data, "--out", tmp_path / "new" / "scores.npz")
    check_refusal(ucore(*command), expected)
    assert state_of(tmp_path) == before


BAD_EVALUATIONS = {
    "unknown split": (["--split", "exam"], "There is no split 'exam'"),
    "out is no npz": (["--out", "../scores.csv"], "must be a file name that ends in .npz"),
    "out is a folder": (["--out", "../folder.npz"], "must be a file name that ends in .npz"),
    "out is below a file": (["--out", "../file/scores.npz"], "is not a folder"),
    "three views": (["--views", "3"], "--views is 3; choose 1, 2, 4 or 8"),
    "train images are gone": (["--split", "train"], "4 of 4 images"),
}


@pytest.mark.parametrize("name", BAD_EVALUATIONS)
def test_a_bad_option_stops_an_evaluation_with_one_sentence(name, data, run, tmp_path):
    options, expected = BAD_EVALUATIONS[name]
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder.npz").mkdir()
    for number in range(4):
        (data / "images" / f"{number:05d}.png").unlink()
    out = [] if "--out" in options else ["--out", "../scores.npz"]
    before = state_of(tmp_path)
    check_refusal(ucore("eval", "--checkpoint", run.folder, "--data", data, *out, *options), expected)
    assert state_of(tmp_path) == before


def test_an_unknown_notebook_is_refused(tmp_path):
    before = state_of(tmp_path)
    check_refusal(ucore("run", "77", "--out", tmp_path / "out"), "There is no notebook '77'")
    assert state_of(tmp_path) == before


# --- the installed command ----------------------------------------------------------------------------------


def test_the_installed_command_stops_with_one_sentence_and_status_2(tmp_path):
    command = [Path(sys.executable).with_name("ucore"), "train", "--data", tmp_path / "absent"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"ucore: The dataset folder {tmp_path / 'absent'} does not exist.")
    assert len(result.stderr.splitlines()) == 1


def test_help_names_every_command():
    outcome = ucore("--help")
    assert outcome.status == 0
    for command in ("train", "eval", "run", "reproduce"):
        assert command in outcome.out
