"""Masks of images of any size: windows see what the whole would have shown."""

from itertools import pairwise

import numpy as np
import pytest
from makers_sam import tiny_sam

from ucore import mosaic
from ucore.errors import ConfigError
from ucore.mask_generator import MaskGenerator
from ucore.masks import Segments


class Painted:
    """A generator that knows the colours: every connected region of one colour but black is a mask."""

    name, window = "painted", 40
    largest = 0

    def key(self) -> str:
        return "painted"

    def generate(self, images):
        results = []
        for image in images:
            self.largest = max(self.largest, *image.shape[:2])
            colours = [colour for colour in np.unique(image[..., 0]) if colour]
            masks = np.array([image[..., 0] == colour for colour in colours]).reshape(-1, *image.shape[:2])
            points = [np.argwhere(mask)[0][::-1] for mask in masks]
            results.append(Segments.from_masks(masks, np.float32([colour / 255 for colour in colours]), None, points))
        return results


def scene(height: int = 90, width: int = 130) -> np.ndarray:
    """A road through everything, a house where windows meet, one in a corner, a field larger than a window."""
    image = np.zeros((height, width, 3), np.uint8)
    image[10:80, 60:120] = 200
    image[44:50] = 100
    image[20:26, 28:38] = 150
    image[80:, 120:] = 50
    return image


def test_windows_give_the_masks_of_the_whole():
    generator = Painted()
    whole = generator.generate([scene()])[0]
    generator.largest = 0
    small, found = mosaic.Mosaic(generator).generate([scene()[:30, :40], scene()])
    assert generator.largest == 40 and small.size == (30, 40)
    assert found.size == whole.size and len(found) == len(whole) == 4
    assert sorted(found.rles) == sorted(whole.rles)
    rows = [whole.rles.index(code) for code in found.rles]
    np.testing.assert_allclose(found.predicted_iou, whole.predicted_iou[rows], rtol=1e-6)
    for row in range(4):
        x, y = found.points[row].astype(int)
        assert found.masks([row])[0, y, x]


class Coloured(Painted):
    """As `Painted`, but a picture of one colour has no mask, as with the real generators."""

    def generate(self, images):
        return [found if len(found) != 1 or (image != image[0, 0]).any() else Segments.none(found.size)
                for image, found in zip(images, super().generate(images), strict=True)]  # fmt: skip


def test_of_a_lake_with_windows_that_see_water_alone_more_than_the_shore_is_found():
    image = np.zeros((320, 200, 3), np.uint8)  # eight times as long as a window
    image[40:280, 32:168] = 90  # windows of 40 pixels lie within
    image[44:50, 2:9] = 200
    (found,) = mosaic.Mosaic(Coloured()).generate([image])
    lake, hut = (Segments.from_masks(image[None, ..., 0] == colour) for colour in (90, 200))
    assert found.size == (320, 200) and found.iou(lake)[0, 0] > 0.9 and found.masks([0])[0, 150, 100]
    assert found.iou(hut).max() == 1 and found.iou(lake)[1:].max() < 0.5
    x, y = found.points[0].astype(int)
    assert found.masks([0])[0, y, x]


def test_what_the_windows_outline_well_stays_as_they_outline_it():
    y, x = np.mgrid[:640, :640] - 320
    image = np.zeros((640, 640, 3), np.uint8)
    wavy = np.hypot(y, x) < 220 + 30 * np.sin(40 * np.arctan2(y, x))
    image[wavy] = 90
    (found,) = mosaic.Mosaic(Painted(), window=64).generate([image])  # larger than a window, and seen by all of them
    assert len(found) == 1 and found.iou(Segments.from_masks(wavy[None]))[0, 0] == 1


def test_an_image_of_a_window_and_a_half_may_be_seen_whole():
    generator = Painted()
    wide = mosaic.Mosaic(generator, slack=1.5)
    assert wide.generate([scene(60, 60)])[0].size == (60, 60) and generator.largest == 60
    generator.largest = 0
    wide.generate([scene(60, 61)])
    assert generator.largest == 40
    with pytest.raises(ConfigError, match="slack"):
        mosaic.Mosaic(generator, slack=0.5)


def test_more_masks_than_a_byte_counts_where_windows_overlap():
    image = np.zeros((64, 72, 3), np.uint8)
    image[::2, ::2, 0] = 1 + np.arange(32 * 36).reshape(32, 36) % 255

    class Dots(Painted):
        def generate(self, images):
            dots = [np.argwhere(image[..., 0]) for image in images]
            masks = [np.zeros((len(of), *image.shape[:2]), bool) for of, image in zip(dots, images, strict=True)]
            for of, mask in zip(dots, masks, strict=True):
                mask[np.arange(len(of)), of[:, 0], of[:, 1]] = True
            return [Segments.from_masks(mask) for mask in masks]

    (found,) = mosaic.Mosaic(Dots(), window=64).generate([image])  # two windows, which share 32 x 28 dots
    assert len(found) == 32 * 36 and found.areas.sum() == 32 * 36


def test_a_narrow_image_and_one_without_masks():
    narrow = np.zeros((5, 300, 3), np.uint8)
    narrow[2:4, 100:200] = 90
    found = mosaic.Mosaic(Painted()).generate([narrow])[0]
    assert found.areas.tolist() == [200]
    assert len(mosaic.Mosaic(Painted()).generate([np.zeros((100, 100, 3), np.uint8)])[0]) == 0


def test_a_mask_moves_without_the_image_being_laid_out():
    rng = np.random.default_rng(0)
    for corner, size in (((0, 0), (6, 7)), ((3, 4), (9, 11)), ((0, 2), (6, 9)), ((4, 0), (10, 7))):
        mask = rng.random((6, 7)) < 0.6
        mask[:, 2] = True
        whole = np.zeros(size, bool)
        whole[corner[0] : corner[0] + 6, corner[1] : corner[1] + 7] = mask
        code = mosaic.moved(mask, corner, size)
        assert code["counts"] == Segments.from_masks(whole[None]).rles[0]
    assert (
        mosaic.moved(np.zeros((6, 7), bool), (1, 1), (9, 9))["counts"]
        == Segments.from_masks(np.zeros((1, 9, 9), bool)).rles[0]
    )
    huge = mosaic.moved(np.ones((100, 100), bool), (9_000, 9_000), (10_000, 10_000))
    assert len(huge["counts"]) < 1000


def test_windows_cover_every_pixel_and_overlap():
    for side in (8, 40, 41, 100, 1000):
        first = mosaic.starts(side, 40, 0.25)
        assert first[0] == 0 and first[-1] + 40 >= side
        assert all(before + 40 - after >= 8 for before, after in pairwise(first))
    with pytest.raises(ConfigError, match="overlap"):
        mosaic.Mosaic(Painted(), overlap=0.9)
    assert mosaic.Mosaic(Painted()).key() != mosaic.Mosaic(Painted(), window=50).key()


def test_the_real_generator_works_in_windows():
    generator = MaskGenerator(
        tiny_sam(), 6, pred_iou_thresh=0.05, stability_score_thresh=0.5, stability_score_offset=0.3
    )
    assert generator.window == 128
    image = np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)
    found = mosaic.Mosaic(generator).generate([image])[0]
    assert found.size == (100, 200) and len(found) > 0


@pytest.mark.parametrize("side", [400, 1200])
def test_memory_grows_with_outlines_and_not_with_pixels(side):
    """Codes of a chessboard of blobs: bytes a mask stay the same when the image grows."""
    image = np.zeros((side, side, 3), np.uint8)
    for number, (y, x) in enumerate(np.ndindex(side // 100, side // 100)):
        image[y * 100 + 20 : y * 100 + 50, x * 100 + 20 : x * 100 + 50] = 1 + number
    found = mosaic.Mosaic(Painted(), window=120).generate([image])[0]
    assert len(found) == (side // 100) ** 2
    assert sum(map(len, found.rles)) < 150 * len(found)
