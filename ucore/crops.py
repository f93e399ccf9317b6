"""Segments as pictures an encoder can read: cut out, on a background of choice, all of one size."""

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np

from ucore.errors import ConfigError, DataError
from ucore.masks import Segments

Background = Literal["white", "mean", "blur", "box"]
BACKGROUNDS: tuple[str, ...] = get_args(Background)
MASKS_AT_ONCE = 2**26  # bytes of decoded masks


def crop_segments(
    image: np.ndarray,
    segments: Segments,
    background: Background = "white",
    size: int = 224,
    margin: float = 0.05,
) -> np.ndarray:
    """Crops uint8 (N, size, size, 3) of an image uint8 (H, W, 3), one a segment; no segments give (0, size, size, 3).

    A crop is a square around the segment's bounding box, so that shapes keep their aspect ratio: as wide as the box's
    longer side and `margin` of it on either side. What is in it beside the segment:
    white: white, as in the paper. mean: the image's mean colour. blur: the surroundings, blurred to some 12 x 12 spots.
    box: the surroundings as they are.
    The segment is in the middle; with its surroundings shown the square is moved into the image where it fits, and the
    rest is the image's mean colour. Raises DataError where the segments belong to an image of another size.
    """
    if background not in BACKGROUNDS:
        raise ConfigError(f"There is no background {background!r} for crops: choose {', '.join(BACKGROUNDS)}")
    if size < 1 or margin < 0:
        raise ConfigError(f"A crop's size ({size}) must be at least 1 and its margin ({margin}) not negative")
    if image.shape[:2] != segments.size:
        raise DataError(
            f"The segments are of an image of {segments.size[1]} x {segments.size[0]} pixels, but this one has "
            f"{image.shape[1]} x {image.shape[0]}: it was changed. Segment it again."
        )
    crops = np.empty((len(segments), size, size, 3), np.uint8)
    mean = image.mean((0, 1)).round().astype(np.uint8) if image.size else np.zeros(3, np.uint8)
    fill = np.full(3, 255, np.uint8) if background == "white" else mean
    shown = background in ("blur", "box")
    for row, (box, mask) in enumerate(_boxes_and_masks(segments)):
        left, top, side = _square(box, margin, segments.size if shown else None)
        window = _window(image, left, top, side, fill)
        if background != "box":
            inside = _window(mask, left, top, side, np.zeros((), bool))
            window = np.where(inside[..., None], window, _blurred(window) if background == "blur" else fill)
        crops[row] = _resized(window, size)
    return crops


def _boxes_and_masks(segments: Segments) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Box int64 (4,) and mask bool (H, W) of each segment; few masks are decoded at once."""
    some = max(MASKS_AT_ONCE // max(segments.size[0] * segments.size[1], 1), 1)
    boxes = segments.boxes
    for start in range(0, len(segments), some):
        rows = np.arange(start, min(start + some, len(segments)))
        yield from zip(boxes[rows], segments.masks(rows), strict=True)


def _square(box: np.ndarray, margin: float, within: tuple[int, int] | None) -> tuple[int, int, int]:
    """Left, top and side of the square around a box, moved into an image of the size `within` where it fits."""
    longer = int(max(box[2] - box[0], box[3] - box[1], 1))
    side = longer + 2 * int(np.ceil(longer * margin))
    corner = []
    for axis in (0, 1):
        start = int(box[axis] + box[2 + axis] - side) // 2
        room = None if within is None else within[1 - axis] - side
        corner.append(start if room is None or room < 0 else min(max(start, 0), room))
    return corner[0], corner[1], side


def _window(values: np.ndarray, left: int, top: int, side: int, fill: np.ndarray) -> np.ndarray:
    """The square cut out of `values` (H, W, ...); what lies outside of it is `fill`."""
    window = np.empty((side, side, *values.shape[2:]), values.dtype)
    window[...] = fill
    y, x = slice(max(top, 0), max(top + side, 0)), slice(max(left, 0), max(left + side, 0))
    part = values[y, x]
    y0, x0 = max(-top, 0), max(-left, 0)
    window[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]] = part
    return window


def _blurred(window: np.ndarray) -> np.ndarray:
    import cv2

    spots = cv2.resize(window, (12, 12), interpolation=cv2.INTER_AREA)
    return cv2.resize(spots, (window.shape[1], window.shape[0]), interpolation=cv2.INTER_CUBIC)


def _resized(window: np.ndarray, size: int) -> np.ndarray:
    import cv2

    if window.shape[0] == size:
        return window
    how = cv2.INTER_AREA if window.shape[0] > size else cv2.INTER_CUBIC
    return cv2.resize(window, (size, size), interpolation=how)
