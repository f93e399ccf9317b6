"""A run's folder: the chosen weights anyone can load, and the state a run resumes from."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ucore.checkpoint_files import BANK, CARD, FORMAT, STATE, WEIGHTS, load_bank, read_card, save_bank, state_mark
from ucore.config import ModelConfig, TrainConfig
from ucore.errors import CheckpointError, ConfigError
from ucore.files import atomic_path, write_json
from ucore.model import DualEncoder, load_encoder
from ucore.weights import fill, read_state, read_weights, resuming, write_weights

__all__ = [
    "BANK",
    "CARD",
    "FORMAT",
    "STATE",
    "WEIGHTS",
    "StartWeights",
    "load_bank",
    "load_checkpoint",
    "load_state",
    "save_bank",
    "save_encoder",
    "save_state",
]


RESTART = "repeat with --restart to begin anew"


class StartWeights:
    """An encoder's weights before training, to go back to; towers are copied only when they are about to change."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def keep(self, encoder: DualEncoder, towers: bool) -> None:
        """Copy what was not copied before; without `towers`, only what is outside of both."""
        for name, value in encoder.state_dict().items():
            tower = name.startswith(("clip.", "segments.tower."))
            if name not in self._kept and (towers or not tower):
                self._kept[name] = value.detach().clone()

    def restore(self, encoder: DualEncoder) -> None:
        """Put them back, in eval mode; what was never copied has not changed."""
        encoder.load_state_dict({**encoder.state_dict(), **self._kept})
        encoder.eval()


def save_encoder(
    folder: Path,
    encoder: DualEncoder,
    state: Mapping[str, Tensor],
    config: TrainConfig,
    best: Mapping[str, Any],
) -> None:
    """Write `state` as model.safetensors and what is needed to rebuild `encoder` as encoder.json."""
    write_weights(folder / WEIGHTS, state)
    card = {
        "format": FORMAT,
        "encoder": _card(encoder),
        **config.card(),
        "validation": dict(best),
    }
    write_json(folder / CARD, card)


def _card(encoder: DualEncoder) -> dict[str, Any]:
    """What is needed to rebuild the encoder before filling it: name, weights' origin and heads."""
    return {
        "name": encoder.name,
        "pretrained": encoder.pretrained,
        "heads": dataclasses.asdict(encoder.config),
        "preprocess": dict(encoder.clip.visual.preprocess_cfg),  # a hub tag's may differ from its architecture's
    }


def load_checkpoint(folder: str | Path, device: str | torch.device = "cpu") -> tuple[DualEncoder, dict[str, Any]]:
    """The encoder saved in `folder` by training, in eval mode, and its card (encoder.json).

    Raises CheckpointError when the folder holds none, or weights that do not fit.
    """
    folder, card = Path(folder), read_card(folder)
    name, heads = str(card["encoder"]["name"]), ModelConfig(**card["encoder"]["heads"])
    try:
        preprocess = card["encoder"].get("preprocess")
        encoder = load_encoder(name, None, heads, device, load_weights=False, preprocess=preprocess)
        if card["train"].get("segments", "none") != "none":
            encoder.add_segments(card["train"]["segments"])
        if card["train"].get("loss") == "sigmoid":
            encoder.add_bias(card["train"]["head_batch_size"])
    except ConfigError as error:
        raise CheckpointError(f"{folder / CARD} names an encoder this ucore does not have: {error}") from error
    except CheckpointError:
        raise
    except Exception as error:  # open_clip raises what a broken value happens to cause
        raise CheckpointError(f"{folder / CARD} is damaged; copy the checkpoint again") from error
    fill(encoder, read_weights(folder / WEIGHTS), f"{folder / WEIGHTS} as {name}")
    encoder.pretrained = card["encoder"].get("pretrained")
    encoder.choose_precision(card["train"].get("precision", "auto"))
    return encoder.eval(), card


def save_state(folder: Path, state: dict[str, Any]) -> tuple[int, ...] | None:
    """Keep what training resumes from in `folder`, whole or not at all. Returns its `state_mark`."""
    with atomic_path(folder / STATE) as temporary:
        torch.save({**state, "format": FORMAT}, temporary)
    return state_mark(folder)


def load_state(folder: Path) -> dict[str, Any] | None:
    """The state to resume from, or None when there is none. Raises CheckpointError when it is damaged."""
    path = folder / STATE
    if not path.is_file():
        return None
    state = read_state(path, RESTART, ("format", "step_count", "config", "made_of", "phase"))
    with resuming(path, RESTART):
        if state["format"] != FORMAT:
            raise ValueError(f"format {state['format']}")
    return state
