"""Embedding: cached by content, resumable, the same whatever the batch; duplicates get identical features."""

import numpy as np
import pytest
import torch

from ucore import features
from ucore.data import read_dataset
from ucore.features import embed_images, embed_texts, image_tower_features, text_tower_features
from ucore.model import dihedral


@pytest.fixture(scope="module")
def manifest(tiny_rsicd):
    return read_dataset(tiny_rsicd, split="val")


@pytest.fixture(scope="module")
def encoder(encoder_factory):
    return encoder_factory()


def test_cached_features_are_read_not_computed(manifest, encoder, tmp_path, monkeypatch):
    first = image_tower_features(encoder, manifest, 2, tmp_path, progress=False)
    assert first.shape == (len(manifest), 2, encoder.image_width)
    assert first.dtype == np.float16
    monkeypatch.setattr(encoder, "image_tower", None)  # would fail if called
    np.testing.assert_array_equal(image_tower_features(encoder, manifest, 2, tmp_path, progress=False), first)
    np.testing.assert_array_equal(image_tower_features(encoder, manifest, 1, tmp_path, progress=False), first[:, :1])


def test_an_interrupted_extraction_goes_on_and_a_damaged_shard_is_made_again(manifest, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "SHARD", 3)
    whole = image_tower_features(encoder, manifest, 1, tmp_path / "a", progress=False)
    tower, calls = encoder.image_tower, []

    def stops_at_second_shard(pixels):
        calls.append(len(pixels))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return tower(pixels)

    monkeypatch.setattr(encoder, "image_tower", stops_at_second_shard)
    with pytest.raises(KeyboardInterrupt):
        image_tower_features(encoder, manifest, 1, tmp_path / "b", progress=False)
    shards = sorted((tmp_path / "b").rglob("*.npy"))
    assert len(shards) == 1  # the first is kept, nothing half-written
    np.testing.assert_array_equal(image_tower_features(encoder, manifest, 1, tmp_path / "b", progress=False), whole)
    assert calls == [3, 3, 3, 2]  # the interrupted shard once more, the finished one not
    shards[0].write_bytes(shards[0].read_bytes()[:200])
    np.testing.assert_array_equal(image_tower_features(encoder, manifest, 1, tmp_path / "b", progress=False), whole)


def test_other_weights_or_images_have_another_cache(manifest, encoder_factory, tmp_path):
    encoder = encoder_factory()
    image_tower_features(encoder, manifest, 1, tmp_path, progress=False)
    with torch.no_grad():
        encoder.clip.visual.trunk.conv_stem.weight[0, 0, 0, 0] += 1
    image_tower_features(encoder, manifest, 1, tmp_path, progress=False)
    fewer = type(manifest)(manifest.frame.iloc[1:].reset_index(drop=True), manifest.root)
    image_tower_features(encoder, fewer, 1, tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 3


def test_equal_texts_get_identical_features_in_any_company(encoder, tmp_path):
    texts = ["a river", "many houses beside a long road with cars .", "a river", "trees"]
    result = text_tower_features(encoder, texts, tmp_path, progress=False)
    np.testing.assert_array_equal(result[0], result[2])
    np.testing.assert_array_equal(text_tower_features(encoder, texts, tmp_path, progress=False), result)
    embedded = embed_texts(encoder, texts, progress=False)
    np.testing.assert_array_equal(embedded[0], embedded[2])
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-5)


def test_views_are_averaged(manifest, encoder):
    pixels = torch.stack([encoder.resize(image) for image in map(_open, manifest.image_paths)])
    with torch.inference_mode():
        mean = sum(encoder.encode_image(dihedral(pixels, view)) for view in range(4)) / 4
    expected = torch.nn.functional.normalize(mean, dim=1).numpy()
    np.testing.assert_allclose(embed_images(encoder, manifest, 4, progress=False), expected, atol=2e-3)


def test_embedding_is_without_dropout_and_leaves_the_modes(manifest, encoder_factory):
    encoder = encoder_factory()
    texts = manifest.texts[0]
    expected = embed_images(encoder, manifest, progress=False), embed_texts(encoder, texts, progress=False)
    encoder.train()
    encoder.text_head.eval()
    np.testing.assert_array_equal(embed_images(encoder, manifest, progress=False), expected[0])
    np.testing.assert_array_equal(embed_texts(encoder, texts, progress=False), expected[1])
    assert encoder.training
    assert encoder.image_head.drop.training
    assert not encoder.text_head.training


def _open(path):
    from ucore.images import load_image

    return load_image(path)
