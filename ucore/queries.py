"""A query as a person types it: checked, cut where the encoder stops reading, and embedded by the text tower alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ucore.bundled_text import NAME, NumpyText
from ucore.checkpoint_files import WEIGHTS, read_card
from ucore.errors import ConfigError

MOST_WORDS = 400  # no text tower here reads more, so what comes after is not even looked at


class TextEncoder(Protocol):
    """What turns queries into features: `bundled_text.NumpyText`, or a whole `DualEncoder` behind `TorchText`."""

    def fits(self, text: str) -> bool:
        """Whether the encoder reads all of `text`."""
        ...

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Features float32 (T, D), L2-normalised; what does not fit is cut."""
        ...


class Reading(NamedTuple):
    """What of a query is read, and how many of its words are not."""

    text: str
    cut: int

    @property
    def note(self) -> str:
        """The sentence that says what is cut, or ""."""
        if not self.cut:
            return ""
        last = " ".join(self.text.split()[-3:])
        return f"The query is longer than the encoder reads: what comes after “… {last}”, {self.cut:,} words, is cut."


class TorchText:
    """Any encoder's text tower."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder

    def fits(self, text: str) -> bool:
        """Whether the encoder's tokenizer cuts nothing of `text`."""
        import warnings

        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            self.encoder.tokenize([text])
        return not said

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Features float32 (T, D), L2-normalised; what does not fit is cut."""
        import warnings

        from ucore.features import embed_texts

        with warnings.catch_warnings(action="ignore"):  # what is cut was said
            return embed_texts(self.encoder, texts, progress=False)


def open_text_encoder(checkpoint: str | Path) -> TextEncoder:
    """The text tower of a checkpoint: of the bundled encoder without torch, else by loading it whole.

    Raises CheckpointError as `checkpoint.load_checkpoint`.
    """
    if read_card(checkpoint)["encoder"]["name"] == NAME:
        return NumpyText(Path(checkpoint) / WEIGHTS)
    from ucore.checkpoint import load_checkpoint

    return TorchText(load_checkpoint(checkpoint)[0])


def checked_query(text: str) -> str:
    """`text` on one line. Raises ConfigError for an empty one."""
    words = "".join(letter if letter.isprintable() else " " for letter in text).split()
    if not words:
        raise ConfigError("The query is empty: type what to look for, for example “tennis courts beside a school”.")
    return " ".join(words)


def read_part(text: str, fits: Callable[[str], bool]) -> Reading:
    """As many of a query's first words as `fits`, at least one."""
    words = text.split()
    some = words[:MOST_WORDS]
    low, high = 1, len(some)
    if len(some) == len(words) and fits(text):
        return Reading(text, 0)
    while low < high:  # the most words that fit lie within
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(" ".join(some[:middle])) else (low, middle - 1)
    return Reading(" ".join(some[:low]), len(words) - low)
