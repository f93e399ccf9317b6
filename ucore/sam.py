"""Segment Anything models of every type by one name: the shipped small one, or a published checkpoint, local or not.

Architectures are segment_anything's own (`sam_model_registry`); weights are read without running code in them.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import requests
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from torch import Tensor
from tqdm.auto import tqdm

from ucore import micro_sam
from ucore.device import pick_device
from ucore.errors import CheckpointError, ConfigError
from ucore.files import atomic_path, content_hash
from ucore.images import someone_looks
from ucore.weights import fill, read_weights

WIDTHS = {"vit_h": 1280, "vit_l": 1024, "vit_b": 768}  # channels of the image encoder, which tell the types apart
WIDTH_KEY = "image_encoder.patch_embed.proj.weight"
CHOICES = f"{micro_sam.NAME}, or TYPE:CHECKPOINT with a TYPE of {', '.join(WIDTHS)} and a CHECKPOINT's path or URL"
TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two pieces of a download
PIECE = 2**20


def load_sam(spec: str, device: str = "auto") -> Sam:
    """A model in eval mode on `device`.

    spec: "sam-micro" (or "sam-micro:FILE" for weights that `ucore segments train-micro` wrote), or "vit_h:CHECKPOINT"
    ("vit_l", "vit_b") where CHECKPOINT is a file or an http(s) address, which is downloaded once, to `cache_folder()`.
    Raises ConfigError for another spec, CheckpointError for weights that are absent, damaged or of another type.
    """
    kind, _, source = spec.partition(":")
    if kind == micro_sam.NAME:
        if source and (held := _type_of(read_weights(Path(source)))):
            raise CheckpointError(f"{source} holds {held}, not {kind}: write {held}:{source}")
        return micro_sam.load_micro_sam(source or None).to(pick_device(device)).eval()
    if kind not in WIDTHS or not source:
        raise ConfigError(f"{spec!r} names no Segment Anything model: write {CHOICES}")
    device = pick_device(device)
    path = _fetch(source) if source.startswith(("http://", "https://")) else Path(source)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint at {path}: write {CHOICES}")
    state = read_weights(path)
    _check_type(state, kind, source)
    with torch.random.fork_rng(devices=[]):  # the values drawn here are overwritten; the caller's are not disturbed
        sam = sam_model_registry[kind]()
    fill(sam, state, source)
    return sam.to(device).eval()


def fingerprint(sam: Sam) -> str:
    """16 hexadecimal digits that change with any weight of `sam`."""
    digest = hashlib.sha256()
    for name, value in sam.state_dict().items():
        digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Where downloads are kept: the folder that UCORE_CACHE names, else .cache/ucore in the home folder."""
    return Path(os.environ.get("UCORE_CACHE") or Path.home() / ".cache" / "ucore")


def _type_of(state: Mapping[str, Tensor]) -> str | None:
    """The published type whose weights these could be."""
    width = state[WIDTH_KEY].shape[0] if WIDTH_KEY in state and state[WIDTH_KEY].ndim == 4 else None
    return next((name for name, channels in WIDTHS.items() if channels == width), None)


def _check_type(state: Mapping[str, Tensor], kind: str, source: str) -> None:
    held = _type_of(state)
    if held == kind:
        return  # whatever else does not fit, `fill` names
    if held is not None:
        raise CheckpointError(f"{source} holds {held}, not {kind}: write {held}:{source}")
    raise CheckpointError(f"{source} holds no Segment Anything model of type {', '.join(WIDTHS)}: write {CHOICES}")


def _fetch(address: str) -> Path:
    """The file behind an address: downloaded whole into the cache, unless it is there already."""
    parts = urlsplit(address)
    name = Path(parts.path).name or "checkpoint"
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"  # the query may hold a key
    path = cache_folder() / content_hash(address) / name
    if path.is_file():
        return path
    try:
        with requests.get(address, stream=True, timeout=TIMEOUT) as answer:
            answer.raise_for_status()
            length = int(answer.headers.get("Content-Length", 0))
            bar = tqdm(total=length or None, desc=name, unit="B", unit_scale=True, disable=not someone_looks())
            with atomic_path(path) as temporary, open(temporary, "wb") as stream, bar:
                for piece in answer.iter_content(PIECE):
                    stream.write(piece)
                    bar.update(len(piece))
                if length and stream.tell() != length and "Content-Encoding" not in answer.headers:
                    raise requests.ConnectionError("the connection ended early")
    except (requests.RequestException, ValueError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = f"the server answered {status}" if status else "the server cannot be reached or broke off"
        raise CheckpointError(
            f"Cannot download {shown}: {reason}. Download it by other means and write its path."
        ) from error
    return path
