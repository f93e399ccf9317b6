"""sam-micro: Segment Anything small enough to be shipped and to run on a laptop.

Prompt encoder, mask decoder and the `Sam` around them are segment_anything's own classes at a quarter of the size;
the image encoder is the bundled EfficientNet-Lite0 with a neck that joins its depths, in place of a ViT, as MobileSAM
(arXiv 2306.14289) does: 4 million parameters, an image of 256 px in a few hundredths of a second. `SamPredictor`,
`SamAutomaticMaskGenerator` and everything else that takes a `Sam` takes it.
"""

import math
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import timm
import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from ucore.bundled import IMAGE_WEIGHTS, fold_batch_norms, weight_file
from ucore.convolution import fuse_convolutions
from ucore.errors import CheckpointError
from ucore.weights import fill, read_weights

NAME = "sam-micro"
IMAGE_SIZE = 256  # pixels of the longer side
# What `MaskGenerator` does instead of the published defaults: this model is less sure of everything, and as many clicks
# would lie 8 of its pixels apart.
DEFAULTS = {
    "points_per_side": 24,
    "pred_iou_thresh": 0.25,
    "stability_score_thresh": 0.6,
    "stability_score_offset": 0.5,
}
STRIDE = 8  # pixels between the positions of the image embedding; twice as fine as SAM's, as roofs are small
WIDTH = 128  # channels of the embedding and the decoder
STAGES = {0: 16, 1: 24, 2: 40, 4: 112, 6: 320}  # stages of the backbone that are read out: their channels
FINEST = 6.0  # how many times shorter than segment_anything's the shortest waves of the positional encoding are
TRUNK_STRIDES = {0: 2, 1: 4, 2: 8, 4: 16, 6: 32}


class MicroEncoder(nn.Module):
    """Images float (B, 3, H, W), normalised, H and W multiples of 32 -> embedding float (B, WIDTH, H / 8, W / 8).

    Fine stages are folded to the embedding's grid without loss (pixel unshuffle), coarse ones are stretched to it;
    their projections are summed and mixed by two depthwise-separable blocks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.img_size = IMAGE_SIZE  # segment_anything reads it
        trunk: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
        trunk.conv_head, trunk.bn2 = nn.Identity(), nn.Identity()  # of the classifier
        fold_batch_norms(trunk.eval())
        fuse_convolutions(trunk)
        self.trunk = trunk
        self.reduce = nn.ModuleDict(
            {
                str(stage): nn.Conv2d(channels * max(1, STRIDE // TRUNK_STRIDES[stage]) ** 2, WIDTH, 1)
                for stage, channels in STAGES.items()
            }
        )
        self.mix = nn.ModuleList(Mixer(WIDTH) for _ in range(2))
        self.norm = LayerNorm2d(WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        """The embedding float (B, WIDTH, H / 8, W / 8) of normalised images float (B, 3, H, W)."""
        if images.device.type == "cpu":
            images = images.contiguous(memory_format=torch.channels_last)
        features = self.trunk.bn1(self.trunk.conv_stem(images))
        grid = (images.shape[2] // STRIDE, images.shape[3] // STRIDE)
        total: Any = 0
        for number, block in enumerate(self.trunk.blocks):
            features = block(features)
            if number in STAGES:
                fold = STRIDE // TRUNK_STRIDES[number]
                level = F.pixel_unshuffle(features, fold) if fold > 1 else features
                level = self.reduce[str(number)](level)
                if level.shape[2:] != grid:
                    level = F.interpolate(level, size=grid, mode="bilinear", align_corners=False)
                total = total + level
        for block in self.mix:
            total = block(total)
        return self.norm(total)


class Mixer(nn.Module):
    """Residual depthwise 5 x 5, then a pointwise bottleneck turned outside in; float (B, C, H, W) -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = LayerNorm2d(width)
        self.expand = nn.Conv2d(width, 2 * width, 1)
        self.contract = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Float (B, C, H, W) to the same shape."""
        return x + self.contract(F.gelu(self.expand(self.norm(self.depthwise(x)))))


def build_micro_sam(imagenet: bool = False) -> Sam:
    """The model with random weights; with `imagenet`, its backbone filled from the bundled package (for training)."""
    grid = (IMAGE_SIZE // STRIDE, IMAGE_SIZE // STRIDE)
    encoder = MicroEncoder()
    if imagenet:
        _fill_backbone(encoder)
    sam = Sam(
        image_encoder=encoder,  # type: ignore[reportArgumentType] - Sam calls it, whatever its class
        prompt_encoder=PromptEncoder(embed_dim=WIDTH, image_embedding_size=grid,
                                     input_image_size=(IMAGE_SIZE, IMAGE_SIZE), mask_in_chans=16),
        mask_decoder=MaskDecoder(
            transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, num_heads=4, mlp_dim=512),
            transformer_dim=WIDTH, num_multimask_outputs=3, iou_head_depth=3, iou_head_hidden_dim=WIDTH),
        pixel_mean=[127.5] * 3,
        pixel_std=[127.5] * 3,
    )  # fmt: skip
    frequencies: Any = sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    # segment_anything's waves tell two places apart from about 20 of 256 pixels on, farther than one roof from the
    # next; ours, from as long to six times shorter, do from 4. They are part of the weights.
    frequencies *= torch.logspace(0, math.log10(FINEST), frequencies.shape[1])
    _look_at_the_click(sam.mask_decoder.transformer)
    return sam.eval()


def _look_at_the_click(transformer: Any) -> None:
    """Start every attention between prompts and picture with equal, large projections of both sides.

    Equal positions then attend to each other from the first step on, which random projections learn slowly.
    """
    layers = [part for layer in transformer.layers
              for part in (layer.cross_attn_token_to_image, layer.cross_attn_image_to_token)]  # fmt: skip
    with torch.no_grad():
        for attention in (*layers, transformer.final_attn_token_to_image):
            attention.q_proj.weight *= 3
            attention.k_proj.weight.copy_(attention.q_proj.weight)


def _fill_backbone(encoder: MicroEncoder) -> None:
    """ImageNet weights into the backbone: loaded with its batch norms, then folded as the encoder's are."""
    trunk: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    original = torch.load(weight_file(*IMAGE_WEIGHTS), map_location="cpu", weights_only=True)
    # The same tensors in the same order under other names; the classifier's two are left out.
    tensors = list(original.values())[: len(trunk.state_dict())]
    trunk.load_state_dict(dict(zip(trunk.state_dict(), tensors, strict=True)))
    fold_batch_norms(trunk.eval())
    state = trunk.state_dict()
    encoder.trunk.load_state_dict({name: state[name] for name in encoder.trunk.state_dict()})


@lru_cache(maxsize=1)
def weights_path() -> Path:
    """Where the shipped weights are. Raises CheckpointError when the installation lacks them."""
    path = Path(str(resources.files("ucore") / "assets" / f"{NAME}.safetensors"))
    if not path.is_file():
        raise CheckpointError(f"The weights of {NAME} are missing from this installation ({path}); run: make setup")
    return path


def load_micro_sam(path: str | Path | None = None) -> Sam:
    """sam-micro with the shipped weights, or those of `path` (as `ucore segments train-micro` writes them)."""
    path = weights_path() if path is None else Path(path)
    sam = build_micro_sam()
    fill(sam, read_weights(path), str(path))
    sam.generator_defaults = DEFAULTS  # type: ignore[reportAttributeAccessIssue]
    return sam
