"""Segments without a model: two algorithms of scikit-image in the place of SAM, for comparison and for no weights."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ucore.files import content_hash
from ucore.masks import Segments, join, label_codes, remove_overlapping

LONGEST = 1024  # pixels; what is larger is segmented smaller, so that memory and time are bounded
THINNEST = 2.0  # pixels a region is wide on average: thinner ones are the blur between two others
REACH = 0.015  # of the shorter side, at least 3 pixels: how far from a region to look for what it differs from
SAME = 0.8  # intersection over union of two regions, found at different scales, that are one


@dataclass(frozen=True)
class Classical(ABC):
    """A generator that cuts the image into regions of one colour or texture at several scales.

    smallest, largest: share of the image a region may have; a larger one is background.
    contrast: CIELAB units that a region differs from its surroundings at least (about 2.3 are just seen): a cut
        through even ground is none. An image of one colour has no segment.
    Scores: predicted_iou is d / (d + 10), d that difference; stability 1.
    """

    smallest: float = 0.001
    largest: float = 0.7
    contrast: float = 3.0

    @property
    def name(self) -> str:
        """The algorithm's, in small letters; the folder of its segments begins with it."""
        return type(self).__name__.lower()

    def key(self) -> str:
        """16 hex digits that change with the settings."""
        return content_hash(
            self.name, LONGEST, THINNEST, REACH, SAME, {field.name: getattr(self, field.name) for field in fields(self)}
        )

    def generate(self, images: Sequence[np.ndarray]) -> list[Segments]:
        """Segments of each image, uint8 (H, W, 3), of any sizes."""
        return [self._generate(image) for image in images]

    @abstractmethod
    def _label_maps(self, image: np.ndarray, smallest: int) -> list[np.ndarray]:
        """Maps int (h, w) of regions of at least about `smallest` pixels, for an image uint8 (h, w, 3)."""

    def _generate(self, image: np.ndarray) -> Segments:
        import cv2

        size = image.shape[0], image.shape[1]
        if max(size) > LONGEST:
            scale = LONGEST / max(size)
            smaller = max(round(size[1] * scale), 1), max(round(size[0] * scale), 1)
            image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
        if (image == image[:1, :1]).all():
            return Segments.none(size)
        lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        pixels = image.shape[0] * image.shape[1]
        smallest = max(round(self.smallest * pixels), 4)
        reach = max(round(min(image.shape[:2]) * REACH), 3)
        found = []
        for labels in self._label_maps(image, smallest):
            differences, areas = contrast(labels, lab, reach), np.bincount(labels.ravel())
            keep = (areas >= smallest) & (areas <= self.largest * pixels) & (differences >= self.contrast)
            keep &= mean_width(labels) >= THINNEST
            numbers, codes = label_codes(np.where(keep[labels], labels + 1, 0), size)
            if numbers[0] == 0:  # what is not kept
                numbers, codes = numbers[1:], codes[1:]
            kept = differences[numbers - 1]
            found.append(Segments.from_rles(size, codes, kept / (kept + 10)))
        segments = join(found)
        return segments.take(remove_overlapping(segments, segments.predicted_iou, SAME))


@dataclass(frozen=True)
class Felzenszwalb(Classical):
    """Graph-based segmentation (Felzenszwalb and Huttenlocher, IJCV 2004): regions follow the picture.

    scales: preference for larger regions, each gives a partition. sigma: pixels of smoothing beforehand.
    """

    scales: tuple[float, ...] = (200.0, 800.0)
    sigma: float = 0.5

    def _label_maps(self, image: np.ndarray, smallest: int) -> list[np.ndarray]:
        from skimage.segmentation import felzenszwalb

        return [felzenszwalb(image, scale, self.sigma, smallest) for scale in self.scales]


@dataclass(frozen=True)
class Slic(Classical):
    """Superpixels (Achanta et al., PAMI 2012): compact pieces of about equal size.

    pieces: how many, each gives a partition. compactness: of shape, against likeness of colour.
    """

    pieces: tuple[int, ...] = (36, 144)
    compactness: float = 10.0

    def _label_maps(self, image: np.ndarray, smallest: int) -> list[np.ndarray]:
        from skimage.segmentation import slic

        most = image.shape[0] * image.shape[1] // smallest
        counts = sorted({max(min(count, most), 1) for count in self.pieces})
        function: Any = slic  # its declared types know no colour images
        return [function(image, count, self.compactness, start_label=0, channel_axis=-1) for count in counts]


def contrast(labels: np.ndarray, values: np.ndarray, reach: int) -> np.ndarray:
    """How far each region of a map int (h, w) differs from what lies around it, float64 (labels.max() + 1,).

    values: float (h, w, C). The distance of its mean from those of the regions `reach` pixels beyond its outline,
    averaged along it; 0 where there are none. A strip of blur between two things is stepped over.
    """
    count = int(labels.max()) + 1
    area = np.bincount(labels.ravel(), minlength=count).clip(1)
    channels = [np.bincount(labels.ravel(), values[..., c].ravel(), count) for c in range(values.shape[2])]
    means = np.stack(channels, 1) / area[:, None]
    a, b = _pairs(labels, reach)
    distance = np.linalg.norm(means[a] - means[b], axis=1)
    both, twice = np.concatenate([a, b]), np.concatenate([distance, distance])
    return np.bincount(both, twice, count) / np.bincount(both, minlength=count).clip(1)


def mean_width(labels: np.ndarray) -> np.ndarray:
    """Pixels of each region for two of its outline (the image's border is none), float64 (labels.max() + 1,)."""
    count = int(labels.max()) + 1
    outline = np.bincount(np.concatenate(_pairs(labels, 1)), minlength=count)
    return 2 * np.bincount(labels.ravel(), minlength=count) / outline.clip(1)


def _pairs(labels: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of all pixels `reach` apart, in rows and in columns, that are not of one region: int (n,) each."""
    apart = [(labels[:, :-reach], labels[:, reach:]), (labels[:-reach], labels[reach:])]
    a, b = (np.concatenate([pair[side].ravel() for pair in apart]) for side in (0, 1))
    return a[a != b], b[a != b]
