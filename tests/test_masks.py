"""Run-length masks against plain numpy, and against scikit-image's region properties."""

import signal
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as _coco
from skimage.measure import regionprops

from ucore.errors import DataError
from ucore.masks import Segments, join, label_codes, remove_overlapping

coco: Any = _coco  # its type stubs do not know compressed codes


@pytest.fixture(scope="module")
def masks() -> np.ndarray:
    some = np.random.default_rng(0).random((12, 17, 23)) < 0.3
    some[0] = False
    some[1] = True
    return some


def test_masks_areas_boxes_and_overlaps_are_those_of_numpy(masks):
    segments = Segments.from_masks(masks)
    np.testing.assert_array_equal(segments.masks(), masks)
    np.testing.assert_array_equal(segments.masks([3, 1]), masks[[3, 1]])
    np.testing.assert_array_equal(segments.areas, masks.sum((1, 2)))
    assert segments.covered == 1.0 and segments.take([2]).covered == pytest.approx(masks[2].mean())
    for mask, box in zip(masks[1:], segments.boxes[1:], strict=True):
        (region,) = regionprops(mask.astype(int))
        assert box.tolist() == [region.bbox[1], region.bbox[0], region.bbox[3], region.bbox[2]]
    flat = masks.reshape(12, -1).astype(float)
    both, area = flat @ flat.T, flat.sum(1)
    either = (area[:, None] + area - both).clip(1)  # an empty mask overlaps nothing, not even itself
    np.testing.assert_allclose(segments.iou(), both / either, atol=1e-6)
    np.testing.assert_allclose(segments.covered_by()[1:], both[1:] / area[1:, None], atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (40, 33), (300, 500)])
def test_masks_are_decoded_as_pycocotools_does(size):
    rng = np.random.default_rng(0)
    masks = np.stack([rng.random(size) < share for share in (0, 0.01, 0.5, 0.99, 1)])
    masks = np.concatenate([masks, np.cumsum(masks, axis=1) > 1, np.cumsum(masks, axis=2) > 1])  # long runs as well
    found = Segments.from_masks(masks)
    assert np.array_equal(found.masks(), coco.decode(found.codes).transpose(2, 0, 1))
    assert np.array_equal(found.masks([3, 0]), masks[[3, 0]]) and found.masks().dtype == bool


@pytest.mark.parametrize("code", [b"", b"0", b"99", b"\x00~\xff"])
def test_a_code_of_another_size_is_refused(code):
    with pytest.raises(DataError, match="no run-length code of 5 x 4 pixels"):
        Segments.from_rles((5, 4), [code]).masks()


def test_a_stop_while_masks_are_decoded_is_a_stop():
    found = Segments.from_masks(np.random.default_rng(0).random((40, 64, 64)) < 0.5)
    for _ in range(20):
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012
                signal.setitimer(signal.ITIMER_REAL, 0.003)
                while True:
                    found.masks()
        finally:
            signal.signal(signal.SIGALRM, before)


def test_no_mask_is_an_answer():
    none = Segments.none((4, 5))
    assert len(none) == 0 and none.masks().shape == (0, 4, 5) and none.boxes.shape == (0, 4)
    assert none.areas.shape == (0,) and none.iou().shape == (0, 0) and none.covered == 0
    assert len(Segments.from_masks(np.zeros((0, 4, 5), bool))) == 0
    assert len(remove_overlapping(none, np.zeros(0), 0.5)) == 0
    assert len(join([none, none])) == 0 and len(none.take([])) == 0


def test_more_masks_than_a_byte_counts():
    masks = np.eye(300, dtype=bool).reshape(300, 20, 15)
    segments = Segments.from_masks(masks)
    np.testing.assert_array_equal(segments.areas, np.ones(300))
    assert segments.boxes.shape == (300, 4) and segments.covered == 1.0
    np.testing.assert_array_equal(segments.iou(), np.eye(300))


def test_scores_and_points_follow_their_masks(masks):
    segments = Segments.from_masks(masks, np.arange(12) / 12, points=np.arange(24).reshape(12, 2))
    some = segments.take(np.arange(12) % 2 == 1)
    np.testing.assert_allclose(some.predicted_iou * 12, [1, 3, 5, 7, 9, 11], atol=1e-5)
    np.testing.assert_array_equal(some.points[1], [6, 7])
    both = join([segments.take([5]), segments.take([0, 2])])
    np.testing.assert_array_equal(both.points, segments.points[[5, 0, 2]])
    assert both.rles == tuple(segments.rles[row] for row in (5, 0, 2))
    with pytest.raises(DataError, match="12 masks"):
        Segments.from_masks(masks, np.ones(3))
    with pytest.raises(DataError, match="one size"):
        join([segments, Segments.none((2, 2))])
    with pytest.raises(DataError, match="cannot be compared"):
        segments.iou(Segments.from_masks(np.ones((1, 2, 2), bool)))


def test_of_two_masks_that_overlap_the_better_stays():
    masks = np.zeros((4, 4, 10), bool)
    masks[0, :, :6] = True
    masks[1, :, 1:6] = True  # 5/6 of the first
    masks[2, :, 6:] = True
    masks[3, :, 5:] = True  # 4/5 of the third
    segments = Segments.from_masks(masks)
    assert remove_overlapping(segments, np.array([0.5, 0.9, 0.7, 0.7]), 0.7).tolist() == [1, 2]
    assert remove_overlapping(segments, np.ones(4), 0.82).tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    ("shape", "size"), [((7, 5), None), ((6, 9), (17, 31)), ((1, 1), (8, 8)), ((3, 4), (9, 8)), ((9, 7), (3, 50))]
)
def test_codes_of_labels_are_those_of_their_masks(shape, size):
    labels = np.random.default_rng(1).integers(0, 6, shape) * 2 // 3
    numbers, codes = label_codes(labels, size)
    height, width = size or shape
    y = ((np.arange(height) + 0.5) * shape[0] / height).astype(int)
    x = ((np.arange(width) + 0.5) * shape[1] / width).astype(int)
    large = labels[y][:, x]
    assert numbers.tolist() == np.unique(labels).tolist()
    expected = Segments.from_masks(np.stack([large == number for number in numbers]))
    assert tuple(codes) == expected.rles
