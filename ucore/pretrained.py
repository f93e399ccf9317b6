"""Image-text-to-text models of transformers, from a folder or the hub: loaded whole or refused in one sentence.

config, processor = describe(find_model("llava-hf/llava-1.5-7b-hf"))
model = read_model("llava-hf/llava-1.5-7b-hf", "cuda")

Nothing that comes with a model is run: no code of its own, and pickled weights only as bare tensors. A model some of
whose weights are missing is refused, where transformers would warn and fill in noise.
"""

import re
from pathlib import Path
from typing import Any

import torch

from ucore.device import has_bf16, is_out_of_memory
from ucore.errors import CheckpointError, UserError
from ucore.files import content_hash, file_hash
from ucore.weights import quiet

MODEL_FILES = (".json", ".jinja", ".model", ".txt", ".safetensors", ".bin", ".pt", ".pth")  # what makes the key
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
SMALL = 100_000_000  # parameters up to which bfloat16 saves nothing that matters


def find_model(spec: str) -> str:
    """Folder or hub name. Raises CheckpointError for what is neither."""
    path = Path(spec).expanduser()
    if spec.strip() and path.is_dir():
        if not (path / "config.json").is_file():
            raise CheckpointError(
                f"{spec} holds no config.json, so it is not a model in transformers' format; give the folder that "
                "save_pretrained wrote"
            )
        return str(path)
    if path.exists() or spec.startswith((".", "/", "~")) or not HUB_NAME.fullmatch(spec):
        raise CheckpointError(
            f"There is no model folder {spec}; give tags, micro, a folder in transformers' format, a name of the hub "
            "such as llava-hf/llava-1.5-7b-hf, or http://HOST:PORT/v1:MODEL"
        )
    return spec


def describe(source: str) -> tuple[Any, Any]:
    """Configuration and processor, with padding set. Raises CheckpointError."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig, AutoProcessor

    try:
        with quiet():
            config: Any = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(_cannot_load(source, error)) from error
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise CheckpointError(
            f"{source} is a model of the type {config.model_type}, which does not answer about images with text; "
            "choose an image-text-to-text model (BLIP, InstructBLIP, LLaVA, Qwen-VL, SmolVLM, ...)"
        )
    try:
        with quiet():
            processor: Any = AutoProcessor.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(_cannot_load(source, error)) from error
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise CheckpointError(
            f"{source} holds no processor of images and text; save the model's processor into the folder as well"
        )
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "right" if _is_encoder_decoder(config) else "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return config, processor


def _is_encoder_decoder(config: Any) -> bool:
    return bool(config.is_encoder_decoder or getattr(config.get_text_config(), "is_encoder_decoder", False))


def fingerprint(source: str) -> str:
    """16 hex digits of a folder's weights and settings, or of a hub model's name and commit."""
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        stored = try_to_load_from_cache(source, "config.json")  # .../snapshots/COMMIT/config.json
        return content_hash(source, Path(stored).parent.name if isinstance(stored, str) else "")
    files = sorted(path for path in folder.iterdir() if path.suffix in MODEL_FILES and path.is_file())
    return content_hash([[path.name, file_hash(path)] for path in files])


def read_model(source: str, device: str) -> Any:
    """The model on the CPU, with all of its weights. Raises CheckpointError."""
    from transformers import AutoModelForImageTextToText

    def read(dtype: torch.dtype) -> Any:
        return AutoModelForImageTextToText.from_pretrained(
            source, dtype=dtype, trust_remote_code=False, weights_only=True, output_loading_info=True
        )

    native = has_bf16(torch.device(device).type)
    try:
        with quiet():
            model, loaded = read(torch.bfloat16 if native else torch.float32)
            if native and sum(weight.numel() for weight in model.parameters()) < SMALL:
                model, loaded = read(torch.float32)
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(too_large(source, "cpu")) from error
        raise CheckpointError(_cannot_load(source, error)) from error
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{source} lacks weights of its own architecture ({missing[0]} and {len(missing) - 1} more); copy or "
            "download it again"
        )
    return model


def _cannot_load(source: str, error: BaseException) -> str:
    """Why a model cannot be read, in one sentence with the next step."""
    chain, current = [], error
    while current is not None and len(chain) < 20:
        chain.append(current)
        current = current.__cause__ or current.__context__
    kinds, text = {type(one).__name__ for one in chain}, " ".join(str(one) for one in chain)
    if "trust_remote_code" in text:
        return f"{source} needs code of its own, which is never run here; choose a model that transformers knows"
    if not Path(source).is_dir():
        if "GatedRepoError" in kinds:
            return f"{source} asks for consent on the hub first; log in with `hf auth login`, or give a local folder"
        if kinds & {"RepositoryNotFoundError", "HFValidationError"}:
            return f"The hub knows no model {source}; check the name, or give a local folder"
        if kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectionError"}:
            return (
                f"{source} is no folder here, is not in the hub's cache, and the hub cannot be reached; download it "
                "where there is a network and give its folder"
            )
    if "UnpicklingError" in kinds:
        return f"The weights of {source} hold more than weights (pickled code), so they were not loaded"
    return f"{source} cannot be loaded as an image-text-to-text model ({in_one_line(error)}); copy or download it again"


def in_one_line(error: BaseException) -> str:
    """An error's class and the first 200 letters of its message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def too_large(source: str, device: str) -> str:
    """The sentence for a model that does not fit into the memory of `device`."""
    return (
        f"{source} does not fit into the memory of {device}, even with one image at a time; choose a smaller model, or "
        "serve it elsewhere and give its address: http://HOST:PORT/v1:MODEL"
    )
