"""What sam-micro is asked for: the losses of masks, of their predicted quality, and of the embedding they come from."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ucore.micro_sam_data import MASK_STRIDE

Rule = Literal["first", "best", "all"]
NEAR = 16  # cells of the decoder's masks: how far from the click `guide_loss` looks


def mask_loss(logits: Tensor, scores: Tensor, targets: Tensor, rule: Rule) -> dict[str, Tensor]:
    """Loss of N prompts: 20 focal + dice + squared error of the predicted IoU (SAM, appendix A).

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
    return {"loss": mask + error, "mask": mask, "iou_error": error, "iou": iou.gather(1, chosen[:, None]).mean()}


def guide_loss(upscaled: Tensor, clicks: Tensor, targets: Tensor, likeness: Tensor) -> Tensor:
    """Cross-entropy of "same object as the clicked cell" by the cosine of upscaled embeddings alone, near the click.

    The shortest way for a gradient from an object's outline to the image encoder. upscaled: float32 (B, C, h, w);
    clicks: float32 (B, P, 2), x and y in pixels of the window; targets: as of `mask_loss`, (B * P, h, w); likeness:
    scale and threshold of the cosine.
    """
    count, _, height, width = upscaled.shape
    unit = F.normalize(upscaled, dim=1)
    cells = (clicks / MASK_STRIDE).long()
    x, y = cells[..., 0].clamp(max=width - 1), cells[..., 1].clamp(max=height - 1)
    clicked = unit.permute(0, 2, 3, 1)[torch.arange(count, device=unit.device)[:, None], y, x]  # (B, P, C)
    cosine = torch.einsum("bpc,bchw->bphw", clicked, unit).flatten(0, 1)
    logits = likeness[0] * (cosine - likeness[1])
    rows = torch.arange(height, device=unit.device)[:, None] - y.reshape(-1, 1, 1)
    columns = torch.arange(width, device=unit.device) - x.reshape(-1, 1, 1)
    near = (torch.maximum(rows.abs(), columns.abs()) <= NEAR).float()
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * near
    return (losses.sum((1, 2)) / near.sum((1, 2))).mean()
