"""A Segment Anything model of toy size with random weights, for tests of what surrounds the weights."""

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer


def tiny_sam(seed: int = 8, size: int = 64, width: int = 32) -> Sam:
    """All parts are segment_anything's own. Biases and norms are random too, so that no term is zero by chance.

    Fixed tokens are damped and attention is sharpened: masks then depend on the click, as those of trained weights do.
    """
    grid = (size // 8, size // 8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sam = Sam(
            ImageEncoderViT(img_size=size, patch_size=8, embed_dim=32, depth=1, num_heads=2, out_chans=width),
            PromptEncoder(embed_dim=width, image_embedding_size=grid, input_image_size=(size, size), mask_in_chans=16),
            MaskDecoder(
                num_multimask_outputs=3,
                transformer=TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=64, num_heads=4),
                transformer_dim=width,
                iou_head_hidden_dim=32,
            ),
        )
        for parameter in sam.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    decoder = sam.mask_decoder
    for name, parameter in decoder.named_parameters():
        if name in ("iou_token.weight", "mask_tokens.weight") or (parameter.ndim == 1 and name.startswith("output")):
            parameter.data *= 0.1
        elif name.startswith("output"):
            parameter.data *= 2
        elif name.endswith("proj.weight"):
            parameter.data *= 8
    return sam.eval()
