"""A study: settings as arms, runs kept by content, a stopped study goes on, rows that hold what was measured."""

import dataclasses
import json

import numpy as np
import pytest

from ucore import ablations
from ucore.ablations import ARMS, BASE, Study, report_rows, save_table
from ucore.comparison import seeded_difference
from ucore.config import TrainConfig
from ucore.data import read_dataset
from ucore.errors import ConfigError
from ucore.evaluate import METRICS, metrics_from_ranks
from ucore.segments import segment_dataset
from ucore.train import Trainer

SHORT = dict(head_epochs=2, head_batch_size=8, patience=9)


@pytest.fixture(scope="module")
def parts(tiny_rsicd):
    manifest = read_dataset(tiny_rsicd, split=("train", "val"))
    return manifest.split("train"), manifest.split("val")


@pytest.fixture(scope="module")
def shared(parts, tmp_path_factory):
    """Cached features and segments that all studies here share."""
    folder = tmp_path_factory.mktemp("shared")
    for part in parts:
        store = segment_dataset(part, "slic", folder / "segments", workers=1, progress=False)
    return folder / "features", store


@pytest.fixture
def new_study(parts, shared, tiny_clip_factory, tmp_path):
    def make(store=None, **changes):
        given = {"progress": False, **SHORT, **changes}
        return Study(tiny_clip_factory(), *parts, out=tmp_path / "runs", cache=shared[0], store=store, **given)

    return make


def files(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "runs").glob("*"))


def test_a_run_of_other_heads_is_another_run(new_study, tmp_path):
    new_study().run("ema=0", 3)
    other = new_study()
    other.encoder.config = dataclasses.replace(other.encoder.config, dropout=0.0)
    Study(other.encoder, other.train, other.val, out=tmp_path / "runs", cache=other.cache, progress=False,
          **SHORT).run("ema=0", 3)  # fmt: skip
    assert len(files(tmp_path)) == 2


def test_a_run_is_kept_and_what_was_stopped_makes_only_what_is_missing(new_study, tmp_path, monkeypatch):
    first = new_study().run("ema=0", 3)
    kept = files(tmp_path)
    assert len(kept) == 1
    with monkeypatch.context() as patched:
        patched.setattr(ablations, "Trainer", lambda *_: pytest.fail("trained again"))
        again = new_study().run("ema=0", 3)
    assert all(np.array_equal(a, b) for a, b in zip(first.ranks, again.ranks, strict=True))
    assert again.seconds == first.seconds
    trained = []
    monkeypatch.setattr(ablations, "Trainer", lambda *args: trained.append(args[3].seed) or Trainer(*args))
    (tmp_path / "runs" / kept[0]).write_text("{")  # cut short by hand: made again
    new_study().table(["ema=0"], [3, 4])
    assert trained == [3, 3, 4, 4]  # base and arm of both seeds
    assert len(files(tmp_path)) == 4
    new_study(head_epochs=1).run("ema=0", 3)
    assert len(files(tmp_path)) == 5


@pytest.mark.parametrize("seconds", [float("nan"), -1e300, float("inf"), None, "soon"])
def test_a_kept_run_with_impossible_seconds_is_made_again(tmp_path, seconds):
    kept = {"image_to_text": [0, 1], "text_to_image": [2]}
    for value in (3, seconds):
        (tmp_path / "arm.json").write_text(json.dumps({**kept, "seconds": value}))
        run = ablations._read(tmp_path / "arm.json")
        assert (run is None) == (value != 3)


def test_the_kept_ranks_are_those_of_the_weights_the_trainer_chose(new_study, parts, shared, tiny_clip_factory):
    import torch

    run = new_study().run(BASE, 5)
    torch.manual_seed(5)
    encoder = tiny_clip_factory()
    encoder.new_heads()
    config = TrainConfig.at("tiny", tune_epochs=0, seed=5, **SHORT)
    best = Trainer(encoder, *parts, config, cache=shared[0], progress=False).fit()
    assert metrics_from_ranks(*run.ranks) == {name: best[name] for name in METRICS}


def test_a_table_compares_every_arm_with_the_base_of_the_same_seeds(new_study, parts, tmp_path):
    study = new_study()
    rows = study.table(["head_lr=0", "ema=0,label_smoothing=0"], [0, 1])
    assert [row["arm"] for row in rows] == [BASE, "head_lr=0", "ema=0,label_smoothing=0"]
    assert "difference" not in rows[0]
    ranks = {arm: [study.run(arm, seed).ranks for seed in (0, 1)] for arm in (BASE, "head_lr=0")}
    expected = seeded_difference(ranks["head_lr=0"], ranks[BASE], parts[1].texts[1])
    assert (rows[1]["difference"], rows[1]["low"], rows[1]["high"]) == expected
    assert rows[1]["mR"] == pytest.approx(np.mean(rows[1]["mR_seeds"]))
    assert rows[1]["mR"] - rows[0]["mR"] == pytest.approx(rows[1]["difference"])
    reported = {(row["label"], row["metric"]): row for row in report_rows(rows, 40)}
    assert reported["head_lr=0", "mR_difference"]["low"] == rows[1]["low"]
    assert (BASE, "mR_difference") not in reported
    shown = save_table(rows, tmp_path / "table.csv")
    assert shown["arm"].tolist() == [row["arm"] for row in rows]
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 4


def test_segments_are_one_more_setting(new_study, shared, tmp_path):
    study = new_study(shared[1])
    assert study.config(BASE).segments == "late"
    rows = study.table(["segments=none", "segments=mean,segment_count=2", "image_segment_weight=1"], [0])
    assert len({(*row["mR_seeds"], row["image_to_text_R@1"]) for row in rows}) > 1
    settings = [json.loads((tmp_path / "runs" / name).read_text())["settings"]["segments"] for name in files(tmp_path)]
    assert sorted(settings) == ["late", "late", "mean", "none"]


def test_what_the_data_do_not_allow_is_named(new_study, shared):
    study = new_study()
    assert study.lacking("segments=mean") == "there are no segments"
    assert study.lacking("segment_share=0.5") == "it changes nothing without segments"
    assert study.lacking("description_share=0.3") == "no training image has a description"
    assert study.lacking("ema=0") == ""
    with pytest.raises(ConfigError, match="The arm segments=mean cannot be run: there are no segments; leave it out"):
        study.table(["segments=mean"], [0])
    with pytest.raises(ConfigError, match="did you mean 'ema'"):
        study.table(["emma=0"], [0])
    with pytest.raises(ConfigError, match="at least one, each once"):
        study.table(["ema=0"], [1, 1])
    assert [arm for arm in ARMS if new_study(shared[1]).lacking(arm)] == [
        "soft_share=0.1,soft_tags=0.5", "description_share=0.3"]  # fmt: skip
