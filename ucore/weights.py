"""Weights from files: read without running code in them, and fitted to a model or refused in one sentence."""

import contextlib
import logging
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ucore.errors import CheckpointError, UserError
from ucore.files import atomic_path, readable

WRAPPERS = ("state_dict", "model", "model_state_dict")  # under which training scripts keep a state dict


def read_weights(path: Path) -> dict[str, Tensor]:
    """State dict of a .safetensors or torch file, on the CPU; pickles that hold code are refused, not run.

    Unwraps {"state_dict": ...} and the like, and DataParallel's "module." prefix, as published checkpoints need.
    Raises CheckpointError.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no weight file at {path}; check the path or download the checkpoint first")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # a header may claim kinds and sizes that torch does not have
            raise CheckpointError(f"{path} is cut short or not a safetensors file ({error}); copy it again") from error
    try:
        with warnings.catch_warnings(action="ignore"):  # of archives and pickles that are refused below
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything on damaged bytes
        if _holds_code(path, error):
            raise CheckpointError(
                f"{path} holds more than weights (pickled code), so it was not loaded; "
                f"ask its author for safetensors or a plain state_dict"
            ) from error
        raise CheckpointError(f"{path} is cut short or not a torch checkpoint; copy or download it again") from error
    state = loaded
    if isinstance(loaded, Mapping):
        state = next((loaded[name] for name in WRAPPERS if isinstance(loaded.get(name), Mapping)), loaded)
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} holds no state_dict of tensors; pass a file with the weights alone")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _holds_code(path: Path, error: Exception) -> bool:
    """Whether torch refused a file for its content, rather than failed to read a damaged one."""
    if not isinstance(error, pickle.UnpicklingError):
        return "TorchScript" in str(error)
    with open(path, "rb") as stream:
        is_pickle = stream.read(2).startswith((b"PK", b"\x80"))
    return is_pickle or "GLOBAL" in str(error)


def fill(model: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load `state` into `model` strictly. Raises CheckpointError naming the layers that do not fit, or hold NaN.

    A network that clips its activations turns NaN weights into features that look like any others.
    """
    own = model.state_dict()
    # Old CLIP files carry a mask buffer that newer code computes; position ids likewise.
    state = {k: v for k, v in state.items() if not k.endswith(("attn_mask", "position_ids")) or k in own}
    missing = sorted(set(own) - set(state))
    extra = sorted(set(state) - set(own))
    wrong = [
        f"{key} is {tuple(state[key].shape)} where {tuple(own[key].shape)} is needed"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems = wrong[:3]
    problems += [f"no {key}" for key in missing[: 3 - len(problems)]]
    problems += [f"unknown {key}" for key in extra[: 3 - len(problems)]]
    if problems:
        count = len(wrong) + len(missing) + len(extra)
        more = f" and {count - len(problems)} more" if count > len(problems) else ""
        raise CheckpointError(
            f"Cannot load {what}: another architecture ({'; '.join(problems)}{more}); name the model it belongs to"
        )
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, NotImplementedError) as error:  # sparse, quantised, or of no device
        raise CheckpointError(
            f"Cannot load {what}: its tensors are not plain numbers; save it as safetensors"
        ) from error
    masks = ("attn_mask",)  # buffers that hold -inf by intention
    broken = [key for key, value in model.state_dict().items() if not key.endswith(masks) and not _finite(value)]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise CheckpointError(
            f"{what} holds NaN or infinite weights, in {broken[0]}{more}: its training went wrong, or the file is "
            f"damaged; take an earlier checkpoint or copy it again"
        )


def _finite(value: Tensor) -> bool:
    """Whether there is neither NaN nor infinity in a tensor; kinds without either have none."""
    return not value.is_floating_point() or bool(value.isfinite().all())


def read_state(path: Path, remedy: str, needed: Sequence[str]) -> dict[str, Any]:
    """What a run left to go on from, read without running code. Raises CheckpointError, ending in `remedy`."""
    with resuming(path, remedy):
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not set(needed) <= set(state):
            raise ValueError("something is missing")
        return state


@contextlib.contextmanager
def resuming(path: Path, remedy: str) -> Iterator[None]:
    """Turn whatever goes wrong within, but for what a user is told already, into one sentence about `path`."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # zip, pickle, torch and whoever uses the state each raise their own on damage
        raise CheckpointError(f"{path} is damaged or of another version, so the run cannot go on; {remedy}") from error


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict as safetensors, atomically."""
    with atomic_path(path) as temporary, readable(temporary):
        save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, temporary)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hush open_clip's and transformers' loading notes: a partly filled model is our normal intermediate state."""
    from transformers.utils import logging as hf_logging

    before = logging.root.manager.disable
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.disable(before)
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
