import dataclasses
import json

import pytest

from ucore.config import ModelConfig, TrainConfig, did_you_mean
from ucore.errors import ConfigError
from ucore.notebooks import parse_parameters


def refusal(**settings) -> str:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_dict(settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- presets ------------------------------------------------------------------------------------------------


def test_small_is_the_defaults():
    assert TrainConfig.at("small") == TrainConfig()
    assert TrainConfig().scale == "small"


def test_tiny_trains_heads_only_on_part_of_the_data():
    tiny = TrainConfig.at("tiny")
    assert (tiny.scale, tiny.tune_epochs, tiny.max_train_images) == ("tiny", 0, 1500)
    assert tiny.head_epochs > 0


def test_full_tunes_every_stage_for_longer():
    full = TrainConfig.at("full")
    assert (full.scale, full.frozen_image_stages, full.max_train_images) == ("full", 0, None)
    assert full.tune_epochs > TrainConfig().tune_epochs


@pytest.mark.parametrize("scale", ["tiny", "small", "full"])
def test_an_override_changes_one_setting_and_wins_over_the_preset(scale):
    plain, changed = TrainConfig.at(scale).to_dict(), TrainConfig.at(scale, tune_epochs=3, margin=0.1).to_dict()
    assert {**plain, "tune_epochs": 3, "margin": 0.1} == changed


@pytest.mark.parametrize(("scale", "hint"), [("tinny", "did you mean 'tiny'?"), ("gigantic", "tiny, small or full")])
def test_an_unknown_scale_is_refused(scale, hint):
    with pytest.raises(ConfigError, match=f"Unknown scale '{scale}'") as caught:
        TrainConfig.at(scale)
    assert hint in str(caught.value)


def test_the_papers_method_is_one_more_dial_and_an_override_still_wins():
    paper = TrainConfig.at("tiny", method="paper")
    assert (paper.loss, paper.margin, paper.segments, paper.segment_count) == ("triplet", 0.2, "mean", 5)
    assert (paper.segment_background, paper.train_views, paper.test_views, paper.augmentation) == (
        "white",
        1,
        1,
        "flip",
    )
    assert paper.ema == paper.label_smoothing == paper.weight_decay == 0
    assert (paper.scale, paper.max_train_images) == ("tiny", 1500)
    assert TrainConfig.at("small", method="paper", loss="clip", segments="late").segments == "late"
    assert TrainConfig.at("small", method="ucore") == TrainConfig.at("small")
    with pytest.raises(ConfigError, match=r"Unknown method 'papr': choose paper or ucore; did you mean 'paper'\?"):
        TrainConfig.at("small", method="papr")


def test_a_method_that_needs_masks_says_how_to_get_them_or_do_without():
    with pytest.raises(ConfigError, match=r"method=paper .* run ucore segment, .* --segments; or .* -s segments=none"):
        TrainConfig.at("tiny", method="paper").require_masks(False)
    TrainConfig.at("tiny", method="paper").require_masks(True)
    TrainConfig.at("tiny", method="paper", segments="none").require_masks(False)
    TrainConfig.at("tiny").require_masks(False)


# --- names and values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"), [("head_epoch", "head_epochs"), ("hed_lr", "head_lr"), ("label_smooting", "label_smoothing")]
)
def test_an_unknown_setting_is_refused_with_a_suggestion(name, meant):
    assert refusal(**{name: 1}) == f"{name!r} is not a training setting; did you mean {meant!r}?"


def test_a_name_like_no_other_gets_no_suggestion():
    assert refusal(zzz=1) == "'zzz' is not a training setting"
    assert did_you_mean("zzz", ["head_lr"]) == ""
    assert did_you_mean("head_Ir", ["head_lr", "text_lr"]) == "; did you mean 'head_lr'?"


NONSENSE = [
    (field.name, value)
    for field in dataclasses.fields(TrainConfig)
    for value in (-1, "many", True, [1], float("nan"), 1e12)
    if (field.name, value is True) != ("compile", True)  # a switch may be on
]


@pytest.mark.parametrize(("name", "value"), NONSENSE)
def test_no_setting_takes_nonsense(name, value):
    message = refusal(**{name: value})
    assert message.startswith(f"{name} is {value!r}; ")


INT_SETTINGS = [
    *("seed", "head_epochs", "head_batch_size", "tune_epochs", "tune_batch_size"),
    *("frozen_image_stages", "patience", "train_views", "test_views", "max_train_images"),
]


@pytest.mark.parametrize("name", INT_SETTINGS)
def test_counts_are_whole_numbers(name):
    assert refusal(**{name: 2.0}).startswith(f"{name} is 2.0; ")
    assert getattr(TrainConfig.at("small", **{name: 2}), name) == 2


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("head_batch_size", 2, 1),
        ("label_smoothing", 0, 1),
        ("margin", 10, 10.01),
        ("warmup", 1, 1.01),
        ("ema", 0.99999, 1),
        ("min_crop", 0.05, 0.04),
        ("patience", 1, 0),
        ("head_lr", 1, 1.01),
        ("max_train_images", 2, 1),
        ("test_views", 4, 3),
        ("soft_share", 0.5, 0.51),
        ("hard_share", 0.9, 0.91),
        ("description_share", 1, 1.01),
        ("seed", 2**31 - 1, 2**31),
    ],
)
def test_limits_are_inside(name, inside, outside):
    assert getattr(TrainConfig.at("small", **{name: inside}), name) == inside
    assert refusal(**{name: outside}).startswith(f"{name} is {outside}; ")


def test_all_images_are_taken_where_no_number_is_given():
    assert TrainConfig.at("tiny", max_train_images=None).max_train_images is None


def test_none_of_the_command_line_means_no_segments():
    assert TrainConfig.at("tiny", method="paper", **parse_parameters(["segments=none"])).segments == "none"


def test_a_training_without_epochs_is_refused():
    assert "nothing would be trained" in refusal(head_epochs=0, tune_epochs=0)
    assert "nothing would be trained" not in refusal(head_epochs=0, tune_epochs=0, loss="l2")
    assert TrainConfig.at("small", head_epochs=0).tune_epochs > 0


# --- round trip ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["tiny", "small", "full"])
def test_settings_survive_json(scale):
    config = TrainConfig.at(scale, seed=7, loss="triplet")
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().seed = 1  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().hidden = 1  # pyright: ignore[reportAttributeAccessIssue]
