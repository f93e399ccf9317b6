"""Rules of choice among many masks of one image, as pure functions: grids, duplicates, small holes."""

from typing import Any

import numpy as np
import torch
from pycocotools import mask
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms

from ucore.masks import Segments

MENDED_OVERLAP = 0.7  # segment_anything's crop_nms_thresh, which counts there where it is more than box_nms_thresh

coco: Any = mask  # its type stubs do not know compressed codes

MENDED_OVERLAP = 0.7  # segment_anything's crop_nms_thresh, which it takes where it is more than box_nms_thresh


def levels(side: int) -> list[np.ndarray]:
    """Positions int64 in a grid of `side` x `side`, coarse to fine: every second of every second row, those in the
    middle of four of them, the rest. Together they are the grid."""
    row, column = np.divmod(np.arange(side * side), side)
    level = np.where(row % 2 == column % 2, row % 2, 2)
    return [np.flatnonzero(level == number) for number in range(3)]


def surrounded(label: Tensor) -> Tensor:
    """Where all eight neighbours bear the same label, bool (side, side); -1 is none.

    What lies outside the grid counts as the same.
    """
    padded = F.pad(label, (1, 1, 1, 1), value=-2)

    def same(down: int, right: int) -> Tensor:
        side = label.shape[0]
        other = padded[1 + down : 1 + down + side, 1 + right : 1 + right + side]
        return (other == label) | (other == -2)

    straight = same(0, 1) & same(0, -1) & same(1, 0) & same(-1, 0)
    diagonal = same(1, 1) & same(1, -1) & same(-1, 1) & same(-1, -1)
    return (label >= 0) & straight & diagonal


def familiar(features: Tensor, label: Tensor, tried: Tensor) -> Tensor:
    """Where features (G, C) lie no further from the mean of their label's tried ones than the furthest of those.

    label: int64 (G,), -1 for none, which is never familiar. tried: bool (G,). Returns bool (G,).
    """
    known, place = tried & (label >= 0), label.clamp(min=0)
    size = int(place.max()) + 1
    counts = torch.bincount(label[known], minlength=size).clamp(min=1)
    members = F.one_hot(label[known], size).to(features.dtype)  # a product, because its sums have one order everywhere
    means = members.T @ features[known] / counts[:, None]
    distance = (features - means[place]).norm(dim=1)
    radius = features.new_full((size,), -1.0).scatter_reduce_(0, label[known], distance[known], "amax")
    return (label >= 0) & (distance <= radius[place])


def repeated(masks: Tensor, clicks: Tensor, least: float) -> Tensor:
    """Which masks, bool (n, P), have a partner of another click with an intersection over union of at least `least`."""
    flat = masks.float()
    shared = flat @ flat.T
    areas = flat.sum(dim=1)
    alike = shared >= least * (areas[:, None] + areas[None, :] - shared)
    return (alike & (clicks[:, None] != clicks[None, :])).any(dim=1)


def settled(label: Tensor, tried: Tensor, told: Tensor) -> Tensor:
    """Where nearly all tried points of the same label told nothing new, bool (G,): nine in ten, of at least two.

    label: int64 (G,), -1 for none. tried, told: bool (G,).
    """
    known, place = tried & (label >= 0), label.clamp(min=0)
    size = int(place.max()) + 1
    counts = torch.bincount(label[known], minlength=size)
    new = torch.bincount(label[known & told], minlength=size)
    return (label >= 0) & ((counts >= 2) & (10 * new <= counts))[place]


def boxes(logits: Tensor, threshold: float) -> Tensor:
    """First and last column and row above `threshold` of logits (n, h, w): x0, y0, x1, y1, float32 (n, 4), or 0."""
    sides = []
    for axis in (1, 2):  # the highest of all rows leaves columns, and the other way round
        line = logits.amax(dim=axis) > threshold
        first, back = line.to(torch.uint8).argmax(dim=1), line.flip(1).to(torch.uint8).argmax(dim=1)
        sides.append((first, torch.where(line.any(dim=1), line.shape[1] - 1 - back, first)))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], dim=1).float()


def overlaps(boxes: Tensor, slack: float) -> tuple[Tensor, Tensor]:
    """The least and the greatest intersection over union (n, n) of boxes whose edges are known roughly.

    Boxes of masks on a coarse grid: at a finer one, an edge may lie up to one coarse pixel further out (there the mask
    ends between two pixels), or `slack` further in (a fine pixel's width).
    """
    outward = boxes.new_tensor([-1, -1, 1, 1])
    inner, outer = boxes - slack * outward, boxes + outward

    def area(some: Tensor) -> Tensor:
        return (some[..., 2:] - some[..., :2]).clamp(min=0).prod(dim=-1)

    def shared(some: Tensor) -> Tensor:
        corner = torch.maximum(some[:, None, :2], some[None, :, :2])
        return area(torch.cat([corner, torch.minimum(some[:, None, 2:], some[None, :, 2:])], dim=2))

    least, greatest = shared(inner), shared(outer)
    small, large = area(inner), area(outer)
    lower = least / (large[:, None] + large[None, :] - least).clamp(min=1e-6)
    union = small[:, None] + small[None, :] - greatest
    return lower, torch.where(union > greatest, greatest / union.clamp(min=1e-6), 1.0)


def not_surely_suppressed(lower: np.ndarray, upper: np.ndarray, most: float) -> np.ndarray:
    """Which of n boxes, best first, non-maximum suppression may keep, bool (n,), when overlaps are known roughly.

    lower, upper: bounds (n, n) of the intersection over union. A box that is sure to be kept (no better one that may be
    kept can overlap it by more than `most`) surely suppresses those that it must overlap by more.
    """
    kept, possible = np.zeros(len(lower), bool), np.ones(len(lower), bool)
    for row in range(len(lower)):
        before = slice(0, row)
        if (lower[before, row][kept[before]] > most).any():
            possible[row] = False
        elif (upper[before, row][possible[before]] <= most).all():
            kept[row] = True
    return possible


def without_duplicates(segments: Segments, scores: np.ndarray, most: float) -> np.ndarray:
    """Rows to keep, best score first, so that no two boxes overlap by more than `most`.

    A box reaches from its first to its last pixel, as in segment_anything: a mask of one column has no area.
    """
    corners = segments.boxes - [0, 0, 1, 1]
    corners[segments.areas == 0] = 0
    return nms(torch.from_numpy(corners).float(), torch.from_numpy(np.float32(scores)), most).numpy()


def mended(segments: Segments, least: int, most: float) -> Segments:
    """Holes and islands of fewer than `least` pixels filled and removed (never the last island), duplicates dropped.

    Boxes that overlap by more than `most` are duplicates; below MENDED_OVERLAP it does not count here, as in
    segment_anything.
    """
    import cv2

    def mend(mask: np.ndarray, inside: bool) -> np.ndarray:
        count, regions, statistics, _ = cv2.connectedComponentsWithStats(
            (mask == inside).astype(np.uint8), connectivity=8
        )
        small = [part for part in range(1, count) if statistics[part, cv2.CC_STAT_AREA] < least]
        if inside and small and len(small) == count - 1:
            small.remove(1 + int(statistics[1:, cv2.CC_STAT_AREA].argmax()))
        return mask ^ np.isin(regions, small) if small else mask

    rles, whole = [], []
    for row, code in enumerate(segments.rles):
        mask = segments.masks([row])[0]
        result = mend(mend(mask, inside=False), inside=True)
        changed = bool((result != mask).any())
        rles.append(coco.encode(np.asfortranarray(result.astype(np.uint8)))["counts"] if changed else code)
        whole.append(not changed)
    better = Segments.from_rles(segments.size, rles, segments.predicted_iou, segments.stability, segments.points)
    return better.take(without_duplicates(better, np.array(whole, np.float32), max(most, MENDED_OVERLAP)))
