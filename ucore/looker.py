"""Masks of one image at a time, for looking at: all of them, or those that one click may mean."""

from collections import OrderedDict
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from ucore.masks import Segments

SAME = 0.9  # intersection over union from which two masks of a click are one
REMEMBERED = 16  # images whose embedding, masks and features stay in memory


class Looker(Protocol):
    """What finds masks in an image uint8 (H, W, 3) that is known by `key`."""

    def masks(self, key: int, image: np.ndarray, points: int) -> Segments:
        """All masks, from a grid of points x points clicks."""
        ...

    def click(self, key: int, image: np.ndarray, x: float, y: float) -> Segments:
        """The masks that one click, in pixels, may mean; the likeliest first."""
        ...


class SamLooker:
    """Masks by a Segment Anything model, loaded once when first needed; the embedding of a tile is computed once.

    spec: as of `sam.load_sam`.
    """

    def __init__(self, spec: str = "sam-micro", device: str = "auto") -> None:
        self.spec, self.device = spec, device
        self._generators: dict[int, Any] = {}
        self._predictors: OrderedDict[int, Any] = OrderedDict()
        self._prepared: OrderedDict[int, Any] = OrderedDict()

    @cached_property
    def sam(self) -> Any:
        """The model, loaded now if it was not yet. Raises as `sam.load_sam`."""
        from ucore.sam import load_sam

        return load_sam(self.spec, self.device)

    def masks(self, key: int, image: np.ndarray, points: int) -> Segments:
        """All masks, from a grid of points x points clicks; a large image is cut into pieces (`mosaic`)."""
        if points not in self._generators:
            from ucore.mask_generator import MaskGenerator
            from ucore.mosaic import Mosaic

            self._generators[points] = Mosaic(MaskGenerator(self.sam, points_per_side=points))
        return self._generators[points].generate([image])[0]

    def click(self, key: int, image: np.ndarray, x: float, y: float) -> Segments:
        """The masks that one click, in pixels, may mean, the likeliest first; for sam-micro with its closer look."""
        if key not in self._predictors:
            from segment_anything import SamPredictor

            self._predictors[key] = SamPredictor(self.sam)
            self._predictors[key].set_image(image)
        predictor = recent(self._predictors, key)
        masks, scores, _ = predictor.predict(np.array([[x, y]]), np.array([1]), multimask_output=True)
        order = np.argsort(-scores, kind="stable")
        masks, scores = masks[order], scores[order]
        if self._closer is not None:
            if key not in self._prepared:
                self._prepared[key] = self._closer.prepare(image)
            best, sure = self._closer.click(recent(self._prepared, key), np.array([[x, y]], float))
            both, either = (best & masks).sum((1, 2)), (best | masks).sum((1, 2))
            others = both < SAME * either
            masks, scores = np.concatenate([best, masks[others]]), np.concatenate([sure, scores[others]])
        return Segments.from_masks(masks, scores, points=np.tile([x, y], (len(masks), 1)))

    @cached_property
    def _closer(self) -> Any:
        """The second look that sam-micro is worth; of a large model the encoder is slow and the first look good."""
        from ucore.closer import CloserLook

        return CloserLook(self.sam) if self.spec.startswith("sam-micro") else None


def recent(kept: OrderedDict[Any, Any], key: Any) -> Any:
    """The value of `key`, now the most recent; the oldest of more than `REMEMBERED` is forgotten."""
    kept.move_to_end(key)
    while len(kept) > REMEMBERED:
        kept.popitem(last=False)
    return kept[key]
