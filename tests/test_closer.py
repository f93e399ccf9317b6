"""A second look at a click: the picture mirrored, then windows around the click at about twice the size."""

import numpy as np
import pytest
import torch

from ucore.click_scores import one_click_iou
from ucore.closer import MIRRORS, CloserLook
from ucore.micro_sam import load_micro_sam, weights_path
from ucore.micro_sam_data import centre_clicks, simulated_source
from ucore.simulate import SimulationConfig, simulate_dataset


@pytest.fixture(scope="module")
def look():
    return CloserLook(load_micro_sam(weights_path()))


def field(size=(120, 200), corner=(60, 90), side=30):
    """A bright square on dark ground, and where it is."""
    image = np.full((*size, 3), 60, np.uint8)
    truth = np.zeros(size, bool)
    truth[corner[0] : corner[0] + side, corner[1] : corner[1] + side] = True
    image[truth] = (220, 60, 40)
    return image, truth


def overlap(mask, truth):
    return (mask & truth).sum() / (mask | truth).sum()


def test_the_thing_under_the_click_is_found_wherever_it_lies(look):
    for corner in ((60, 90), (0, 0), (90, 170)):
        image, truth = field(corner=corner)
        masks, quality = look.click(look.prepare(image), np.array([[corner[1] + 15, corner[0] + 15]]))
        assert masks.shape == (1, 120, 200)
        assert masks.dtype == bool
        assert quality.shape == (1,)
        assert overlap(masks[0], truth) > 0.85


def test_a_mirrored_picture_has_the_mirrored_mask(look):
    image, _ = field()
    masks, _ = look.click(look.prepare(image), np.array([[104.5, 74.5]]))
    for axes in MIRRORS[1:]:
        turned = np.array([[200 - 104.5 if 1 in axes else 104.5, 120 - 74.5 if 0 in axes else 74.5]])
        found, _ = look.click(look.prepare(np.ascontiguousarray(np.flip(image, axes))), turned)
        assert overlap(np.flip(found[0], axes), masks[0]) > 0.95  # the window is not mirrored in itself


def test_a_window_that_cuts_the_thing_is_not_asked(look, monkeypatch):
    image = np.zeros((128, 128, 3), np.uint8)

    def seen(first: int, last: int) -> list[tuple[int, int] | None]:
        """For windows in the middle and in a corner, whose masks are columns first to last: the place, if asked."""
        found = torch.zeros(1, 3, 64, 64)
        found[..., first : last + 1] = 1
        monkeypatch.setattr(look, "_masks", lambda *_: (found, torch.ones(1, 3)))
        windows = [look._window(image, np.array(at), 1 / 2) for at in ((60.0, 60.0), (127.0, 127.0))]
        return [corner if window is not None else None for corner, window in windows]

    assert seen(10, 20) == [None, None]  # the columns end at the window's upper border, where the picture goes on
    image = image[:64]
    assert seen(10, 20) == [(0, 28), (0, 64)]  # now they end where the picture ends
    assert seen(10, 63) == [None, (0, 64)]
    assert seen(0, 20) == [None, None]
    assert seen(1, 0) == [None, None]  # nothing is there


def test_no_click_is_an_answer_and_many_are_as_one_by_one(look):
    image, _ = field()
    prepared = look.prepare(image)
    masks, quality = look.click(prepared, np.zeros((0, 2)))
    assert masks.shape == (0, 120, 200)
    assert quality.shape == (0,)
    clicks = np.stack([np.linspace(5, 195, 20), np.linspace(5, 115, 20)], axis=1)
    together, sure = look.click(prepared, clicks)
    for row in (0, 17):
        alone, one = look.click(prepared, clicks[row : row + 1])
        assert (alone[0] != together[row]).mean() < 0.001
        assert one[0] == pytest.approx(sure[row], abs=1e-4)


def test_on_simulated_tiles_the_second_look_is_better_than_the_first(tmp_path, look):
    simulate_dataset(tmp_path, SimulationConfig(countries=("germany",), tiles=2, seed=13))
    source = simulated_source([tmp_path])
    second = []
    for image, labels in zip(source.images, source.labels, strict=True):
        objects, clicks, _ = centre_clicks(labels[0])
        masks, _ = look.click(look.prepare(image), clicks)
        second += [overlap(mask, labels[0] == number) for mask, number in zip(masks, objects, strict=True)]
    first = one_click_iou(look.sam, source)["iou"]
    assert len(first) == len(second)
    assert np.mean(second) > first.mean() + 0.03
