"""What lies in a checkpoint's folder, readable without torch: its card, and the bank of training features."""

from pathlib import Path
from typing import Any

from ucore.config import ModelConfig
from ucore.errors import CheckpointError, ConfigError
from ucore.files import atomic_path, file_hash, parse_json, readable
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
        encoder, train = card["encoder"], card["train"]
        ModelConfig(**encoder["heads"]).check()
        if train["test_views"] not in (1, 2, 4, 8):
            raise ValueError(f"test_views is {train['test_views']!r}")
        texts = encoder["name"], encoder.get("pretrained") or "", train.get("segments", ""), train.get("loss", "")
        if not all(isinstance(text, str) for text in texts) or not isinstance(card.get("validation", {}), dict):
            raise ValueError("a name is no text")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, ConfigError) as error:
        raise CheckpointError(f"{card_path} is damaged ({error}); copy the checkpoint again") from error
    return card


def save_bank(folder: Path, bank: Bank) -> None:
    """Keep a bank of training features beside the weights in `folder` that made them."""
    from safetensors.numpy import save_file

    metadata = {"weights": file_hash(folder / WEIGHTS)}
    with atomic_path(folder / BANK) as temporary, readable(temporary):
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
            arrays = {name: stored.get_tensor(name) for name in sorted(stored.keys())}
        _check_bank(arrays)
        return Bank(**arrays)
    except (SafetensorError, OSError, TypeError, ValueError, KeyError, AttributeError, MemoryError) as error:
        raise CheckpointError(f"{path} is cut short or not a bank ({error}); copy the checkpoint again") from error


def _check_bank(arrays: dict[str, Any]) -> None:
    """Raise ValueError unless these are arrays of one width, as `Bank` describes them."""
    widths = {array.shape[-1] for array in arrays.values() if array.ndim}
    right = all(
        array.ndim == (3 if name == "segments" else 2)
        and array.dtype.kind == "f"
        and bool((abs(array.astype("float32")) < 1e6).all())  # float16 has no 1e6, and would warn of it
        for name, array in arrays.items()
    )
    few = "segments" in arrays and len(arrays["segments"]) != len(arrays["images"])
    if not right or len(widths) != 1 or few or not all(map(len, arrays.values())):
        raise ValueError("its arrays do not fit each other")


def state_mark(out: Path) -> tuple[int, ...] | None:
    """What tells one written state of `out` from another; None where there is none."""
    try:
        found = (out / STATE).stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
