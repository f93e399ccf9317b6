"""Masks of one image as run-length codes: small in memory at any image size, exact, and quick to compare."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from ucore.errors import DataError


def _coco() -> Any:
    """pycocotools' mask functions, whose type stubs do not know compressed codes; imported when first needed."""
    from pycocotools import mask

    return mask


@dataclass(frozen=True, eq=False)
class Segments:
    """N masks of one image and what their maker thinks of them. Order is the maker's.

    size: height and width of the image in pixels.
    rles: compressed run-length codes, as of pycocotools (column-major), one bytes a mask.
    predicted_iou, stability: float32 (N,), in [0, 1]; 1 where the maker does not estimate them.
    points: float32 (N, 2), x and y in pixels of the click that gave the mask; NaN where there was none.
    """

    size: tuple[int, int]
    rles: tuple[bytes, ...]
    predicted_iou: np.ndarray
    stability: np.ndarray
    points: np.ndarray

    @classmethod
    def from_masks(
        cls,
        masks: np.ndarray,
        predicted_iou: np.ndarray | None = None,
        stability: np.ndarray | None = None,
        points: np.ndarray | None = None,
    ) -> Self:
        """From masks bool (N, H, W); what is not given is 1 (scores) or NaN (points)."""
        coco = _coco()
        masks = np.asarray(masks)
        if masks.ndim != 3:
            raise ValueError(f"masks must be (N, H, W), not {masks.shape}")
        codes = coco.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
        return cls.from_rles((masks.shape[1], masks.shape[2]), [code["counts"] for code in codes], predicted_iou,
                             stability, points)  # fmt: skip

    @classmethod
    def from_rles(
        cls,
        size: tuple[int, int],
        rles: Sequence[bytes],
        predicted_iou: np.ndarray | None = None,
        stability: np.ndarray | None = None,
        points: np.ndarray | None = None,
    ) -> Self:
        """From run-length codes of masks of `size` (height, width). Raises DataError for scores of another length."""
        count = len(rles)
        ones, nowhere = np.ones(count, np.float32), np.full((count, 2), np.nan, np.float32)
        values = [
            np.asarray(default if given is None else given, np.float32).reshape(-1, *default.shape[1:])
            for given, default in ((predicted_iou, ones), (stability, ones), (points, nowhere))
        ]
        if any(len(value) != count for value in values):
            raise DataError(f"{count} masks, but {', '.join(str(len(value)) for value in values)} scores and points")
        return cls((int(size[0]), int(size[1])), tuple(bytes(code) for code in rles), *values)

    @classmethod
    def none(cls, size: tuple[int, int]) -> Self:
        """No mask: the right answer for an image of one colour."""
        return cls.from_rles(size, [])

    def __len__(self) -> int:
        return len(self.rles)

    def require_whole(self) -> None:
        """Raise DataError unless every code covers the image exactly: pycocotools' C code does not look."""
        pixels = self.size[0] * self.size[1]
        bad = [row for row, code in enumerate(self.rles) if min(self.size) < 1 or not _covers(code, pixels)]
        if bad:
            raise DataError(f"mask {bad[0]} is no run-length code of {self.size[0]} x {self.size[1]} pixels")

    @property
    def codes(self) -> list[dict[str, Any]]:
        """The masks as pycocotools takes them."""
        return [{"size": list(self.size), "counts": code} for code in self.rles]

    def masks(self, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Masks bool (n, H, W) of `rows`, by default of all; take few at once of a large image.

        Raises DataError for a code that is none of this size.
        """
        wanted = self.rles if rows is None else [self.rles[int(row)] for row in rows]
        height, width = self.size
        masks = np.empty((len(wanted), width, height), bool)
        for mask, code in zip(masks, wanted, strict=True):
            # Not by pycocotools, which answers Ctrl-C with a TypeError of its own (numpy 2 asks twice for its array).
            runs = _runs(code) if code else np.zeros(0, np.int64)
            if runs.min(initial=0) < 0 or runs.sum() != height * width:
                raise DataError(f"A mask is no run-length code of {height} x {width} pixels")
            mask.ravel()[:] = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        return masks.transpose(0, 2, 1)

    @property
    def areas(self) -> np.ndarray:
        """Pixels in each mask, int64 (N,)."""
        return code_areas(self.codes)

    @property
    def covered(self) -> float:
        """Share of the image's pixels that lie in any of the masks."""
        coco = _coco()
        pixels = self.size[0] * self.size[1]
        return float(coco.area(coco.merge(self.codes))) / pixels if self.rles and pixels else 0.0

    @property
    def boxes(self) -> np.ndarray:
        """Left, top, right and bottom edge of each mask in pixels, int64 (N, 4), right and bottom exclusive."""
        coco = _coco()
        if not self.rles:
            return np.zeros((0, 4), np.int64)
        boxes = np.asarray(coco.toBbox(self.codes)).round().astype(np.int64)
        boxes[:, 2:] += boxes[:, :2]
        return boxes

    def take(self, rows: Sequence[int] | np.ndarray) -> Self:
        """The masks of `rows` (positions or a bool mask), in that order."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        return replace(self, rles=tuple(self.rles[row] for row in rows), predicted_iou=self.predicted_iou[rows],
                       stability=self.stability[rows], points=self.points[rows])  # fmt: skip

    def iou(self, other: "Segments | None" = None) -> np.ndarray:
        """Intersection over union of these masks with those of `other` (by default themselves), float32 (N, M)."""
        return self._overlap(self if other is None else other, share=False)

    def covered_by(self, other: "Segments | None" = None) -> np.ndarray:
        """Share of each of these masks' pixels that lies in each of `other`'s masks, float32 (N, M)."""
        return self._overlap(self if other is None else other, share=True)

    def _overlap(self, other: "Segments", share: bool) -> np.ndarray:
        coco = _coco()
        if self.size != other.size:
            raise DataError(f"Masks of images of {self.size} and {other.size} pixels cannot be compared")
        if not self.rles or not other.rles:
            return np.zeros((len(self), len(other)), np.float32)
        # "Crowd" is COCO's name for dividing by the first mask's area instead of the union's.
        return np.asarray(coco.iou(self.codes, other.codes, [share] * len(other)), np.float32)


def join(parts: Sequence[Segments]) -> Segments:
    """The masks of several results for the same image, one after the other."""
    if len({part.size for part in parts}) != 1:
        raise DataError("Only masks of images of one size can be joined")
    return Segments.from_rles(
        parts[0].size,
        [code for part in parts for code in part.rles],
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("predicted_iou", "stability", "points")),
    )


def remove_overlapping(segments: Segments, scores: np.ndarray, most: float) -> np.ndarray:
    """Rows to keep, best score first, so that no two masks have an intersection over union above `most`.

    Greedy non-maximum suppression on the masks themselves (boxes of long diagonal roads overlap where the roads do
    not). Equal scores keep the earlier row first.
    """
    overlap = segments.iou()
    kept: list[int] = []
    for row in np.argsort(-np.asarray(scores, np.float64), kind="stable"):
        if not kept or overlap[row, kept].max() <= most:
            kept.append(int(row))
    return np.array(kept, np.int64)


def label_codes(labels: np.ndarray, size: tuple[int, int] | None = None) -> tuple[np.ndarray, list[bytes]]:
    """Every label of a map int (h, w) >= 0, ascending, int64 (N,), and the run-length code of the pixels it has.

    size: height and width of the masks, where the map is a smaller picture of them: enlarged to the nearest pixel,
        run by run, so that no mask is ever as large as the image.
    """
    from scipy.ndimage import find_objects

    coco = _coco()
    (rows, columns), (height, width) = labels.shape, size or labels.shape
    row_of = (2 * np.arange(height) + 1) * rows // (2 * height)
    column_of = (2 * np.arange(width) + 1) * columns // (2 * width)
    row_starts = np.searchsorted(row_of, np.arange(rows + 1))
    found, codes = [], []
    for label, box in enumerate(find_objects(labels.astype(np.int64) + 1)):
        if box is None:
            continue
        inside = np.pad(labels[box] == label, ((1, 1), (0, 0))).T.astype(np.int8)
        edges = np.diff(inside, axis=1)  # 1 where a run begins in a column, -1 behind its end
        column, first = np.nonzero(edges == 1)
        _, last = np.nonzero(edges == -1)
        first, last = row_starts[first + box[0].start], row_starts[last + box[0].start]
        wide = np.arange(*np.searchsorted(column_of, [box[1].start, box[1].stop]))
        narrow = column_of[wide] - box[1].start
        runs = np.bincount(column, minlength=len(edges))
        count = runs[narrow]
        run = np.arange(count.sum()) + np.repeat((np.cumsum(runs) - runs)[narrow] - np.cumsum(count) + count, count)
        start = np.repeat(wide * height, count)
        # Where a run reaches the bottom and the next begins at the top, end and beginning cancel.
        bounds, times = np.unique(np.concatenate([first[run] + start, last[run] + start]), return_counts=True)
        lengths = np.diff(np.concatenate([[0], bounds[times % 2 == 1], [height * width]]))
        counts = lengths[: len(lengths) - int(lengths[-1] == 0)].tolist()
        found.append(label)
        codes.append(coco.frPyObjects({"counts": counts, "size": [height, width]}, height, width)["counts"])
    return np.array(found, np.int64), codes


def code_areas(codes: Sequence[dict[str, Any]]) -> np.ndarray:
    """Pixels of codes as pycocotools takes them, int64 (N,); 2.0.11 keeps how many it is given in eight bits."""
    parts = [_coco().area(list(codes[start : start + 255])) for start in range(0, len(codes), 255)]
    return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)


def _covers(code: bytes, pixels: int) -> bool:
    """Whether a compressed code is one of `pixels` pixels."""
    signs = np.frombuffer(code, np.uint8).astype(np.int64) - 48
    if not len(signs) or signs.min() < 0 or signs.max() > 63 or signs[-1] & 32:
        return False
    ends = np.flatnonzero(signs & 32 == 0)
    if np.diff(ends, prepend=-1).max() > 7:
        return False
    runs = _runs(code)
    return bool((runs[:1] >= 0).all() and (runs[1:] > 0).all() and runs.sum() == pixels)


def _runs(code: bytes) -> np.ndarray:
    """Lengths int64 of the runs of 0, 1, 0, ... of a compressed code: five bits a sign, from the fourth run on the
    difference to the one before the last."""
    signs = np.frombuffer(code, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(signs & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(len(signs)) - np.repeat(starts, ends - starts + 1)
    runs = np.add.reduceat((signs & 31) << (5 * places), starts)
    runs -= np.where(signs[ends] & 16, 1 << (5 * (ends - starts + 1)), 0)  # the highest bit is the sign
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    return runs
