"""What sam-micro is asked for: the losses of masks, of their predicted quality, and of the embedding they come from."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Rule = Literal["first", "best", "all"]
NEAR = 20  # cells of the decoder's masks, two pixels wide: how far around a cell `guide_loss` looks


def mask_loss(logits: Tensor, scores: Tensor, targets: Tensor, rule: Rule) -> dict[str, Tensor]:
    """Losses of N prompts: 20 focal + dice ("mask"), squared error of the predicted IoU ("iou_error"; SAM, appendix A),
    and the IoU of the best mask ("iou").

    logits: float32 (N, 4, h, w); scores: float32 (N, 4); targets: covered share of each cell in [0, 1], (N, h, w).
    rule: "first", the mask for unambiguous prompts; "best", of the other three the one that is nearest already;
    "all", every mask. From the start with "best", three masks of the three largest regions would do without looking
    at the click.
    """
    rows = {"first": slice(0, 1), "best": slice(1, None), "all": slice(None)}[rule]
    logits, scores = logits[:, rows].flatten(2), scores[:, rows]
    goal = targets.flatten(1)[:, None].expand_as(logits)
    chance = logits.sigmoid()
    # Focal loss for shares instead of labels: the weight is the distance to the goal (arXiv 2006.04388).
    focal = (F.binary_cross_entropy_with_logits(logits, goal, reduction="none") * (chance - goal) ** 2).mean(2)
    dice = 1 - (2 * (chance * goal).sum(2) + 1) / (chance.sum(2) + goal.sum(2) + 1)
    losses = 20 * focal + dice
    best, chosen = losses.min(dim=1)
    mask = losses.mean() if rule == "all" else best.mean()
    with torch.no_grad():
        filled, wanted = logits > 0, goal > 0.5
        iou = (filled & wanted).sum(2) / (filled | wanted).sum(2).clamp(min=1)
    error = (scores - iou).square().mean()
    return {"mask": mask, "iou_error": error, "iou": iou.gather(1, chosen[:, None]).mean()}


def guide_loss(upscaled: Tensor, objects: Tensor, cells: Tensor, likeness: Tensor) -> Tensor:
    """Cross-entropy of "same object as this cell" by the cosine of upscaled embeddings alone, around many cells.

    It asks the image encoder for what masks are made of, without the decoder: dense, and cheap enough for whole
    pictures. upscaled: float32 (B, C, h, w); objects: int64 (B, h, w), the label of each cell, 0 unknown; cells: int64
    (B, K), flat positions of known cells; likeness: scale and threshold of the cosine. What is alike and what is not
    weigh the same around each cell.
    """
    height, width = upscaled.shape[2:]
    unit = F.normalize(upscaled, dim=1).flatten(2)
    chosen = unit.gather(2, cells[:, None].expand(-1, unit.shape[1], -1))  # (B, C, K)
    logits = likeness[0] * (chosen.transpose(1, 2) @ unit - likeness[1])
    labels = objects.flatten(1)
    same = labels[:, None] == labels.gather(1, cells)[..., None]  # (B, K, h w)
    places = torch.stack([torch.arange(height * width, device=cells.device) // width,
                          torch.arange(height * width, device=cells.device) % width])  # fmt: skip
    apart = (places[:, None, None] - torch.stack([cells // width, cells % width])[..., None]).abs().amax(0)
    counted = (labels > 0)[:, None] & (apart <= NEAR)
    losses = F.binary_cross_entropy_with_logits(logits, same.float(), reduction="none")
    halves = [(losses * part).sum(2) / part.sum(2).clamp(min=1) for part in (counted & same, counted & ~same)]
    return (halves[0] + halves[1]).mean() / 2
