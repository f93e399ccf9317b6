"""The dual encoder: bundled towers equal their origin, pixels and tokens are treated as each model expects."""

import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ucore import bundled
from ucore.checkpoint import load_checkpoint, save_encoder
from ucore.config import TrainConfig
from ucore.errors import CheckpointError, ConfigError
from ucore.model import Head, dihedral, load_encoder


@pytest.fixture(scope="module")
def encoder(encoder_factory):
    return encoder_factory()


def picture(width: int = 300, height: int = 260, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def test_the_converted_image_tower_equals_the_original_package(encoder):
    from efficientnet_lite_pytorch import EfficientNet

    original = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=str(bundled.weight_file(*bundled.IMAGE_WEIGHTS))
    ).eval()
    images = torch.stack([encoder.transform(picture(seed=seed)) for seed in range(4)])
    with torch.inference_mode():
        expected = original.extract_features(images).mean((2, 3))
        features = encoder.clip.encode_image(images)[:, -1280:]  # float32: without the encoder's autocast
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)


def test_the_text_tower_equals_transformers_mean_pooling(encoder):
    from transformers import AutoModel, AutoTokenizer

    folder = bundled.weight_file(*bundled.TEXT_WEIGHTS).parent
    texts = ["a river", "many green trees are around a playground beside a road ."]
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = AutoModel.from_pretrained(folder).eval()(**batch, output_hidden_states=True).hidden_states
        mask = batch["attention_mask"][..., None]
        expected = torch.cat([(states[level] * mask).sum(1) / mask.sum(1) for level in (0, 3, 6)], dim=1)
        features = encoder.clip.encode_text(encoder.tokenize(texts))
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)


def test_altered_bundled_weights_are_refused():
    package, name, sha = bundled.IMAGE_WEIGHTS
    with pytest.raises(CheckpointError, match=r"differ .* make setup"):
        bundled.weight_file(package, name, "0" * 64)
    with pytest.raises(CheckpointError, match="not installed"):
        bundled.weight_file("no_such_package", name, sha)


def test_bytes_and_floats_of_one_image_give_the_same_features(encoder):
    image = picture()
    with torch.inference_mode():
        from_floats = encoder.encode_image(encoder.transform(image)[None])
        from_bytes = encoder.encode_image(encoder.resize(image)[None])
    assert encoder.resize(image).dtype == torch.uint8
    torch.testing.assert_close(from_bytes, from_floats, atol=1e-5, rtol=0)
    torch.testing.assert_close(from_bytes.norm(dim=1), torch.ones(1))


def test_each_model_normalises_with_its_own_statistics(encoder, tiny_clip):
    black = Image.new("RGB", (64, 64))
    assert torch.allclose(encoder.transform(black), torch.tensor(-1.0))  # (0 - 0.5) / 0.5
    clip_black = load_encoder(tiny_clip).transform(black)[:, 0, 0]
    expected = -torch.tensor([0.48145466, 0.4578275, 0.40821073]) / torch.tensor([0.26862954, 0.26130258, 0.27577711])
    torch.testing.assert_close(clip_black, expected)


@pytest.mark.parametrize("bundled_one", [True, False])
def test_a_cut_caption_is_counted_and_a_full_one_is_not(bundled_one, encoder, tiny_clip, recwarn):
    model = encoder if bundled_one else load_encoder(tiny_clip)
    room = 128 - 2 if bundled_one else 77 - 2
    model.tokenize(["road " * room, "road"])
    assert not [w for w in recwarn if "longer" in str(w.message)]
    with pytest.warns(UserWarning, match=f"1 of 2 texts are longer than the {room + 2} tokens"):
        model.tokenize(["road " * (room + 1), "road"])


def test_features_are_known_by_the_same_name_before_and_after_a_checkpoint(encoder_factory, tiny_clip, tmp_path):
    made, known = encoder_factory(), encoder_factory()
    known.choose_precision("bfloat16")  # the name holds the precision, which is chosen by the processor
    assert known.fingerprint("image") == "99f23cb735189f12"  # of indexes and caches that people have
    small = load_encoder(preprocess={"size": (64, 64)})
    assert small.image_size == (64, 64) and small.transform(Image.new("RGB", (200, 90))).shape == (3, 64, 64)
    for number, encoder in enumerate((made, small, load_encoder(tiny_clip))):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_encoder(folder, encoder, encoder.state_dict(), TrainConfig.at("tiny"), {"mR": 1.0})
        again, _ = load_checkpoint(folder)
        assert again.image_size == encoder.image_size
        for part in ("image", "text"):
            assert again.fingerprint(part) == encoder.fingerprint(part)


def test_a_clip_model_starts_as_its_zero_shot_self(tiny_clip):
    model = load_encoder(tiny_clip)
    image = model.transform(picture())[None]
    tokens = model.tokenize(["a river"])
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        expected = model.clip.encode_image(image, normalize=True)
        expected_text = model.clip.encode_text(tokens, normalize=True)
        tolerance = 0.02 if model.precision == "bfloat16" else 1e-5
        torch.testing.assert_close(model.encode_image(image), expected, atol=tolerance, rtol=0)
        torch.testing.assert_close(model.encode_text(tokens), expected_text, atol=tolerance, rtol=0)
    assert model.logit_scale.item() == pytest.approx(model.clip.logit_scale.item())


def test_a_residual_head_is_the_identity_and_a_plain_one_is_not():
    features = torch.randn(3, 8)
    assert torch.equal(Head(8, 8, 16, 0.1, residual=True)(features), features)
    assert Head(8, 4, 16, 0.1, residual=False)(features).shape == (3, 4)


def test_the_eight_dihedral_views_differ_and_form_a_group():
    image = torch.arange(9).view(1, 3, 3)
    views = {tuple(dihedral(image, view).flatten().tolist()) for view in range(8)}
    assert len(views) == 8
    for view in range(8):  # a view of a view is a view again
        assert {tuple(dihedral(dihedral(image, view), other).flatten().tolist()) for other in range(8)} == views


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("lite0-minilmm", None, "did you mean 'lite0-minilm'"),
        ("lite0-minilm", "openai", "leave --pretrained out"),
        ("ViT-B-32", "laion2b_s34b_b79", "did you mean 'laion2b_s34b_b79k'"),
    ],
)
def test_unknown_names_are_refused_with_a_suggestion(name, pretrained, message):
    with pytest.raises(ConfigError, match=message):
        load_encoder(name, pretrained)


def test_a_hub_tag_without_a_network_says_what_to_do(monkeypatch):
    with pytest.raises(CheckpointError, match="pass the file as --pretrained"):
        load_encoder("ViT-B-32", "openai")


def test_glibc_keeps_freed_memory():
    from ucore.device import keep_freed_memory

    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


MEMORY = """
import os, torch
from ucore.device import freed_memory_kept, keep_freed_memory

def held():
    torch.ones(100, 2**20)  # 400 MB, freed at once
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20

before = held()
with freed_memory_kept("cuda"):
    assert held() < before + 100
with freed_memory_kept():
    with freed_memory_kept():
        assert held() > before + 300
    assert held() > before + 300
assert held() < before + 100
keep_freed_memory()
with freed_memory_kept():
    pass
assert held() > before + 300
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")
def test_freed_memory_is_kept_within_and_given_back_afterwards():
    subprocess.run([sys.executable, "-c", MEMORY], check=True)


@pytest.mark.parametrize("needed", ["get_tokenizer", "create_model"])
def test_what_lies_on_the_hub_is_named_where_it_cannot_be_reached(needed, monkeypatch):
    def offline(*args: object, **options: object) -> None:
        raise OSError("We couldn't connect to the hub\nand more")

    monkeypatch.setattr("open_clip.get_tokenizer", lambda name: None)
    monkeypatch.setattr(f"open_clip.{needed}", offline)
    with pytest.raises(CheckpointError, match=r"Could not fetch what roberta-ViT-B-32 needs .*to the hub\)"):
        load_encoder("roberta-ViT-B-32")


@pytest.mark.parametrize("pretrained", [None, "laion2b_s34b_b79k"])
def test_an_architecture_that_cannot_be_built_is_not_taken_for_a_lost_connection(pretrained, monkeypatch):
    def fails(*args: object, **options: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr("open_clip.create_model", fails)
    said = "Unknown model (some_trunk)"
    with pytest.raises(CheckpointError, match=r"^open_clip could not build ViT-B-32.* \(Unknown model \(some"):
        load_encoder("ViT-B-32", pretrained=pretrained)
    said = "Failed to download weights for tag 'laion2b_s34b_b79k'"
    with pytest.raises(CheckpointError, match=r"^Could not fetch .*ViT-B-32 .*\(Failed to download"):
        load_encoder("ViT-B-32", pretrained=pretrained)
