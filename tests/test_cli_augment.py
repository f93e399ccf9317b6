"""The commands of the augmentation stage as a user types them, on pictures of three grounds with a shape on each."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import ucore
from makers import make_rsicd

from ucore.data import read_dataset
from ucore.manifest import subset
from ucore.segment_store import SegmentStore


def refusal(*arguments: Any) -> str:
    """The one sentence of a command that must fail."""
    outcome = ucore(*arguments)
    assert outcome.status == 2 and outcome.err.startswith("ucore: "), outcome
    assert len(outcome.err.splitlines()) == 1 and "Traceback" not in outcome.err
    return outcome.err


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> None:
    """No default dataset, and a current folder in which nothing is expected to appear."""
    monkeypatch.delenv("UCORE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def test_segment_writes_a_store_and_goes_on(tiny_rsicd, tmp_path):
    out = tmp_path / "out"
    command = ("segment", "--data", tiny_rsicd, "--generator", "felzenszwalb", "--workers", 1, "--out", out)
    first = ucore(*command, "--limit", 3)
    assert first.status == 0, first.err
    assert first.out.startswith("3 images in ") and "holds 3," in first.out
    (folder,) = (tmp_path / "out").iterdir()
    assert first.out.endswith(f"Masks: {folder}\n") and folder.name.startswith("felzenszwalb-")
    parts = {path.name: path.read_bytes() for path in folder.glob("part-*.parquet")}
    second = ucore(*command, "--split", "val")
    assert second.out.startswith("8 images in ") and "holds 11," in second.out
    assert {name: (folder / name).read_bytes() for name in parts} == parts  # nothing is done twice
    store = SegmentStore(folder)
    for sample in read_dataset(tiny_rsicd, split="val").frame["sample_id"]:
        assert store.load(sample).size == (64, 64)


def test_caption_writes_a_dataset_that_is_read_again(tiny_rsicd, tmp_path):
    data = tmp_path / "data"
    tagged = subset(read_dataset(tiny_rsicd), 4)
    tagged.frame["tags"] = [["building=school", "highway=residential"], ["natural=water"], ["landuse=forest"], []]
    tagged.save(data / "manifest.parquet")
    outcome = ucore("caption", "--data", data, "--captioner", "tags", "--out", tmp_path / "out")
    assert outcome.status == 0, outcome.err
    assert outcome.out.startswith("4 images: 3 kept, ") and "4 were written in this call" in outcome.out
    (folder,) = (tmp_path / "out").iterdir()
    assert outcome.out.endswith(f"report.json: {folder}\n")
    written = read_dataset(folder).frame
    assert "school" in written["description"][0] and list(written["captions"]) == list(tagged.frame["captions"])
    assert json.loads((folder / "report.json").read_text())["images"] == 4
    again = ucore("caption", "--data", data, "--captioner", "tags", "--out", tmp_path / "out")
    assert "0 were written in this call." in again.out


def test_mistakes_are_told_in_one_sentence_and_write_nothing(tiny_rsicd, tmp_path):
    data = ("--data", tiny_rsicd)
    assert "does not exist" in refusal("segment", "--data", tmp_path / "nowhere")
    assert "--limit is 0" in refusal("segment", *data, "--limit", 0)
    assert "There is no split 'valid'" in refusal("caption", *data, "--split", "valid")
    assert "felzenszwalb" in refusal("segment", *data, "--generator", "felzenswalb")
    assert "sam.pth" in refusal("segment", *data, "--generator", f"vit_h:{tmp_path / 'sam.pth'}")
    assert "--exact" in refusal("segment", *data, "--generator", "slic", "--exact")
    assert str(tmp_path / "model") in refusal("caption", *data, "--captioner", tmp_path / "model")
    assert "--unlike is 1.0" in refusal("caption", *data, "--like", tmp_path, "--unlike", 1)
    assert str(tmp_path / "run") in refusal("caption", *data, "--like", tmp_path / "run")
    (tmp_path / "file").touch()
    assert "is not a folder" in refusal("segment", *data, "--out", tmp_path / "file" / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


def test_an_address_needs_the_engine_that_has_addresses(tiny_rsicd, tmp_path):
    command = ("segment", "--data", tiny_rsicd, "--generator", "slic", "--out", tmp_path / "out")
    assert "add --engine ray" in refusal(*command, "--address", "auto")


@pytest.mark.parametrize(
    ("command", "stage"),
    [("segment", "ucore.segments.segment_dataset"), ("caption", "ucore.captions.caption_dataset")],
)
def test_ctrl_c_says_how_to_go_on(tiny_rsicd, tmp_path, monkeypatch, command, stage):
    def stopped(*arguments: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, stopped)
    out = tmp_path / "out"
    assert f"kept in {out}: repeat the command to go on" in refusal(command, "--data", tiny_rsicd, "--out", out)


def test_unreadable_images_stop_the_command_unless_they_are_left_out(tmp_path):
    data = make_rsicd(tmp_path / "data", 3, 1, 1)
    (data / "images" / "00001.png").write_bytes(b"no picture")
    command = ("segment", "--data", data, "--generator", "felzenszwalb", "--workers", 1, "--out", tmp_path / "out")
    assert "00001.png" in refusal(*command)
    with pytest.warns(UserWarning, match=r"00001\.png"):
        outcome = ucore(*command, "--skip-bad")
    assert outcome.status == 0 and outcome.out.startswith("4 images in ")


def test_training_commands_pass_their_settings_on(tiny_rsicd, tmp_path, monkeypatch):
    calls: dict[str, Any] = {}
    monkeypatch.setattr(
        "ucore.simulate.simulate_dataset", lambda out, config: calls.setdefault("sets", []).append(config)
    )
    monkeypatch.setattr(
        "ucore.micro_sam_data.training_sources", lambda *given: calls.update(sources=given) or ["source"]
    )
    monkeypatch.setattr("ucore.micro_sam_train.train_micro", lambda *given: calls.update(sam=given) or "weights")
    monkeypatch.setattr(
        "ucore.micro_captioner_train.train_micro", lambda *given: calls.update(captioner=given) or "model"
    )
    out = tmp_path / "out"
    outcome = ucore(
        "segments", "train-micro", "--data", tiny_rsicd, "--out", out, "--tiles", 7, "--steps", 3, "--seed", 2
    )
    assert outcome == (0, "Weights: weights\n", "")
    assert [(config.tiles, config.sensor) for config in calls["sets"]] == [(7, "shared"), (7, "per-country")]
    assert len({config.seed for config in calls["sets"]}) == 2
    assert calls["sources"][:2] == ([out / "simulated-shared", out / "simulated-per-country"], (Path(tiny_rsicd),))
    assert calls["sam"][:2] == (["source"], out) and (calls["sam"][2].steps, calls["sam"][2].seed) == (3, 2)
    outcome = ucore("captions", "train-micro", "--out", out, "--steps", 3, "--skip-bad")
    assert outcome.status == 0 and outcome.out.startswith("Model: model")
    assert calls["captioner"][:2] == (out, ()) and calls["captioner"][2].steps == 3 and calls["captioner"][4]
    assert ucore("segments", "train-mikro").status == 2
    told = refusal("segments", "train-micro", "--data", tiny_rsicd, "--data", tiny_rsicd, "--out", out)
    assert "--data is given twice" in told


def test_an_address_where_nobody_answers_leaves_nothing_behind(tiny_rsicd, tmp_path):
    out = tmp_path / "out"
    message = refusal("caption", "--data", tiny_rsicd, "--captioner", "http://127.0.0.1:9/v1:llava", "--out", out)
    assert "No captioner answers at http://127.0.0.1:9/v1" in message
    assert not list(out.glob("*"))


def test_segments_are_trained_with_and_scored(tiny_rsicd, tmp_path):
    out, run = tmp_path / "segments", tmp_path / "run"
    told = ucore("segment", "--data", tiny_rsicd, "--generator", "felzenszwalb", "--workers", 1, "--out", out)
    masks = told.out.rpartition("Masks: ")[2].strip()
    quick = ("--scale", "tiny", "-s", "head_epochs=1", "--out", run, "--cache", tmp_path / "features")
    trained = ucore("train", "--data", tiny_rsicd, "--segments", masks, *quick)
    assert trained.status == 0, trained.err
    card = json.loads((run / "encoder.json").read_text("utf-8"))
    assert card["train"]["segments"] == "late"
    scored = ("eval", "--checkpoint", run, "--data", tiny_rsicd, "--split", "val", "--out", tmp_path / "scores.npz")
    assert "--segments" in refusal(*scored)
    again = ucore(*scored, "--segments", masks)
    assert again.status == 0, again.err
    found = json.loads((tmp_path / "metrics.json").read_text("utf-8"))
    validation = json.loads((run / "validation.json").read_text("utf-8"))
    rows = [[(row["metric"], row["value"]) for row in part["metrics"] if row["label"] == label]
            for part, label in ((found, "checkpoint"), (validation, "hubs corrected"))]  # fmt: skip
    assert rows[0] == rows[1] and len(rows[0]) > 6
    assert "--segments" in refusal("train", "--data", tiny_rsicd, "-s", "segments=mean", *quick[:-4], "--out", out)
    judged = ucore("caption", "--data", tiny_rsicd, "--captioner", "micro", "--split", "train", "--like", run,
                   "--unlike", 0.5, "--workers", 1, "--out", tmp_path / "captions")  # fmt: skip
    assert judged.status == 0 and "texts were least like their images and were left out." in judged.out, judged.err
    (folder,) = (tmp_path / "captions").iterdir()
    left_out = set(json.loads((folder / "report.json").read_text("utf-8"))["unlike"])
    described = read_dataset(folder).frame
    assert 0 < len(left_out) < len(described)
    assert not any(described["description"][described["sample_id"].isin(list(left_out))])
