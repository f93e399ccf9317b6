"""Crops: the segment fills the square in its own shape, and the rest is what was asked for."""

import numpy as np
import pytest

from ucore.crops import crop_segments
from ucore.errors import ConfigError, DataError
from ucore.masks import Segments

RED, BLUE = np.array([200, 0, 0], np.uint8), np.array([0, 0, 180], np.uint8)


def scene(left=10, top=20, right=30, bottom=30, size=(60, 80)) -> tuple[np.ndarray, Segments]:
    """A red rectangle on blue, and its segment."""
    image = np.tile(BLUE, (*size, 1))
    mask = np.zeros((1, *size), bool)
    mask[0, top:bottom, left:right] = True
    image[mask[0]] = RED
    return image, Segments.from_masks(mask)


def test_without_resizing_a_crop_is_the_pixels_by_hand():
    image, segments = scene()  # 20 wide, 10 high: a square of 20, five rows above and below
    (crop,) = crop_segments(image, segments, "white", 20, margin=0)
    expected = np.full((20, 20, 3), 255, np.uint8)
    expected[5:15] = RED
    np.testing.assert_array_equal(crop, expected)
    (crop,) = crop_segments(image, segments, "box", 22, margin=0.05)  # one pixel on either side
    np.testing.assert_array_equal(crop, image[14:36, 9:31])
    (crop,) = crop_segments(image, segments, "mean", 20, margin=0)
    np.testing.assert_array_equal(crop[0, 0], image.mean((0, 1)).round())
    np.testing.assert_array_equal(crop[7, 7], RED)


@pytest.mark.parametrize("size", [7, 224])
def test_shape_is_kept_when_resized(size):
    image, segments = scene()
    (crop,) = crop_segments(image, segments, "white", size, margin=0)
    red = (crop[..., 0] > 150) & (crop[..., 1] < 100)
    assert red.any(0).mean() == 1 and red.any(1).mean() == pytest.approx(0.5, abs=3 / size)


def test_blur_keeps_the_segment_and_softens_what_is_around():
    image, segments = scene(30, 20, 50, 40)
    image[::2, ::2][~segments.masks()[0][::2, ::2]] = 255  # a pattern around
    (sharp,) = crop_segments(image, segments, "box", 40, margin=0.5)
    (soft,) = crop_segments(image, segments, "blur", 40, margin=0.5)
    np.testing.assert_array_equal(soft[10:30, 10:30], sharp[10:30, 10:30])
    assert np.ptp(sharp[:8].astype(int), axis=(0, 1))[2] == 75
    assert np.ptp(soft[:8].astype(int), axis=(0, 1))[2] < 40


def test_at_the_border_context_moves_inward_and_white_stays_centred():
    image, segments = scene(0, 0, 10, 4)
    (crop,) = crop_segments(image, segments, "box", 10, margin=0)
    np.testing.assert_array_equal(crop, image[:10, :10])
    (crop,) = crop_segments(image, segments, "white", 10, margin=0)
    np.testing.assert_array_equal(crop[3:7], np.tile(RED, (4, 10, 1)))
    assert (crop[:3] == 255).all() and (crop[7:] == 255).all()
    image, segments = scene(0, 20, 80, 30)  # wider than the image is high: the rest is the mean colour
    (crop,) = crop_segments(image, segments, "box", 80, margin=0)
    np.testing.assert_array_equal(crop[15:75], np.concatenate([image[:60]]))
    np.testing.assert_array_equal(crop[0, 0], image.mean((0, 1)).round())


def test_odd_segments_and_images():
    image, _ = scene()
    for background in ("white", "mean", "blur", "box"):
        assert crop_segments(image, Segments.none((60, 80)), background, 32).shape == (0, 32, 32, 3)
        dots = np.zeros((3, 60, 80), bool)
        dots[0, 59, 79] = dots[1, 0, 0] = True  # single pixels in corners, and an empty mask
        crops = crop_segments(image, Segments.from_masks(dots), background, 8)
        assert crops.shape == (3, 8, 8, 3) and crops.dtype == np.uint8
        tiny = crop_segments(image[:1, :1], Segments.from_masks(np.ones((1, 1, 1), bool)), background, 4, margin=0)
        np.testing.assert_array_equal(tiny, np.tile(image[0, 0], (1, 4, 4, 1)))


def test_many_masks_are_decoded_few_at_a_time(monkeypatch):
    image = np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    segments = Segments.from_masks(np.random.default_rng(1).random((9, 40, 40)) < 0.2)
    whole = crop_segments(image, segments, "blur", 16)
    monkeypatch.setattr("ucore.crops.MASKS_AT_ONCE", 2 * 40 * 40)
    np.testing.assert_array_equal(crop_segments(image, segments, "blur", 16), whole)


def test_what_does_not_fit_is_refused():
    image, segments = scene()
    with pytest.raises(DataError, match="80 x 60 pixels, but this one has 79 x 60"):
        crop_segments(image[:, :-1], segments)
    with pytest.raises(ConfigError, match="no background 'black'"):
        crop_segments(image, segments, "black")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"size \(0\)"):
        crop_segments(image, segments, size=0)
