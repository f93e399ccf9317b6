"""Masks of images of any size: windows of bounded size, and one mask for what a window's border cut in pieces.

Works with every generator. Neighbouring windows overlap; in the strip that both see, two masks that agree are one thing
seen twice. If one window sees it whole, that mask is taken; if both see it cut, the pieces are united, along a road
through many windows. Masks are kept as run-length codes, so memory grows with outlines, not with pixels.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from pycocotools import mask as _coco

from ucore.errors import ConfigError
from ucore.files import content_hash
from ucore.masks import Segments, code_areas, join, label_codes

coco: Any = _coco  # its type stubs do not know compressed codes
AGREEMENT = 0.6  # least intersection over union in the strip of two masks of one thing
WINDOW = 1024  # pixels, for generators that do not say what they see well
EDGE = 2  # pixels: a mask that comes so near to a window's border is cut by it
VERSION = 2  # of the way masks are united, for `key`

Seen = tuple[tuple[int, int], Segments, np.ndarray]  # a window's first pixel, its masks, which of them it cuts


class Mosaic:
    """A generator made of another: images whose longer side exceeds `window` pixels are cut into windows.

    generator: anything with `name`, `key()` and `generate(images)`. window: by default `generator.window`, or 1024.
    overlap: of neighbouring windows, as a share of the window. batch: windows handed on at once.
    slack: images of up to so many windows a side are handed on as they are, as smaller ones are.
    What is larger than a window is looked for in the whole picture, made as small as one: of a lake, in whose middle
    windows see one colour, they would give the shore alone. (Pieces of the shore may stay beside the lake.)
    """

    def __init__(
        self, generator: Any, window: int | None = None, overlap: float = 0.25, batch: int = 4, slack: float = 1.0
    ):
        self.generator, self.name = generator, generator.name
        self.window = window or getattr(generator, "window", WINDOW)
        if self.window < 8 or not 0 < overlap <= 0.5 or slack < 1:
            raise ConfigError(
                f"A window of {self.window} pixels with an overlap of {overlap:g} and a slack of {slack:g} cannot be "
                "used: take at least 8 pixels, an overlap above 0 and at most 0.5, and a slack of 1 or more"
            )
        self.overlap, self.batch, self.slack = overlap, batch, slack

    def key(self) -> str:
        """16 hexadecimal digits that change with the generator's key and the windows."""
        return content_hash(VERSION, self.generator.key(), self.window, self.overlap, self.slack)

    def generate(self, images: Sequence[np.ndarray]) -> list[Segments]:
        """The masks of each image, uint8 (H, W, 3); for a large one, the largest, then in the order of its windows."""
        small = [row for row, image in enumerate(images) if max(image.shape[:2]) <= self.slack * self.window]
        results = dict(
            zip(small, self.generator.generate([images[row] for row in small]) if small else [], strict=True)
        )
        for row, image in enumerate(images):
            if row not in results:
                results[row] = self._of_large(image)
        return [results[row] for row in range(len(images))]

    def _of_large(self, image: np.ndarray) -> Segments:
        size = (image.shape[0], image.shape[1])
        rows, columns = (starts(side, self.window, self.overlap) for side in size)
        windows = list(product(rows, columns))
        found: list[Segments] = []
        for first in range(0, len(windows), self.batch):
            crops = [np.ascontiguousarray(image[y : y + self.window, x : x + self.window])
                     for y, x in windows[first : first + self.batch]]  # fmt: skip
            found += self.generator.generate(crops)
        return self._with_large(image, unite(size, windows, found))

    def _with_large(self, image: np.ndarray, united: Segments) -> Segments:
        """What the windows gave, and of the picture made as small as a window the masks of a window's area or more that
        they lack, or have with a hole as it comes where windows see nothing; those in its place."""
        import cv2

        size, scale = united.size, self.window / max(united.size)
        small = cv2.resize(image, [max(1, round(side * scale)) for side in size[::-1]], interpolation=cv2.INTER_AREA)
        (coarse,) = self.generator.generate([small])
        least = (self.window * scale) ** 2  # a window's area there
        coarse = coarse.take(coarse.areas >= least)
        alike = np.flatnonzero(united.areas >= self.window**2 / 2)
        replaced: list[int] = []
        lacking: dict[int, bytes] = {}  # by row of `coarse`, in the size of the whole
        for row in range(len(coarse)):
            shape = coarse.masks([row])[0]
            code = label_codes(shape.astype(np.int64), size)[1][-1]
            same = alike[united.take(alike).iou(Segments.from_rles(size, [code]))[:, 0] >= AGREEMENT]
            if all(_hole(shape, united.masks([mask])[0]) >= least / 8 for mask in same):
                replaced += same.tolist()
                lacking[row] = code
        rows = list(lacking)
        large = Segments.from_rles(size, list(lacking.values()), coarse.predicted_iou[rows], coarse.stability[rows],
                                   coarse.points[rows] / scale)  # fmt: skip
        return join([large, united.take(np.setdiff1d(np.arange(len(united)), replaced))])


def _hole(shape: np.ndarray, mask: np.ndarray) -> int:
    """Pixels of `shape`, bool (h, w), that `mask`, bool (H, W) of the same picture, lacks, outlines not counted."""
    import cv2

    small = cv2.resize(mask.astype(np.uint8), shape.shape[::-1], interpolation=cv2.INTER_NEAREST)
    return int(cv2.erode((shape & (small == 0)).astype(np.uint8), np.ones((3, 3), np.uint8)).sum())


def starts(side: int, window: int, overlap: float) -> list[int]:
    """First pixels of windows that cover `side` pixels evenly and overlap by about that share or more."""
    if side <= window:
        return [0]
    count = 1 + -(-(side - window) // max(1, int(window * (1 - overlap))))
    return [round(number * (side - window) / (count - 1)) for number in range(count)]


def unite(size: tuple[int, int], windows: Sequence[tuple[int, int]], found: Sequence[Segments]) -> Segments:
    """One result for an image of `size` from those of its windows, whose first pixels (row, column) are `windows`.

    A united mask has the mean scores of its pieces, weighted by area, and the point of the largest. Masks are in the
    order of their first pieces.
    """
    offsets = np.cumsum([0, *(len(segments) for segments in found)])  # masks are numbered through all windows
    parents, dropped = np.arange(offsets[-1]), np.zeros(offsets[-1], bool)
    cuts = [_cut(segments, corner, size) for segments, corner in zip(found, windows, strict=True)]

    def root(mask: int) -> int:
        while parents[mask] != mask:
            parents[mask] = mask = parents[parents[mask]]
        return mask

    for a, b in _neighbours(windows, found):
        for one, other in _agreeing((windows[a], found[a], cuts[a]), (windows[b], found[b], cuts[b])):
            mine, theirs = offsets[a] + one, offsets[b] + other
            if cuts[a][one] and cuts[b][other]:
                low, high = sorted((root(mine), root(theirs)))
                parents[high] = low
            elif cuts[a][one] or cuts[b][other]:
                dropped[mine if cuts[a][one] else theirs] = True
            else:
                worse = found[b].predicted_iou[other] <= found[a].predicted_iou[one]
                dropped[theirs if worse else mine] = True
    groups: dict[int, list[int]] = {}
    for mask in np.flatnonzero(~dropped).tolist():
        groups.setdefault(root(mask), []).append(mask)
    return _united(size, windows, found, offsets, sorted(groups.values()))


def _united(
    size: tuple[int, int],
    windows: Sequence[tuple[int, int]],
    found: Sequence[Segments],
    offsets: np.ndarray,
    groups: Sequence[Sequence[int]],
) -> Segments:
    """One mask for each group of pieces."""
    areas = np.concatenate([segments.areas for segments in found])
    quality, stability = (np.concatenate([getattr(s, name) for s in found]) for name in ("predicted_iou", "stability"))
    points = np.concatenate([s.points + np.array([x, y], np.float32) for s, (y, x) in zip(found, windows, strict=True)])
    rles, largest, means = [], [], []
    for group in groups:
        codes = []
        for mask in group:
            window = int(np.searchsorted(offsets, mask, side="right")) - 1
            codes.append(moved(found[window].masks([mask - offsets[window]])[0], windows[window], size))
        rles.append(codes[0]["counts"] if len(codes) == 1 else coco.merge(codes)["counts"])
        largest.append(max(group, key=lambda mask: areas[mask]))
        means.append([np.average(values[group], weights=areas[group]) for values in (quality, stability)])
    scores = np.array(means, np.float32).reshape(-1, 2)
    return Segments.from_rles(size, rles, scores[:, 0], scores[:, 1], points[largest])


def moved(mask: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    """The run-length code, as of pycocotools, of a mask bool (h, w) set into an image of `size` at `corner` (y, x).

    The image's pixels are never laid out: runs of a column are moved to where that column is in the whole.
    """
    columns = np.zeros((mask.shape[1], mask.shape[0] + 2), np.int8)
    columns[:, 1:-1] = mask.T
    change = np.diff(columns, axis=1)
    (column, first), (_, last) = np.nonzero(change == 1), np.nonzero(change == -1)
    begin = (column + corner[1]) * size[0] + corner[0]
    edges = np.stack([begin + first, begin + last], axis=1).ravel()
    touching = edges[1:-1:2] == edges[2::2]  # a run to the foot of the image goes on at the head of the next column
    edges = np.delete(edges, np.concatenate([2 * np.flatnonzero(touching) + 1, 2 * np.flatnonzero(touching) + 2]))
    end = size[0] * size[1]
    counts = np.diff(np.concatenate([[0], edges, [end] if not len(edges) or edges[-1] < end else []]))
    return coco.frPyObjects({"size": list(size), "counts": counts.astype(int).tolist()}, *size)


def _cut(segments: Segments, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Which masks reach a border of their window that is not one of the image, bool (n,)."""
    (y, x), (height, width), boxes = corner, segments.size, segments.boxes
    return (
        ((boxes[:, 0] < EDGE) & (x > 0))
        | ((boxes[:, 1] < EDGE) & (y > 0))
        | ((boxes[:, 2] > width - EDGE) & (x + width < size[1]))
        | ((boxes[:, 3] > height - EDGE) & (y + height < size[0]))
    )


def _neighbours(windows: Sequence[tuple[int, int]], found: Sequence[Segments]) -> Iterator[tuple[int, int]]:
    """Pairs of windows that share pixels and both have masks."""
    corners = np.array(windows)
    ends = corners + np.array([segments.size for segments in found])
    for a in range(len(found)):
        shared = (np.minimum(ends, ends[a]) > np.maximum(corners, corners[a])).all(axis=1)
        for b in np.flatnonzero(shared).tolist():
            if b > a and len(found[a]) and len(found[b]):
                yield a, b


def _agreeing(one: Seen, other: Seen) -> Iterator[tuple[int, int]]:
    """Pairs of masks of two windows that are the same thing, judged where both windows see.

    What a window sees whole is there, and nothing more of it can be elsewhere: then the other mask counts in full.
    """
    (corner, segments, cut), (corner2, segments2, cut2) = one, other
    start = np.maximum(corner, corner2)
    stop = np.minimum(np.add(corner, segments.size), np.add(corner2, segments2.size))
    (rows, codes), (rows2, codes2) = _inside(corner, segments, start, stop), _inside(corner2, segments2, start, stop)
    if not codes or not codes2:
        return
    seen, seen2 = code_areas(codes).astype(np.float64), code_areas(codes2).astype(np.float64)
    both = np.asarray(coco.iou(codes, codes2, [True] * len(codes2))) * seen[:, None]  # pixels in common
    whole, whole2 = ~cut[rows], ~cut2[rows2]
    areas = np.where(whole2[None, :], segments.areas[rows][:, None], seen[:, None])
    areas2 = np.where(whole[:, None], segments2.areas[rows2][None, :], seen2[None, :])
    for a, b in zip(*np.nonzero(both >= AGREEMENT * (areas + areas2 - both)), strict=True):
        yield int(rows[a]), int(rows2[b])


def _inside(
    corner: tuple[int, int], segments: Segments, start: np.ndarray, stop: np.ndarray
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Rows of the masks with pixels from `start` to `stop` (row, column of the image), and their codes there."""
    (top, left), (bottom, right) = start - corner, stop - corner
    boxes = segments.boxes
    near = (boxes[:, 0] < right) & (boxes[:, 2] > left) & (boxes[:, 1] < bottom) & (boxes[:, 3] > top)
    rows, codes = [], []
    for row in np.flatnonzero(near).tolist():
        part = segments.masks([row])[0, top:bottom, left:right]
        if part.any():
            rows.append(row)
            codes.append(coco.encode(np.asfortranarray(part.astype(np.uint8))))
    return np.array(rows, np.int64), codes
