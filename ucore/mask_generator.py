"""All masks that a Segment Anything model finds in an image: clicks on a grid, then what is sure, stable and new.

The rules are those of segment_anything's `SamAutomaticMaskGenerator` (Segment Anything, arXiv 2304.02643, appendix B):
three masks a click, kept by predicted quality, by stability under a moved threshold, and by non-maximum suppression of
their boxes. `exact=True` gives its masks; the default gives nearly all of them in a fraction of the time:

- the decoder does once an image what no click changes, and makes masks only of promising clicks (`mask_decoder`);
- filters run on the decoder's small masks, with a margin for what the image's own size could change; only what is left
  is brought to that size and decided there;
- clicks go from coarse to fine: a click is left out where accepted masks already explain the ground around it;
- the decoder's large products run in bfloat16 where the processor or GPU multiplies it natively; on a GPU the image
  encoder's, too.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torch.nn import functional as F

from ucore import mask_filters
from ucore.device import has_bf16, is_out_of_memory
from ucore.errors import ConfigError, UserError
from ucore.files import content_hash
from ucore.mask_decoder import ImageState, PointDecoder
from ucore.masks import Segments, join
from ucore.sam import fingerprint

PUBLISHED = {  # the defaults of SamAutomaticMaskGenerator
    "points_per_side": 32,
    "pred_iou_thresh": 0.88,
    "stability_score_thresh": 0.95,
    "stability_score_offset": 1.0,
    "box_nms_thresh": 0.7,
}
CPU_BYTES, GPU_BYTES = 2**22, 2**29  # of one batch's positions: on a processor they should stay in its cache
REPEATED = 0.9  # least intersection over union of two masks that say the same
PIXELS_AT_ONCE = 2**22  # of masks brought to the image's size
VERSION = 1  # of the way masks are found, for `key`


@dataclass(frozen=True)
class Frame:
    """Sizes (height, width): of the image, of it scaled for the encoder, and of its part of the decoder's masks."""

    image: tuple[int, int]
    input: tuple[int, int]
    low: tuple[int, int]

    @classmethod
    def of(cls, image: tuple[int, int], longest: int, masks: tuple[int, int]) -> "Frame":
        """Of an image (height, width), for an encoder's input of side `longest` and whole `masks` (height, width)."""
        scaled = ResizeLongestSide.get_preprocess_shape(*image, longest)
        scaled = (max(1, scaled[0]), max(1, scaled[1]))
        return cls(image, scaled, (-(-scaled[0] * masks[0] // longest), -(-scaled[1] * masks[1] // longest)))


@dataclass(frozen=True)
class Candidates:
    """Masks not yet decided. logits: (n, 4h, 4w); quality: float32 (n,); clicks: int64 (n,), of the grid."""

    logits: Tensor
    quality: Tensor
    clicks: Tensor

    def take(self, rows: Tensor) -> "Candidates":
        """Those of `rows`, int64 numbers or bool (n,)."""
        return Candidates(self.logits[rows], self.quality[rows], self.clicks[rows])

    def and_(self, others: Sequence["Candidates"]) -> "Candidates":
        """These and those of all `others`, in this order."""
        every = [(each.logits, each.quality, each.clicks) for each in (self, *others)]
        return Candidates(*map(torch.cat, zip(*every, strict=True)))


class MaskGenerator:
    """A generator of masks: `name`, `key()` and `generate(images)`.

    sam: any segment_anything model. What is None is the model's own (`sam.generator_defaults`) or else as published.
    points_per_side: clicks on a side of the square grid. min_mask_region_area: holes and islands of
    fewer pixels are filled or removed. exact: the very masks of `SamAutomaticMaskGenerator`, in float32.
    points_per_batch, images_per_batch: None chooses by the device; batches halve by themselves when memory runs out.
    compile: let torch.compile fuse the image encoder, which pays for thousands of images on a GPU.
    like_gpu: have the key and the bfloat16 of a GPU on a processor, which names a folder for GPUs that are elsewhere.
    """

    def __init__(
        self,
        sam: Sam,
        points_per_side: int | None = None,
        pred_iou_thresh: float | None = None,
        stability_score_thresh: float | None = None,
        stability_score_offset: float | None = None,
        box_nms_thresh: float | None = None,
        min_mask_region_area: int = 0,
        exact: bool = False,
        points_per_batch: int | None = None,
        images_per_batch: int = 8,
        compile: bool = False,
        name: str = "sam",
        like_gpu: bool = False,
    ):
        own = {**PUBLISHED, **getattr(sam, "generator_defaults", {})}
        points_per_side = int(own["points_per_side"]) if points_per_side is None else points_per_side
        if points_per_side < 1:
            raise ConfigError(f"points_per_side is {points_per_side}; it must be at least 1")

        def setting(name: str, given: float | None) -> float:
            return float(own[name] if given is None else given)

        self.pred_iou_thresh = setting("pred_iou_thresh", pred_iou_thresh)
        self.stability_score_thresh = setting("stability_score_thresh", stability_score_thresh)
        self.stability_score_offset = setting("stability_score_offset", stability_score_offset)
        self.box_nms_thresh = setting("box_nms_thresh", box_nms_thresh)
        self.points_per_side, self.min_mask_region_area = points_per_side, min_mask_region_area
        self.sam, self.exact, self.name, self.device = sam, exact, name, torch.device(sam.device)
        native = like_gpu or has_bf16(self.device.type)
        self.dtype = torch.bfloat16 if native and not exact else torch.float32
        # Rounding here moves masks more than in the decoder, so it must pay: on a processor the decoder is the work.
        self.rounded = self.dtype == torch.bfloat16 and (like_gpu or self.device.type == "cuda")
        self.decoder = PointDecoder(sam, self.dtype)
        self.input = int(sam.image_encoder.img_size)
        self.window = 2 * self.input  # pixels: in a larger image small things would vanish, so `mosaic` cuts it
        self._encode: Any = torch.compile(sam.image_encoder) if compile else sam.image_encoder
        height, width = self.decoder.grid
        room = GPU_BYTES if self.device.type == "cuda" else CPU_BYTES
        fitting = room // (height * width * sam.prompt_encoder.embed_dim * self.dtype.itemsize)
        self.points_per_batch, self.images_per_batch = points_per_batch or max(1, fitting), images_per_batch
        self.masks_at_once = max(1, PIXELS_AT_ONCE // self.input**2)  # brought to the image's size
        self._told = False
        centres = (np.arange(points_per_side) + 0.5) / points_per_side
        self.grid = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)  # x and y in [0, 1], row by row

    def key(self) -> str:
        """16 hexadecimal digits that change with the weights, the settings and the arithmetic."""
        thresholds = [self.pred_iou_thresh, self.stability_score_thresh, self.stability_score_offset]
        rest = [self.box_nms_thresh, self.points_per_side, self.min_mask_region_area, self.exact, str(self.dtype)]
        rest += ["rounded"] * self.rounded
        return content_hash(VERSION, self._weights, thresholds, rest)

    @cached_property
    def _weights(self) -> str:
        return fingerprint(self.sam)

    @torch.inference_mode()
    def generate(self, images: Sequence[np.ndarray]) -> list[Segments]:
        """The masks of each image, uint8 (H, W, 3) of any size, best predicted quality first.

        An image of one colour has none (with `exact`, what the model says). Memory grows with it: `mosaic` cuts large
        ones. Raises UserError when memory does not suffice for one image or one click.
        """
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        results = [Segments.none(size) for size in sizes]
        wanted = [row for row, image in enumerate(images) if self.exact or (image != image[0, 0]).any()]
        while wanted:
            rows = wanted[: self.images_per_batch]
            embeddings = self._try("images_per_batch", self._embed, [images[row] for row in rows])
            if embeddings is not None:
                for row, embedding in zip(rows, embeddings, strict=True):
                    while (found := self._try("masks_at_once", self._all_segments, embedding, sizes[row])) is None:
                        pass
                    results[row] = found
                wanted = wanted[len(rows) :]
        return results

    def _embed(self, images: Sequence[np.ndarray]) -> Tensor:
        """Embeddings float32 (B, C, h, w): the longer side scaled to the encoder's, the rest padded."""
        batch = []
        for image in images:
            height, width = Frame.of((image.shape[0], image.shape[1]), self.input, self.decoder.size).input
            pixels = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
            batch.append(self.sam.preprocess(torch.from_numpy(pixels).to(self.device).permute(2, 0, 1)))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.rounded):
            return self._encode(torch.stack(batch)).float()

    def _all_segments(self, embedding: Tensor, size: tuple[int, int]) -> Segments:
        try:
            return self._segments(embedding, size)
        except RuntimeError:  # what is to be halved is what was at once
            self.masks_at_once = self._at_once(Frame.of(size, self.input, self.decoder.size))
            raise

    def _segments(self, embedding: Tensor, size: tuple[int, int]) -> Segments:
        """The masks of one image of `size` with that embedding."""
        frame = Frame.of(size, self.input, self.decoder.size)
        state = self.decoder.prepare(embedding)
        every = torch.arange(len(self.grid), device=self.device)
        if self.exact:
            parts = [self._decided(found, frame) for found in self._clicked(state, frame, every)]
            return self._finished(join(parts))
        logits = torch.zeros(0, *self.decoder.size, dtype=self.dtype, device=self.device)
        found = Candidates(logits, every[:0].float(), every[:0])
        tried = torch.zeros_like(every, dtype=torch.bool)
        for level in mask_filters.levels(self.points_per_side):
            clicks = torch.from_numpy(level).to(self.device)
            clicks = clicks[~self._explained(found, frame, state, tried)[clicks]]
            found = found.and_([new.take(self._promising(new, frame)) for new in self._clicked(state, frame, clicks)])
            tried[clicks] = True
        return self._finished(self._decided(found.take(self._distinct(found, frame)), frame))

    def _clicked(self, state: ImageState, frame: Frame, clicks: Tensor) -> Iterator[Candidates]:
        """The masks of clicks, batch by batch, that promise enough quality."""
        start = 0
        while start < len(clicks):
            batch = clicks[start : start + self.points_per_batch]
            found = self._try("points_per_batch", self._click, state, frame, batch)
            if found is not None:
                start += len(batch)
                yield found

    def _click(self, state: ImageState, frame: Frame, clicks: Tensor) -> Candidates:
        scale = np.array(frame.input[::-1]) / frame.image[::-1]
        points = torch.from_numpy(self.grid[clicks.cpu().numpy()] * frame.image[::-1] * scale).to(self.device)
        heard = self.decoder.attend(state, points)
        good = heard.quality > self.pred_iou_thresh if self.pred_iou_thresh > 0 else torch.ones_like(heard.quality) > 0
        promising = good.any(dim=1)
        good, heard, clicks = good[promising], heard.take(promising), clicks[promising]
        logits = self.decoder.masks(heard, good)
        return Candidates(logits, heard.quality[good], clicks[:, None].expand_as(good)[good])

    def _try(self, setting: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """What `work` gives; None, with the batch size `setting` halved, when memory ran out."""
        try:
            return work(*arguments)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        size = getattr(self, setting)
        if size == 1:
            raise UserError(f"{self.name} does not fit into the memory of {self.device}: take a smaller model, or cpu.")
        setattr(self, setting, size // 2)
        if not self._told:
            self._told = True
            print(f"Out of memory on {self.device}: going on with smaller batches.", file=sys.stderr)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _promising(self, found: Candidates, frame: Frame) -> Tensor:
        """Rows, bool (n,), that are stable at the image's size; the small mask decides where it is clear.

        The small mask's score errs with the pixels along its outline: by less than the margin for 99 % of sharp masks.
        """
        scores, areas = self._stability(found.logits[:, : frame.low[0], : frame.low[1]].float())
        if self.stability_score_thresh <= 0:
            return torch.ones_like(scores, dtype=torch.bool)
        good = scores >= self.stability_score_thresh - 3 * areas.clamp(min=1).rsqrt()
        for rows in good.nonzero()[:, 0].split(self._at_once(frame)):
            exact, _ = self._stability(self._at_image_size(found.logits[rows], frame))
            good[rows] = exact >= self.stability_score_thresh
        return good

    def _distinct(self, found: Candidates, frame: Frame) -> Tensor:
        """Rows, best first, without those that a better one will surely suppress at the image's size."""
        order = found.quality.argsort(descending=True, stable=True)
        scale = frame.image[0] * frame.image[1] / (frame.low[0] * frame.low[1])
        if scale < 1:  # a tiny image: its pixels are coarser than the masks'
            return order
        edges = mask_filters.boxes(found.logits[order, : frame.low[0], : frame.low[1]].float(), self.sam.mask_threshold)
        lower, upper = (bound.cpu().numpy() for bound in mask_filters.overlaps(edges, slack=scale**-0.5))
        possible = mask_filters.not_surely_suppressed(lower, upper, self.box_nms_thresh)
        return order[torch.from_numpy(possible).to(self.device)]

    def _explained(self, found: Candidates, frame: Frame, state: ImageState, tried: Tensor) -> Tensor:
        """Where a click is superfluous, bool (G,) of the grid: inside a mask whose clicks repeat each other.

        A point belongs to the smallest mask that holds it. A click there is left out when its neighbours belong to the
        same mask, when the clicks tried in that mask gave nothing that others had not given too, and when the embedding
        there is no stranger to theirs than they are to each other: a small thing in a field looks different.
        """
        if not len(found.clicks):
            return torch.zeros_like(tried)
        x, y = torch.from_numpy((self.grid * frame.low[::-1]).astype(np.int64)).to(self.device).T
        inside = found.logits[:, y, x] > self.sam.mask_threshold  # (n, G)
        inside = inside[inside.sum(dim=1).argsort(stable=True)]
        label = torch.where(inside.any(dim=0), inside.to(torch.uint8).argmax(dim=0), -1)
        coarse = found.logits[:, : frame.low[0] : 2, : frame.low[1] : 2].flatten(1) > self.sam.mask_threshold
        told = torch.zeros_like(tried)
        told[found.clicks[~mask_filters.repeated(coarse, found.clicks, REPEATED)]] = True
        features = state.positions[(y // 4) * self.decoder.grid[1] + x // 4].float()
        side = self.points_per_side
        around = mask_filters.surrounded(label.view(side, side)).flatten()
        return around & mask_filters.settled(label, tried, told) & mask_filters.familiar(features, label, tried)

    def _stability(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Stability under a moved threshold and the area above the lower one in pixels, float32 (n,) both."""
        threshold, offset = self.sam.mask_threshold, self.stability_score_offset
        inner = (logits > threshold + offset).sum((1, 2), dtype=torch.int32)
        outer = (logits > threshold - offset).sum((1, 2), dtype=torch.int32)
        return inner / outer, outer.float()

    def _at_image_size(self, logits: Tensor, frame: Frame) -> Tensor:
        """Logits float32 (n, H, W) as `Sam.postprocess_masks` makes them, less what leaves them as they are."""
        larger = F.interpolate(logits[:, None].float(), (self.input, self.input), mode="bilinear", align_corners=False)
        larger = larger[..., : frame.input[0], : frame.input[1]]
        if frame.image != frame.input:
            larger = F.interpolate(larger, frame.image, mode="bilinear", align_corners=False)
        return larger[:, 0]

    def _at_once(self, frame: Frame) -> int:
        return max(1, min(self.masks_at_once, PIXELS_AT_ONCE // (frame.image[0] * frame.image[1])))

    def _decided(self, found: Candidates, frame: Frame) -> Segments:
        """The candidates that are stable at the image's size."""
        parts = [Segments.none(frame.image)]
        for rows in torch.arange(len(found.clicks), device=self.device).split(self._at_once(frame)):
            some = found.take(rows)
            logits = self._at_image_size(some.logits, frame)
            scores, _ = self._stability(logits)
            good = scores >= self.stability_score_thresh if self.stability_score_thresh > 0 else scores != -1
            masks = (logits[good] > self.sam.mask_threshold).cpu().numpy()
            points = self.grid[some.clicks[good].cpu().numpy()] * frame.image[::-1]
            values = (some.quality[good].cpu().numpy(), scores[good].cpu().numpy())
            parts.append(Segments.from_masks(masks, *values, points))
        return join(parts)

    def _finished(self, segments: Segments) -> Segments:
        """Without masks whose box a better one fills, best first; small holes and islands mended if asked."""
        segments = segments.take(mask_filters.without_duplicates(segments, segments.predicted_iou, self.box_nms_thresh))
        if self.min_mask_region_area <= 0 or not len(segments):
            return segments
        return mask_filters.mended(segments, self.min_mask_region_area, self.box_nms_thresh)
