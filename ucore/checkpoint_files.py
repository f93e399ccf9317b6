"""What lies in a checkpoint's folder, readable without torch: its card, and the bank of training features."""

from pathlib import Path
from typing import Any

from ucore.config import ModelConfig
from ucore.errors import CheckpointError, ConfigError
from ucore.files import atomic_path, file_hash, parse_json
from ucore.hubness import Bank

WEIGHTS, CARD, STATE, BANK = "model.safetensors", "encoder.json", "state.pt", "bank.safetensors"
FORMAT = 1


def read_card(folder: str | Path) -> dict[str, Any]:
    """The card, encoder.json, of the checkpoint in `folder`, checked. Raises CheckpointError."""
    card_path = Path(folder) / CARD
    if not card_path.is_file():
        raise CheckpointError(
            f"There is no checkpoint in {folder} (no {CARD}); train one: ucore train --data FOLDER --out {folder}"
        )
    try:
        card = parse_json(card_path.read_text("utf-8"))
        if card["format"] != FORMAT:
            raise CheckpointError(f"{card_path} has format {card['format']}, this ucore reads {FORMAT}; train it again")
        str(card["encoder"]["name"])
        ModelConfig(**card["encoder"]["heads"]).check()
        if card["train"]["test_views"] not in (1, 2, 4, 8):
            raise ValueError(f"test_views is {card['train']['test_views']!r}")
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{card_path} is damaged ({error}); copy the checkpoint again") from error
    return card


def save_bank(folder: Path, bank: Bank) -> None:
    """Keep a bank of training features beside the weights in `folder` that made them."""
    from safetensors.numpy import save_file

    metadata = {"weights": file_hash(folder / WEIGHTS)}
    with atomic_path(folder / BANK) as temporary:
        arrays = {"images": bank.images, "texts": bank.texts, "segments": bank.segments}
        save_file({name: array for name, array in arrays.items() if array is not None}, temporary, metadata)


def load_bank(folder: str | Path, weights: str | None = None) -> Bank | None:
    """What `save_bank` kept; None when there is none, or only that of other weights.

    weights: hash of the weights' file, where it is known already. Raises CheckpointError when the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / BANK
    if not path.is_file():
        return None
    try:
        with safe_open(path, "np") as stored:
            known = weights or file_hash(Path(folder) / WEIGHTS)
            if (stored.metadata() or {}).get("weights") != known:
                return None
            return Bank(**{name: stored.get_tensor(name) for name in sorted(stored.keys())})
    except (SafetensorError, OSError, TypeError) as error:
        raise CheckpointError(f"{path} is cut short or not a bank ({error}); copy the checkpoint again") from error
