"""Adaptation: what a step sees of both domains, that resuming equals never stopping, and that it helps."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import ucore
from makers import make_rsicd
from PIL import Image

from ucore.adapt import Adapter, _centres
from ucore.adapt_config import METHODS, AdaptConfig
from ucore.adversary import gradient_penalty, reversal_strength
from ucore.checkpoint import load_checkpoint
from ucore.cli_adapt import collapsed, refuse_shared, target_parts, warn_of_trained
from ucore.data import read_dataset
from ucore.duplicates import same_pictures
from ucore.errors import ConfigError, DataError, UserError
from ucore.manifest import Manifest

SMALL: dict[str, Any] = dict(head_epochs=3, head_batch_size=8, target_batch_size=4, train_views=2, test_views=1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def new_adapter(sides, cache, tiny_clip_factory):
    def make(method="paper", out=None, **changes):
        config = AdaptConfig.of(method, **{**SMALL, **changes})
        return Adapter(tiny_clip_factory(), *sides, config, out, cache, progress=False)

    return make


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("paper", {}),
        ("paper", {"curriculum": "density"}),
        ("cdan", {"regime": "paired", "shots": 3}),
        ("ucore", {"pseudo_start": 0.0}),
    ],
)
def test_resuming_equals_never_stopping(new_adapter, tmp_path, method, changes):
    whole = new_adapter(method, **changes)
    whole.fit()
    broken = new_adapter(method, tmp_path, **changes)
    for stop in (1, 3, 2):
        for _ in range(stop):
            broken.step()
        broken.save()
        broken = new_adapter(method, tmp_path, **changes)
        assert broken.resume()
    broken.fit()
    assert [row["loss"] for row in whole.history] == [row["loss"] for row in broken.history]
    assert whole.best == broken.best
    for mine, theirs in zip(whole.encoder.state_dict().values(), broken.encoder.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_every_method_makes_its_parts_of_the_loss(new_adapter):
    expected = {
        "source-only": {"image_text"}, "dann": {"image_text", "adversarial"}, "cdan": {"image_text", "adversarial"},
        "coral": {"image_text", "coral"}, "mmd": {"image_text", "mmd"},
        "paper": {"image_text", "adversarial", "triplet"}, "ucore": {"image_text", "matched"},
        "target-only": {"target_pairs"}, "joint": {"image_text", "target_pairs"},
    }  # fmt: skip
    assert set(expected) == set(METHODS)
    for method, parts in expected.items():
        adapter = new_adapter(method, pseudo_start=0.0, head_batch_size=8)
        result = adapter.step()
        assert set(result.parts) == parts, method
        assert result.loss == pytest.approx(sum(result.parts.values())) and np.isfinite(result.loss)


def test_alike_texts_are_no_positives_of_the_triplet(new_adapter):
    hard, soft = (new_adapter("paper", soft_share=share, head_batch_size=8).step().parts for share in (0.0, 0.2))
    assert soft["triplet"] == pytest.approx(hard["triplet"], rel=1e-4) and hard["triplet"] > 0


def test_the_curriculum_grows_with_the_cycles_through_the_target(new_adapter):
    adapter = new_adapter("paper", head_batch_size=10, target_batch_size=4, head_epochs=10)
    phase, kept = adapter.phase, []
    for step in range(15):
        phase.step_count = step
        rows, texts = phase.next_batch()
        assert len(rows) == len(texts) == len(phase.source_weights)
        kept.append(len(rows))
        assert phase.source_weights.sum().item() == pytest.approx(1)
        assert phase.target_weights.sum().item() == pytest.approx(1)
    assert kept == [2] * 3 + [4] * 3 + [6] * 3 + [8] * 3 + [10] * 3  # 12 images in batches of 4: a cycle is 3 steps


def test_a_curriculum_that_cannot_grow_to_its_end_is_told_of(new_adapter):
    with pytest.warns(
        UserWarning, match="ends at 80% of the source: 10 steps are 3 whole passes through the 12 images"
    ):
        new_adapter("paper", head_batch_size=10, target_batch_size=4, epoch_steps=1, head_epochs=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new_adapter("paper", head_batch_size=10, target_batch_size=4, epoch_steps=1, head_epochs=13)
        new_adapter("dann", head_batch_size=10, target_batch_size=4, epoch_steps=1, head_epochs=1)


def test_unpaired_images_and_texts_are_drawn_apart_and_pairs_together(new_adapter, sides):
    owner = sides[1].texts[1]
    apart, together = new_adapter("dann").phase, new_adapter("joint", shots=3).phase
    matches = []
    for step in range(6):
        apart.step_count = together.step_count = step
        images, texts = apart._draw_target()
        matches += (owner[texts] == images).tolist()
        images, texts = together._draw_pairs()
        assert (owner[texts] == images).all() and set(images) == set(together.trainer.known) and len(images) == 3
    assert np.mean(matches) < 0.5
    seen = []
    for step in range(3):
        apart.step_count = step
        seen += apart._draw_target()[0].tolist()
    assert sorted(seen) == list(range(12))


def test_known_pairs_are_certain_in_the_matching_and_nothing_else_is_their_images(new_adapter, sides):
    adapter = new_adapter("ucore", regime="paired", shots=4, pseudo_start=0.0)
    assert set(adapter.step().parts) == {"image_text", "target_pairs", "matched"}
    owner, known = sides[1].texts[1], adapter.known
    chances = adapter.phase._matching[1].numpy()
    for image in known:
        assert chances[image][owner == image].sum() == pytest.approx(1, abs=1e-3)
    of_known = np.isin(owner, known)
    assert chances[np.setdiff1d(range(len(chances)), known)][:, of_known].max() < 1e-3


def test_weights_are_chosen_by_what_is_asked_for(new_adapter):
    by = {}
    for choice in ("return_probability", "mR", "last"):
        adapter = new_adapter("source-only", choose_by=choice)
        best = adapter.fit()
        rows = [row["metrics"] for row in adapter.history if "metrics" in row]
        assert best[choice] == max(row[choice] for row in rows)
        by[choice] = best
    assert by["last"]["epoch"] == 3
    with pytest.raises(ConfigError, match="shots needs the regime paired"):
        AdaptConfig.of("ucore", shots=5)


def test_matching_gives_soft_pairs_of_the_target_from_the_epoch_on_that_is_set(new_adapter):
    adapter = new_adapter("ucore", head_epochs=4, pseudo_start=0.5)
    phase = adapter.phase
    for _ in range(2 * phase.batches_per_epoch):
        assert "matched" not in adapter.step().parts
    result = adapter.step()
    assert result.parts["matched"] > 0
    rows, images, texts, chances, _ = phase.pseudo_features()
    assert len(rows) == len(images)
    assert chances.shape == (len(images), len(texts)) and chances.min() >= 0 and chances.max() <= 1
    epoch, matching = phase._matching
    assert epoch == 2 and torch.allclose(matching.sum(1), torch.ones(12))
    adapter.fit()
    assert 0 <= adapter.history[-1]["metrics"]["matching_precision"] <= 100


def test_the_adversary_pushes_heads_and_discriminators_apart(new_adapter, monkeypatch):
    """The heads ascend what the discriminators descend: the same gradient with the other sign, of other weights."""

    def gradient(reverse: bool) -> torch.Tensor:
        adapter = new_adapter("dann", adversarial_weight=1.0)
        phase = adapter.phase
        phase.discriminators.eval(), adapter.encoder.eval()
        phase.step_count = phase.epochs * phase.batches_per_epoch  # full strength
        with monkeypatch.context() as patch:
            if not reverse:
                patch.setattr("ucore.adapt_phase.reverse_gradient", lambda features, strength: features)
            rows, texts = phase.next_batch()
            phase.adversarial(phase.forward(rows, texts), phase.target_features()).backward()
        assert all(part.grad is None and part.requires_grad for part in phase.discriminators.parameters())
        return adapter.encoder.image_head.contract.weight.grad.clone()

    reversed_head, plain_head = gradient(True), gradient(False)
    assert torch.allclose(reversed_head, -reversal_strength(1.0) * plain_head, rtol=1e-4, atol=1e-8)
    assert plain_head.abs().max() > 0


def test_a_step_that_is_stopped_behind_the_discriminators_is_made_again_from_before(new_adapter, tmp_path, monkeypatch):
    whole, stopped = new_adapter("dann"), new_adapter("dann", out=tmp_path / "run")
    whole.fit()
    for _ in range(2):
        stopped.step()
    phase = stopped.phase

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(phase, "adversarial", stop)
        with pytest.raises(UserError, match="Stopped at step 2 of"):
            stopped.fit()
    shutil.copytree(tmp_path / "run", tmp_path / "copy")  # two runs in one folder would stop each other
    resumed = new_adapter("dann", out=tmp_path / "copy")
    assert resumed.resume() and resumed.step_count == 2
    for one in (resumed, stopped):  # another process, and the same one
        one.fit()
        for name, weights in whole.best_state.items():
            assert torch.equal(one.best_state[name], weights), name


def test_the_discriminators_learn_from_features_that_stand_still(new_adapter):
    adapter = new_adapter("dann", adversary_steps=20, gradient_penalty=0.0)
    phase = adapter.phase
    adapter.encoder.eval(), phase.discriminators.eval()
    features = phase.forward(*phase.next_batch()), phase.target_features()
    before = phase.adversarial(*features).item()
    phase.judge(*features)
    assert phase.adversarial(*features).item() < 0.9 * before
    assert all(part.grad is None for part in adapter.encoder.parameters())
    assert adapter.step().parts["adversarial"] >= 0


def test_a_penalty_keeps_the_discriminators_smooth(new_adapter):
    steepness = []
    for weight in (0.0, 1.0):
        phase = new_adapter("dann", adversary_steps=60, gradient_penalty=weight).phase
        torch.manual_seed(0)
        features = phase.forward(*phase.next_batch()), phase.target_features()
        phase.judge(*features)
        images = torch.cat([of_domain[0] for of_domain in features]).detach().requires_grad_()
        steepness.append(gradient_penalty(phase.logits("image", images), images, len(features[0][0])).item())
    assert steepness[1] < 0.5 * steepness[0]


def test_features_of_the_target_are_computed_where_something_aligns_them(new_adapter, monkeypatch):
    monkeypatch.setattr("ucore.adapt_phase.AdaptPhase.target_features", lambda self: 1 / 0)
    for method in ("source-only", "ucore", "joint"):
        assert not AdaptConfig.of(method).aligns and np.isfinite(new_adapter(method).step().loss)
    for method in ("dann", "cdan", "coral", "mmd", "paper"):
        assert AdaptConfig.of(method).aligns
        with pytest.raises(ZeroDivisionError):
            new_adapter(method).step()


def test_cdan_maps_wide_products_and_resumes_with_the_same_map(new_adapter, monkeypatch, tmp_path):
    narrow = new_adapter("cdan").phase
    assert narrow.discriminators["image"].layers[0].in_features == 16 * narrow.encoder.embed_dim
    for name, value in {"WIDEST": 8, "MAP_WIDTH": 24}.items():
        monkeypatch.setattr(f"ucore.adapt_phase.{name}", value)
    whole, broken = new_adapter("cdan"), new_adapter("cdan", tmp_path)
    assert whole.phase.discriminators["text"].layers[0].in_features == 24
    whole.fit()
    broken.step(), broken.save()
    broken = new_adapter("cdan", tmp_path)
    assert broken.resume() and broken.step() is not None
    broken.fit()
    assert [row["loss"] for row in whole.history] == [row["loss"] for row in broken.history]


def test_fewer_texts_than_clusters_are_their_own_centres(recwarn):
    three = torch.eye(5)[[0, 1, 2, 1, 0, 2, 2]].numpy()
    centres = _centres(three, seed=0)
    assert centres.shape == (16, 5) and set(centres.argmax(1).tolist()) == {0, 1, 2} and not len(recwarn)
    assert torch.allclose(centres.max(1).values, torch.ones(16))


def test_weights_are_chosen_without_the_targets_pairs(new_adapter):
    adapter = new_adapter("ucore", head_epochs=4, choose_by="return_probability")
    adapter.fit()
    rows = [row["metrics"]["return_probability"] for row in adapter.history if "metrics" in row]
    assert adapter.best["return_probability"] >= max(rows) - 1e-9
    assert {"mR", "return_probability"} <= set(adapter.best)


def test_a_run_from_another_checkpoint_is_refused(new_adapter, tmp_path):
    new_adapter(out=tmp_path).save()
    other = new_adapter(out=tmp_path)
    assert other.resume()
    with torch.no_grad():
        changed = new_adapter(out=tmp_path).encoder
        changed.image_head.contract.bias.add_(1)
    again = new_adapter(out=tmp_path)
    again = Adapter(
        changed, again.train, again.finetune, again.val, again.config, tmp_path, again.cache, progress=False
    )
    with pytest.raises(ConfigError, match="other heads"):
        again.resume()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_target_with_fewer_texts_than_images(sides, cache, tiny_clip_factory, method):
    few = Manifest(sides[1].frame.copy(), sides[1].root)
    few.frame["captions"] = [list(texts)[:1] if row < 5 else [] for row, texts in enumerate(few.frame["captions"])]
    config = AdaptConfig.of(method, **{**SMALL, "head_batch_size": 8})
    adapter = Adapter(tiny_clip_factory(), sides[0], few, sides[2], config, None, cache, progress=False)
    while (result := adapter.step()) is not None:
        assert np.isfinite(result.loss)
    assert 0 <= adapter.best["mR"] <= 100


def test_a_validation_part_without_texts_is_refused(sides, cache, encoder_factory):
    bare = Manifest(sides[2].frame.copy(), sides[2].root)
    bare.frame["captions"] = [[] for _ in range(len(bare))]
    with pytest.raises(ConfigError, match=r"part val has 8 image\(s\) and 0 text\(s\)"):
        Adapter(encoder_factory(), *sides[:2], bare, AdaptConfig.of("dann"), None, cache)


def test_weights_of_the_domains_do_not_need_the_curriculum(new_adapter):
    even, weighted = (new_adapter("dann", domain_weights=on, head_batch_size=8) for on in (False, True))
    losses = [adapter.step().parts["adversarial"] for adapter in (even, weighted)]
    assert losses[0] != losses[1]
    taken = [adapter.phase.taken.weights for adapter in (even, weighted)]
    assert np.ptp(taken[0]) == 0 < np.ptp(taken[1]) and len(taken[0]) == len(taken[1]) == 8


def test_too_small_a_target_and_what_adaptation_cannot_do_are_refused(sides, cache, encoder_factory):
    from ucore.manifest import subset

    with pytest.raises(ConfigError, match="at least 2 of each"):
        Adapter(encoder_factory(), sides[0], subset(sides[1], 1), sides[2], AdaptConfig.of("dann"), None, cache)
    for changes, told in (
        ({"tune_epochs": 2}, "trains the heads"), ({"segments": "best"}, "choose one of none, mean"),
        ({"curriculum": "cosin"}, "choose one of none, cosine, density"), ({"coral_weight": -1}, "coral_weight is -1"),
        ({"domain_weights": 1}, "true or false"), ({"loss": "simgoid"}, "choose one of clip"),
        ({"source_weight": 0}, "nothing would keep retrieval up"), ({"pseudo_wieght": 1}, "mean 'pseudo_weight'"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=told):
            AdaptConfig.of("ucore", **changes)
    with pytest.raises(ConfigError, match="did you mean 'paper'"):
        AdaptConfig.of("papr")


# --- the command ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tiny_rsicd, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("start") / "run"
    done = ucore("train", "--data", tiny_rsicd, "--scale", "tiny", "-s", "head_epochs=1", "-s", "head_batch_size=8",
                 "--cache", out.parent / "cache", "--out", out)  # fmt: skip
    assert done.status == 0, done.err
    return out


def command(tiny_rsicd: Path, trained: Path, tmp_path: Path, *more: Any) -> tuple[Any, ...]:
    return ("adapt", "--source", tiny_rsicd, "--target", tmp_path / "tiles", "--checkpoint", trained, "--cache",
            tmp_path / "cache", "--out", tmp_path / "out", "--scale", "tiny", "-s", "head_epochs=2",
            "-s", "head_batch_size=8", *more)  # fmt: skip


def test_the_command_adapts_and_its_checkpoint_scores_the_test_part(tiny_rsicd, trained, tmp_path):
    from makers_geo import make_geotiles

    make_geotiles(tmp_path / "tiles", side=16, columns=("x", "y", "z"))
    done = ucore(*command(tiny_rsicd, trained, tmp_path, "--method", "paper"))
    assert done.status == 0, done.err
    assert "Validation mR" in done.out and "--splits" in done.out
    facts = json.loads((tmp_path / "out" / "adaptation.json").read_text())
    assert facts["parameters"]["method"] == "paper" and facts["split"] == "val"
    encoder, card = load_checkpoint(tmp_path / "out")
    assert card["adapt"]["method"] == "paper" and not encoder.training
    parts = json.loads((tmp_path / "out" / "split.json").read_text())["samples"]["finland"]
    assert {"finetune", "val", "test"} <= set(parts)
    scored = ucore("eval", "--checkpoint", tmp_path / "out", "--data", tmp_path / "tiles", "--splits",
                   tmp_path / "out" / "split.json", "--out", tmp_path / "scores.npz")  # fmt: skip
    assert scored.status == 0, scored.err
    tests = {name for names in parts["test"].values() for name in names}
    assert set(np.load(tmp_path / "scores.npz")["image_ids"]) == tests
    scoring = ("eval", "--checkpoint", tmp_path / "out", "--out", tmp_path / "own.npz", "--data")
    alone = ucore(*scoring, tmp_path / "tiles")  # the tiles' own test part was drawn without knowing of the adaptation
    assert alone.status == 0 and "was adapted to this data: scoring the part 'test'" in alone.out
    assert set(np.load(tmp_path / "own.npz")["image_ids"]) == tests
    assert " --splits split.json" in json.loads((tmp_path / "metrics.json").read_text())["command"]
    watched = ucore(*scoring, tmp_path / "tiles", "--split", "val")
    assert watched.status == 0 and "scoring the part 'val'" in watched.out
    with pytest.warns(
        UserWarning, match="the scores flatter"
    ):  # the tiles have a part of that name, the adaptation not
        assert ucore(*scoring, tmp_path / "tiles", "--split", "train").status == 0
    make_geotiles(tmp_path / "others", side=12, columns=("x", "y", "z"))  # some of the names, and fewer tiles
    with pytest.warns(UserWarning, match="are named as ones that"):
        other = ucore(*scoring, tmp_path / "others", "--split", "train")
    assert other.status == 0 and "adapted to this data" not in other.out
    again = ucore(*command(tiny_rsicd, trained, tmp_path, "--method", "paper"))
    assert again.status == 0 and "finished" in again.out


def test_the_same_set_on_both_sides_is_refused(tiny_rsicd, trained, tmp_path):
    done = ucore(
        "adapt", "--source", tiny_rsicd, "--target", tiny_rsicd, "--checkpoint", trained, "--out", tmp_path / "o"
    )
    assert done.status == 2 and "are in the source, too" in done.err and "Traceback" not in done.err
    done = ucore("adapt", "--source", tiny_rsicd, "--target", tiny_rsicd, "--checkpoint", trained, "--out", trained)
    assert done.status == 2 and "choose another folder" in done.err


def test_what_chose_the_checkpoint_is_not_adapted_to(tiny_rsicd, trained, tmp_path):
    index = json.loads((tiny_rsicd / "dataset_rsicd.json").read_text())
    index["images"] = [{**row, "split": "train"} for row in index["images"] if row["split"] == "val"]
    shutil.copytree(tiny_rsicd, tmp_path / "tiles")
    (tmp_path / "tiles" / "dataset_rsicd.json").write_text(json.dumps(index))
    done = ucore(*command(tiny_rsicd, trained, tmp_path))
    assert done.status == 2 and "8 of 8 images of the target are in the source's part val, too" in done.err, done.err


def test_pictures_of_one_colour_that_both_sides_have_are_no_leak(tmp_path):
    sides = []
    for number, name in enumerate(("here", "there")):
        folder = make_rsicd(tmp_path / name, 4, 2, 0, seed=number)
        first = sorted((folder / "images").iterdir())[0]
        Image.new("RGB", (32, 32), "white").save(first)
        sides.append(read_dataset(folder))
    assert len({(side.image_paths[0]).read_bytes() for side in sides}) == 1
    refuse_shared(*sides)
    shutil.copy(sides[0].image_paths[1], sides[1].image_paths[1])
    with pytest.raises(DataError, match="1 of 6 images of the target are in the source"):
        refuse_shared(*sides)


def test_a_picture_that_was_encoded_anew_is_known_again(tmp_path):
    sides = [read_dataset(make_rsicd(tmp_path / name, 4, 2, 0, seed=seed)) for seed, name in enumerate("ab")]
    rng = np.random.default_rng(0)
    for side in sides:  # what is drawn there is as large as a thumb: pictures of places need places
        for path in side.image_paths:
            Image.fromarray(rng.integers(0, 255, (6, 6, 3)).astype(np.uint8)).resize((64, 64)).save(path)
    refuse_shared(*sides)
    with Image.open(sides[0].image_paths[1]) as picture:
        small = picture.resize((48, 48)).transpose(Image.Transpose.ROTATE_90)
    small.save(sides[1].image_paths[2], format="JPEG", quality=70)
    ours, theirs = sides[0].frame["sample_id"][1], sides[1].frame["sample_id"][2]
    with pytest.raises(DataError, match=rf"1 of 6 images .* in the source, too: {theirs} \({ours}\).*--keep-alike"):
        refuse_shared(*sides)
    with pytest.warns(UserWarning, match=rf"by their looks: {theirs} \({ours}\)"):
        refuse_shared(*sides, keep_alike=True)
    shutil.copy(sides[0].image_paths[3], sides[1].image_paths[4])
    with pytest.raises(DataError, match=r"2 of 6 images .* --source-domain\.$"):
        refuse_shared(*sides, keep_alike=True)


def test_places_of_one_form_are_not_one_picture(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for number in range(6):  # coasts, and swaths with an edge of nothing, of different ground
        ground = np.kron(rng.integers(60, 200, (32, 32, 3)), np.ones((4, 4, 1)))
        y, x = np.mgrid[:128, :128]
        ground[(x > 64 + number) if number % 2 else (x + y < 90)] = (20, 40, 90) if number % 2 else 0
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(ground.astype(np.uint8)).save(paths[-1])
    assert same_pictures(paths[:3], paths[3:]) == [] and same_pictures(paths, paths[2:3]) == [(2, 0)]
    grey = tmp_path / "grey.png"
    Image.new("RGB", (64, 64), "grey").save(grey)
    assert same_pictures([grey, *paths[:1]], [grey]) == [] and same_pictures([], paths) == []


def test_a_target_of_several_domains_asks_which(tiny_rsicd, trained, tmp_path):
    from makers_geo import make_skyscript

    make_skyscript(tmp_path / "tiles")
    done = ucore(*command(tiny_rsicd, trained, tmp_path))
    assert done.status == 2 and "Choose one with --target-domain" in done.err


def test_a_checkpoint_that_has_learned_from_the_target_is_told_of(tiny_rsicd, trained, tmp_path):
    data = read_dataset(tiny_rsicd)
    seen = len(data.split(("train", "val")))
    with pytest.warns(UserWarning, match=rf"{seen} of the target's {len(data)} images are named"):
        warn_of_trained(trained, data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_trained(trained, data.split("test"))
        warn_of_trained(tmp_path, data)


def test_a_target_too_small_for_its_parts_is_refused(tmp_path):
    from makers_geo import make_geotiles

    with pytest.raises(DataError, match=r"'finland' .* cannot fill . splits\. Choose a smaller block_m"):
        target_parts(read_dataset(make_geotiles(tmp_path / "tiles", side=2, columns=("x", "y", "z"))), None, 0)


@pytest.mark.parametrize(
    ("own", "anew", "told"),
    [
        ([50, 72, 50, 50, 50], 95, "tells nothing apart"),
        ([50, 50.2, 49.9], 95, "tells nothing apart"),
        ([50, 99.5, 99.4, 100], 97, "never lost"),
        ([50, 99.5, 99.4, 100], 60, ""),  # it knows its samples by heart; others it cannot tell
        ([50, 12, 5, 1], 95, "one for the other"),
        ([50, 0, 0, 0], 95, "one for the other"),
        ([50, 72, 64, 55, 52], 60, ""),
        ([70, 60, 50.3, 49.8, 50.2], 53, ""),
        ([70, 60, 38, 36, 35], 53, ""),
        ([50, 100, 80, 62], 97, ""),
        ([50], 97, ""),
        ([], 97, ""),
    ],
)
def test_a_discriminator_that_collapses_is_said(own, anew, told):
    for side, name in (("image", "discriminator_accuracy"), ("text", "text_discriminator_accuracy")):
        rows = [{name: value, f"{side}s_told_apart": anew} for value in own]
        said = collapsed([{"mR": 1.0, "images_told_apart": anew}, *rows])
        assert (told in said and f"discriminator of {side}s" in said) if told else said == ""
