"""One dual encoder for every pair of towers open_clip can build, and the loader that fills it.

    encoder = load_encoder("lite0-minilm")                        # bundled, no download
    encoder = load_encoder("ViT-B-32", "laion2b_s34b_b79k")       # open_clip hub tag
    encoder = load_encoder("ViT-B-32", "RemoteCLIP-ViT-B-32.pt")  # a local file

An encoder is two towers and two heads. The towers are open_clip's; the heads are what is trained first, on
cached tower features. For a CLIP model the heads start as the identity, so that the zero-shot model is the
starting point; for the bundled pair, whose towers know nothing of each other, they start at random.
"""

import copy
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import Normalize, ToTensor, v2

from ucore import bundled
from ucore.alignment import Pooling, SegmentBranch, SegmentPool
from ucore.config import ModelConfig, Precision, did_you_mean
from ucore.device import has_bf16
from ucore.errors import CheckpointError, ConfigError
from ucore.heads import Head
from ucore.weights import fill, quiet, read_weights


class DualEncoder(nn.Module):
    """Image tower, text tower, a head on each, and the logit scale (natural log, as in CLIP).

    Attributes: `name` and `pretrained` as given to `load_encoder`; `config`, the heads' `ModelConfig`;
    `transform`, PIL image -> float32 (3, H, W) resized and normalised as this model expects; `image_size`,
    (H, W) in pixels; `image_width` and `text_width`, the widths of the tower features.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, name: str, clip: Any, tokenizer: Callable[..., Tensor], config: ModelConfig) -> None:
        super().__init__()
        self.name, self.config, self.clip, self.tokenizer = name, config, clip, tokenizer
        self.pretrained: str | None = None
        preprocess = PreprocessCfg(**clip.visual.preprocess_cfg)
        size = preprocess.size
        self.image_size: tuple[int, int] = (size, size) if isinstance(size, int) else (size[0], size[1])
        transform: Any = image_transform_v2(preprocess, is_train=False)
        self.transform: Callable[[Image.Image], Tensor] = transform
        # The same resizing, left as bytes: batches travel and are augmented as uint8, four times smaller.
        steps = [s for s in transform.transforms if not isinstance(s, ToTensor | Normalize)]
        self.resize: Callable[[Image.Image], Tensor] = v2.Compose([*steps, v2.PILToTensor()])
        for key, values in (("pixel_mean", preprocess.mean), ("pixel_std", preprocess.std)):
            self.register_buffer(key, torch.tensor(values).view(1, 3, 1, 1) * 255, persistent=False)

        self.image_width, self.text_width = _tower_widths(name, clip)
        residual = name != bundled.NAME
        self.embed_dim = self.image_width if residual else config.embed_dim
        self.new_heads()
        start = clip.logit_scale.detach().float() if residual else torch.tensor(1 / config.temperature).log()
        self.logit_scale = nn.Parameter(start.clone())
        clip.logit_scale.requires_grad_(False)  # replaced by ours
        self._precision: Precision = "auto"
        self.segments: SegmentBranch | None = None  # see `add_segments`
        self.logit_bias: nn.Parameter | None = None  # see `add_bias`

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.logit_scale.device

    def new_heads(self) -> None:
        """Give both towers untrained heads, drawn from torch's generator."""
        shape = (self.embed_dim, self.config.hidden, self.config.dropout, self.name != bundled.NAME)
        device = self.pixel_mean.device
        self.image_head = Head(self.image_width, *shape).to(device)
        self.text_head = Head(self.text_width, *shape).to(device)

    def image_tower(self, images: Tensor) -> Tensor:
        """Tower features, float (B, image_width).

        images: (B, 3, H, W), float32 as from `transform` or uint8 as from `resize`.
        """
        images = self._normalised(images)
        with self.autocast():
            return self.clip.encode_image(images)

    def segment_tower(self, images: Tensor) -> Tensor:
        """The same for crops of segments: by the frozen copy once there is one (`add_segments`)."""
        if self.segments is None:
            return self.image_tower(images)
        images = self._normalised(images)
        with self.autocast():
            return self.segments.tower(images)

    def _normalised(self, images: Tensor) -> Tensor:
        images = images.to(self.device, non_blocking=True)
        if self.device.type == "cpu":  # twice as fast for convolutions there; cheapest while still bytes
            images = images.contiguous(memory_format=torch.channels_last)
        if images.dtype == torch.uint8:
            images = images.float().sub_(self.pixel_mean).div_(self.pixel_std)
        return images

    def text_tower(self, tokens: Tensor) -> Tensor:
        """Tower features, float (B, text_width), of token ids int64 (B, L) from `tokenize`."""
        with self.autocast():
            return self.clip.encode_text(tokens.to(self.device, non_blocking=True))

    def encode_image(self, images: Tensor) -> Tensor:
        """Image features, float32 (B, D), L2-normalised; input as for `image_tower`."""
        return F.normalize(self.image_head(self.image_tower(images)), dim=1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Text features, float32 (B, D), L2-normalised; input as for `text_tower`."""
        return F.normalize(self.text_head(self.text_tower(tokens)), dim=1)

    def add_segments(self, pooling: Pooling) -> SegmentBranch:
        """Give the encoder a branch for segments: the image tower and head as they are now, copied."""
        pool = SegmentPool(pooling, self.embed_dim)
        self.segments = SegmentBranch(copy.deepcopy(self.clip.visual), copy.deepcopy(self.image_head), pool)
        self.segments.to(self.device).train(self.training)
        return self.segments

    def add_bias(self, batch_size: int) -> None:
        """Give the encoder the bias of `losses.sigmoid_loss`: it starts as the log odds that a pair belongs together.

        Zhai et al. start at -10, for batches of 32,768 (log odds -10.4); at a head's learning rate a batch of hundreds
        would not get away from there. A model that was trained with a bias keeps its own.
        """
        own = getattr(self.clip, "logit_bias", None)
        start = torch.tensor(-math.log(max(batch_size - 1, 1))) if own is None else own.detach().float().clone()
        self.logit_bias = nn.Parameter(start.to(self.device))

    @property
    def joining(self) -> list[nn.Parameter]:
        """What joins the towers: parameters of all heads, the temperature, and a bias where there is one."""
        own = [*self.image_head.parameters(), *self.text_head.parameters(), self.logit_scale]
        own += [] if self.segments is None else self.segments.learned
        return own if self.logit_bias is None else [*own, self.logit_bias]

    @property
    def precision(self) -> str:
        """What the towers compute in: bfloat16 where the hardware has it, else float32. Heads use float32."""
        if self._precision != "auto":
            return self._precision
        return "bfloat16" if has_bf16(self.device.type) else "float32"

    def choose_precision(self, precision: Precision) -> None:
        """Let the towers compute in `precision`, whatever the hardware does best."""
        self._precision = precision

    def autocast(self) -> torch.autocast:
        """Context in which the towers run in `precision`."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids int64 (B, L). Texts longer than the model's context are cut, with a warning that counts them."""
        texts = list(texts)
        tokens = self.tokenizer(texts)
        cut = [i for i in (tokens[:, -1] != 0).nonzero()[:, 0].tolist() if self._is_cut(texts[i], tokens.shape[1])]
        if cut:
            warnings.warn(
                f"{len(cut)} of {len(texts)} texts are longer than the {tokens.shape[1]} tokens {self.name} reads; "
                f"the rest of each is ignored (the first: {texts[cut[0]][:60]!r}...)",
                stacklevel=2,
            )
        return self.trim(tokens)

    def trim(self, tokens: Tensor) -> Tensor:
        """Drop trailing columns that are padding in every row, where the text tower masks padding anyway."""
        if self.name != bundled.NAME:
            return tokens
        return tokens[:, : max(int((tokens != 0).sum(1).max()), 1)]

    def _is_cut(self, text: str, context_length: int) -> bool:
        inner = getattr(self.tokenizer, "tokenizer", None)
        if inner is not None:
            return len(inner(text).input_ids) > context_length
        encode = getattr(self.tokenizer, "encode", None)
        return encode is None or len(encode(text)) + 2 > context_length

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within: no dropout and no gradients; afterwards every part is in the mode it was in."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            for module, training in modes:
                module.training = training

    def fingerprint(self, part: str) -> str:
        """16 hexadecimal digits that identify the weights of `clip.visual` (part="image"), its frozen copy ("segment",
        equal where the weights are), or the text tower ("text")."""
        vision = part != "text"
        how = str(self.transform) if vision else f"{bundled.CONTEXT_LENGTH}"
        levels = [bundled.IMAGE_LEVELS, bundled.TEXT_LEVELS]
        digest = hashlib.sha256(f"{self.name} {self.precision} {how} {levels}".encode())
        state = self.clip.state_dict()
        if part == "segment" and self.segments is not None:
            state = {f"visual.{name}": value for name, value in self.segments.tower.state_dict().items()}
        for key, value in state.items():
            if key.startswith("visual.") == vision and not key.startswith("logit_"):
                digest.update(key.encode())
                digest.update(value.detach().float().cpu().reshape(-1).numpy())
        return digest.hexdigest()[:16]

    def token_embedding(self) -> Any:
        """The text tower's table of word vectors."""
        text = getattr(self.clip, "text", self.clip)
        known = hasattr(text.transformer, "get_input_embeddings")
        return text.transformer.get_input_embeddings() if known else text.token_embedding


def _tower_widths(name: str, clip: Any) -> tuple[int, int]:
    if name == bundled.NAME:
        return bundled.IMAGE_WIDTH, bundled.TEXT_WIDTH
    if clip.visual.output_tokens if hasattr(clip.visual, "output_tokens") else False:
        raise ConfigError(f"{name} returns token sequences; choose an open_clip model with pooled features")
    clip.eval()  # open_clip gives it in training mode, where a look at a picture moves BatchNorm's statistics
    with torch.inference_mode():
        size = clip.visual.image_size
        height, width = (size, size) if isinstance(size, int) else size
        features = clip.encode_image(torch.zeros(1, 3, height, width))
    return features.shape[1], features.shape[1]


def load_encoder(
    name: str = bundled.NAME,
    pretrained: str | Path | None = None,
    config: ModelConfig | None = None,
    device: str | torch.device = "cpu",
    load_weights: bool = True,
    preprocess: dict[str, Any] | None = None,
) -> DualEncoder:
    """Build an encoder and fill it.

    Parameters
    ----------
    name: "lite0-minilm" (bundled) or any open_clip architecture (`open_clip.list_models()`).
    pretrained: an open_clip hub tag, or a local .safetensors / .pt file in open_clip's format, as RemoteCLIP
        and GeoRSCLIP publish theirs. None for the bundled encoder; for others None means random weights.
    load_weights: False leaves the towers as they are built, for filling from one of our checkpoints.
    preprocess: size, mean, std and so on of the images, where they differ from the model's own.

    Raises ConfigError for an unknown name or tag, CheckpointError for a file that is missing, unsafe or of
    another architecture.
    """
    config = config or ModelConfig()
    if preprocess is not None:  # JSON knows no tuples, and `fingerprint` tells them from lists
        preprocess = {name: tuple(of) if isinstance(of, list) else of for name, of in preprocess.items()}
    if name == bundled.NAME:
        if pretrained is not None:
            raise ConfigError(
                f"{name} brings its own weights; leave --pretrained out, or name an open_clip model with it"
            )
        with quiet():
            clip = bundled.build_clip(load_weights, preprocess)
            tokenizer = open_clip.get_tokenizer(name)
    else:
        source = str(pretrained) if pretrained is not None and load_weights else None
        clip, tokenizer = _open_clip_model(name, source, preprocess)
    encoder = DualEncoder(name, clip, tokenizer, config)
    encoder.pretrained = None if pretrained is None else str(pretrained)
    return encoder.to(device).eval()


def _open_clip_model(name: str, pretrained: str | None, preprocess: dict[str, Any] | None) -> tuple[Any, Any]:
    known = open_clip.list_models()
    if name not in known:
        raise ConfigError(
            f"Unknown encoder {name!r}{did_you_mean(name, [bundled.NAME, *known]) or '.'} "
            f"Choose {bundled.NAME} or an architecture that open_clip.list_models() names"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    is_file = pretrained is not None and Path(pretrained).suffix in (".pt", ".pth", ".bin", ".safetensors")
    if pretrained is not None and not is_file and pretrained not in tags:
        raise ConfigError(
            f"{pretrained!r} is neither a weight file (.pt, .safetensors) nor a hub tag of {name}"
            f"{did_you_mean(pretrained, tags)}; its tags: {', '.join(tags) or 'none'}"
        )
    from_hub = pretrained is not None and not is_file
    options: dict[str, Any] = dict(load_weights=False, pretrained_text=False, force_preprocess_cfg=preprocess)
    tokenizer = None
    try:
        with quiet():
            tokenizer = open_clip.get_tokenizer(name)  # first: some come from the hub, as some text towers' shapes do
            if from_hub:
                return open_clip.create_model(name, pretrained=pretrained, weights_only=True), tokenizer
            clip = open_clip.create_model(name, **options)
    except (OSError, RuntimeError, ValueError) as error:
        fetched = tokenizer is not None and not isinstance(error, OSError) and "download" not in str(error)
        raise CheckpointError(_not_made(name, pretrained if from_hub else None, fetched, _first_line(error))) from error
    if pretrained is not None:
        fill(clip, read_weights(Path(pretrained)), f"{pretrained} as {name}")
    return clip, tokenizer


def _not_made(name: str, tag: str | None, fetched: bool, why: str) -> str:
    model = name if tag is None else f"{name} {tag}"
    another = "choose another architecture, such as ViT-B-32"
    if fetched:
        return f"open_clip could not build {model} ({why}); {another}"
    what = f"what {name} needs from the hub" if tag is None else model
    instead = another if tag is None else "download the weights elsewhere and pass the file as --pretrained PATH"
    return f"Could not fetch {what} ({why}). Check the connection, or {instead}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def dihedral(images: Tensor, view: int) -> Tensor:
    """One of the eight flips and right-angle rotations, view 0..7, of images (..., H, W); 0 is the identity.

    Seen from above nothing is upside down, so all eight are equally true; none needs interpolation or padding.
    """
    rotated = torch.rot90(images, view % 4, (-2, -1))
    return rotated.flip(-1) if view >= 4 else rotated
