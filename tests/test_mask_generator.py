"""Masks of an image: the original's very masks when exact, nearly all of them when fast, at any size of image."""

import numpy as np
import pytest
import torch
from makers import draw, scenes
from makers_sam import tiny_sam
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator
from torchvision.ops import box_iou, nms

from ucore import mask_filters
from ucore.errors import ConfigError, UserError
from ucore.mask_decoder import PointDecoder
from ucore.mask_generator import Frame, MaskGenerator
from ucore.masks import Segments
from ucore.sam import load_sam

# Random weights make ragged masks of any quality that all fill the image: low thresholds, and no box is suppressed.
# Their sharp attention magnifies rounding to some 1e-4.
LOOSE = {
    "points_per_side": 6,
    "pred_iou_thresh": 0.05,
    "stability_score_thresh": 0.5,
    "stability_score_offset": 0.3,
    "box_nms_thresh": 1.0,
}


@pytest.fixture(scope="module")
def model():
    return tiny_sam()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Soft blobs of colour, uint8 (height, width, 3)."""
    patches = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC))


def original(model, image: np.ndarray, **settings) -> tuple[Segments, list[dict]]:
    records = SamAutomaticMaskGenerator(model, **{**LOOSE, **settings}).generate(image)
    masks = np.array([record["segmentation"] for record in records]).reshape(-1, *image.shape[:2])
    return Segments.from_masks(masks), records


@torch.no_grad()
def test_the_decoder_computes_what_the_original_does(model):
    embedding = torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(1))
    points = torch.tensor([[0.0, 0.0], [10.5, 60.0], [63.0, 33.3]], dtype=torch.float64)
    sparse, dense = model.prompt_encoder((points[:, None], torch.ones(3, 1)), None, None)
    wanted, quality = model.mask_decoder(embedding, model.prompt_encoder.get_dense_pe(), sparse, dense, True)
    decoder = PointDecoder(model)
    clicks = decoder.attend(decoder.prepare(embedding[0]), points)
    np.testing.assert_allclose(clicks.quality, quality, atol=1e-4)
    every = torch.ones(3, 3, dtype=torch.bool)
    np.testing.assert_allclose(decoder.masks(clicks, every), wanted.flatten(0, 1), atol=1e-3)
    some = clicks.take(torch.tensor([False, True, True]))
    chosen = torch.tensor([[False, True, False], [True, False, True]])
    np.testing.assert_allclose(decoder.masks(some, chosen), wanted[1:][chosen], atol=1e-3)


@pytest.mark.parametrize("shape", [(64, 64), (48, 90), (150, 101), (8, 8)])
def test_exact_masks_are_the_originals(model, shape):
    image = picture(*shape)
    wanted, records = original(model, image)
    assert len(wanted) > 3
    found = MaskGenerator(model, exact=True, points_per_batch=7, **LOOSE).generate([image])[0]
    assert found.size == shape and len(found) == len(wanted)
    same = np.array([wanted.take([row]).iou(found.take([row]))[0, 0] for row in range(len(wanted))])
    assert same.min() > 0.98  # a pixel whose logit is zero but for rounding may fall either way
    np.testing.assert_allclose(found.predicted_iou, [record["predicted_iou"] for record in records], atol=5e-4)
    np.testing.assert_allclose(found.stability, [record["stability_score"] for record in records], atol=0.02)
    np.testing.assert_allclose(found.points, [record["point_coords"][0] for record in records], rtol=1e-6)


def test_exact_mending_of_small_regions_is_the_originals(model):
    image = picture(64, 64, seed=2)
    wanted, _ = original(model, image, min_mask_region_area=30)
    plain = MaskGenerator(model, exact=True, **LOOSE).generate([image])[0]
    found = MaskGenerator(model, exact=True, min_mask_region_area=30, **LOOSE).generate([image])[0]
    assert len(found) == len(wanted)
    assert set(found.rles) != set(plain.rles)
    assert wanted.iou(found).max(axis=1).min() > 0.98


def test_mended_regions_of_a_strict_limit_are_the_originals_too(model):
    image = picture(64, 64, seed=2)
    settings = {"box_nms_thresh": 0.4, "min_mask_region_area": 30}
    wanted, _ = original(model, image, **settings)
    found = MaskGenerator(model, exact=True, **{**LOOSE, **settings}).generate([image])[0]
    assert 0 < len(found) == len(wanted)
    assert wanted.iou(found).max(axis=1).min() > 0.98


def test_mending_leaves_a_mask_without_a_pixel_as_it_is():
    empty = Segments.from_masks(np.zeros((1, 20, 20), bool))
    assert mask_filters.mended(empty, 30, 0.7).rles == empty.rles


def test_no_threshold_at_all_is_the_originals_too(model):
    settings = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    wanted, _ = original(model, picture(40, 40), **settings)
    found = MaskGenerator(model, exact=True, **{**LOOSE, **settings}).generate([picture(40, 40)])[0]
    assert len(found) == len(wanted) == 27


def test_duplicates_are_suppressed_as_in_the_original(model):
    for limit in (0.9, 0.97):
        wanted, records = original(model, picture(64, 64), box_nms_thresh=limit)
        found = MaskGenerator(model, exact=True, **{**LOOSE, "box_nms_thresh": limit}).generate([picture(64, 64)])[0]
        np.testing.assert_allclose(found.predicted_iou, [record["predicted_iou"] for record in records], atol=1e-4)
        assert 0 < len(found) == len(wanted)


def test_the_fast_way_obeys_the_thresholds(model):
    found = MaskGenerator(model, **LOOSE).generate([picture(64, 64)])[0]
    assert len(found) > 0
    assert (found.stability >= LOOSE["stability_score_thresh"]).all()
    assert (found.predicted_iou > LOOSE["pred_iou_thresh"]).all()
    assert (np.diff(found.predicted_iou) <= 0).all()


def test_the_shipped_weights_give_the_same_masks_in_every_way():
    noise, four = np.random.default_rng(0), scenes(4, seed=3)
    rows = [np.hstack([np.asarray(draw(one, 112, noise)) for one in pair]) for pair in (four[:2], four[2:])]
    image = np.vstack(rows)
    settings = {"points_per_side": 12, "pred_iou_thresh": 0.3, "stability_score_thresh": 0.5,
                "stability_score_offset": 0.5}  # fmt: skip
    small = load_sam("sam-micro", "cpu")
    records = SamAutomaticMaskGenerator(small, **settings).generate(image)
    wanted = Segments.from_masks(np.array([record["segmentation"] for record in records]))
    exact = MaskGenerator(small, exact=True, **settings).generate([image])[0]
    assert len(exact) == len(wanted) > 3
    assert wanted.iou(exact).max(axis=1).min() > 0.98
    fast = MaskGenerator(small, **settings).generate([image])[0]
    assert (wanted.iou(fast).max(axis=1) >= 0.9).mean() >= 0.95


def test_batches_do_not_matter(model):
    images = [picture(64, 64), picture(30, 50), np.full((20, 20, 3), 90, np.uint8)]
    one = MaskGenerator(model, exact=True, images_per_batch=1, points_per_batch=1, **LOOSE).generate(images)
    all_at_once = MaskGenerator(model, exact=True, images_per_batch=3, points_per_batch=64, **LOOSE).generate(images)
    for first, second in zip(one, all_at_once, strict=True):
        assert len(first) == len(second)
        np.testing.assert_allclose(first.predicted_iou, second.predicted_iou, atol=0.01)


def test_an_image_of_one_colour_has_no_masks(model):
    images = [np.full((20, 30, 3), 90, np.uint8), picture(20, 30)]
    empty, full = MaskGenerator(model, **LOOSE).generate(images)
    assert len(empty) == 0 and empty.size == (20, 30)
    assert len(full) > 0
    assert MaskGenerator(model, **LOOSE).generate([]) == []


def test_the_key_follows_weights_and_settings(model):
    keys = {
        MaskGenerator(model).key(),
        MaskGenerator(model, exact=True).key(),
        MaskGenerator(model, pred_iou_thresh=0.5).key(),
        MaskGenerator(model, min_mask_region_area=9).key(),
        MaskGenerator(tiny_sam(seed=9)).key(),
    }
    assert len(keys) == 5 and all(len(key) == 16 for key in keys)
    assert MaskGenerator(model, points_per_batch=3).key() == MaskGenerator(tiny_sam()).key()


def test_a_model_may_bring_its_own_thresholds():
    own = tiny_sam()
    own.generator_defaults = {"pred_iou_thresh": 0.6}
    assert MaskGenerator(own).pred_iou_thresh == 0.6
    assert MaskGenerator(own, pred_iou_thresh=0.3).pred_iou_thresh == 0.3
    assert MaskGenerator(own).box_nms_thresh == 0.7
    with pytest.raises(ConfigError, match="at least 1"):
        MaskGenerator(own, points_per_side=0)


def test_batches_halve_when_memory_runs_out_and_this_is_said_once(model, monkeypatch, capsys):
    generator = MaskGenerator(model, exact=True, points_per_batch=16, **LOOSE)
    attend = generator.decoder.attend

    def narrow(state, points):
        if len(points) > 5:
            raise torch.OutOfMemoryError("out of memory")
        return attend(state, points)

    monkeypatch.setattr(generator.decoder, "attend", narrow)
    found = generator.generate([picture(64, 64)])[0]
    assert generator.points_per_batch == 4
    assert capsys.readouterr().err.count("smaller batches") == 1
    assert len(found) == len(MaskGenerator(model, exact=True, **LOOSE).generate([picture(64, 64)])[0])

    decided = generator._decided

    def small(some, frame):
        if generator.masks_at_once > 2:
            raise torch.OutOfMemoryError("out of memory")
        return decided(some, frame)

    monkeypatch.setattr(generator, "_decided", small)
    again = generator.generate([picture(64, 64)])[0]
    assert generator.masks_at_once <= 2 and again.rles == found.rles

    def never(state, points):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(generator.decoder, "attend", never)
    with pytest.raises(UserError, match="does not fit into the memory of cpu"):
        generator.generate([picture(64, 64)])

    def broken(state, points):
        raise RuntimeError("another matter")

    monkeypatch.setattr(generator.decoder, "attend", broken)
    with pytest.raises(RuntimeError, match="another matter"):
        generator.generate([picture(64, 64)])


def test_levels_are_the_grid():
    assert [level.tolist() for level in mask_filters.levels(3)] == [[0, 2, 6, 8], [4], [1, 3, 5, 7]]
    for side in (1, 2, 7):
        assert sorted(np.concatenate(mask_filters.levels(side)).tolist()) == list(range(side * side))


def test_masks_that_another_click_repeats_and_labels_that_tell_nothing_new():
    masks = torch.zeros(4, 100, dtype=torch.bool)
    masks[0, :50] = masks[1, :46] = masks[2, 60:] = masks[3, 60:] = True
    repeats = mask_filters.repeated(masks, torch.tensor([0, 1, 2, 2]), 0.9)
    assert repeats.tolist() == [True, True, False, False]  # 46 of 50 pixels; the last two are of one click
    label = torch.tensor([0, 0, 0, 1, 1, 2, -1])
    tried = torch.tensor([True, True, False, True, True, True, True])
    told = torch.tensor([False, False, False, True, False, False, False])
    assert mask_filters.settled(label, tried, told).tolist() == [True, True, True, False, False, False, False]


def test_the_inside_of_a_mask_that_looks_like_what_was_clicked():
    label = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1], [-1, -1, -1, -1]])
    inside = torch.zeros(4, 4, dtype=torch.bool)
    inside[:2, :2] = True
    assert mask_filters.surrounded(label).equal(inside)
    features = torch.tensor([[0.0], [2.0], [1.5], [2.5], [9.0], [0.0]])
    label = torch.tensor([0, 0, 0, 0, 1, -1])
    tried = torch.tensor([True, True, False, False, False, True])
    known = mask_filters.familiar(features, label, tried)  # of label 0: mean 1, radius 1
    assert known.tolist() == [True, True, True, False, False, False]


def test_boxes_and_what_they_must_overlap():
    masks = torch.zeros(3, 10, 12, dtype=torch.bool)
    masks[0, 2:8, 1:11] = True
    masks[1, 5, 5] = True
    edges = mask_filters.boxes(masks.float(), 0.5)
    assert edges.tolist() == [[1, 2, 10, 7], [5, 5, 5, 5], [0, 0, 0, 0]]
    lower, upper = mask_filters.overlaps(edges[:2], slack=0.5)
    assert lower[0, 0] == pytest.approx(8 * 4 / (2 * 11 * 7 - 8 * 4))  # 9 x 5; within is 8 x 4, around it 11 x 7
    assert upper[0, 0] == 1 and lower[0, 1] == 0 and upper[0, 1] == pytest.approx(4 / (8 * 4 - 4))


def test_only_sure_duplicates_are_dropped_early():
    rng = np.random.default_rng(0)
    for _ in range(30):  # against plain greedy suppression of the true overlaps
        corner = rng.integers(0, 20, (40, 2))
        true = torch.from_numpy(np.hstack([corner, corner + rng.integers(8, 30, (40, 2))])).float()
        lower, upper = (bound.numpy() for bound in mask_filters.overlaps(true, slack=1.0))
        exact = box_iou(true, true).numpy()
        assert (lower <= exact + 1e-6).all() and (upper >= exact - 1e-6).all()
        possible = mask_filters.not_surely_suppressed(lower, upper, 0.5)
        kept = nms(true, torch.arange(40, 0, -1).float(), 0.5).numpy()
        assert possible[kept].all()
    assert not mask_filters.not_surely_suppressed(exact, exact, 0.5).all()


def test_the_frame_of_an_image_is_the_part_that_is_not_padding():
    assert Frame.of((50, 100), 64, (32, 32)) == Frame((50, 100), (32, 64), (16, 32))
    assert Frame.of((8, 5000), 64, (32, 32)) == Frame((8, 5000), (1, 64), (1, 32))
