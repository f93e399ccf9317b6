"""Scores of single clicks: the IoU that one click in the middle of every labelled object gives."""

import numpy as np
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide

from ucore.closer import CloserLook
from ucore.mask_decoder import MASKS, PointDecoder
from ucore.micro_sam_data import Source, centre_clicks


@torch.no_grad()
def one_click_iou(sam: Sam, source: Source, layer: int = 0, most: int | None = None) -> dict[str, np.ndarray]:
    """IoU of the mask that one click in the middle of each labelled object gives, at the picture's own size.

    Returns iou float32 (N,), of the mask of highest predicted IoU; best float32 (N,), of the best of the three;
    predicted float32 (N,); area int64 (N,), pixels; picture int64 (N,), the position of the picture.
    """
    transform, decoder = ResizeLongestSide(sam.image_encoder.img_size), PointDecoder(sam)
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("iou", "best", "predicted", "area", "picture")}
    for number, (image, labels) in enumerate(zip(source.images[:most], source.labels, strict=False)):
        numbers, clicks, areas = centre_clicks(labels[layer])
        if len(numbers) == 0:
            continue
        pixels = torch.from_numpy(transform.apply_image(image)).permute(2, 0, 1)[None].to(sam.device)
        size = (pixels.shape[2], pixels.shape[3])
        state = decoder.prepare(sam.image_encoder(sam.preprocess(pixels.float()))[0])
        points = torch.from_numpy(transform.apply_coords(clicks, image.shape[:2])).float().to(sam.device)
        for start in range(0, len(numbers), 64):
            rows = slice(start, start + 64)
            clicked = decoder.attend(state, points[rows])
            scores = clicked.quality
            low = decoder.masks(clicked, torch.ones_like(scores, dtype=torch.bool)).unflatten(0, (-1, MASKS))
            masks = (sam.postprocess_masks(low, size, image.shape[:2]) > 0).cpu().numpy()  # type: ignore[reportArgumentType]
            truth = (labels[layer][None] == numbers[rows, None, None])[:, None]
            iou = (masks & truth).sum((2, 3)) / (masks | truth).sum((2, 3))
            chosen = scores.argmax(1).cpu().numpy()
            line = np.arange(len(iou))
            found["iou"].append(iou[line, chosen])
            found["best"].append(iou.max(1))
            found["predicted"].append(scores.max(1).values.cpu().numpy())
            found["area"].append(areas[rows])
            found["picture"].append(np.full(len(iou), number))
    return {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in found.items()}


def looked_twice(sam: Sam, source: Source, layer: int = 0) -> dict[str, np.ndarray]:
    """The same for the second look (`ucore.closer`), which gives one mask a click: iou, area, picture, best (= iou)."""
    look, found = CloserLook(sam), {name: [] for name in ("iou", "area", "picture")}
    for number, (image, labels) in enumerate(zip(source.images, source.labels, strict=True)):
        objects, clicks, areas = centre_clicks(labels[layer])
        if len(objects):
            masks, _ = look.click(look.prepare(image), clicks)
            truth = labels[layer][None] == objects[:, None, None]
            found["iou"].append((masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2)))
            found["area"].append(areas)
            found["picture"].append(np.full(len(objects), number))
    scores = {name: np.concatenate(parts) for name, parts in found.items()}
    return scores | {"best": scores["iou"]}
