"""Figures of segments: colours lie where the masks are, numbers where they can be read, counts are the filters'."""

from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_visualize import frames, size, words

from ucore.errors import ConfigError, DataError
from ucore.manifest import Manifest
from ucore.masks import Segments
from ucore.overlays import (
    overlay,
    plot_crops,
    plot_matches,
    plot_overlays,
    plot_steps,
    selection_steps,
    true_segments,
)

GREY = np.full((40, 60, 3), 128, np.uint8)


def squares(*boxes: tuple[int, int, int, int], **scores: Any) -> Segments:
    """Masks on GREY: each a rectangle of left, top, right, bottom."""
    masks = np.zeros((len(boxes), *GREY.shape[:2]), bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return Segments.from_masks(masks, **scores)


# --- painting ---------------------------------------------------------------------------------------------------


def test_only_the_ground_of_a_mask_is_tinted_and_its_outline_is_dark():
    picture = overlay(GREY, squares((10, 10, 30, 30)), side=120)
    assert picture.shape == (80, 120, 3)
    tinted = (picture != 128).any(-1)
    assert tinted[22:58, 22:58].all()
    far = np.ones_like(tinted)
    far[16:64, 16:64] = False
    assert not tinted[far].any()
    assert picture.min() < 60  # the outline


def test_neighbours_differ_in_colour_and_the_smaller_mask_lies_on_top():
    boxes = [(0, 0, 60, 40), (10, 10, 30, 30), (14, 14, 20, 20), (30, 10, 50, 30)]
    picture = overlay(GREY, squares(*boxes[::-1]), side=60)
    inside = [tuple(picture[y, x]) for x, y in ((5, 35), (25, 25), (17, 17), (40, 20))]
    assert len(set(inside)) == 4


def test_a_picture_without_masks_is_the_picture_and_masks_of_another_image_are_refused():
    assert (overlay(GREY, Segments.none((40, 60)), side=60) == 128).all()
    with pytest.raises(DataError, match="masks are of an image"):
        overlay(GREY, Segments.none((60, 40)))


def test_large_images_are_drawn_small():
    image = np.zeros((900, 3000, 3), np.uint8)
    mask = np.zeros((1, 900, 3000), bool)
    mask[:, 300:600, 1000:2000] = True
    picture = overlay(image, Segments.from_masks(mask), side=300)
    assert picture.shape == (90, 300, 3)
    assert (picture[45, 150] > 0).any()
    assert (picture[10, 10] == 0).all()


# --- true masks and filters -------------------------------------------------------------------------------------


def made(folder: Any, source: str) -> Manifest:
    (folder / "images" / "x").mkdir(parents=True)
    (folder / "masks" / "x").mkdir(parents=True)
    Image.fromarray(GREY).save(folder / "images" / "x" / "0.jpg")
    labels = np.zeros((40, 60), np.uint16)
    labels[:10, :10], labels[20:30, 20:40] = 3, 300
    Image.fromarray(labels).save(folder / "masks" / "x" / "0.png")
    row = dict(sample_id="0", image="images/x/0.jpg", captions=["a"], domain="x", split="val", source=source)
    return Manifest.from_rows([row], folder)


def test_true_masks_are_those_of_the_simulated_objects_without_the_ground(tmp_path):
    true = true_segments(made(tmp_path, "simulated: procedural"), 0)
    assert true is not None
    assert true.areas.tolist() == [100, 200]
    (tmp_path / "masks" / "x" / "0.png").unlink()
    assert true_segments(made_again(tmp_path), 0) is None


def made_again(folder: Any) -> Manifest:
    row = dict(sample_id="0", image="images/x/0.jpg", captions=[], domain="x", split="val", source="simulated: p")
    return Manifest.from_rows([row], folder)


def test_real_images_have_no_true_masks(tmp_path):
    assert true_segments(made(tmp_path, "a camera"), 0) is None


def test_each_step_leaves_what_the_filters_of_selection_leave():
    # Areas 800, 400, 400 (the second again), 100, 4.
    segments = squares((0, 0, 40, 20), (40, 0, 60, 20), (40, 0, 60, 20), (0, 30, 10, 40), (20, 30, 22, 32))
    steps = selection_steps(segments, k=2, largest=4, most_overlap=0.7)
    assert [len(rows) for _, rows in steps] == [5, 4, 3, 2]
    assert [name for name, _ in steps] == ["all masks", "the 4 largest", "overlap at most 0.7", "2 by quality"]
    assert steps[-1][1].tolist() == [0, 1]
    figure = plot_steps(GREY, segments, steps)
    seen = words(figure)
    assert "all masks:\n5 masks, 54% covered" in seen
    assert "2 by quality:\n2 masks, 50% covered" in seen
    assert {"1", "2"} <= set(seen)
    assert "3" not in seen  # numbers are of the last step only
    assert size(figure)[0] == 800


# --- figures ----------------------------------------------------------------------------------------------------


def test_overlays_stand_beside_their_picture_with_counts():
    found = squares((0, 0, 30, 40), (30, 0, 60, 40))
    figure = plot_overlays([GREY, GREY], {"sam": [found, found.take([0])], "true": [None, found]}, ["$a$ <b>", "b"])
    seen = words(figure)
    assert {"$a$ <b>", "sam: 2, 100%", "sam: 1, 50%", "true: 2, 100%"} <= set(seen)
    assert sum(len(axes.images) for axes in frames(figure)) == 5
    assert size(figure)[0] == 800
    with pytest.raises(ConfigError, match="one label and one result"):
        plot_overlays([GREY], {"sam": [found, found]}, ["a"])


def test_crops_stand_in_rows_of_their_background():
    crops = {"white": np.zeros((3, 8, 8, 3), np.uint8), "box": np.full((3, 8, 8, 3), 9, np.uint8)}
    axes = frames(plot_crops(crops))
    assert [int(np.max(one.images[0].get_array())) for one in axes] == [0, 0, 0, 9, 9, 9]
    assert [one.get_title() for one in axes[:3]] == ["1", "2", "3"]
    assert words(plot_crops({"white": crops["white"][:0]})) == ["No segment, no crop"]
    with pytest.raises(ConfigError, match="1 headings for 3 crops"):
        plot_crops(crops, ["a"])


def test_the_best_segment_of_each_word_is_framed():
    segments = squares((0, 0, 20, 40), (20, 0, 40, 40), (40, 0, 60, 40))
    crops = np.zeros((3, 8, 8, 3), np.uint8)
    similarity = np.array([[0.1, 0.5, 0.2], [0.3, 0.25, -0.4]])
    figure = plot_matches(GREY, segments, crops, ["a $pond$", "houses"], similarity, chosen=[2])
    (matrix,) = [axes for axes in frames(figure) if axes.get_yticks().size == 2 and axes.lines]
    boxes = [(line.get_xdata().min(), line.get_ydata().min()) for line in matrix.lines]
    assert boxes == [(0.5, -0.5), (-0.5, 0.5)]
    assert {".50", "-.40", "1", "2", "3 ▼", "a $pond$"} <= set(words(figure))
    assert "a $pond$: 2, houses: 1" in figure.alt
    assert size(figure)[0] == 800
    with pytest.raises(ConfigError, match="do not fit each other"):
        plot_matches(GREY, segments, crops, ["a"], similarity)
    assert words(plot_matches(GREY, segments, crops, [], similarity[:0])) == ["No segment or no words to compare"]
