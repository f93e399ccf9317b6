"""A click looked at twice: the picture as a whole, from four sides, then windows around the click, twice as near.

    look = CloserLook(sam)
    masks, quality = look.click(look.prepare(image), clicks)

What a small model gets wrong of one click lies far from it, and a car of eight pixels is one or two cells of its
features. Mirrored pictures are wrong in other places, and in a window the car has sixteen pixels; in windows of three
sizes it lies on other cells of the features. An encoder that needs a second would make this slow; sam-micro's needs a
twentieth.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from ucore.mask_decoder import MASKS, ImageState, PointDecoder

MIRRORS = ((), (1,), (0,), (0, 1))  # axes of the picture that are turned round
SHARPNESS = 10.0  # of the weights that the three masks of a click have by their predicted IoU
WINDOWS = (5 / 8, 1 / 2, 3 / 8)  # sides, of the picture's longer one
SMALL = 1 / 16  # share of the picture: what is larger gains nothing from a closer look
CLICKS = 16  # at once


class Prepared(NamedTuple):
    """A picture, uint8 (H, W, 3), and what the decoder needs of its four mirror images."""

    image: np.ndarray
    states: list[ImageState]


class CloserLook:
    """sam: any segment_anything model whose decoder gives three masks a click."""

    def __init__(self, sam: Sam) -> None:
        self.sam, self.decoder = sam, PointDecoder(sam)
        self.resize = ResizeLongestSide(sam.image_encoder.img_size)

    @torch.inference_mode()
    def prepare(self, image: np.ndarray) -> Prepared:
        """Encode a picture, uint8 (H, W, 3), in four mirror images: once, for all clicks on it."""
        return Prepared(image, [self._state(np.flip(image, axes)) for axes in MIRRORS])

    @torch.inference_mode()
    def click(self, prepared: Prepared, clicks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Masks bool (P, H, W) and their predicted IoU float32 (P,) of clicks float (P, 2), x and y in pixels."""
        masks, quality = [], []
        for start in range(0, len(clicks), CLICKS):
            probable, sure = self._some(prepared, clicks[start : start + CLICKS])
            masks.append((probable > 0.5).cpu().numpy())
            quality.append(sure.cpu().numpy())
        size = prepared.image.shape[:2]
        return np.concatenate([np.zeros((0, *size), bool), *masks]), np.concatenate([np.zeros(0, np.float32), *quality])

    def _some(self, prepared: Prepared, clicks: np.ndarray) -> tuple[Tensor, Tensor]:
        height, width = prepared.image.shape[:2]
        seen: list[Tensor] = []
        quality: list[Tensor] = []
        for axes, state in zip(MIRRORS, prepared.states, strict=True):
            turned = clicks.astype(float)
            for axis, side in ((1, width), (0, height)):
                if axis in axes:
                    turned[:, 1 - axis] = side - turned[:, 1 - axis]
            probable, sure = self._masks(state, turned, (height, width))
            seen.append(probable.flip([2 + axis for axis in axes]))
            quality.append(sure)
        whole, sure = _blended(torch.stack(seen).mean(0), torch.stack(quality).mean(0))
        small = (whole > 0.5).sum((1, 2)) < SMALL * height * width
        for row in torch.nonzero(small).ravel().tolist():
            looks = [self._window(prepared.image, clicks[row], share) for share in WINDOWS]
            seen_whole = [(corner, window) for corner, window in looks if window is not None]
            for (top, left), window in seen_whole:
                whole[row, top : top + window.shape[0], left : left + window.shape[1]] += window
            whole[row] /= 1 + len(seen_whole)  # outside a window, that says that nothing is there
        return whole, sure

    def _window(self, image: np.ndarray, click: np.ndarray, share: float) -> tuple[tuple[int, int], Tensor | None]:
        """A window's first pixel, row and column, and the probabilities in it; None if it cuts or misses the thing."""
        side = math.ceil(share * max(image.shape[:2]))
        corner = [int(np.clip(round(float(at)) - side // 2, 0, max(0, length - side)))
                  for at, length in zip(click[::-1], image.shape[:2], strict=True)]  # fmt: skip
        crop = np.ascontiguousarray(image[corner[0] : corner[0] + side, corner[1] : corner[1] + side])
        state = self._state(crop)
        masks, quality = self._masks(state, click[None] - np.array(corner[::-1]), (crop.shape[0], crop.shape[1]))
        probable = _blended(masks, quality)[0][0]
        inside = probable > 0.5
        cut = torch.zeros_like(inside)
        for axis in (0, 1):
            line = cut.movedim(axis, 0)
            line[0] |= corner[axis] > 0
            line[-1] |= corner[axis] + crop.shape[axis] < image.shape[axis]
        seen_whole = bool(inside.any()) and not bool((inside & cut).any())
        return (corner[0], corner[1]), probable if seen_whole else None

    def _state(self, image: np.ndarray) -> ImageState:
        pixels = torch.from_numpy(self.resize.apply_image(np.ascontiguousarray(image))).permute(2, 0, 1)[None]
        return self.decoder.prepare(self.sam.image_encoder(self.sam.preprocess(pixels.to(self.sam.device).float()))[0])

    def _masks(self, state: ImageState, clicks: np.ndarray, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Probabilities (P, 3, H, W) and predicted IoU (P, 3) in a picture of `size`."""
        scaled = self.resize.get_preprocess_shape(*size, self.resize.target_length)
        points = torch.from_numpy(self.resize.apply_coords(clicks, size)).float().to(self.sam.device)
        found = self.decoder.attend(state, points)
        logits = self.decoder.masks(found, torch.ones_like(found.quality, dtype=torch.bool)).unflatten(0, (-1, MASKS))
        return self.sam.postprocess_masks(logits.float(), scaled, size).sigmoid(), found.quality


def _blended(masks: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
    """The three masks of each click as one (P, H, W), weighted by their quality, and the best quality (P,)."""
    weights = (SHARPNESS * quality).softmax(1)
    return (masks * weights[:, :, None, None]).sum(1), quality.amax(1)
